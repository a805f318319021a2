"""Kayenta's judge NetflixACAJudge-v1.0, within Spinnaker's canary stage.

Read in spinnaker/kayenta and spinnaker/spinnaker:
kayenta-judge/src/main/scala/com/netflix/kayenta/judge/NetflixACAJudge.scala (outliers by IQR factor 3 with reduced
sensitivity, then Mann-Whitney with tolerance 0.25 and confidence 0.98),
.../judge/classifiers/metric/MannWhitneyClassifier.scala (High: the confidence interval of the shift lies above
0.25 times the Hodges-Lehmann estimate, and the ratio of means is at least 1),
.../judge/detectors/IQRDetector.scala, .../judge/scorers/WeightedSumScorer.scala (a group's score is its share of
metrics that pass), kayenta-mannwhitney/src/main/scala/com/netflix/kayenta/mannwhitney/MannWhitney.scala (the interval,
after R's wilcox.test, asymptotic with continuity and tie correction). The stage's settings: spinnaker.io, "Best
practices for configuring canary", "Some configuration values to start with".

In its favour: canary and a baseline of the same version as stable get 10 % each (it compares equals); every metric
has a group of its own with a third of the weight, so one bad metric fails the run; direction `increase`, so a canary
that is better never fails; exact counts, one a step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.exposure.peers import End, Seen, Verdict
from benchmarks.exposure.traffic import Floats

TOLERANCE = 0.25
"""NetflixACAJudge.scala: `new MannWhitneyClassifier(tolerance = 0.25, confLevel = 0.98, ...)`."""

Z = 2.3263478740408408
"""Normal quantile of 0.99: the two-sided confidence 0.98 of NetflixACAJudge.scala."""

IQR_FACTOR = 3.0
"""NetflixACAJudge.scala: `new IQRDetector(factor = 3.0, reduceSensitivity = true)`."""


@dataclass(frozen=True, slots=True)
class KayentaConfig:
    """The stage; weights are probabilities, times seconds."""

    lifetime_s: float = 10_800.0
    """"Some configuration values to start with": canary lifetime 3 hours."""
    interval_s: float = 3_600.0
    """The same: frequency 60 minutes. Look-back is off, so each run judges all data since the start."""
    step_s: float = 60.0
    """One point a minute; the page asks for "at least 50 pieces of time series data per metric" a run."""
    marginal: float = 75.0
    """The same: unhealthy score 75; below it a run fails the canary at once."""
    passing: float = 95.0
    """The same: successful score 95; the last run must reach it."""
    weight: float = 0.10


DOCUMENTED = KayentaConfig()
SHORT = KayentaConfig(lifetime_s=1_800.0, interval_s=600.0, step_s=10.0)
"""Not documented, but what someone in a hurry might set: a sixth of the times, so as many points."""


def without_outliers(values: Floats) -> Floats:
    """Drop NaN, and what lies outside both three interquartile ranges and the 1st to 99th percentile."""
    values = values[~np.isnan(values)]
    if not len(values):
        return values
    p01, p25, p75, p99 = np.quantile(values, (0.01, 0.25, 0.75, 0.99))
    low = min(p01, p25 - IQR_FACTOR * (p75 - p25))
    high = max(p99, p75 + IQR_FACTOR * (p75 - p25))
    return np.asarray(values[(values >= low) & (values <= high)])


def wilcoxon_z(experiment: Floats, control: Floats, shifts: Floats) -> Floats:
    """The rank-sum statistic of (experiment - shift) against control, standardised, for each shift.

    With mid-ranks for ties, their correction of the variance, and the continuity correction. It falls with the shift.
    """
    m, n = len(experiment), len(control)
    pooled = np.concatenate((experiment[None, :] - shifts[:, None], np.broadcast_to(control, (len(shifts), n))), axis=1)
    order = np.sort(pooled, axis=1)
    found = np.empty(len(shifts))
    for row, (values, ordered) in enumerate(zip(pooled, order, strict=True)):
        low = np.searchsorted(ordered, values[:m], side="left")
        high = np.searchsorted(ordered, values[:m], side="right")
        statistic = float((low + high + 1).sum()) / 2.0 - m * (m + 1) / 2.0 - m * n / 2.0
        edges = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1], [True])))
        ties = np.diff(edges).astype(float)
        variance = (m * n / 12.0) * ((m + n + 1) - float((ties**3 - ties).sum()) / ((m + n) * (m + n - 1)))
        found[row] = (statistic - np.sign(statistic) * 0.5) / np.sqrt(variance) if variance > 0.0 else 0.0
    return found


def shift_where(experiment: Floats, control: Floats, z: float) -> float:
    """The shift at which the statistic falls to z: the lower limit for z = 2.33, the Hodges-Lehmann estimate for 0."""
    low, high = float(experiment.min() - control.max()), float(experiment.max() - control.min())
    ends = wilcoxon_z(experiment, control, np.array([low, high])) - z
    if ends[0] <= 0.0:
        return low
    if ends[1] >= 0.0:
        return high
    while high - low > 1e-4 * max(abs(low), abs(high), 1e-9):
        between = np.linspace(low, high, 10)[1:-1]
        falls = int(np.argmax(np.append(wilcoxon_z(experiment, control, between) - z <= 0.0, True)))
        points = np.concatenate(([low], between, [high]))
        low, high = float(points[falls]), float(points[falls + 1])
    return (low + high) / 2.0


def is_high(experiment: Floats, control: Floats) -> bool:
    """Whether the judge calls the canary's series High; False is its Pass (no data and equal data pass)."""
    experiment, control = without_outliers(experiment), without_outliers(control)
    if not len(experiment) or not len(control) or np.array_equal(np.sort(experiment), np.sort(control)):
        return False
    if control.mean() != 0.0 and experiment.mean() / control.mean() < 1.0:
        return False
    if len(np.unique(np.concatenate((experiment, control)))) == 1:
        return False
    if wilcoxon_z(experiment, control, np.zeros(1))[0] <= Z:
        return False  # the lower limit is not above 0 then, let alone above a bound that is not negative
    bound = TOLERANCE * abs(shift_where(experiment, control, 0.0))
    return shift_where(experiment, control, Z) > bound


