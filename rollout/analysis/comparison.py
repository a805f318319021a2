"""The rollback tests by comparison, one for each kind of signal, behind one face. Pure.

The mathematics is monitoring/sequential's; this is what a rollout feeds it with (analysis page, sections 2 to 5).
"""

from __future__ import annotations

import enum
from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from monitoring.sequential.events import AveragedLevels, CappedMixture, EProcessConfig, for_session
from monitoring.sequential.scores import badness_rank, for_score
from serving.outcomes import LEVELS, Signal, SignalName

LATENCY = frozenset({Signal.SLOW_TOKENS.value, Signal.SLOW_FIRST_TOKEN.value})
"""Signals judged at several quantiles. They have no absolute objective: at the median half of all is slow."""

LEVEL_RATES = (0.5, 0.2, 0.05, 0.01)
"""How often stable exceeds each of LEVELS, by their definition: the p of a session's discount."""

RANKED_SCORES = 512
"""A score's badness is its rank among this many before it, of both arms: some hours of a judge, 4 kB."""

LONGEST_DISCOUNT_INDEX = 200
"""A session's requests beyond this one are discounted like this one; what is left to bet on there is nothing."""


class Kind(enum.StrEnum):
    """How a signal is told, and so how it is judged."""

    EVENT = "event"
    LATENCY = "latency"
    SCORE = "score"
    COUNTER = "counter"
    GATE = "gate"
    """It holds, and never judges."""


_FAMILIES = {"score": Kind.SCORE, "prometheus": Kind.COUNTER, "drift": Kind.GATE, "probe": Kind.GATE}


def kind_of(name: SignalName) -> Kind:
    """The kind of a signal, by its name."""
    if name in LATENCY:
        return Kind.LATENCY
    return _FAMILIES.get(name.partition("/")[0], Kind.EVENT)


@dataclass(frozen=True, slots=True)
class Sighting:
    """One unit's event, as the tests take it.

    Attributes:
        on_canary: whether it was assigned to the canary; of a pair of scores, whether the canary's was worse.
        weight: with which probability, in (0, 1); among scored units, where only some are.
        levels: of a latency, those exceeded, as indexes of LEVELS.
        request_index: which request of its session this is, from 1.
        event_rate: stable's rate of such events per request, from the past alone.
        rank: of a score, its badness among past ones, from 0 to 1.

    """

    on_canary: bool
    weight: float
    levels: tuple[int, ...] = ()
    request_index: int = 1
    event_rate: float = 0.0
    rank: float = 1.0


class Against(Protocol):
    """The rollback test of one signal."""

    @property
    def log_e(self) -> float:
        """Natural logarithm of the evidence against the canary."""
        ...

    @property
    def crossed(self) -> bool:
        """Whether it ever reached 1/alpha."""
        ...

    def update(self, seen: Sighting) -> None:
        """Take in one unit."""
        ...


class _One:
    """One process: an event is an event, a score is one by its rank."""

    def __init__(self, config: EProcessConfig) -> None:
        self._process = CappedMixture(config)
        self._state = self._process.start()

    @property
    def log_e(self) -> float:
        return self._state.log_w

    @property
    def crossed(self) -> bool:
        return self._state.crossed

    def _bet(self, seen: Sighting, thetas: tuple[float, ...] | None) -> None:
        self._state = self._process.update(self._state, seen.on_canary, seen.weight, thetas=thetas)


class EventsAgainst(_One):
    """Events, and pairs of which one answer had the event (their weight is one half)."""

    def update(self, seen: Sighting) -> None:
        """Take in one event, discounted by its place in its session."""
        self._bet(seen, _discounted(self._process.thetas, seen.request_index, seen.event_rate))


class ScoresAgainst(_One):
    """Scores by rank.

    A pair of scores is the event test at w = 1/2 with `theta = exp(2 eta)`, since then `f(1) = exp(eta g)/cosh(eta g)`:
    so the grid's mixture serves both (`scores.paired_log_factor`).
    """

    def update(self, seen: Sighting) -> None:
        """Take in one scored unit or pair."""
        if seen.rank > 0.0:
            self._bet(seen, for_score(self._process.thetas, seen.rank))


class LatencyAgainst:
    """One process per quantile, averaged."""

    def __init__(self, config: EProcessConfig) -> None:
        self._process = AveragedLevels(config, len(LEVELS))
        self._state = self._process.start()

    @property
    def log_e(self) -> float:
        """Natural logarithm of the averaged evidence."""
        return self._process.log_e(self._state)

    @property
    def crossed(self) -> bool:
        """Whether the average ever reached 1/alpha."""
        return self._state.crossed

    def update(self, seen: Sighting) -> None:
        """Take in one slow unit with all the levels it exceeded."""
        thetas: dict[int, tuple[float, ...]] | None = None
        if seen.request_index > 1:
            grid = self._process.process.thetas
            found = {level: _discounted(grid, seen.request_index, LEVEL_RATES[level]) for level in seen.levels}
            thetas = {level: points for level, points in found.items() if points is not None}
        self._state = self._process.update(self._state, seen.levels, seen.on_canary, seen.weight, thetas=thetas)


def against(kind: Kind, config: EProcessConfig) -> Against:
    """The rollback test for a kind of signal."""
    if kind is Kind.LATENCY:
        return LatencyAgainst(config)
    return ScoresAgainst(config) if kind is Kind.SCORE else EventsAgainst(config)


def _discounted(thetas: tuple[float, ...], index: int, rate: float) -> tuple[float, ...] | None:
    """The grid of a session's later request; None where it is the grid itself."""
    if index <= 1 or rate <= 0.0:
        return None
    # Two digits of the rate: any number known beforehand is allowed, and few different ones are remembered.
    return _for_session(thetas, min(index, LONGEST_DISCOUNT_INDEX), float(f"{rate:.2g}"))


_for_session = lru_cache(maxsize=4096)(for_session)


class Ranks:
    """The last scores of both arms, kept sorted."""

    def __init__(self) -> None:
        self._order: deque[float] = deque()
        self._sorted: list[float] = []

    def __len__(self) -> int:
        return len(self._order)

    def rank(self, badness: float) -> float:
        """Where it stands among those before it, from 0 (best) to 1; then it is one of them."""
        found = badness_rank(self._sorted, badness)
        if len(self._order) >= RANKED_SCORES:
            oldest = self._order.popleft()
            del self._sorted[bisect_left(self._sorted, oldest)]
        self._order.append(badness)
        insort(self._sorted, badness)
        return found
