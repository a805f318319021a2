"""Flagger's canary analysis, as its documentation's example sets it up.

Read in fluxcd/flagger: docs/gitbook/usage/how-it-works.md (the `podinfo` canary), docs/gitbook/usage/metrics.md (the
built-in checks; duration is the p99), pkg/controller/scheduler.go (`advanceCanary`: one tick an interval; the number of
failed checks is compared with the threshold at the *beginning* of a tick, so the rollback comes one tick after the
failure that reached it; failed checks add up and are never forgiven; a failed check holds the weight; the first tick
only sets the first weight; a success at maxWeight promotes), pkg/controller/scheduler_metrics.go (a metric without
values is a failed check).

In its favour: findings are watched by the success rate's 99 %, as its custom metrics would allow; windows are exact.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.exposure.peers import P99_LIMIT_S, Counts, End, Seen, Verdict


@dataclass(frozen=True, slots=True)
class FlaggerConfig:
    """The documented example; weights are probabilities, times seconds."""

    interval_s: float = 60.0
    """docs/gitbook/usage/how-it-works.md: `interval: 1m`, of the analysis and of both metrics."""
    threshold: int = 10
    """docs/gitbook/usage/how-it-works.md: `threshold: 10`, "max number of failed metric checks before rollback"."""
    max_weight_percent: int = 50
    """docs/gitbook/usage/how-it-works.md: `maxWeight: 50`."""
    step_weight_percent: int = 5
    """docs/gitbook/usage/how-it-works.md: `stepWeight: 5`."""
    least_success: float = 0.99
    """docs/gitbook/usage/metrics.md: request-success-rate `min: 99`."""


DOCUMENTED = FlaggerConfig()


def check(counts: Counts, config: FlaggerConfig, p99_limit_s: float = P99_LIMIT_S) -> bool:
    """Whether all metrics of one tick are within their ranges.

    docs/gitbook/usage/metrics.md: request-duration `max: 500`, "maximum req duration P99, milliseconds".
    """
    if not counts.requests:
        return False
    # In percent and from counts, so that 99 good ones of 100 are 99 and not a rounding less.
    least = round(100 * config.least_success)
    good = counts.requests - max(counts.errors, counts.findings)
    return 100 * good >= least * counts.requests and not counts.p99_above(p99_limit_s)


@dataclass(slots=True)
class State:
    """What the canary's status remembers."""

    weight_percent: int = 0
    failed_checks: int = 0


def tick(state: State, healthy: bool, config: FlaggerConfig) -> End:
    """One interval of a canary that already gets traffic: `healthy` is the check of the window that ended now."""
    if state.failed_checks >= config.threshold:
        return End.ROLLED_BACK
    if not healthy:
        state.failed_checks += 1
        return End.RUNNING
    if state.weight_percent >= config.max_weight_percent:
        return End.PROMOTED
    state.weight_percent = min(state.weight_percent + config.step_weight_percent, 100)
    return End.RUNNING


def flagger(seen: Seen, config: FlaggerConfig = DOCUMENTED) -> Verdict:
    """Run the rollout on a stream; time 0 is the tick that sets the first weight."""
    state = State(weight_percent=config.step_weight_percent)
    weights = [(0.0, state.weight_percent / 100.0)]
    now = config.interval_s
    while now <= seen.horizon_s:
        counts = seen.window(weights, now - config.interval_s, now)
        end = tick(state, check(counts, config, seen.p99_limit_s), config)
        if end is End.ROLLED_BACK:
            return Verdict(end, now, (*weights, (now, 0.0)))
        if end is End.PROMOTED:
            return Verdict(end, now, (*weights, (now, 1.0)))
        if 100 * weights[-1][1] != state.weight_percent:
            weights.append((now, state.weight_percent / 100.0))
        now += config.interval_s
    return Verdict(End.RUNNING, seen.horizon_s, tuple(weights))
