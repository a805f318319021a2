"""Evidence for going forward: the canary is *shown* to be fine, by comparison or by an objective. Pure.

No data is not success (analysis page, section 6). A signal passes when one of two e-processes reaches 1/b,
both on *settled* units only (an outcome that may still come late is not a success yet):

- non-inferiority: rejects "the canary's event rate is at least rho1 times stable's". Needs events.
- objective: rejects "the canary's event rate is at least p_max". Needs units; it is what passes a faultless pair.

Both are read at their present value and are not frozen once they have passed: evidence that turns against the
canary while a step's least duration runs is seen. No sharing of b between signals: all must pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from operator import mul
from typing import Any

from monitoring.sequential.events import check_weight, log_spaced, odds

FORWARD_B = 0.05
"""Default chance of passing a signal that is as bad as rho1 or p_max."""

_RHO1_BY_WEIGHT = ((0.01, 11.0), (0.05, 6.0), (0.10, 3.0), (0.25, 2.0), (0.50, 1.5))


def default_rho1(weight: float) -> float:
    """The rate ratio that must be excluded at a canary weight in (0, 1): what can be told at that weight.

    Section 6's table (1 %: 11, 5 %: 6, 10 %: 3, 25 %: 2, 50 %: 1.5), in between by a straight line in the logarithms of
    both, outside its ends constant.

    >>> default_rho1(0.10), round(default_rho1(0.20), 2), default_rho1(0.80)
    (3.0, 2.21, 1.5)
    """
    check_weight(weight)
    low_weight, low_rho1 = _RHO1_BY_WEIGHT[0]
    if weight <= low_weight:
        return low_rho1
    for (w0, r0), (w1, r1) in pairwise(_RHO1_BY_WEIGHT):
        if weight == w1:
            return r1
        if weight < w1:
            along = math.log(weight / w0) / math.log(w1 / w0)
            return r0 * math.exp(along * math.log(r1 / r0))
    return _RHO1_BY_WEIGHT[-1][1]


@dataclass(frozen=True, slots=True)
class ForwardConfig:
    """What a non-inferiority test is asked for.

    One test keeps its rho1: evidence that the ratio is below 11, won at weight 1 %, says nothing about 3. So keep one
    test for each rho1 that the steps of a rollout use, and feed all of them every event, at the event's own weight.

    Attributes:
        rho1: the ratio of event rates to exclude, canary over stable.
        b: the chance of passing a canary that is as bad as rho1.
        at_one: prior on the ratio 1, which most versions have; the rest is spread over `points` ratios from
            rho1/20 to rho1/1.05.
        points: how many those are.

    """

    rho1: float
    b: float = FORWARD_B
    at_one: float = 0.5
    points: int = 12

    def __post_init__(self) -> None:
        if not 0.0 < self.rho1 < math.inf:
            raise ValueError(f"rho1 is {self.rho1}; give the positive rate ratio that must be excluded, such as 3")
        if not 0.0 < self.b < 1.0:
            raise ValueError(f"b is {self.b}; give a probability between 0 and 1, such as 0.05")
        if not 0.0 <= self.at_one < 1.0 or self.points < 2:
            raise ValueError(f"at_one is {self.at_one} (0 to below 1), points {self.points} (2 or more)")

    @property
    def log_threshold(self) -> float:
        """Natural logarithm of 1/b: passed from here on."""
        return -math.log(self.b)


@dataclass(frozen=True, slots=True)
class ForwardState:
    """What a non-inferiority test remembers: evidence, posterior over the ratios (sums to 1), counts."""

    log_e: float
    shares: tuple[float, ...]
    n: int = 0
    canary: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain values; floats survive `json.dumps` and `json.loads` exactly."""
        return {"log_e": self.log_e, "shares": list(self.shares), "n": self.n, "canary": self.canary}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> ForwardState:
        """The state that `to_json` gave; unknown keys are left alone."""
        return cls(
            log_e=float(stored["log_e"]),
            shares=tuple(float(share) for share in stored["shares"]),
            n=int(stored["n"]),
            canary=int(stored["canary"]),
        )


_odds_on_grid = lru_cache(maxsize=1024)(odds)


