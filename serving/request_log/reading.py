"""Find what was logged, by request id or by what it was, and erase a user. Blocks: call it from a thread."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import orjson

from serving.errors import ServingError
from serving.request_log.locks import unless_held
from serving.request_log.segments import (
    PARQUET,
    Bounds,
    Erasure,
    adopt,
    began_at,
    erasures,
    forget_halves,
    is_erased,
    lines_of,
    note_erasure,
    prune,
    replace_lines,
    segments,
)

LOCK = "writer.lock"
WRITER_WAITED_FOR_S = 10.0
LOOK_S = 0.2
EMPTY_KEPT_S = 3600.0
NO_GATEWAYS = "lost+found"
"""What a file system of its own has at its root, where a volume is mounted; often closed to everybody else."""


class WriterSlow(ServingError):
    """A gateway's writer has not taken an erased user out of the segment that it writes."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which requests. Times are wall-clock seconds; "" and None mean any."""

    since: float = 0.0
    until: float = float("inf")
    model: str = ""
    models: frozenset[str] | None = None
    """The only ones that whoever asks may see."""
    version: str = ""
    outcome: str = ""
    signal: str = ""
    rating: str = ""
    with_prompt: bool = False

    def takes(self, line: dict[str, Any]) -> bool:
        """Whether a request's line is wanted; ratings are looked at by who joins them."""
        return (
            line.get("kind") == "request"
            and self.since <= float(line.get("at", 0.0)) <= self.until
            and (not self.model or line.get("model") == self.model)
            and (self.models is None or line.get("model") in self.models)
            and (not self.version or line.get("version") == self.version)
            and (not self.outcome or line.get("outcome") == self.outcome)
            and (not self.signal or self.signal in (line.get("signals") or ()))
            and (not self.with_prompt or line.get("prompt") is not None)
        )


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if path.suffix != PARQUET:
        yield from lines_of(path)
        return
    from serving.request_log.columns import rows_of

    yield from rows_of(path)


def _rows_about(path: Path, request_id: str) -> list[dict[str, Any]]:
    from serving.request_log.columns import rows_about

    return rows_about(path, request_id)


