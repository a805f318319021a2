"""Going forward: worked numbers, the table of section 6, bad input."""

from __future__ import annotations

import math

import pytest

from monitoring.sequential.events import log_spaced
from monitoring.sequential.forward import (
    ForwardConfig,
    NonInferiority,
    default_rho1,
    objective_log_e,
    objective_units,
)


@pytest.mark.parametrize(
    ("weight", "rho1"),
    [(0.001, 11), (0.01, 11), (0.05, 6), (0.10, 3), (0.25, 2), (0.50, 1.5), (0.80, 1.5), (0.2, 2.2076), (0.02, 8.4727)],
)
def test_default_rho1_follows_the_table_and_lies_between(weight, rho1):
    assert default_rho1(weight) == pytest.approx(rho1, rel=1e-4)


def test_default_rho1_falls_with_the_weight():
    values = [default_rho1(w) for w in log_spaced(0.005, 0.99, 200)]
    assert values == sorted(values, reverse=True)


def test_a_canary_without_events_passes_after_fifteen_of_stables():
    fine = NonInferiority(ForwardConfig(rho1=3.0))
    state = fine.start()
    passed = []
    for _ in range(15):
        passed.append(fine.passed(state))
        state = fine.update(state, False, 0.1)
    assert not any(passed)
    assert fine.passed(state)


def test_evidence_that_turns_is_seen_again():
    fine = NonInferiority(ForwardConfig(rho1=3.0))
    state = fine.start()
    for _ in range(15):
        state = fine.update(state, False, 0.1)
    assert fine.passed(state)
    assert not fine.passed(fine.update(state, True, 0.1))


@pytest.mark.parametrize(("rho1", "has_one"), [(11.0, True), (1.5, True), (1.06, True), (1.04, False), (0.5, False)])
def test_ratio_one_is_bet_on_where_it_is_below_rho1(rho1, has_one):
    fine = NonInferiority(ForwardConfig(rho1=rho1))
    assert (1.0 in fine.thetas) is has_one
    assert max(fine.thetas) < rho1
    assert math.fsum(fine.start().shares) == pytest.approx(1.0)


def test_a_hundred_thousand_stable_events_stay_finite():
    fine = NonInferiority(ForwardConfig(rho1=3.0))
    state = fine.start()
    for _ in range(20_000):
        state = fine.update(state, False, 0.5)
    assert math.isfinite(state.log_e)
    assert math.isfinite(fine.update(state, True, 0.5).log_e)


@pytest.mark.parametrize(
    ("p_max", "k", "units"),
    [(0.05, 0, 64), (0.05, 1, 135), (0.05, 2, 178), (0.05, 5, 293), (0.01, 0, 327), (0.01, 1, 685), (0.01, 2, 900)],
)
def test_units_that_pass_the_objective(p_max, k, units):
    assert objective_units(k, p_max) == units
    need = math.log(20.0)
    assert objective_log_e(units, k, p_max) >= need > objective_log_e(units - 1, k, p_max)


def test_a_faultless_canary_passes_near_the_floor():
    floor = math.log(1 / 0.05) / -math.log(1 - 0.05)
    assert floor == pytest.approx(58.4, abs=0.05)
    assert objective_units(0, 0.05) <= 65


@pytest.mark.parametrize("p_max", [0.01, 0.05, 0.3])
def test_the_objectives_evidence_is_fair_at_its_limit_and_falls_above_it(p_max):
    for n in range(0, 200, 7):
        for k in range(0, n + 1, 3):
            now = objective_log_e(n, k, p_max)
            bad = math.exp(objective_log_e(n + 1, k + 1, p_max) - now)
            good = math.exp(objective_log_e(n + 1, k, p_max) - now)
            assert p_max * bad + (1 - p_max) * good == pytest.approx(1.0, abs=1e-9)
            assert bad < 1.0 < good


def test_no_units_is_no_evidence():
    assert objective_log_e(0, 0, 0.05) == pytest.approx(0.0)


@pytest.mark.parametrize(("n", "k", "p_max"), [(10, 11, 0.05), (10, -1, 0.05), (10, 0, 0.0), (10, 0, 1.0)])
def test_impossible_counts_are_refused(n, k, p_max):
    with pytest.raises(ValueError):
        objective_log_e(n, k, p_max)


@pytest.mark.parametrize("bad", [{"rho1": 0.0}, {"rho1": 3.0, "b": 1.0}, {"rho1": 3.0, "at_one": 1.0}])
def test_a_config_that_makes_no_sense_is_refused(bad):
    with pytest.raises(ValueError):
        ForwardConfig(**bad)
