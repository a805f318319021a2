"""Blue-green, shadow, A/B and what goes on after a switch, as decision tables."""

from __future__ import annotations

import pytest

from rollout.actions import (
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
    SwitchBack,
    Trigger,
    Withdraw,
)
from rollout.decide import Cause, decide, housekeeping
from rollout.observation import Comparison, Counts, SampleRatio, Similarity, SmokeResult, Verdict
from rollout.status import Leaving, Phase, Stage, apply
from rollout.workloads.base import WorkloadState
from serving.outcomes import Signal
from tests.unit.rollout.positions import (
    APP,
    CANARY,
    FAILED,
    OLDER,
    RUNNING,
    SMOKE,
    STABLE,
    beside_stable,
    reading,
    seen,
    sized,
    starting,
    status,
    workload,
)

BLUE_GREEN = {"blueGreen": {"smoke": SMOKE, "previewDuration": "1m"}}
BY_HAND = {"blueGreen": {"smoke": SMOKE, "autoSwitch": False}}
TESTED = {"blueGreen": {"testers": [{"header": "x-beta", "value": "1"}], "previewRequests": 20}}
SHADOW = {"shadow": {"mirrorPercent": 20, "duration": "1m", "pairs": 100, "maxDuration": "10m"}}
SHADOW_ON = {"shadow": {"duration": "1m", "pairs": 100, "onPassed": "promote"}}
AB = {"ab": {"weight": 40, "sessions": 500}}
AB_BOLD = {"ab": {"weight": 40, "sessions": 500, "safety": False}}

PASSED = SmokeResult(passed=True, ran=1)
WRONG = SmokeResult(passed=False, ran=1, failed=("capital",), message="capital does not contain 'Paris'")
UNEVEN = SampleRatio(log_e=8.0, threshold=6.9, canary=120, stable=90)
SLOW_FAILED = reading(Verdict.FAILED, Signal.SLOW_TOKENS, gating=False, log_e=9.0)
ERROR = reading(Verdict.ERROR, error="Prometheus does not answer")


def previewing(strategy=BLUE_GREEN, **changes):
    return status(Stage.PREVIEWING, 0, 0, strategy=strategy, **changes)


def mirroring(strategy=SHADOW, **changes):
    return status(Stage.MIRRORING, 0, 0, strategy=strategy, told={"mirror_percent": 20}, **changes)


def split(strategy=AB, **changes):
    return status(Stage.STEPPING, 0, 40, strategy=strategy, **changes)


TAKEN_BACK = (Withdraw(trigger=Trigger.SIGNAL, condemn=True),)

