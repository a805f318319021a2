"""What the compared schemes see and what becomes of a rollout under them: the words that their models share."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.exposure.traffic import Fault, Flags, Floats, Stream

P99_LIMIT_S = 0.5
"""Flagger's documented limit on request duration, given to every scheme that needs one."""

P99_LIMIT_STALLS_S = 1.5
"""Its stand-in where stable's own p99 is a second: whoever runs such a service would not set half of that."""


class End(enum.StrEnum):
    """How a rollout ended within the horizon."""

    ROLLED_BACK = "rolled back"
    PROMOTED = "promoted"
    RUNNING = "still running"


Weights = Sequence[tuple[float, float]]
"""(from when in seconds, the canary's weight as a probability), in order, the first at 0."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a scheme did, and when it ended."""

    end: End
    at_s: float
    weights: Weights


@dataclass(frozen=True, slots=True)
class Outcome:
    """One rollout as its users met it.

    Attributes:
        verdict: what the scheme did.
        exposure: canary requests admitted from the fault's onset to the last one (to the horizon when there was no
            rollback after the onset: a promoted version serves everybody).
        false: rolled back before the fault began.

    """

    verdict: Verdict
    exposure: int
    false: bool

    @property
    def found(self) -> bool:
        """Whether the fault was found: a rollback, after the onset."""
        return self.verdict.end is End.ROLLED_BACK and not self.false


class Seen:
    """A stream with its outcomes in both arms, and counts of any window of it. Counts go by time of completion.

    Schemes read perfect, instantaneous counters here: no scrape interval, no extrapolation, no lost sample.
    """

    def __init__(self, stream: Stream, fault: Fault, horizon_s: float) -> None:
        self.stream, self.fault, self.horizon_s = stream, fault, horizon_s
        self.p99_limit_s = P99_LIMIT_STALLS_S if stream.stalls else P99_LIMIT_S
        yes, no = np.ones(len(stream.at_s), dtype=bool), np.zeros(len(stream.at_s), dtype=bool)
        self._as_canary = stream.outcomes(yes, fault)
        self._as_stable = stream.outcomes(no, fault)

    def canary(self, weights: Weights, part: slice = slice(None)) -> Flags:
        """Which requests go to the canary when its weight changes at these times."""
        starts, values = np.array([w[0] for w in weights]), np.array([w[1] for w in weights])
        place = np.searchsorted(starts, self.stream.at_s[part], side="right") - 1
        return np.asarray((place >= 0) & (self.stream.draw[part] < values[np.maximum(place, 0)]))

    def window(self, weights: Weights, since_s: float, until_s: float) -> Counts:
        """Counts of the canary's requests that were completed in (since, until], under these weights."""
        at = self.stream.at_s
        error, finding, latency = self._as_canary
        # Hardly an answer takes longer than a minute, so only arrivals of that minute and of the window matter.
        low, high = np.searchsorted(at, since_s - 60.0), np.searchsorted(at, until_s, side="right")
        part = slice(int(low), int(high))
        done = at[part] + latency[part]
        inside = self.canary(weights, part) & (done > since_s) & (done <= until_s)
        return Counts(
            int(inside.sum()),
            int(error[part][inside].sum()),
            int(finding[part][inside].sum()),
            latency[part][inside],
        )

    def by_step(
        self, arm: Flags, until_s: float, step_s: float, *, on_canary: bool
    ) -> tuple[NDArray[np.int64], Floats, Floats, Floats]:
        """Per step of time: completed requests, and error rate, finding rate and p99 latency (NaN where none)."""
        error, finding, latency = self._as_canary if on_canary else self._as_stable
        done = self.stream.at_s + latency
        inside = arm & (done > 0.0) & (done <= until_s)
        steps = round(until_s / step_s)
        place = np.minimum((done[inside] / step_s).astype(np.int64), steps - 1)
        n = np.bincount(place, minlength=steps)
        with np.errstate(invalid="ignore", divide="ignore"):
            errors = np.bincount(place, weights=error[inside], minlength=steps) / n
            findings = np.bincount(place, weights=finding[inside], minlength=steps) / n
        return n, errors, findings, _p99(place, latency[inside], n)

    def outcome(self, verdict: Verdict) -> Outcome:
        """Count the canary's requests from the onset on."""
        onset = self.fault.onset_s
        until = verdict.at_s if verdict.end is End.ROLLED_BACK else self.horizon_s
        inside = (self.stream.at_s >= onset) & (self.stream.at_s <= until)
        exposure = int((self.canary(verdict.weights) & inside).sum())
        return Outcome(verdict, exposure, false=verdict.end is End.ROLLED_BACK and verdict.at_s < onset)


@dataclass(frozen=True, slots=True)
class Counts:
    """One arm's completed requests in a window."""

    requests: int
    errors: int
    findings: int
    latencies_s: Floats

    @property
    def successes(self) -> float:
        """Share without an error; NaN without requests."""
        return 1.0 - self.errors / self.requests if self.requests else float("nan")

    @property
    def clean(self) -> float:
        """Share without a guardrail finding; NaN without requests."""
        return 1.0 - self.findings / self.requests if self.requests else float("nan")

    def p99_above(self, limit_s: float) -> bool:
        """Whether `histogram_quantile(0.99, ...)` is above a limit that is one of the histogram's bounds."""
        return float((self.latencies_s <= limit_s).sum()) < 0.99 * self.requests


def _p99(place: NDArray[np.int64], latency: Floats, n: NDArray[np.int64]) -> Floats:
    order = np.lexsort((latency, place))
    found = np.full(len(n), np.nan)
    some = n > 0
    ends = np.cumsum(n)
    rank = np.ceil(0.99 * n[some]).astype(np.int64) - 1
    found[some] = latency[order][ends[some] - n[some] + rank]
    return found
