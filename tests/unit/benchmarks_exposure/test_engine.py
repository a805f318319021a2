"""The simulation of the rollback test decides as the test that ships does, at the same unit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.exposure import production, ratios
from benchmarks.exposure.batch import Batch, Events, paths
from benchmarks.exposure.evidence import Told, decisions, first_crossings, limits, told
from benchmarks.exposure.traffic import HEALTHY, Fault, Shape, generate
from monitoring.sequential.events import AveragedLevels, CappedMixture, EProcessConfig, for_session
from serving.gateway.latency import LatencyWindow

event = st.tuples(st.booleans(), st.integers(1, 300), st.sampled_from((0.0, 0.0023, 0.011, 0.2, 0.5)))
sequences = st.lists(st.lists(event, max_size=60), min_size=1, max_size=5)


def as_events(rows: list[tuple[bool, int, float]]) -> Events:
    canary, index, rate = zip(*rows, strict=True) if rows else ((), (), ())
    return Events(np.array(canary, dtype=bool), np.array(index, dtype=np.int64), np.array(rate, dtype=float))


@settings(max_examples=60, deadline=None)
@given(sequences, st.sampled_from((0.01, 0.1, 0.5)), st.sampled_from((0.01, 0.2)), st.sampled_from((1.0, 4.0)))
def test_every_step_is_that_of_the_capped_mixture(lists, weight, alpha, cap_factor):
    config = EProcessConfig(alpha=alpha, cap_factor=cap_factor)
    test = CappedMixture(config)
    for rows, way in zip(lists, paths(config, weight, [as_events(rows) for rows in lists]), strict=True):
        state = test.start()
        expected = []
        for canary, index, rate in rows:
            # As rollout/analysis/comparison.py discounts a session's later requests.
            thetas = for_session(test.thetas, min(index, 200), rate) if index > 1 and rate > 0.0 else None
            state = test.update(state, canary, weight, thetas=thetas)
            expected.append(state.log_w)
        assert way == pytest.approx(expected, abs=1e-9)


def test_a_row_that_is_left_out_stays_as_it_was():
    batch = Batch(EProcessConfig(alpha=0.01), 0.1, 3)
    batch.update(np.array([True, True, True]), only=np.array([True, False, True]))
    assert batch.log_w[1] == 0.0
    assert batch.n.tolist() == [1, 0, 1]
    batch.update(np.array([True, True, True]))
    assert batch.log_w[0] > batch.log_w[1] > 0.0


def slow_units(levels: list[int], canary: list[bool]) -> Told:
    """Units one second apart that exceeded the first so many levels each."""
    count = len(levels)
    at, numbers = np.arange(count, dtype=float), np.arange(1, count + 1)
    above = np.arange(4)[None, :] < np.array(levels, dtype=int).reshape(-1, 1)
    return Told(
        np.array(canary, dtype=bool),
        at,
        at + 0.5,
        np.full(count, -1),
        np.ones(count, int),
        numbers,
        above,
        np.zeros(count),
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4), st.booleans()), min_size=1, max_size=60))
def test_latency_levels_cross_at_the_unit_at_which_the_averaged_test_does(units):
    test = AveragedLevels(EProcessConfig(alpha=0.2))
    state, expected = test.start(), None
    for place, (levels, canary) in enumerate(units):
        state = test.update(state, range(levels), canary, 0.1)
        if test.crossed(state) and expected is None:
            expected = place
    told_units = slow_units([u[0] for u in units], [u[1] for u in units])
    assert first_crossings([told_units], 0.2, 0.1, latency=True) == [expected]


def test_limits_are_those_of_the_gateways_window():
    rng = np.random.default_rng(1)
    at = np.cumsum(rng.exponential(0.1, 900))
    latency = rng.lognormal(-2.0, 0.5, 900)
    found = limits(at, at + latency, latency, refresh=1)
    window, waiting = LatencyWindow(), sorted(zip((at + latency).tolist(), latency.tolist(), strict=True))
    for row, now in enumerate(at.tolist()):
        while waiting and waiting[0][0] <= now:
            window.add(waiting.pop(0)[1])
        expected = window.thresholds()
        assert np.isnan(found[row]).all() if expected is None else tuple(found[row]) == expected


FAULTS = (
    Fault("errors", errors=(0.01, 0.3)),
    Fault("slow", slowdown=3.0),
    Fault("findings", findings=(0.002, 0.2)),
    HEALTHY,
)


@pytest.mark.parametrize("shape", list(Shape), ids=str)
def test_the_ledger_decides_on_the_same_unit_of_the_same_signal(shape):
    rollouts = [
        told(generate(shape, 240.0, np.random.default_rng([run, 9])), fault, 240.0)
        for fault in FAULTS
        for run in range(2)
    ]
    expected = decisions(rollouts, alpha=0.05)
    assert [production.decision(rollout, alpha=0.05) for rollout in rollouts] == expected
    assert sum(d is not None for d in expected) >= 2


def test_half_of_alpha_goes_to_errors_in_the_ledger_too():
    thresholds = {str(r.name): r.threshold for r in production.new_ledger(0.01).readings()}
    expected = {"error": 0.005, "latency": 0.0025, "finding": 0.0025}
    for name, alpha in expected.items():
        assert thresholds[str(production.SIGNALS[name])] == pytest.approx(-np.log(alpha))


def one_by_one(case: ratios.Case, weight: float, rng: np.random.Generator) -> int:
    """Exposure of one run, request by request, through the test that ships."""
    test = CappedMixture(EProcessConfig(alpha=0.01))
    state, canary_requests = test.start(), 0
    while not state.crossed:
        on_canary = rng.random() < weight
        canary_requests += on_canary
        if rng.random() < (case.canary if on_canary else case.stable):
            state = test.update(state, on_canary, weight)
    return canary_requests


def test_exposures_are_those_of_requests_drawn_one_by_one():
    case = ratios.Case(0.05, 0.5)
    rng = np.random.default_rng(8)
    slow = np.array([one_by_one(case, 0.1, rng) for _ in range(400)])
    quick, early = ratios.exposures(case, 4_000, 0.1, EProcessConfig(alpha=0.01), rng)
    error = float(np.hypot(slow.std() / np.sqrt(len(slow)), quick.std() / np.sqrt(len(quick))))
    assert abs(slow.mean() - quick.mean()) < 4.0 * error
    assert (early, len(quick)) == (0, 4_000)


def test_runs_rolled_back_before_the_fault_are_counted_apart():
    case = ratios.Case(0.05, 0.2, healthy_before=2_000)
    found, early = ratios.exposures(case, 500, 0.1, EProcessConfig(alpha=0.2), np.random.default_rng(3))
    assert len(found) + early == 500
    assert 0 < early < 0.2 * 500 + 3 * np.sqrt(0.2 * 0.8 * 500)
    assert found.min() >= 0