def score(high: list[bool]) -> float:
    """The summary: every metric is a group of its own, all of one weight."""
    return 100.0 * (1.0 - sum(high) / len(high))


def judge(total: float, *, last: bool, config: KayentaConfig) -> End:
    """One run's score: below marginal the canary fails at once; the last run must pass."""
    if total < config.marginal:
        return End.ROLLED_BACK
    if not last:
        return End.RUNNING
    return End.PROMOTED if total >= config.passing else End.ROLLED_BACK


def kayenta(seen: Seen, config: KayentaConfig = DOCUMENTED) -> Verdict:
    """Run the stage on a stream: canary and baseline get `weight` each, production the rest."""
    canary = seen.canary(((0.0, config.weight),))
    baseline = (seen.stream.at_s >= 0.0) & ~canary & (seen.stream.draw < 2.0 * config.weight)
    start = (0.0, config.weight)
    now = config.interval_s
    until = min(config.lifetime_s, seen.horizon_s)
    if until >= now:
        _, *ours = seen.by_step(canary, until, config.step_s, on_canary=True)
        _, *theirs = seen.by_step(baseline, until, config.step_s, on_canary=False)
    while now <= until:
        points = round(now / config.step_s)
        high = [is_high(a[:points], b[:points]) for a, b in zip(ours, theirs, strict=True)]
        end = judge(score(high), last=now >= config.lifetime_s, config=config)
        if end is not End.RUNNING:
            return Verdict(end, now, (start, (now, 0.0 if end is End.ROLLED_BACK else 1.0)))
        now += config.interval_s
    return Verdict(End.RUNNING, seen.horizon_s, (start,))
