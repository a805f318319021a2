"""Take a user's vectors out of the archive: by whoever asks when no watch writes it, else by the watch.

    drift/erased/MARK.json      {"user": MARK, "until": wall-clock seconds}; kept a day

The watch holds the archive's lock as long as it runs. Whoever erases, be it through the watch's own port, leaves a
note, which the watch obeys within a second, or when it comes back; a note is kept a day, since a request that came
before it may still be under way, and its vectors are then not kept. References that were built before keep no row of a
user, but means over many rows, and ids as examples; build them anew to be rid of those too.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from serving.drift.archive import LOCK, every_segment, rows_in
from serving.drift.config import Places
from serving.errors import ServingError
from serving.gateway.durable import replace_file
from serving.request_log.locks import unless_held

NOTED_FOR_S = 86_400.0
LOOK_S = 0.1


class WatchSlow(ServingError):
    """The drift watch has not taken an erased user's vectors out."""


def noted(folder: Path) -> dict[str, float]:
    """Who was erased, by mark, and until when (wall-clock seconds)."""
    found: dict[str, float] = {}
    for path in folder.glob("*.json"):
        try:
            said = json.loads(path.read_text())
            found[str(said["user"])] = float(said["until"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def forget_notes(folder: Path, now: float) -> None:
    """Remove notes that are a day old: whatever was under way then has ended."""
    for mark, until in noted(folder).items():
        if now - until > NOTED_FOR_S:
            (folder / f"{mark}.json").unlink(missing_ok=True)


def take_out(archive: Path, dimensions: int, erased: Mapping[str, float]) -> int:
    """Write every file of the archive anew that holds rows of erased users; how many rows went.

    Only for whoever holds the lock. A file is the old one or the new one at any time.

    Raises:
        OSError: one could not be written.
    """
    gone = 0
    for path in every_segment(archive):
        rows = rows_in(path, dimensions)
        kept = np.ones(len(rows), dtype=bool)
        for mark, until in erased.items():
            kept &= ~((rows["user"] == mark.encode()) & (rows["at"] <= until))
        if kept.all():
            continue
        gone += int((~kept).sum())
        replace_file(path, rows[kept].tobytes())
    return gone


def held(archive: Path, dimensions: int, mark: str, until: float) -> int:
    """How many rows of a user there still are."""
    found = 0
    for path in every_segment(archive):
        rows = rows_in(path, dimensions)
        found += int(((rows["user"] == mark.encode()) & (rows["at"] <= until)).sum())
    return found


def erase(places: Places, dimensions: int, mark: str, until: float, wait_s: float = 10.0) -> int:
    """Take a user's vectors out of the archive of a home. Blocks.

    Args:
        places: where the watch of the home keeps what it knows.
        dimensions: values of an embedding.
        mark: under which the user stands there.
        until: wall-clock seconds; what comes later stays.
        wait_s: how long a running watch may take.

    Returns:
        How many rows are gone.

    Raises:
        WatchSlow: the watch did not in time; it will when it goes on.
        OSError: a file could not be written.
    """
    if not places.archive.is_dir():
        return 0
    gone = held(places.archive, dimensions, mark, until)
    places.erased.mkdir(parents=True, exist_ok=True, mode=0o700)
    replace_file(places.erased / f"{mark}.json", json.dumps({"user": mark, "until": until}).encode())
    with unless_held(places.archive / LOCK) as free:
        if free:
            take_out(places.archive, dimensions, {mark: until})
            return gone
    deadline = time.monotonic() + wait_s
    while held(places.archive, dimensions, mark, until):
        if time.monotonic() > deadline:
            raise WatchSlow(
                f"the drift watch has not taken the vectors out within {wait_s:g} s; it will as soon as it goes on: "
                "look at its log if it doesn't"
            )
        time.sleep(LOOK_S)
    return gone