# name -> (status, observation, now, cause, actions)
TABLE = {
    "blue-green: ready": (
        starting(strategy=BLUE_GREEN), seen(), 1001, Cause.PROGRESS, (Preview(),)),
    "blue-green: in an emergency there is no preview": (
        starting(strategy=BLUE_GREEN, emergency=True), seen(), 1001, Cause.PROGRESS, (Promote(watch=True),)),
    "blue-green: the first version has nobody to switch from": (
        starting(strategy=BLUE_GREEN, stable=None), seen(), 1001, Cause.PROGRESS, (Promote(watch=True),)),
    "blue-green: the smoke suite has not answered": (
        previewing(), seen(), 1061, Cause.SMOKE, ()),
    "blue-green: the smoke suite failed": (
        previewing(), seen(smoke=WRONG), 1001, Cause.SMOKE_FAILED, (Withdraw(trigger=Trigger.SMOKE, condemn=True),)),
    "blue-green: the smoke suite failed while paused": (
        previewing(told={"paused": True}), seen(smoke=WRONG), 1001, Cause.SMOKE_FAILED,
        (Withdraw(trigger=Trigger.SMOKE, condemn=True),)),
    "blue-green: the preview is too short": (
        previewing(), seen(smoke=PASSED), 1059, Cause.STEP_TIME, ()),
    "blue-green: too few testers' requests": (
        previewing(TESTED), seen(exposure={"forced": 19}), 1061, Cause.STEP_TIME, ()),
    "blue-green: enough testers' requests": (
        previewing(TESTED), seen(exposure={"forced": 20}), 1061, Cause.PROGRESS, (Promote(watch=True),)),
    "blue-green: one switch, without a weight between": (
        previewing(), seen(smoke=PASSED), 1061, Cause.PROGRESS, (Promote(watch=True),)),
    "blue-green: a person switches": (
        previewing(BY_HAND), seen(smoke=PASSED), 1001, Cause.REPORT, (Pause(at_end=True),)),
    "blue-green: waits for the person": (
        previewing(BY_HAND, told={"paused": True, "at_end": True}), seen(smoke=PASSED), 5000, Cause.PAUSED, ()),
    "blue-green: too few replicas for everything": (
        previewing(stable=sized(STABLE, 2)), beside_stable(2, smoke=PASSED), 1061, Cause.CAPACITY, ()),
    "blue-green: a gating signal can't be measured": (
        previewing(), seen(WorkloadState.READY, ERROR, smoke=PASSED), 1061, Cause.EVIDENCE, ()),
    "blue-green: the candidate went away": (
        previewing(), seen(smoke=PASSED, ready_endpoints={}), 1061, Cause.CANARY_AWAY, ()),
    "blue-green: gateways have not followed into the preview": (
        previewing(), seen(smoke=PASSED, table_applied=False), 1061, Cause.NOT_FOLLOWED, ()),
    "blue-green: the candidate's engine keeps dying": (
        previewing(), seen(smoke=PASSED, restarts=3), 1061, Cause.ENGINE_LOST,
        (Withdraw(trigger=Trigger.ENGINE_LOST, condemn=False),)),

    "shadow: ready": (
        starting(strategy=SHADOW), seen(), 1001, Cause.PROGRESS, (Mirror(percent=20),)),
    "shadow: too short": (
        mirroring(), seen(pairs=100), 1059, Cause.STEP_TIME, ()),
    "shadow: too few pairs": (
        mirroring(), seen(pairs=99), 1061, Cause.EVIDENCE, ()),
    "shadow: too few pairs to the end": (
        mirroring(), seen(pairs=99), 1601, Cause.INSUFFICIENT, (Pause(at_end=True),)),
    "shadow: no evidence yet": (
        mirroring(), seen(WorkloadState.READY, *RUNNING, pairs=100), 1061, Cause.EVIDENCE, ()),
    "shadow: no evidence to the end": (
        mirroring(), seen(WorkloadState.READY, *RUNNING, pairs=100), 1601, Cause.INSUFFICIENT, (Pause(),)),
    "shadow: passed, a person decides": (
        mirroring(), seen(pairs=100), 1061, Cause.REPORT, (Pause(at_end=True),)),
    "shadow: passed, goes on by itself and is watched": (
        mirroring(SHADOW_ON), seen(pairs=100), 1061, Cause.PROGRESS, (Promote(watch=True),)),
    "shadow: passed, too few replicas": (
        mirroring(SHADOW_ON, stable=sized(STABLE, 2)), beside_stable(2, pairs=100), 1061, Cause.CAPACITY, ()),
    "shadow: failed": (
        mirroring(), seen(WorkloadState.READY, *FAILED, pairs=30), 1010, Cause.SIGNAL_FAILED, TAKEN_BACK),
    "shadow: the latency of mirrors judges nobody": (
        mirroring(), seen(WorkloadState.READY, reading(), SLOW_FAILED, pairs=100), 1061, Cause.REPORT,
        (Pause(at_end=True),)),
    "shadow: nor does a latency signal that gates hold it up": (
        mirroring(), seen(WorkloadState.READY, reading(), reading(Verdict.PENDING, Signal.SLOW_TOKENS), pairs=100),
        1061, Cause.REPORT, (Pause(at_end=True),)),
    "canary: the same latency does": (
        status(), seen(WorkloadState.READY, reading(), SLOW_FAILED), 1010, Cause.SIGNAL_FAILED, TAKEN_BACK),

    "a/b: ready": (
        starting(strategy=AB), seen(), 1001, Cause.PROGRESS, (SetStep(step=0, weight=40),)),
    "a/b: too few replicas for its part": (
        starting(strategy=AB, stable=sized(STABLE, 3)), beside_stable(3), 1001, Cause.CAPACITY, ()),
    "a/b: too few sessions": (
        split(), seen(sessions=499), 99999, Cause.EVIDENCE, ()),
    "a/b: the report": (
        split(), seen(sessions=500), 1001, Cause.REPORT, (Pause(at_end=True),)),
    "a/b: evidence in its favour decides nothing": (
        split(), seen(sessions=10), 99999, Cause.EVIDENCE, ()),
    "a/b: uneven sessions hold the report": (
        split(), seen(sessions=500, sample_ratio=UNEVEN), 1001, Cause.SAMPLE_RATIO, ()),
    "a/b: safety": (
        split(), seen(WorkloadState.READY, *FAILED, sessions=10), 1001, Cause.SIGNAL_FAILED, TAKEN_BACK),
    "a/b: safety after the report": (
        split(told={"paused": True, "at_end": True}), seen(WorkloadState.READY, *FAILED, sessions=900), 1001,
        Cause.SIGNAL_FAILED, TAKEN_BACK),
    "a/b: no safety where none is wanted": (
        split(AB_BOLD), seen(WorkloadState.READY, *FAILED, sessions=10), 1001, Cause.EVIDENCE, ()),
    "a/b: an engine that keeps dying goes all the same": (
        split(AB_BOLD), seen(restarts=3), 1001, Cause.ENGINE_LOST,
        (Withdraw(trigger=Trigger.ENGINE_LOST, condemn=False),)),
}  # fmt: skip


