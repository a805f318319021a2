"""The generated traffic is what its shapes say, and alike for both arms while nothing is wrong."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.exposure.campaign import stream_of
from benchmarks.exposure.peers import End, Seen, Verdict
from benchmarks.exposure.traffic import BEFORE_S, HEALTHY, RATE, Fault, Shape, generate
from tests.unit.benchmarks_exposure.streams import BROKEN, even_stream


@pytest.fixture(params=list(Shape), ids=str)
def shape(request) -> Shape:
    return request.param


def test_ten_requests_a_second_in_order_from_before_the_rollout_to_the_horizon(shape):
    stream = generate(shape, 6_000.0, np.random.default_rng(1))
    assert len(stream.at_s) == pytest.approx(RATE * (6_000.0 + BEFORE_S), rel=0.1)
    assert (np.diff(stream.at_s) >= 0.0).all()
    assert stream.at_s[0] >= -BEFORE_S
    assert stream.at_s[-1] < 6_000.0


def test_without_a_fault_the_arms_fail_alike(shape):
    stream = generate(shape, 6_000.0, np.random.default_rng(2))
    canary = stream.draw < 0.5
    error, finding, latency = stream.outcomes(canary, HEALTHY)
    assert error[canary].mean() == pytest.approx(error[~canary].mean(), rel=0.3)
    assert finding[canary].mean() == pytest.approx(finding[~canary].mean(), rel=0.6)
    assert error.mean() == pytest.approx(0.01, rel=0.5), "errors rise with the load in daily traffic"
    assert np.median(latency[canary]) == pytest.approx(np.median(latency[~canary]), rel=0.1)


def test_a_run_is_the_same_whatever_else_runs(shape):
    once, again, other = (stream_of(shape, 300.0, 7, run) for run in (3, 3, 4))
    assert np.array_equal(once.error_draw, again.error_draw)
    assert not np.array_equal(once.at_s[:50], other.at_s[:50])


def test_a_fault_harms_the_canary_alone_from_its_onset_on(shape):
    stream = generate(shape, 600.0, np.random.default_rng(3))
    canary = stream.draw < 0.5
    fault = Fault("f", errors=(0.0, 1.0), slowdown=2.0, onset_s=300.0)
    error, _, latency = stream.outcomes(canary, fault)
    bad = canary & (stream.at_s >= 300.0)
    multiplied = stream.error_draw[bad] < 1.0
    assert not error[~bad].any()
    assert np.array_equal(error[bad], multiplied)
    assert np.allclose(latency[bad], 2.0 * stream.canary_s[bad])
    assert np.allclose(latency[~canary], stream.stable_s[~canary])


def test_a_session_has_one_draw_and_counts_its_requests_from_the_rollouts_start():
    stream = generate(Shape.SESSIONS, 600.0, np.random.default_rng(4))
    for session in np.unique(stream.session)[100:160]:
        mine = stream.session == session
        assert len(np.unique(stream.draw[mine])) == 1
        inside = stream.request_index[mine & (stream.at_s >= 0.0)]
        assert np.array_equal(inside, np.arange(1, len(inside) + 1))


def test_some_sessions_fail_far_more_than_others():
    stream = generate(Shape.SESSIONS, 6_000.0, np.random.default_rng(5))
    error, _, _ = stream.outcomes(np.zeros(len(stream.at_s), dtype=bool), Fault("f", errors=(0.05, 0.05)))
    requests, errors = np.bincount(stream.session), np.bincount(stream.session, weights=error)
    several = requests >= 8
    rates = errors[several] / requests[several]
    assert rates.var() > 2.0 * (0.05 * 0.95 / requests[several]).mean()


def test_a_stall_holds_one_replica_and_leaves_the_others():
    stream = generate(Shape.STALLS, 6_000.0, np.random.default_rng(6))
    only_canary = (stream.canary_s > stream.stable_s + 0.5).mean()
    only_stable = (stream.stable_s > stream.canary_s + 0.5).mean()
    assert only_canary == pytest.approx(only_stable, rel=0.5)
    assert 0.005 < only_canary < 0.03


def test_completions_fall_into_the_window_in_which_they_end():
    seen = Seen(even_stream(100.0, latency_s=0.4), BROKEN, 100.0)
    window = seen.window(((0.0, 1.0),), 10.0, 20.0)
    assert (window.requests, window.errors) == (100, 100)
    assert seen.window(((50.0, 1.0),), 10.0, 20.0).requests == 0
    assert seen.window(((0.0, 0.2), (15.0, 0.4)), 10.0, 20.0).requests == pytest.approx(30, abs=6)


@pytest.mark.parametrize(
    ("end", "at_s", "onset_s", "exposure", "false"),
    [
        pytest.param(End.ROLLED_BACK, 50.0, 0.0, 100, False, id="until the rollback"),
        pytest.param(End.ROLLED_BACK, 50.0, 30.0, 40, False, id="from the onset on"),
        pytest.param(End.ROLLED_BACK, 20.0, 30.0, 0, True, id="rolled back before it: nobody met it"),
        pytest.param(End.RUNNING, 100.0, 0.0, 200, False, id="missed: to the horizon"),
    ],
)
def test_exposure_is_what_the_canary_gets_from_the_onset_to_the_rollback(end, at_s, onset_s, exposure, false):
    fault = Fault("f", onset_s=onset_s)
    outcome = Seen(even_stream(100.0), fault, 100.0).outcome(Verdict(end, at_s, ((0.0, 0.2),)))
    assert outcome.exposure == pytest.approx(exposure, abs=2)
    assert (outcome.false, outcome.found) == (false, end is End.ROLLED_BACK and not false)


def test_a_promoted_fault_goes_on_with_all_traffic():
    world = Seen(even_stream(100.0), Fault("f"), 100.0)
    outcome = world.outcome(Verdict(End.PROMOTED, 40.0, ((0.0, 0.2), (40.0, 1.0))))
    assert outcome.exposure == pytest.approx(0.2 * 400 + 600, abs=4)
    assert not outcome.found
