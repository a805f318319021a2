"""What a run of the bench found: tables for people, JSON for programs, a plot."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import matplotlib as mpl
from rich.console import Console
from rich.table import Table

from benchmarks.exposure import markdown
from benchmarks.exposure.campaign import SCHEMES, TIDEGATE, Agreement, FalseResult, FaultResult
from benchmarks.exposure.ratios import Ratio
from benchmarks.exposure.traffic import HEALTHY, Shape

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes


@dataclass(slots=True)
class Report:
    """All results of one run of the bench."""

    weight: float
    alpha: float
    seed: int
    ratios: list[Ratio] = field(default_factory=list)
    faults: list[FaultResult] = field(default_factory=list)
    healthy: list[FalseResult] = field(default_factory=list)
    agreement: Agreement = field(default_factory=Agreement)
    seconds: float = 0.0

    def complaints(self) -> list[str]:
        """What should not be: limits missed, more false rollbacks than promised, a ledger of another opinion."""
        found = [
            f"exposure ratio {r.ratio:.3f} for {r.case.name} is above {r.case.limit:g}" for r in self.ratios if r.missed
        ]
        found += [
            f"{r.rollbacks} of {r.rollouts:,} healthy rollouts rolled back in {r.shape} traffic: surely above "
            f"{100 * self.alpha:g} %"
            for r in self.healthy
            if r.scheme == TIDEGATE and r.low > self.alpha
        ]
        if self.agreement.otherwise:
            found.append(
                f"the ledger decided otherwise in {self.agreement.otherwise} of {self.agreement.rollouts} rollouts: "
                "bring benchmarks/exposure/evidence.py in line with rollout/analysis/units.py"
            )
        return found


def ratio_table(report: Report) -> Table:
    """Exposure ratios beside their limits."""
    table = Table(
        title=f"Exposure ratio, {100 * report.weight:g} % canary, alpha {100 * report.alpha:g} %, "
        f"{report.ratios[0].runs:,} runs each"
    )
    _columns(table, "errors", "lower bound", "mean", "median", "p95", "mean ratio", "s.e.", "median ratio", "limit")
    for r in report.ratios:
        limit = "" if r.case.limit is None else f"<= {r.case.limit:g}"
        table.add_row(
            r.case.name, f"{r.bound:,.0f}", f"{r.mean:,.0f}", f"{r.median:,.0f}", f"{r.p95:,.0f}",
            f"{r.ratio:.3f}", f"{r.standard_error:.3f}", f"{r.median / r.bound:.2f}", limit,
        )  # fmt: skip
    return table


def fault_table(report: Report, shape: Shape) -> Table:
    """One shape's faults: every scheme's exposure, time and misses."""
    results = [r for r in report.faults if r.shape is shape]
    table = Table(title=f"Faults, {shape} traffic, {results[0].runs + results[0].false} runs each")
    _columns(table, "fault", "scheme", "found", "canary requests: mean", "median", "p95", "minutes", "false before")
    before = ""
    for r in results:
        table.add_row(
            "" if r.fault == before else r.fault,
            r.scheme,
            _share(r.found),
            _number(r.exposure_mean),
            _number(r.exposure_median),
            _number(r.exposure_p95),
            "-" if math.isnan(r.minutes) else f"{r.minutes:.1f}",
            str(r.false) if r.false else "",
            end_section=r.scheme == SCHEMES[-1],
        )
        before = r.fault
    return table


def false_table(report: Report) -> Table:
    """Healthy rollouts that were rolled back."""
    table = Table(title="Healthy rollouts rolled back")
    _columns(
        table, "traffic", "scheme", "errors in both arms", "rollouts", "rolled back", "share", "95 % interval", "by"
    )
    before: tuple[str, str] = ("", "")
    for i, r in enumerate(report.healthy):
        last = i + 1 == len(report.healthy) or report.healthy[i + 1].shape is not r.shape
        by = ", ".join(f"{k} {v}" for k, v in sorted(r.by_signal.items())) if r.scheme == TIDEGATE else ""
        table.add_row(
            "" if r.shape == before[0] else r.shape,
            "" if (r.shape, r.scheme) == before else r.scheme,
            f"{100 * r.errors:g} %",
            f"{r.rollouts:,}",
            str(r.rollbacks),
            f"{100 * r.rollbacks / r.rollouts:.2f} %",
            f"{100 * r.low:.2f} to {100 * r.high:.2f} %",
            by,
            end_section=last,
        )
        before = (r.shape, r.scheme)
    return table


def show(report: Report, console: Console) -> None:
    """All tables, and whether the product's own ledger agreed."""
    console.print(ratio_table(report))
    for shape in dict.fromkeys(r.shape for r in report.faults):
        console.print(fault_table(report, shape))
    console.print(false_table(report))
    same = report.agreement.rollouts - report.agreement.otherwise
    console.print(
        f"The product's ledger, given the same events: the same decision at the same unit in {same:,} of "
        f"{report.agreement.rollouts:,} rollouts."
    )
    console.print(f"{report.seconds:.0f} s, seed {report.seed}")


