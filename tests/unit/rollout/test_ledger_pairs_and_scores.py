"""Mirrored pairs and scored answers: what counts, with which weight, and what lets them go forward."""

from __future__ import annotations

import math
import random

import pytest

from monitoring.sequential.events import THETAS
from monitoring.sequential.planning import bernoulli_kl
from monitoring.sequential.scores import paired_log_factor
from rollout.analysis.signal import SignalTest, Standings
from rollout.observation import Similarity, Verdict
from rollout.specs import SignalSpec
from serving.outcomes import Signal
from serving.traffic import Role
from tests.unit.rollout.evidence import STABLE, event, increment, make, read, total

SHADOW = {"strategy": {"shadow": {}}}
SCORE = "score/nll"


def pair_event(sequence: int, arm: Role, **changes):
    return event(sequence, arm=arm, weight=50, paired=True, **changes)


def scored(n: int, *, shift: float, seed: int = 1, canary_share: float = 0.1, **changes):
    """Scores of both arms, the canary's worse by `shift` standard deviations."""
    rng = random.Random(seed)
    for i in range(1, n + 1):
        canary = rng.random() < canary_share
        value = rng.gauss(shift if canary else 0.0, 1.0)
        yield event(i, SCORE, Role.CANARY if canary else Role.STABLE, score=value, **changes)


def test_pairs_in_which_only_the_canary_fails_take_it_back():
    ledger = make({"name": Signal.ERROR}, weight=0, **SHADOW)
    ledger.add(increment(*(pair_event(i, Role.CANARY) for i in range(1, 12))))
    found = read(ledger)
    assert found.verdict is Verdict.FAILED
    assert ledger.exposure().canary_requests == 0, "a mirrored request exposes nobody"
    assert ledger.exposure().lower_bound is None


def test_pairs_that_differ_either_way_alike_show_that_it_is_not_worse():
    ledger = make({"name": Signal.ERROR}, weight=0, **SHADOW)
    arms = [Role.CANARY, Role.STABLE, Role.STABLE] * 60
    ledger.add(increment(*(pair_event(i, arm) for i, arm in enumerate(arms, 1)), settled_through=200))
    rows = (total(settled=1_000, weight=50, events={"error": 60}), total(STABLE, settled=1_000, weight=50))
    ledger.add(increment(totals=rows, settled_through=1_000))
    found = read(ledger)
    assert found.verdict is Verdict.SUCCESSFUL
    assert (found.canary.n, found.stable.n) == (1_000, 1_000)
    assert ledger.pairs == 1_000
    assert ledger.sample_ratio() is None


def test_the_estimate_of_a_shadow_is_in_pairs_although_the_canary_has_no_weight():
    ledger = make({"name": Signal.ERROR}, weight=0, **SHADOW)
    arms = [Role.CANARY] * 6 + [Role.STABLE] * 2
    rows = (total(settled=100, weight=50, events={"error": 6}), total(STABLE, settled=100, weight=50))
    ledger.add(increment(*(pair_event(i, arm) for i, arm in enumerate(arms, 1)), totals=rows, settled_through=100))
    found = read(ledger)
    # Eight of a hundred pairs differ, 6.5 to 2.5 with half an event each: what is left, over what a pair tells.
    nats_a_pair = 0.08 * bernoulli_kl(6.5 / 9.0, 0.5)
    assert found.requests_to_decision == math.ceil((found.threshold - found.log_e) / nats_a_pair)


def test_latency_of_mirrors_judges_nobody():
    ledger = make({"name": Signal.SLOW_TOKENS}, weight=0, **SHADOW)
    slow = (pair_event(i, Role.CANARY, signal=Signal.SLOW_TOKENS, level="p99") for i in range(1, 99))
    ledger.add(increment(*slow))
    found = read(ledger, Signal.SLOW_TOKENS)
    assert found.log_e == 0.0
    assert not found.gating


