"""What the tests beside the comparison promise, counted in simulated rollouts with fixed seeds: under each one's null
the alarms stay within alpha, the slip that its rule is there for shows in the same simulation, and faults are found."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable

import numpy as np
import pytest

from monitoring.sequential.absolute import RateTest, rate_upper_bound
from monitoring.sequential.counters import CounterMixture, Sample, Window
from monitoring.sequential.planning import least_watched_requests
from rollout.analysis.signal import SignalTest, Standings
from rollout.analysis.watched import WatchedSignal, largest_fine_rate
from rollout.observation import Counts
from rollout.specs import SignalSpec
from serving.outcomes import Signal
from serving.traffic import Role
from tests.unit.rollout.evidence import event, increment, make, read

ALPHA = 0.05


def interval(hits: int, runs: int, z: float = 3.0) -> tuple[float, float]:
    """Wilson's interval of a share, at three standard errors: a test that is right fails once in a thousand seeds."""
    p = hits / runs
    centre = (p + z * z / (2 * runs)) / (1 + z * z / runs)
    half = z * math.sqrt(p * (1 - p) / runs + z * z / (4 * runs * runs)) / (1 + z * z / runs)
    return centre - half, centre + half


def within(hits: int, runs: int, alpha: float = ALPHA) -> bool:
    """Whether a share of alarms can be alpha or less."""
    return interval(hits, runs)[0] <= alpha


def exceeded(hits: int, runs: int, alpha: float = ALPHA) -> bool:
    """Whether a share of alarms is surely above alpha."""
    return interval(hits, runs)[0] > alpha


def watch(rng: np.random.Generator, p0: float, rate: float, units: int, delay: float) -> int | None:
    """Units admitted until a watched revision is taken back, or None; outcomes are known after random delays."""
    happened = rng.random(units) < rate
    known_at = np.arange(1, units + 1) + rng.exponential(delay, units) * np.where(happened, 0.1, 1.0)
    watched = WatchedSignal(p0, ALPHA)
    settled_at = np.maximum.accumulate(known_at)
    arrivals = sorted((known_at[i], i + 1) for i in np.flatnonzero(happened))
    waiting: list[int] = []
    for at, admission in arrivals:
        settled = int(np.searchsorted(settled_at, at, side="right"))
        done = [a for a in waiting if a <= settled]
        if done:
            watched.settle(settled, len(done))
            waiting = [a for a in waiting if a > settled]
        watched.book(settled)
        waiting.append(admission)
        admitted = min(units, max(int(at), admission))
        if watched.log_e(admitted) >= watched.threshold:
            return admitted
    return None


def test_a_revision_at_its_limit_is_taken_back_at_most_as_often_as_promised():
    rng = np.random.default_rng(1)
    runs = 1_500
    alarms = sum(watch(rng, 0.05, 0.05, 800, delay=30.0) is not None for _ in range(runs))
    assert within(alarms, runs)
    assert alarms > 0.005 * runs, "the simulation reaches the threshold at all"


def test_counting_only_units_with_an_outcome_would_break_the_promise():
    """Failures are told at once and answers take long: then the rate among the known outcomes is no rate at all."""
    rng = np.random.default_rng(2)
    runs, alarms = 200, 0
    test = RateTest(0.05)
    for _ in range(runs):
        happened = rng.random(400) < 0.05
        known_at = np.arange(400) + np.where(happened, 0.0, 60.0)
        alarms += any(
            test.log_e(test.start(), int(np.sum(known_at <= at)), int(np.sum(happened & (known_at <= at))))
            >= -math.log(ALPHA)
            for at in known_at[happened]
        )
    assert exceeded(alarms, runs)


@pytest.mark.parametrize(("rate", "most"), [(0.20, 1.8), (0.50, 1.8), (1.00, 1.8)])
def test_a_bad_revision_is_found_near_the_lower_bound(rate, most):
    rng = np.random.default_rng(3)
    found = [watch(rng, 0.05, rate, 3_000, delay=0.0) for _ in range(150)]
    units = [n for n in found if n is not None]
    assert len(units) == len(found)
    assert sum(units) / len(units) <= most * max(least_watched_requests(0.05, rate, ALPHA), 1.2)


def test_a_fault_that_begins_late_is_found_soon_thanks_to_the_restarts():
    test = RateTest(0.05)
    state, quiet = test.start(), test.start()
    for _ in range(100):
        state = test.update(state, 200, 2)
        quiet = test.update(quiet, 200, 2)
    needed = next(n for n in range(1, 400) if test.log_e(state, 2 * n, n) >= -math.log(ALPHA))
    assert needed <= 12, "events, while every second request fails after 20,000 healthy ones"


def test_with_a_baseline_the_promise_covers_the_bound_of_the_old_side_too():
    rng = np.random.default_rng(4)
    runs, alarms = 1_000, 0
    for _ in range(runs):
        old = int(rng.binomial(300, 0.12))
        fine = largest_fine_rate(SignalSpec(name=Signal.ERROR), Counts(events=old, n=300), ALPHA)
        assert fine is not None
        p0, alpha = fine
        test = RateTest(p0)
        state = test.start()
        for block in rng.binomial(20, 0.12, size=50):
            state = test.update(state, 20, int(block))
            if test.log_e(state) >= -math.log(alpha):
                alarms += 1
                break
    assert within(alarms, runs)


