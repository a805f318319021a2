"""How many users meet a broken canary before it is taken back, beside the fewest that any method needs.

Simulates independent requests with one signal (errors) at full alpha through the rollback test that ships. Exposure
is the canary requests admitted from the fault's onset to the last one admitted; the ratio is over
`planning.least_canary_requests`. Reporting delay adds weight * rate * delay requests and is left out.

    python benchmarks/rollout_exposure.py                    # about 20 seconds
    python benchmarks/rollout_exposure.py --runs 20000 --healthy-runs 10000

Only events move the test, so the requests between two events are drawn as one number: a geometric count, of which
a binomial part is the canary's. That is exact, and a hundred times faster than drawing each request.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from monitoring.sequential.events import CappedMixture, EProcessConfig, EProcessState, q
from monitoring.sequential.planning import least_canary_requests

GIVE_UP_CANARY_REQUESTS = 200_000
"""A fault that is not found by then counts as this many: so a miss shows in the mean."""


@dataclass(frozen=True)
class Case:
    """One fault: stable's error rate, the canary's, and healthy canary requests before it."""

    stable: float
    canary: float
    healthy_before: int = 0
    target: float | None = None

    @property
    def name(self) -> str:
        """For the table, such as `1 -> 5 %`."""
        after = f", after {self.healthy_before:,} healthy" if self.healthy_before else ""
        return f"{100 * self.stable:g} -> {100 * self.canary:g} %{after}"


CASES = (
    Case(0.01, 0.05, target=1.25),
    Case(0.01, 0.10, target=1.32),
    Case(0.05, 0.10, target=1.40),
    Case(0.01, 0.02),
    Case(0.01, 0.50),
    Case(0.01, 0.05, healthy_before=5_000, target=4.0),
)


class Traffic:
    """The events of a stream of independent requests, with the canary requests that went by."""

    def __init__(self, rng: np.random.Generator, weight: float, stable: float, canary: float) -> None:
        self._rng = rng
        self._rate = weight * canary + (1.0 - weight) * stable
        self._canary_event = q(canary / stable, weight)
        self._canary_quiet = weight * (1.0 - canary) / (1.0 - self._rate)
        self._buffer: list[tuple[bool, int]] = []

    def event(self) -> tuple[bool, int]:
        """The next event: whether it is the canary's, and canary requests since the last one (itself included)."""
        if not self._buffer:
            ours = self._rng.random(64) < self._canary_event
            quiet = self._rng.binomial(self._rng.geometric(self._rate, 64) - 1, self._canary_quiet)
            self._buffer = list(zip(ours.tolist(), (quiet + ours).tolist(), strict=True))
        return self._buffer.pop()


def run_until(
    test: CappedMixture, state: EProcessState, traffic: Traffic, weight: float, limit: int
) -> tuple[EProcessState, int]:
    """Feed events until a rollback or until `limit` canary requests went by; the state, and the canary requests."""
    requests = 0
    while not state.crossed:
        canary, passed = traffic.event()
        if requests + passed > limit:
            return state, limit
        requests += passed
        state = test.update(state, canary, weight)
    return state, requests


def exposures(
    case: Case, runs: int, weight: float, alpha: float, rng: np.random.Generator, cash: float
) -> tuple[np.ndarray, int]:
    """Canary requests from the onset to the rollback, by run; and how many runs were rolled back before the onset.

    Those are false rollbacks: they are drawn again, so that every run counted meets the fault.
    """
    test = CappedMixture(EProcessConfig(alpha=alpha, cash=cash))
    counted: list[int] = []
    early = 0
    while len(counted) < runs:
        state = test.start()
        if case.healthy_before:
            healthy = Traffic(rng, weight, case.stable, case.stable)
            state, _ = run_until(test, state, healthy, weight, case.healthy_before)
            if state.crossed:
                early += 1
                continue
        faulty = Traffic(rng, weight, case.stable, case.canary)
        counted.append(run_until(test, state, faulty, weight, GIVE_UP_CANARY_REQUESTS)[1])
    return np.array(counted), early


