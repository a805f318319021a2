"""Workloads that somebody else runs (`engine.workloadRef`): watched, and never created, scaled or deleted.

A Deployment or KServe's InferenceService says how it is; the EndpointSlices of its Service say how many pods get
requests, which is what counts. Nothing here writes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from rollout.cluster_api import ClusterApi, Object
from rollout.endpoint_slices import SERVICE_NAME, ready_addresses, slices_path
from rollout.engine_specs import WorkloadKind, WorkloadRef
from rollout.errors import ClusterUnavailable, MissingRight, WorkloadUnavailable
from rollout.workloads.base import Workload, WorkloadState, WorkloadStatus

COLLECTIONS: Mapping[WorkloadKind, tuple[str, str]] = {
    WorkloadKind.DEPLOYMENT: ("apps/v1", "deployments"),
    WorkloadKind.INFERENCE_SERVICE: ("serving.kserve.io/v1beta1", "inferenceservices"),
}
MESSAGE_LIMIT = 600


class ReferredWorkloads:
    """WorkloadPort over what is there already: `apply` only says what to look at."""

    def __init__(self, api: ClusterApi) -> None:
        """Prepare; nothing is asked yet."""
        self._api = api
        self._wanted: dict[str, Workload] = {}
        self._were_ready: set[str] = set()

    async def apply(self, desired: Sequence[Workload]) -> None:
        """Look at these from now on; the API server must be there, as with every other adapter."""
        self._wanted = {w.application: w for w in desired}
        self._were_ready &= set(self._wanted)
        await self._ask()

    async def observe(self) -> Mapping[str, WorkloadStatus]:
        """Tell how those that are looked at are. See `WorkloadPort`."""
        found = {a: s for a, s in (await self._ask()).items() if s is not None}
        self._were_ready |= {a for a, s in found.items() if s.state is WorkloadState.READY}
        return found

    async def shortage(self, wanted: Workload) -> str:
        """It runs already, in whatever room it has."""
        del wanted
        return ""

    async def close(self) -> None:
        """Nothing of its own to close."""

    async def _ask(self) -> Mapping[str, WorkloadStatus | None]:
        try:
            told = await asyncio.gather(*(self._one(workload) for workload in self._wanted.values()))
        except ClusterUnavailable as error:
            raise WorkloadUnavailable(str(error)) from error
        return dict(zip(self._wanted, told, strict=True))

    async def _one(self, workload: Workload) -> WorkloadStatus | None:
        ref = workload.engine.workload_ref
        assert ref is not None
        api_version, plural = COLLECTIONS[ref.kind]
        base = f"/apis/{api_version}/namespaces/{workload.namespace}/{plural}"
        try:
            found, slices = await asyncio.gather(
                self._api.get(f"{base}/{ref.name}"),
                self._api.every(slices_path(workload.namespace), labels=f"{SERVICE_NAME}={ref.service_name}"),
            )
        except MissingRight as error:  # as in a namespace that was deleted: others' are seen all the same
            return WorkloadStatus(
                application=workload.application, state=WorkloadState.UNKNOWN, message=str(error)[:MESSAGE_LIMIT]
            )
        was_ready = workload.application in self._were_ready
        return status_of_referred(workload.application, workload.namespace, ref, found, slices, was_ready=was_ready)


def status_of_referred(
    application: str,
    namespace: str,
    ref: WorkloadRef,
    found: Object | None,
    slices: Sequence[Mapping[str, Any]],
    *,
    was_ready: bool,
) -> WorkloadStatus:
    """What a workload and the slices of its Service tell. Pure.

    Args:
        application: the revision's name.
        namespace: where it is.
        ref: what was pointed to.
        found: the object, or None when there is none of that name.
        slices: of its Service.
        was_ready: whether it has been ready before.

    """
    ready = len(ready_addresses(slices))
    if found is None:
        message = f"there is no {ref.kind} {namespace}/{ref.name}; make it, or correct engine.workloadRef"
        return WorkloadStatus(application=application, state=WorkloadState.MISSING, message=message)
    if found["metadata"].get("deletionTimestamp"):
        message = f"somebody deletes {ref.kind} {namespace}/{ref.name}"
        return WorkloadStatus(
            application=application, state=WorkloadState.STOPPING, ready_replicas=ready, message=message
        )  # fmt: skip
    wanted = _wanted(ref, found)
    failure = _failure(found)
    if ready >= wanted and not failure:
        state = WorkloadState.READY
    elif failure and not ready and not was_ready:
        state = WorkloadState.FAILED
    else:
        state = WorkloadState.DEGRADED if was_ready or ready else WorkloadState.STARTING
    message = "" if state is WorkloadState.READY else failure or _why_not(ref, namespace, slices, ready, wanted)
    return WorkloadStatus(
        application=application, state=state, ready_replicas=ready, message=message[:MESSAGE_LIMIT]
    )  # fmt: skip


def _wanted(ref: WorkloadRef, found: Object) -> int:
    """How many pods it should have: a Deployment says so, an InferenceService has as many as it has."""
    if ref.kind is WorkloadKind.DEPLOYMENT:
        return max(1, int((found.get("spec") or {}).get("replicas", 1)))
    return 1


def _failure(found: Object) -> str:
    """Why it will not become ready without a change, in its own words."""
    for condition in (found.get("status") or {}).get("conditions") or ():
        kind, status, reason = condition.get("type"), condition.get("status"), condition.get("reason")
        stuck = kind == "Progressing" and status == "False" and reason == "ProgressDeadlineExceeded"
        if stuck or (kind == "ReplicaFailure" and status == "True"):
            return f"{reason}: {condition.get('message') or ''}".strip()
    return ""


def _why_not(ref: WorkloadRef, namespace: str, slices: Sequence[Mapping[str, Any]], ready: int, wanted: int) -> str:
    if not slices:
        return (
            f"Service {namespace}/{ref.service_name} has no EndpointSlice; make the Service, or name it in "
            "engine.workloadRef.service"
        )
    return f"{ready} of {wanted} pods of {ref.kind} {namespace}/{ref.name} get requests"