@pytest.mark.parametrize("case", TABLE)
def test_each_case_gives_its_decision(case):
    where, observation, now, cause, actions = TABLE[case]
    decision = decide(where.rollout.spec, where, observation, now)
    assert (decision.cause, decision.actions) == (cause, actions), decision.reason
    assert decision.reason


def test_the_reason_of_an_ab_report_gives_effect_and_interval():
    found = Comparison(
        name=Signal.ERROR, canary=Counts(events=20, n=400), stable=Counts(events=6, n=600), ratio=5.0, ratio_low=1.6,
        ratio_high=17.0, log_e=4.0,
    )  # fmt: skip
    where = split()
    decision = decide(where.rollout.spec, where, seen(sessions=500, comparisons=(found,)), 1001)
    assert "canary 20 of 400 (5.0 %), stable 6 of 600 (1.0 %), 5 times stable's rate (1.6 to 17)" in decision.reason
    assert "`promote` takes it over" in decision.reason


def test_the_reason_of_a_passed_shadow_tells_how_alike_the_answers_were():
    alike = Similarity(pairs=120, to_stable=0.71, baseline_pairs=40, baseline=0.74)
    where = mirroring()
    decision = decide(where.rollout.spec, where, seen(pairs=120, similarity=alike), 1061)
    assert "likeness to stable's answers 0.71 over 120 pairs, stable's to its own 0.74" in decision.reason


# -- after a switch -----------------------------------------------------------------------------------------------

ABOVE = reading(Verdict.FAILED, canary=Counts(events=40, n=200), absolute_log_e=7.0, absolute_threshold=5.3)


def switched(previous=STABLE, window=1600.0, **changes):
    """CANARY has become stable and is watched; what was stable before is kept warm."""
    beside = {"previous": previous, "warm_until": window if previous else None}
    beside |= changes.pop("beside", {})
    told = {"watch_until": window, **changes.pop("told", {})}
    return status(Stage.PROMOTED, 0, 100, stable=CANARY, strategy=BLUE_GREEN, told=told, beside=beside, **changes)


