from __future__ import annotations

import copy

import numpy as np

from monitoring.drift.mmd import WINDOW, KernelWindow
from tests.unit.monitoring_drift.streams import cloud, reference

REFERENCE = reference()
FRESH = KernelWindow(REFERENCE, np.random.default_rng(1))


def window() -> KernelWindow:
    return copy.deepcopy(FRESH)


def coordinates(vectors):
    return [REFERENCE.locate(vector)[0] for vector in vectors]


def test_says_nothing_before_it_is_full() -> None:
    kernel = window()
    assert not any(kernel.observe(row) for row in coordinates(cloud(WINDOW - 1, 7, topics=(5,))))
    assert kernel.observe(coordinates(cloud(1, 8, topics=(5,)))[0])


def test_few_healthy_streams_are_warned_of() -> None:
    kernel, warned = window(), 0
    for seed in range(40):
        kernel.clear()
        warned += any(kernel.observe(row) for row in coordinates(cloud(1000, seed + 50)))
    assert warned <= 6


def test_a_change_is_warned_of_and_the_warning_ends_with_it() -> None:
    kernel = window()
    for row in coordinates(cloud(300, 8)):
        kernel.observe(row)
    assert not kernel.warning
    assert any(kernel.observe(row) for row in coordinates(cloud(120, 7, topics=(5,))))
    for row in coordinates(cloud(WINDOW, 9)):
        kernel.observe(row)
    assert not kernel.warning


def test_the_statistic_is_that_of_the_last_requests_alone() -> None:
    long, short = window(), window()
    last = coordinates(cloud(WINDOW, 9))
    for row in coordinates(cloud(1000, 8)):
        long.observe(row)
    for row in last:
        long.observe(row)
        short.observe(row)
    assert np.isclose(long.statistic, short.statistic, rtol=1e-6)


def test_the_same_seed_gives_the_same_thresholds() -> None:
    assert KernelWindow(REFERENCE, np.random.default_rng(1)).thresholds == FRESH.thresholds
