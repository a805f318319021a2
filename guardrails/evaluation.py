"""How well checks tell texts apart: precision, recall, F1 and AUC, and how long they take. Pure arithmetic.

Worked example: scores 0.9, 0.4, 0.6 of which the first two are of bad texts, threshold 0.5: one of two bad ones is
found (recall 0.5), one of two found is bad (precision 0.5), and of the two pairs of a bad and a good text one is in
order (AUC 0.5).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Judged:
    """One labelled text after its checks. `score` is the highest of them, `failed` that some check could not run."""

    source: str
    language: str
    bad: bool
    score: float
    flagged: bool
    latency_ms: float
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Quality:
    """What the checks are worth on one group of texts. Rates of nothing are NaN."""

    texts: int
    bad: int
    precision: float
    recall: float
    f1: float
    auc: float
    false_alarms: float
    """The share of good texts that are flagged."""
    p50_ms: float
    p99_ms: float
    failed: int


def quality(judged: Sequence[Judged]) -> Quality:
    """The figures of a group."""
    flagged = sum(j.flagged for j in judged)
    bad = sum(j.bad for j in judged)
    found = sum(j.flagged and j.bad for j in judged)
    precision, recall = _ratio(found, flagged), _ratio(found, bad)
    both = precision + recall
    times = sorted(j.latency_ms for j in judged)
    return Quality(
        texts=len(judged),
        bad=bad,
        precision=precision,
        recall=recall,
        f1=2 * precision * recall / both if both > 0 else both,
        auc=auc([(j.score, j.bad) for j in judged]),
        false_alarms=_ratio(flagged - found, len(judged) - bad),
        p50_ms=quantile(times, 0.5),
        p99_ms=quantile(times, 0.99),
        failed=sum(j.failed for j in judged),
    )


def groups(judged: Iterable[Judged]) -> Mapping[str, list[Judged]]:
    """By source, then by language, then all: never the pool alone, since sources disagree on what is bad."""
    by_source: dict[str, list[Judged]] = {}
    by_language: dict[str, list[Judged]] = {}
    every: list[Judged] = []
    for one in judged:
        by_source.setdefault(one.source, []).append(one)
        by_language.setdefault(f"all in {one.language}", []).append(one)
        every.append(one)
    return {**dict(sorted(by_source.items())), **dict(sorted(by_language.items())), "all": every}


def auc(scored: Sequence[tuple[float, bool]]) -> float:
    """The chance that a bad text scores above a good one, ties counting half (Mann and Whitney, 1947).

    >>> auc([(0.9, True), (0.4, True), (0.6, False)])
    0.5
    """
    bad = sum(is_bad for _, is_bad in scored)
    good = len(scored) - bad
    if not bad or not good:
        return math.nan
    ordered = sorted(scored)
    below, at, won = 0, 0, 0.0
    while at < len(ordered):
        end = at
        while end < len(ordered) and ordered[end][0] == ordered[at][0]:
            end += 1
        tied_bad = sum(is_bad for _, is_bad in ordered[at:end])
        tied_good = end - at - tied_bad
        won += tied_bad * (below + tied_good / 2)
        below += tied_good
        at = end
    return won / (bad * good)


def roc(scored: Sequence[tuple[float, bool]]) -> list[tuple[float, float]]:
    """The curve of false alarms against recall over all thresholds, from (0, 0) to (1, 1)."""
    bad = sum(is_bad for _, is_bad in scored) or 1
    good = (len(scored) - sum(is_bad for _, is_bad in scored)) or 1
    points, alarms, found = [(0.0, 0.0)], 0, 0
    ordered = sorted(scored, reverse=True)
    for at, (score, is_bad) in enumerate(ordered):
        found, alarms = found + is_bad, alarms + (not is_bad)
        if at + 1 == len(ordered) or ordered[at + 1][0] != score:
            points.append((alarms / good, found / bad))
    return points


def quantile(ordered: Sequence[float], share: float) -> float:
    """Of values in order, by nearest rank; NaN of none."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
