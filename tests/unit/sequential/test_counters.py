"""Counters in place of events: order, windows, which counts speak for whom."""

from __future__ import annotations

import math

import pytest

from monitoring.sequential.counters import CounterMixture, Sample, Window
from monitoring.sequential.events import CappedMixture, EProcessConfig
from monitoring.sequential.forward import ForwardConfig, NonInferiority


def window(*rows: tuple[int, int], weight: float = 0.1) -> Window:
    """Readings of (canary, stable) events."""
    samples = [Sample(canary, 10 * canary, stable, 10 * stable) for canary, stable in rows]
    found = Window(weight=weight, first=samples[0])
    for sample in samples[1:]:
        found = found.read(sample)
    return found


@pytest.mark.parametrize(
    ("rows", "against", "in_favour"),
    [
        ([(5, 5)], (0, 0), (0, 0)),
        ([(5, 5), (9, 9)], (0, 4), (4, 0)),
        ([(5, 5), (9, 9), (14, 20)], (0, 15), (9, 0)),
        ([(5, 5), (9, 9), (14, 20), (30, 40)], (5, 35), (25, 11)),
    ],
)
def test_each_direction_uses_what_speaks_against_its_own_conclusion(rows, against, in_favour):
    assert window(*rows).against() == against
    assert window(*rows).in_favour() == in_favour


def test_a_window_of_counts_is_the_plain_mixture_event_by_event():
    plain = CappedMixture(EProcessConfig(alpha=1e-9, cash=0.0, capped=False))
    state = plain.start()
    for canary in [True] * 7 + [False] * 12:
        state = plain.update(state, canary, 0.1)
    counted = CounterMixture()
    found = counted.log_e(counted.start(), 7, 12, 0.1)
    assert math.exp(found) == pytest.approx(0.8 * math.exp(state.log_w) + 0.2, rel=1e-9)


def test_closing_a_window_keeps_the_evidence_and_bets_a_part_of_the_cash():
    counted = CounterMixture()
    closed = counted.close(counted.start(), 7, 12, 0.1)
    assert counted.log_e(closed, 0, 0, 0.3) == pytest.approx(counted.log_e(counted.start(), 7, 12, 0.1))
    assert closed.log_cash < counted.start().log_cash


def test_more_of_stables_events_only_lower_the_evidence():
    counted = CounterMixture()
    found = [counted.log_e(counted.start(), 5, stable, 0.1) for stable in range(50)]
    assert found == sorted(found, reverse=True)


@pytest.mark.parametrize(("canary", "stable"), [(-1, 0), (0, -1)])
def test_negative_counts_are_refused(canary, stable):
    with pytest.raises(ValueError, match="negative"):
        CounterMixture().log_e(CounterMixture().start(), canary, stable, 0.1)


def test_a_reset_is_seen_in_any_of_the_four():
    now = Sample(5, 50, 5, 50)
    assert not now.fell(now)
    for lower in (Sample(4, 50, 5, 50), Sample(5, 49, 5, 50), Sample(5, 50, 4, 50), Sample(5, 50, 5, 49)):
        assert lower.fell(now)


def test_non_inferiority_of_counts_is_that_of_the_same_events_one_by_one():
    fine = NonInferiority(ForwardConfig(rho1=3.0))
    state = fine.start()
    for canary, weight in [(True, 0.1)] * 3 + [(False, 0.1)] * 40 + [(True, 0.5)] * 9 + [(False, 0.5)] * 11:
        state = fine.update(state, canary, weight)
    assert fine.log_e({0.1: (3, 40), 0.5: (9, 11)}) == pytest.approx(state.log_e, abs=1e-9)
    assert fine.log_e({}) == pytest.approx(0.0, abs=1e-12)
