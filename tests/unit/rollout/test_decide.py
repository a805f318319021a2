"""The decision as a table: each guard, and which one wins when several apply."""

from __future__ import annotations

import pytest

from rollout.actions import Pause, Promote, SetStep, Trigger, Withdraw
from rollout.decide import Cause, decide, housekeeping
from rollout.observation import SampleRatio, Verdict
from rollout.status import ModelStatus, Retiring, Stage
from rollout.workloads.base import WorkloadState
from serving.outcomes import Signal
from tests.unit.rollout.positions import (
    APP,
    CANARY,
    FAILED,
    RUNNING,
    STABLE,
    beside_stable,
    reading,
    seen,
    sized,
    starting,
    status,
)

UNEVEN = SampleRatio(log_e=8.0, threshold=6.9, canary=120, stable=90)
SETTLED_OBJECTIVE = {"forward_by": "objective", "forward_log_e": 3.2, "objective_log_e": 3.2}

# name -> (status, observation, now, cause, actions)
TABLE = {
    "starting, not there yet": (
        starting(), seen(workloads={}), 1001, Cause.STARTING, ()),
    "starting, ready but no gateway sees it": (
        starting(), seen(ready_endpoints={}), 1001, Cause.STARTING, ()),
    "starting, ready": (
        starting(), seen(), 1001, Cause.PROGRESS, (SetStep(step=0, weight=10),)),
    "first version, ready": (
        starting(stable=None), seen(), 1001, Cause.PROGRESS, (Promote(watch=True),)),
    "emergency, ready": (
        starting(emergency=True), seen(), 1001, Cause.PROGRESS, (Promote(watch=True),)),
    "starting, failed to load": (
        starting(), seen(WorkloadState.FAILED), 1001, Cause.START_FAILED,
        (Withdraw(trigger=Trigger.NEVER_READY, condemn=False),)),
    "starting, deadline over": (
        starting(progressDeadlineSeconds=60), seen(WorkloadState.STARTING), 1061, Cause.DEADLINE,
        (Withdraw(trigger=Trigger.NEVER_READY, condemn=False),)),
    "deadline over, though nothing can be seen": (
        starting(progressDeadlineSeconds=60), seen(workloads=None), 1061, Cause.DEADLINE,
        (Withdraw(trigger=Trigger.NEVER_READY, condemn=False),)),
    "a signal failed": (
        status(), seen(WorkloadState.READY, *FAILED), 1001, Cause.SIGNAL_FAILED,
        (Withdraw(trigger=Trigger.SIGNAL, condemn=True),)),
    "a signal failed while paused": (
        status(told={"paused": True}), seen(WorkloadState.READY, *FAILED), 1001, Cause.SIGNAL_FAILED,
        (Withdraw(trigger=Trigger.SIGNAL, condemn=True),)),
    "a signal failed while the workloads can't be seen": (
        status(), seen(WorkloadState.READY, *FAILED, workloads=None), 1001, Cause.SIGNAL_FAILED,
        (Withdraw(trigger=Trigger.SIGNAL, condemn=True),)),
    "a signal failed while no gateway is connected": (
        status(), seen(WorkloadState.READY, *FAILED, gateways=0), 1001, Cause.SIGNAL_FAILED,
        (Withdraw(trigger=Trigger.SIGNAL, condemn=True),)),
    "a signal that does not gate failed all the same": (
        status(), seen(WorkloadState.READY, reading(Verdict.FAILED, gating=False)), 1001, Cause.SIGNAL_FAILED,
        (Withdraw(trigger=Trigger.SIGNAL, condemn=True),)),
    "the engine died twice": (
        status(), seen(restarts=2, signals=RUNNING), 1031, Cause.EVIDENCE, ()),
    "the engine died thrice": (
        status(), seen(restarts=3), 1031, Cause.ENGINE_LOST,
        (Withdraw(trigger=Trigger.ENGINE_LOST, condemn=False),)),
    "workloads can't be seen": (
        status(), seen(workloads=None), 1031, Cause.NOT_OBSERVED, ()),
    "no gateway": (
        status(), seen(gateways=0), 1031, Cause.NOT_OBSERVED, ()),
    "gateways have not followed": (
        status(), seen(table_applied=False), 1031, Cause.NOT_FOLLOWED, ()),
    "paused": (
        status(told={"paused": True}), seen(), 1031, Cause.PAUSED, ()),
    "the canary has no endpoint": (
        status(), seen(ready_endpoints={}), 1031, Cause.CANARY_AWAY, ()),
    "evidence suffices too early": (
        status(), seen(), 1029, Cause.STEP_TIME, ()),
    "the clock jumped back": (
        status(), seen(), 10, Cause.STEP_TIME, ()),
    "time is over without evidence": (
        status(), seen(WorkloadState.READY, *RUNNING), 1031, Cause.EVIDENCE, ()),
    "nothing is measured": (
        status(), seen(WorkloadState.READY, reading(Verdict.PENDING)), 1031, Cause.EVIDENCE, ()),
    "a signal that does not gate is missing": (
        status(), seen(WorkloadState.READY, reading(), reading(Verdict.RUNNING, Signal.SLOW_TOKENS, gating=False)),
        1031, Cause.PROGRESS, (SetStep(step=1, weight=50),)),
    "the step passes": (
        status(), seen(), 1031, Cause.PROGRESS, (SetStep(step=1, weight=50),)),
    "the last step passes": (
        status(step=1, weight=50), seen(), 1031, Cause.PROGRESS, (Promote(),)),
    "the last step passes, then the soak": (
        status(step=1, weight=50, soak="5m"), seen(), 1031, Cause.PROGRESS,
        (SetStep(step=1, weight=80, soaking=True),)),
    "a third of the soak is not over": (
        status(Stage.SOAKING, 1, 80, soak="5m"), seen(), 1099, Cause.STEP_TIME, ()),
    "a third of the soak is over: stable keeps half as much": (
        status(Stage.SOAKING, 1, 80, soak="5m"), seen(), 1101, Cause.PROGRESS,
        (SetStep(step=1, weight=90, soaking=True, part=1),)),
    "the last third is over": (
        status(Stage.SOAKING, 1, 95, soak="5m", told={"part": 2}), seen(), 1101, Cause.PROGRESS, (Promote(),)),
    "the soak lacks requests": (
        status(Stage.SOAKING, 1, 80, canary={"soakRequests": 300}, told={"exposed": 50}),
        seen(exposure={"canary_requests": 149}), 1101, Cause.STEP_TIME, ()),
    "the soak has its requests": (
        status(Stage.SOAKING, 1, 80, canary={"soakRequests": 300}, told={"exposed": 50}),
        seen(exposure={"canary_requests": 150}), 1101, Cause.PROGRESS,
        (SetStep(step=1, weight=90, soaking=True, part=1, exposed=150),)),
    "a soak never takes traffic back": (
        status(step=1, weight=90, soak="5m", canary={"steps": [{"weight": 10}, {"weight": 90}]}),
        seen(WorkloadState.READY, reading(**SETTLED_OBJECTIVE)), 1031, Cause.PROGRESS,
        (SetStep(step=1, weight=90, soaking=True),)),
    "above half the comparison alone does not suffice": (
        status(Stage.SOAKING, 1, 80, soak="5m"),
        seen(WorkloadState.READY, reading(forward_log_e=4.0, objective_log_e=1.0)), 1101, Cause.EVIDENCE, ()),
    "above half the objective suffices": (
        status(Stage.SOAKING, 1, 80, soak="5m"), seen(WorkloadState.READY, reading(**SETTLED_OBJECTIVE)), 1101,
        Cause.PROGRESS, (SetStep(step=1, weight=90, soaking=True, part=1),)),
    "up to half the comparison suffices": (
        status(step=1, weight=50), seen(WorkloadState.READY, reading(forward_log_e=4.0, objective_log_e=1.0)), 1031,
        Cause.PROGRESS, (Promote(),)),
    "only the soak is left after a step of 100": (
        starting(canary={"steps": [{"weight": 100}], "soak": "30s"}), seen(), 1001, Cause.PROGRESS,
        (SetStep(step=0, weight=80, soaking=True),)),
    "the only step is 100": (
        starting(canary={"steps": [{"weight": 100}]}), seen(), 1001, Cause.PROGRESS, (Promote(watch=True),)),
    "sessions do not divide as the weights say": (
        status(), seen(sample_ratio=UNEVEN), 1031, Cause.SAMPLE_RATIO, ()),
    "sessions do not divide, and time is over": (
        status(analysis={"onInsufficient": "promote"}), seen(sample_ratio=UNEVEN), 1601, Cause.SAMPLE_RATIO, ()),
    "sessions do not divide, and a signal failed": (
        status(), seen(WorkloadState.READY, *FAILED, sample_ratio=UNEVEN), 1031, Cause.SIGNAL_FAILED,
        (Withdraw(trigger=Trigger.SIGNAL, condemn=True),)),
    "the canary has fewer replicas than the next step needs": (
        status(stable=sized(STABLE, 4)), beside_stable(4), 1031, Cause.CAPACITY, ()),
    "the canary has fewer replicas than the first step needs": (
        starting(stable=sized(STABLE, 20)), beside_stable(20), 1001, Cause.CAPACITY, ()),
    "the canary has the replicas for the next step": (
        status(stable=sized(STABLE, 2)), beside_stable(2), 1031, Cause.PROGRESS, (SetStep(step=1, weight=50),)),
    "no evidence and no replicas, and time is over": (
        status(stable=sized(STABLE, 4), analysis={"onInsufficient": "promote"}),
        beside_stable(4, signals=RUNNING), 1601, Cause.CAPACITY, ()),
    "ready at last, though the deadline is over": (
        starting(progressDeadlineSeconds=60), seen(), 1061, Cause.PROGRESS, (SetStep(step=0, weight=10),)),
    "ready and paused from the start, though the deadline is over": (
        starting(progressDeadlineSeconds=60, told={"paused": True}), seen(), 1061, Cause.PAUSED, ()),
    "a signal failed while stable has half of its replicas": (
        status(step=1, weight=80, stable=sized(STABLE, 2)), beside_stable(1, signals=FAILED), 1001,
        Cause.SIGNAL_FAILED, (Withdraw(trigger=Trigger.SIGNAL, condemn=True, keep=50),)),
    "a signal failed while stable can take more than it lacks": (
        status(weight=10, stable=sized(STABLE, 10)), beside_stable(9, signals=FAILED), 1001,
        Cause.SIGNAL_FAILED, (Withdraw(trigger=Trigger.SIGNAL, condemn=True, keep=10),)),
    "a signal failed while stable is dead": (
        status(), beside_stable(0, signals=FAILED), 1001, Cause.SIGNAL_FAILED,
        (Withdraw(trigger=Trigger.SIGNAL, condemn=True, keep=10),)),
    "a signal failed while stable is dead, and shedding is preferred": (
        status(engine={"onShortage": "shed"}), beside_stable(0, signals=FAILED), 1001, Cause.SIGNAL_FAILED,
        (Withdraw(trigger=Trigger.SIGNAL, condemn=True),)),
    "a signal failed while the workloads are out of sight and stable has no endpoint": (
        status(), seen(WorkloadState.READY, *FAILED, workloads=None, ready_endpoints={APP: 1, STABLE.application: 0}),
        1001, Cause.SIGNAL_FAILED, (Withdraw(trigger=Trigger.SIGNAL, condemn=True, keep=10),)),
    "a signal failed right after a restart, before anything was told": (
        status(), seen(WorkloadState.READY, *FAILED, workloads=None, ready_endpoints={}), 1001,
        Cause.SIGNAL_FAILED, (Withdraw(trigger=Trigger.SIGNAL, condemn=True),)),
    "maxDuration over: pause": (
        status(), seen(WorkloadState.READY, *RUNNING), 1601, Cause.INSUFFICIENT, (Pause(),)),
    "maxDuration over: promote": (
        status(analysis={"onInsufficient": "promote"}), seen(WorkloadState.READY, *RUNNING), 1601,
        Cause.INSUFFICIENT, (SetStep(step=1, weight=50),)),
    "maxDuration over: rollback": (
        status(analysis={"onInsufficient": "rollback"}), seen(WorkloadState.READY, *RUNNING), 1601,
        Cause.INSUFFICIENT, (Withdraw(trigger=Trigger.INSUFFICIENT, condemn=False),)),
    "maxDuration over, but a signal can't be measured": (
        status(analysis={"onInsufficient": "promote"}), seen(WorkloadState.READY, reading(Verdict.ERROR)), 1601,
        Cause.EVIDENCE, ()),
    "already promoted": (
        status(Stage.PROMOTED, 1, 100), seen(WorkloadState.READY, *FAILED), 1601, Cause.IDLE, ()),
    "already withdrawn": (
        status(Stage.WITHDRAWN, 1, 0), seen(WorkloadState.READY, *FAILED), 1601, Cause.IDLE, ()),
}  # fmt: skip


