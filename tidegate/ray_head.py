"""The local platform's own Ray: started, watched and stopped here, and no other Ray is ever touched.

Several homes on one machine coexist: every port is free when chosen, sockets lie in a folder of this home's own, and
all processes carry `TIDEGATE_RAY_HOME` in their environment, by which they, and only they, are found again after a
crash. Access needs a token; everything listens on loopback.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from serving.engines.base import ABSENT, PROJECT_ROOT, until_exit
from serving.engines.lifeline import PARENT_PID_VARIABLE
from tidegate.settings import Settings

MARKER = "TIDEGATE_RAY_HOME"
"""Environment variable that every process of this Ray inherits, engines too; its value names the home."""
SOCKET_PATH_LIMIT_BYTES = 107
SOCKET_TAIL_BYTES = 70
"""Room for `/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store` below the folder."""
INGRESS_PORTS = 200
"""Ports reserved for replicas, below the range that the kernel hands out."""
INGRESS_FIRST, INGRESS_LAST = 20_000, 31_800
POLL_S = 0.1
STARTED = b"ray started"
"""What `serving.ray_app.head` writes when the raylet has registered."""
SESSIONS_KEPT = 3
"""Ray's own logs of so many starts stay; each start makes a folder of them."""

QUIET: Mapping[str, str] = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Replicas open ports of their own, and no drain of Serve's is needed: the gateway takes traffic away first.
    "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1",
    "RAY_SERVE_ENABLE_HA_PROXY": "0",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
    # "Cluster" off: addresses stay 127.0.0.1 instead of being replaced by the machine's.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    # Ray's workers run at nice 15 by default and the engines are their children: they would yield to everything.
    "RAY_worker_niceness": "0",
    # The kernel's memory killer takes the largest process, an engine; Ray's would take the Serve controller.
    "RAY_memory_monitor_refresh_ms": "0",
    # What follows is for clusters of thousands of tasks: here it only takes time from the engines.
    "RAY_enable_metrics_collection": "0",
    "RAY_metrics_report_interval_ms": "600000",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_event_stats": "0",
    "RAY_event_stats_print_interval_ms": "0",
    "RAY_enable_timeline": "0",
    "RAY_debug_dump_period_milliseconds": "0",
    "RAY_raylet_report_resources_period_milliseconds": "1000",
    "RAY_gcs_pull_resource_loads_period_milliseconds": "10000",
    "RAY_kill_idle_workers_interval_ms": "5000",
    "RAY_DASHBOARD_AGENT_LOOP_MONITOR_ENABLED": "0",
    "REPORTER_UPDATE_INTERVAL_MS": "600000",
    "METRICS_RECORD_INTERVAL_S": "600",
    "SCAN_EVENT_DIR_INTERVAL_SECONDS": "600",
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "30",
    "RAY_SERVE_LOG_TO_STDERR": "0",
}
"""Ray's settings by environment variable, read by its processes when they start."""

UNMEASURED = ("RAY_enable_metrics_collection", "RAY_metrics_report_interval_ms", "REPORTER_UPDATE_INTERVAL_MS")
"""Of those, what keeps Ray from measuring itself; left out where its metrics are wanted."""


