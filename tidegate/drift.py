"""What the command line does about drift: reads and writes the drift watch's files. The watch need not run for it."""

from __future__ import annotations

import getpass
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from monitoring.drift.daily import Daily
from monitoring.drift.errors import DriftError
from serving.drift import library
from serving.drift.acknowledging import hand_over
from serving.drift.archive import read_rows
from serving.drift.config import EMBEDDING_VALUES, Places
from serving.drift.library import About, Rows
from serving.drift.streams import StreamName, UnknownStream
from serving.drift.streams import stream as named
from serving.errors import ServingError
from serving.sightings import asked_text
from tidegate.errors import TidegateError, WrongUse
from tidegate.settings import Settings

ACK_WAIT_S = 5.0
"""How long an acknowledgement may take to be taken in; the watch looks twice a second."""


class Drift:
    """The drift watch of one home, by its files."""

    def __init__(self, settings: Settings) -> None:
        self._places = Places(settings.home)

    def status(self) -> dict[str, Any]:
        """What the watch last knew.

        Raises:
            TidegateError: it has never run.
        """
        try:
            found = json.loads(self._places.status.read_text())
        except (OSError, ValueError):
            raise TidegateError(
                f"no drift watch has run for {self._places.home}; `tidegate up` starts one, unless drift is off"
            ) from None
        assert isinstance(found, dict)
        return found

    def stream(self, model: str, scope: str) -> dict[str, Any]:
        """The status of one stream.

        Raises:
            TidegateError: it is not watched.
        """
        _name(model, scope)
        for one in self.status()["streams"]:
            if (one["model"], one["stream"]) == (model, scope):
                assert isinstance(one, dict)
                return one
        raise TidegateError(
            f"{model} ({scope}) is not watched; `tidegate drift reference build {model} --window 7d` makes a reference"
        )

    def paging(self, model: str, scope: str) -> bool:
        """Whether a stream has an alarm in force that pages."""
        try:
            return bool(self.stream(model, scope)["paging"])
        except TidegateError:
            return False

    def acknowledge(self, model: str, scope: str | None, reason: str, *, by: str = "") -> bool:
        """Acknowledge a model's alarms as `by`, or who runs this; False when nobody takes it in within some seconds.

        Raises:
            TidegateError: the model is not watched.
        """
        watched = {(a.model, a.scope) for a in self.references()}
        if not any(m == model and scope in (None, s) for m, s in watched):
            raise TidegateError(f"{model} ({scope or 'any stream'}) is not watched; see `tidegate drift status`")
        said = {"model": model, "scope": scope, "by": by or getpass.getuser(), "at": time.time(), "reason": reason}
        return hand_over(self._places, said, ACK_WAIT_S)

    # References

    def references(self) -> list[About]:
        """All of them."""
        found = []
        for name in library.names(self._places.references):
            one = library.about(self._places.references, name)
            if one is not None:
                found.append(one)
        return found

    def about(self, model: str, scope: str) -> About:
        """One reference.

        Raises:
            TidegateError: there is none.
        """
        try:
            found = library.about(self._places.references, _name(model, scope))
        except DriftError as error:
            raise TidegateError(str(error)) from None
        if found is None:
            raise TidegateError(f"{model} ({scope}) has no reference; see `tidegate drift reference list`")
        return found

    def build_from_window(self, model: str, scope: str, window_s: float, daily: str) -> About:
        """Build a reference of the requests of the last `window_s` seconds.

        Raises:
            TidegateError: there were too few.
        """
        name, until = _name(model, scope), time.time()
        rows = read_rows(self._places.archive, name, until - window_s, until, EMBEDDING_VALUES)
        source = library.window_source(model, until - window_s, until)
        return self._build(name, Rows.of_archive(rows), source, Daily(daily), window_s)

    def build_from_dataset(self, model: str, scope: str, path: Path) -> About:
        """Build a reference of a file's texts.

        Raises:
            WrongUse: a line that can't be read.
            TidegateError: there are too few texts.
        """
        from serving.drift.main import embed

        texts = list(_texts(path))
        return self._build(_name(model, scope), Rows.of_texts(texts, embed), f"data set {path.name}", Daily.NEVER, None)

    def _build(self, name: StreamName, rows: Rows, source: str, daily: Daily, window_s: float | None) -> About:
        try:
            built = library.build(name, rows, source=source, daily=daily, window_s=window_s, now=time.time())
            library.put(self._places.references, built)
        except (DriftError, ServingError) as error:
            raise TidegateError(str(error)) from None
        return built.about

    def remove(self, model: str, scope: str) -> bool:
        """Remove a reference; False when there is none."""
        return library.remove(self._places.references, _name(model, scope))


def _name(model: str, scope: str) -> StreamName:
    try:
        return named(model, scope)
    except UnknownStream as error:
        raise WrongUse(str(error)) from None


def _texts(path: Path) -> Iterator[str]:
    """The texts of a data set: JSON lines, each a string, or an object with `text`, `prompt`, `input` or `messages`."""
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if number > library.MOST_TEXTS:
                    return
                text = _text(path, number, line)
                if text.strip():
                    yield text
    except (OSError, UnicodeDecodeError) as error:
        raise WrongUse(f"--dataset {path}: {type(error).__name__}; give a file of JSON lines in UTF-8") from None


def _text(path: Path, number: int, line: str) -> str:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if isinstance(row, str):
        return row
    if isinstance(row, dict):
        return row["text"] if isinstance(row.get("text"), str) else asked_text(row)
    raise WrongUse(f"--dataset {path}, line {number}: no JSON string or object; give one for each line")
