"""The page that `tidegate guard eval --report` writes: figures, curves and latencies, in one file without scripts."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

from guardrails.evaluation import Judged, Quality, groups, quality, quantile, roc
from guardrails.policy import Policy

SIDE = 320
MARGIN = 40
COLOURS = ("#1b6ca8", "#c0392b", "#1e8449", "#8e44ad", "#b9770e", "#16a085", "#5d6d7e", "#d35400")
MOST_POINTS = 300
BARS = 24

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 64rem; padding: 0 1rem; color: #1c2833; }
table { border-collapse: collapse; }
td, th { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #d5d8dc; }
td:first-child, th:first-child { text-align: left; } figure { display: inline-block; margin: 1rem 1.5rem 0 0; }
svg text { font: 11px system-ui, sans-serif; fill: #1c2833; }
"""


def page(policy: Policy, data: str, judged: Sequence[Judged]) -> str:
    """The page. No judged text is in it."""
    grouped = groups(judged)
    figures = {name: quality(group) for name, group in grouped.items()}
    sources = {name: group for name, group in grouped.items() if name != "all" and not name.startswith("all in ")}
    title = f"Policy {html.escape(policy.name)} on {html.escape(data)}"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f"<h1>{title}</h1><p>Policy digest {policy.digest[:12]}, {len(judged)} texts.</p>{_table(figures)}"
        f"<figure><figcaption>Recall against false alarms, by source</figcaption>{_curves(sources)}</figure>"
        f"<figure><figcaption>Milliseconds per text (the last bar: that and more)</figcaption>{_bars(judged)}</figure>"
        "</html>\n"
    )


def _table(figures: Mapping[str, Quality]) -> str:
    heads = ("", "texts", "bad", "precision", "recall", "F1", "AUC", "false alarms", "p50 ms", "p99 ms", "failed")
    rows = []
    for name, f in figures.items():
        rates = (f.precision, f.recall, f.f1, f.auc, f.false_alarms)
        cells = [html.escape(name), f.texts, f.bad, *map(_rate, rates), f"{f.p50_ms:.2f}", f"{f.p99_ms:.2f}", f.failed]
        rows.append("".join(f"<td>{cell}</td>" for cell in cells))
    head = "".join(f"<th>{cell}</th>" for cell in heads)
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


def _rate(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _frame(inner: str, across: str, up: str) -> str:
    size = SIDE + 2 * MARGIN
    return (
        f'<svg width="{size + 160}" height="{size}" viewBox="0 0 {size + 160} {size}" role="img">'
        f'<rect x="{MARGIN}" y="{MARGIN}" width="{SIDE}" height="{SIDE}" fill="none" stroke="#aeb6bf"/>{inner}'
        f'<text x="{MARGIN}" y="{size - 12}">{across}</text><text x="{MARGIN}" y="{MARGIN - 10}">{up}</text></svg>'
    )


def _curves(sources: Mapping[str, Sequence[Judged]]) -> str:
    lines = []
    for number, (name, group) in enumerate(sources.items()):
        colour = COLOURS[number % len(COLOURS)]
        points = roc([(one.score, one.bad) for one in group])
        kept = points[:: max(1, len(points) // MOST_POINTS)] + points[-1:]
        path = " ".join(f"{MARGIN + x * SIDE:.1f},{MARGIN + (1 - y) * SIDE:.1f}" for x, y in kept)
        lines.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        shown = html.escape(f"{name} {_rate(quality(group).auc)}")
        at = MARGIN + 14 * (number + 1)
        lines.append(f'<text x="{SIDE + MARGIN + 10}" y="{at}" style="fill:{colour}">{shown}</text>')
    return _frame("".join(lines), "false alarms, 0 to 1", "recall, 0 to 1")


def _bars(judged: Sequence[Judged]) -> str:
    times = sorted(one.latency_ms for one in judged)
    top = max(quantile(times, 0.99), 1e-6)
    counts = [0] * BARS
    for time in times:
        counts[min(BARS - 1, int(time / top * (BARS - 1)))] += 1
    width, highest = SIDE / BARS, max(counts)
    bars = "".join(
        f'<rect x="{MARGIN + at * width:.1f}" y="{MARGIN + SIDE * (1 - n / highest):.1f}" width="{width - 1:.1f}" '
        f'height="{SIDE * n / highest:.1f}" fill="{COLOURS[0]}"/>'
        for at, n in enumerate(counts)
    )
    return _frame(bars, f"0 to {top:.1f} ms", f"texts, up to {highest}")
