"""Vectors of past requests, from which references are built: files of rows, one an hour and model, evenly drawn.

A row has a request's id, time, tenant, route, cheap features and embedding, and no text. An embedding is personal data
all the same, since texts can be guessed from it: the files are the owner's alone, go after some days, and have the mark
of the user who asked, so that one user's rows can be erased (`erasing`).

Of an hour at most so many rows are kept, each request with the same chance (reservoir sampling, Vitter 1985). A row is
written in place with one call, so that kill -9 leaves whole rows; an end that is no whole row is not read.
"""

from __future__ import annotations

import calendar
import fcntl
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

import numpy as np
from numpy.typing import NDArray

from monitoring.drift.features import NAMES
from serving.drift.streams import StreamName
from serving.sightings import Sighting

HOUR_S = 3600
Floats = NDArray[np.float32]


ID_BYTES = 256
"""The longest id that a gateway makes has 244."""
LOCK = "writer.lock"
_SUFFIX, _FORMER = ".vectors", ".rows"
"""Rows of the former format name no user, so that they could not be erased: they are deleted."""


def row_type(dimensions: int) -> np.dtype[np.void]:
    """A row whose embedding has so many values."""
    return np.dtype([
        ("id", f"S{ID_BYTES}"), ("user", "S32"), ("at", "<f8"), ("tenant", "S64"), ("route", "S16"),
        ("cheap", "<f4", (len(NAMES),)), ("embedding", "<f2", (dimensions,)),
    ])  # fmt: skip


@dataclass(slots=True)
class _Segment:
    hour: int
    descriptor: int
    rows: int
    seen: int


class Archive:
    """Writes the vectors of all models. For one thread.

    Args:
        folder: Where; made when missing.
        dimensions: Values of an embedding.
        rows_per_hour: Of each model, at most; 0 keeps nothing.
        days: How long.
        rng: Draws the rows.

    """

    def __init__(self, folder: Path, dimensions: int, rows_per_hour: int, days: int, rng: np.random.Generator) -> None:
        self._folder = folder
        self._type = row_type(dimensions)
        self._most = rows_per_hour
        self._days = days
        self._rng = rng
        self._open: dict[str, _Segment] = {}
        self._lock: int | None = None

    def hold(self) -> None:
        """Say that this process writes the archive, as long as it does; and remove what a killed one left half done."""
        self._lock = os.open(self._folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)  # whoever erases is soon done
        for pattern in ("*/.writing-*", f"*/*{_FORMER}"):
            for path in self._folder.glob(pattern):
                path.unlink(missing_ok=True)

    def add(self, seen: Sighting, cheap: Floats, embedding: Floats) -> None:
        """Keep a request's vectors, perhaps.

        Raises:
            OSError: It can't be written.

        """
        request_id = seen.request_id.encode()
        if not self._most or len(request_id) > ID_BYTES:  # what can't be found again is not kept
            return
        segment = self._segment(seen.model, int(seen.at // HOUR_S))
        segment.seen += 1
        place = segment.rows if segment.rows < self._most else int(self._rng.integers(segment.seen))
        if place >= self._most:
            return
        row = np.zeros(1, dtype=self._type)
        row["id"], row["user"], row["at"] = request_id, seen.user.encode(), seen.at
        row["tenant"], row["route"] = seen.tenant.encode()[:64], seen.route.encode()
        row["cheap"], row["embedding"] = cheap, embedding
        os.pwrite(segment.descriptor, row.tobytes(), place * self._type.itemsize)
        segment.rows = max(segment.rows, place + 1)

    def _segment(self, model: str, hour: int) -> _Segment:
        segment = self._open.get(model)
        if segment is not None and segment.hour == hour:
            return segment
        if segment is not None:  # forgotten first: were the next not to be had, it would be closed again, as another's
            del self._open[model]
            os.close(segment.descriptor)
        path = segment_path(self._folder, model, hour)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        rows = os.fstat(descriptor).st_size // self._type.itemsize
        # After a restart the rows there stand for those seen: a little too many of the later ones are kept then.
        found = self._open[model] = _Segment(hour, descriptor, min(rows, self._most), rows)
        return found

    def prune(self, now: float) -> int:
        """Delete what is too old; how many files that were."""
        oldest, gone = int(now // HOUR_S) - 24 * self._days, 0
        for path, hour in _segments(self._folder, None):
            if hour < oldest:
                path.unlink(missing_ok=True)
                gone += 1
        return gone

    def let_go(self) -> None:
        """Close the files, so that they can be written anew; they are opened again when something comes."""
        for segment in self._open.values():
            os.close(segment.descriptor)
        self._open.clear()

    def close(self) -> None:
        """Close the files, and let others write."""
        self.let_go()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def segment_path(folder: Path, model: str, hour: int) -> Path:
    """The file of one model's hour, counted since the epoch."""
    return folder / quote(model, safe="") / f"{time.strftime('%Y%m%dT%H', time.gmtime(hour * HOUR_S))}{_SUFFIX}"


def _segments(folder: Path, model: str | None) -> Iterator[tuple[Path, int]]:
    for path in sorted(folder.glob(f"{'*' if model is None else quote(model, safe='')}/*{_SUFFIX}")):
        try:
            at = time.strptime(path.stem + "+0000", "%Y%m%dT%H%z")
        except ValueError:
            continue
        yield path, calendar.timegm(at) // HOUR_S


def every_segment(folder: Path) -> Iterator[Path]:
    """Every file of every model."""
    return (path for path, _ in _segments(folder, None))


def rows_in(path: Path, dimensions: int) -> NDArray[np.void]:
    """The rows of one file; an end that is no whole row is left out, and a file that has just gone has none."""
    kind = row_type(dimensions)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        data = b""
    return np.frombuffer(data[: len(data) // kind.itemsize * kind.itemsize], dtype=kind)


def read_rows(folder: Path, stream: StreamName, since: float, until: float, dimensions: int) -> NDArray[np.void]:
    """The rows of a stream that came within a window, the oldest first."""
    kind = row_type(dimensions)
    parts = [np.zeros(0, dtype=kind)]
    for path, hour in _segments(folder, stream.model):
        if (hour + 1) * HOUR_S <= since or hour * HOUR_S >= until:
            continue
        rows = rows_in(path, dimensions)
        kept = (rows["at"] >= since) & (rows["at"] < until)
        if stream.tenant is not None:
            kept &= rows["tenant"] == stream.tenant.encode()
        if stream.route is not None:
            kept &= rows["route"] == stream.route.encode()
        parts.append(rows[kept])
    found = np.concatenate(parts)
    return found[np.argsort(found["at"], kind="stable")]


def archived_models(folder: Path) -> dict[str, int]:
    """By model, about how many bytes are kept."""
    sizes: dict[str, int] = {}
    for path, _ in _segments(folder, None):
        name = unquote(path.parent.name)
        sizes[name] = sizes.get(name, 0) + path.stat().st_size
    return sizes
