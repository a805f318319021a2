"""Child processes that leave nothing behind: started, identified, logged, stopped.

A process id alone identifies nothing, since the kernel uses it again; here a process is its id *and* its start
time. Descendants that moved to another session or lost their parent are still found: every child carries a marker
in its environment.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

MARKER = "TIDEGATE_INSTANCE"
"""Environment variable that names the supervisor instance a process belongs to."""

LOG_KEEP = 5
"""Old logs kept per process, beside the one being written."""
LOG_MAX_BYTES = 20 * 2**20
"""A log larger than this is put aside at the next start of its process."""

FIRST_DELAY_S = 0.5
LONGEST_DELAY_S = 30.0
HEALTHY_AFTER_S = 60.0

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)
_START_TOLERANCE_S = 2.0
"""The kernel counts from the boot, whose time of day moves a little when the clock is corrected; no id comes round
again within two seconds."""


@dataclasses.dataclass(frozen=True)
class Identity:
    """A process: its id and when it was started, in seconds since the epoch."""

    pid: int
    started_at: float

    @classmethod
    def of(cls, pid: int) -> Identity:
        """The process that has this id now.

        Raises:
            psutil.NoSuchProcess: nobody has it.
        """
        return cls(pid, psutil.Process(pid).create_time())

    def find(self) -> psutil.Process | None:
        """The process if it still runs; None when it ended, is a zombie, or its id belongs to somebody else."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started_at) <= _START_TOLERANCE_S
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.Error:
            return None

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self.find() is not None


@dataclasses.dataclass(frozen=True)
class Backoff:
    """When to start a process again that died: at once, then after 0.5 s doubling to 30 s. Pure.

    `failures` counts deaths in a row; a process that lived for a minute starts from the beginning.
    """

    failures: int = 0

    def after_death(self, lived_s: float) -> tuple[float, Backoff]:
        """The pause in seconds before the next start, and the state after it.

        >>> Backoff().after_death(1.0)[0], Backoff(1).after_death(1.0)[0], Backoff(3).after_death(1.0)[0]
        (0.0, 0.5, 2.0)
        """
        failures = 0 if lived_s >= HEALTHY_AFTER_S else self.failures
        delay_s = 0.0 if failures == 0 else min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0 ** min(failures - 1, 16))
        return delay_s, Backoff(failures + 1)


def start(
    argv: Sequence[str],
    *,
    log: Path | None,
    env: Mapping[str, str],
    parent_death_signal: signal.Signals | None = signal.SIGTERM,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a child in a session of its own.

    Args:
        argv: program and arguments.
        log: where its output goes, appended; None throws it away.
        env: its whole environment.
        parent_death_signal: what it gets when the *thread* that starts it ends; so start children from a thread
            that lives as long as they should. None: it goes on.
        pass_fds: descriptors it inherits.
    """
    parent = os.getpid()

    def before_exec() -> None:
        if parent_death_signal is not None:
            _LIBC.prctl(_PR_SET_PDEATHSIG, int(parent_death_signal))
            if os.getppid() != parent:  # the parent died before the line above: nobody would tell us
                os._exit(1)

    output = subprocess.DEVNULL if log is None else _open_log(log)
    try:
        return subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(env),
            start_new_session=True,
            preexec_fn=before_exec,
            pass_fds=tuple(pass_fds),
        )
    finally:
        if output != subprocess.DEVNULL:
            os.close(output)


def _open_log(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def rotate_log(path: Path, *, limit_bytes: int = LOG_MAX_BYTES, keep: int = LOG_KEEP) -> None:
    """Put a log that grew past the limit aside as `NAME.log.1`, shifting older ones; at most `keep` stay."""
    try:
        if path.stat().st_size < limit_bytes:
            return
    except FileNotFoundError:
        return
    for number in range(keep, 0, -1):
        older = path.with_name(f"{path.name}.{number}")
        newer = path if number == 1 else path.with_name(f"{path.name}.{number - 1}")
        with contextlib.suppress(FileNotFoundError):
            newer.replace(older)


def last_lines(path: Path, count: int, *, window_bytes: int = 65536) -> list[str]:
    """The last lines of a text file; [] when it does not exist."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - window_bytes))
            return file.read().decode(errors="replace").splitlines()[-count:]
    except OSError:
        return []


def marked(marker: str) -> list[psutil.Process]:
    """Every process that carries this marker, other than the caller: `instance/part`, or `instance/` for all of it."""
    wanted = f"{MARKER}={marker}".encode()
    found = []
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        try:
            environment = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if any(line.startswith(wanted) if marker.endswith("/") else line == wanted for line in environment):
            found.append(process)
    return found


def family(identity: Identity) -> list[psutil.Process]:
    """A process and all its descendants; [] when it is gone."""
    process = identity.find()
    if process is None:
        return []
    with contextlib.suppress(psutil.Error):
        return [*process.children(recursive=True), process]
    return []


def end(processes: Sequence[psutil.Process], *, grace_s: float) -> int:
    """SIGTERM, wait, then SIGKILL what is left. Returns how many had to be killed."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    left = _wait_gone(processes, grace_s)
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()
    _wait_gone(left, 5.0)
    return len(left)


def _wait_gone(processes: Sequence[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    deadline = time.monotonic() + timeout_s
    left = list(processes)
    while True:
        left = [p for p in left if _runs(p)]
        if not left or time.monotonic() >= deadline:
            return left
        time.sleep(0.02)


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
