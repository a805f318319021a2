"""What operators may say in every state, what it does, and what they are told when it makes no sense."""

from __future__ import annotations

import pytest

from rollout import commands
from rollout.actions import (
    Acknowledge,
    Pause,
    Promote,
    Resume,
    SetStep,
    Shift,
    Start,
    SwitchBack,
    Trigger,
    Withdraw,
)
from rollout.commands import Command, Target, Verb
from rollout.errors import CommandRefused, Quarantined
from rollout.status import Leaving, ModelStatus, Phase, Retiring, Stage
from tests.unit.rollout.positions import (
    CANARY,
    NEXT,
    OLDER,
    STABLE,
    beside_stable,
    seen,
    sized,
    spec,
    starting,
    status,
)

BLUE_GREEN, SHADOW, AB = {"blueGreen": {}}, {"shadow": {}}, {"ab": {}}
SOAK = {"soak": "5m"}


def say(verb, **arguments):
    return Command(verb=verb, actor="ada", **arguments)


def target(of=NEXT):
    return Target(rollout="r2", spec=spec().model_copy(update={"version": of.version}), deployed=of, salt="s2")


def serving(stable=STABLE, previous=None, **changes):
    return ModelStatus(model="chat", phase=Phase.HEALTHY, stable=stable, previous=previous, **changes)


def withdrawing(weight=40, stable=STABLE):
    there = Leaving(deployed=CANARY, weight=weight, since=1000.0)
    return status(Stage.WITHDRAWING, 0, weight, stable=stable, beside={"leaving": there})


def retiring(deployed, served=True):
    return Retiring(deployed=deployed, since=990.0, deadline_at=1600.0, served=served)


BACK = Withdraw(trigger=Trigger.OPERATOR, condemn=True)

# state -> (status, version named, what it does)
ROLLBACKS = {
    "the canary is starting": (starting(), None, (BACK,)),
    "it has a part of the traffic": (status(), None, (BACK,)),
    "it is paused": (status(told={"paused": True}), None, (BACK,)),
    "it waits for a person": (status(told={"paused": True, "at_end": True}), None, (BACK,)),
    "it is soaking": (status(Stage.SOAKING, 1, 80, **SOAK), None, (BACK,)),
    "it is in its preview": (status(Stage.PREVIEWING, 0, 0, strategy=BLUE_GREEN), None, (BACK,)),
    "it is mirrored": (status(Stage.MIRRORING, 0, 0, strategy=SHADOW), None, (BACK,)),
    "an A/B test runs": (status(strategy=AB), None, (BACK,)),
    "stable is named": (status(), "1.0.0", (BACK,)),
    "a first version": (starting(stable=None), None, (BACK,)),
    "just promoted": (serving(CANARY, STABLE), None, (SwitchBack(trigger=Trigger.OPERATOR),)),
    "just promoted, the warm one is named": (
        serving(CANARY, STABLE), "1.0.0", (SwitchBack(trigger=Trigger.OPERATOR),)),
    "past a canary to what is warm": (
        status(beside={"previous": OLDER}), "0.9.0", (BACK, SwitchBack(trigger=Trigger.OPERATOR))),
    "to what is still being drained": (
        serving(CANARY, STABLE, retiring=(retiring(OLDER),)), "0.9.0",
        (SwitchBack(trigger=Trigger.OPERATOR, to=OLDER.digest),)),
    "past a canary to what is still being drained": (
        status(beside={"retiring": (retiring(OLDER),)}), "0.9.0",
        (BACK, SwitchBack(trigger=Trigger.OPERATOR, to=OLDER.digest))),
}  # fmt: skip


@pytest.mark.parametrize("state", ROLLBACKS)
def test_a_rollback_works_from_every_state(state):
    where, version, actions = ROLLBACKS[state]
    found = commands.rollback(where, say(Verb.ROLLBACK, version=version), None)
    assert found.actions == actions
    assert "by ada" in found.reason


@pytest.mark.parametrize("where", [serving(history=(STABLE, OLDER)), status(beside={"history": (STABLE, OLDER)})])
def test_a_rollback_to_a_version_that_does_not_run_starts_it_and_stable_serves_meanwhile(where):
    found = commands.rollback(where, say(Verb.ROLLBACK, version="0.9.0"), target(OLDER))
    assert isinstance(found.actions[-1], Start)
    assert found.actions[:-1] == ((BACK,) if where.canary else ())
    assert "stable serves until then" in found.reason


