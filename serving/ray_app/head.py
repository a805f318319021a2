"""Run a private Ray head with only the processes that serving needs: `python -m serving.ray_app.head`.

`ray start --head` starts about twenty processes (dashboard modules for jobs, logs, metrics, training, ...; an
autoscaler; a client server). On two cores they take seconds to start and a share of every token afterwards. This
starts the control store, the raylet with its agents, and a dashboard with the one module `ServeHead`, the REST API
that deploys applications.

It is Ray's own `Node`, with one method overridden; the release of Ray is pinned in pyproject.toml. The process
stays in the foreground, exits with 1 when one of Ray's processes ends, and the kernel ends those when this one dies.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

from ray._private import ray_constants, services
from ray._private.node import Node
from ray._private.parameter import RayParams
from ray._private.utils import write_ray_address

DASHBOARD_MODULES = "ServeHead"
PR_SET_PDEATHSIG = 1


class LeanNode(Node):
    """A head node whose dashboard loads `DASHBOARD_MODULES` only."""

    def start_api_server(self, *, include_dashboard: bool | None, raise_on_failure: bool) -> None:
        """Start the dashboard with one module; as `ray._private.services.start_api_server`, which can't be told to."""
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
        info = services.start_ray_process(
            command, ray_constants.PROCESS_TYPE_DASHBOARD, fate_share=self.kernel_fate_share
        )
        self._webui_url = f"{params.dashboard_host}:{params.dashboard_port}"
        self.all_processes[ray_constants.PROCESS_TYPE_DASHBOARD] = [info]


def main() -> None:
    t0=time.time()
    p = argparse.ArgumentParser()
    p.add_argument("--temp-dir"); p.add_argument("--gcs-port", type=int); p.add_argument("--dashboard-port", type=int)
    p.add_argument("--worker-ports")
    a = p.parse_args()
    params = RayParams(
        node_ip_address="127.0.0.1", gcs_server_port=a.gcs_port, num_cpus=2, num_gpus=0, object_store_memory=100*1024*1024,
        temp_dir=a.temp_dir, include_dashboard=True, dashboard_host="127.0.0.1", dashboard_port=a.dashboard_port,
        dashboard_agent_listen_port=0, metrics_agent_port=0, metrics_export_port=0, no_monitor=True, include_log_monitor=False, node_name="tidegate",
    )
    node = LeanNode(params, head=True, shutdown_at_exit=True, spawn_reaper=True)
    write_ray_address(params.gcs_address or node.address, a.temp_dir)
    print("started", time.time()-t0, node.kernel_fate_share, {k:[i.process.pid for i in v] for k,v in node.all_processes.items()}, flush=True)
    while True:
        time.sleep(0.5)
        dead = node.dead_processes()
        if dead:
            print("dead", dead, flush=True)
            node.kill_all_processes(check_alive=False, allow_graceful=False)
            os._exit(1)


if __name__ == "__main__":
    main()
