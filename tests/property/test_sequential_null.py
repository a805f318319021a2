"""The one property everything rests on: under the null no bet gains on average, at any weight, from any state.

`check_factor` is used on the real tests and on planted mutants, each a plausible slip, and must tell them apart.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from monitoring.sequential.events import (
    THETAS,
    AveragedLevels,
    AveragedState,
    CappedMixture,
    EProcessConfig,
    EProcessState,
    for_session,
    odds,
    q,
)
from monitoring.sequential.forward import ForwardConfig, ForwardState, NonInferiority
from monitoring.sequential.scores import for_score, paired_log_factor

TOLERANCE = 1e-12
ALPHA = 0.01

Factor = Callable[[EProcessConfig, EProcessState, bool, float], float]
"""By how much one event multiplies the evidence."""

weights = st.floats(0.001, 0.999)
rho0s = st.sampled_from([1.0, 1.25, 2.0])


@st.composite
def states(draw: st.DrawFn) -> EProcessState:
    """Any state before the threshold, reachable or not: the shares needn't come from real events."""
    raw = draw(st.lists(st.floats(0.0, 1.0), min_size=len(THETAS) + 1, max_size=len(THETAS) + 1))
    total = math.fsum(raw) or 1.0
    if math.fsum(raw) == 0.0:
        raw = [1.0, *raw[1:]]
    gap = draw(st.one_of(st.floats(1e-6, 1.0), st.floats(1.0, 40.0)))
    return EProcessState(
        log_w=-math.log(ALPHA) - gap,
        shares=tuple(value / total for value in raw[:-1]),
        cash=raw[-1] / total,
        n=draw(st.integers(0, 10_000)),
    )


def null_mean(factor: Factor, config: EProcessConfig, state: EProcessState, weight: float, ratio: float) -> float:
    """Mean factor of the next event when the rate ratio is `ratio`."""
    ours = q(ratio, weight)
    return ours * factor(config, state, True, weight) + (1.0 - ours) * factor(config, state, False, weight)


def check_factor(factor: Factor, config: EProcessConfig, state: EProcessState, weight: float) -> None:
    """Fair at rho0 (more would pass alpha, less would waste evidence), losing below it, and capped."""
    at_null = null_mean(factor, config, state, weight, config.rho0)
    assert at_null <= 1.0 + TOLERANCE, f"gains {at_null - 1.0:.3g} a bet under the null"
    assert at_null >= 1.0 - TOLERANCE, f"wastes {1.0 - at_null:.3g} a bet"
    better = null_mean(factor, config, state, weight, 0.5 * config.rho0)
    assert better <= 1.0 + TOLERANCE, "gains on a canary that is better than the null"
    highest = state.log_w + math.log(factor(config, state, True, weight))
    assert highest <= -math.log(config.alpha) + TOLERANCE, "passes the cap"


def real_factor(config: EProcessConfig, state: EProcessState, canary: bool, weight: float) -> float:
    return math.exp(CappedMixture(config).update(state, canary, weight).log_w - state.log_w)


def mutant(
    *,
    wrong_q0: bool = False,
    uncapped_loss: bool = False,
    uncapped_win: bool = False,
    cap_ignores_wealth: bool = False,
    swapped_weight: bool = False,
    swapped_arms: bool = False,
    cash_pays_nothing: bool = False,
) -> Factor:
    """The factor of section 3 written out again, with one slip of the pen (or none)."""

    def factor(config: EProcessConfig, state: EProcessState, canary: bool, weight: float) -> float:
        w = 1.0 - weight if swapped_weight else weight
        rho0 = 1.0 if wrong_q0 else config.rho0
        q0 = q(rho0, w)
        n = state.n + 1
        moved = state.cash / (n + 21)
        each = moved / len(config.grid)
        cash = state.cash - moved
        up = sum(
            (share + each) * q(config.rho0 * ratio, w) / q0
            for share, ratio in zip(state.shares, config.grid, strict=True)
        )
        up += 0.0 if cash_pays_nothing else cash
        cap = 1.0 / config.alpha if cap_ignores_wealth else math.exp(-math.log(config.alpha) - state.log_w)
        won = min(up, cap)
        lost = (1.0 - q0 * (up if uncapped_loss else won)) / (1.0 - q0)
        return (up if uncapped_win else won) if canary is not swapped_arms else lost

    return factor


@given(state=states(), weight=weights, rho0=rho0s)
def test_the_rollback_test_is_fair_at_the_null_and_capped(state, weight, rho0):
    check_factor(real_factor, EProcessConfig(alpha=ALPHA, rho0=rho0), state, weight)


@given(state=states(), weight=weights, rho0=rho0s, canary=st.booleans())
def test_it_is_section_3_as_written(state, weight, rho0, canary):
    config = EProcessConfig(alpha=ALPHA, rho0=rho0)
    assert real_factor(config, state, canary, weight) == pytest.approx(
        mutant()(config, state, canary, weight), rel=1e-9
    )


SLIPS = (
    "wrong_q0",
    "uncapped_loss",
    "uncapped_win",
    "cap_ignores_wealth",
    "swapped_weight",
    "swapped_arms",
    "cash_pays_nothing",
)


@pytest.mark.parametrize("slip", SLIPS)
def test_a_planted_mutant_is_caught(slip):
    factor = mutant(**{slip: True})

    with pytest.raises((AssertionError, ValueError)):  # ValueError: a factor below 0 has no logarithm
        check_everywhere(factor)


def test_the_same_factor_without_a_slip_is_not():
    check_everywhere(mutant())