# name -> (status, command, elsewhere, complaint)
REFUSED = {
    "nothing was ever stable before": (serving(), say(Verb.ROLLBACK), None, "keeps no earlier version warm"),
    "stable is named": (serving(), say(Verb.ROLLBACK, version="1.0.0"), None, "is what serves now"),
    "what is being rolled out is named": (
        status(), say(Verb.ROLLBACK, version="1.0.1"), None, "being rolled out already"),
    "it is on its way back already": (withdrawing(), say(Verb.ROLLBACK), None, "keeps 40 %"),
    "what is being drained has never been ready": (
        serving(STABLE, retiring=(retiring(NEXT, served=False),)), say(Verb.ROLLBACK, version="1.0.2"), None,
        "does not answer"),
    "a version that was never stable": (
        serving(history=(STABLE, OLDER)), say(Verb.ROLLBACK, version="1.0.2"), target(NEXT), "0.9.0; revisionHistory"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_rollback_that_makes_no_sense_says_why(case):
    where, command, elsewhere, complaint = REFUSED[case]
    with pytest.raises(CommandRefused, match=complaint):
        commands.rollback(where, command, elsewhere)


@pytest.mark.parametrize("elsewhere", [None, target(OLDER)])
def test_a_rollback_does_not_go_back_to_what_was_condemned(elsewhere):
    held = {"quarantine": {OLDER.digest: "errors"}, "condemned": {OLDER.digest: "0.9.0"}, "history": (STABLE, OLDER)}
    where = serving(previous=OLDER if elsewhere is None else None, **held)
    with pytest.raises(Quarantined, match="ack"):
        commands.rollback(where, say(Verb.ROLLBACK, version="0.9.0"), elsewhere)


@pytest.mark.parametrize(
    ("ready", "full", "keep"),
    [(2, False, 0), (1, False, 50), (0, False, 80), (1, True, 0), (0, True, 0)],
)
def test_a_rollback_moves_only_what_stable_can_take_unless_told_in_full(ready, full, keep):
    where = status(weight=80, stable=sized(STABLE, 2))
    found = commands.rollback(where, say(Verb.ROLLBACK, full=full), None, beside_stable(ready))
    assert found.actions == (Withdraw(trigger=Trigger.OPERATOR, condemn=True, keep=keep),)
    assert ("stay" in found.reason or "nothing can be moved" in found.reason) is bool(keep)


@pytest.mark.parametrize(("ready", "full", "keep"), [(1, False, 0), (0, False, 100), (0, True, 0)])
def test_a_switch_back_leaves_with_the_new_side_what_the_warm_one_can_not_take(ready, full, keep):
    where = serving(CANARY, STABLE)
    found = commands.rollback(where, say(Verb.ROLLBACK, full=full), None, beside_stable(ready))
    assert found.actions == (SwitchBack(trigger=Trigger.OPERATOR, keep=keep),)


def test_what_is_being_drained_and_answers_can_be_gone_back_to():
    where = serving(STABLE, retiring=(retiring(CANARY, served=False),))
    found = commands.rollback(where, say(Verb.ROLLBACK, version="1.0.1", full=False), None, seen())
    assert found.actions == (SwitchBack(trigger=Trigger.OPERATOR, to=CANARY.digest),)


def test_what_is_still_leaving_can_be_shed():
    found = commands.rollback(withdrawing(), say(Verb.ROLLBACK, full=True), None)
    assert found.actions == (Shift(weight=0),)


# name -> (status, full, what `promote` does)
PROMOTIONS = {
    "one step": (status(), False, (SetStep(step=1, weight=50),)),
    "the last step": (status(step=1, weight=50), False, (Promote(),)),
    "into the soak": (status(step=1, weight=50, **SOAK), False, (SetStep(step=1, weight=80, soaking=True),)),
    "out of the soak": (status(Stage.SOAKING, 1, 80, **SOAK), False, (Promote(),)),
    "all that is left": (status(), True, (Promote(watch=True),)),
    "paused": (status(told={"paused": True}), False, (Resume(), SetStep(step=1, weight=50))),
    "the switch": (status(Stage.PREVIEWING, 0, 0, strategy=BLUE_GREEN), False, (Promote(watch=True),)),
    "a shadow": (status(Stage.MIRRORING, 0, 0, strategy=SHADOW), False, (Promote(watch=True),)),
    "an A/B test before its report, in full": (status(strategy=AB), True, (Promote(watch=True),)),
    "an A/B test after its report": (
        status(strategy=AB, told={"paused": True, "at_end": True}), False, (Promote(),)),
}  # fmt: skip


@pytest.mark.parametrize("case", PROMOTIONS)
def test_promote_goes_on_by_hand(case):
    where, full, actions = PROMOTIONS[case]
    assert commands.promote(where, say(Verb.PROMOTE, full=full), seen()).actions == actions


@pytest.mark.parametrize(
    ("where", "observation", "told"),
    [
        (starting(), seen(), "not ready yet"),
        (status(), seen(ready_endpoints={CANARY.application: 0}), "not ready"),
        (status(), seen(ready_endpoints={}), "no gateway has told yet"),
    ],
)
def test_promote_never_gives_traffic_to_what_does_not_answer(where, observation, told):
    with pytest.raises(CommandRefused, match=told):
        commands.promote(where, say(Verb.PROMOTE, full=True), observation)


def test_a_rollout_at_its_end_is_not_resumed_but_promoted_or_aborted():
    where = status(Stage.PREVIEWING, 0, 0, strategy=BLUE_GREEN, told={"paused": True, "at_end": True})
    with pytest.raises(CommandRefused, match="`promote` gives it all traffic"):
        commands.resume(where, say(Verb.RESUME))
    assert commands.abort(where, say(Verb.ABORT)).actions == (Withdraw(trigger=Trigger.ABORT, condemn=False),)


def test_pause_and_resume():
    assert commands.pause(status(), say(Verb.PAUSE)).actions == (Pause(),)
    assert commands.resume(status(told={"paused": True}), say(Verb.RESUME)).actions == (Resume(),)
    with pytest.raises(CommandRefused, match="already paused"):
        commands.pause(status(told={"paused": True}), say(Verb.PAUSE))
    with pytest.raises(CommandRefused, match="not paused"):
        commands.resume(status(), say(Verb.RESUME))


@pytest.mark.parametrize("verb", [commands.promote, commands.pause, commands.resume, commands.abort])
def test_without_an_active_rollout_there_is_nothing_to_steer(verb):
    for where in (serving(), withdrawing()):
        with pytest.raises(CommandRefused, match="no rollout of chat is active"):
            verb(where, say(Verb.ABORT))


SUPERSEDED = Withdraw(trigger=Trigger.SUPERSEDED, condemn=False)
IN_EVERY_STATE = {
    "starting": starting(),
    "stepping": status(),
    "paused": status(told={"paused": True}),
    "soaking": status(Stage.SOAKING, 1, 80, **SOAK),
    "previewing": status(Stage.PREVIEWING, 0, 0, strategy=BLUE_GREEN),
    "mirroring": status(Stage.MIRRORING, 0, 0, strategy=SHADOW),
    "at its end": status(strategy=AB, told={"paused": True, "at_end": True}),
}


@pytest.mark.parametrize("state", IN_EVERY_STATE)
def test_a_new_deployment_supersedes_at_every_step(state):
    found = commands.deploy(IN_EVERY_STATE[state], target(), say(Verb.DEPLOY), seen())
    assert found.actions == (SUPERSEDED, target().start())
    assert "superseding chat@1.0.1" in found.reason


@pytest.mark.parametrize("state", IN_EVERY_STATE)
def test_deploying_stable_again_only_ends_the_rollout(state):
    found = commands.deploy(IN_EVERY_STATE[state], target(STABLE), say(Verb.DEPLOY), seen())
    assert found.actions == (SUPERSEDED,)


def test_superseding_moves_only_what_stable_can_take():
    where = status(weight=80, stable=sized(STABLE, 2))
    found = commands.deploy(where, target(), say(Verb.DEPLOY), beside_stable(1))
    assert found.actions[0] == Withdraw(trigger=Trigger.SUPERSEDED, condemn=False, keep=50)


def test_a_deployment_while_another_version_is_leaving_starts_beside_it():
    assert commands.deploy(withdrawing(), target(), say(Verb.DEPLOY)).actions == (target().start(),)


def test_undo_goes_only_to_what_was_stable_before():
    where = serving(CANARY, STABLE, history=(CANARY, STABLE, OLDER))
    assert commands.earlier_version(where) == STABLE
    assert commands.earlier_version(where, "0.9.0") == OLDER
    with pytest.raises(CommandRefused, match=r"1\.0\.0, 0\.9\.0"):
        commands.earlier_version(where, "7.7.7")
    with pytest.raises(CommandRefused, match="revisionHistoryLimit"):
        commands.deploy(where, target(NEXT), say(Verb.UNDO))
    with pytest.raises(CommandRefused, match="no stable version before"):
        commands.earlier_version(serving(history=(STABLE,)))


def test_ack_releases_all_or_one_version():
    held = {CANARY.digest: "errors", NEXT.digest: "empty"}
    where = serving(quarantine=held, condemned={CANARY.digest: "1.0.1", NEXT.digest: "1.0.2"})
    everything = commands.acknowledge(where, say(Verb.ACK), tuple(held))
    assert everything.actions == (Acknowledge(digest=CANARY.digest), Acknowledge(digest=NEXT.digest))
    one = commands.acknowledge(where, say(Verb.ACK, version="1.0.2"), tuple(held))
    assert one.actions == (Acknowledge(digest=NEXT.digest),)
    with pytest.raises(CommandRefused, match=r"1\.0\.1, 1\.0\.2"):
        commands.acknowledge(where, say(Verb.ACK, version="9.9.9"), tuple(held))
    with pytest.raises(CommandRefused, match="nothing of chat is quarantined"):
        commands.acknowledge(serving(), say(Verb.ACK), ())


def test_a_condemned_version_is_not_deployed_until_acknowledged():
    where = serving(quarantine={NEXT.digest: "error: 40 %"}, condemned={NEXT.digest: "1.0.2"})
    with pytest.raises(Quarantined, match=r"error: 40 %.*ack"):
        commands.deploy(where, target(), say(Verb.DEPLOY))


def test_a_deployment_that_changes_nothing_is_refused():
    with pytest.raises(CommandRefused, match="already stable"):
        commands.deploy(serving(), target(STABLE), say(Verb.DEPLOY))
    with pytest.raises(CommandRefused, match="already being rolled out"):
        commands.deploy(status(), target(CANARY), say(Verb.DEPLOY))
