"""Did the arms get the shares they were meant to get? If not, something drops units of one arm. Pure.

Analysis page, section 7: a Beta-binomial mixture against the intended weight, after Lindon and Malek,
"Anytime-valid inference for multinomial count data" (NeurIPS 2022). On *first sights of sessions* only: counting
requests alarms on 84 % of healthy runs, since one session's requests are no independent draws. It blocks promotion;
it never rolls back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from monitoring.sequential.events import check_weight

SAMPLE_RATIO_ALPHA = 0.001
"""Chance of ever raising the alarm on a rollout whose split is right."""

CONCENTRATION = 50.0
"""How far from the intended share the alternative lies: like having seen this many units."""


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def sample_ratio_log_e(canary: int, stable: int, weight: float, concentration: float = CONCENTRATION) -> float:
    """Natural logarithm of the evidence that units were not split by `weight`.

    `B(c*w + n1, c*(1-w) + n0) / [B(c*w, c*(1-w)) * w^n1 * (1-w)^n0]`, an e-process in the number of units.

    Worked numbers, w = 10 %: 100 canary units of 1,000 give -1.54; 150 of 1,000 give 10.01, past ln(1000) = 6.91.

    Args:
        canary: sessions first seen on the canary at this weight, n1.
        stable: on stable, n0.
        weight: the intended probability of the canary, in (0, 1).
        concentration: c.

    Raises:
        ValueError: for negative counts or a weight not between 0 and 1.

    """
    check_weight(weight)
    if canary < 0 or stable < 0:
        raise ValueError(f"{canary} canary and {stable} stable units; counts can't be negative")
    a, b = concentration * weight, concentration * (1.0 - weight)
    null = canary * math.log(weight) + stable * math.log1p(-weight)
    return _log_beta(a + canary, b + stable) - _log_beta(a, b) - null


def sample_ratio_over_steps(counts: Mapping[float, tuple[int, int]]) -> float:
    """The evidence of all steps together: the product over weights, of disjoint units each.

    Args:
        counts: by weight in (0, 1), the canary's and stable's first sights of sessions.

    """
    return math.fsum(sample_ratio_log_e(n1, n0, weight) for weight, (n1, n0) in counts.items())


def sample_ratio_alarm(log_e: float, alpha: float = SAMPLE_RATIO_ALPHA) -> bool:
    """Whether the split is wrong, at `alpha` over the whole rollout."""
    return log_e >= -math.log(alpha)
