"""What the tests promise, counted in simulated rollouts with fixed seeds: few false alarms, and little exposure."""

from __future__ import annotations

import math
import random

import pytest

from monitoring.sequential.events import AveragedLevels, CappedMixture, EProcessConfig, EProcessState, q
from monitoring.sequential.forward import ForwardConfig, NonInferiority, objective_log_e
from monitoring.sequential.planning import least_canary_requests
from monitoring.sequential.sample_ratio import sample_ratio_alarm, sample_ratio_log_e
from monitoring.sequential.watch import alarmed, start_watch, watch

ALPHA = 0.05


def at_most(alpha: float, runs: int) -> float:
    """Alpha and three standard deviations of a share counted over `runs`."""
    return alpha + 3.0 * math.sqrt(alpha * (1.0 - alpha) / runs)


def fixed(_state: EProcessState) -> float:
    return 0.1


def steps(state: EProcessState) -> float:
    return (0.01, 0.05, 0.1, 0.25, 0.5)[min(state.n // 60, 4)]


def adversary(state: EProcessState) -> float:
    """Raises the stakes when it looks bad: allowed, since the weight is known before the arm."""
    return 0.5 if state.log_w > 0.5 else 0.03


@pytest.mark.parametrize(
    ("weight_of", "runs", "events"), [(fixed, 2_000, 400), (steps, 1_000, 300), (adversary, 2_000, 150)]
)
def test_a_healthy_canary_is_rolled_back_at_most_as_often_as_promised(weight_of, runs, events):
    rng = random.Random(20260101)
    test = CappedMixture(EProcessConfig(alpha=ALPHA))
    alarms = 0
    for _ in range(runs):
        state = test.start()
        while state.n < events and not state.crossed:
            weight = weight_of(state)
            state = test.update(state, rng.random() < weight, weight)
        alarms += state.crossed
    assert 0.01 <= alarms / runs <= at_most(ALPHA, runs)


def test_a_slip_in_the_weight_would_show_in_this_simulation():
    rng = random.Random(5)
    test = CappedMixture(EProcessConfig(alpha=ALPHA))
    alarms = 0
    for _ in range(200):
        state = test.start()
        while state.n < 400 and not state.crossed:
            state = test.update(state, rng.random() < 0.15, 0.1)
        alarms += state.crossed
    assert alarms / 200 > at_most(ALPHA, 200)


def test_averaged_latency_levels_keep_the_promise():
    rng = random.Random(7)
    averaged = AveragedLevels(EProcessConfig(alpha=ALPHA))
    runs, alarms = 500, 0
    for _ in range(runs):
        state = averaged.start()
        for _ in range(150):
            slowness = rng.random() * 0.5
            exceeded = [i for i, part in enumerate((0.5, 0.2, 0.05, 0.01)) if slowness < part]
            state = averaged.update(state, exceeded, rng.random() < 0.1, 0.1)
            if state.crossed:
                break
        alarms += state.crossed
    assert alarms / runs <= at_most(ALPHA, runs)


def test_a_tenfold_error_rate_is_found_near_the_lower_bound():
    rng = random.Random(11)
    weight, stable, canary = 0.1, 0.01, 0.10
    rate = weight * canary + (1 - weight) * stable
    test = CappedMixture(EProcessConfig(alpha=0.01))
    exposures = []
    for _ in range(300):
        state, requests = test.start(), 0
        while not state.crossed:
            while rng.random() >= rate:
                requests += rng.random() < weight * (1 - canary) / (1 - rate)
            ours = rng.random() < q(canary / stable, weight)
            requests += ours
            state = test.update(state, ours, weight)
        exposures.append(requests)
    ratio = sum(exposures) / len(exposures) / least_canary_requests(stable, canary, weight, 0.01)
    assert ratio <= 1.4


def test_a_fault_after_a_long_healthy_time_is_found_soon():
    rng = random.Random(13)
    test = CappedMixture(EProcessConfig(alpha=0.01))
    without = CappedMixture(EProcessConfig(alpha=0.01, cash=0.0))
    found = {}
    for name, one in (("restarts", test), ("none", without)):
        events = []
        for _ in range(60):
            state = one.start()
            while state.n < 500 and not state.crossed:
                state = one.update(state, rng.random() < 0.1, 0.1)
            onset = state.n
            while not state.crossed:
                state = one.update(state, rng.random() < q(5.0, 0.1), 0.1)
            events.append(state.n - onset)
        found[name] = sum(events) / len(events)
    # The bound of 135 canary requests is 18.9 events (1.4 % of 1,350 requests); target 4 times that.
    assert found["restarts"] <= 4 * 18.9
    assert found["none"] > 1.3 * found["restarts"]


def test_a_canary_as_bad_as_rho1_seldom_passes_and_an_equal_one_soon():
    rng = random.Random(17)
    fine = NonInferiority(ForwardConfig(rho1=3.0))
    wrong = 0
    for _ in range(1_000):
        state = fine.start()
        while state.n < 200 and not fine.passed(state):
            state = fine.update(state, rng.random() < q(3.0, 0.1), 0.1)
        wrong += fine.passed(state)
    assert wrong / 1_000 <= at_most(0.05, 1_000)
    events = []
    for _ in range(300):
        state = fine.start()
        while not fine.passed(state):
            state = fine.update(state, rng.random() < 0.1, 0.1)
        events.append(state.n)
    assert sum(events) / len(events) <= 60


def test_a_canary_at_the_objectives_limit_seldom_passes():
    rng = random.Random(19)
    need = -math.log(0.05)
    table: dict[tuple[int, int], bool] = {}
    wrong = 0
    for _ in range(1_000):
        k = 0
        for n in range(1, 301):
            k += rng.random() < 0.05
            if (n, k) not in table:
                table[n, k] = objective_log_e(n, k, 0.05) >= need
            if table[n, k]:
                wrong += 1
                break
    assert wrong / 1_000 <= at_most(0.05, 1_000)


def test_the_sample_ratio_check_seldom_alarms_on_a_right_split_and_soon_on_a_wrong_one():
    rng = random.Random(23)
    wrong = 0
    for _ in range(300):
        canary = 0
        for n in range(1, 401):
            canary += rng.random() < 0.1
            if n % 5 == 0 and sample_ratio_alarm(sample_ratio_log_e(canary, n - canary, 0.1), alpha=ALPHA):
                wrong += 1
                break
    assert wrong / 300 <= at_most(ALPHA, 300)
    assert sample_ratio_alarm(sample_ratio_log_e(150, 850, 0.1))


def test_an_endless_watch_runs_long_before_a_false_alarm():
    rng = random.Random(29)
    lengths = []
    for _ in range(100):
        state = start_watch()
        while not alarmed(state, 0.02):
            state = watch(state, rng.random() < 0.3, 0.3)
        lengths.append(state.n)
    mean = sum(lengths) / len(lengths)
    assert mean >= 50.0
    state = start_watch()
    while not alarmed(state, 0.02):
        state = watch(state, rng.random() < q(5.0, 0.3), 0.3)
    assert state.n < 20
