"""What is booked, once, and what may let a rollout go forward."""

from __future__ import annotations

import pytest

from rollout.analysis.ledger import EvidenceIncrement
from rollout.analysis.units import Units
from rollout.observation import Verdict
from serving.outcomes import Cause, Signal
from serving.traffic import Role
from tests.unit.rollout.evidence import STABLE, event, increment, make, read, total


def test_an_event_counts_once_however_often_it_is_sent():
    once, often = make(), make()
    once.add(increment(event(1), event(2)))
    for _ in range(3):
        often.add(increment(event(1), event(2)))
    assert read(often) == read(once)
    assert read(once).canary.events == 2


def test_other_rollouts_and_unwatched_signals_are_not_booked():
    ledger = make()
    assert not ledger.add(increment(event(1), rollout="older"))
    ledger.add(increment(event(1, Signal.CLIENT_ABORT)))
    assert all(r.canary.events == 0 for r in ledger.readings())
    assert not ledger.watches(Signal.CLIENT_ABORT)


def test_a_session_counts_once_per_signal():
    ledger = make()
    ledger.add(increment(*(event(i, session="s") for i in range(1, 6)), event(6, Signal.LENGTH_STOP, session="s")))
    assert read(ledger).canary.events == 1
    assert read(ledger, Signal.LENGTH_STOP).canary.events == 1


def test_a_lost_endpoint_is_no_evidence_against_the_version_but_holds_up_promotion():
    ledger = make()
    ledger.add(increment(*(event(i, cause=Cause.ENDPOINT_LOST) for i in range(1, 20))))
    ledger.add(increment(totals=(total(settled=100, events={"error": 19}),), settled_through=100))
    assert read(ledger).log_e == 0.0
    assert read(ledger).verdict is Verdict.RUNNING


def test_the_same_failures_of_a_living_engine_do_take_it_back():
    ledger = make()
    ledger.add(increment(*(event(i) for i in range(1, 20))))
    assert read(ledger).verdict is Verdict.FAILED


def test_what_has_not_settled_lets_nothing_go_forward():
    ledger = make()
    ledger.add(increment(totals=(total(admitted=500, settled=10),), settled_through=10))
    assert read(ledger).verdict is Verdict.RUNNING
    ledger.add(increment(totals=(total(admitted=500, settled=64),), settled_through=64))
    assert read(ledger).verdict is Verdict.SUCCESSFUL


def test_comparison_uses_settled_events_only():
    ledger = make()
    stable = [event(i, arm=Role.STABLE) for i in range(1, 60)]
    ledger.add(increment(*stable))
    assert read(ledger).forward_log_e <= 0
    ledger.add(increment(settled_through=60))
    assert read(ledger).forward_log_e > 3


def test_a_new_start_of_a_gateway_settles_what_the_old_one_left():
    ledger = make()
    ledger.add(increment(*(event(i, arm=Role.STABLE) for i in range(1, 60))))
    ledger.add(increment(boot="b2", settled_through=1))
    assert read(ledger).forward_log_e > 3


def test_cumulative_totals_replace_each_other_and_add_up_over_gateways():
    ledger = make()
    for admitted in (10, 30, 30, 20):  # doubled and late
        ledger.add(increment(totals=(total(admitted=admitted),)))
    ledger.add(EvidenceIncrement(rollout="r", gateway="other", boot="x", totals=(total(admitted=7),)))
    assert ledger.exposure().canary_requests == 37


@pytest.mark.parametrize(("overlapping", "counted"), [(True, 1), (False, 8)])
def test_one_hiccup_is_one_slow_event(overlapping, counted):
    ledger = make()
    slow = [
        event(i, Signal.SLOW_TOKENS, level="p99", admitted_at=i * (0.01 if overlapping else 1.0), settled_at=i + 0.9)
        for i in range(1, 9)
    ]
    ledger.add(increment(*slow))
    assert read(ledger, Signal.SLOW_TOKENS).canary.events == counted


