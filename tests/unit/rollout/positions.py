"""Statuses and observations to decide on, with everything in order unless a test says otherwise."""

from __future__ import annotations

import math

from rollout.observation import Counts, Observation, SignalReading, Verdict
from rollout.specs import parse_spec
from rollout.status import ModelStatus, Phase, RolloutState, Stage
from rollout.workloads.base import WorkloadState, WorkloadStatus
from serving.outcomes import Signal
from tests.simulation.world import deployed

OLDER, STABLE, CANARY, NEXT = deployed("0.9.0"), deployed("1.0.0"), deployed("1.0.1"), deployed("1.0.2")
APP = CANARY.application
STEPS = [{"weight": 10, "duration": "30s", "maxDuration": "10m"}, {"weight": 50, "duration": "30s"}]
SMOKE = [{"name": "capital", "prompt": "Capital of France?", "expect": {"contains": "Paris"}}]


def spec(strategy=None, *, soak=0, canary=None, **changes):
    strategy = strategy or {"canary": {"steps": STEPS, "soak": soak, **(canary or {})}}
    return parse_spec({"model": "chat", "version": "1.0.1", "strategy": strategy, **changes})


def status(stage=Stage.STEPPING, step=0, weight=10, stable=STABLE, **changes):
    """A rollout of CANARY beside STABLE; `told` changes the rollout, `beside` the status, the rest the spec."""
    told, beside = changes.pop("told", {}), changes.pop("beside", {})
    rollout = RolloutState(
        id="r", spec=spec(**changes), target=CANARY, salt="s", stage=stage, step=step, weight=weight,
        started_at=1000.0, step_started_at=1000.0, **told,
    )  # fmt: skip
    return ModelStatus(model="chat", phase=Phase.PROGRESSING, stable=stable, rollout=rollout, **beside)


def starting(**changes):
    return status(Stage.STARTING, -1, 0, **changes)


def reading(verdict=Verdict.SUCCESSFUL, name=Signal.ERROR, gating=True, **changes):
    base = {
        "name": name, "canary": Counts(events=1, n=100), "stable": Counts(events=2, n=900), "log_e": 0.5,
        "threshold": math.log(200), "forward_threshold": 3.0, "verdict": verdict, "gating": gating,
    }  # fmt: skip
    return SignalReading(**(base | changes))


def workload(of, ready=1, state=WorkloadState.READY, **changes):
    return WorkloadStatus(application=of.application, state=state, ready_replicas=ready, **changes)


def seen(state=WorkloadState.READY, *signals, **changes):
    """Stable is well, and the canary's workload is in this state."""
    canary = workload(CANARY, 1, state, restarts=changes.pop("restarts", 0), message="oom")
    base = {"workloads": {APP: canary, STABLE.application: workload(STABLE)}, "gateways": 1, "table_applied": True,
            "ready_endpoints": {APP: 1, STABLE.application: 1}, "signals": signals or (reading(),)}  # fmt: skip
    return Observation(**(base | changes))


def beside_stable(ready, wanted_state=WorkloadState.DEGRADED, **changes):
    """Stable has this many replicas ready, the canary one."""
    there = {APP: workload(CANARY), STABLE.application: workload(STABLE, ready, wanted_state)}
    return seen(WorkloadState.READY, workloads=there, **changes)


def sized(of, replicas):
    return of.model_copy(update={"replicas": replicas})


FAILED = (reading(Verdict.FAILED, log_e=6.0),)
RUNNING = (reading(Verdict.RUNNING),)
