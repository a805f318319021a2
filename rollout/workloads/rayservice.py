"""A revision as a RayService of KubeRay's, and the budget that protects it. Pure: values in, manifests out.

One RayService per revision (docs/adr/0010): its engine image is part of what it is. What KubeRay does with a change,
read in its source (1.6), decides how this is written:

- `serveConfigV2` is sent to the running cluster, and with it the number of replicas;
- of the worker group's `replicas`, `minReplicas` and `maxReplicas` nothing reaches a running cluster: its RayCluster is
  patched beside (`resized`). Where the number changes by itself, Ray's autoscaler does that;
- anything else makes a second cluster beside the first, which takes over once it answers, and after
  `rayClusterDeletionDelaySeconds` the first one goes: a changed placement costs no answer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rollout.accelerators import engine_accelerators
from rollout.engine_specs import Capacity
from rollout.workloads.base import Owner, Workload
from rollout.workloads.engine_pods import (
    LOG_DIR,
    METRICS_PORT,
    NODE_TYPE,
    OBJECT_STORE_BYTES,
    POD_DIR,
    SERVE_PORT,
    EngineCluster,
    Manifest,
    engine_pod,
    head_pod,
    restricted,
)
from rollout.workloads.serve_config import ENGINE_RESOURCE, EngineSettings, cluster_application
from serving.specs import object_name

API_VERSION = "ray.io/v1"
GROUP = "engines"
MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGER = "tidegate"
RELEASE = "tidegate.dev/release"
APPLICATION = "tidegate.dev/application"
"""An annotation: an application's name may be longer than a label allows."""
REPLICAS = "tidegate.dev/replicas"
MADE_OF = "tidegate.dev/made-of"
"""An annotation with the Ray cluster and the engines' arguments as they were made. They stay so: what a newer control
plane, or a changed setting of the release, would make of the same revision must not restart engines that serve."""
QUEUE = "kueue.x-k8s.io/queue-name"
EVERYWHERE = "0.0.0.0"  # noqa: S104 - the pod network
IDLE_S = 60
"""A pod without a replica goes after this long."""


def labels_of(workload: Workload, release: str) -> Mapping[str, str]:
    """What every object of a revision carries."""
    return {
        MANAGED_BY: MANAGER,
        RELEASE: release,
        "tidegate.dev/model": workload.revision.model,
        "tidegate.dev/version": workload.revision.version.replace("+", "_")[:63].rstrip("-_."),
        "tidegate.dev/revision": workload.revision.digest[:8],
        "tidegate.dev/namespace": workload.namespace,
    }


def bounds_of(workload: Workload) -> tuple[int, int]:
    """The fewest and the most pods with engines."""
    engine = workload.engine
    if engine.capacity is Capacity.REPLACE:
        return 1, engine.min_replicas
    if engine.elastic:
        return engine.min_replicas, engine.most_replicas
    return workload.replicas, workload.replicas


def rayservice(workload: Workload, cluster: EngineCluster, owner: Owner | None, made_of: str = "") -> Manifest:
    """The whole object.

    Args:
        workload: the revision, its capacity and its namespace.
        cluster: what all revisions of the release have in common.
        owner: whose deletion takes it along; None where that is not known.
        made_of: the annotation of the live object; empty for one that is to be made.

    """
    labels = labels_of(workload, cluster.release)
    queue = {QUEUE: workload.engine.queue_name} if workload.engine.queue_name is not None else {}
    ray, application, made_of = _as_made(workload, cluster, labels, made_of)
    metadata: Manifest = {
        "name": object_name(workload.application),
        "namespace": workload.namespace,
        "labels": {**labels, **queue},
        "annotations": {APPLICATION: workload.application, REPLICAS: str(workload.replicas), MADE_OF: made_of},
    }
    if owner is not None and owner.namespace == workload.namespace:
        metadata["ownerReferences"] = [_reference(owner)]
    return {
        "apiVersion": API_VERSION,
        "kind": "RayService",
        "metadata": metadata,
        "spec": {
            "serveConfigV2": _serve_config(application),
            "upgradeStrategy": {"type": "NewCluster"},
            "rayClusterDeletionDelaySeconds": math.ceil(workload.longest_stream_s),
            "excludeHeadPodFromServeSvc": True,
            "rayClusterConfig": ray,
        },
    }


