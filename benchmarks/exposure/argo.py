"""Argo Rollouts' background analysis, as its documentation's example sets it up.

Read in argoproj/argo-rollouts: docs/features/analysis.md ("Background Analysis": Rollout and AnalysisTemplate),
analysis/analysis.go (`generateMetricTasks`: the first measurement at once, then one an interval;
`assessMetricStatus`: a metric fails when its failed measurements are *more* than failureLimit, and errs after more than
4 consecutive measurements that could not be taken).

In its favour: the query is pointed at the canary alone (the example's asks for the whole service, where stable's good
answers cover the canary's bad ones); `rate` over the whole 5 minutes instead of `irate`, which looks
at the last two scrapes only; and beside the example's success rate it watches findings by the same 95 % and Flagger's
p99 limit, since the documentation has no example for either.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from benchmarks.exposure.peers import Counts, End, Seen, Verdict


@dataclass(frozen=True, slots=True)
class ArgoConfig:
    """The documented example; weights are probabilities, times seconds."""

    steps: tuple[tuple[float, float], ...] = ((0.2, 600.0), (0.4, 600.0), (0.6, 600.0), (0.8, 600.0))
    """docs/features/analysis.md: setWeight 20, 40, 60, 80, each followed by `pause: {duration: 10m}`."""
    starting_step: int = 1
    """docs/features/analysis.md: `startingStep: 2`, "delay starting analysis run until setWeight: 40%" (its steps count
    pauses; this one counts weights, from 0)."""
    interval_s: float = 300.0
    """docs/features/analysis.md: `interval: 5m`."""
    window_s: float = 300.0
    """docs/features/analysis.md: the query's `[5m]`."""
    least_success: float = 0.95
    """docs/features/analysis.md: `successCondition: result[0] >= 0.95`."""
    failure_limit: int = 3
    """docs/features/analysis.md: `failureLimit: 3`."""
    consecutive_error_limit: int = 4
    """analysis/analysis.go: `DefaultConsecutiveErrorLimit`."""


DOCUMENTED = ArgoConfig()
HELD = ArgoConfig(steps=((0.1, math.inf),), starting_step=0)
"""The same analysis at the weight that the others get, 10 %, from the start and for as long as it takes."""


def measure(counts: Counts, p99_limit_s: float, config: ArgoConfig) -> bool | None:
    """One measurement: True when the conditions hold, False when one fails, None when there was nothing to measure."""
    if not counts.requests:
        return None
    rates_hold = min(counts.successes, counts.clean) >= config.least_success
    return rates_hold and not counts.p99_above(p99_limit_s)


class Analysis:
    """One metric's run: measurements in, Failed or Error out."""

    def __init__(self, config: ArgoConfig) -> None:
        self._config = config
        self._failed = 0
        self._errors = 0

    def add(self, measurement: bool | None) -> bool:
        """Take in a measurement; whether the rollout is aborted now."""
        if measurement is None:
            self._errors += 1
        else:
            self._errors = 0
            self._failed += not measurement
        return self._failed > self._config.failure_limit or self._errors > self._config.consecutive_error_limit


def argo(seen: Seen, config: ArgoConfig) -> Verdict:
    """Run the rollout on a stream."""
    starts, weights, at = [], [], 0.0
    for weight, pause in config.steps:
        starts.append(at)
        weights.append((at, weight))
        at += pause
    promoted_at = at
    analysis = Analysis(config)
    now = starts[config.starting_step]
    while now <= min(promoted_at, seen.horizon_s):
        counts = seen.window(weights, now - config.window_s, now)
        if analysis.add(measure(counts, seen.p99_limit_s, config)):
            return Verdict(End.ROLLED_BACK, now, (*weights, (now, 0.0)))
        now += config.interval_s
    if promoted_at < seen.horizon_s:
        return Verdict(End.PROMOTED, promoted_at, (*weights, (promoted_at, 1.0)))
    return Verdict(End.RUNNING, seen.horizon_s, tuple(weights))
