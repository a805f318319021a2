"""The port to engines: what starts one, and what looks after it while it runs.

An engine is a child process that speaks OpenAI's HTTP API with `GET /health`. This module knows how to keep a
child process; what to run is the business of the adapters (`vllm`, `simulated`). It imports the standard library
only: it is loaded by every replica actor, which should stay light.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from serving.addresses import base_url
from serving.engines.diagnosis import Diagnosis, diagnose
from serving.engines.lifeline import PARENT_PID_VARIABLE
from serving.errors import EngineStartFailed

POLL_S = 0.1
"""How often readiness and the end of a child are looked at."""
HEALTH_TIMEOUT_S = 5.0
LOG_TAIL_BYTES = 64 * 1024
PROJECT_ROOT = Path(__file__).resolve().parents[2]
ABSENT = PROJECT_ROOT / "serving" / "ray_app" / "absent"
"""Stand-ins for packages that Ray's processes do without; engines must find the real ones."""
NOT_FOR_ENGINES = ("RAY_", "PYTHONSTARTUP", "OMP_", "GOMP_")
"""Variables that a Ray worker has and an engine must not inherit: Ray sets OMP_NUM_THREADS to its own idea."""


@dataclass(frozen=True, slots=True)
class Listener:
    """A bound port that does not listen yet, so that a client is refused until the engine is up.

    Binding it in the supervisor and handing down the descriptor leaves no moment in which another could take the port.
    """

    host: str
    port: int
    sock: socket.socket

    @property
    def fd(self) -> int:
        """The descriptor to hand to the child."""
        return self.sock.fileno()

    @property
    def url(self) -> str:
        """Where the engine will answer."""
        return base_url(self.host, self.port)


def bind_listener(host: str, port: int = 0) -> Listener:
    """Bind a TCP port of `host`; 0 takes a free one.

    Raises:
        EngineStartFailed: the port is taken or the address is not this machine's.
    """
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        if port:  # may have been in use a moment ago; two sockets with this option could share a port that 0 gives
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise EngineStartFailed(f"engine can't bind {host}:{port}: {error.strerror}; choose another port") from error
    return Listener(host, sock.getsockname()[1], sock)


