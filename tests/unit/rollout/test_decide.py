"""The decision as a table: each guard, and which one wins when several apply."""

from __future__ import annotations

import math

import pytest

from rollout.actions import Pause, Promote, SetStep, Trigger, Withdraw
from rollout.decide import Cause, decide, housekeeping
from rollout.observation import Counts, Observation, SignalReading, Verdict
from rollout.specs import parse_spec
from rollout.status import ModelStatus, Phase, Retiring, RolloutState, Stage
from rollout.workloads.base import WorkloadState, WorkloadStatus
from serving.outcomes import Signal
from tests.simulation.world import deployed

STABLE, CANARY = deployed("1.0.0"), deployed("1.0.1")
APP = CANARY.application


def spec(**changes):
    steps = [{"weight": 10, "duration": "30s", "maxDuration": "10m"}, {"weight": 50, "duration": "30s"}]
    canary = {"steps": steps, "soak": changes.pop("soak", 0)}
    return parse_spec({"model": "chat", "version": "1.0.1", "strategy": {"canary": canary}, **changes})


def status(stage=Stage.STEPPING, step=0, weight=10, stable=STABLE, paused=False, **changes):
    asked = spec(**changes)
    rollout = RolloutState(
        id="r", spec=asked, target=CANARY, salt="s", stage=stage, step=step, weight=weight, paused=paused,
        started_at=1000.0, step_started_at=1000.0,
    )  # fmt: skip
    return ModelStatus(model="chat", phase=Phase.PROGRESSING, stable=stable, rollout=rollout)


def reading(verdict=Verdict.SUCCESSFUL, name=Signal.ERROR, gating=True):
    return SignalReading(
        name=name, canary=Counts(events=1, n=100), stable=Counts(events=2, n=900), log_e=0.5,
        threshold=math.log(200), verdict=verdict, gating=gating,
    )  # fmt: skip


def seen(state=WorkloadState.READY, *signals, **changes):
    workloads = {APP: WorkloadStatus(application=APP, state=state, restarts=changes.pop("restarts", 0), message="oom")}
    base = {"workloads": workloads, "gateways": 1, "table_applied": True, "ready_endpoints": {APP: 1},
            "signals": signals or (reading(),)}  # fmt: skip
    return Observation(**(base | changes))


FAILED = (reading(Verdict.FAILED),)
RUNNING = (reading(Verdict.RUNNING),)

# name -> (status, observation, now, cause, actions)
TABLE = {
    "starting, not there yet": (
        status(Stage.STARTING, -1, 0), seen(workloads={}), 1001, Cause.STARTING, ()),
    "starting, ready but no gateway sees it": (
        status(Stage.STARTING, -1, 0), seen(ready_endpoints={}), 1001, Cause.STARTING, ()),
    "starting, ready": (
        status(Stage.STARTING, -1, 0), seen(), 1001, Cause.PROGRESS, (SetStep(step=0, weight=10),)),
    "first version, ready": (
        status(Stage.STARTING, -1, 0, stable=None), seen(), 1001, Cause.PROGRESS, (Promote(),)),
    "emergency, ready": (
        status(Stage.STARTING, -1, 0, emergency=True), seen(), 1001, Cause.PROGRESS, (Promote(),)),
    "starting, failed to load": (
        status(Stage.STARTING, -1, 0), seen(WorkloadState.FAILED), 1001, Cause.START_FAILED,
        (Withdraw(trigger=Trigger.NEVER_READY, condemn=False),)),
    "starting, deadline over": (
        status(Stage.STARTING, -1, 0, progressDeadlineSeconds=60), seen(WorkloadState.STARTING), 1061, Cause.DEADLINE,
        (Withdraw(trigger=Trigger.NEVER_READY, condemn=False),)),
    "deadline over, though nothing can be seen": (
        status(Stage.STARTING, -1, 0, progressDeadlineSeconds=60), seen(workloads=None), 1061, Cause.DEADLINE,
        (Withdraw(trigger=Trigger.NEVER_READY, condemn=False),)),
    "a signal failed": (
        status(), seen(WorkloadState.READY, *FAILED), 1001, Cause.SIGNAL_FAILED,
        (Withdraw(trigger=Trigger.SIGNAL, condemn=True),)),
    "a signal failed while paused": (
        status(paused=True), seen(WorkloadState.READY, *FAILED), 1001, Cause.SIGNAL_FAILED,
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
        status(paused=True), seen(), 1031, Cause.PAUSED, ()),
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
    "the soak is not over": (
        status(Stage.SOAKING, 1, 80, soak="5m"), seen(), 1299, Cause.STEP_TIME, ()),
    "the soak is over": (
        status(Stage.SOAKING, 1, 80, soak="5m"), seen(), 1301, Cause.PROGRESS, (Promote(),)),
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


def test_a_failed_signal_is_described_with_its_counts():
    where = status()
    decision = decide(where.rollout.spec, where, seen(WorkloadState.READY, *FAILED), 1001)
    assert "error: canary 1 of 100 (1.0 %) against stable 2 of 900 (0.2 %)" in decision.reason


@pytest.mark.parametrize(
    ("in_flight", "applied", "now", "removed", "cut"),
    [
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
