"""How many users meet a broken canary before it is taken back: beside the fewest possible, and beside other tools.

    python -m benchmarks rollout_exposure             # about six minutes on one core
    python -m benchmarks rollout_exposure --quick     # under 40 seconds, rough figures

Three parts: the exposure ratio (one signal at full alpha, over the lower bound for any test); faults in the same
generated traffic under Tidegate, Argo Rollouts, Flagger and Kayenta as their documentation sets them up; and healthy
rollouts that were taken back. docs/benchmarks/rollout_exposure.md says how to read them. Tables go to stdout; JSON, a
plot and the page's tables to `--out`. Exit 1 when a limit is missed, when false rollbacks are surely above alpha, or
when the product's ledger decides otherwise than the simulation of it.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress

from benchmarks.exposure.campaign import PEERS, cases, under_fault, without_fault
from benchmarks.exposure.evidence import ALPHA, WEIGHT
from benchmarks.exposure.ratios import CASES, measure
from benchmarks.exposure.report import Report, fill_page, save, show
from benchmarks.exposure.traffic import Shape
from monitoring.sequential.events import EProcessConfig


@dataclass(frozen=True, slots=True)
class Size:
    """How much to simulate: rollouts by part, and how many of Tidegate's also go through the product's ledger."""

    ratio_runs: int
    fault_runs: int
    healthy: int
    healthy_of_peers: int
    verified_faults: int
    verified_healthy: int


FULL = Size(20_000, 40, 2_000, 100, 3, 20)
QUICK = Size(1_000, 2, 40, 2, 1, 1)


def run(size: Size, seed: int) -> Report:
    """Simulate everything, with progress on stderr."""
    report = Report(WEIGHT, ALPHA, seed)
    began = time.monotonic()
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("exposure ratios", total=len(CASES) + len(cases()) + len(Shape))
        for number, case in enumerate(CASES):
            rng = np.random.default_rng([seed, number])
            report.ratios.append(measure(case, size.ratio_runs, WEIGHT, ALPHA, rng, EProcessConfig(ALPHA).cash))
            progress.advance(task)
        for shape, fault in cases():
            progress.update(task, description=f"{fault.name}, {shape}")
            found, agreed = under_fault(shape, fault, size.fault_runs, size.verified_faults, seed)
            report.faults += found
            report.agreement += agreed
            progress.advance(task)
        for shape in Shape:
            progress.update(task, description=f"healthy, {shape}")
            healthy = without_fault(shape, size.healthy, size.healthy_of_peers, size.verified_healthy, seed)
            for result, agreed in healthy:
                report.healthy.append(result)
                report.agreement += agreed
            progress.advance(task)
    report.seconds = time.monotonic() - began
    return report


def main() -> int:
    """Run, show, save; 1 when something is not as promised."""
    arguments = _arguments()
    report = run(arguments.size, arguments.seed)
    show(report, Console(width=None if sys.stdout.isatty() else 140))
    written = save(report, arguments.out)
    sys.stdout.write(f"written: {', '.join(map(str, written))}\n")
    if arguments.page is not None:
        fill_page(report, arguments.page)
    complaints = report.complaints()
    for complaint in complaints:
        sys.stderr.write(f"{complaint}\n")
    return int(bool(complaints))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rollouts: under 40 seconds, rough figures")
    parser.add_argument("--ratio-runs", type=int, help=f"faulty rollouts per ratio (default {FULL.ratio_runs:,})")
    parser.add_argument("--fault-runs", type=int, help=f"streams per fault and traffic (default {FULL.fault_runs})")
    parser.add_argument("--healthy", type=int, help=f"healthy rollouts per traffic (default {FULL.healthy:,})")
    parser.add_argument(
        "--healthy-of-peers", type=int, help=f"the {len(PEERS)} peers' (default {FULL.healthy_of_peers})"
    )
    parser.add_argument("--verified-faults", type=int, help="of the fault runs, also through the product's ledger")
    parser.add_argument("--verified-healthy", type=int, help="of the healthy rollouts, also through the ledger")
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks"), help="folder for the JSON and the plot")
    parser.add_argument("--page", type=Path, help="also replace the tables of this page, and the plot beside it")
    parser.add_argument("--seed", type=int, default=20260101, help="of the generators")
    arguments = parser.parse_args()
    base = QUICK if arguments.quick else FULL
    wanted = {name: getattr(arguments, name) for name in Size.__slots__}
    arguments.size = Size(**{k: getattr(base, k) if v is None else v for k, v in wanted.items()})
    for name in ("ratio_runs", "fault_runs", "healthy", "healthy_of_peers"):
        if getattr(arguments.size, name) < 2:
            parser.error(f"--{name.replace('_', '-')} is {getattr(arguments.size, name)}; give 2 or more")
    return arguments


if __name__ == "__main__":
    raise SystemExit(main())
