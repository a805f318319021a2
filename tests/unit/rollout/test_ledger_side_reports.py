"""Beside the signals: the split, the report of an A/B test, and the fewest requests that could have shown a fault."""

from __future__ import annotations

import math

import pytest

from monitoring.sequential.planning import least_canary_requests
from monitoring.sequential.sample_ratio import sample_ratio_log_e
from serving.outcomes import Cause, Signal
from serving.traffic import Role
from tests.unit.rollout.evidence import STABLE, event, increment, make, read, total

AB = {"strategy": {"ab": {"weight": 50}}}


def sights(canary: int, stable: int, *, weight: int = 10, gateway: str = "g", **changes):
    rows = (
        total(admitted=canary, first_sights=canary, weight=weight, **changes),
        total(STABLE, admitted=stable, first_sights=stable, weight=weight, **changes),
    )
    return increment(totals=rows, gateway=gateway)


def test_a_right_split_is_no_mismatch_and_a_wrong_one_is():
    right, wrong = make(), make()
    right.add(sights(100, 900))
    wrong.add(sights(180, 820))
    assert not right.sample_ratio().mismatched
    assert wrong.sample_ratio().mismatched
    assert (wrong.sample_ratio().canary, wrong.sample_ratio().stable) == (180, 820)
    assert wrong.sample_ratio().threshold == pytest.approx(math.log(1_000))
    assert make().sample_ratio() is None


def test_several_gateways_that_see_the_same_sessions_do_not_add_up_to_an_alarm():
    ledger = make()
    for gateway in range(8):
        ledger.add(sights(130, 870, gateway=f"g{gateway}"))
    alone = sample_ratio_log_e(130, 870, 0.1)
    assert 8 * alone > math.log(1_000) > alone
    assert not ledger.sample_ratio().mismatched


def test_units_without_a_choice_of_arm_are_not_looked_at():
    ledger = make()
    ledger.add(sights(500, 0, weight=100))
    assert ledger.sample_ratio() is None
    assert ledger.sessions == 0


def test_sessions_are_counted_over_both_arms_and_all_gateways():
    ledger = make(weight=50, **AB)
    for gateway in ("a", "b"):
        ledger.add(sights(40, 60, weight=50, gateway=gateway))
        ledger.add(sights(40, 60, weight=50, gateway=gateway))
    assert ledger.sessions == 200


def test_an_ab_test_reports_the_ratio_of_each_event_signal_with_its_interval():
    ledger = make({"name": "error"}, {"name": "length-stop"}, {"name": "slow-tokens"}, weight=50, **AB)
    arms = [Role.CANARY] * 60 + [Role.STABLE] * 20
    ledger.add(increment(*(event(i, arm=arm, weight=50) for i, arm in enumerate(arms, 1))))
    ledger.add(sights(1_000, 1_000, weight=50))
    error, length = ledger.comparisons()
    assert (error.name, length.name) == ("error", "length-stop")
    assert error.ratio == pytest.approx(3.0, rel=1e-6)
    assert 1.0 < error.ratio_low < 3.0 < error.ratio_high
    assert error.log_e > math.log(20)
    assert (error.canary.events, error.canary.n) == (60, 1_000)
    assert (length.ratio, length.ratio_low, length.ratio_high, length.log_e) == (None, None, None, 0.0)


def test_other_strategies_report_no_comparison():
    ledger = make()
    ledger.add(increment(event(1)))
    assert ledger.comparisons() == ()


def test_lost_connections_are_not_part_of_an_ab_report():
    ledger = make({"name": "error"}, weight=50, **AB)
    ledger.add(increment(*(event(i, weight=50, cause=Cause.ENDPOINT_LOST) for i in range(1, 30))))
    assert ledger.comparisons()[0].log_e == 0.0


def test_the_lower_bound_is_that_of_section_8_at_the_rates_seen():
    ledger = make({"name": Signal.ERROR})
    arms = [Role.CANARY] * 5 + [Role.STABLE] * 9
    ledger.add(increment(*(event(i, arm=arm) for i, arm in enumerate(arms, 1))))
    ledger.add(sights(100, 900))
    assert read(ledger).log_e > 0.0
    assert ledger.exposure().lower_bound == math.ceil(least_canary_requests(0.01, 0.05, 0.1, 0.01))


def test_without_evidence_against_the_canary_there_is_no_lower_bound():
    ledger = make({"name": Signal.ERROR})
    ledger.add(increment(event(1, arm=Role.STABLE)))
    ledger.add(sights(100, 900))
    assert ledger.exposure().lower_bound is None
