"""Sample ratio, always-valid interval, endless watch, scores and shadow pairs: worked numbers and bad input."""

from __future__ import annotations

import json
import math

import pytest

from monitoring.sequential.events import q
from monitoring.sequential.intervals import TWO_SIDED, ratio_interval
from monitoring.sequential.sample_ratio import sample_ratio_alarm, sample_ratio_log_e, sample_ratio_over_steps
from monitoring.sequential.scores import badness_rank, for_score, paired_log_factor, sampled_weight
from monitoring.sequential.watch import WatchState, alarmed, start_watch, watch


@pytest.mark.parametrize(("canary", "stable", "log_e"), [(0, 0, 0.0), (100, 900, -1.538), (150, 850, 10.008)])
def test_sample_ratio_worked_numbers(canary, stable, log_e):
    assert sample_ratio_log_e(canary, stable, 0.1) == pytest.approx(log_e, abs=1e-3)


@pytest.mark.parametrize("weight", [0.01, 0.1, 0.5, 0.9])
def test_sample_ratio_is_fair_at_every_step(weight):
    for n1, n0 in [(0, 0), (3, 10), (50, 20), (400, 4000)]:
        now = sample_ratio_log_e(n1, n0, weight)
        mean = weight * math.exp(sample_ratio_log_e(n1 + 1, n0, weight) - now)
        mean += (1 - weight) * math.exp(sample_ratio_log_e(n1, n0 + 1, weight) - now)
        assert mean == pytest.approx(1.0, abs=1e-9)


def test_sample_ratio_multiplies_over_steps_and_alarms_at_a_thousand():
    steps = {0.1: (150, 850), 0.5: (100, 100)}
    total = sample_ratio_over_steps(steps)
    assert total == pytest.approx(sample_ratio_log_e(150, 850, 0.1) + sample_ratio_log_e(100, 100, 0.5))
    assert sample_ratio_alarm(math.log(1000.0) + 1e-9)
    assert not sample_ratio_alarm(math.log(999.0))


def test_sample_ratio_refuses_negative_counts():
    with pytest.raises(ValueError, match="negative"):
        sample_ratio_log_e(-1, 5, 0.1)


@pytest.mark.parametrize(
    ("counts", "estimate", "low", "high"),
    [
        ({0.5: (30, 20)}, 1.5, 0.602, 3.959),
        ({0.1: (0, 20)}, 0.0, 0.0, 2.110),
        ({0.1: (5, 0)}, math.inf, 2.771, math.inf),
        ({0.1: (50, 450), 0.5: (500, 500)}, 1.0, 0.808, 1.235),
    ],
)
def test_always_valid_interval(counts, estimate, low, high):
    found = ratio_interval(counts)
    assert (found.estimate, found.low, found.high) == pytest.approx((estimate, low, high), abs=2e-3)


def test_the_bounds_are_where_the_mixture_is_twenty_times_as_likely():
    counts = {0.1: (9, 60), 0.4: (30, 25)}

    def likelihood(theta):
        return math.prod(q(theta, w) ** n1 * (1.0 - q(theta, w)) ** n0 for w, (n1, n0) in counts.items())

    mixture = sum(likelihood(theta) for theta in TWO_SIDED) / len(TWO_SIDED)
    found = ratio_interval(counts, alpha=0.05)
    assert found.low < found.estimate < found.high
    for bound in (found.low, found.high):
        assert mixture / likelihood(bound) == pytest.approx(20.0, rel=1e-6)
    assert likelihood(found.estimate) > max(likelihood(found.estimate * 0.99), likelihood(found.estimate * 1.01))


def test_no_events_bound_nothing():
    found = ratio_interval({0.5: (0, 0)})
    assert math.isnan(found.estimate)
    assert (found.low, found.high) == (0.0, math.inf)


def test_interval_mirrors_when_the_arms_are_named_the_other_way_round():
    here, there = ratio_interval({0.3: (12, 40)}), ratio_interval({0.7: (40, 12)})
    assert here.low == pytest.approx(1 / there.high, rel=1e-6)
    assert here.estimate == pytest.approx(1 / there.estimate, rel=1e-6)


def test_the_watch_alarms_on_a_run_of_canary_events():
    state = start_watch()
    assert state.value == 0.0
    for n in range(1, 5):
        state = watch(state, True, 0.1)
        assert alarmed(state, 0.01) is (n >= 3)
    assert WatchState.from_json(json.loads(json.dumps(state.to_json()))) == state


def test_the_watch_gains_one_an_event_under_the_null():
    state = watch(watch(start_watch(), True, 0.2), False, 0.2)
    mean = 0.2 * watch(state, True, 0.2).value + 0.8 * watch(state, False, 0.2).value
    assert mean == pytest.approx(state.value + 1.0)


@pytest.mark.parametrize(
    ("past", "badness", "rank"),
    [([], 3.0, 0.5), ([1.0], 0.0, 0.0), ([1.0], 2.0, 1.0), ([1.0, 1.0], 1.0, 0.5), ([0.1, 0.2, 0.2, 0.9], 0.5, 0.75)],
)
def test_badness_ranks_among_the_past(past, badness, rank):
    assert badness_rank(past, badness) == rank


def test_a_score_of_nothing_bets_nothing_and_a_full_one_is_an_event():
    assert for_score((2.0, 9.0), 0.0) == (1.0, 1.0)
    assert for_score((2.0, 9.0), 1.0) == (2.0, 9.0)
    assert for_score((9.0,), 0.5) == (3.0,)
    with pytest.raises(ValueError, match="between 0 and 1"):
        for_score((2.0,), 1.5)


def test_weight_among_scored_units():
    assert sampled_weight(0.1, 1.0, 1.0) == pytest.approx(0.1)
    assert sampled_weight(0.1, 1.0, 1 / 9) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="sampling rates"):
        sampled_weight(0.1, 0.0, 1.0)


def test_a_shadow_pair_at_most_doubles_the_evidence():
    assert paired_log_factor(0.0, 3.0) == pytest.approx(0.0)
    assert math.exp(paired_log_factor(1.0, 800.0)) == pytest.approx(2.0)
    with pytest.raises(ValueError, match="not negative"):
        paired_log_factor(0.5, -1.0)
