"""The fold: what each action leaves behind, and that it forgets nothing and folds what older versions wrote."""

from __future__ import annotations

import json

import pytest

from rollout.actions import (
    Acknowledge,
    Degrade,
    EndWatch,
    MakeRoom,
    Mirror,
    Pause,
    Preview,
    Promote,
    Resume,
    RetirePrevious,
    SetStep,
    Shift,
    Start,
    SwitchBack,
    Trigger,
    Withdraw,
)
from rollout.decision import Decision
from rollout.status import ModelStatus, Phase, Stage, apply, kept_versions
from tests.unit.rollout.positions import CANARY, NEXT, OLDER, STABLE, sized, spec


def start(of, **changes):
    return Start(rollout=f"r-{of.version}", spec=spec(**changes), target=of, salt="s")


def fold(*actions, status=None, at=1000.0):
    return apply(status or ModelStatus(model="chat"), actions, at=at, reason="why", actor="ada")


def first(**changes):
    """STABLE serves alone."""
    return fold(start(STABLE, **changes), Promote(watch=True))


def beside(*actions, **changes):
    """CANARY is being rolled out beside STABLE."""
    return fold(start(CANARY, **changes), *actions, status=first())


WITHDRAW = Withdraw(trigger=Trigger.SIGNAL, condemn=True)


def retired(status):
    return [r.deployed.version for r in status.retiring]


def test_a_withdrawal_that_keeps_a_part_leaves_the_revision_in_the_traffic_and_condemns_it_at_once():
    where = fold(WITHDRAW.model_copy(update={"keep": 30}), status=beside(SetStep(step=0, weight=50)))
    assert (where.rollout.stage, where.rollout.weight, where.leaving.weight) == (Stage.WITHDRAWING, 30, 30)
    assert (where.phase, where.canary, retired(where)) == (Phase.DEGRADED, None, [])
    assert CANARY.digest in where.quarantine
    assert CANARY in where.running()


def test_what_is_kept_is_never_more_than_there_was():
    where = fold(WITHDRAW.model_copy(update={"keep": 90}), status=beside(SetStep(step=0, weight=10)))
    assert where.leaving.weight == 10


def test_a_shift_lowers_and_never_raises_and_retires_at_zero():
    where = fold(WITHDRAW.model_copy(update={"keep": 30}), status=beside(SetStep(step=0, weight=50)))
    where = fold(Shift(weight=10), status=where)
    assert fold(Shift(weight=25), status=where).leaving.weight == 10
    where = fold(Shift(weight=0), status=where)
    assert (where.leaving, where.rollout.stage, retired(where)) == (None, Stage.WITHDRAWN, ["1.0.1"])


def test_a_new_rollout_runs_beside_what_is_leaving():
    where = fold(WITHDRAW.model_copy(update={"keep": 30}), status=beside(SetStep(step=0, weight=50)))
    where = fold(start(NEXT), status=where)
    assert (where.canary, where.leaving.weight, where.rollout.weight) == (NEXT, 30, 0)
    where = fold(Promote(watch=True), status=where)
    assert (where.stable, where.leaving, retired(where)) == (NEXT, None, ["1.0.1"])


def test_deploying_again_what_is_leaving_does_not_retire_it():
    abort = Withdraw(trigger=Trigger.ABORT, condemn=False, keep=30)
    where = fold(abort, start(CANARY), Shift(weight=0), status=beside(SetStep(step=0, weight=50)))
    assert (where.canary, where.leaving, retired(where)) == (CANARY, None, [])


def test_a_switch_is_one_action_and_keeps_the_old_side_warm_and_watches_the_new_one():
    where = fold(Promote(watch=True), status=beside(Preview(), rollbackWindow="10m"), at=2000.0)
    assert (where.stable, where.previous, where.warm_until) == (CANARY, STABLE, 2600.0)
    assert where.rollout.watched
    assert where.rollout.watch_until == 2600.0


@pytest.mark.parametrize("action", [EndWatch(), RetirePrevious(), SwitchBack(trigger=Trigger.SIGNAL), start(NEXT)])
def test_a_watch_ends_with_its_window_or_its_revision(action):
    where = fold(Promote(watch=True), status=beside(Preview()))
    assert not fold(action, status=where).rollout.watched


def test_a_promotion_without_watch_is_not_watched():
    assert not fold(Promote(), status=beside()).rollout.watched


def test_a_switch_back_swaps_the_sides_and_condemns():
    where = fold(Promote(watch=True), SwitchBack(trigger=Trigger.SIGNAL), status=beside(Preview()))
    assert (where.stable, where.previous, retired(where), where.phase) == (STABLE, None, ["1.0.1"], Phase.DEGRADED)
    assert where.condemned == {CANARY.digest: "1.0.1"}


def test_a_switch_back_may_leave_a_part_with_the_side_that_is_left():
    where = fold(Promote(), SwitchBack(trigger=Trigger.SIGNAL, keep=100), status=beside())
    assert (where.stable, where.leaving.deployed, where.leaving.weight, retired(where)) == (STABLE, CANARY, 100, [])


def test_a_switch_back_to_what_is_being_drained_takes_it_out_of_the_drain():
    where = fold(Promote(), start(NEXT), Promote(), status=beside())
    assert (where.stable, where.previous, retired(where)) == (NEXT, CANARY, ["1.0.0"])
    where = fold(SwitchBack(trigger=Trigger.OPERATOR, to=STABLE.digest), status=where)
    assert (where.stable, where.previous, retired(where)) == (STABLE, None, ["1.0.1", "1.0.2"])