@lru_cache(maxsize=1024)
def _log_odds_on_grid(
    thetas: tuple[float, ...], rho1: float, weight: float
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    f_canary, f_stable, _, _ = odds(thetas, rho1, weight)
    return tuple(map(math.log, f_canary)), tuple(map(math.log, f_stable))


_LEAST_SHARE = 1e-300


class NonInferiority:
    """The mirror image of the rollback test: H0 is theta >= rho1, the bets are on ratios below it.

    With theta >= rho1 an event is the canary's with probability at least q(rho1, w), where each factor has mean 1;
    and a canary event multiplies by less than a stable one does, so the mean only falls with theta.
    Worked numbers, w = 10 %, rho1 = 3, b = 5 %: a canary as good as stable passes after 45 events on average (450
    canary requests at a rate of 1 %), one without any event of its own after 15 events of stable.
    """

    def __init__(self, config: ForwardConfig) -> None:
        self.config = config
        spread = log_spaced(config.rho1 / 20.0, config.rho1 / 1.05, config.points)
        has_one = config.rho1 / 1.05 > 1.0 and config.at_one > 0.0
        self.thetas = (1.0, *spread) if has_one else spread
        rest = (1.0 - config.at_one if has_one else 1.0) / config.points
        self._prior = (config.at_one, *(rest,) * config.points) if has_one else (rest,) * config.points
        self._log_prior = tuple(map(math.log, self._prior))

    def start(self) -> ForwardState:
        """Before any event: evidence 1."""
        return ForwardState(log_e=0.0, shares=self._prior)

    def update(self, state: ForwardState, canary: bool, weight: float) -> ForwardState:
        """The state after one more settled event; arguments as in `events.CappedMixture.update`.

        Raises:
            ValueError: for a weight that is not between 0 and 1.

        """
        check_weight(weight)
        f_canary, f_stable, _, _ = _odds_on_grid(self.thetas, self.config.rho1, weight)
        moved = list(map(mul, state.shares, f_canary if canary else f_stable))
        factor = sum(moved)
        # No restarts bring a share back here, so none may reach 0; the floor is far below what a mean could show.
        shares = tuple([max(share / factor, _LEAST_SHARE) for share in moved])
        return ForwardState(state.log_e + math.log(factor), shares, state.n + 1, state.canary + canary)

    def log_e(self, counts: Mapping[float, tuple[int, int]]) -> float:
        """Natural logarithm of the evidence of many events at once; the same as by `update`, in any order.

        Args:
            counts: by weight in (0, 1), events of the canary and of stable.

        Raises:
            ValueError: for a weight that is not between 0 and 1.

        """
        logs = list(self._log_prior)
        for weight, (canary, stable) in counts.items():
            check_weight(weight)
            f_canary, f_stable = _log_odds_on_grid(self.thetas, self.config.rho1, weight)
            logs = [log + canary * won + stable * lost for log, won, lost in zip(logs, f_canary, f_stable, strict=True)]
        highest = max(logs)
        return highest + math.log(sum([math.exp(log - highest) for log in logs]))

    def passed(self, state: ForwardState) -> bool:
        """Whether the present evidence shows that the canary's ratio is below rho1."""
        return state.log_e >= self.config.log_threshold


_OBJECTIVE_PRIOR = ((0.0, 0.5), (0.1, 0.2), (0.25, 0.2), (0.5, 0.1))
"""Rates as parts of p_max, with the prior on each: half on a faultless canary, enough elsewhere for a few events."""


def objective_log_e(n: int, k: int, p_max: float) -> float:
    """Natural logarithm of the evidence that the canary's event rate is below p_max.

    A mixture of likelihood ratios over rates below p_max, hence an e-process of H0 "at every unit the rate is
    at least p_max", and a function of the counts alone:
    `sum_j pi_j (p_j/p_max)^k ((1-p_j)/(1-p_max))^(n-k)`. Passed when it reaches `ln(1/b)`.

    Worked numbers, p_max = 5 %, b = 5 %: 64 units without an event pass (the floor is ln(1/b)/-ln(1-p_max), 58.4, so
    59), with one event 135, with two 178, with five 293. At p_max = 1 %: 327 (floor 298.1), 685, 900 and 1,481.

    Args:
        n: settled canary units.
        k: those of them with an event.
        p_max: the objective, a rate in (0, 1).

    Raises:
        ValueError: when the counts or the objective can't be.

    """
    if not 0.0 < p_max < 1.0:
        raise ValueError(f"p_max is {p_max}; give a rate between 0 and 1, such as 0.05 for 5 %")
    if not 0 <= k <= n:
        raise ValueError(f"{k} events among {n} units; events must be between 0 and the units")
    quiet = n - k
    logs = _objective_logs(p_max)
    if k == 0:
        terms = [prior + quiet * lost for prior, _, lost in logs]
    else:
        terms = [prior + k * won + quiet * lost for prior, won, lost in logs if won > -math.inf]
    highest = max(terms)
    return highest + math.log(sum([math.exp(term - highest) for term in terms]))


@lru_cache(maxsize=256)
def _objective_logs(p_max: float) -> tuple[tuple[float, float, float], ...]:
    """By rate of the mixture, logarithms of its prior and of its factor with an event and without one."""
    return tuple(
        (
            math.log(prior),
            math.log(part) if part > 0.0 else -math.inf,
            math.log((1.0 - part * p_max) / (1.0 - p_max)),
        )
        for part, prior in _OBJECTIVE_PRIOR
    )


def objective_units(k: int, p_max: float, b: float = FORWARD_B) -> int:
    """Fewest settled units with which k events still pass the objective.

    >>> objective_units(0, 0.05), objective_units(0, 0.01)
    (64, 327)
    """
    need = -math.log(b)
    low, high = k, max(2 * k, 16)
    while objective_log_e(high, k, p_max) < need:
        low, high = high, 2 * high
    while low < high:
        middle = (low + high) // 2
        if objective_log_e(middle, k, p_max) >= need:
            high = middle
        else:
            low = middle + 1
    return high
