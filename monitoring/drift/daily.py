"""Does the traffic have a daily cycle, and into how many parts should a reference divide the day? Pure.

People ask other things at night than at noon, and no fixed reference fits both: a detector would raise an alarm every
evening. A reference in blocks of hours costs rows, so it is built only where a cycle is there, or when one asks for it.

The test: the days are dealt into two halves in turn. In each half every hour has a profile, the mean of its requests'
coordinates less the mean of the half's hours. The statistic is the sum over hours of the product of the two profiles: a
cycle shows in both halves alike, chance and single odd days do not. Its null distribution deals one half's hours anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monitoring.drift.errors import TooFewRequests, UnusableVectors
from monitoring.drift.reference import MIN_CALIBRATION

DIVISIONS = (24, 12, 8, 6, 4, 3, 2)
"""Numbers of blocks that are tried, the finest first."""

SIGNIFICANCE = 0.01
SHUFFLES = 999
AXES = 16
"""Principal components that the test looks at."""


class Daily(StrEnum):
    """What the operator says of the daily cycle."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class Division:
    """Into how many blocks the day is divided, and why.

    Attributes:
        blocks: for `build_reference`.
        p_value: of the test for a cycle; None when it wasn't run.
        reason: for the operator.

    """

    blocks: int
    p_value: float | None
    reason: str


def choose_blocks(
    vectors: NDArray[Any],
    hours: NDArray[np.integer[Any]],
    days: NDArray[np.integer[Any]],
    *,
    daily: Daily,
    rng: np.random.Generator,
) -> Division:
    """The division of the day for a reference of these rows.

    Args:
        vectors: one row per request.
        hours: hour of the day of each, 0 to 23, in the time zone of the cycle.
        days: any number that counts the days.
        daily: test for a cycle, or take it as said.
        rng: for the test.

    Raises:
        TooFewRequests: when a cycle is demanded and no division leaves each block enough rows.
        UnusableVectors: when the arguments' lengths differ or an hour is out of range.

    """
    if not len(vectors) == len(hours) == len(days):
        raise UnusableVectors(f"{len(vectors)} vectors, {len(hours)} hours, {len(days)} days; give one of each per row")
    if len(hours) and (hours.min() < 0 or hours.max() > 23):
        raise UnusableVectors(f"hours from {hours.min()} to {hours.max()}; give hours of the day, 0 to 23")
    if daily is Daily.NEVER:
        return Division(1, None, "one reference for the whole day, as asked")
    finest = next((n for n in DIVISIONS if _least_rows(hours, n) >= 2 * MIN_CALIBRATION), 1)
    if finest == 1:
        short = (
            f"half a day has {_least_rows(hours, 2)} requests; each part of the day needs {2 * MIN_CALIBRATION}, "
            "take a longer window"
        )
        if daily is Daily.ALWAYS:
            raise TooFewRequests(short)
        return Division(1, None, short)
    if daily is Daily.ALWAYS:
        return Division(finest, None, f"{finest} parts of the day, as asked")
    p_value = cycle_p_value(vectors, hours, days, rng)
    if p_value is None:
        return Division(1, None, "the window has no two days with the same hours, so a daily cycle can't be told")
    if p_value > SIGNIFICANCE:
        return Division(1, p_value, f"no daily cycle (p = {p_value:.3f})")
    return Division(finest, p_value, f"a daily cycle (p = {p_value:.3f}): {finest} parts of the day")


def cycle_p_value(
    vectors: NDArray[Any], hours: NDArray[np.integer[Any]], days: NDArray[np.integer[Any]], rng: np.random.Generator
) -> float | None:
    """The chance of profiles as alike as these without a cycle; None when fewer than three hours are in both halves."""
    table = np.asarray(vectors, dtype=np.float64)
    centred = table - table.mean(axis=0)
    values, axes = np.linalg.eigh(centred.T @ centred)
    kept = min(AXES, int((values > 1e-12 * max(values[-1], 1e-300)).sum()))
    if kept == 0:
        return None
    coordinates = centred @ (axes[:, -kept:] / np.sqrt(values[-kept:]))
    half = np.unique(days, return_inverse=True)[1] % 2
    common = [hour for hour in range(24) if all(((hours == hour) & (half == side)).any() for side in (0, 1))]
    if len(common) < 3:
        return None
    first, second = (
        np.array([coordinates[(hours == hour) & (half == side)].mean(axis=0) for hour in common]) for side in (0, 1)
    )
    alike = (first - first.mean(axis=0)) @ (second - second.mean(axis=0)).T
    seen = float(np.trace(alike))
    places = np.arange(len(common))
    dealt = np.array([alike[places, rng.permutation(len(common))].sum() for _ in range(SHUFFLES)])
    return float((1 + (dealt >= seen - 1e-12).sum()) / (1 + SHUFFLES))


def _least_rows(hours: NDArray[np.integer[Any]], blocks: int) -> int:
    return int(np.bincount(np.asarray(hours, dtype=np.int64) * blocks // 24, minlength=blocks).min())
