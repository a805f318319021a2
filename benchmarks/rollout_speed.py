"""How long the controller's arithmetic takes: folding events and totals, reading signals, deciding.

    python benchmarks/rollout_speed.py            # about ten seconds
    python benchmarks/rollout_speed.py --json

Everything runs in one process on one core. Figures are processor time, the best of several rounds, so that other work
on the machine disturbs them less; targets are printed beside them, and the exit code is 1 when one is missed.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rollout.actions import Deployed
from rollout.analysis.ledger import EvidenceIncrement, Ledger
from rollout.decide import decide
from rollout.observation import Observation
from rollout.observe import observe
from rollout.specs import RolloutSpec, parse_spec
from rollout.status import ModelStatus, RolloutState, Stage
from rollout.traffic_routers.base import RouterView
from rollout.workloads.base import WorkloadState, WorkloadStatus
from serving.outcomes import LEVELS, Event, Signal, Total
from serving.specs import EngineKind, RevisionSpec
from serving.traffic import Role

NOW = 1_000_000.0
ROUNDS = 5
EVERY_GATEWAY_SIGNAL = tuple(s.value for s in Signal)


@dataclass(frozen=True)
class Figure:
    """One line of the table."""

    what: str
    value: float
    unit: str
    target: float | None = None

    @property
    def missed(self) -> bool:
        """Whether a target was given and not reached (all targets are upper limits)."""
        return self.target is not None and self.value > self.target


def deployed(version: str) -> Deployed:
    """A version that nothing is started for."""
    digest = f"{int(version.replace('.', '')):064x}"
    revision = RevisionSpec(
        model="chat", version=version, manifest_sha256=digest, engine=EngineKind.SIMULATED, source="sim:?"
    )
    return Deployed(revision=revision)


OLD, NEW = deployed("1.0.0"), deployed("1.0.1")


def spec_of(signals: int) -> RolloutSpec:
    """A canary spec with that many signals: those of every gateway first, then guardrails."""
    names = [*EVERY_GATEWAY_SIGNAL, *(f"guardrail/check-{i}" for i in range(signals))][:signals]
    return parse_spec({"model": "chat", "version": "1.0.1", "analysis": {"signals": [{"name": n} for n in names]}})


def event(sequence: int, signal: str, rng: random.Random) -> Event:
    """One event of either arm at 10 %."""
    canary = rng.random() < 0.1
    at = NOW + sequence
    return Event(
        sequence=sequence, model="chat", rollout="r", signal=signal, arm=Role.CANARY if canary else Role.STABLE,
        digest=(NEW if canary else OLD).digest, weight=10, admission=sequence * 20, admitted_at=at, settled_at=at + 0.5,
        session=f"{rng.getrandbits(96):024x}", request_index=1 + sequence % 5,
        level=LEVELS[sequence % 4] if signal.startswith("slow") else "",
    )  # fmt: skip


def totals(n: int, names: tuple[str, ...]) -> EvidenceIncrement:
    """The n-th report of one gateway: both revisions' counters, grown since the last one."""
    rows = tuple(
        Total(
            model="chat", rollout="r", digest=d.digest, role=role, weight=10, admitted=n * per, settled=n * per,
            first_sights=n * per, settled_events=dict.fromkeys(names, n // 50), first_admitted_at=NOW,
            last_admitted_at=NOW + n,
        )
        for d, role, per in ((NEW, Role.CANARY, 1), (OLD, Role.STABLE, 9))
    )  # fmt: skip
    return EvidenceIncrement(rollout="r", gateway="g", boot="b", totals=rows, settled_through=n * 10)


def ledger_of(spec: RolloutSpec) -> Ledger:
    """An empty ledger at 10 %."""
    ledger = Ledger("r", spec, canary=NEW.digest, stable=OLD.digest)
    ledger.weight = 10
    return ledger


def best_s(action: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Seconds of processor time of the fastest of several runs."""
    found = []
    for _ in range(rounds):
        began = time.process_time()
        action()
        found.append(time.process_time() - began)
    return min(found)


def folding(signal: str, count: int = 5_000) -> float:
    """Microseconds to fold one event, each in an increment of its own."""
    rng = random.Random(1)
    increments = [
        EvidenceIncrement(rollout="r", gateway="g", boot="b", events=(event(i, signal, rng),))
        for i in range(1, count + 1)
    ]

    def fold() -> None:
        ledger = ledger_of(spec_of(20))
        for increment in increments:
            ledger.add(increment)

    return 1e6 * best_s(fold) / count


def folding_totals(count: int = 5_000) -> float:
    """Microseconds to fold one gateway's report of totals."""
    increments = [totals(n, ("error", "length-stop")) for n in range(1, count + 1)]

    def fold() -> None:
        ledger = ledger_of(spec_of(20))
        for increment in increments:
            ledger.add(increment)

    return 1e6 * best_s(fold) / count


def status_of(spec: RolloutSpec) -> ModelStatus:
    """A model in the middle of its first step."""
    rollout = RolloutState(
        id="r", spec=spec, target=NEW, salt="s", stage=Stage.STEPPING, step=0, weight=5,
        started_at=NOW, step_started_at=NOW,
    )  # fmt: skip
    return ModelStatus(model="chat", stable=OLD, rollout=rollout)


def world() -> tuple[RouterView, dict[str, WorkloadStatus]]:
    """One gateway that follows, and both engines ready."""
    workloads = {
        d.application: WorkloadStatus(application=d.application, state=WorkloadState.READY, ready_replicas=1)
        for d in (OLD, NEW)
    }
    view = RouterView(gateways=1, applied=True, ready_endpoints=dict.fromkeys(workloads, 1), in_flight={})
    return view, workloads


def deciding(signals: int) -> tuple[float, float]:
    """Milliseconds of reading all signals after new totals and deciding; and of the decision alone."""
    spec = spec_of(signals)
    ledger, status, rng = ledger_of(spec), status_of(spec), random.Random(2)
    for i, signal in enumerate(spec.analysis.signals * 20, start=1):
        ledger.add(EvidenceIncrement(rollout="r", gateway="g", boot="b", events=(event(i, signal.name, rng),)))
    view, workloads = world()
    reports = [totals(n, ("error",)) for n in range(100, 100 + 40 * ROUNDS)]
    names = {OLD.application, NEW.application}
    remaining = iter(reports)

    def once() -> Observation:
        for _ in range(20):
            ledger.add(next(remaining))
            seen = observe(view, workloads, ledger, names)
            decide(spec, status, seen, NOW + 1)
        return seen

    seen = once()

    def decide_only() -> None:
        for _ in range(200):
            decide(spec, status, seen, NOW + 1)

    return 1e3 * best_s(once) / 20, 1e3 * best_s(decide_only) / 200


def unchanged(models: int, signals: int) -> float:
    """Milliseconds to observe and decide for many models of which nothing new is known."""
    spec = spec_of(signals)
    status = status_of(spec)
    ledgers = [ledger_of(spec) for _ in range(models)]
    for ledger in ledgers:
        ledger.add(totals(100, ("error",)))
    view, workloads = world()
    names = {OLD.application, NEW.application}

    def tick() -> None:
        for ledger in ledgers:
            decide(spec, status, observe(view, workloads, ledger, names), NOW + 1)

    tick()
    return 1e3 * best_s(tick)


def measure() -> list[Figure]:
    """Every figure."""
    read_ms, decide_ms = deciding(20)
    error_us, slow_us, totals_us = folding("error"), folding("slow-tokens"), folding_totals()
    return [
        Figure("read 20 signals after new totals, and decide", read_ms, "ms", 1.0),
        Figure("decide alone, 20 signals", decide_ms, "ms", 1.0),
        Figure("fold one error event", error_us, "us", 50.0),
        Figure("error events folded", 1e6 / error_us, "per s"),
        Figure("fold one latency event", slow_us, "us", 50.0),
        Figure("fold one report of totals (two revisions)", totals_us, "us", 30.0),
        Figure("reports of totals folded", 1e6 / totals_us, "per s"),
        Figure("observe and decide 1,000 models, 20 signals each, nothing new", unchanged(1_000, 20), "ms", 100.0),
    ]


def main() -> int:
    """Print the table; 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    arguments = parser.parse_args()
    figures = measure()
    if arguments.json:
        sys.stdout.write(json.dumps([asdict(f) for f in figures], indent=2) + "\n")
    else:
        table = Table(title=f"Rollout arithmetic, processor time, best of {ROUNDS}")
        table.add_column("what")
        for column in ("figure", "unit", "target"):
            table.add_column(column, justify="right")
        for f in figures:
            value = f"{f.value:,.0f}" if f.value >= 1_000 else f"{f.value:.3g}"
            table.add_row(f.what, value, f.unit, "" if f.target is None else f"<= {f.target:g}")
        Console(width=None if sys.stdout.isatty() else 120).print(table)
    return int(any(f.missed for f in figures))


if __name__ == "__main__":
    raise SystemExit(main())
