"""Tie the life of a process to its parent's, so that kill -9 of a supervisor leaves no orphan (Linux)."""

from __future__ import annotations

import ctypes
import os
import signal

PARENT_PID_VARIABLE = "TIDEGATE_PARENT_PID"
"""Set by whoever starts the process: its own pid."""

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)
"""Loaded at import: a child just forked from a process with threads should not load libraries."""


def die_with_parent(parent_pid: int | None = None, sig: signal.Signals = signal.SIGKILL) -> None:
    """Ask the kernel to send `sig` to this process when the thread that created it ends.

    A parent that has ended before this call would go unnoticed, so the parent's pid is compared afterwards.

    Args:
        parent_pid: Pid of the parent that should be there; by default what `TIDEGATE_PARENT_PID` says, if anything.
        sig: The signal to die by.
    """
    if _libc.prctl(_PR_SET_PDEATHSIG, int(sig), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    expected = parent_pid if parent_pid is not None else int(os.environ.get(PARENT_PID_VARIABLE) or 0)
    if expected and os.getppid() != expected:
        os.kill(os.getpid(), sig)


def forked_children_die_with_this_process() -> None:
    """Give the same fate to every process forked from now on, by this process or by one so forked.

    Programs started with `subprocess` or multiprocessing's `spawn` are not reached: fork hooks do not run for them.
    """
    parent = os.getpid()

    def before() -> None:
        nonlocal parent
        parent = os.getpid()

    os.register_at_fork(before=before, after_in_child=lambda: die_with_parent(parent))
