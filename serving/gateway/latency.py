"""Running quantiles of stable's latency, against which slow answers are judged. Pure (analysis.md, section 4)."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from typing import Final

from serving.outcomes import LEVELS, Signal
from serving.traffic import Role

WINDOW: Final = 512
"""Stable's last completions that count: some minutes of traffic, so that a change of load is followed."""

MIN_COMPLETIONS: Final = 20
"""Below this many nothing is judged: a p99 of fewer is the maximum of a handful."""

PROBABILITIES = (0.50, 0.80, 0.95, 0.99)
assert len(PROBABILITIES) == len(LEVELS)

Thresholds = tuple[float, float, float, float]


class LatencyWindow:
    """The last 512 values, kept sorted. Adding costs two bisections, reading four look-ups."""

    __slots__ = ("_order", "_sorted", "_thresholds")

    def __init__(self) -> None:
        self._order: deque[float] = deque()
        self._sorted: list[float] = []
        self._thresholds: Thresholds | None = None

    def add(self, value_s: float) -> None:
        """Take in one completion."""
        if len(self._order) >= WINDOW:
            oldest = self._order.popleft()
            del self._sorted[bisect_left(self._sorted, oldest)]
        self._order.append(value_s)
        insort(self._sorted, value_s)
        self._thresholds = None

    def thresholds(self) -> Thresholds | None:
        """The quantiles of LEVELS by nearest rank, or None for fewer than 20 completions."""
        n = len(self._sorted)
        if n < MIN_COMPLETIONS:
            return None
        if self._thresholds is None:
            ordered = self._sorted
            a, b, c, d = _RANKS if n == WINDOW else _ranks(n)
            self._thresholds = (ordered[a], ordered[b], ordered[c], ordered[d])
        return self._thresholds


def _ranks(n: int) -> tuple[int, int, int, int]:
    """Where the quantiles lie among n sorted values, by nearest rank."""
    a, b, c, d = (math.ceil(p * n) - 1 for p in PROBABILITIES)
    return a, b, c, d


_RANKS = _ranks(WINDOW)


QUIET_S: Final = 0.2
"""After a slow unit was told, units that begin within this time are not: at most five a second leave for a signal."""


class Apart:
    """Which slow units are told to the controller, level by level: those that began after the last one had ended.

    One hiccup slows every answer under way on a replica; booked one by one they would be as many independent proofs of
    one accident. The controller books by the same rule, over all gateways, so what is held back here it would mostly
    have dropped; and at p50, where every other request is slow, it saves most of the messages.

    The test stays valid because the rule does not see the arm: which events are told follows from the times of events
    alone, both arms thinned together, and under the null those times are the same whichever arm each unit was drawn
    into. So given that an event is told, it is the canary's with probability w, as before. Counts of settled events
    are not thinned: an objective needs the rate.
    """

    def __init__(self) -> None:
        self._until: dict[tuple[str, str, Signal, str], float] = {}

    def told(self, model: str, rollout: str, signal: Signal, level: str, admitted_at: float, now: float) -> bool:
        """Whether to tell of a unit, admitted then, that is slow at this level now; times in wall-clock seconds."""
        key = (model, rollout, signal, level)
        until = self._until.get(key, 0.0)
        if admitted_at < until <= now + QUIET_S:  # a clock that was set back must not silence the signal
            return False
        self._until[key] = now + QUIET_S
        return True

    def prune(self, live: set[tuple[str, str]]) -> None:
        """Forget rollouts that no table names any more: `live` has (model, rollout)."""
        for key in [k for k in self._until if k[:2] not in live]:
            del self._until[key]


_CANARY: Final = Role.CANARY


def exceeded(value_s: float, role: Role, thresholds: Thresholds | None, max_slowdown: float) -> tuple[str, ...]:
    """The levels above which a latency lies; the canary's is divided by `max_slowdown` first.

    A fresh version is never exactly as fast, so the table says by which factor it may be slower.

    >>> exceeded(1.3, _CANARY, (1.0, 2.0, 3.0, 4.0), 1.25), exceeded(1.2, _CANARY, (1.0, 2.0, 3.0, 4.0), 1.25)
    (('p50',), ())
    """
    if thresholds is None:
        return ()
    compared = value_s / max_slowdown if role is _CANARY else value_s
    if compared <= thresholds[0]:
        return ()
    return tuple(level for level, c in zip(LEVELS, thresholds, strict=True) if compared > c)
