"""Run a private Ray head with only the processes that serving needs: `python -m serving.ray_app.head`.

`ray start --head` starts a dashboard with ten modules in processes of their own (jobs, logs, metrics, training, ...),
an autoscaler, a client server and a log monitor. On two cores they take seconds to start and a share of every token
afterwards. This starts the control store, the raylet with its two agents, and a dashboard with the one module
`ServeHead`: the REST API that deploys applications.

It is Ray's own `Node` with one method overridden; the release of Ray is pinned in pyproject.toml for that. The process
stays in the foreground, ends with 1 as soon as one of Ray's processes ends, and the kernel ends those when it dies.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from ray._private import ray_constants, services
from ray._private.node import Node
from ray._private.parameter import RayParams
from ray._private.utils import write_ray_address

from serving.engines.lifeline import PARENT_PID_VARIABLE, die_with_parent

DASHBOARD_MODULES = "ServeHead"


class LeanNode(Node):  # type: ignore[misc]  # ray has no types
    """A head node whose dashboard loads `DASHBOARD_MODULES` only."""

    def start_api_server(self, *, include_dashboard: bool | None, raise_on_failure: bool) -> None:
        """Start the dashboard as `ray._private.services.start_api_server` does, which can't be told which modules.

        It is not waited for: the caller polls its port, and the raylet starts meanwhile.
        """
        del include_dashboard, raise_on_failure
        params = self._ray_params
        out, err = self.get_log_file_names("dashboard", unique=True, create_out=True, create_err=True)
        command = [
            sys.executable,
            "-m",
            "ray.dashboard.dashboard",
            f"--host={params.dashboard_host}",
            f"--port={params.dashboard_port}",
            "--port-retries=0",
            f"--temp-dir={self.temp_dir}",
            f"--log-dir={self._logs_dir}",
            f"--session-dir={self._session_dir}",
            f"--logging-rotate-bytes={self.max_bytes}",
            f"--logging-rotate-backup-count={self.backup_count}",
            f"--gcs-address={self.gcs_address}",
            f"--cluster-id-hex={self.cluster_id.hex()}",
            f"--node-ip-address={self._node_ip_address}",
            f"--stdout-filepath={out}",
            f"--stderr-filepath={err}",
            f"--modules-to-load={DASHBOARD_MODULES}",
        ]
        kind = ray_constants.PROCESS_TYPE_DASHBOARD
        self.all_processes[kind] = [services.start_ray_process(command, kind, fate_share=self.kernel_fate_share)]
        self._webui_url = f"{params.dashboard_host}:{params.dashboard_port}"


def start(args: argparse.Namespace) -> Node:
    """Start the head's processes; returns when the raylet has registered."""
    params = RayParams(
        node_ip_address="127.0.0.1",
        gcs_server_port=args.gcs_port,
        num_cpus=args.cpus,
        num_gpus=None,
        object_store_memory=args.object_store_bytes,
        temp_dir=args.temp_dir,
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        dashboard_port=args.dashboard_port,
        dashboard_agent_listen_port=0,
        metrics_agent_port=0,
        metrics_export_port=args.metrics_port,
        no_monitor=True,
        include_log_monitor=False,
    )
    node = LeanNode(params, head=True, shutdown_at_exit=True, spawn_reaper=True)
    write_ray_address(node.address, args.temp_dir)
    return node


def wait_for_a_death(node: Node) -> str:
    """Block until one of Ray's processes ends; return its kind. Costs nothing while they live."""
    kinds = {info.process.pid: kind for kind, infos in node.all_processes.items() for info in infos}
    while True:
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
        if ended is None:
            continue
        if ended.si_pid in kinds:
            return str(kinds[ended.si_pid])
        os.waitpid(ended.si_pid, 0)


def main(argv: Sequence[str] | None = None) -> None:
    """Start the head and stay until it fails."""
    parser = argparse.ArgumentParser(prog="python -m serving.ray_app.head", description="a private, lean Ray head")
    parser.add_argument("--temp-dir", required=True, help="short path: Ray's sockets below it have at most 107 bytes")
    parser.add_argument("--gcs-port", type=int, required=True, help="port of Ray's control store")
    parser.add_argument("--dashboard-port", type=int, required=True, help="port of the REST API")
    parser.add_argument("--metrics-port", type=int, default=0, help="port of Ray's own metrics; 0: any")
    parser.add_argument("--cpus", type=int, default=2, help="cores that Ray counts with; also workers started ahead")
    parser.add_argument(
        "--object-store-bytes", type=int, default=100 * 1024 * 1024, help="shared memory of the object store"
    )
    args = parser.parse_args(argv)
    if os.environ.get(PARENT_PID_VARIABLE):
        die_with_parent()
        # Not for what it starts: the agents and workers have other parents.
        del os.environ[PARENT_PID_VARIABLE]
    node = start(args)
    sys.stdout.write("ray started\n")
    sys.stdout.flush()
    kind = wait_for_a_death(node)
    sys.stderr.write(f"RayDied: Ray's {kind} has ended, so the head ends\n")
    sys.stderr.flush()
    node.kill_all_processes(check_alive=False, allow_graceful=False)
    os._exit(1)


if __name__ == "__main__":
    main()
