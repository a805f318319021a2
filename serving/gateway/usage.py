"""What each key used of each version, counted here and told to the controller until it is in its store. Pure.

Rows are cumulative (serving/accounting.py), so telling one twice, late or out of order adds nothing. A row is *open*
while it has counts that the controller has not accepted. Open rows are what is kept on disk (usage_files.py), sent, and
sent again; rows of past hours are forgotten once they are not open. A place that was forgotten is never counted in
again, even when the clock goes back: its count would start from nothing, and the store would keep the greater of the
two.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from serving.accounting import HOUR_S, UsageRow, hour_of

MOST_ROWS: Final = 50_000
"""Places kept at most (about 20 MB). Beyond it new places are counted together, see `OVERFLOW_KEY`."""

OVERFLOW_KEY: Final = "overflow"
"""The key of requests that found no place of their own. No id of a key is spelled so."""

MOST_TOKENS_OF_A_REQUEST: Final = 2**31 - 1
"""An engine that reports more is not believed: one absurd number must not spoil a sum for ever."""


class Place(NamedTuple):
    """What is counted apart."""

    hour: int
    key: str
    model: str
    version: str


@dataclass(slots=True)
class _Counts:
    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    unmetered: int = 0


Values = tuple[int, str, str, str, int, int, int, int]
"""A row without its gateway and boot: hour, key, model, version, requests, tokens in, tokens out, unmetered."""


def row_of(gateway: str, boot: str, values: Values) -> UsageRow:
    """The row that tells these values."""
    hour, key, model, version, requests, input_tokens, output_tokens, unmetered = values
    return UsageRow(
        gateway=gateway, boot=boot, hour=hour, key=key, model=model, version=version, requests=requests,
        input_tokens=input_tokens, output_tokens=output_tokens, unmetered=unmetered,
    )  # fmt: skip


class UsageBook:
    """The usage that one start of one gateway has counted."""

    def __init__(self, gateway: str, boot: str, most_rows: int = MOST_ROWS) -> None:
        self._gateway = gateway
        self._boot = boot
        self._most_rows = most_rows
        self._rows: dict[Place, _Counts] = {}
        self._open: dict[Place, _Counts] = {}
        self._first_hour = 0
        self._hour = 0
        """The hour of the last request, so that it need not be worked out for each."""
        self.changes = 0
        """Grows whenever the open rows are no longer what they were."""

    def count(
        self, key: str, model: str, version: str, input_tokens: int | None, output_tokens: int | None, now: float
    ) -> None:
        """Count one request whose answer came from `version`.

        Args:
            key: The key's id, "" where no key is needed.
            model: The registered model.
            version: The version that answered.
            input_tokens: As the engine reported them, None when it did not.
            output_tokens: The same for the output; an embedding has none.
            now: Wall-clock seconds.
        """
        if not self._hour <= now < self._hour + HOUR_S:
            self._hour = hour_of(now)
        hour = self._hour if self._hour > self._first_hour else self._first_hour
        place = Place(hour, key, model, version)
        counts = self._rows.get(place)
        if counts is None:
            if len(self._rows) >= self._most_rows:
                place = Place(place.hour, OVERFLOW_KEY, "", "")
            counts = self._rows.setdefault(place, _Counts())
        self._open[place] = counts
        counts.requests += 1
        if input_tokens is None and output_tokens is None:
            counts.unmetered += 1
        else:
            counts.input_tokens += _believable(input_tokens)
            counts.output_tokens += _believable(output_tokens)
        self.changes += 1

    @property
    def open_count(self) -> int:
        """How many rows are open."""
        return len(self._open)

    def open_rows(self, most: int | None = None) -> tuple[UsageRow, ...]:
        """The rows that the controller has not accepted as they are now, the longest open first."""
        return tuple(row_of(self._gateway, self._boot, values) for values in self.snapshot(most))

    def snapshot(self, most: int | None = None) -> list[Values]:
        """The same as plain values, which cost less."""
        return [
            (*place, c.requests, c.input_tokens, c.output_tokens, c.unmetered)
            for place, c in itertools.islice(self._open.items(), most)
        ]

    def accepted(self, rows: Iterable[UsageRow]) -> None:
        """These rows are in the store, as they were when they were sent."""
        for row in rows:
            place = Place(row.hour, row.key, row.model, row.version)
            counts = self._open.get(place)
            if counts is None or (row.gateway, row.boot) != (self._gateway, self._boot):
                continue
            del self._open[place]
            if row.requests < counts.requests:  # every change counts one more request
                self._open[place] = counts  # behind the others, so that each gets its turn
            self.changes += 1

    def forget_past(self, now: float) -> None:
        """Forget rows of past hours that are in the store. Call it now and then."""
        hour = hour_of(now)
        for place in [p for p in self._rows if p.hour < hour and p not in self._open]:
            self._first_hour = max(self._first_hour, place.hour + HOUR_S)
            del self._rows[place]

    def __len__(self) -> int:
        return len(self._rows)


def _believable(tokens: int | None) -> int:
    if tokens is None or tokens <= 0:
        return 0
    return tokens if tokens < MOST_TOKENS_OF_A_REQUEST else MOST_TOKENS_OF_A_REQUEST
