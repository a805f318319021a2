"""What could not be measured is an Error: it neither passes nor takes back, and says why."""

from __future__ import annotations

import pytest

from rollout.analysis.signal import SILENT_UNITS
from rollout.observation import Verdict
from serving.outcomes import Signal
from serving.traffic import Role
from tests.unit.rollout.evidence import STABLE, event, increment, make, read, total

GUARDRAIL, SCORE = "guardrail/toxicity", "score/nll"


def settled(units: int, events: dict[str, int] | None = None, **changes):
    """Units of both arms, one in ten the canary's."""
    rows = (total(settled=units // 10, events=events), total(STABLE, settled=units - units // 10, events=events))
    return increment(totals=rows, settled_through=units, **changes)


@pytest.mark.parametrize("signal", [GUARDRAIL, SCORE])
def test_a_signal_of_which_nobody_tells_anything_is_an_error_and_never_passes(signal):
    ledger = make({"name": signal, "maxRate": 0.5})
    ledger.add(settled(SILENT_UNITS - 10))
    assert read(ledger, signal).verdict is Verdict.RUNNING, "29 clean units would pass an objective of 50 %"
    ledger.add(settled(SILENT_UNITS))
    found = read(ledger, signal)
    assert found.verdict is Verdict.ERROR
    assert signal in found.error
    assert str(SILENT_UNITS) in found.error


def test_a_guardrail_that_is_told_as_zero_is_measured():
    ledger = make({"name": GUARDRAIL})
    ledger.add(settled(1_000, {GUARDRAIL: 0}))
    assert read(ledger, GUARDRAIL).verdict is Verdict.SUCCESSFUL


def test_of_a_guardrail_only_the_answers_count_that_were_judged():
    ledger = make({"name": GUARDRAIL})
    ledger.add(settled(10_000, {f"{GUARDRAIL}:units": 30}))
    assert read(ledger, GUARDRAIL).verdict is Verdict.RUNNING, "thirty of a thousand answers say too little"
    ledger.add(settled(20_000, {f"{GUARDRAIL}:units": 90}))
    assert read(ledger, GUARDRAIL).verdict is Verdict.SUCCESSFUL


def test_only_gateways_that_measure_a_guardrail_count_for_it():
    ledger = make({"name": GUARDRAIL})
    ledger.add(settled(5_000, gateway="without"))
    ledger.add(settled(100, {GUARDRAIL: 0}, gateway="with"))
    assert read(ledger, GUARDRAIL).verdict is Verdict.RUNNING, "ten units of the canary were measured"
    ledger.add(settled(1_000, {GUARDRAIL: 0}, gateway="with"))
    assert read(ledger, GUARDRAIL).verdict is Verdict.SUCCESSFUL


def test_the_error_goes_away_with_the_first_thing_told():
    ledger = make({"name": SCORE})
    ledger.add(settled(1_000))
    assert read(ledger, SCORE).verdict is Verdict.ERROR
    ledger.add(increment(event(1, SCORE, Role.STABLE, score=0.3)))
    assert read(ledger, SCORE).verdict is not Verdict.ERROR


@pytest.mark.parametrize(
    ("name", "wrong", "said"),
    [
        (Signal.ERROR, {"score": 0.5}, "with a score"),
        (SCORE, {}, "without a score"),
        (SCORE, {"score": float("inf")}, "no number"),
        (Signal.ERROR, {"paired": True, "weight": 50}, "do not mix"),
        (Signal.SLOW_TOKENS, {"level": "p42"}, "p50, p80, p95, p99"),
    ],
)
def test_evidence_of_another_kind_is_refused_and_holds(name, wrong, said):
    ledger = make({"name": name})
    ledger.add(increment(event(1, name, **wrong)))
    found = read(ledger, name)
    assert found.verdict is Verdict.ERROR
    assert said in found.error
    assert found.canary.events == 0
    assert found.log_e == 0.0


def test_a_shadow_refuses_what_was_not_mirrored():
    ledger = make({"name": Signal.ERROR}, strategy={"shadow": {}}, weight=0)
    ledger.add(increment(event(1)))
    assert "judged by pairs" in read(ledger).error


def test_a_canary_that_was_condemned_before_stays_condemned():
    ledger = make({"name": Signal.ERROR})
    ledger.add(increment(*(event(i) for i in range(1, 10))))
    ledger.add(increment(event(10, score=1.0)))
    assert read(ledger).verdict is Verdict.FAILED
