"""The tables of docs/benchmarks/rollout_exposure.md, from a run's results.

The page keeps each between two comments, `<!-- ratios -->` and `<!-- /ratios -->`, so that a new run can replace them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from benchmarks.exposure.campaign import PEERS, SCHEMES, TIDEGATE, FalseResult, FaultResult
from benchmarks.exposure.ratios import Ratio


def fill(page: str, tables: Mapping[str, str]) -> str:
    """The page with its tables replaced.

    Raises:
        ValueError: when the page lacks the place of a table.

    """
    for name, text in tables.items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, found, rest = page.partition(begin)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise ValueError(f"the page has no {begin} followed by {end}; add both where that table belongs")
        page = f"{before}{begin}\n\n{text}\n{end}{after}"
    return page


def table(head: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1) -> str:
    """A Markdown table whose first columns are text and whose others are numbers."""
    rule = ["---"] * texts + ["---:"] * (len(head) - texts)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows)) + "\n"


def ratios(found: Sequence[Ratio]) -> str:
    """One line for each case, beside its limit."""
    head = ("errors", "lower bound", "mean", "median", "p95", "mean ratio", "s.e.", "median ratio", "limit")
    return table(
        head,
        (
            (
                r.case.name, f"{r.bound:,.0f}", f"{r.mean:,.0f}", f"{r.median:,.0f}", f"{r.p95:,.0f}",
                f"**{r.ratio:.3f}**", f"{r.standard_error:.3f}", f"{r.median / r.bound:.2f}",
                "" if r.case.limit is None else f"{r.case.limit:g}",
            )
            for r in found
        ),
    )  # fmt: skip


def faults(found: Sequence[FaultResult]) -> str:
    """One line for a fault in a shape of traffic, one column for a scheme: median exposure, time, share found."""
    cells = {(r.shape, r.fault, r.scheme): _fault_cell(r) for r in found}
    lines = dict.fromkeys((r.shape, r.fault) for r in found)
    return table(
        ("traffic", "fault", *SCHEMES),
        ((shape, fault, *(cells[shape, fault, scheme] for scheme in SCHEMES)) for shape, fault in lines),
        texts=2,
    )


def _fault_cell(result: FaultResult) -> str:
    if not result.runs:
        return "rolled back before it"
    exposure = f"{result.exposure_median:,.0f}"
    before = f", {result.false} of {result.runs + result.false} rolled back before" if result.false else ""
    if result.found == 0.0 or math.isnan(result.minutes):
        return f"missed ({exposure}){before}"
    found = "" if result.found == 1.0 else f", {100 * result.found:.0f} % found"
    return f"{exposure}, {result.minutes:.1f} min{found}{before}"


def healthy(found: Sequence[FalseResult]) -> str:
    """Tidegate's false rollbacks with their interval, by traffic."""
    ours = [r for r in found if r.scheme == TIDEGATE]
    return table(
        ("traffic", "rollouts", "rolled back", "share", "95 % interval", "error / latency / finding"),
        (
            (
                r.shape, f"{r.rollouts:,}", str(r.rollbacks), f"{100 * r.rollbacks / r.rollouts:.2f} %",
                f"{100 * r.low:.2f} to {100 * r.high:.2f} %",
                " / ".join(str(r.by_signal.get(name, 0)) for name in ("error", "latency", "finding")),
            )
            for r in ours
        ),
    )  # fmt: skip


def healthy_of_peers(found: Sequence[FalseResult]) -> str:
    """The other tools' false rollbacks, at both error rates."""
    theirs = {(r.shape, r.errors, r.scheme): f"{r.rollbacks} of {r.rollouts}" for r in found if r.scheme in PEERS}
    lines = dict.fromkeys((shape, errors) for shape, errors, _ in theirs)
    return table(
        ("traffic", "errors in both arms", *PEERS),
        (
            (shape, f"{100 * errors:g} %", *(theirs[shape, errors, scheme] for scheme in PEERS))
            for shape, errors in lines
        ),
        texts=2,
    )
