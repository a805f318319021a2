"""Somebody else's workloads, by their own word and the EndpointSlices of their Service."""

from __future__ import annotations

from typing import Any

import pytest

from rollout.engine_specs import WorkloadRef
from rollout.workloads.base import WorkloadState
from rollout.workloads.referred import status_of_referred
from tests.kubernetes.gateways import an_endpoint_slice

S = WorkloadState
DEPLOYMENT = WorkloadRef(name="chat-1", service="chat")
INFERENCE = WorkloadRef.model_validate({"kind": "InferenceService", "name": "chat-1"})
STUCK = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": "has timed out"}
QUOTA = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "exceeded quota"}


def deployment(replicas: int | None = 2, conditions: list | None = None, **metadata: Any) -> dict:
    spec = {} if replicas is None else {"replicas": replicas}
    return {"metadata": {"name": "chat-1", **metadata}, "spec": spec, "status": {"conditions": conditions or []}}


def pods(count: int, *, ready: bool = True) -> list[dict]:
    return [an_endpoint_slice("chat", [f"chat-{n}" for n in range(count)], ready=ready)]


@pytest.mark.parametrize(
    ("found", "slices", "was_ready", "state", "ready", "told"),
    [
        (deployment(), pods(2), False, S.READY, 2, ""),
        (deployment(), pods(1), False, S.DEGRADED, 1, "1 of 2 pods of Deployment team/chat-1 get requests"),
        (deployment(), pods(0), False, S.STARTING, 0, "0 of 2 pods"),
        (deployment(), pods(2, ready=False), False, S.STARTING, 0, "0 of 2 pods"),
        (deployment(), pods(0), True, S.DEGRADED, 0, "0 of 2 pods"),
        (deployment(), [], False, S.STARTING, 0, "Service team/chat has no EndpointSlice; make the Service"),
        (deployment(conditions=[STUCK]), pods(0), False, S.FAILED, 0, "ProgressDeadlineExceeded: has timed out"),
        (deployment(conditions=[STUCK]), pods(0), True, S.DEGRADED, 0, "has timed out"),
        (deployment(conditions=[QUOTA]), pods(1), False, S.DEGRADED, 1, "exceeded quota"),
        (deployment(replicas=0), pods(0), False, S.STARTING, 0, "0 of 1 pods"),
        (deployment(replicas=None), pods(1), False, S.READY, 1, ""),
        (deployment(deletionTimestamp="now"), pods(2), True, S.STOPPING, 2, "somebody deletes"),
        (None, pods(2), True, S.MISSING, 0, "there is no Deployment team/chat-1; make it"),
    ],
)
def test_a_deployment(found, slices, was_ready, state, ready, told) -> None:
    seen = status_of_referred("chat--1--abc", "team", DEPLOYMENT, found, slices, was_ready=was_ready)
    assert (seen.state, seen.ready_replicas) == (state, ready)
    assert told in seen.message if told else seen.message == ""
    assert seen.restarts == 0


def test_an_inference_service_has_as_many_pods_as_it_has() -> None:
    found = {"metadata": {"name": "chat-1"}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}}
    assert status_of_referred("a", "team", INFERENCE, found, pods(1), was_ready=False).state is S.READY
    assert status_of_referred("a", "team", INFERENCE, found, pods(0), was_ready=False).state is S.STARTING