class RequestLog:
    """All gateways' logs below one folder.

    Args:
        root: holds one folder for each gateway.

    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def _folders(self) -> list[Path]:
        return _folders_in(self._root)

    @property
    def there(self) -> bool:
        """Whether any gateway has ever logged."""
        return bool(self._folders())

    def lines(self, since: float = 0.0) -> Iterator[dict[str, Any]]:
        """Every line that may be seen, gateway by gateway, the oldest first in each; from segments since then."""
        for folder in self._folders():
            erased = erasures(folder)
            found = segments(folder)
            for path, following in zip_longest(found, found[1:]):
                # A segment ends at the latest when the next of its process begins; another process's may overlap.
                if following is not None and _boot(following) == _boot(path) and began_at(following) < since:
                    continue
                yield from (line for line in _rows(path) if not is_erased(line, erased))

    def find(self, request_id: str) -> dict[str, Any] | None:
        """One request with the votes on it, by the id that its client was told or the one that the engine saw."""
        about = list(self._about(request_id))
        found = next((line for line in about if line.get("kind") == "request"), None)
        if found is None:
            return None
        told = found.get("request_id")
        if told and told != request_id:  # votes name the client's id
            about = list(self._about(str(told)))
        return _joined(found, [line for line in about if line.get("kind") == "feedback"])

    def _about(self, request_id: str) -> Iterator[dict[str, Any]]:
        """The lines that name a request and may be seen."""
        for folder in self._folders():
            erased = erasures(folder)
            for path in segments(folder):
                columns = path.suffix == PARQUET
                for line in _rows_about(path, request_id) if columns else lines_of(path, request_id.encode()):
                    names = (line.get("request_id"), line.get("engine_request_id"))
                    if request_id in names and not is_erased(line, erased):
                        yield line

    def search(self, wanted: Wanted, limit: int) -> list[dict[str, Any]]:
        """The newest requests that are wanted, oldest first, each with its votes."""
        votes: dict[str, list[dict[str, Any]]] = {}
        for line in self.lines(wanted.since):
            if line.get("kind") == "feedback":
                votes.setdefault(str(line.get("request_id")), []).append(line)
        found: list[dict[str, Any]] = []
        for line in self.lines(wanted.since):
            if not wanted.takes(line):
                continue
            joined = _joined(line, votes.get(str(line.get("request_id")), []))
            if wanted.rating and not any(vote.get("rating") == wanted.rating for vote in joined["feedback"]):
                continue
            found.append(joined)
            if len(found) >= 2 * limit:
                found = sorted(found, key=_at)[-limit:]
        return sorted(found, key=_at)[-limit:]

    def erase(self, user: str, until: float, wait_s: float = WRITER_WAITED_FOR_S) -> int:
        """Take all lines of a user out of every file.

        Args:
            user: the mark under which the user stands in the log.
            until: wall-clock seconds; what comes later stays.
            wait_s: how long running gateways may take to close the segments that they write.

        Returns:
            How many lines are gone.

        Raises:
            WriterSlow: one did not in time. Nobody can read the lines any more, and it will take them out later.
            OSError: a file could not be written.
        """
        requests = {line["request_id"] for line in self.lines() if is_erased(line, (Erasure(user, until),))} - {None}
        votes = {i for line in self.lines() if line["kind"] == "feedback" and (i := line["request_id"]) in requests}
        erasure = Erasure(user, until, tuple(sorted(votes)))
        gone = sum(1 for line in self.lines() if is_erased(line, (erasure,)))
        for folder in self._folders():
            note_erasure(folder, erasure)
            with unless_held(folder / LOCK) as free:
                if free:
                    take_out(folder, (erasure,))
                    continue
            deadline = time.monotonic() + wait_s
            while any(is_erased(line, (erasure,)) for path in segments(folder) for line in _rows(path)):
                if time.monotonic() > deadline:
                    raise WriterSlow(
                        f"the gateway {folder.name} has not taken the lines out of its files within {wait_s:g} s; they "
                        "can't be read any more, and it will do so later: look at its log if it doesn't"
                    )
                time.sleep(LOOK_S)
        return gone


def take_out(folder: Path, erased: tuple[Erasure, ...]) -> None:
    """Write every segment of a folder anew that holds lines which are gone; none may be under way.

    Raises:
        OSError: one could not be written.
    """
    forget_halves(folder)
    for path in segments(folder):
        if not any(is_erased(line, erased) for line in _rows(path)):
            continue
        kept = (line for line in _rows(path) if not is_erased(line, erased))
        if path.suffix == PARQUET:
            from serving.request_log.columns import rewrite

            rewrite(path, kept)
        else:
            stat = path.stat()
            replace_lines(path, (orjson.dumps(line) + b"\n" for line in kept))
            os.utime(path, (stat.st_atime, stat.st_mtime))


def clear_up_after_others(root: Path, own: Path, bounds: Bounds, now: float) -> int:
    """Hold the logs of gateways that are gone to their bounds: nobody of that name may ever come again.

    On a cluster a gateway is called like its pod, and a pod's name is given once. A folder in which nothing is left
    goes too, an hour after its last change.

    Returns:
        How many segments went.

    Raises:
        OSError: something could not be removed; the other gateways' was all the same.
    """
    gone, failure = 0, None
    for folder in _folders_in(root):
        if folder == own:
            continue
        try:
            gone += _clear_up(folder, bounds, now)
        except OSError as error:
            failure = error
    if failure is not None:
        raise failure
    return gone


def _clear_up(folder: Path, bounds: Bounds, now: float) -> int:
    with unless_held(folder / LOCK) as free:
        if not free:
            return 0
        adopt(folder)
        gone = prune(folder, bounds, now)
        if not segments(folder) and now - folder.stat().st_mtime > EMPTY_KEPT_S:
            shutil.rmtree(folder)
        return gone


def _folders_in(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and p.name != NO_GATEWAYS) if root.is_dir() else []


def _boot(path: Path) -> str:
    return path.stem.partition("-")[2]


def _at(line: dict[str, Any]) -> float:
    return float(line.get("at", 0.0))


def _joined(line: dict[str, Any], votes: list[dict[str, Any]]) -> dict[str, Any]:
    told = [{k: v for k, v in vote.items() if k in ("at", "rating", "comment")} for vote in votes]
    return {**line, "feedback": told}
