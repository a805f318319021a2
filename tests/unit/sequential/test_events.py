"""The rollback test's worked numbers, its bad input, and its speed."""

from __future__ import annotations

import ast
import math
import time
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from monitoring.sequential import events
from monitoring.sequential.events import THETAS, AveragedLevels, CappedMixture, EProcessConfig, for_session, odds, q


def after(test: CappedMixture, pattern: str, weight: float = 0.1):
    """The state after events written as c (canary) and s (stable)."""
    state = test.start()
    for letter in pattern:
        state = test.update(state, letter == "c", weight)
    return state


@pytest.fixture
def one_percent() -> CappedMixture:
    return CappedMixture(EProcessConfig(alpha=0.01))


@pytest.mark.parametrize(
    ("theta", "weight", "share"), [(1.0, 0.1, 0.1), (5.0, 0.1, 0.35714), (10.0, 0.1, 0.52632), (2.0, 0.5, 0.66667)]
)
def test_the_canarys_share_of_the_events(theta, weight, share):
    assert q(theta, weight) == pytest.approx(share, abs=1e-5)


def test_the_grid_is_twenty_ratios_from_1_5_to_40():
    assert len(THETAS) == 20
    assert (THETAS[0], THETAS[-1]) == (1.5, pytest.approx(40.0))
    assert THETAS[1] / THETAS[0] == pytest.approx(THETAS[-1] / THETAS[-2])


@pytest.mark.parametrize(
    ("pattern", "evidence"),
    [("", 1.0), ("c", 3.9912), ("s", 0.66764), ("cc", 21.9186), ("ccc", 100.0), ("cccs", 100.0), ("cccc", 100.0)],
)
def test_worked_numbers_at_ten_percent(one_percent, pattern, evidence):
    assert math.exp(after(one_percent, pattern).log_w) == pytest.approx(evidence, rel=1e-4)


def test_the_cash_runs_out_as_section_3_says(one_percent):
    """With bets that all pay 1 the shares stay as moved: cash is 0.2 * 21/(n + 21) after n events."""
    state = one_percent.start()
    for n in range(1, 200):
        state = one_percent.update(state, n % 2 == 0, 0.5, thetas=(1.0,) * 20)
        assert state.cash == pytest.approx(0.2 * 21 / (n + 21))
        assert state.log_w == pytest.approx(0.0, abs=1e-12)


def test_it_rolls_back_at_the_threshold_and_stays_there(one_percent):
    assert not one_percent.crossed(after(one_percent, "cc"))
    state = after(one_percent, "ccc" + "s" * 500)
    assert one_percent.crossed(state)
    assert (state.n, state.canary) == (503, 3)


def test_without_the_cap_it_has_crossed_for_good_too():
    test = CappedMixture(EProcessConfig(alpha=0.01, capped=False))
    state = after(test, "cccccc" + "s" * 200)
    assert state.log_w < test.config.log_threshold
    assert test.crossed(state)


def test_one_event_multiplies_by_at_most_one_over_the_weight(one_percent):
    state = after(one_percent, "c", weight=0.5)
    assert 1.0 < math.exp(state.log_w) < 2.0


def test_a_canary_within_rho0_is_not_rolled_back():
    test = CappedMixture(EProcessConfig(alpha=0.01, rho0=2.0))
    assert min(test.thetas) == 3.0
    assert not test.crossed(after(test, "cssss" * 100))


def test_ten_thousand_stable_events_leave_finite_evidence_that_recovers(one_percent):
    state = after(one_percent, "s" * 10_000)
    assert math.isfinite(state.log_w)
    assert one_percent.crossed(after_more(one_percent, state, 40))


def after_more(test: CappedMixture, state, canary_events: int):
    for _ in range(canary_events):
        state = test.update(state, True, 0.1)
    return state


@pytest.mark.parametrize("weight", [0.0, 1.0, -0.1, 10.0, math.nan])
def test_a_forced_unit_or_percent_is_refused(one_percent, weight):
    with pytest.raises(ValueError, match="leave out forced units"):
        one_percent.update(one_percent.start(), True, weight)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"alpha": 0.0}, "alpha is 0.0"),
        ({"alpha": 1.0}, "alpha is 1.0"),
        ({"alpha": 0.01, "rho0": 0.0}, "rho0 is 0.0"),
        ({"alpha": 0.01, "grid": ()}, "grid"),
        ({"alpha": 0.01, "grid": (1.0, 2.0)}, "grid"),
        ({"alpha": 0.01, "cash": 1.0}, "cash is 1.0"),
        ({"alpha": 0.01, "cap_factor": 0.5}, "cap_factor is 0.5"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        EProcessConfig(**bad)


def test_states_do_not_change(one_percent):
    state = one_percent.start()
    one_percent.update(state, True, 0.1)
    assert state == one_percent.start()
    with pytest.raises(FrozenInstanceError):
        state.n = 5


@pytest.mark.parametrize("weight", [1e-9, 0.5, 1 - 1e-9])
def test_odds_are_exact_at_the_ends(weight):
    both = odds(THETAS, 1.0, weight)
    for up, down in zip(both.canary, both.stable, strict=True):
        assert weight * up + (1.0 - weight) * down == pytest.approx(1.0, abs=1e-12)
        assert up >= 1.0 >= down > 0.0


def test_late_first_events_of_a_session_are_weaker_evidence():
    first, eleventh, never = (for_session((5.0, 1.5), k, 0.01) for k in (1, 11, 1_000))
    assert first == (5.0, 1.5)
    assert eleventh == (pytest.approx(3.3102, abs=1e-4), pytest.approx(1.4257, abs=1e-3))
    assert never == (1.0, 1.0)


def test_one_bad_latency_level_carries_the_average():
    averaged = AveragedLevels(EProcessConfig(alpha=0.01))
    state = averaged.start()
    assert averaged.log_e(state) == pytest.approx(0.0)
    for _ in range(3):
        state = averaged.update(state, (3,), True, 0.1)
    assert not averaged.crossed(state)  # 125 of 400
    for _ in range(2):
        state = averaged.update(state, (3,), True, 0.1)
    assert averaged.crossed(state)
    for _ in range(50):
        state = averaged.update(state, (0, 1, 2), False, 0.1)
    assert averaged.crossed(state)


def test_levels_that_do_not_exist_are_refused():
    averaged = AveragedLevels(EProcessConfig(alpha=0.01))
    with pytest.raises(ValueError, match="only 0 to 3"):
        averaged.update(averaged.start(), (4,), True, 0.1)


def test_an_update_takes_less_than_thirty_microseconds(one_percent):
    """The best of several rounds, so that a busy machine does not fail it."""
    best = math.inf
    for _ in range(10):
        state = one_percent.start()
        began = time.perf_counter()
        for _ in range(200):
            state = one_percent.update(state, False, 0.1)
        best = min(best, (time.perf_counter() - began) / 200)
    assert best < 30e-6


FORBIDDEN = {"time", "os", "random", "logging", "asyncio", "socket", "numpy", "scipy"}


def test_the_mathematics_import_nothing_that_acts():
    for path in Path(events.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not FORBIDDEN & {name.split(".")[0] for name in names}, path.name
