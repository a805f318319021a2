"""Give the same traffic to every scheme and count: exposure and misses under faults, rollbacks without any.

Every stream is drawn from a seed of its own (the bench's, the shape, the run), so a run is the same whatever else runs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from benchmarks.exposure import production
from benchmarks.exposure.argo import DOCUMENTED as ARGO
from benchmarks.exposure.argo import HELD as ARGO_HELD
from benchmarks.exposure.argo import argo
from benchmarks.exposure.evidence import WEIGHT, Told, decisions, told
from benchmarks.exposure.flagger import flagger
from benchmarks.exposure.kayenta import SHORT, kayenta
from benchmarks.exposure.peers import End, Outcome, Seen, Verdict
from benchmarks.exposure.traffic import HEALTHY, QUIET, RATE, Fault, Shape, Stream, generate

Decision = tuple[str, float] | None

HORIZON_S = 10_800.0
"""Three hours: the lifetime of Spinnaker's canary stage, the longest of all."""

HEALTHY_S, HEALTHY_LATENCY_S = 2_400.0, 600.0
"""Length of the healthy rollouts given to Tidegate, and of the part in which latency is judged too (it costs most)."""

FIRST_LOOK_S = 900.0
"""Most faults are found within a quarter of an hour of their onset; only the other runs are simulated to the end."""

REPORT_DELAY_S = 0.1
"""From a bad outcome to weight 0 at the gateways: the 99th percentile that the product allows itself."""

TIDEGATE = "Tidegate, 10 %"
PEERS: dict[str, Callable[[Seen], Verdict]] = {
    "Argo Rollouts, 10 %": lambda seen: argo(seen, ARGO_HELD),
    "Argo Rollouts, 20 to 80 %": lambda seen: argo(seen, ARGO),
    "Flagger, 5 to 50 %": flagger,
    "Kayenta, 60 min runs": kayenta,
    "Kayenta, 10 min runs": lambda seen: kayenta(seen, SHORT),
}
SCHEMES = (TIDEGATE, *PEERS)

ONSET_S = 5_000.0 / (WEIGHT * RATE)
FAULTS = (
    Fault("errors 1 -> 5 %", errors=(0.01, 0.05)),
    Fault("errors 1 -> 10 %", errors=(0.01, 0.10)),
    Fault("errors 5 -> 10 %", errors=(0.05, 0.10)),
    Fault("errors 1 -> 5 % after 5,000 healthy", errors=(0.01, 0.05), onset_s=ONSET_S),
    Fault("latency x 1.5", slowdown=1.5),
    Fault("latency x 2", slowdown=2.0),
    Fault("findings 0.2 -> 2 %", findings=(0.002, 0.02)),
)
EVERYWHERE = tuple(f for f in FAULTS if f.name in {"errors 1 -> 5 %", "latency x 2", "findings 0.2 -> 2 %"})
"""The faults that every shape of traffic gets; steady traffic gets all."""


def cases() -> list[tuple[Shape, Fault]]:
    """Which faults are simulated in which traffic."""
    return [(s, f) for s in Shape for f in (FAULTS if s is Shape.STEADY else EVERYWHERE)]


def stream_of(shape: Shape, horizon_s: float, seed: int, run: int) -> Stream:
    """The stream of one run: the same for all schemes and all faults."""
    return generate(shape, horizon_s, np.random.default_rng([seed, list(Shape).index(shape), round(horizon_s), run]))


def evidence_of(shape: Shape, seed: int, run: int) -> dict[str, Told]:
    """What is told of one healthy rollout."""
    stream = stream_of(shape, HEALTHY_S, seed, run)
    return told(stream, HEALTHY, HEALTHY_S, latency_until_s=HEALTHY_LATENCY_S)


def verdict_of(decision: Decision) -> Verdict:
    """Tidegate's decision as a verdict at a fixed weight: without one the canary goes on at 10 %."""
    if decision is None:
        return Verdict(End.RUNNING, HORIZON_S, ((0.0, WEIGHT),))
    return Verdict(End.ROLLED_BACK, decision[1] + REPORT_DELAY_S, ((0.0, WEIGHT),))


@dataclass(frozen=True, slots=True)
class Agreement:
    """Rollouts that were given to the product's ledger as well, and those of them that it decided otherwise."""

    rollouts: int = 0
    otherwise: int = 0

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(self.rollouts + other.rollouts, self.otherwise + other.otherwise)


def agreement(rollouts: list[dict[str, Told]], found: list[Decision]) -> Agreement:
    """Ask the product's ledger about some rollouts: the same signal at the same unit, or none."""
    otherwise = sum(production.decision(r) != d for r, d in zip(rollouts, found, strict=True))
    return Agreement(len(rollouts), otherwise)


@dataclass(frozen=True, slots=True)
class FaultResult:
    """One scheme under one fault in one shape of traffic.

    Attributes:
        runs: that met the fault, that is were not rolled back before it.
        false: rolled back before it.
        found: share of the runs that were rolled back within the horizon.
        exposure_mean: canary requests from the onset on, a fault that is not found counting to the horizon.
        exposure_median: the same.
        exposure_p95: the same.
        minutes: median time from the onset to the rollback, where there was one.

    """

    shape: Shape
    fault: str
    scheme: str
    runs: int
    false: int
    found: float
    exposure_mean: float
    exposure_median: float
    exposure_p95: float
    minutes: float


