"""Votes come when their units have settled: they take a version back, and no want of them lets one go forward."""

from __future__ import annotations

import pytest

from rollout.errors import InvalidSpec
from rollout.observation import Verdict
from rollout.specs import parse_spec
from serving.outcomes import THUMBS_DOWN
from serving.traffic import Role
from tests.unit.rollout.evidence import event, increment, make, read, total


def spec(**signal: object) -> dict[str, object]:
    signals = [{"name": "error"}, {"name": THUMBS_DOWN, **signal}]
    return {"model": "chat", "version": "1.1.0", "analysis": {"signals": signals}}


def test_late_votes_against_a_canary_take_it_back() -> None:
    ledger = make({"name": THUMBS_DOWN})
    ledger.add(increment(totals=(total(admitted=500, settled=500),), settled_through=500))
    for i in range(1, 30):
        ledger.add(increment(event(i, THUMBS_DOWN, session=f"v{i}", admission=500)))
    assert read(ledger, THUMBS_DOWN).verdict is Verdict.FAILED
    assert read(ledger, THUMBS_DOWN).canary.events == 29


def test_votes_against_both_alike_take_nobody_back() -> None:
    ledger = make({"name": THUMBS_DOWN})
    arms = (Role.CANARY, Role.STABLE)
    events = (event(i, THUMBS_DOWN, session=f"v{i}", arm=arms[i % 2], weight=50, admission=1) for i in range(1, 400))
    ledger.add(increment(*events))
    assert read(ledger, THUMBS_DOWN).verdict is not Verdict.FAILED


def test_no_votes_prove_nothing_and_are_no_fault_either() -> None:
    ledger = make({"name": THUMBS_DOWN})
    ledger.add(increment(totals=(total(admitted=5000, settled=5000),), settled_through=5000))
    reading = read(ledger, THUMBS_DOWN)
    assert (reading.verdict, reading.error, reading.objective_log_e) == (Verdict.RUNNING, "", None)
    assert not reading.gating


def test_the_signal_can_not_be_made_to_gate() -> None:
    assert not parse_spec(spec()).analysis.signals[1].gating
    with pytest.raises(InvalidSpec, match="gating"):
        parse_spec(spec(gating=True))
