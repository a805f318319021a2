"""Evidence from scores and from shadow pairs, turned into what the event test understands. Pure.

Analysis page, section 5; betting on symmetric differences after Waudby-Smith and Ramdas, arXiv 2010.09686.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence

from monitoring.sequential.events import check_weight


def badness_rank(past_sorted: Sequence[float], badness: float) -> float:
    """Rank g in [0, 1]: where a score's badness stands among the *past* scores of both arms (middle of ties).

    Only the past, so that g is known before the arm matters; 0.5 when there is no past.

    >>> badness_rank([0.1, 0.2, 0.2, 0.9], 0.2)
    0.5
    """
    if not past_sorted:
        return 0.5
    return (bisect_left(past_sorted, badness) + bisect_right(past_sorted, badness)) / (2.0 * len(past_sorted))


def for_score(thetas: Iterable[float], g: float) -> tuple[float, ...]:
    """Grid of a scored unit, for `events.CappedMixture.update(..., thetas=...)` with rho0 = 1.

    The factor `theta^(g*x) / (w*theta^g + 1 - w)` is the event test's at theta^g: every scored unit is an event,
    weighed by how bad it was.

    Raises:
        ValueError: for g outside [0, 1].

    """
    if not 0.0 <= g <= 1.0:
        raise ValueError(f"g is {g}; give a rank of badness between 0 and 1")
    return tuple(theta**g for theta in thetas)


def sampled_weight(weight: float, canary_rate: float, stable_rate: float) -> float:
    """The canary's weight among *scored* units, when the arms are scored at different rates.

    `w' = w*s_c / (w*s_c + (1-w)*s_s)`. Score all of a 10 % canary and a ninth of stable, and w' is one half:

    >>> round(sampled_weight(0.1, 1.0, 1 / 9), 3)
    0.5

    Raises:
        ValueError: for a weight not between 0 and 1, or a rate not in (0, 1].

    """
    check_weight(weight)
    if not (0.0 < canary_rate <= 1.0 and 0.0 < stable_rate <= 1.0):
        raise ValueError(f"sampling rates are {canary_rate} and {stable_rate}; each must be above 0 and at most 1")
    return weight * canary_rate / (weight * canary_rate + (1.0 - weight) * stable_rate)


SHADOW_WEIGHT = 0.5
"""Weight of a discordant shadow pair (one arm had the event, the other had not): either was as likely."""


def paired_log_factor(g_of_difference: float, eta: float) -> float:
    """Logarithm of a shadow pair's factor, `exp(eta*g(d)) / cosh(eta*g(d))`.

    d is the paired difference of badness, canary minus stable, and g odd: when the arms are exchangeable the
    sign of g(d) is a fair coin, so the factor's mean is 1 for any eta that is fixed beforehand. It is at most 2.

    Args:
        g_of_difference: g(d), from the pair itself and the past.
        eta: the size of the bet, not negative (only a worse canary is looked for).

    Raises:
        ValueError: for a negative eta.

    """
    if eta < 0.0:
        raise ValueError(f"eta is {eta}; a bet is not negative")
    z = eta * g_of_difference
    # ln cosh z = |z| + ln(1 + e^(-2|z|)) - ln 2, without overflow.
    return z - (abs(z) + math.log1p(math.exp(-2.0 * abs(z))) - math.log(2.0))
