"""A revision as a RayService of KubeRay's, and the budget that protects it. Pure: values in, manifests out.

One RayService per revision (docs/adr/0010): its engine image is part of what it is. What KubeRay does with a change,
read in its source (1.6), decides how this is written:

- `serveConfigV2` is sent to the running cluster, so the number of replicas is there and nowhere else;
- of the worker group's `replicas`, `minReplicas` and `maxReplicas` nothing reaches a running cluster, so they are the
  bounds for the whole of its life, and a cluster whose number changes has Ray's autoscaler;
- anything else makes a second cluster beside the first, which takes over once it answers, and after
  `rayClusterDeletionDelaySeconds` the first one goes: a changed placement costs no answer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from rollout.accelerators import engine_accelerators
from rollout.engine_specs import Capacity
from rollout.workloads.base import Owner, Workload
from rollout.workloads.engine_pods import (
    LOG_DIR,
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
QUEUE = "kueue.x-k8s.io/queue-name"
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
    """The fewest and the most pods with engines, for as long as the cluster lives."""
    engine = workload.engine
    if engine.capacity is Capacity.REPLACE:
        return 1, engine.min_replicas
    if engine.elastic:
        return engine.min_replicas, engine.most_replicas
    return workload.replicas, workload.replicas


def rayservice(workload: Workload, cluster: EngineCluster, owner: Owner | None) -> Manifest:
    """The whole object.

    Args:
        workload: the revision, its capacity and its namespace.
        cluster: what all revisions of the release have in common.
        owner: whose deletion takes it along; None where that is not known.

    """
    labels = labels_of(workload, cluster.release)
    queue = {QUEUE: workload.engine.queue_name} if workload.engine.queue_name is not None else {}
    metadata: Manifest = {
        "name": object_name(workload.application),
        "namespace": workload.namespace,
        "labels": {**labels, **queue},
        "annotations": {APPLICATION: workload.application, REPLICAS: str(workload.replicas)},
    }
    if owner is not None and owner.namespace == workload.namespace:
        metadata["ownerReferences"] = [_reference(owner)]
    return {
        "apiVersion": API_VERSION,
        "kind": "RayService",
        "metadata": metadata,
        "spec": {
            "serveConfigV2": serve_config(workload, cluster),
            "upgradeStrategy": {"type": "NewCluster"},
            "rayClusterDeletionDelaySeconds": math.ceil(workload.longest_stream_s),
            "excludeHeadPodFromServeSvc": True,
            "rayClusterConfig": _ray_cluster(workload, cluster, labels),
        },
    }


def serve_config(workload: Workload, cluster: EngineCluster) -> str:
    """Serve's configuration, as JSON (which KubeRay reads as YAML). The same workload gives the same text."""
    settings = EngineSettings(LOG_DIR, host="0.0.0.0", load_timeout_s=cluster.load_timeout_s)  # noqa: S104 - pod network
    config = {
        # Replicas open their own ports only on nodes with a proxy, which nothing of ours uses.
        "proxy_location": "EveryNode",
        "http_options": {"host": "0.0.0.0", "port": SERVE_PORT, "keep_alive_timeout_s": 90},  # noqa: S104
        "applications": [cluster_application(workload, settings, POD_DIR, _gpus(workload))],
    }
    return json.dumps(config, sort_keys=True, separators=(",", ":"))


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
    started = {"object-store-memory": str(OBJECT_STORE_BYTES)}
    config: Manifest = {
        "rayVersion": cluster.ray_version,
        "authOptions": {"mode": "token", "secretName": cluster.ray_auth_secret},
        "enableInTreeAutoscaling": workload.engine.elastic,
        "headGroupSpec": {
            "rayStartParams": {**started, "num-cpus": "0", "dashboard-host": "0.0.0.0"},  # noqa: S104 - pod network
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
                "template": engine_pod(workload, cluster, labels, f"{fewest}-{most}"),
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
