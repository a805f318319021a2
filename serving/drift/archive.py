"""Vectors of past requests, from which references are built: files of rows, one an hour and model, evenly drawn.

A row has a request's id, time, tenant, route, cheap features and embedding, and no text. An embedding is personal data
all the same, since texts can be guessed from it: the files are the owner's alone and go after some days.

Of an hour at most so many rows are kept, each request with the same chance (reservoir sampling, Vitter 1985). A row is
written in place with one call, so that kill -9 leaves whole rows; an end that is no whole row is not read.
"""

from __future__ import annotations

import calendar
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


def row_type(dimensions: int) -> np.dtype[np.void]:
    """A row whose embedding has so many values."""
    return np.dtype([
        ("id", "S96"), ("at", "<f8"), ("tenant", "S64"), ("route", "S16"),
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

    def add(self, seen: Sighting, cheap: Floats, embedding: Floats) -> None:
        """Keep a request's vectors, perhaps.

        Raises:
            OSError: It can't be written.

        """
        if not self._most:
            return
        segment = self._segment(seen.model, int(seen.at // HOUR_S))
        segment.seen += 1
        place = segment.rows if segment.rows < self._most else int(self._rng.integers(segment.seen))
        if place >= self._most:
            return
        row = np.zeros(1, dtype=self._type)
        row["id"], row["at"] = seen.request_id.encode(), seen.at
        row["tenant"], row["route"] = seen.tenant.encode()[:64], seen.route.encode()
        row["cheap"], row["embedding"] = cheap, embedding
        os.pwrite(segment.descriptor, row.tobytes(), place * self._type.itemsize)
        segment.rows = max(segment.rows, place + 1)

    def _segment(self, model: str, hour: int) -> _Segment:
        segment = self._open.get(model)
        if segment is not None and segment.hour == hour:
            return segment
        if segment is not None:
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

    def close(self) -> None:
        """Close the files."""
        for segment in self._open.values():
            os.close(segment.descriptor)
        self._open.clear()


def segment_path(folder: Path, model: str, hour: int) -> Path:
    """The file of one model's hour, counted since the epoch."""
    return folder / quote(model, safe="") / f"{time.strftime('%Y%m%dT%H', time.gmtime(hour * HOUR_S))}.rows"


def _segments(folder: Path, model: str | None) -> Iterator[tuple[Path, int]]:
    for path in sorted(folder.glob(f"{'*' if model is None else quote(model, safe='')}/*.rows")):
        try:
            at = time.strptime(path.stem + "+0000", "%Y%m%dT%H%z")
        except ValueError:
            continue
        yield path, calendar.timegm(at) // HOUR_S


def read_rows(folder: Path, stream: StreamName, since: float, until: float, dimensions: int) -> NDArray[np.void]:
    """The rows of a stream that came within a window, the oldest first."""
    kind = row_type(dimensions)
    parts = [np.zeros(0, dtype=kind)]
    for path, hour in _segments(folder, stream.model):
        if (hour + 1) * HOUR_S <= since or hour * HOUR_S >= until:
            continue
        data = path.read_bytes()
        rows = np.frombuffer(data[: len(data) // kind.itemsize * kind.itemsize], dtype=kind)
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
