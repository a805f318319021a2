"""Counters in memory, by query: for tests, dry runs and demos. Passes the same contract suite as the others."""

from __future__ import annotations

import math
from collections.abc import Callable

from monitoring.providers.base import (
    Counters,
    Measured,
    NoData,
    ProviderError,
    RevisionQuery,
    SeveralSeries,
    SignalQuery,
)


class MemoryProvider:
    """Answers queries from `series`: by query, the values that it finds (one is right, none and several are errors)."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.series: dict[str, tuple[float, ...]] = {}
        self.failure: ProviderError | None = None
        """Raised by every reading while it is set."""
        self.reads = 0
        self._clock = clock

    def set(self, query: str, *values: float) -> None:
        """What a query finds from now on."""
        self.series[query] = values

    async def read(self, query: SignalQuery) -> Measured:
        """Read both revisions' counters.

        Raises:
            ProviderError: as told by `failure`, or for a query that finds not exactly one number.

        """
        self.reads += 1
        if self.failure is not None:
            raise self.failure
        stable = None if query.stable is None else self._counters(query.stable)
        return Measured(at=self._clock(), canary=self._counters(query.canary), stable=stable)

    def _counters(self, query: RevisionQuery) -> Counters:
        return Counters(events=self._value(query.events), total=self._value(query.total))

    def _value(self, query: str) -> int:
        values = self.series.get(query, ())
        if not values or not math.isfinite(values[0]):
            raise NoData(f"{query!r} finds {'nothing' if not values else values[0]}")
        if len(values) > 1:
            raise SeveralSeries(f"{query!r} finds {len(values)} series; sum them up")
        return int(values[0])

    async def close(self) -> None:
        """Nothing is held."""