def check_everywhere(factor: Factor) -> None:
    @settings(
        max_examples=200,
        database=None,
        derandomize=True,
        deadline=None,
        phases=[Phase.generate],  # the first failure is enough; no time is spent on the smallest
        report_multiple_bugs=False,
    )
    @given(state=states(), weight=weights, rho0=rho0s)
    def holds(state: EProcessState, weight: float, rho0: float) -> None:
        check_factor(factor, EProcessConfig(alpha=ALPHA, rho0=rho0), state, weight)

    holds()


@given(state=states(), weight=weights, index=st.integers(1, 50), rate=st.floats(0.0, 0.5), canary_ratio=st.floats(0, 1))
def test_units_of_a_session_and_scores_are_fair_too(state, weight, index, rate, canary_ratio):
    test = CappedMixture(EProcessConfig(alpha=ALPHA))
    for thetas in (for_session(test.thetas, index, rate), for_score(test.thetas, canary_ratio)):

        def factor(_config, before, canary, w, thetas=thetas):
            return math.exp(test.update(before, canary, w, thetas=thetas).log_w - before.log_w)

        check_factor(factor, test.config, state, weight)


@given(events=st.lists(st.tuples(st.booleans(), weights), max_size=60), rho0=rho0s)
def test_along_any_path_evidence_moves_the_right_way_and_stays_capped(events, rho0):
    config = EProcessConfig(alpha=ALPHA, rho0=rho0)
    test = CappedMixture(config)
    state = test.start()
    for canary, weight in events:
        after, other = test.update(state, canary, weight), test.update(state, not canary, weight)
        worse, better = (after, other) if canary else (other, after)
        assert worse.log_w >= state.log_w - TOLERANCE
        assert better.log_w <= state.log_w + TOLERANCE
        assert after.log_w <= config.log_cap
        assert after.crossed or not state.crossed
        assert after.crossed is (after.log_w >= config.log_threshold)
        assert after.n == state.n + 1
        assert math.fsum(after.shares) + after.cash == pytest.approx(1.0, abs=1e-9)
        assert all(share >= 0.0 for share in after.shares)
        state = after


@given(events=st.lists(st.tuples(st.booleans(), weights), max_size=40))
def test_a_state_survives_json_and_goes_on_the_same(events):
    test, fine = CappedMixture(EProcessConfig(alpha=ALPHA)), NonInferiority(ForwardConfig(rho1=3.0))
    state, forward = test.start(), fine.start()
    for canary, weight in events:
        stored = EProcessState.from_json(json.loads(json.dumps(state.to_json())))
        forward_stored = ForwardState.from_json(json.loads(json.dumps(forward.to_json())))
        assert stored == state
        assert forward_stored == forward
        state, forward = test.update(stored, canary, weight), fine.update(forward_stored, canary, weight)


@given(events=st.lists(st.tuples(st.booleans(), weights), max_size=60))
def test_without_the_cap_it_is_the_plain_mixture(events):
    test = CappedMixture(EProcessConfig(alpha=ALPHA, cash=0.0, capped=False))
    state = test.start()
    logs = [0.0] * len(THETAS)
    for canary, weight in events:
        state = test.update(state, canary, weight)
        both = odds(THETAS, 1.0, weight)
        logs = [log + math.log(f) for log, f in zip(logs, both.canary if canary else both.stable, strict=True)]
    highest = max(logs)
    expected = highest + math.log(sum(math.exp(log - highest) for log in logs) / len(THETAS))
    assert state.log_w == pytest.approx(expected, abs=1e-8)


@given(
    units=st.lists(st.tuples(st.sets(st.integers(0, 3), min_size=1), st.booleans(), weights), max_size=30),
    weight=weights,
    exceeded=st.sets(st.integers(0, 3), min_size=1),
)
def test_averaged_levels_are_fair_whatever_set_of_levels_comes_next(units, weight, exceeded):
    averaged = AveragedLevels(EProcessConfig(alpha=ALPHA))
    state = averaged.start()
    for levels, canary, w in units:
        state = averaged.update(state, levels, canary, w)
        assert all(level.log_w <= math.log(4 / ALPHA) + TOLERANCE for level in state.levels)
    assert AveragedState.from_json(json.loads(json.dumps(state.to_json()))) == state
    before = math.exp(averaged.log_e(state))
    mean = sum(
        p * math.exp(averaged.log_e(averaged.update(state, exceeded, canary, weight)))
        for canary, p in ((True, weight), (False, 1.0 - weight))
    )
    assert mean == pytest.approx(before, rel=1e-11)


@given(
    events=st.lists(st.tuples(st.booleans(), weights), max_size=40),
    weight=weights,
    rho1=st.floats(1.1, 20.0),
    above=st.floats(1.0, 5.0),
)
def test_non_inferiority_never_gains_on_a_canary_as_bad_as_rho1(events, weight, rho1, above):
    fine = NonInferiority(ForwardConfig(rho1=rho1))
    state = fine.start()
    for canary, w in events:
        state = fine.update(state, canary, w)
    bad, good = (math.exp(fine.update(state, canary, weight).log_e - state.log_e) for canary in (True, False))
    assert bad <= 1.0 + TOLERANCE
    assert good >= 1.0 - TOLERANCE
    at_null = q(rho1, weight) * bad + (1.0 - q(rho1, weight)) * good
    assert at_null == pytest.approx(1.0, abs=1e-11)
    worse = q(rho1 * above, weight) * bad + (1.0 - q(rho1 * above, weight)) * good
    assert worse <= 1.0 + 1e-11


@given(g=st.floats(-1.0, 1.0), eta=st.floats(0.0, 50.0))
def test_a_shadow_pair_is_fair_when_the_arms_can_be_exchanged(g, eta):
    mean = 0.5 * (math.exp(paired_log_factor(g, eta)) + math.exp(paired_log_factor(-g, eta)))
    assert mean == pytest.approx(1.0, abs=TOLERANCE)
