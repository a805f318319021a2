"""Drift detectors that others use, written from their papers with the documented defaults of the library river.

Each looks at the same 17 scores of every request that the classic recipe gives (16 principal components and the
distance to the nearest reference cluster, all with mean 0 and deviation 1), and raises an alarm when any score does.
All scores of all streams are columns of one table; each function gives, by column, the row of its *first* alarm, or
`NEVER`.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

NEVER = np.iinfo(np.int64).max

Table = NDArray[np.float32]
Rows = NDArray[np.int64]

ADWIN_DELTA = 0.002
ADWIN_CLOCK = 32
ADWIN_MAX_BUCKETS = 5
ADWIN_MIN_WINDOW = 5
ADWIN_GRACE = 10


def adwin(table: Table, delta: float = ADWIN_DELTA) -> Rows:
    """ADWIN: Bifet and Gavalda, "Learning from time-changing data with adaptive windowing" (2007), ADWIN2.

    river.drift.ADWIN's defaults: delta 0.002, clock 32, max_buckets 5, min_window_length 5, grace_period 10. An alarm
    is a cut of the window whose two means differ by more than epsilon. Until a column's first cut nothing is dropped,
    so its exponential histogram has the same buckets as every other's; columns share them.
    """
    first = np.full(table.shape[1], NEVER)
    rows: list[list[tuple[int, int]]] = [[]]  # by power of two, buckets as (first row, end), the oldest first
    total = np.concatenate([np.zeros((1, table.shape[1])), np.cumsum(table, axis=0, dtype=np.float64)])
    squares = np.concatenate([np.zeros((1, table.shape[1])), np.cumsum(table.astype(np.float64) ** 2, axis=0)])
    for width in range(1, len(table) + 1):
        _insert(rows, width)
        if width % ADWIN_CLOCK or width <= ADWIN_GRACE or (first != NEVER).all():
            continue
        ends = np.array([end for buckets in reversed(rows) for _start, end in buckets])
        ends = ends[(ends >= ADWIN_MIN_WINDOW) & (width - ends >= ADWIN_MIN_WINDOW)]
        variance = squares[width] / width - (total[width] / width) ** 2
        old, new = ends[:, None].astype(float), (width - ends)[:, None].astype(float)
        apart = np.abs(total[ends] / old - (total[width] - total[ends]) / new)
        log_term = math.log(2.0 * math.log(width) / delta)
        inverse = 1.0 / (old - ADWIN_MIN_WINDOW + 1.0) + 1.0 / (new - ADWIN_MIN_WINDOW + 1.0)
        epsilon = np.sqrt(2.0 * inverse * variance * log_term) + 2.0 / 3.0 * log_term * inverse
        cut = (apart > epsilon).any(axis=0)
        first[cut & (first == NEVER)] = width - 1
    return first


def _insert(rows: list[list[tuple[int, int]]], width: int) -> None:
    """Add a bucket for the newest value; where a power of two has too many, its two oldest become one of the next."""
    rows[0].append((width - 1, width))
    for power, buckets in enumerate(rows):
        if len(buckets) <= ADWIN_MAX_BUCKETS:
            return
        if power + 1 == len(rows):
            rows.append([])
        (start, _), (_, end) = buckets[:2]
        del buckets[:2]
        rows[power + 1].append((start, end))


def page_hinkley(
    table: Table, delta: float = 0.005, threshold: float = 50.0, alpha: float = 1.0 - 0.0001, min_instances: int = 30
) -> Rows:
    """Page-Hinkley: Page, "Continuous inspection schemes" (1954), with a forgetting factor, in both directions.

    river.drift.PageHinkley's defaults: min_instances 30, delta 0.005, threshold 50, alpha 0.9999, mode "both".
    """
    first = np.full(table.shape[1], NEVER)
    mean = np.zeros(table.shape[1])
    up, down = np.zeros_like(mean), np.zeros_like(mean)
    lowest, highest = np.full_like(mean, np.inf), np.full_like(mean, -np.inf)
    for row, values in enumerate(table):
        mean += (values - mean) / (row + 1)
        up = alpha * up + (values - mean - delta)
        down = alpha * down + (values - mean + delta)
        np.minimum(lowest, up, out=lowest)
        np.maximum(highest, down, out=highest)
        if row + 1 >= min_instances:
            alarm = (up - lowest > threshold) | (highest - down > threshold)
            first[alarm & (first == NEVER)] = row
    return first


def ks_batches(table: Table, reference: Table, scores: int, batch: int = 200, alpha: float = 0.05) -> Rows:
    """Kolmogorov-Smirnov of each batch against the reference, Bonferroni over the scores, as usual in batch monitors.

    Args:
        table: scores as columns, those of one stream beside each other.
        reference: calibration rows, one column per score.
        scores: columns per stream; column c is score c modulo this.
        batch: requests per test.
        alpha: of a batch, shared by the scores.

    The asymptotic critical value of the two-sample test: sqrt(-ln(alpha/2)/2 * (n+m)/(n*m)).

    """
    first = np.full(table.shape[1], NEVER)
    n = len(reference)
    ordered = np.sort(reference, axis=0)
    critical = math.sqrt(-math.log(alpha / scores / 2.0) / 2.0 * (n + batch) / (n * batch))
    steps = np.arange(batch + 1) / batch
    for start in range(0, len(table) - batch + 1, batch):
        seen = np.sort(table[start : start + batch], axis=0)
        for column in np.flatnonzero(first == NEVER):
            own, other = seen[:, column], ordered[:, column % scores]
            below = np.searchsorted(other, own, side="left") / n
            upto = np.searchsorted(other, own, side="right") / n
            if max((steps[1:] - upto).max(), (below - steps[:-1]).max()) > critical:
                first[column] = start + batch - 1
    return first
