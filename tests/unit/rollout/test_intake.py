"""What waits to be booked: events in order and once, counters behind them, the newest in the place of the rest."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.actions import Start
from rollout.decide import Cause, Decision
from rollout.fold import Fold
from rollout.intake import FEW, LONGEST_S, MAX_WAITING, Intake
from serving.outcomes import Event, Events, Signal, Total, Totals
from serving.traffic import Role
from tests.simulation.world import MODEL, deployed, spec

ROLLOUT = "r1"


def fold_with(*models: str) -> Fold:
    """A fold in which each of these models has a rollout."""
    fold = Fold()
    for model in models:
        start = Start(rollout=ROLLOUT, spec=spec("1.0.0"), target=deployed("1.0.0"), salt="s")
        fold.decision(model, Decision(cause=Cause.COMMAND, reason="x", actions=(start,)), at=0.0, actor="ada")
    return fold


def events(*sequences: int, rollout: str = ROLLOUT) -> Events:
    return Events(
        events=tuple(
            Event(
                sequence=n, model=MODEL, rollout=rollout, signal=Signal.ERROR, arm=Role.CANARY,
                digest=deployed("1.0.0").digest, weight=10, admission=n, admitted_at=1.0, settled_at=1.0,
            )
            for n in sequences
        )
    )  # fmt: skip


def totals(admitted: int, *, model: str = MODEL, rollout: str = ROLLOUT, weight: int = 10) -> Totals:
    total = Total(
        model=model, rollout=rollout, digest="0" * 64, role=Role.CANARY, weight=weight, admitted=admitted
    )  # fmt: skip
    return Totals(sent_at=0.0, totals=(total,), settled_through={model: admitted})


def ignore(_: int | None) -> None:
    """Nobody waits."""


@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_each_event_is_booked_once_however_often_it_is_sent(cuts: list[int], chance: random.Random):
    """Messages overlap as after reconnects: each begins at or before the first event that is not accepted."""
    fold, intake, booked, told = fold_with(MODEL), Intake(), [], 0
    for cut in cuts:
        first = chance.randint(1, told + 1)
        intake.events("g", "b", events(*range(first, max(first, cut) + 1)), ignore)
        told = max(told, first, cut)
        if chance.random() < 0.5:
            batch = intake.take(fold, 0.0)
            booked += [e.sequence for _, i in batch.increments for e in i.events]
            for source, through in batch.through.items():
                fold.accept(*source, through)
    booked += [e.sequence for _, i in intake.take(fold, 0.0).increments for e in i.events]
    assert booked == list(range(1, told + 1))


def test_counters_come_behind_the_events_that_came_with_them():
    intake = Intake()
    intake.totals("g", "b", totals(5), 0.0)
    intake.events("g", "b", events(1), ignore)
    increments = [i for _, i in intake.take(fold_with(MODEL), 0.0).increments]
    assert [bool(i.events) for i in increments] == [True, False]


def test_the_newest_counters_stand_for_all_that_came():
    intake = Intake()
    for admitted in (1, 9, 20):
        intake.totals("g", "b", totals(admitted), 0.0)
    intake.totals("g", "b", totals(3, weight=50), 0.0)
    ((model, increment),) = intake.take(fold_with(MODEL), 0.0).increments
    assert (model, increment.settled_through) == (MODEL, 20)
    assert {t.weight: t.admitted for t in increment.totals} == {10: 20, 50: 3}
    assert intake.take(fold_with(MODEL), 0.0).increments == []


def test_two_starts_of_one_gateway_are_two_sources():
    intake = Intake()
    intake.totals("g", "b1", totals(7), 0.0)
    intake.totals("g", "b2", totals(1), 0.0)
    found = {i.boot: i.totals[0].admitted for _, i in intake.take(fold_with(MODEL), 0.0).increments}
    assert found == {"b1": 7, "b2": 1}


def test_few_counters_are_booked_at_once_and_many_within_a_second():
    fold, intake = fold_with(MODEL), Intake()
    for n in range(FEW):
        intake.totals(f"g{n}", "b", totals(1), 100.0)
    assert len(intake.take(fold, 100.0).increments) == FEW
    for n in range(50 * FEW):
        intake.totals(f"g{n}", "b", totals(1), 100.0)
    assert intake.take(fold, 100.5).increments == []
    assert len(intake.take(fold, 100.0 + LONGEST_S).increments) == 50 * FEW


def test_a_clock_that_jumps_back_keeps_no_counters_waiting():
    fold, intake = fold_with(MODEL), Intake()
    for n in range(50 * FEW):
        intake.totals(f"g{n}", "b", totals(1), 100.0)
    assert len(intake.take(fold, -1000.0).increments) == 50 * FEW


@pytest.mark.parametrize("rollout", ["", "another"])
def test_what_is_of_no_judged_rollout_is_accepted_and_not_booked(rollout):
    fold, intake, told = fold_with(MODEL), Intake(), []
    intake.events("g", "b", events(1, 2, rollout=rollout or "another"), told.append)
    intake.totals("g", "b", totals(5, rollout=rollout), 0.0)
    batch = intake.take(fold, 0.0)
    assert batch.increments == []
    batch.tell(booked=True)
    assert told == [2]


def test_who_waits_is_told_when_nothing_was_booked():
    fold, intake, told = fold_with(MODEL), Intake(), []
    intake.events("g", "b", events(1), told.append)
    intake.take(fold, 0.0).tell(booked=False)
    intake.events("g", "b", events(1), told.append)
    intake.drop()
    assert told == [None, None]
    assert intake.take(fold, 0.0).increments == []


def test_what_waits_is_bounded():
    intake = Intake()
    for n in range(MAX_WAITING):
        assert not intake.full
        intake.events("g", "b", events(n + 1), ignore)
    assert intake.full