def _as_made(
    workload: Workload, cluster: EngineCluster, labels: Mapping[str, str], made_of: str
) -> tuple[Manifest, Manifest, str]:
    """The Ray cluster and the application's parts that stay, with their record; only the numbers are today's.

    A cluster that must get an autoscaler, or lose it, is made anew.
    """
    fresh = _ray_cluster(workload, cluster, labels)
    application = _application(workload, cluster)
    record = _compact({"ray": fresh, "args": application["args"], "import_path": application["import_path"]})
    try:
        before = json.loads(made_of) if made_of else {}
        group = before["ray"]["workerGroupSpecs"][0]
        if before["ray"]["enableInTreeAutoscaling"] == fresh["enableInTreeAutoscaling"]:
            group |= {n: fresh["workerGroupSpecs"][0][n] for n in ("replicas", "minReplicas", "maxReplicas")}
            kept = {key: before[key] for key in ("args", "import_path")}
            return before["ray"], {**application, **kept}, made_of
    except (ValueError, KeyError, IndexError, TypeError):
        pass  # new, or somebody has changed the record
    return fresh, application, record


def _application(workload: Workload, cluster: EngineCluster) -> Manifest:
    settings = EngineSettings(LOG_DIR, host=cluster.bind_address, load_timeout_s=cluster.load_timeout_s)
    return cluster_application(workload, settings, POD_DIR, _gpus(workload))


def _serve_config(application: Manifest) -> str:
    """Serve's configuration, as JSON (which KubeRay reads as YAML). The same workload gives the same text."""
    # As its engines, which keep what they were made with: a Serve that runs takes no other address.
    host = application["args"].get("host", EVERYWHERE)
    return _compact(
        {
            # Replicas open their own ports only on nodes with a proxy, which nothing of ours uses.
            "proxy_location": "EveryNode",
            "http_options": {"host": host, "port": SERVE_PORT, "keep_alive_timeout_s": 90},
            "applications": [application],
        }
    )


