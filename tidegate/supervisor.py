"""The local supervisor: one per home. Starts the platform's processes, starts again what dies, stops all cleanly.

Run as `python -m tidegate.supervisor` by `tidegate up`, which hands it the lock of the home as an open descriptor,
so that no moment passes in which two could believe they own it. What it does is in `run/supervisor.json`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType

from tidegate import processes
from tidegate.processes import Backoff, Identity
from tidegate.runfile import PartStatus, PlatformState, Stage, State, TaskStatus, write_state
from tidegate.settings import Settings, load_settings

GIVE_UP_AFTER = 3
"""A process that died this often without ever having been ready ends the start: it will not come up by itself."""
STARTING_TICK_S = 0.1
RUNNING_TICK_S = 1.0
SWEEP_GRACE_S = 2.0


@dataclasses.dataclass(frozen=True)
class Part:
    """One process of the platform.

    Attributes:
        name: of its log, and what it is called everywhere.
        title: what it is called when shown.
        argv: program and arguments.
        ready: whether it answers; gets the time of its start (seconds since the epoch), must return fast.
        stop_s: how long it may take to end by itself after SIGTERM.
        vital: whether a start fails that can't bring it up; what is not is tried again and again.
    """

    name: str
    title: str
    argv: tuple[str, ...]
    ready: Callable[[float], bool]
    stop_s: float = 10.0
    vital: bool = True


@dataclasses.dataclass
class _Running:
    part: Part
    status: PartStatus
    process: subprocess.Popen[bytes] | None = None
    backoff: Backoff = dataclasses.field(default_factory=Backoff)
    next_start_at: float = 0.0
    was_ready: bool = False
    started_monotonic: float = 0.0


class Supervisor:
    """Owns the processes. `run` must be called on the main thread and returns the exit code.

    Args:
        settings: the home and the ports.
        parts: what to run, in the order of starting; stopped in reverse.
        env: the environment of every part.
        instance: marks every process of this supervisor.
    """

    def __init__(self, settings: Settings, parts: Sequence[Part], env: Mapping[str, str], instance: str = "") -> None:
        self.settings = settings
        self.instance = instance or uuid.uuid4().hex
        self._env = dict(env)
        self._running = [_Running(part, PartStatus(name=part.name, title=part.title)) for part in parts]
        self._tasks: dict[str, TaskStatus] = {}
        self._stage = Stage.STARTING
        self._error = ""
        self._stops = 0
        self._lock = threading.RLock()
        self._own = Identity.of(os.getpid())
        self._started_at = time.time()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        os.set_blocking(self._wake_read, False)

    # ---------------------------------------------------------------------------------------------- for the tasks

    @property
    def stopping(self) -> bool:
        """Whether somebody asked it to stop; tasks look at it between their steps."""
        return self._stops > 0 or self._stage in (Stage.STOPPING, Stage.FAILED)

    def environment(self, name: str) -> dict[str, str]:
        """The environment of a child of this supervisor."""
        # setproctitle (Ray, vLLM) would write over the environment block, and with it over the marker.
        return {**self._env, processes.MARKER: f"{self.instance}/{name}", "SPT_NOENV": "1"}

    def log(self, name: str) -> Path:
        """Where a part's output goes."""
        return self.settings.log_dir / f"{name}.log"

    def report(self, task: TaskStatus) -> None:
        """Record how far a task is (any thread)."""
        with self._lock:
            self._tasks[task.name] = task.model_copy()
            self._write()

    def fail(self, message: str) -> None:
        """Record why a task did not get through, without stopping anything (any thread)."""
        with self._lock:
            self._error = message
            self._write()

    def running(self) -> None:
        """Record that everything that was asked for is there (any thread)."""
        with self._lock:
            if self._stage is Stage.STARTING:
                self._stage = Stage.RUNNING
            self._write()

    def part_ready(self, name: str) -> bool:
        """Whether a part answers now."""
        return any(r.status.name == name and r.status.state is State.READY for r in self._running)

    # -------------------------------------------------------------------------------------------------- the loop

    def run(self) -> int:
        """Start everything, watch until told to stop, stop everything."""
        self._take_signals()
        try:
            self._write()
            while not self._stops:
                if not self._turn():
                    break
                self._sleep()
            return self._finish()
        finally:
            signal.set_wakeup_fd(-1)

    def _turn(self) -> bool:
        """One look at every part. False when the start has failed for good."""
        changed = False
        for running in self._running:
            changed |= self._look(running)
            if running.part.vital and running.backoff.failures >= GIVE_UP_AFTER and not running.was_ready:
                self._error = self._why(running)
                return False
        if changed:
            with self._lock:
                self._write()
        return True

    def _look(self, running: _Running) -> bool:
        status, now = running.status, time.monotonic()
        if running.process is not None:
            code = running.process.poll()
            if code is not None:
                self._died(running, code, now)
                return True
            if status.state is State.STARTING and running.part.ready(status.since):
                status.state = State.READY
                status.took_s = now - running.started_monotonic
                status.message = ""
                running.was_ready = True
                return True
            return False
        if now >= running.next_start_at:
            self._start(running)
            return True
        return False

    def _start(self, running: _Running) -> None:
        part, status = running.part, running.status
        # Children of a process that was killed (Ray's, an engine's) would hold its ports and memory.
        processes.end(processes.marked(f"{self.instance}/{part.name}"), grace_s=0.0 if running.was_ready else 1.0)
        processes.rotate_log(self.log(part.name))
        status.since = time.time()
        running.started_monotonic = time.monotonic()
        running.process = processes.start(part.argv, log=self.log(part.name), env=self.environment(part.name))
        status.state = State.STARTING
        status.pid = running.process.pid
        status.pid_started_at = Identity.of(running.process.pid).started_at
        status.took_s = None

    def _died(self, running: _Running, code: int, now: float) -> None:
        lived_s = now - running.started_monotonic
        delay_s, running.backoff = running.backoff.after_death(lived_s)
        running.next_start_at = now + delay_s
        running.process = None
        status = running.status
        status.state, status.pid, status.pid_started_at = State.WAITING, None, None
        status.restarts += 1
        status.message = f"{describe_exit(code)} after {lived_s:.1f} s; starting again in {delay_s:.1f} s"
        print(f"{_stamp()} {running.part.name} {status.message}", flush=True)

    def _why(self, running: _Running) -> str:
        name = running.part.name
        said = [line.strip() for line in processes.last_lines(self.log(name), 20) if line.strip()]
        last = said[-1][:300] if said else "it wrote nothing"
        times = f"{running.part.title} ended {running.backoff.failures} times before it answered"
        return f"{times}: {last} (all of it: tidegate logs {name})"

    # ------------------------------------------------------------------------------------------------- the ending

    def _finish(self) -> int:
        failed = bool(self._error) and not self._stops
        with self._lock:
            self._stage = Stage.STOPPING
            self._write()
        for running in reversed(self._running):
            self._stop(running)
        processes.end(processes.marked(f"{self.instance}/"), grace_s=SWEEP_GRACE_S)
        with self._lock:
            self._stage = Stage.FAILED if failed else Stage.STOPPED
            self._write()
        return 1 if failed else 0

    def _stop(self, running: _Running) -> None:
        process, status = running.process, running.status
        if process is not None:
            whole = processes.family(Identity(process.pid, status.pid_started_at or 0.0))
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            deadline = time.monotonic() + running.part.stop_s
            # A second signal means: now.
            while process.poll() is None and time.monotonic() < deadline and self._stops < 2:
                self._sleep(0.1)
            if process.poll() is None:
                print(
                    f"{_stamp()} {running.part.name} did not end within {running.part.stop_s:.0f} s; killed", flush=True
                )
                process.kill()
            process.wait()
            processes.end([p for p in whole if p.pid != process.pid], grace_s=0.5)
        with self._lock:
            status.state, status.pid, status.pid_started_at = State.STOPPED, None, None
            self._write()

    # ------------------------------------------------------------------------------------------------- small parts

    def _take_signals(self) -> None:
        def stop(_signal: int, _frame: FrameType | None) -> None:
            self._stops += 1

        def child(_signal: int, _frame: FrameType | None) -> None:
            """Only wakes the loop."""

        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, child)

    def _sleep(self, longest_s: float | None = None) -> None:
        """Until a signal (also: a child ended), or the next thing is due."""
        if longest_s is None:
            now = time.monotonic()
            due = [r.next_start_at - now for r in self._running if r.process is None]
            starting = any(r.status.state is State.STARTING for r in self._running)
            longest_s = max(0.0, min([STARTING_TICK_S if starting else RUNNING_TICK_S, *due]))
        select.select([self._wake_read], [], [], longest_s)
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_read, 4096)

    def _write(self) -> None:
        s = self.settings
        state = PlatformState(
            instance=self.instance,
            pid=self._own.pid,
            pid_started_at=self._own.started_at,
            started_at=self._started_at,
            stage=self._stage,
            error=self._error,
            host=s.host,
            gateway_port=s.gateway_port,
            admin_port=s.admin_port,
            control_port=s.control_port,
            serve_port=s.serve_port,
            parts=[r.status for r in self._running],
            tasks=list(self._tasks.values()),
        )
        try:
            write_state(s, state)
        except OSError as error:  # a full disk must not take down what serves
            print(f"{_stamp()} can't write the state file: {error}", flush=True)


def describe_exit(code: int) -> str:
    """How a process ended, in words.

    >>> describe_exit(-9)
    'was killed by SIGKILL'
    """
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def _stamp() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the supervisor of `$TIDEGATE_HOME`; everything else comes by the environment and these options."""
    # Imported here: the parts know the whole platform, and this module must stay usable with any parts.
    from tidegate.parts import platform_environment, platform_parts
    from tidegate.startup import Startup, Wish

    parser = argparse.ArgumentParser(prog="python -m tidegate.supervisor")
    parser.add_argument("--lock-fd", type=int, help="descriptor that holds the home's lock; kept open, never used")
    parser.add_argument("--wish", default="{}", help="JSON: which models to serve")
    options = parser.parse_args(argv)
    settings = load_settings()
    supervisor = Supervisor(settings, platform_parts(settings), platform_environment(settings))
    startup = Startup(settings, supervisor, Wish(**json.loads(options.wish)))
    startup.begin()
    return supervisor.run()


if __name__ == "__main__":
    sys.exit(main())