def test_history_holds_what_was_stable_newest_first_and_is_bounded():
    where = first()
    for of in (CANARY, NEXT, OLDER):
        where = fold(start(of, revisionHistoryLimit=2), Promote(), status=where)
    assert [d.version for d in where.history] == ["0.9.0", "1.0.2", "1.0.1"]
    assert kept_versions(where) == ("1.0.2", "1.0.0", "1.0.1")  # what is warm or draining counts too


def test_history_forgets_what_was_condemned_after_its_promotion():
    where = fold(Promote(), SwitchBack(trigger=Trigger.SIGNAL), status=beside())
    assert [d.version for d in where.history] == ["1.0.0"]


def test_deploying_the_same_version_again_is_remembered_once():
    where = fold(Promote(), start(STABLE), Promote(), status=beside())
    assert [d.version for d in where.history] == ["1.0.0", "1.0.1"]


def test_stages_of_the_other_strategies():
    assert beside(Preview()).rollout.stage is Stage.PREVIEWING
    mirrored = beside(Mirror(percent=20))
    assert (mirrored.rollout.stage, mirrored.rollout.weight, mirrored.rollout.mirror_percent) == (
        Stage.MIRRORING, 0, 20)  # fmt: skip
    assert fold(WITHDRAW, status=mirrored).rollout.mirror_percent == 0


def test_a_pause_at_the_end_is_told_from_one_by_hand():
    where = beside(Preview(), Pause(at_end=True))
    assert (where.phase, where.rollout.paused, where.rollout.at_end) == (Phase.PAUSED, True, True)
    where = fold(Resume(), status=where)
    assert (where.phase, where.rollout.paused, where.rollout.at_end) == (Phase.PROGRESSING, False, False)


def test_a_step_by_hand_out_of_a_pause_keeps_the_phase_true():
    where = beside(SetStep(step=0, weight=10), Pause(), Resume(), SetStep(step=1, weight=50))
    assert (where.phase, where.rollout.weight) == (Phase.PROGRESSING, 50)


def test_degraded_is_told_and_nothing_changes():
    before = first()
    after = fold(Degrade(), status=before)
    assert (after.phase, after.stable, after.reason) == (Phase.DEGRADED, before.stable, "why")


def test_what_is_taken_back_without_spare_capacity_runs_at_the_size_it_had():
    replace = {"engine": {"capacity": "replace", "minReplicas": 2}}
    where = fold(start(sized(CANARY, 4), **replace), SetStep(step=0, weight=10), MakeRoom(replicas=2), status=first())
    assert fold(WITHDRAW, status=where).retiring[0].deployed.replicas == 2


@pytest.mark.parametrize(
    ("actions", "served"), [((), False), ((SetStep(step=0, weight=10),), True), ((Preview(),), True)]
)
def test_what_was_superseded_while_it_started_is_not_taken_for_one_that_answers(actions, served):
    assert fold(WITHDRAW, status=beside(*actions)).retiring[0].served is served


def test_acknowledging_forgets_the_version_too():
    where = fold(WITHDRAW, Acknowledge(digest=CANARY.digest), status=beside())
    assert (dict(where.quarantine), dict(where.condemned)) == ({}, {})


def test_clearing_up_does_not_hide_the_reason():
    where = fold(WITHDRAW.model_copy(update={"keep": 10}), status=beside(SetStep(step=0, weight=50)))
    after = apply(where, (Shift(weight=0),), at=2000.0, reason="stable can take all", actor="controller")
    assert (after.reason, after.actor) == ("why", "ada")


OLD_START = {
    "type": "start", "rollout": "r", "salt": "s",
    "spec": {
        "model": "chat", "version": "1.0.1", "paused": False, "progress_deadline_seconds": 1800,
        "engine": {"image": "local", "min_replicas": 1},
        "strategy": {"canary": {
            "steps": [{"weight": 5, "duration": 30.0, "max_duration": None}], "soak": 0.0, "holdback_percent": 20}},
        "analysis": {"alpha": 0.01, "beta": 0.05, "on_insufficient": "pause", "signals": [
            {"name": "error", "share": None, "max_rate": 0.05, "max_ratio": None, "max_slowdown": 1.25, "gating": True},
            {"name": "slow-tokens", "share": None, "max_rate": 0.05, "max_ratio": None, "max_slowdown": 1.25,
             "gating": False}]},
        "rollback_window": 1800.0, "drain_deadline": 600.0, "emergency": False,
    },
    "target": CANARY.model_dump(mode="json"),
}  # fmt: skip


def test_what_the_first_release_wrote_still_folds():
    written = [
        {"cause": "command", "reason": "deploy", "actions": [OLD_START]},
        {"cause": "progress", "reason": "step", "actions": [{"type": "set-step", "step": 0, "weight": 5}]},
        {"cause": "progress", "reason": "done", "actions": [{"type": "promote"}]},
        {"cause": "drained", "reason": "over", "actions": [{"type": "retire-previous"}]},
        {"cause": "command", "reason": "back", "actions": [
            OLD_START, {"type": "withdraw", "trigger": "operator", "condemn": True}]},
    ]  # fmt: skip
    where = first()
    for entry in written:
        decision = Decision.model_validate(json.loads(json.dumps(entry)))
        where = fold(*decision.actions, status=where)
    assert (where.stable, where.rollout.stage) == (CANARY, Stage.WITHDRAWN)
    assert where.condemned == {CANARY.digest: "1.0.1"}
    assert [d.version for d in where.history] == ["1.0.1", "1.0.0"]


def test_a_status_is_the_same_after_a_way_through_json():
    where = fold(
        WITHDRAW.model_copy(update={"keep": 30}),
        status=beside(SetStep(step=0, weight=50), strategy={"blueGreen": {"testers": [{"key": "abcdefgh1234"}]}}),
    )
    assert ModelStatus.model_validate_json(where.model_dump_json()) == where