WATCHED = {
    "all is well": (switched(), seen(), Cause.WATCHING, ()),
    "its own rate is above the objective": (
        switched(), seen(WorkloadState.READY, ABOVE), Cause.SIGNAL_FAILED, (SwitchBack(trigger=Trigger.SIGNAL),)),
    "the same while nothing can be seen": (
        switched(), seen(WorkloadState.READY, ABOVE, workloads=None, gateways=0, ready_endpoints={}),
        Cause.SIGNAL_FAILED, (SwitchBack(trigger=Trigger.SIGNAL),)),
    "half of the warm side is ready": (
        switched(sized(STABLE, 2)), beside_stable(1, signals=(ABOVE,)), Cause.SIGNAL_FAILED,
        (SwitchBack(trigger=Trigger.SIGNAL, keep=50),)),
    "the warm side is dead": (
        switched(), beside_stable(0, signals=(ABOVE,)), Cause.SIGNAL_FAILED,
        (SwitchBack(trigger=Trigger.SIGNAL, keep=100),)),
    "the engine keeps dying": (
        switched(), seen(restarts=3), Cause.ENGINE_LOST, (SwitchBack(trigger=Trigger.ENGINE_LOST, condemn=False),)),
    "a first version has no way back: it is told": (
        switched(None), seen(WorkloadState.READY, ABOVE), Cause.SIGNAL_FAILED, (Degrade(),)),
    "and told once": (
        switched(None).model_copy(update={"phase": Phase.DEGRADED}), seen(WorkloadState.READY, ABOVE),
        Cause.SIGNAL_FAILED, ()),
    "nobody watches any more": (
        switched(told={"watch_until": None}), seen(WorkloadState.READY, ABOVE), Cause.IDLE, ()),
}  # fmt: skip


@pytest.mark.parametrize("case", WATCHED)
def test_after_a_switch_the_new_stable_is_watched(case):
    where, observation, cause, actions = WATCHED[case]
    decision = decide(where.rollout.spec, where, observation, 1500)
    assert (decision.cause, decision.actions) == (cause, actions), decision.reason


def test_what_is_above_its_objective_is_told_with_its_own_rate():
    decision = decide(switched().rollout.spec, switched(), seen(WorkloadState.READY, ABOVE), 1500)
    assert "error: 20 % of 200, above its objective" in decision.reason
    assert "back to chat@1.0.0" in decision.reason


# -- what goes on beside a rollout ----------------------------------------------------------------------------------


def leaving(weight=50, stable=STABLE, **changes):
    beside = {"leaving": Leaving(deployed=CANARY, weight=weight, since=1000.0)}
    return status(Stage.WITHDRAWING, 0, weight, stable=stable, beside=beside, **changes)


TWO = sized(STABLE, 2)
BESIDE = {
    "stable can take more": (leaving(80, TWO), beside_stable(1), (Shift(weight=50),)),
    "stable can take all": (leaving(80, TWO), beside_stable(2, WorkloadState.READY), (Shift(weight=0),)),
    "nothing has changed": (leaving(50, TWO), beside_stable(1), None),
    "stable got worse: the canary does not get it back": (leaving(50, TWO), beside_stable(0), None),
    "workloads out of sight, stable has an endpoint": (leaving(), seen(workloads=None), (Shift(weight=0),)),
    "workloads out of sight, stable has none": (
        leaving(), seen(workloads=None, ready_endpoints={APP: 1, STABLE.application: 0}), None),
    "what is leaving has died": (
        leaving(50, TWO),
        seen(workloads={
            STABLE.application: workload(STABLE, 1, WorkloadState.DEGRADED),
            APP: workload(CANARY, 0, WorkloadState.DEGRADED),
        }),
        (Shift(weight=0),),
    ),
    "the window of a first version is over": (switched(None, 1400.0), seen(), (EndWatch(),)),
    "the window is not over": (switched(None), seen(), None),
    "the window is over: the old side retires, and the watch with it": (
        switched(window=1400.0), seen(), (RetirePrevious(),)),
}  # fmt: skip


@pytest.mark.parametrize("case", BESIDE)
def test_housekeeping_finishes_what_was_begun(case):
    where, observation, actions = BESIDE[case]
    done = housekeeping(where, observation, 1500)
    assert (done.actions if done is not None else None) == actions


@pytest.mark.parametrize(
    ("emergency", "cause", "actions"),
    [(False, Cause.WITHDRAWING, ()), (True, Cause.PROGRESS, (Promote(watch=True),))],
)
def test_a_new_version_waits_for_the_one_that_is_leaving_unless_it_is_an_emergency(emergency, cause, actions):
    there = {"leaving": Leaving(deployed=OLDER, weight=30, since=1000.0)}
    where = starting(emergency=emergency, beside=there)
    decision = decide(where.rollout.spec, where, seen(), 1001)
    assert (decision.cause, decision.actions) == (cause, actions)


# -- no spare capacity ------------------------------------------------------------------------------------------------

