"""How much traffic a decision takes: the bound for any method, an estimate for the operator, alpha's shares. Pure."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass

from monitoring.sequential.events import check_weight, q

ROLLOUT_ALPHA = 0.01
"""Default chance of ever rolling back a healthy canary, over all signals of a rollout."""

LONGEST_ESTIMATE_REQUESTS = 100_000
"""Beyond this many canary requests an estimate is no plan: say that this weight will not tell."""


def bernoulli_kl(p: float, r: float) -> float:
    """Kullback-Leibler divergence of a coin of rate p from one of rate r, in nats.

    >>> round(bernoulli_kl(0.5, 0.1), 4)
    0.5108
    """
    if not (0.0 <= p <= 1.0 and 0.0 <= r <= 1.0):
        raise ValueError(f"rates are {p} and {r}; each must be between 0 and 1")
    total = 0.0
    for here, there in ((p, r), (1.0 - p, 1.0 - r)):
        if here > 0.0:
            if there <= 0.0:
                return math.inf
            total += here * math.log(here / there)
    return max(total, 0.0)


def least_canary_requests(p0: float, p1: float, share: float, alpha: float) -> float:
    """The lower bound on mean canary requests until a canary of event rate p1 is found out against stable's p0.

    Section 8: `n_min = r*ln(1/alpha) / [r*KL(p1||m) + (1-r)*KL(p0||m)]` with `m = r*p1 + (1-r)*p0`, for independent
    requests and rho0 = 1 (Wald's bound for tests of power one, at the null closest to the truth; arXiv 2504.19952).

    Args:
        p0: stable's event rate.
        p1: the canary's.
        share: r, the canary's part of the requests, in (0, 1).
        alpha: the chance of a false rollback, all of it on this signal.

    Returns:
        Canary requests, infinite when p1 equals p0. Worked numbers at 10 % and alpha 1 %: 135 for 1 -> 5 %, 41 for
        1 -> 10 %, 254 for 5 -> 10 %.

    """
    check_weight(share)
    pooled = share * p1 + (1.0 - share) * p0
    nats = share * bernoulli_kl(p1, pooled) + (1.0 - share) * bernoulli_kl(p0, pooled)
    return share * -math.log(alpha) / nats if nats > 0.0 else math.inf


def least_watched_requests(p0: float, p1: float, alpha: float) -> float:
    """The same bound without another revision beside it: `ln(1/alpha) / KL(p1 || p0)`, infinite when p1 <= p0.

    Args:
        p0: the largest rate that is fine.
        p1: the revision's own.
        alpha: the chance of a false rollback.

    >>> round(least_watched_requests(0.05, 0.20, 0.01), 1)
    32.9
    """
    return -math.log(alpha) / bernoulli_kl(p1, p0) if p1 > p0 else math.inf


def share_alpha(alpha: float, weights: Mapping[str, float], leader: str = "error") -> dict[str, float]:
    """Divide alpha over signals: half to the leader, the rest by weight (section 7).

    The false-rollback chances of the signals add up to at most alpha. Half goes to `error` because six equal shares
    would cost it 1.39 times the exposure.

    Args:
        alpha: the rollout's chance of a false rollback.
        weights: by signal, a positive weight; equal weights for equal shares. The leader's own weight is not used
            unless it is the only signal.
        leader: the signal that gets half; when it is not among the signals all of alpha goes by weight.

    Returns:
        By signal its own alpha, in the order given; they sum to alpha.

    Raises:
        ValueError: for a weight that is not positive.

    >>> share_alpha(0.01, {"error": 1, "engine-4xx": 1, "repetition": 3})
    {'error': 0.005, 'engine-4xx': 0.00125, 'repetition': 0.00375}

    """
    wrong = [name for name, weight in weights.items() if not 0.0 < weight < math.inf]
    if wrong:
        raise ValueError(f"weights of {', '.join(wrong)} are not positive numbers; leave the signal out instead")
    others = math.fsum(weight for name, weight in weights.items() if name != leader)
    if others == 0.0:
        return dict.fromkeys(weights, alpha)
    leading = 0.5 if leader in weights else 0.0
    return {
        name: alpha * (leading if name == leader else (1.0 - leading) * weight / others)
        for name, weight in weights.items()
    }


class Path(enum.StrEnum):
    """What a signal is heading for."""

    ROLLBACK = "rollback"
    NON_INFERIORITY = "non-inferiority"
    OBJECTIVE = "objective"


@dataclass(frozen=True, slots=True)
class Estimate:
    """About how many canary requests are left until a decision, and which; or None and why there is no number."""

    requests: int | None
    path: Path | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a signal stands, for `requests_to_decision`.

    Attributes:
        weight: the canary's present weight, in (0, 1).
        canary_events: events of the canary; `canary_units`, `stable_events`, `stable_units` alike.
        log_e: of the rollback test, against ln(1/alpha).
        alpha: of this signal.
        forward_log_e: of non-inferiority, against ln(1/b).
        objective_log_e: of the objective, against ln(1/b); None where there is none.
        p_max: the objective's rate, None where there is none.
        rho0: the rollback test's ratio.
        rho1: non-inferiority's ratio.
        b: the forward tests' error.

    """

    weight: float
    canary_events: int
    canary_units: int
    stable_events: int
    stable_units: int
    log_e: float
    alpha: float
    forward_log_e: float
    rho1: float
    objective_log_e: float | None = None
    p_max: float | None = None
    rho0: float = 1.0
    b: float = 0.05


def smoothed_ratio(canary_events: int, canary_units: int, stable_events: int, stable_units: int) -> float:
    """theta^, the ratio of event rates with half an event added to each arm's (so that 0 of 0 is not a surprise).

    The half event is divided by units in proportion, so that arms without any event have the ratio 1.
    """
    units = canary_units + stable_units
    if units == 0:
        return 1.0
    canary = canary_events + canary_units / units
    stable = stable_events + stable_units / units
    if canary_units == 0 or stable_units == 0:
        return 1.0
    return (canary / canary_units) / (stable / stable_units)


def requests_to_decision(at: Standing, longest: int = LONGEST_ESTIMATE_REQUESTS) -> Estimate:
    """About how many more canary requests a signal needs, if rates stay as they look (section 6).

    `w * [ln(1/a) - ln W] / (m * KL(q(theta^, w) || q(rho0, w)))` towards a rollback when theta^ > rho0, the same
    towards non-inferiority with rho1 and b when theta^ < rho1, and `[ln(1/b) - ln E] / KL(p^ || p_max)` towards the
    objective when p^ < p_max; m is the event rate over both arms. The nearest of those that apply is told: a ratio
    of 1.05 that is noise would take for ever to roll back, and is usually shown to be fine long before.

    Worked number: weight 10 %, 14 of 280 against 25 of 2,520, alpha 1 %, ln W = 2: 82 canary requests until rollback.

    Returns:
        Requests (at least 1; 0 when a test has already decided) with their path, or None and the reason.

    """
    check_weight(at.weight)
    if at.log_e >= -math.log(at.alpha):
        return Estimate(0, Path.ROLLBACK)
    ways = [(path, way) for path, way in _ways(at) if way < math.inf]
    if not ways:
        if at.canary_units == 0:
            return Estimate(None, None, "no canary request has settled yet")
        return Estimate(None, None, "not at this weight: the rates look neither bad enough nor good enough")
    path, nearest = min(ways, key=lambda way: way[1])
    if nearest > longest:
        reason = (
            f"not at this weight: about {nearest:.2g} canary requests to {path} (limit {longest}); raise the weight"
        )
        return Estimate(None, path, reason)
    return Estimate(math.ceil(nearest), path)


def watched_requests_to_decision(at: Standing, p0: float, longest: int = LONGEST_ESTIMATE_REQUESTS) -> Estimate:
    """The same for a revision that is watched without another beside it, and at most p0 is fine.

    `[ln(1/a) - ln E] / KL(p^ || p0)` towards a rollback when p^ > p0, and the objective's part of the other estimate.
    `at.weight` and stable's counts are not looked at; `at.log_e` is of the absolute test.

    Worked number: 12 of 100 with p0 = 5 %, alpha 1 %, ln E = 1: 96 requests until rollback.
    """
    if at.log_e >= -math.log(at.alpha):
        return Estimate(0, Path.ROLLBACK)
    if at.canary_units == 0:
        return Estimate(None, None, "no canary request has settled yet")
    p = min(1.0, at.canary_events / at.canary_units)
    back = (-math.log(at.alpha) - at.log_e) / bernoulli_kl(p, p0) if p > p0 else math.inf
    path, nearest = min(((Path.ROLLBACK, back), (Path.OBJECTIVE, _to_objective(at))), key=lambda way: way[1])
    if nearest > longest:
        return Estimate(None, None, "not in sight: the rate looks neither bad enough nor good enough")
    return Estimate(math.ceil(nearest), path)


def _to_objective(at: Standing) -> float:
    """Mean canary requests until the objective passes; infinite where it is not heading there."""
    if at.p_max is None or at.objective_log_e is None:
        return math.inf
    left = -math.log(at.b) - at.objective_log_e
    p = at.canary_events / at.canary_units if at.canary_units else 0.0
    per_request = bernoulli_kl(p, at.p_max) if p < at.p_max else 0.0
    return 0.0 if left <= 0.0 else left / per_request if per_request > 0.0 else math.inf


def _ways(at: Standing) -> list[tuple[Path, float]]:
    """Every path with its mean canary requests; infinite where it leads away."""
    units = at.canary_units + at.stable_units
    pooled = (at.canary_events + at.stable_events) / units if units else 0.0
    theta = smoothed_ratio(at.canary_events, at.canary_units, at.stable_events, at.stable_units)
    seen = q(theta, at.weight)

    def by_events(nats_left: float, rho: float, applies: bool) -> float:
        if nats_left <= 0.0:
            return 0.0
        if not applies or pooled == 0.0:
            return math.inf
        per_request = pooled * bernoulli_kl(seen, q(rho, at.weight)) / at.weight
        return nats_left / per_request if per_request > 0.0 else math.inf

    forward_nats = -math.log(at.b)
    ways = [
        (Path.ROLLBACK, by_events(-math.log(at.alpha) - at.log_e, at.rho0, theta > at.rho0)),
        (Path.NON_INFERIORITY, by_events(forward_nats - at.forward_log_e, at.rho1, theta < at.rho1)),
    ]
    if at.p_max is not None and at.objective_log_e is not None:
        ways.append((Path.OBJECTIVE, _to_objective(at)))
    return ways