def test_a_pair_of_scores_is_joined_by_its_admission_in_either_order():
    here, there = (make({"name": SCORE}, weight=0, **SHADOW) for _ in range(2))
    rng = random.Random(3)
    for i in range(40):
        worse, better = rng.random() + 0.4, rng.random()
        canary = pair_event(2 * i + 1, Role.CANARY, signal=SCORE, score=worse, admission=i + 1)
        stable = pair_event(2 * i + 2, Role.STABLE, signal=SCORE, score=better, admission=i + 1)
        here.add(increment(canary, stable))
        swapped = (stable.model_copy(update={"sequence": 2 * i + 1}), canary.model_copy(update={"sequence": 2 * i + 2}))
        there.add(increment(*swapped))
    assert read(here, SCORE).log_e == read(there, SCORE).log_e > 0.0
    assert read(here, SCORE).canary.n == 40


def test_one_half_of_a_pair_is_no_evidence():
    ledger = make({"name": SCORE}, weight=0, **SHADOW)
    ledger.add(increment(*(pair_event(i, Role.CANARY, signal=SCORE, score=9.0) for i in range(1, 99))))
    assert read(ledger, SCORE).log_e == 0.0
    assert read(ledger, SCORE).canary.n == 0


def test_the_first_pair_of_scores_is_the_factor_of_the_analysis_page():
    """The grid's mixture of exp(eta g)/cosh(eta g), with theta = exp(2 eta); the first difference has rank one half."""
    test = SignalTest(SignalSpec(name=SCORE), alpha=0.01, beta=0.05, paired=True)
    test.score_pair(0.7)
    moved = 0.8 + 0.2 / 22
    expected = sum(math.exp(paired_log_factor(0.5, math.log(theta) / 2)) for theta in THETAS) / len(THETAS)
    found = test.reading(Standings(), 0.5).log_e
    assert math.exp(found) == pytest.approx(moved * expected + (1 - moved), rel=1e-9)


@pytest.mark.parametrize(("shift", "verdict"), [(2.0, Verdict.FAILED), (0.0, Verdict.SUCCESSFUL)])
def test_scores_take_a_worse_canary_back_and_let_an_equal_one_pass(shift, verdict):
    ledger = make({"name": SCORE})
    ledger.add(increment(*scored(3_000, shift=shift), settled_through=3_000))
    found = read(ledger, SCORE)
    assert found.verdict is verdict
    assert found.canary.n + found.stable.n == 3_000
    assert found.requests_to_decision == 0
    assert found.objective_log_e is None


def test_how_long_scores_take_to_tell_is_not_known():
    ledger = make({"name": SCORE})
    ledger.add(increment(*scored(60, shift=0.0), settled_through=60))
    assert read(ledger, SCORE).verdict is Verdict.RUNNING
    assert read(ledger, SCORE).requests_to_decision is None


def test_arms_that_are_scored_at_different_rates_are_weighed_by_them():
    """All of a 10 % canary and a ninth of stable are scored: half of the scores are the canary's, and it is fine."""
    fair, unfair = make({"name": SCORE}), make({"name": SCORE})
    rates = {"canary_rate": 1.0, "stable_rate": 1 / 9}
    fair.add(increment(*scored(600, shift=0.0, canary_share=0.5, **rates)))
    unfair.add(increment(*scored(600, shift=0.0, canary_share=0.5)))
    assert read(fair, SCORE).verdict is not Verdict.FAILED
    assert read(unfair, SCORE).verdict is Verdict.FAILED, "without the rates the canary seems to have too many"


def test_scores_of_answers_that_have_not_settled_let_nothing_go_forward():
    ledger = make({"name": SCORE})
    ledger.add(increment(*scored(3_000, shift=0.0)))
    assert read(ledger, SCORE).forward_log_e == pytest.approx(0.0, abs=1e-9)
    assert read(ledger, SCORE).verdict is Verdict.RUNNING


def test_similarity_is_a_mean_over_pairs_and_gates_nothing():
    ledger = make({"name": Signal.ERROR}, weight=0, **SHADOW)
    rows = (
        total(settled=10, weight=50, similarity_n=4, similarity_sum=3.0),
        total(STABLE, settled=10, weight=50, similarity_n=4, similarity_sum=3.0, baseline_n=2, baseline_sum=1.9),
    )
    ledger.add(increment(totals=rows, settled_through=20))
    assert ledger.similarity() == Similarity(pairs=4, to_stable=0.75, baseline_pairs=2, baseline=0.95)
    assert make().similarity() is None
