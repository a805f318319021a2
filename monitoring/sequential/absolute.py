"""Is one revision's own event rate above what it may be? For a revision without another one beside it. Pure.

After a blue-green switch, in a first deployment, or in an emergency there is nothing to compare with: all units go
to one revision and are *watched*. The null hypothesis is that at every unit the chance of an event, given the past,
is at most p0. Each unit multiplies the evidence by `p_j/p0` with an event and by `(1 - p_j)/(1 - p0)` without one; a
mixture over rates p_j above p0 has a mean of at most 1 under the null at every unit, so by Ville's inequality it ever
reaches 1/alpha with probability at most alpha. Part of the wealth is kept back and bet little by little, so that a
fault that comes late is still found soon.

**Units whose outcome is not known yet count as units without an event.** An event raises every factor and a quiet
unit lowers it, so what is computed now is at most what it will be when all outcomes of the same units are in: if it
crosses now, the evidence of the complete units crosses too, and the promise holds although an event is used the
moment it is known. Counting only units with an outcome would not do: events are told sooner than quiet ends.

Sources: Ville's inequality and restarts as in `events`; betting on a bounded mean: Waudby-Smith and Ramdas, arXiv
2010.09686; the upper bound of a rate: Robbins' mixture (1970) with a Beta prior, as in Ramdas et al., arXiv 2106.02693.

Worked numbers, p0 = 5 %: an event in the first unit is evidence of 7.0, in the first two 79, in the first three
1,059; 100 units without any are 0.21.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from monitoring.sequential.events import log_spaced

ODDS_RATIOS = log_spaced(1.5, 100.0, 12)
"""Rates that the test bets on, by their odds over p0's: from barely worse to nearly every unit."""

CASH = 0.2
"""Part of the wealth that is kept for faults that come late."""

RESTART_DELAY_EVENTS = 20.0
"""Half of the cash is bet after as many units as bring this many events at the rate p0."""


@dataclass(frozen=True, slots=True)
class RateState:
    """What the test remembers: logarithms of the wealth on each rate and of the cash, and the units seen."""

    log_shares: tuple[float, ...]
    log_cash: float
    units: int = 0
    moved_at: int = 0


class RateTest:
    """The e-process of "the event rate is at most p0", over immutable states.

    Args:
        p0: the largest rate that is still fine, in (0, 1).

    Raises:
        ValueError: for another p0.

    """

    def __init__(self, p0: float) -> None:
        if not 0.0 < p0 < 1.0:
            raise ValueError(f"p0 is {p0}; give the largest rate that is fine, between 0 and 1, such as 0.05")
        self.p0 = p0
        odds = [p0 / (1.0 - p0) * ratio for ratio in ODDS_RATIOS]
        self._event = tuple(math.log(o / (1.0 + o) / p0) for o in odds)
        self._quiet = tuple(-math.log1p(o) - math.log1p(-p0) for o in odds)
        self._delay_units = RESTART_DELAY_EVENTS / p0

    def start(self) -> RateState:
        """Before any unit: evidence 1."""
        share = math.log((1.0 - CASH) / len(ODDS_RATIOS))
        return RateState((share,) * len(ODDS_RATIOS), math.log(CASH))

    def update(self, state: RateState, units: int, events: int) -> RateState:
        """The state after `units` more units, `events` of them with an event; their order does not matter.

        What is moved from the cash depends on the units before these alone, so it is known before them.

        Raises:
            ValueError: when the counts can't be.

        """
        if not 0 <= events <= units:
            raise ValueError(f"{events} events among {units} units; events must be between 0 and the units")
        shares, cash = self._moved(state)
        quiet = units - events
        grown = tuple([
            share + events * won + quiet * lost
            for share, won, lost in zip(shares, self._event, self._quiet, strict=True)
        ])  # fmt: skip
        return RateState(grown, cash, state.units + units, state.units)

    def log_e(self, state: RateState, units: int = 0, events: int = 0) -> float:
        """Natural logarithm of the evidence, with units on top whose outcomes may not all be known.

        Args:
            state: of the units that are settled.
            units: units after them, at least all that were admitted up to the last event known.
            events: those known to have had an event; more than `units` is taken as `units`.

        """
        if units or events:
            state = self.update(state, max(units, events), events)
        return _log_sum((*state.log_shares, state.log_cash))

    def _moved(self, state: RateState) -> tuple[tuple[float, ...], float]:
        """Bet the part of the cash that is due since the last time, in equal parts on all rates."""
        if state.units == state.moved_at:
            return state.log_shares, state.log_cash
        kept = (self._delay_units + state.moved_at) / (self._delay_units + state.units)
        each = state.log_cash + math.log1p(-kept) - math.log(len(ODDS_RATIOS))
        return tuple([_log_sum((share, each)) for share in state.log_shares]), state.log_cash + math.log(kept)


def rate_upper_bound(events: int, units: int, alpha: float) -> float:
    """An upper bound of an event rate that holds at all times at once with probability 1 - alpha.

    The largest p with `B(k + 1/2, n - k + 1/2) / [B(1/2, 1/2) p^k (1-p)^(n-k)] < 1/alpha`.

    Args:
        events: k, units with an event.
        units: n; with none the bound is 1.
        alpha: the chance that the bound ever misses.

    Worked numbers, alpha = 0.1 %: 0 of 200 give 4.9 %, 10 of 1,000 give 3.2 %, 0 of 20 give 36 %.

    Raises:
        ValueError: when the counts or alpha can't be.

    """
    if not 0 <= events <= units:
        raise ValueError(f"{events} events among {units} units; events must be between 0 and the units")
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"alpha is {alpha}; give a probability between 0 and 1, such as 0.001")
    if events == units:
        return 1.0
    quiet = units - events
    mixture = _log_beta(events + 0.5, quiet + 0.5) - _log_beta(0.5, 0.5)
    low, high = events / units, 1.0
    for _ in range(60):
        p = 0.5 * (low + high)
        likelihood = (events * math.log(p) if events else 0.0) + (quiet * math.log1p(-p) if p < 1.0 else -math.inf)
        if mixture - likelihood < -math.log(alpha):
            low = p
        else:
            high = p
    return high


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _log_sum(logs: Iterable[float]) -> float:
    values = tuple(logs)
    highest = max(values)
    return highest + math.log(sum([math.exp(value - highest) for value in values]))
