"""Signals from a metrics store: readings become evidence, failures become an Error, resets and changes end a window."""

from __future__ import annotations

import pytest

from rollout.observation import Verdict
from tests.unit.rollout.evidence import counters, make, read

QUERIES = {"events": 'sum(bad{version="$version"})', "total": 'sum(all{version="$version"})'}
SIGNAL = "prometheus/x"


def ledger_of(**changes):
    weight = changes.pop("weight", 10)
    return make({"name": SIGNAL, "prometheus": QUERIES} | changes, weight=weight)


def feed(ledger, rows, *, start=1, **changes):
    """Readings one after the other: (canary events, canary units, stable events, stable units), all cumulative."""
    for number, (ce, cu, se, su) in enumerate(rows, start=start):
        ledger.add(counters(number, (ce, cu), (se, su), **changes))


def test_before_any_reading_it_is_pending_and_after_a_failed_one_an_error():
    ledger = ledger_of()
    assert read(ledger, SIGNAL).verdict is Verdict.PENDING
    ledger.add(counters(1, None, None, error="Prometheus can't be reached"))
    found = read(ledger, SIGNAL)
    assert found.verdict is Verdict.ERROR
    assert "can't be reached" in found.error
    feed(ledger, [(0, 10, 0, 90), (0, 20, 0, 180)], start=2)
    assert read(ledger, SIGNAL).verdict is Verdict.RUNNING


def test_a_bad_canary_is_taken_back_and_a_faultless_one_passes():
    bad, good = ledger_of(), ledger_of()
    feed(bad, [(3 * i, 10 * i, i, 90 * i) for i in range(1, 15)])
    feed(good, [(0, 10 * i, 0, 90 * i) for i in range(1, 15)])
    assert read(bad, SIGNAL).verdict is Verdict.FAILED
    found = read(good, SIGNAL)
    assert found.verdict is Verdict.SUCCESSFUL
    assert (found.canary.n, found.stable.n) == (130, 1_170), "the first reading is where counting begins"


def test_an_outage_that_shows_on_the_canarys_counters_first_takes_nothing_back():
    ledger = ledger_of()
    feed(ledger, [(0, 10, 0, 90), (0, 20, 0, 180), (0, 30, 0, 270)])
    feed(ledger, [(10, 40, 0, 360)], start=4)  # the canary was scraped after the outage began, stable before
    assert read(ledger, SIGNAL).verdict is not Verdict.FAILED
    feed(ledger, [(10, 50, 90, 450), (10, 60, 90, 540)], start=5)
    found = read(ledger, SIGNAL)
    assert found.verdict is not Verdict.FAILED
    assert found.log_e < 1.0


@pytest.mark.parametrize(
    "second", [{"weight": 25}, {"boot": "another"}, {"weight": 0}], ids=["weight", "reader", "not in force"]
)
def test_what_happened_across_a_change_is_nobodys_evidence(second):
    ledger = ledger_of()
    feed(ledger, [(0, 10, 0, 90), (0, 20, 0, 180), (0, 30, 0, 270)])
    before = read(ledger, SIGNAL)
    ledger.add(counters(4, (30, 60), (0, 360), **second))
    found = read(ledger, SIGNAL)
    assert found.canary == before.canary
    assert found.log_e == before.log_e


def test_a_counter_that_fell_was_reset_and_its_difference_says_nothing():
    ledger = ledger_of()
    feed(ledger, [(5, 100, 0, 900), (5, 110, 0, 990), (5, 120, 0, 1_080), (0, 3, 0, 1_170), (0, 13, 0, 1_260)])
    found = read(ledger, SIGNAL)
    assert found.canary.n == 30
    assert found.canary.events == 0


def test_evidence_of_a_closed_window_is_kept():
    ledger = ledger_of()
    feed(ledger, [(2 * i, 10 * i, i, 90 * i) for i in range(1, 7)])
    before = read(ledger, SIGNAL).log_e
    assert before > 0.5
    ledger.add(counters(7, (12, 60), (6, 540), weight=25))
    feed(ledger, [(12, 80, 6, 600), (12, 100, 6, 660), (12, 120, 6, 720)], start=8, weight=25)
    assert read(ledger, SIGNAL).log_e == pytest.approx(before, abs=0.5)


def test_doubled_and_late_readings_change_nothing():
    once, often = ledger_of(), ledger_of()
    rows = [(i, 10 * i, i, 90 * i) for i in range(1, 9)]
    feed(once, rows)
    for number, (ce, cu, se, su) in enumerate(rows, 1):
        one = counters(number, (ce, cu), (se, su))
        often.add(one)
        often.add(one)
        often.add(counters(1, (0, 0), (0, 0)))
    assert read(often, SIGNAL) == read(once, SIGNAL)


def test_a_watched_revision_is_judged_by_a_rate_that_was_given():
    given, not_given = ledger_of(maxRate=0.02, weight=100), ledger_of(weight=100)
    for ledger in (given, not_given):
        for i in range(1, 9):
            ledger.add(counters(i, (5 * i, 20 * i), None, weight=100))
    assert read(given, SIGNAL).verdict is Verdict.FAILED
    assert read(given, SIGNAL).absolute_log_e >= read(given, SIGNAL).absolute_threshold
    assert read(not_given, SIGNAL).verdict is Verdict.RUNNING