REPLACE = {"capacity": "replace", "minReplicas": 2}
FOUR = sized(STABLE, 4)


def replacing(room, weight, **changes):
    where = status(weight=weight, stable=FOUR, engine=REPLACE, told={"room": room}, **changes)
    target = sized(CANARY, 4)
    return where.model_copy(update={"rollout": where.rollout.model_copy(update={"target": target})})


def with_replicas(canary, stable, **changes):
    there = {APP: workload(CANARY, canary), STABLE.application: workload(STABLE, stable)}
    return seen(WorkloadState.READY, workloads=there, **changes)


@pytest.mark.parametrize(
    ("room", "ready", "actions"),
    [
        pytest.param(1, 1, (MakeRoom(replicas=2),), id="stable gives a replica"),
        pytest.param(2, 2, (SetStep(step=1, weight=50),), id="it can carry half"),
    ],
)
def test_without_spare_capacity_stable_gives_replicas_one_by_one(room, ready, actions):
    where = replacing(room, 10)
    decision = decide(where.rollout.spec, where, with_replicas(ready, 4 - room), 1031)
    assert decision.actions == actions, decision.reason


def test_the_next_replica_is_given_only_when_the_last_one_serves():
    where = replacing(2, 10)
    there = {
        APP: workload(CANARY, 1, WorkloadState.DEGRADED),
        STABLE.application: workload(STABLE, 2),
    }
    decision = decide(where.rollout.spec, where, seen(WorkloadState.READY, workloads=there), 1031)
    assert (decision.cause, decision.actions) == (Cause.CAPACITY, ())


@pytest.mark.parametrize(
    ("given_at", "state", "now", "cause", "told"),
    [
        pytest.param(1500.0, WorkloadState.STARTING, 1700.0, Cause.STARTING, "", id="the next one has its own time"),
        pytest.param(1500.0, WorkloadState.STARTING, 2101.0, Cause.DEADLINE, "1 of the 2", id="and no more"),
        pytest.param(1500.0, WorkloadState.READY, 2101.0, Cause.DEADLINE, "was not ready", id="or no gateway sees it"),
        pytest.param(None, WorkloadState.STARTING, 1601.0, Cause.DEADLINE, "was not ready", id="that of the start"),
    ],
)
def test_before_the_first_weight_each_replica_that_stable_gives_has_the_whole_deadline(
    given_at, state, now, cause, told
):
    room = {"room": 2 if given_at else 1, "room_at": given_at}
    where = starting(stable=FOUR, engine=REPLACE, progressDeadlineSeconds=600, told=room)
    target = sized(CANARY, 4)
    where = where.model_copy(update={"rollout": where.rollout.model_copy(update={"target": target})})
    there = {APP: workload(CANARY, 1, state), STABLE.application: workload(STABLE, 2)}
    decision = decide(where.rollout.spec, where, seen(workloads=there, ready_endpoints={}), now)
    assert decision.cause == cause, decision.reason
    assert told in decision.reason


def test_a_replica_given_before_a_pause_is_still_given_back_when_it_never_serves():
    where = replacing(2, 10)
    where = where.model_copy(update={"rollout": where.rollout.model_copy(update={"room_at": 1040.0, "paused": True})})
    there = {APP: workload(CANARY, 1, WorkloadState.STARTING), STABLE.application: workload(STABLE, 2)}
    paused = decide(where.rollout.spec, where, seen(workloads=there), 90_000.0)
    assert (paused.cause, paused.actions) == (Cause.PAUSED, ()), "it may be a replica that served and restarts"
    where = apply(where, [Resume()], at=1100.0, reason="go on", actor="ada")
    until = 1100.0 + where.rollout.spec.progress_deadline_seconds
    in_time, late = (decide(where.rollout.spec, where, seen(workloads=there), now) for now in (until, until + 1.0))
    assert (in_time.cause, late.cause) == (Cause.CAPACITY, Cause.DEADLINE), late.reason


def test_a_rollback_without_spare_capacity_moves_everything_to_the_replicas_that_stable_kept():
    where = replacing(2, 50)
    decision = decide(where.rollout.spec, where, with_replicas(2, 2, signals=FAILED), 1031)
    assert decision.actions == TAKEN_BACK
