"""The files of a request log: one folder per gateway, in it segments, the newest being written. Owner-readable only.

    requests/gateway-0/1764268332123-9f3a.part       being written: JSON lines, the last of which may be torn
    requests/gateway-0/1764268332123-9f3a.jsonl      closed
    requests/gateway-0/1764268332123-9f3a.parquet    closed, as columns; a .jsonl of the same name is what it came from
    requests/gateway-0/erased.jsonl                  whose lines are no longer to be seen, whatever files say; an entry
                                                     goes when all files that may hold such lines have gone

A process never goes on with another's segment, so a torn line has nothing behind it. Whoever reads leaves out a line
that is no JSON. A name begins with the milliseconds at which its segment began.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import orjson

PART, JSONL, PARQUET = ".part", ".jsonl", ".parquet"
ERASED = "erased.jsonl"
ERASED_LOCK = "erased.lock"
LONGEST_UNDER_WAY_S = 86_400.0
"""A request that came before an erasure has surely been written so long after it."""
MODE = 0o600


class Erasure(NamedTuple):
    """All lines of one user up to a moment (wall-clock seconds), which are gone."""

    user: str
    """The mark under which the user stands in the log."""
    until: float
    rated: tuple[str, ...] = ()
    """Ids of the user's requests that were voted on: the votes go too."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much is kept. Sizes in bytes, times in seconds."""

    segment_bytes: int
    segment_s: float
    total_bytes: int
    kept_s: float


def began_at(path: Path) -> float:
    """When a segment began, in wall-clock seconds."""
    return int(path.name.partition("-")[0]) / 1000.0