class RayStartFailed(Exception):
    """Ray could not be started; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class RayAddress:
    """What is written to `settings.ray_file`."""

    dashboard_url: str
    gcs_address: str
    token: str
    pid: int
    marker: str


class RayHead:
    """One Ray head, for one home. After it has died make a new one."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.marker = hashlib.sha256(str(settings.home.resolve()).encode()).hexdigest()[:16]
        self.log_file = settings.log_dir / "ray.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._address: RayAddress | None = None
        self._log_start = 0

    @property
    def address(self) -> RayAddress | None:
        """Where it answers; None before `start`."""
        return self._address

    def alive(self) -> bool:
        """Whether all of Ray's own processes run: the head ends as soon as one of them does."""
        return self._process is not None and self._process.poll() is None

    async def start(self, timeout_s: float = 120.0, progress: Callable[[str, float], None] | None = None) -> float:
        """Start Ray, wait until its REST API answers, and write `settings.ray_file`.

        Call it from a thread that lives as long as Ray should: the kernel ends Ray with it.

        Args:
            timeout_s: The longest to wait, in seconds.
            progress: Called about once a second with what is being waited for and the seconds so far.

        Returns:
            Seconds it took.

        Raises:
            RayStartFailed: it could not be started.
        """
        began = time.monotonic()
        await asyncio.to_thread(self.sweep)
        self._refuse_taken_port()
        token = self._write_token()
        temp_dir = self._temp_dir()
        gcs_port, dashboard_port, metrics_port = _free_ports(3)
        command = [sys.executable, "-m", "serving.ray_app.head", "--temp-dir", str(temp_dir)]
        command += ["--gcs-port", str(gcs_port), "--dashboard-port", str(dashboard_port)]
        command += ["--metrics-port", str(metrics_port)]
        self._settings.log_dir.mkdir(parents=True, exist_ok=True)
        with self.log_file.open("ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(  # noqa: ASYNC220 - forks at once
                command,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        _write_private(self._sessions_file, " ".join(map(str, {*self._sessions(), self._process.pid})))
        url = f"http://127.0.0.1:{dashboard_port}"
        address = RayAddress(url, f"127.0.0.1:{gcs_port}", token, self._process.pid, self.marker)
        try:
            await self._wait_for_rest(address, began, timeout_s, progress)
        except BaseException:
            await asyncio.to_thread(self.sweep)
            raise
        self._address = address
        self._publish(address, metrics_port)
        return time.monotonic() - began

    async def wait_for_death(self) -> str:
        """Wait until Ray ends; return one line on why."""
        if self._process is not None and self.alive():
            await until_exit(self._process.pid)
        return self._last_words()

    async def stop(self) -> None:
        """End every process of this Ray, engines included. Replicas have been drained before, or are not worth it."""
        for published in (self._settings.ray_file, self._settings.ray_metrics_file):
            with contextlib.suppress(OSError):
                published.unlink()
        await asyncio.to_thread(self.sweep)

    def sweep(self) -> list[int]:
        """Kill what is left of any Ray of this home; return the pids killed.

        Found by the marker in their environment, or, since some of Ray's processes overwrite theirs with a title, by
        the session that a head of this home has led (its id is not given out again while a member lives).
        """
        sessions = self._sessions()
        if self._process is not None:
            sessions.add(self._process.pid)
            if self._process.poll() is None:
                # The head first: by fate sharing the kernel takes Ray's own processes with it.
                self._process.kill()
                self._process.wait(10)
        killed: set[int] = set()
        for _ in range(5):
            found = processes_of(self.marker, sessions)
            if not found:
                break
            for process in found:
                with contextlib.suppress(psutil.Error):
                    process.send_signal(signal.SIGKILL)
                killed.add(process.pid)
            psutil.wait_procs(found, timeout=3)
        else:
            return sorted(killed)
        with contextlib.suppress(OSError):
            self._sessions_file.unlink()
        return sorted(killed)

    @property
    def _sessions_file(self) -> Path:
        return self._settings.run_dir / "ray.sessions"

    def _sessions(self) -> set[int]:
        """Session ids of heads that may not have been cleaned up after."""
        try:
            return {int(word) for word in self._sessions_file.read_text().split()}
        except (OSError, ValueError):
            return set()

    def _environment(self) -> dict[str, str]:
        env = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "TIDEGATE_RAY"))}
        first = _ingress_block()
        roots = [str(ABSENT), str(PROJECT_ROOT), *filter(None, env.get("PYTHONPATH", "").split(os.pathsep))]
        return {
            **env,
            **{k: v for k, v in QUIET.items() if not (self._settings.ray_metrics and k in UNMEASURED)},
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self._token_file),
            "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(first),
            "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(first + INGRESS_PORTS - 1),
            "PYTHONPATH": os.pathsep.join(dict.fromkeys(roots)),
            MARKER: self.marker,
            PARENT_PID_VARIABLE: str(os.getpid()),
        }

    @property
    def _token_file(self) -> Path:
        return self._settings.run_dir / "ray.token"

    def _write_token(self) -> str:
        token = secrets.token_hex(32)
        _write_private(self._token_file, token)
        return token

    def _publish(self, address: RayAddress, metrics_port: int) -> None:
        # As Ray's own dashboard would write it, whose module for that is not loaded here.
        listed = [{"labels": {"job": "ray"}, "targets": [f"127.0.0.1:{metrics_port}"]}]
        _write_private(self._settings.ray_metrics_file, json.dumps(listed if self._settings.ray_metrics else []))
        content = {
            "dashboard_url": address.dashboard_url,
            "gcs_address": address.gcs_address,
            "token": address.token,
            "pid": address.pid,
            "marker": address.marker,
        }
        _write_private(self._settings.ray_file, json.dumps(content, indent=1))

    def _temp_dir(self) -> Path:
        """A folder short enough for sockets: below the home if that fits, else below the system's."""
        preferred = self._settings.run_dir.resolve() / "ray"
        if len(os.fsencode(preferred)) + SOCKET_TAIL_BYTES > SOCKET_PATH_LIMIT_BYTES:
            preferred = Path(tempfile.gettempdir()) / f"tg-{os.getuid()}-{self.marker[:8]}"
        if len(os.fsencode(preferred)) + SOCKET_TAIL_BYTES > SOCKET_PATH_LIMIT_BYTES:
            raise RayStartFailed(
                f"{preferred} is too long for Ray's sockets ({SOCKET_PATH_LIMIT_BYTES} bytes with their names); "
                "set TMPDIR to a shorter folder"
            )
        preferred.mkdir(mode=0o700, parents=True, exist_ok=True)
        if preferred.stat().st_uid != os.getuid():
            raise RayStartFailed(f"{preferred} belongs to another user; set TMPDIR to a folder of your own")
        preferred.chmod(0o700)
        sessions = sorted(p for p in preferred.glob("session_2*") if not p.is_symlink())
        for old in sessions[: max(0, len(sessions) - SESSIONS_KEPT + 1)]:
            shutil.rmtree(old, ignore_errors=True)
        return preferred

    def _refuse_taken_port(self) -> None:
        port = self._settings.serve_port
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                raise RayStartFailed(
                    f"port {port} for Ray Serve's proxy is in use ({error.strerror}); "
                    "set TIDEGATE_SERVE_PORT to a free one"
                ) from error

    async def _wait_for_rest(
        self, address: RayAddress, began: float, timeout_s: float, progress: Callable[[str, float], None] | None
    ) -> None:
        headers = {"Authorization": f"Bearer {address.token}"}
        told = began
        async with httpx.AsyncClient(headers=headers, timeout=timeout_s, trust_env=False) as client:
            while (waited := time.monotonic() - began) < timeout_s:
                if not self.alive():
                    raise RayStartFailed(self._last_words())
                with contextlib.suppress(httpx.HTTPError):
                    answer = await client.get(address.dashboard_url + "/api/ray/version")
                    if answer.status_code == 200 and STARTED in self._new_log():
                        return
                if progress and time.monotonic() - told >= 1:
                    told = time.monotonic()
                    progress("Ray", waited)
                await asyncio.sleep(POLL_S)
        raise RayStartFailed(f"Ray did not answer within {timeout_s:g} s; its log is {self.log_file}")

    def _new_log(self) -> bytes:
        with self.log_file.open("rb") as log:
            log.seek(self._log_start)
            return log.read()

    def _last_words(self) -> str:
        lines = [line for line in self._new_log().decode(errors="replace").splitlines() if line.strip()]
        telling = next(
            (line for line in reversed(lines) if "Error" in line or "Died" in line), lines[-1] if lines else ""
        )
        code = self._process.poll() if self._process else None
        return f"Ray ended with code {code}: {telling.strip() or 'no output'}; its log is {self.log_file}"


def processes_of(marker: str, sessions: Collection[int] = ()) -> list[psutil.Process]:
    """All processes, the calling one apart, with the marker in their environment, and Ray's own in these sessions."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            value = process.environ().get(MARKER)
            rays = not value and os.getsid(process.pid) in sessions and "".join(process.cmdline()[:1]).startswith("ray")
            if value == marker or rays:
                found.append(process)
    return found


def _write_private(path: Path, text: str) -> None:
    """Write a file whole or not at all, readable by its owner alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(fd, "w") as file:
        file.write(text)
    os.replace(name, path)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [int(sock.getsockname()[1]) for sock in sockets]
    finally:
        for sock in sockets:
            sock.close()


def _ingress_block() -> int:
    """The first port of a block for replicas, at random: two homes rarely share one (a taken port is skipped)."""
    blocks = (INGRESS_LAST - INGRESS_FIRST) // INGRESS_PORTS
    return INGRESS_FIRST + secrets.randbelow(blocks) * INGRESS_PORTS