def test_levels_of_one_unit_move_their_tests_in_one_step():
    ledger = make()
    levels = [event(i, Signal.SLOW_TOKENS, level=p, admission=1, admitted_at=1.0, settled_at=1.5)
              for i, p in enumerate(("p50", "p80", "p95", "p99"), 1)]  # fmt: skip
    ledger.add(increment(*levels))
    assert read(ledger, Signal.SLOW_TOKENS).canary.events == 1
    assert read(ledger, Signal.SLOW_TOKENS).log_e > 1


def test_slow_units_of_a_gateway_whose_clock_runs_ahead_do_not_silence_the_others():
    ledger = make()
    ahead = event(1, Signal.SLOW_TOKENS, level="p99", admitted_at=90_000.0, settled_at=90_001.0)
    ledger.add(increment(ahead, gateway="ahead"))
    slow = [
        event(i, Signal.SLOW_TOKENS, level="p99", admitted_at=10.0 * i, settled_at=10.0 * i + 1) for i in range(1, 6)
    ]
    ledger.add(increment(*slow))
    assert read(ledger, Signal.SLOW_TOKENS).canary.events == 6


def test_a_late_first_event_of_a_session_is_weaker_evidence_than_an_early_one():
    evidence = {}
    for index in (1, 40):
        ledger = make()
        # Ten events of stable, one in every hundred requests: that rate is what the discount goes by.
        ledger.add(increment(*(event(i, arm=Role.STABLE, admission=100 * i) for i in range(1, 11))))
        before = read(ledger).log_e
        ledger.add(increment(event(11, session="s", request_index=index, admission=1001)))
        evidence[index] = read(ledger).log_e - before
    assert 0.0 < evidence[40] < 0.8 * evidence[1]


def test_sessions_beyond_what_can_be_remembered_are_an_error_that_holds(monkeypatch):
    ledger = make()
    monkeypatch.setattr(ledger, "_units", Units(max_sessions=3))
    ledger.add(increment(*(event(i, arm=Role.STABLE, session=f"s{i}") for i in range(1, 4))))
    assert read(ledger).verdict is not Verdict.ERROR
    ledger.add(increment(event(4, arm=Role.STABLE, session="s4")))
    assert read(ledger).verdict is Verdict.ERROR
    assert "3 sessions" in read(ledger).error
    assert read(ledger).stable.events == 3


def test_readings_are_kept_until_something_changes():
    ledger = make()
    ledger.add(increment(totals=(total(settled=10),), settled_through=10))
    first = ledger.readings()
    ledger.add(increment(totals=(total(settled=10),), settled_through=10))
    assert ledger.readings() is first
    ledger.add(increment(totals=(total(settled=11),), settled_through=11))
    assert ledger.readings() is not first


def test_the_margin_follows_the_weight_and_old_evidence_counts_for_the_new_margin():
    one_by_one, at_once = make(weight=10), make(weight=50)
    for ledger in (one_by_one, at_once):
        ledger.add(increment(*(event(i, arm=Role.STABLE) for i in range(1, 40)), settled_through=40))
    read(one_by_one)
    one_by_one.weight = 50
    assert read(one_by_one) == read(at_once)


def test_the_objective_is_told_apart_from_the_comparison():
    ledger = make()
    ledger.add(increment(totals=(total(settled=80), total(STABLE, settled=720)), settled_through=800))
    found = read(ledger)
    assert found.forward_by == "objective"
    assert found.objective_log_e == found.forward_log_e >= found.forward_threshold
    assert read(ledger, Signal.SLOW_TOKENS).objective_log_e is None


def test_latency_passes_only_after_enough_of_the_canarys_requests():
    ledger = make()
    slow = [
        event(i, Signal.SLOW_TOKENS, Role.STABLE, level="p50", admitted_at=float(i), settled_at=i + 0.5)
        for i in range(1, 60)
    ]
    ledger.add(increment(*slow, totals=(total(settled=29),), settled_through=60))
    found = read(ledger, Signal.SLOW_TOKENS)
    assert found.forward_log_e >= found.forward_threshold
    assert found.verdict is Verdict.RUNNING
    ledger.add(increment(totals=(total(settled=30),), settled_through=60))
    assert read(ledger, Signal.SLOW_TOKENS).verdict is Verdict.SUCCESSFUL
