"""What a RayService, its pods and its Ray dashboard tell together of a revision. Pure.

KubeRay makes a cluster as *pending*, calls it *active* once its application runs, and names the application's state
under either. Its pods are ready when their engines answer (engine_pods.py). The dashboard alone knows of replicas that
died; while it can't be asked, the pods are believed: a lost head stops no engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rollout.cluster_refusals import way_out
from rollout.workloads.base import WorkloadState, WorkloadStatus
from rollout.workloads.engine_pods import NODE_TYPE
from rollout.workloads.pod_troubles import Pod, is_ready, trouble
from rollout.workloads.rayservice import APPLICATION, QUEUE, REPLICAS
from rollout.workloads.serve_account import MESSAGE_LIMIT, PERMANENT, Deaths, telling_line
from rollout.workloads.serve_config import DEPLOYMENT

UNMADE_LIMIT = 400
CLUSTER = "ray.io/cluster"
"""KubeRay's label: the name of the RayCluster."""


def application_of(service: Mapping[str, Any]) -> str:
    """The application that a RayService of ours runs; empty for somebody else's."""
    return str((service["metadata"].get("annotations") or {}).get(APPLICATION) or "")


def status_of_service(
    service: Mapping[str, Any], pods: Sequence[Pod], details: Mapping[str, Any] | None, deaths: Deaths
) -> WorkloadStatus:
    """One revision's status.

    Args:
        service: the RayService.
        pods: its pods, heads and engines.
        details: what the dashboard says of its application; None when it was not asked, or did not answer.
        deaths: the replicas that are known to have died.

    """
    name = application_of(service)
    told = service.get("status") or {}
    active = str((told.get("activeServiceStatus") or {}).get("rayClusterName") or "")
    engines = [p for p in pods if _label(p, NODE_TYPE) == "worker"]
    ready = sum(is_ready(p) for p in engines if _label(p, CLUSTER) == active) if active else 0
    restarts = deaths.of(name) if details is None else deaths.note(name, details)
    if service["metadata"].get("deletionTimestamp"):
        left = sum(not _ended(p) for p in pods)
        return WorkloadStatus(
            application=name, state=WorkloadState.STOPPING, ready_replicas=ready, restarts=restarts,
            message=f"{left} pods are left",
        )  # fmt: skip
    refused = _refused(told)
    if refused and not active:
        return WorkloadStatus(
            application=name, state=WorkloadState.FAILED, restarts=restarts, message=f"KubeRay refuses it: {refused}"
        )  # fmt: skip
    account = _account(told, name) if details is None else details
    text = _text(account)
    state = _state(str(account.get("status") or ""), text, ready, _wanted(service), answered=bool(active))
    message = "" if state is WorkloadState.READY else _why(service, pods, text)
    return WorkloadStatus(application=name, state=state, ready_replicas=ready, restarts=restarts, message=message)


def spare_pods(service: Mapping[str, Any], pods: Sequence[Pod]) -> list[str]:
    """The pods of the cluster that answers whose engine does not: Serve has stopped it, or it has not come up."""
    active = str(((service.get("status") or {}).get("activeServiceStatus") or {}).get("rayClusterName") or "")
    engines = [p for p in pods if _label(p, NODE_TYPE) == "worker" and _label(p, CLUSTER) == active]
    return [
        str(p["metadata"]["name"])
        for p in engines
        if not is_ready(p) and not p["metadata"].get("deletionTimestamp") and not _ended(p)
    ]


def _state(status: str, text: str, ready: int, wanted: int, *, answered: bool) -> WorkloadState:
    # A replica that answers is a reason to leave traffic where it is, whatever Serve says of the others.
    if ready >= wanted and status not in ("DEPLOY_FAILED", "UNHEALTHY"):
        return WorkloadState.READY
    if ready or answered:
        return WorkloadState.DEGRADED
    if status == "DEPLOY_FAILED" or PERMANENT in text:
        return WorkloadState.FAILED
    return WorkloadState.STARTING


def _refused(told: Mapping[str, Any]) -> str:
    """What KubeRay's own validation has against the RayService: it will not look at it again until that changes."""
    conditions = told.get("conditions") or ()
    found = [c for c in conditions if c.get("reason") == "ValidationFailed" and c.get("status") == "False"]
    return str(found[0].get("message") or "its validation failed")[:MESSAGE_LIMIT] if found else ""


def _wanted(service: Mapping[str, Any]) -> int:
    text = str((service["metadata"].get("annotations") or {}).get(REPLICAS) or "")
    return int(text) if text.isdigit() and int(text) else 1


def _account(told: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """What KubeRay repeats of Serve's account, of the cluster that answers or else of the one that is being made."""
    for which in ("activeServiceStatus", "pendingServiceStatus"):
        found = ((told.get(which) or {}).get("applicationStatuses") or {}).get(name)
        if found:
            return {**found, "deployments": found.get("serveDeploymentStatuses") or {}}
    return {}


def _text(account: Mapping[str, Any]) -> str:
    deployment = (account.get("deployments") or {}).get(DEPLOYMENT) or {}
    return "\n".join(filter(None, (deployment.get("message"), account.get("message"))))


def _why(service: Mapping[str, Any], pods: Sequence[Pod], text: str) -> str:
    if found := telling_line(text):
        return found
    if found := trouble(pods):
        return found[:MESSAGE_LIMIT]
    if found := _unmade(service.get("status") or {}):
        return found
    queue = (service["metadata"].get("labels") or {}).get(QUEUE)
    if queue and not pods:
        return f"waits for queue {queue} to admit it; kubectl get workloads says why"
    conditions = (service.get("status") or {}).get("conditions") or ()
    late = [c for c in conditions if c.get("reason") == "InitializingTimeout"]
    if late:
        return f"KubeRay gave up: {late[0].get('message') or 'it took too long'}"
    if service.get("status"):
        where = f"-n {service['metadata']['namespace']}"
        return "" if pods else f"KubeRay has made no pod yet; `kubectl describe rayclusters {where}` says why"
    return "KubeRay has not looked at it yet; is its operator running and watching this namespace?"


def _unmade(told: Mapping[str, Any]) -> str:
    """Why a pod could not be made at all, and the way out: KubeRay repeats what the API server refused it with."""
    for which in ("pendingServiceStatus", "activeServiceStatus"):
        conditions = ((told.get(which) or {}).get("rayClusterStatus") or {}).get("conditions") or ()
        for one in conditions:
            if one.get("type") == "ReplicaFailure" and one.get("status") == "True":
                said = " ".join(str(one.get("message") or one.get("reason") or "").split())[:UNMADE_LIMIT]
                return f"the cluster refuses a pod: {said}; {way_out(said)}"
    return ""


def _label(pod: Pod, name: str) -> str:
    return str((pod["metadata"].get("labels") or {}).get(name) or "")


def _ended(pod: Pod) -> bool:
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")
