from __future__ import annotations

import numpy as np
import pytest

from monitoring.drift.daily import Daily, choose_blocks
from monitoring.drift.errors import TooFewRequests, UnusableVectors
from tests.unit.monitoring_drift.streams import cloud

ROWS = 9600
HOURS = np.arange(ROWS) % 24
DAYS = np.arange(ROWS) // 24
CYCLE = np.where((HOURS < 12)[:, None], cloud(ROWS, 1, topics=(0,)), cloud(ROWS, 2, topics=(1,)))
FLAT = cloud(ROWS, 3)
ODD_DAY = np.where(((DAYS == 7) & (HOURS > 20))[:, None], cloud(ROWS, 4, topics=(5,)), FLAT)


def choose(vectors, daily=Daily.AUTO, hours=HOURS, days=DAYS):
    return choose_blocks(vectors, hours, days, daily=daily, rng=np.random.default_rng(0))


@pytest.mark.parametrize(
    ("name", "vectors", "daily", "blocks"),
    [
        ("a cycle", CYCLE, Daily.AUTO, 8),
        ("none", FLAT, Daily.AUTO, 1),
        ("one odd evening is none", ODD_DAY, Daily.AUTO, 1),
        ("none, but asked for", FLAT, Daily.ALWAYS, 8),
        ("a cycle, but not wanted", CYCLE, Daily.NEVER, 1),
    ],
)
def test_the_day_is_divided_as_the_traffic_or_the_operator_says(name, vectors, daily, blocks) -> None:
    assert choose(vectors, daily).blocks == blocks


def test_a_single_day_shows_no_cycle() -> None:
    found = choose(CYCLE, days=np.zeros(ROWS, dtype=np.int64))
    assert (found.blocks, found.p_value) == (1, None)
    assert "no two days" in found.reason


def test_too_few_rows_for_two_parts_are_told() -> None:
    few = slice(0, 960)
    assert "1000" in choose(CYCLE[few], hours=HOURS[few], days=DAYS[few]).reason
    with pytest.raises(TooFewRequests, match="longer window"):
        choose(CYCLE[few], Daily.ALWAYS, HOURS[few], DAYS[few])


def test_hours_out_of_range_are_refused() -> None:
    with pytest.raises(UnusableVectors, match="24"):
        choose(FLAT, hours=HOURS + 1)


def test_without_a_cycle_the_test_is_seldom_wrong() -> None:
    rng = np.random.default_rng(5)
    wrong = sum(
        choose_blocks(cloud(2400, seed), HOURS[:2400], DAYS[:2400], daily=Daily.AUTO, rng=rng).blocks > 1
        for seed in range(20, 60)
    )
    assert wrong <= 3