@dataclass(frozen=True, slots=True)
class EngineCommand:
    """How to start an engine: pure data, made by an adapter's `command`."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    """Added to the inherited environment."""
    cwd: Path | None = None


def engine_environment(inherited: Mapping[str, str], command: EngineCommand, parent_pid: int) -> dict[str, str]:
    """The environment of an engine: what is inherited without Ray's own, then the command's."""
    env = {k: v for k, v in inherited.items() if not k.startswith(NOT_FOR_ENGINES)}
    inherited_roots = [root for root in env.get("PYTHONPATH", "").split(os.pathsep) if root and root != str(ABSENT)]
    roots = [str(PROJECT_ROOT), *inherited_roots]
    env["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(roots))
    env[PARENT_PID_VARIABLE] = str(parent_pid)
    return {**env, **command.env}


class EngineProcess:
    """Supervises one engine. Start it once; a new start is a new object with a new `boot`."""

    def __init__(
        self,
        name: str,
        command: Callable[[Listener], EngineCommand],
        *,
        host: str,
        log_file: Path,
        port: int = 0,
    ) -> None:
        """Prepare, without starting.

        Args:
            name: What error messages call it, for instance `vllm engine of chat@1.2.0`.
            command: Makes the command once the port is known.
            host: Address to listen on.
            log_file: Its standard output and error are appended here.
            port: Port to listen on; 0 takes a free one.
        """
        self.name = name
        self.log_file = log_file
        self.boot = uuid.uuid4().hex
        self._command = command
        self._host, self._port = host, port
        self._process: subprocess.Popen[bytes] | None = None
        self._url = ""
        self._log_start = 0
        self._stopping = False

    @property
    def url(self) -> str:
        """Base URL of the engine; empty before `start`."""
        return self._url

    @property
    def pid(self) -> int:
        """The child's process id; 0 before `start`."""
        return self._process.pid if self._process else 0

    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """How it ended (negative: by that signal); None while it runs or was never started."""
        return self._process.poll() if self._process else None

    async def start(self) -> None:
        """Start the process; it is not ready yet.

        Raises:
            EngineStartFailed: the port is taken, or the program can't be run.
        """
        if self._process is not None:
            raise EngineStartFailed(f"{self.name} was started already; make a new EngineProcess")
        listener = bind_listener(self._host, self._port)
        command = self._command(listener)
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self.log_file.open("ab") as log:
                self._log_start = log.tell()
                self._process = subprocess.Popen(  # noqa: ASYNC220 - forks at once; asyncio's would need a child watcher
                    command.argv,
                    env=engine_environment(os.environ, command, os.getpid()),
                    cwd=command.cwd,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    pass_fds=(listener.fd,),
                    start_new_session=True,
                )
        except OSError as error:
            raise EngineStartFailed(f"{self.name}: can't run {command.argv[0]}: {error.strerror}") from error
        finally:
            listener.sock.close()
        self._url = listener.url

    async def wait_ready(self, timeout_s: float, progress: Callable[[float], None] | None = None) -> float:
        """Wait until `/health` answers 200.

        Args:
            timeout_s: The longest to wait, in seconds.
            progress: Called about once a second with the seconds waited so far.

        Returns:
            Seconds waited.

        Raises:
            EngineStartFailed: it ended, or was not ready in time (it is stopped then).
        """
        began = time.monotonic()
        told = 0.0
        while (waited := time.monotonic() - began) < timeout_s:
            if not self.alive():
                raise EngineStartFailed(self._post_mortem())
            if await self.healthy(timeout_s=min(HEALTH_TIMEOUT_S, timeout_s)):
                return time.monotonic() - began
            if progress and waited - told >= 1:
                told = waited
                progress(waited)
            await asyncio.sleep(POLL_S)
        line = self.diagnosis().line
        await self.stop(grace_s=0)
        raise EngineStartFailed(
            f"{self.name} was not ready within {timeout_s:g} s; last said: {line or 'nothing'}; "
            f"log: {self.log_file}; give it more time, or a smaller model"
        )

    async def healthy(self, timeout_s: float = HEALTH_TIMEOUT_S) -> bool:
        """Whether it runs and `/health` answers 200 within `timeout_s`."""
        if not self.alive():
            return False
        try:
            async with asyncio.timeout(timeout_s):
                return await http_status(self._url, "/health") == 200
        except (OSError, TimeoutError, ValueError):
            return False

    async def stop(self, grace_s: float) -> None:
        """End it: SIGTERM lets an engine finish what is in flight, SIGKILL to its whole group follows. Idempotent.

        Args:
            grace_s: Seconds between the two; 0 kills at once.
        """
        self._stopping = True
        if self._process is None:
            return
        if grace_s > 0 and self.alive():
            self._signal(signal.SIGTERM, group=False)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_s):
                    await until_exit(self._process.pid)
        self.kill()

    def kill(self) -> None:
        """SIGKILL the process and what it started, and reap it. For destructors, which can't await."""
        self._stopping = True
        if self._process is None:
            return
        self._signal(signal.SIGKILL, group=True)
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:  # stuck in the kernel; nothing more can be done from here
            sys.stderr.write(f"{self.name}: process {self.pid} does not die\n")

    async def ended_by_itself(self) -> str:
        """Wait until the process ends without having been stopped; return one line on how. Never returns otherwise."""
        assert self._process is not None
        await until_exit(self._process.pid)
        if self._stopping:
            await asyncio.Event().wait()
        return self._post_mortem()

    def log_tail(self) -> list[str]:
        """Its last lines of output, at most `LOG_TAIL_BYTES` of them."""
        try:
            with self.log_file.open("rb") as log:
                end = log.seek(0, os.SEEK_END)
                log.seek(max(self._log_start, end - LOG_TAIL_BYTES))
                return log.read().decode(errors="replace").splitlines()
        except OSError:
            return []

    def diagnosis(self) -> Diagnosis:
        """What its log and its exit say."""
        return diagnose(self.log_tail(), self.exit_code)

    def _post_mortem(self) -> str:
        found = self.diagnosis()
        permanent = " [permanent]" if found.permanent else ""
        return f"{self.name} {found.ending}: {found.line}; {found.way_out} (log: {self.log_file}){permanent}"

    def _signal(self, sig: signal.Signals, *, group: bool) -> None:
        assert self._process is not None
        try:
            if group:
                os.killpg(self._process.pid, sig)
            elif self._process.poll() is None:
                os.kill(self._process.pid, sig)
        except ProcessLookupError:
            pass


async def until_exit(pid: int) -> None:
    """Wait until a child process has ended. Costs nothing meanwhile: its pidfd becomes readable then."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(fd, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(fd)
        os.close(fd)


async def http_status(url: str, path: str) -> int:
    """The status of `GET path`, on the standard library alone.

    Raises:
        OSError: no connection.
        ValueError: the answer is not HTTP.
    """
    host, _, port = url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        line = await reader.readline()
    finally:
        writer.close()
    fields = line.split()
    if len(fields) < 2:
        raise ValueError(f"{url}{path}: not an HTTP answer")
    return int(fields[1])
