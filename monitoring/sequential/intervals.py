"""The effect of an A/B test with an interval that holds however often one looks. Pure.

Analysis page, section 7: the set of ratios rho that a two-sided mixture does not reject,
`{rho : sum_k pi_k L(theta_k)/L(rho) < 1/alpha}`, with `L(theta) = prod q(theta, w)^x (1 - q(theta, w))^(1-x)`.
In the logarithm of theta, L is a logistic likelihood with offset logit(w), hence concave, and the set an interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from monitoring.sequential.events import check_weight, log_spaced

TWO_SIDED = log_spaced(1.0 / 20.0, 20.0, 41)
"""Ratios of the mixture, 1 in the middle."""

_WIDEST = 60.0


@dataclass(frozen=True, slots=True)
class RatioInterval:
    """Rate ratio, canary over stable: best estimate and bounds. 0 and infinity stand for "can't be bounded".

    `log_e` is the natural logarithm of the evidence that the ratio is not 1, the mixture's likelihood over that of 1.
    """

    estimate: float
    low: float
    high: float
    log_e: float = 0.0


def _log_likelihood(log_theta: float, counts: Mapping[float, tuple[int, int]]) -> float:
    total = 0.0
    for weight, (canary, stable) in counts.items():
        at = log_theta + math.log(weight / (1.0 - weight))
        # ln q = -ln(1 + e^-at), ln(1 - q) = -ln(1 + e^at), without overflow.
        soft = math.log1p(math.exp(-abs(at)))
        total -= canary * (max(-at, 0.0) + soft) + stable * (max(at, 0.0) + soft)
    return total


def _score(log_theta: float, counts: Mapping[float, tuple[int, int]]) -> float:
    return math.fsum(
        canary - (canary + stable) / (1.0 + (1.0 - weight) / weight * math.exp(-log_theta))
        for weight, (canary, stable) in counts.items()
    )


def ratio_interval(counts: Mapping[float, tuple[int, int]], alpha: float = 0.05) -> RatioInterval:
    """Always-valid interval of the ratio of event rates: it holds at all times at once with chance 1 - alpha.

    Args:
        counts: by weight in (0, 1), events of the canary and of stable.
        alpha: the chance that the interval ever misses.

    Worked numbers, an even split: 30 against 20 events give 1.5, from 0.60 to 3.96.

    Raises:
        ValueError: for a weight not between 0 and 1, or alpha out of range.

    """
    for weight in counts:
        check_weight(weight)
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"alpha is {alpha}; give a probability between 0 and 1, such as 0.05")
    if sum(canary + stable for canary, stable in counts.values()) == 0:
        return RatioInterval(estimate=math.nan, low=0.0, high=math.inf)
    best = _bisect(-_WIDEST, _WIDEST, lambda at: _score(at, counts) > 0.0)
    terms = [_log_likelihood(math.log(theta), counts) for theta in TWO_SIDED]
    highest = max(terms)
    mixture = highest + math.log(math.fsum(math.exp(term - highest) for term in terms) / len(TWO_SIDED))
    floor = mixture + math.log(alpha)

    def inside(at: float) -> bool:
        return _log_likelihood(at, counts) > floor

    low = 0.0 if inside(-_WIDEST) else math.exp(_bisect(-_WIDEST, best, lambda at: not inside(at)))
    high = math.inf if inside(_WIDEST) else math.exp(_bisect(best, _WIDEST, inside))
    no_canary = all(canary == 0 for canary, _ in counts.values())
    no_stable = all(stable == 0 for _, stable in counts.values())
    estimate = 0.0 if no_canary else math.inf if no_stable else math.exp(best)
    return RatioInterval(estimate, low, high, mixture - _log_likelihood(0.0, counts))


def _bisect(low: float, high: float, before: Callable[[float], bool]) -> float:
    """Where `before` turns from true to false."""
    for _ in range(48):  # 120 / 2^48 is below 1e-12
        middle = 0.5 * (low + high)
        if before(middle):
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)