def save(report: Report, folder: Path) -> tuple[Path, Path, Path]:
    """Write rollout_exposure.json, .svg and .md (the tables of the documentation's page); where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    data, picture, tables = (folder / f"rollout_exposure.{kind}" for kind in ("json", "svg", "md"))
    data.write_text(json.dumps(_plain(asdict(report)), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    plot(report, picture)
    tables.write_text("\n".join(markdown_tables(report).values()), encoding="utf-8")
    return data, picture, tables


def markdown_tables(report: Report) -> dict[str, str]:
    """The documentation page's tables, by the name of their place there."""
    return {
        "ratios": markdown.ratios(report.ratios),
        "faults": markdown.faults(report.faults),
        "healthy": markdown.healthy(report.healthy),
        "peers": markdown.healthy_of_peers(report.healthy),
    }


def fill_page(report: Report, page: Path) -> None:
    """Replace the page's tables, and the plot beside it."""
    page.write_text(markdown.fill(page.read_text(encoding="utf-8"), markdown_tables(report)), encoding="utf-8")
    plot(report, page.with_suffix(".svg"))


def plot(report: Report, path: Path) -> None:
    """Left: exposure under each fault in steady traffic. Right: healthy rollouts rolled back, in every shape."""
    mpl.rcParams["svg.hashsalt"] = "tidegate"  # the same run draws the same file
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5.2), width_ratios=(3, 2))
    steady = [r for r in report.faults if r.shape is Shape.STEADY]
    faults = list(dict.fromkeys(r.fault for r in steady))
    for place, scheme in enumerate(SCHEMES):
        results = [r for r in steady if r.scheme == scheme]
        rows = [len(faults) - 1 - faults.index(r.fault) + 0.3 - 0.12 * place for r in results]
        colour = f"C{place}"
        for r, row in zip(results, rows, strict=True):
            face = colour if r.found >= 0.5 else "none"
            left.plot([max(r.exposure_median, 1), max(r.exposure_p95, 1)], [row, row], color=colour, linewidth=1)
            left.plot(max(r.exposure_median, 1), row, "o", color=colour, markerfacecolor=face, markersize=6)
        left.plot([], [], "o", color=colour, label=scheme)
    left.set_xscale("log")
    left.set_yticks(range(len(faults)), [*reversed(faults)])
    left.set_title("Faults, steady traffic", fontsize=11)
    left.set_xlabel("canary requests from the onset\n(dot: median, line: to p95, hollow: missed in most runs)")
    _ruled(left, len(faults))
    _false_panel(right, report)
    figure.legend(
        *left.get_legend_handles_labels(), loc="lower center", ncols=len(SCHEMES), fontsize=8.5, frameon=False
    )
    figure.tight_layout(rect=(0.0, 0.06, 1.0, 1.0))
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def _false_panel(axes: Axes, report: Report) -> None:
    shapes = list(dict.fromkeys(r.shape for r in report.healthy))
    for place, scheme in enumerate(SCHEMES):
        results = [r for r in report.healthy if r.scheme == scheme and r.errors == HEALTHY.errors[0]]
        rows = [len(shapes) - 1 - shapes.index(r.shape) + 0.3 - 0.12 * place for r in results]
        shares = [100 * r.rollbacks / r.rollouts for r in results]
        spread = [
            [s - 100 * r.low for s, r in zip(shares, results, strict=True)],
            [100 * r.high - s for s, r in zip(shares, results, strict=True)],
        ]
        axes.errorbar(shares, rows, xerr=spread, fmt="o", color=f"C{place}", markersize=5, linewidth=1)
    axes.axvline(100 * report.alpha, color="black", linestyle="--", linewidth=1)
    axes.set_xscale("symlog", linthresh=1.0)
    axes.set_xlim(-0.05, 110)
    axes.set_xticks([0, 0.5, 1, 2, 5, 10, 50, 100], ["0", "0.5", "1", "2", "5", "10", "50", "100"])
    axes.set_yticks(range(len(shapes)), [*reversed(shapes)])
    axes.set_title("Healthy rollouts, 1 % errors in both arms", fontsize=11)
    axes.set_xlabel(
        f"rolled back, %, with 95 % interval\n(dashed: the {100 * report.alpha:g} % that Tidegate promises)"
    )
    _ruled(axes, len(shapes))


def _ruled(axes: Axes, rows: int) -> None:
    """Lines between the rows, and a faint grid."""
    axes.grid(axis="x", alpha=0.3)
    axes.set_ylim(-0.5, rows - 0.5)
    for row in range(1, rows):
        axes.axhline(row - 0.5, color="0.85", linewidth=0.8)


def _columns(table: Table, *names: str) -> None:
    texts = {"errors", "fault", "scheme", "traffic", "by"}
    for name in names:
        table.add_column(name, justify="left" if name in texts else "right", no_wrap=name in texts)


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:,.0f}"


def _share(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.0f} %"


def _plain(value: object) -> object:
    """NaN has no place in JSON: null."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