def false_rollbacks(
    rate: float, runs: int, horizon: int, weight: float, alpha: float, rng: np.random.Generator, cash: float
) -> int:
    """Healthy rollouts of `horizon` canary requests each that were rolled back."""
    test = CappedMixture(EProcessConfig(alpha=alpha, cash=cash))
    return sum(
        run_until(test, test.start(), Traffic(rng, weight, rate, rate), weight, horizon)[0].crossed for _ in range(runs)
    )


def binomial_interval(hits: int, runs: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    p = hits / runs
    centre = (p + z * z / (2 * runs)) / (1 + z * z / runs)
    half = z * math.sqrt(p * (1 - p) / runs + z * z / (4 * runs * runs)) / (1 + z * z / runs)
    return max(0.0, centre - half), min(1.0, centre + half)


def main() -> int:
    """Print both tables; 1 when a target is missed by more than two standard errors."""
    arguments = _arguments()
    weight, alpha = arguments.weight, arguments.alpha
    rng = np.random.default_rng(arguments.seed)
    began = time.monotonic()
    table = Table(title=f"Exposure, {100 * weight:g} % canary, alpha {100 * alpha:g} %, N = {arguments.runs:,} each")
    for column in (
        "errors",
        "lower bound",
        "mean",
        "median",
        "p95",
        "ratio (mean)",
        "s.e.",
        "ratio (median)",
        "target",
    ):
        table.add_column(column, justify="left" if column == "errors" else "right")
    missed = False
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("faults", total=len(CASES) + 1)
        for case in CASES:
            found, _ = exposures(case, arguments.runs, weight, alpha, rng, arguments.cash)
            bound = least_canary_requests(case.stable, case.canary, weight, alpha)
            ratio = float(found.mean()) / bound
            error = float(found.std(ddof=1)) / math.sqrt(len(found)) / bound
            missed |= case.target is not None and ratio - 2 * error > case.target
            table.add_row(
                case.name,
                f"{bound:,.0f}",
                f"{found.mean():,.0f}",
                f"{np.median(found):,.0f}",
                f"{np.quantile(found, 0.95):,.0f}",
                f"{ratio:.3f}",
                f"{error:.3f}",
                f"{np.median(found) / bound:.2f}",
                "" if case.target is None else f"<= {case.target:g}",
            )
            progress.advance(task)
        progress.update(task, description="healthy rollouts")
        healthy = (arguments.healthy_runs, arguments.horizon, weight, alpha, rng, arguments.cash)
        hits = false_rollbacks(0.01, *healthy)
    low, high = binomial_interval(hits, arguments.healthy_runs)
    missed |= low > alpha
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    console.print(
        f"False rollbacks, 1 % errors in both arms, {arguments.horizon:,} canary requests: {hits} of "
        f"{arguments.healthy_runs:,} = {100 * hits / arguments.healthy_runs:.2f} % "
        f"(95 %: {100 * low:.2f} to {100 * high:.2f} %), promised at most {100 * alpha:g} %"
    )
    console.print(f"{time.monotonic() - began:.0f} s, seed {arguments.seed}")
    return int(missed)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2_000, help="faulty rollouts per case (default 2000)")
    parser.add_argument("--healthy-runs", type=int, default=2_000, help="healthy rollouts (default 2000)")
    parser.add_argument("--horizon", type=int, default=5_000, help="canary requests of a healthy one (default 5000)")
    parser.add_argument("--weight", type=float, default=0.10, help="canary weight, 0 to 1 (default 0.10)")
    parser.add_argument("--alpha", type=float, default=0.01, help="chance of a false rollback (default 0.01)")
    parser.add_argument("--cash", type=float, default=EProcessConfig(0.01).cash, help="wealth held back at the start")
    parser.add_argument("--seed", type=int, default=20260101, help="of the generator")
    arguments = parser.parse_args()
    if min(arguments.runs, arguments.healthy_runs) < 2:
        parser.error("--runs and --healthy-runs must be 2 or more")
    return arguments


if __name__ == "__main__":
    raise SystemExit(main())
