"""Why an engine ended, from its last lines and its exit code: one line and a way out. Pure.

The table is tried from top to bottom, the most certain first; the last line that matches wins within a row, since the
cause of a chain of exceptions is printed before its consequences but repeated in the last.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

LINE_LIMIT = 300
"""Longest line that goes into a message, in characters."""

_PREFIX = re.compile(
    r"^(\((APIServer|EngineCore|Worker)[^)]*\)\s*)?((INFO|WARNING|ERROR|DEBUG) [\d-]+ [\d:]+ \[[^\]]+\] ?)?"
)
_EXCEPTION = re.compile(r"^([A-Za-z_][\w.]*(Error|Exception|Failed|Interrupt|Exit))(: |$)")
_WRAPPERS = (
    "EngineCore initialization failed",
    "Engine core initialization failed",
    "WorkerProc initialization failed",
)
"""Exceptions that only say that another process failed."""

_NO_MEMORY = "free memory, lower the KV cache (VLLM_CPU_KVCACHE_SPACE or gpu_memory_utilization) or use a smaller model"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What is known of an engine's end."""

    ending: str
    """For instance `exited with code 1`."""
    line: str
    """The most telling line of its log."""
    way_out: str
    permanent: bool
    """Whether starting the same revision again can't help."""


@dataclass(frozen=True, slots=True)
class _Row:
    pattern: re.Pattern[str]
    way_out: str
    permanent: bool


_TABLE = (
    _Row(re.compile(r"address already in use|Errno 98", re.I), "the port is in use; choose another", False),
    _Row(
        re.compile(
            r"out of memory|MemoryError|Cannot allocate memory|Available memory on node|No available memory|"
            r"std::bad_alloc|not enough memory|larger than the available KV cache|to serve at least one request",
            re.I,
        ),
        _NO_MEMORY,
        False,
    ),
    _Row(
        re.compile(r"SafetensorError|InvalidHeader|HeaderTooLarge|incomplete metadata|invalid load key", re.I),
        "the weights are damaged; register the version again from a whole copy",
        True,
    ),
    _Row(
        re.compile(r"unrecognized arguments|invalid choice|expected one argument|the following arguments are required"),
        "an engine argument of the version is wrong; register a version with it corrected",
        True,
    ),
    _Row(
        re.compile(
            r"model type .* (not recognized|does not recognize)|architectures? .*not supported|"
            r"no module or parameter named|size mismatch|There is no module",
            re.I,
        ),
        "this engine can't load the version's architecture; use another engine image or model",
        True,
    ),
    _Row(
        re.compile(
            r"validation error|^(\w+\.)*ValueError|^(\w+\.)*KeyError|^(\w+\.)*AssertionError|"
            r"^(\w+\.)*InvalidSimUri|^(\w+\.)*OSError: .*(does not appear to have|not a valid)",
            re.I,
        ),
        "the version's files or engine arguments are wrong; correct them and register a new version",
        True,
    ),
)


def diagnose(log: Sequence[str], exit_code: int | None) -> Diagnosis:
    """Judge the end of an engine.

    >>> diagnose(["RuntimeError: out of memory"], 1).permanent
    False

    Args:
        log: Its last lines of output.
        exit_code: As `subprocess` gives it: negative is a signal, None still running.

    Returns:
        What happened, the most telling line, and the way out.
    """
    ending = _ending(exit_code)
    lines = [clean for raw in log if (clean := _PREFIX.sub("", raw.strip()).strip())]
    if exit_code == -9:
        return Diagnosis(ending, _telling(lines), f"the kernel's memory killer may have done it: {_NO_MEMORY}", False)
    for row in _TABLE:
        for index in range(len(lines) - 1, -1, -1):
            if row.pattern.search(lines[index]) and not lines[index].startswith("File "):
                return Diagnosis(ending, _with_detail(lines, index), row.way_out, row.permanent)
    return Diagnosis(ending, _telling(lines), "see the log for more", False)


def _ending(exit_code: int | None) -> str:
    if exit_code is None:
        return "still runs"
    return f"was ended by signal {-exit_code}" if exit_code < 0 else f"exited with code {exit_code}"


def _with_detail(lines: Sequence[str], index: int) -> str:
    """Pydantic says what is wrong in the lines that follow its heading."""
    line = lines[index]
    if "validation error" in line:
        line = " ".join([line, *lines[index + 1 : index + 3]])
    return line[:LINE_LIMIT]


def _telling(lines: Sequence[str]) -> str:
    """The last exception that says more than that another process failed, else the last line."""
    for line in reversed(lines):
        if _EXCEPTION.match(line) and not any(wrapper in line for wrapper in _WRAPPERS):
            return line[:LINE_LIMIT]
    return lines[-1][:LINE_LIMIT] if lines else "it said nothing"