def under_fault(shape: Shape, fault: Fault, runs: int, verify: int, seed: int) -> tuple[list[FaultResult], Agreement]:
    """All schemes on the same `runs` streams."""
    outcomes: dict[str, list[Outcome]] = {scheme: [] for scheme in SCHEMES}
    known: list[dict[str, Told]] = []
    first_s = min(fault.onset_s + FIRST_LOOK_S, HORIZON_S)
    for run in range(runs):
        stream = stream_of(shape, HORIZON_S, seed, run)
        seen = Seen(stream, fault, HORIZON_S)
        for scheme, judge in PEERS.items():
            outcomes[scheme].append(seen.outcome(judge(seen)))
        known.append(told(stream, fault, first_s))
    found = decisions(known)
    agreed = agreement(known[:verify], found[:verify])
    for run, decision in enumerate(found):
        stream = stream_of(shape, HORIZON_S, seed, run)
        if decision is None and first_s < HORIZON_S:
            decision = decisions([told(stream, fault, HORIZON_S)])[0]
        outcomes[TIDEGATE].append(Seen(stream, fault, HORIZON_S).outcome(verdict_of(decision)))
    return [_summary(shape, fault, scheme, outcomes[scheme]) for scheme in SCHEMES], agreed


def _summary(shape: Shape, fault: Fault, scheme: str, outcomes: list[Outcome]) -> FaultResult:
    met = [o for o in outcomes if not o.false]
    exposures = np.array([float(o.exposure) for o in met] or [math.nan])
    times = [o.verdict.at_s - fault.onset_s for o in met if o.found]
    return FaultResult(
        shape=shape,
        fault=fault.name,
        scheme=scheme,
        runs=len(met),
        false=len(outcomes) - len(met),
        found=sum(o.found for o in met) / len(met) if met else math.nan,
        exposure_mean=float(exposures.mean()),
        exposure_median=float(np.median(exposures)),
        exposure_p95=float(np.quantile(exposures, 0.95)),
        minutes=float(np.median(times)) / 60.0 if times else math.nan,
    )


@dataclass(frozen=True, slots=True)
class FalseResult:
    """One scheme without any fault: rollouts, rollbacks, which signals they came from, and the 95 % interval."""

    shape: Shape
    scheme: str
    errors: float
    rollouts: int
    rollbacks: int
    by_signal: dict[str, int]
    low: float
    high: float


def without_fault(
    shape: Shape, rollouts: int, peers_rollouts: int, verify: int, seed: int
) -> Iterator[tuple[FalseResult, Agreement]]:
    """Healthy rollouts under every scheme; Tidegate gets more of them, and shorter ones."""
    known = [evidence_of(shape, seed, run) for run in range(rollouts)]
    found = decisions(known)
    by_signal = Counter(d[0] for d in found if d is not None)
    yield _false(shape, TIDEGATE, HEALTHY, rollouts, dict(by_signal)), agreement(known[:verify], found[:verify])
    hits: Counter[tuple[str, Fault]] = Counter()
    for run in range(peers_rollouts):
        stream = stream_of(shape, HORIZON_S, seed, run)
        for fault in (HEALTHY, QUIET):
            seen = Seen(stream, fault, HORIZON_S)
            hits.update((s, fault) for s, judge in PEERS.items() if judge(seen).end is End.ROLLED_BACK)
    for scheme in PEERS:
        for fault in (HEALTHY, QUIET):
            yield _false(shape, scheme, fault, peers_rollouts, {"any": hits[scheme, fault]}), Agreement()


def _false(shape: Shape, scheme: str, fault: Fault, rollouts: int, by_signal: dict[str, int]) -> FalseResult:
    hits = sum(by_signal.values())
    return FalseResult(shape, scheme, fault.errors[0], rollouts, hits, by_signal, *clopper_pearson(hits, rollouts))


def clopper_pearson(hits: int, runs: int, level: float = 0.95) -> tuple[float, float]:
    """The exact interval of a binomial share: no rate outside it would give so few or so many hits.

    >>> [round(x, 4) for x in clopper_pearson(0, 2_000)]
    [0.0, 0.0018]
    """
    tail = (1.0 - level) / 2.0
    low = 0.0 if hits == 0 else _bisect(lambda p: 1.0 - _at_most(hits - 1, runs, p) < tail)
    high = 1.0 if hits == runs else _bisect(lambda p: _at_most(hits, runs, p) > tail)
    return low, high


def _bisect(below: Callable[[float], bool]) -> float:
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2.0
        low, high = (middle, high) if below(middle) else (low, middle)
    return (low + high) / 2.0


def _at_most(hits: int, runs: int, p: float) -> float:
    """P(binomial(runs, p) <= hits)."""
    if p <= 0.0 or p >= 1.0:
        return 1.0 if p <= 0.0 or hits >= runs else 0.0
    terms = [
        math.lgamma(runs + 1) - math.lgamma(k + 1) - math.lgamma(runs - k + 1)
        + k * math.log(p) + (runs - k) * math.log1p(-p)
        for k in range(hits + 1)
    ]  # fmt: skip
    return min(1.0, math.fsum(math.exp(t) for t in terms))