def _compact(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def budget(workload: Workload, cluster: EngineCluster, service_uid: str) -> Manifest:
    """How many engines a drain of nodes must leave: all but one, and the last one never.

    It says `minAvailable`, the only form that Kubernetes takes for pods whose controller has no scale.
    """
    labels = labels_of(workload, cluster.release)
    name = object_name(workload.application)
    fewest, _ = bounds_of(workload)
    owner = Owner(
        api_version=API_VERSION, kind="RayService", namespace=workload.namespace, name=name, uid=service_uid
    )  # fmt: skip
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {
            "name": name,
            "namespace": workload.namespace,
            "labels": dict(labels),
            "ownerReferences": [_reference(owner, blocks=False)],
        },
        "spec": {
            "minAvailable": max(1, fewest - 1),
            "selector": {"matchLabels": {**labels, NODE_TYPE: "worker"}},
            # What does not answer yet protects nobody.
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }


def _reference(owner: Owner, *, blocks: bool = True) -> Manifest:
    """What a dependent says of its owner; to hold up the owner's deletion takes a right over the owner's finalizers."""
    return {
        "apiVersion": owner.api_version,
        "kind": owner.kind,
        "name": owner.name,
        "uid": owner.uid,
        "controller": True,
        "blockOwnerDeletion": blocks,
    }


def _gpus(workload: Workload) -> int:
    """Ray's name for NVIDIA's and AMD's alike; KubeRay tells Ray of them by the container's limits."""
    taken = workload.engine.resources.accelerators
    if not any(name.endswith("gpu") for name in taken):
        return 0
    return engine_accelerators(workload.revision)


def _ray_cluster(workload: Workload, cluster: EngineCluster, labels: Mapping[str, str]) -> Manifest:
    fewest, most = bounds_of(workload)
    started = {"object-store-memory": str(OBJECT_STORE_BYTES), "metrics-export-port": str(METRICS_PORT)}
    config: Manifest = {
        "rayVersion": cluster.ray_version,
        "authOptions": {"mode": "token", "secretName": cluster.ray_auth_secret},
        "enableInTreeAutoscaling": workload.engine.elastic,
        "headGroupSpec": {
            "rayStartParams": {**started, "num-cpus": "0", "dashboard-host": cluster.bind_address},
            "template": head_pod(workload, cluster, labels),
        },
        "workerGroupSpecs": [
            {
                "groupName": GROUP,
                "replicas": fewest,
                "minReplicas": fewest,
                "maxReplicas": most,
                "rayStartParams": {
                    **started,
                    # As many idle workers as a node has cores would only take its memory.
                    "num-cpus": "1",
                    # Quoted for the shell in which KubeRay starts Ray.
                    "resources": f'"{{\\"{ENGINE_RESOURCE}\\": 1}}"',
                },
                "template": engine_pod(workload, cluster, labels),
            }
        ],
    }
    if workload.engine.elastic:
        config["autoscalerOptions"] = _autoscaler()
    if cluster.redis_address:
        config["gcsFaultToleranceOptions"] = _fault_tolerance(cluster)
    return config


def _autoscaler() -> Manifest:
    resources = {"cpu": "200m", "memory": "512Mi"}
    return {
        "version": "v2",
        "idleTimeoutSeconds": IDLE_S,
        "upscalingMode": "Default",
        "resources": {"requests": resources, "limits": {"memory": resources["memory"]}},
        "securityContext": restricted(),
    }


def _fault_tolerance(cluster: EngineCluster) -> Manifest:
    options: Manifest = {"redisAddress": cluster.redis_address}
    if cluster.redis_secret:
        options["redisPassword"] = {"valueFrom": {"secretKeyRef": {"name": cluster.redis_secret, "key": "password"}}}
    return options


def resized(
    workload: Workload, service: Mapping[str, Any], spare: Sequence[str]
) -> tuple[str, list[dict[str, Any]]] | None:
    """How to bring the running cluster of a RayService to the wanted number of pods.

    A fixed number is lowered only when Serve has stopped as many replicas: then the pods without one are named, so that
    no pod goes that answers.

    Args:
        workload: what is wanted.
        service: the live RayService, which repeats its cluster's numbers.
        spare: names of pods of it whose engine has stopped.

    Returns:
        The RayCluster's name and a JSON patch; None when there is nothing to do, or not yet.

    """
    active = (service.get("status") or {}).get("activeServiceStatus") or {}
    told, name = active.get("rayClusterStatus") or {}, str(active.get("rayClusterName") or "")
    fewest, most = bounds_of(workload)
    if not name or (told.get("minWorkerReplicas", fewest), told.get("maxWorkerReplicas", most)) == (fewest, most):
        return None
    group = "/spec/workerGroupSpecs/0"
    patch: list[dict[str, Any]] = [{"op": "test", "path": f"{group}/groupName", "value": GROUP}]
    patch += [{"op": "add", "path": f"{group}/{n}Replicas", "value": v} for n, v in (("min", fewest), ("max", most))]
    present = int(told.get("desiredWorkerReplicas") or 0)
    excess = present - most
    if workload.engine.elastic:
        return name, patch  # the autoscaler finds a number between the two, and the pods to take
    if excess > len(spare):
        return None
    patch.append({"op": "add", "path": f"{group}/replicas", "value": fewest})
    if excess > 0:
        going = {"workersToDelete": sorted(spare)[:excess]}
        patch.append({"op": "add", "path": f"{group}/scaleStrategy", "value": going})
    return name, patch


def contains(live: Any, wanted: Any) -> bool:  # noqa: ANN401 - JSON of any shape
    """Whether an object holds all that is wanted of it; what the API server and others have added does not matter.

    Lists are compared by position, since none of those that are written here is added to by anybody else; an empty
    mapping or list is held by an absent one.
    """
    if isinstance(wanted, Mapping):
        given = live if isinstance(live, Mapping) else {}
        return (not live or isinstance(live, Mapping)) and all(contains(given.get(k), v) for k, v in wanted.items())
    if isinstance(wanted, list):
        items = live if isinstance(live, list) else []
        return (not live or isinstance(live, list)) and len(items) == len(wanted) and all(map(contains, items, wanted))
    return bool(live == wanted)
