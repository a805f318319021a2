"""What is booked, once, and what may let a rollout go forward."""

from __future__ import annotations

import pytest

from rollout.analysis.ledger import EvidenceIncrement, Ledger
from rollout.observation import Verdict
from rollout.specs import parse_spec
from serving.outcomes import Cause, Event, Signal, Total
from serving.traffic import Role

CANARY, STABLE = "c" * 64, "5" * 64


def make() -> Ledger:
    ledger = Ledger("r", parse_spec({"model": "chat", "version": "1.0.1"}), canary=CANARY, stable=STABLE)
    ledger.weight = 10
    return ledger


def event(sequence: int, signal=Signal.ERROR, arm=Role.CANARY, **changes) -> Event:
    base = {"sequence": sequence, "model": "chat", "rollout": "r", "signal": signal, "arm": arm, "weight": 10,
            "digest": CANARY if arm is Role.CANARY else STABLE, "admission": sequence,
            "admitted_at": float(sequence), "settled_at": sequence + 0.5}  # fmt: skip
    return Event(**(base | changes))


def increment(*events: Event, boot="b", rollout="r", **changes) -> EvidenceIncrement:
    return EvidenceIncrement(rollout=rollout, gateway="g", boot=boot, events=events, **changes)


def total(digest=CANARY, settled=0, events=None, **changes) -> Total:
    role = Role.CANARY if digest == CANARY else Role.STABLE
    base = {"model": "chat", "rollout": "r", "digest": digest, "role": role, "weight": 10,
            "admitted": settled, "settled": settled, "settled_events": events or {}}  # fmt: skip
    return Total(**(base | changes))


def read(ledger: Ledger, signal=Signal.ERROR):
    return next(r for r in ledger.readings() if r.name is signal)


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