@pytest.mark.parametrize("case", TABLE)
def test_each_case_gives_its_decision(case):
    where, observation, now, cause, actions = TABLE[case]
    decision = decide(where.rollout.spec, where, observation, now)
    assert (decision.cause, decision.actions) == (cause, actions), decision.reason
    assert decision.reason


@pytest.mark.parametrize(
    ("ready", "told"),
    [(1, "can take 50 % now, so 50 % stay"), (0, "has no ready replica, so nothing can be moved until it has one")],
)
def test_a_rollback_that_can_not_move_everything_says_what_and_the_way_out(ready, told):
    where = status(step=1, weight=80, stable=sized(STABLE, 2))
    decision = decide(where.rollout.spec, where, beside_stable(ready, signals=FAILED), 1001)
    assert told in decision.reason
    assert "with full" in decision.reason


@pytest.mark.parametrize(
    ("in_flight", "applied", "now", "removed", "cut"),
    [
        ({CANARY.digest: 0}, True, 1000.5, False, 0),
        ({CANARY.digest: 1}, True, 1001, False, 0),
        ({CANARY.digest: 0}, True, 1001, True, 0),
        ({}, True, 1001, True, 0),
        ({CANARY.digest: 0}, False, 1001, False, 0),
        (None, True, 1001, False, 0),
        (None, False, 1600, True, 0),
        ({CANARY.digest: 4}, True, 1600, True, 4),
    ],
)
def test_a_revision_is_removed_when_drained_or_at_its_deadline(in_flight, applied, now, removed, cut):
    where = ModelStatus(
        model="chat", stable=STABLE, retiring=(Retiring(deployed=CANARY, since=1000, deadline_at=1600),)
    )
    done = housekeeping(where, seen(in_flight=in_flight, table_applied=applied), now)
    assert (done is not None) is removed
    if done is not None:
        assert done.actions[0].streams_cut == cut
