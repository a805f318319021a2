"""Starting and stopping the supervisor from the command line: the lock, what a killed one left, the checks, the wait.

No printing here; tidegate/cli/platform.py shows what happens.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import psutil

from tidegate import processes
from tidegate.doctor import ENGINES, Facts, Verdict, gather, judge
from tidegate.errors import AlreadyRunning, StartFailed
from tidegate.parts import platform_environment, prepare_home
from tidegate.runfile import PlatformState, Stage, read_state
from tidegate.settings import Settings
from tidegate.startup import Wish

LOCK_WAIT_S = 3.0
"""How long a supervisor that holds the lock may take to write who it is."""
LEFTOVER_GRACE_S = 3.0
"""How long what a killed supervisor left may take to end by itself."""
STOP_TIMEOUT_S = 75.0
"""Gateway, controller and Ray end one after the other; a gateway lets streams go on for 30 s."""


class HomeLock:
    """The lock of a home: held by the supervisor for as long as it lives, whatever ends it."""

    def __init__(self, settings: Settings) -> None:
        self._path = settings.run_dir / "supervisor.lock"
        self._descriptor: int | None = None

    def acquire(self) -> bool:
        """Take it; False when somebody holds it."""
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        return True

    @property
    def descriptor(self) -> int:
        """The open descriptor, to be handed to the supervisor."""
        assert self._descriptor is not None
        return self._descriptor

    def release(self) -> None:
        """Close this process's descriptor; whoever inherited it still holds the lock."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def is_locked(settings: Settings) -> bool:
    """Whether a supervisor owns this home."""
    lock = HomeLock(settings)
    if not settings.run_dir.exists():
        return False
    free = lock.acquire()
    lock.release()
    return not free


def running_state(settings: Settings) -> PlatformState | None:
    """The state of the supervisor that runs now; None when none does."""
    deadline = time.monotonic() + LOCK_WAIT_S
    while is_locked(settings):
        state = read_state(settings)
        if state is not None and state.alive:
            return state
        if time.monotonic() >= deadline:
            break
        time.sleep(0.05)
    return None


def launch(settings: Settings, wish: Wish, *, detach: bool) -> subprocess.Popen[bytes] | None:
    """Start the supervisor.

    Returns:
        Its process, or None when one with the same ports runs already.

    Raises:
        AlreadyRunning: one runs with other ports.
        StartFailed: a port is taken, or the machine can't run it.
    """
    settings = settings.model_copy(update={"home": settings.home.absolute()})
    try:
        prepare_home(settings)
    except OSError as error:
        raise StartFailed(
            f"{settings.home} can't be prepared: {error.strerror}; set TIDEGATE_HOME to a folder that you may write to"
        ) from error
    lock = HomeLock(settings)
    if not lock.acquire():
        _same_or_refuse(settings)
        return None
    try:
        clear_leftovers(settings)
        preflight(gather(settings), wish)
        settings.ray_file.unlink(missing_ok=True)
        (settings.run_dir / "supervisor.json").unlink(missing_ok=True)
        log = settings.log_dir / "supervisor.log"
        processes.rotate_log(log)
        argv = [sys.executable, "-m", "tidegate.supervisor", "--lock-fd", str(lock.descriptor)]
        argv += ["--wish", json.dumps({"bare": wish.bare, "models": wish.models})]
        return processes.start(
            argv,
            log=log,
            env=platform_environment(settings),
            parent_death_signal=None if detach else signal.SIGTERM,
            pass_fds=[lock.descriptor],
        )
    finally:
        lock.release()


def _same_or_refuse(settings: Settings) -> None:
    state = running_state(settings)
    if state is None:
        raise StartFailed(f"another `tidegate up` is starting or stopping in {settings.home}; try again in a moment")
    ports = ("gateway_port", "admin_port", "control_port", "serve_port")
    other = [f"{p.replace('_', ' ')} {getattr(state, p)}" for p in ports if getattr(state, p) != getattr(settings, p)]
    if other:
        raise AlreadyRunning(
            f"Tidegate runs already for {settings.home}, process {state.pid}, with {', '.join(other)}; "
            "`tidegate down` stops it, then start it with the other ports"
        )


def clear_leftovers(settings: Settings) -> int:
    """End what a killed supervisor left running. Call it with the lock held. Returns how many processes that were.

    Only processes whose recorded start time or marker fits are touched: an id alone may be somebody else's by now.
    """
    state = read_state(settings)
    if state is None:
        return 0
    found: dict[int, psutil.Process] = {p.pid: p for p in processes.marked(f"{state.instance}/")}
    for part in state.parts:
        if part.identity is not None:
            found |= {p.pid: p for p in processes.family(part.identity)}
    processes.end(list(found.values()), grace_s=LEFTOVER_GRACE_S)
    return len(found)


def preflight(facts: Facts, wish: Wish) -> None:
    """Refuse a start that would not get through. Pure.

    Raises:
        StartFailed: with the value, the limit and the way out.
    """
    for port in facts.ports:
        if port.holder:
            holder = "another user's process" if port.holder == "?" else port.holder
            raise StartFailed(
                f"port {port.number} for {port.purpose} is held by {holder}; "
                f"stop it, or choose another port: {port.flag}"
            )
    ignored = {"bundled model", *(f"port {p.number}" for p in facts.ports)}
    if wish.bare or wish.models:  # perhaps simulated models only, which need none of these
        ignored |= {"memory", "CPU", *ENGINES}
    for check in judge(facts):
        if check.verdict is Verdict.FAIL and check.name not in ignored:
            raise StartFailed(f"{check.name}: {check.found}, needed {check.needed}; {check.way_out}")


def stop(settings: Settings, watch: Callable[[PlatformState], None], timeout_s: float = STOP_TIMEOUT_S) -> bool:
    """Stop the platform and see that nothing of it is left.

    Args:
        settings: whose home.
        watch: called again and again with the state while it stops.
        timeout_s: after that everything is killed.

    Returns:
        Whether anything ran.
    """
    state = running_state(settings)
    if state is not None:
        supervisor = state.identity.find()
        if supervisor is not None:
            with contextlib.suppress(psutil.Error):
                supervisor.terminate()
            _await_end(settings, state, watch, timeout_s)
    left = clear_leftovers(settings) if settings.run_dir.exists() else 0
    return state is not None or left > 0


def _await_end(
    settings: Settings, state: PlatformState, watch: Callable[[PlatformState], None], timeout_s: float
) -> None:
    deadline = time.monotonic() + timeout_s
    while state.alive and time.monotonic() < deadline:
        now = read_state(settings)
        if now is not None and now.instance == state.instance:
            watch(now)
        time.sleep(0.1)
    processes.end(processes.family(state.identity), grace_s=0.0)
    now = read_state(settings)
    if now is not None:
        watch(now)


def ended_badly(settings: Settings, instance_pid: int) -> str:
    """Why a supervisor that is gone did not come up; one line."""
    state = read_state(settings)
    if state is not None and state.pid == instance_pid and state.stage is Stage.FAILED:
        return state.error
    said = [line.strip() for line in processes.last_lines(settings.log_dir / "supervisor.log", 5) if line.strip()]
    last = said[-1][:300] if said else "it wrote nothing"
    return f"the supervisor ended: {last} (all of it: tidegate logs supervisor)"
