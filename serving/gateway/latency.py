"""Running quantiles of stable's latency, against which slow answers are judged. Pure (analysis.md, section 4)."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque

from serving.outcomes import LEVELS
from serving.traffic import Role

WINDOW = 512
"""Stable's last completions that count: some minutes of traffic, so that a change of load is followed."""

MIN_COMPLETIONS = 20
"""Below this many nothing is judged: a p99 of fewer is the maximum of a handful."""

DELTA = 0.25
"""How much slower a canary may be: a fresh version is never exactly as fast."""

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
            a, b, c, d = (self._sorted[math.ceil(p * n) - 1] for p in PROBABILITIES)
            self._thresholds = (a, b, c, d)
        return self._thresholds


def exceeded(value_s: float, role: Role, thresholds: Thresholds | None) -> tuple[str, ...]:
    """The levels above which a latency lies; the canary's is divided by 1 + delta first.

    >>> exceeded(1.3, Role.CANARY, (1.0, 2.0, 3.0, 4.0)), exceeded(1.2, Role.CANARY, (1.0, 2.0, 3.0, 4.0))
    (('p50',), ())
    """
    if thresholds is None:
        return ()
    compared = value_s / (1 + DELTA) if role is Role.CANARY else value_s
    return tuple(level for level, c in zip(LEVELS, thresholds, strict=True) if compared > c)