def test_the_upper_bound_of_a_rate_seldom_misses_however_often_one_looks():
    rng = np.random.default_rng(5)
    runs, misses = 400, 0
    for _ in range(runs):
        events = np.cumsum(rng.random(600) < 0.1)
        misses += any(rate_upper_bound(int(events[n - 1]), n, ALPHA) < 0.1 for n in range(20, 601, 20))
    assert within(misses, runs)


# -- counters ---------------------------------------------------------------------------------------------------------


def scraped(rng: np.random.Generator, polls: int, weight: float, ratio: float) -> Iterable[Sample]:
    """Readings of counters whose arms are scraped at different moments, with outages that hit both arms."""
    skew = rng.uniform(0.0, 0.95, size=2)  # how old the arms' last scrapes are, in parts of the polling interval
    quiet = rng.uniform(0.0, polls, size=rng.poisson(2.0 * polls))
    outages = [
        rng.uniform(0.0, polls) + rng.uniform(0.0, 0.05, size=rng.poisson(100.0))
        for _ in range(rng.poisson(polls / 10.0))
    ]
    at = np.concatenate([quiet, *outages])
    ours = rng.random(len(at)) < weight * ratio / (weight * ratio + 1.0 - weight)
    for poll in range(1, polls + 1):
        canary = int(np.sum(ours & (at <= poll - skew[0])))
        stable = int(np.sum(~ours & (at <= poll - skew[1])))
        yield Sample(canary, 100 * poll, stable, 900 * poll)


def judge(rng: np.random.Generator, *, face_value: bool, ratio: float = 1.0, polls: int = 40) -> bool:
    """Whether the counters of one rollout at 10 % ever condemn the canary."""
    mixture = CounterMixture()
    state, window = mixture.start(), None
    for sample in scraped(rng, polls, 0.1, ratio):
        if window is None:
            window = Window(weight=0.1, first=sample)
            continue
        window = window.read(sample)
        first = window.first
        canary, stable = window.against()
        if face_value:
            canary, stable = sample.canary_events - first.canary_events, sample.stable_events - first.stable_events
        if mixture.log_e(state, canary, stable, 0.1) >= -math.log(ALPHA):
            return True
    return False


def test_counters_of_a_healthy_canary_condemn_it_at_most_as_often_as_promised():
    rng = np.random.default_rng(6)
    alarms = sum(judge(rng, face_value=False) for _ in range(800))
    assert within(alarms, 800)


def test_taking_counters_at_face_value_would_break_the_promise():
    rng = np.random.default_rng(6)
    alarms = sum(judge(rng, face_value=True) for _ in range(300))
    assert exceeded(alarms, 300)


def test_counters_still_find_a_bad_canary():
    rng = np.random.default_rng(7)
    assert sum(judge(rng, face_value=False, ratio=6.0) for _ in range(100)) >= 95


# -- sessions, scores, pairs -------------------------------------------------------------------------------------------


def sessions(rng: random.Random, *, whole: bool, ledger_alpha: float = 0.2) -> bool:
    """Whether a healthy canary at 10 % is taken back: one session in fifteen fails at every second request."""
    signals = [{"name": "error"}]
    ledger = make(analysis={"alpha": ledger_alpha, "signals": signals})
    sequence = 0
    for number in range(400):
        if rng.random() >= 1 / 15:
            continue
        arm = Role.CANARY if rng.random() < 0.1 else Role.STABLE
        for index in range(1, 13):
            if rng.random() < 0.5:
                sequence += 1
                ledger.add(
                    increment(
                        event(
                            sequence,
                            arm=arm,
                            session=f"s{number}" if whole else None,
                            request_index=index,
                            admission=12 * number + index,
                        )
                    )
                )
    return read(ledger).log_e >= -math.log(ledger_alpha)


def test_sessions_that_fail_again_and_again_condemn_no_healthy_canary():
    rng = random.Random(8)
    alarms = sum(sessions(rng, whole=True) for _ in range(250))
    assert within(alarms, 250, 0.2)


def test_counting_every_request_of_such_sessions_would():
    rng = random.Random(8)
    alarms = sum(sessions(rng, whole=False) for _ in range(80))
    assert exceeded(alarms, 80, 0.2)


def test_scores_that_drift_for_both_arms_condemn_no_healthy_canary():
    rng = random.Random(9)
    runs, alarms = 300, 0
    for _ in range(runs):
        test = SignalTest(SignalSpec(name="score/nll"), ALPHA, 0.05)
        for i in range(150):
            canary = rng.random() < 0.2
            test.score(rng.paretovariate(1.2) + 0.02 * i, on_canary=canary, weight=0.2)
        alarms += test.crossed
    assert within(alarms, runs)


def test_pairs_whose_differences_are_symmetric_condemn_no_shadow():
    rng = random.Random(10)
    runs, alarms, passed = 300, 0, 0
    for _ in range(runs):
        test = SignalTest(SignalSpec(name="score/nll"), ALPHA, 0.05, paired=True)
        for _ in range(120):
            test.score_pair(rng.choice((-1, 1)) * rng.paretovariate(1.1))
        alarms += test.crossed
        passed += test.reading(Standings(canary=120, stable=120), 0.5).verdict.value == "Failed"
    assert within(alarms, runs)
    assert passed == alarms
