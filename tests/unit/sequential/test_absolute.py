"""A revision's own rate: worked numbers, order, pending units, and the bound of the old side's rate."""

from __future__ import annotations

import math

import pytest

from monitoring.sequential.absolute import RateTest, rate_upper_bound
from monitoring.sequential.planning import (
    Path,
    Standing,
    least_watched_requests,
    requests_to_decision,
    watched_requests_to_decision,
)


@pytest.mark.parametrize(
    ("events", "units", "evidence"), [(0, 0, 1.0), (1, 1, 6.954), (2, 2, 79.12), (3, 3, 1_058.96), (0, 100, 0.2058)]
)
def test_worked_numbers(events, units, evidence):
    test = RateTest(0.05)
    assert math.exp(test.log_e(test.start(), units, events)) == pytest.approx(evidence, rel=1e-3)


@pytest.mark.parametrize("p0", [0.001, 0.05, 0.4, 0.99])
def test_each_unit_is_fair_at_p0_and_loses_below_it(p0):
    test = RateTest(p0)
    state = test.update(test.update(test.start(), 30, 2), 5, 1)
    now = test.log_e(state)
    won, lost = (math.exp(test.log_e(state, 1, k) - now) for k in (1, 0))
    assert p0 * won + (1.0 - p0) * lost == pytest.approx(1.0, abs=1e-9)
    assert 0.5 * p0 * won + (1.0 - 0.5 * p0) * lost < 1.0
    assert won > 1.0 > lost


def test_a_unit_whose_outcome_is_pending_never_speaks_against_the_revision():
    test = RateTest(0.05)
    state = test.update(test.start(), 40, 3)
    for units in range(1, 30):
        for known in range(units + 1):
            assert test.log_e(state, units, known) >= test.log_e(state, units + 1, known)
            assert test.log_e(state, units, known) <= test.log_e(state, units, min(units, known + 1))


def test_a_batch_is_the_same_in_any_order_and_the_restart_is_known_before_it():
    test = RateTest(0.1)
    state = test.update(test.start(), 50, 4)
    batch = test.update(state, 20, 6)
    assert test.log_e(batch) == pytest.approx(test.log_e(state, 20, 6), abs=1e-12)


def test_wealth_is_neither_made_nor_lost_by_the_restarts():
    test = RateTest(0.05)
    state = test.start()
    for _ in range(50):
        before = test.log_e(state)
        state = test.update(state, 100, 5)
        moved = test.update(state, 0, 0)
        assert test.log_e(moved) == pytest.approx(test.log_e(state), abs=1e-9)
        assert math.isfinite(before)


@pytest.mark.parametrize(
    ("events", "units", "bound"), [(0, 0, 1.0), (5, 5, 1.0), (0, 200, 0.0494), (10, 1_000, 0.0320), (0, 20, 0.3619)]
)
def test_upper_bound_of_a_rate(events, units, bound):
    assert rate_upper_bound(events, units, 0.001) == pytest.approx(bound, abs=1e-4)


def test_the_bound_tightens_with_units_and_with_alpha():
    bounds = [rate_upper_bound(n // 100, n, 0.001) for n in (100, 1_000, 10_000, 100_000)]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[-1] > 0.01
    assert rate_upper_bound(5, 100, 0.1) < rate_upper_bound(5, 100, 0.001)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: RateTest(0.0), "p0 is 0.0"),
        (lambda: RateTest(1.0), "p0 is 1.0"),
        (lambda: RateTest(0.1).update(RateTest(0.1).start(), 3, 4), "4 events among 3 units"),
        (lambda: rate_upper_bound(4, 3, 0.1), "4 events among 3 units"),
        (lambda: rate_upper_bound(1, 3, 0.0), "alpha is 0.0"),
    ],
)
def test_bad_input_is_refused_with_the_value(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def standing(events: int, units: int, log_e: float, objective: float | None = None) -> Standing:
    return Standing(
        weight=1.0, canary_events=events, canary_units=units, stable_events=0, stable_units=0, log_e=log_e, alpha=0.01,
        forward_log_e=0.0, rho1=1.5, objective_log_e=objective, p_max=None if objective is None else 0.05,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("at", "requests", "path"),
    [
        (standing(12, 100, 1.0), 96, Path.ROLLBACK),
        (standing(12, 100, 4.7), 0, Path.ROLLBACK),
        (standing(0, 20, 0.0, objective=0.5), 49, Path.OBJECTIVE),
        (standing(0, 0, 0.0, objective=0.0), None, None),
        (standing(5, 100, 0.0), None, None),
    ],
)
def test_requests_until_a_watched_revision_is_decided(at, requests, path):
    found = watched_requests_to_decision(at, 0.05)
    assert (found.requests, found.path) == (requests, path)
    assert found.reason or requests is not None


def test_the_fewest_watched_requests():
    assert least_watched_requests(0.05, 0.20, 0.01) == pytest.approx(32.9, abs=0.1)
    assert least_watched_requests(0.05, 0.05, 0.01) == math.inf
    with pytest.raises(ValueError, match="weight is 1"):
        requests_to_decision(standing(1, 2, 0.0))
