from __future__ import annotations

import numpy as np
import pytest

from monitoring.drift.sampling import SamplingState, choose


def run(arrivals_per_s: float, limit: float, seconds: float) -> list[bool]:
    rng = np.random.default_rng(1)
    state, chosen = SamplingState(), []
    for number in range(int(arrivals_per_s * seconds)):
        state, embed = choose(state, number / arrivals_per_s, limit, float(rng.random()))
        chosen.append(embed)
    return chosen


def test_light_traffic_is_embedded_whole() -> None:
    assert all(run(20, limit=50, seconds=60))


def test_heavy_traffic_is_embedded_at_the_limit() -> None:
    assert sum(run(500, limit=50, seconds=120)[500 * 60 :]) == pytest.approx(50 * 60, rel=0.15)


def test_nothing_is_embedded_when_it_is_turned_off() -> None:
    assert not any(run(20, limit=0, seconds=5))


def test_a_clock_that_goes_back_stands_still() -> None:
    state, _ = choose(SamplingState(), 100.0, 10.0, 0.0)
    state, _ = choose(state, 40.0, 10.0, 0.0)
    assert state.at_s == 100.0
    state, _ = choose(state, 100.1, 10.0, 0.0)
    assert state.allowance <= 10.0
