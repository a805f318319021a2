"""The exposure ratio: canary requests until a rollback over the fewest that any test with the same promise needs.

Independent requests, one signal (errors) at full alpha. Only events move the test, so the requests between two events
are drawn as one number: a geometric count, of which a binomial part is the canary's. That is exact, and far cheaper
than drawing each request. Reporting delay adds weight * rate * delay requests and is left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.exposure.batch import Batch
from monitoring.sequential.events import EProcessConfig, q
from monitoring.sequential.planning import least_canary_requests

GIVE_UP_CANARY_REQUESTS = 200_000
"""A fault that is not found by then counts as this many: so a miss shows in the mean."""


@dataclass(frozen=True, slots=True)
class Case:
    """One fault: stable's error rate, the canary's, healthy canary requests before it, and the ratio's limit."""

    stable: float
    canary: float
    healthy_before: int = 0
    limit: float | None = None

    @property
    def name(self) -> str:
        """For the table, such as `1 -> 5 %`."""
        after = f", after {self.healthy_before:,} healthy" if self.healthy_before else ""
        return f"{100 * self.stable:g} -> {100 * self.canary:g} %{after}"


CASES = (
    Case(0.01, 0.05, limit=1.25),
    Case(0.01, 0.10, limit=1.32),
    Case(0.05, 0.10, limit=1.40),
    Case(0.01, 0.02),
    Case(0.01, 0.50),
    Case(0.01, 0.05, healthy_before=5_000, limit=4.0),
)


@dataclass(frozen=True, slots=True)
class Ratio:
    """What a case's runs gave. Requests are the canary's; the ratio and its standard error are of the mean."""

    case: Case
    runs: int
    bound: float
    mean: float
    median: float
    p95: float
    ratio: float
    standard_error: float
    false_before_onset: int

    @property
    def missed(self) -> bool:
        """Whether the limit is exceeded by more than two standard errors."""
        return self.case.limit is not None and self.ratio - 2.0 * self.standard_error > self.case.limit


def exposures(
    case: Case, runs: int, weight: float, config: EProcessConfig, rng: np.random.Generator
) -> tuple[NDArray[np.int64], int]:
    """Canary requests from the onset to the rollback, by run; and how many runs were rolled back before the onset.

    Those are false rollbacks: no fault meets them, so they are left out of the exposure.
    """
    batch = Batch(config, weight, runs)
    spent = np.zeros(runs, dtype=np.int64)
    limit = case.healthy_before + GIVE_UP_CANARY_REQUESTS
    found: list[NDArray[np.int64]] = []
    early = 0
    while len(spent):
        before = spent < case.healthy_before
        canary, passed = _events(case.stable, np.where(before, case.stable, case.canary), weight, rng)
        # No event carries over: the first one after the onset is drawn anew, which a geometric count allows.
        beyond = before & (spent + passed > case.healthy_before)
        spent = np.where(beyond, case.healthy_before, spent + passed)
        again = beyond & (case.healthy_before > 0)
        batch.update(canary, only=~again)
        crossed = batch.crossed & ~again
        over = crossed | (spent >= limit)
        found.append(np.minimum(spent[over & ~before], limit) - case.healthy_before)
        early += int((crossed & before).sum())
        batch.keep(~over)
        spent = spent[~over]
    return np.concatenate(found), early


def _events(
    stable: float, rates: NDArray[np.float64], weight: float, rng: np.random.Generator
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """For each run the next event: whether it is the canary's, and canary requests since the last one, it included."""
    either = weight * rates + (1.0 - weight) * stable
    canary = rng.random(len(rates)) < q(1.0, weight) * rates / either
    quiet = weight * (1.0 - rates) / (1.0 - either)
    return canary, rng.binomial(rng.geometric(either) - 1, quiet) + canary


def measure(case: Case, runs: int, weight: float, alpha: float, rng: np.random.Generator, cash: float) -> Ratio:
    """Simulate a case."""
    found, early = exposures(case, runs, weight, EProcessConfig(alpha=alpha, cash=cash), rng)
    bound = least_canary_requests(case.stable, case.canary, weight, alpha)
    return Ratio(
        case=case,
        runs=len(found),
        bound=bound,
        mean=float(found.mean()),
        median=float(np.median(found)),
        p95=float(np.quantile(found, 0.95)),
        ratio=float(found.mean()) / bound,
        standard_error=float(found.std(ddof=1)) / math.sqrt(len(found)) / bound,
        false_before_onset=early,
    )
