"""Events of both arms as cumulative counters that are read now and then, in place of events one by one. Pure.

Between two readings `canary + stable` events happened in an order nobody knows. Given that an event happened it is
the canary's with probability q(rho, w) (see `events`), so the likelihood ratio of a whole window is
`f_k(1)^canary * f_k(0)^stable` in any order, and the mixture over k is the one that event by event would have given:
an e-process, looked at only at the readings. The cap of the event test is left out, since its use of what is saved
depends on the order. Part of the wealth is held back and bet at the start of each later window (restarts).

**Readings of the two arms are of different moments**: each is as old as its last scrape. An outage that hits both
arms then shows on one of them first, and a test that took both at face value would take the canary back for it. So
each direction uses the counts that speak against its own conclusion (`Window`):

- against the canary: its events up to the *previous* reading, stable's up to this one. When readings lie at least a
  scrape apart, stable's part then covers every moment that the canary's covers. Additional stable events only lower
  each f_k, so what is computed is at most the evidence at the moment of the canary's own sample, and it crosses
  1/alpha with probability at most alpha (Ville's inequality, as in `events`).
- for the canary: its events up to this reading, stable's up to the previous one. The mirror image.

A window holds readings of one weight without a counter's reset. What happened between two windows belongs to none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from monitoring.sequential.events import THETAS, check_weight, odds

CASH = 0.2
"""Wealth that is held back for faults that come in a later window."""

MOVED = 1.0 / 3.0
"""The part of what is left of it that each further window gets."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Cumulative counts of both arms, as read at one moment."""

    canary_events: int
    canary_units: int
    stable_events: int
    stable_units: int

    def fell(self, before: Sample) -> bool:
        """Whether a counter is lower than before: it was reset, so the difference says nothing."""
        return (
            self.canary_events < before.canary_events
            or self.canary_units < before.canary_units
            or self.stable_events < before.stable_events
            or self.stable_units < before.stable_units
        )


@dataclass(frozen=True, slots=True)
class Window:
    """Readings in a row at one weight: the first two and the last two are all that the counts need."""

    weight: float
    first: Sample
    second: Sample | None = None
    before: Sample | None = None
    last: Sample | None = None

    def read(self, sample: Sample) -> Window:
        """The window with one more reading."""
        if self.second is None:
            return replace(self, second=sample, before=self.first, last=sample)
        return replace(self, before=self.last, last=sample)

    def against(self) -> tuple[int, int]:
        """Events (canary, stable) that may be used against the canary: canary's are those surely inside stable's.

        The canary's begin at the second reading and end at the last but one; stable's at the first and the last.
        """
        if self.second is None or self.before is None or self.last is None:
            return 0, 0
        canary = max(0, self.before.canary_events - self.second.canary_events)
        return canary, self.last.stable_events - self.first.stable_events

    def in_favour(self) -> tuple[int, int]:
        """Events (canary, stable) that may be used for the canary: stable's are those surely inside the canary's."""
        if self.second is None or self.before is None or self.last is None:
            return 0, 0
        stable = max(0, self.before.stable_events - self.second.stable_events)
        return self.last.canary_events - self.first.canary_events, stable


@dataclass(frozen=True, slots=True)
class CounterState:
    """Logarithms of the wealth on each ratio and of the cash, after the windows that are closed."""

    log_shares: tuple[float, ...]
    log_cash: float


class CounterMixture:
    """The plain mixture of the rollback test over windows of counts (rho0 = 1)."""

    def start(self) -> CounterState:
        """Before any window."""
        return CounterState((math.log((1.0 - CASH) / len(THETAS)),) * len(THETAS), math.log(CASH))

    def log_e(self, state: CounterState, canary: int, stable: int, weight: float) -> float:
        """Natural logarithm of the evidence with the open window's events, `Window.against`.

        Raises:
            ValueError: for a weight that is not between 0 and 1.

        """
        return _log_sum((*self._grown(state, canary, stable, weight), state.log_cash))

    def close(self, state: CounterState, canary: int, stable: int, weight: float) -> CounterState:
        """The state once a window has ended: the next one gets a part of the cash.

        Raises:
            ValueError: for a weight that is not between 0 and 1.

        """
        each = state.log_cash + math.log(MOVED / len(THETAS))
        shares = tuple(_log_sum((share, each)) for share in self._grown(state, canary, stable, weight))
        return CounterState(shares, state.log_cash + math.log1p(-MOVED))

    def _grown(self, state: CounterState, canary: int, stable: int, weight: float) -> tuple[float, ...]:
        check_weight(weight)
        if canary < 0 or stable < 0:
            raise ValueError(f"{canary} canary and {stable} stable events; counts can't be negative")
        f_canary, f_stable, _, _ = odds(THETAS, 1.0, weight)
        return tuple(
            share + canary * math.log(won) + stable * math.log(lost)
            for share, won, lost in zip(state.log_shares, f_canary, f_stable, strict=True)
        )


def _log_sum(logs: tuple[float, ...]) -> float:
    highest = max(logs)
    return highest + math.log(sum([math.exp(value - highest) for value in logs]))