def segments(folder: Path) -> list[Path]:
    """The segments of one gateway, oldest first, each once whatever a crash left."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir() if folder.is_dir() else ()):
        if path.suffix in (PART, JSONL, PARQUET) and path.name[0].isdigit():
            known = found.get(path.stem)
            if known is None or path.suffix == PARQUET:
                found[path.stem] = path
    return [found[stem] for stem in sorted(found)]


def lines_of(path: Path, holding: bytes = b"") -> Iterator[dict[str, Any]]:
    """The lines of a segment of JSON lines; a torn one is left out. A file that has just gone has none.

    Args:
        path: the segment.
        holding: bytes that a line must hold to be read at all; empty for every line.
    """
    try:
        with path.open("rb") as file:
            for line in file:
                found = _read(line) if holding in line else None
                if found is not None:
                    yield found
    except FileNotFoundError:
        return


def _read(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        found = orjson.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def erasures(folder: Path) -> tuple[Erasure, ...]:
    """Who was erased."""
    lines = lines_of(folder / ERASED)
    return tuple(Erasure(str(e["user"]), float(e["until"]), tuple(e.get("rated") or ())) for e in lines)


def is_erased(line: Mapping[str, Any], erased: tuple[Erasure, ...]) -> bool:
    """Whether a line is one that must not be seen any more."""
    if line.get("kind") == "feedback":
        return any(line.get("request_id") in e.rated for e in erased)
    return any(line.get("user") == e.user and float(line.get("at", 0.0)) <= e.until for e in erased)


def note_erasure(folder: Path, erasure: Erasure) -> None:
    """Say that a user's lines are gone: readers obey at once, files follow.

    Raises:
        OSError: it could not be written.
    """
    with _erasures_locked(folder):
        descriptor = os.open(folder / ERASED, os.O_WRONLY | os.O_CREAT | os.O_APPEND, MODE)
        with os.fdopen(descriptor, "ab") as file:
            file.write(b"\n" + orjson.dumps(erasure._asdict()) + b"\n")  # a torn line before it must not take it along
            file.flush()
            os.fsync(file.fileno())


def compact_erasures(folder: Path, now: float, size_bytes: int) -> tuple[tuple[Erasure, ...], int] | None:
    """Forget erasures that no file can hold a line of any more. For a folder's writer only.

    That is so once every segment began a day after the erasure: a request that came before it has ended by then, and
    segments that began earlier are gone by their time to live.

    Args:
        folder: the gateway's.
        now: wall-clock seconds.
        size_bytes: of the file, as the writer last obeyed it.

    Returns:
        Those that are left, and the file's size; None, and nothing was done, when somebody has added one since.

    Raises:
        OSError: they could not be written; they are as they were.
    """
    with _erasures_locked(folder):
        if _size(folder / ERASED) != size_bytes:
            return None
        known = erasures(folder)
        oldest = min((began_at(path) for path in segments(folder)), default=now)
        left = tuple(e for e in known if e.until + LONGEST_UNDER_WAY_S >= oldest)
        if len(left) < len(known):
            replace_lines(folder / ERASED, (orjson.dumps(e._asdict()) + b"\n" for e in left))
        return left, _size(folder / ERASED)


@contextmanager
def _erasures_locked(folder: Path) -> Iterator[None]:
    """Let nobody add an erasure while they are written anew."""
    descriptor = os.open(folder / ERASED_LOCK, os.O_RDWR | os.O_CREAT, MODE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def forget_halves(folder: Path) -> None:
    """Remove copies of segments that a process was writing when it was killed: nobody else would ever."""
    for path in folder.glob(".*.new"):
        path.unlink(missing_ok=True)


def replace_lines(path: Path, kept: Iterator[bytes]) -> None:
    """Write a segment anew; a reader sees the old one or the new one.

    Raises:
        OSError: it could not be written; the old one is as it was.
    """
    temporary = path.with_name(f".{path.name}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, MODE)
    with os.fdopen(descriptor, "wb") as file:
        for line in kept:
            file.write(line)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def adopt(folder: Path) -> list[Path]:
    """Close what a process that is gone left open, and say what was closed."""
    forget_halves(folder)
    return [_closed(path) for path in segments(folder) if path.suffix == PART]


class Writing:
    """The segment that is being written, and the bounds of all of them.

    Args:
        folder: the gateway's; made when missing.
        boot: something new for each process.
        bounds: how much is kept.

    """

    def __init__(self, folder: Path, boot: str, bounds: Bounds) -> None:
        self._folder = folder
        self._boot = boot
        self._bounds = bounds
        self._file: int | None = None
        self._path = folder
        self._size = 0
        self._began = 0.0
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def adopt(self) -> list[Path]:
        """Close what an earlier process left open, and say what was closed."""
        return adopt(self._folder)

    def append(self, lines: bytes, now: float) -> list[Path]:
        """Write whole lines; the segments that were closed by it.

        Raises:
            OSError: they could not be written, or not all of them: then the segment is closed behind the torn one.
        """
        closed = self.rotate() if self._file is not None and self._full(len(lines), now) else []
        if self._file is None:
            self._open(now)
        assert self._file is not None
        view = memoryview(lines)
        try:
            while view:
                written = os.write(self._file, view)
                self._size += written
                view = view[written:]
        except OSError:
            self.rotate()
            raise
        return closed

    def due(self, now: float) -> bool:
        """Whether the segment is old enough to be closed, though nothing more was written."""
        return self._file is not None and now - self._began >= self._bounds.segment_s

    def _full(self, more: int, now: float) -> bool:
        return self._size + more > self._bounds.segment_bytes or self.due(now)

    def _open(self, now: float) -> None:
        stamp = int(now * 1000)
        while True:
            self._path = self._folder / f"{stamp:013d}-{self._boot}{PART}"
            try:
                self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, MODE)
            except FileExistsError:
                stamp += 1
                continue
            self._size, self._began = 0, now
            return

    def rotate(self) -> list[Path]:
        """Close the segment that is being written, if there is one."""
        if self._file is None:
            return []
        os.close(self._file)
        self._file = None
        return [_closed(self._path)]

    def prune(self, now: float) -> int:
        """Remove what is too old or too much, oldest first; how many segments went."""
        return prune(self._folder, self._bounds, now, self._size)


def prune(folder: Path, bounds: Bounds, now: float, writing_bytes: int = 0) -> int:
    """Remove of closed segments what is too old or too much, oldest first; how many went."""
    kept = [p for p in segments(folder) if p.suffix != PART]
    sizes = {p: _size(p) for p in kept}
    total = sum(sizes.values()) + writing_bytes
    removed = 0
    for path in kept:
        old = now - _ended(path) > bounds.kept_s
        if not old and total <= bounds.total_bytes:
            break
        for suffix in (PARQUET, JSONL):
            path.with_suffix(suffix).unlink(missing_ok=True)
        total -= sizes[path]
        removed += 1
    return removed


def _closed(path: Path) -> Path:
    closed = path.with_suffix(JSONL)
    os.replace(path, closed)
    return closed


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _ended(path: Path) -> float:
    """When the last line of a closed segment was written. Turning it into columns keeps the time."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return time.time()
