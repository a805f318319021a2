"""The pods of a revision on a cluster: Ray's head, and one pod per engine. Pure: values in, manifests out.

Every pod keeps to the pod security level `restricted`: no root, no privileges, the runtime's seccomp profile, and no
token of the API server (but for a head whose number of engines changes, since Ray's autoscaler must change it).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from rollout.workloads.base import Workload
from serving.specs import EngineKind, Frozen

Manifest = dict[str, Any]

MODELS = "/models"
"""Where a version's files are in an engine's pod: below it, in a folder named by the manifest's digest."""
TMP = "/tmp"  # noqa: S108 - of the container, an empty volume of the pod
POD_DIR = f"{TMP}/tidegate"
LOG_DIR = f"{POD_DIR}/logs"
SERVE_PORT = 8000
METRICS_PORT = 8080
"""Of Ray's agent in every pod; a PodMonitor finds it by the port's name, `metrics`."""
USER = 1000
GRACE_MARGIN_S = 30
"""After the longest answer has ended, for Ray to end its processes."""
OBJECT_STORE_BYTES = 100 * 1024 * 1024
"""Nothing of ours passes Ray's object store."""
HOSTNAME = "kubernetes.io/hostname"

RAY_ENVIRONMENT: Mapping[str, str] = {
    "HOME": TMP,
    "HF_HUB_OFFLINE": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Replicas open ports of their own, and no drain of Serve's is needed: the gateways take traffic away first.
    "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1",
    "RAY_SERVE_ENABLE_HA_PROXY": "0",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
    # Ray's workers run at nice 15 by default and the engines are their children: they would yield to everything.
    "RAY_worker_niceness": "0",
    # The kernel's memory killer takes the largest process, an engine; Ray's would take the Serve controller.
    "RAY_memory_monitor_refresh_ms": "0",
}
"""Ray's settings by environment variable, for every pod of a revision; tidegate/ray_head.py has the local ones."""


class EngineCluster(Frozen):
    """What the pods of every revision of a release have in common."""

    release: str
    ray_version: str
    """That of the engine images: KubeRay must know it to offer token authentication."""
    ray_auth_secret: str
    """A Secret in each namespace with engines, its key `auth_token` holding the token of Ray's own APIs."""
    bind_address: str = "0.0.0.0"  # noqa: S104 - the pod network
    """What Ray and engines listen on; `::` where pods' first address is of IPv6. A revision that runs keeps its own."""
    service_account: str = ""
    """Of the engines' pods; it needs no right, and they get no token of it. Empty: the namespace's default one."""
    tracking_uri: str = ""
    """The MLflow server that a version's files are fetched from."""
    credentials_secret: str = ""
    """What the fetching container gets as environment variables, unless the spec names another Secret."""
    otlp_endpoint: str = ""
    """Where engines send spans of the traces that a gateway keeps; empty means nowhere."""
    otlp_protocol: str = "grpc"
    cache_path: str = ""
    """A folder of the nodes that keeps weights, unless the spec names a cache; it needs a namespace that allows it."""
    cache_claim: str = ""
    """The same as a persistent volume claim."""
    pull_secrets: tuple[str, ...] = ()
    redis_address: str = ""
    """Ray's control store is kept there, so that the end of a head is not the end of its engines."""
    redis_secret: str = ""
    """A Secret with the key `password`."""
    head_cpu: str = "1"
    head_memory: str = "4Gi"
    load_timeout_s: float = Field(default=1800.0, gt=0)
    """The longest an engine may take to become ready: large weights on a slow disk take minutes."""


def restricted() -> Manifest:
    """A container's security context, as the level `restricted` wants it."""
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def head_pod(workload: Workload, cluster: EngineCluster, labels: Mapping[str, str]) -> Manifest:
    """The template of Ray's head, which runs Ray's control and no engine."""
    resources = {"cpu": cluster.head_cpu, "memory": cluster.head_memory}
    container = {
        "name": "ray-head",
        "image": workload.revision.engine_image,
        "env": _environment({**RAY_ENVIRONMENT, **_tracing(cluster)}),
        "ports": [
            {"name": "gcs-server", "containerPort": 6379},
            {"name": "dashboard", "containerPort": 8265},
            {"name": "serve", "containerPort": SERVE_PORT},
            {"name": "metrics", "containerPort": METRICS_PORT},
        ],
        "resources": {"requests": resources, "limits": {"memory": cluster.head_memory}},
        "securityContext": restricted(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [{"name": "tmp", "mountPath": TMP}],
    }
    spec = {**_pod(cluster), "automountServiceAccountToken": False}
    if workload.engine.elastic:
        # Ray's autoscaler, a container beside the head, changes the number of engines at the API server, by an account
        # that KubeRay makes for this one cluster.
        spec["automountServiceAccountToken"] = True
        spec.pop("serviceAccountName", None)
    spec |= {
        "containers": [container],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
    }
    if not cluster.redis_address:
        annotations = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}
        return {"metadata": {"labels": dict(labels), "annotations": annotations}, "spec": spec}
    return {"metadata": {"labels": dict(labels)}, "spec": spec}


def engine_pod(workload: Workload, cluster: EngineCluster, labels: Mapping[str, str]) -> Manifest:
    """The template of the pods that run engines, one each."""
    engine = workload.engine
    given = engine.resources.model_dump(mode="json", exclude_defaults=True)
    resources = {kind: {name: str(quantity) for name, quantity in each.items()} for kind, each in given.items()}
    container = {
        "name": "engine",
        "image": workload.revision.engine_image,
        "env": _environment({**RAY_ENVIRONMENT, **_tracing(cluster)}),
        "ports": [
            {"name": "serve", "containerPort": SERVE_PORT},
            {"name": "metrics", "containerPort": METRICS_PORT},
        ],
        "resources": resources,
        "securityContext": restricted(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "readinessProbe": {
            "exec": {"command": _hook("ready")},
            "periodSeconds": 5,
            "timeoutSeconds": 5,
            "failureThreshold": 2,
        },
        "lifecycle": {"preStop": {"exec": {"command": _hook("drain", "--within", f"{_longest_s(workload)}")}}},
        "volumeMounts": [{"name": "tmp", "mountPath": TMP}],
    }
    volumes: list[Manifest] = [{"name": "tmp", "emptyDir": {}}]
    spec = {**_pod(cluster), "automountServiceAccountToken": False}
    if workload.revision.engine is EngineKind.VLLM:
        container["volumeMounts"] = [*_mounts(container), {"name": "models", "mountPath": MODELS, "readOnly": True}]
        volumes.append({"name": "models", **cache_volume(workload, cluster)})
        spec["initContainers"] = [weights_container(workload, cluster)]
    spec |= {
        "containers": [container],
        "volumes": volumes,
        "terminationGracePeriodSeconds": _longest_s(workload) + GRACE_MARGIN_S,
        "nodeSelector": dict(engine.node_selector),
        "tolerations": [t.model_dump(mode="json", by_alias=True, exclude_none=True) for t in engine.tolerations],
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": HOSTNAME,
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": {**labels, NODE_TYPE: "worker"}},
            }
        ],
    }
    if engine.priority_class_name is not None:
        spec["priorityClassName"] = engine.priority_class_name
    if engine.runtime_class_name is not None:
        spec["runtimeClassName"] = engine.runtime_class_name
    return {"metadata": {"labels": dict(labels)}, "spec": spec}


NODE_TYPE = "ray.io/node-type"
"""KubeRay's label: head or worker."""


def weights_container(workload: Workload, cluster: EngineCluster) -> Manifest:
    """The container that fetches a version's files to the node before anything else, and compares each with its digest.

    It ends at once where the cache holds them already.
    """
    revision = workload.revision
    secret = workload.engine.weights.credentials_secret or cluster.credentials_secret
    arguments = ["--model", revision.model, "--version", revision.version, "--into", MODELS]
    container: Manifest = {
        "name": "weights",
        "image": revision.engine_image,
        "command": ["python", "-m", "registry.weights"],
        "args": [*arguments, "--manifest-sha256", revision.manifest_sha256],
        "env": _environment({"HOME": TMP, "MLFLOW_TRACKING_URI": cluster.tracking_uri}),
        "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"memory": "4Gi"}},
        "securityContext": restricted(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [{"name": "tmp", "mountPath": TMP}, {"name": "models", "mountPath": MODELS}],
    }
    if secret:
        container["envFrom"] = [{"secretRef": {"name": secret}}]
    return container


def cache_volume(workload: Workload, cluster: EngineCluster) -> Manifest:
    """What the files of versions are kept on: the spec's cache, else the release's, else the pod's own."""
    cache = workload.engine.weights.cache
    claim = cache.persistent_volume_claim or ("" if cache.host_path else cluster.cache_claim)
    if claim:
        return {"persistentVolumeClaim": {"claimName": claim}}
    path = cache.host_path or cluster.cache_path
    if path:
        return {"hostPath": {"path": path, "type": "DirectoryOrCreate"}}
    return {"emptyDir": {}}


def _pod(cluster: EngineCluster) -> Manifest:
    """What head and engines have in common."""
    spec: Manifest = {
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    if cluster.service_account:
        spec["serviceAccountName"] = cluster.service_account
    if cluster.pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in cluster.pull_secrets]
    return spec


def _longest_s(workload: Workload) -> int:
    return math.ceil(max(workload.longest_stream_s, workload.graceful_shutdown_s))


def _hook(what: str, *more: str) -> list[str]:
    return ["python", "-m", "serving.engines.pod", what, "--folder", POD_DIR, *more]


def _tracing(cluster: EngineCluster) -> Mapping[str, str]:
    """The platform's own settings, which an engine reads where it starts vLLM; they change no answer."""
    if not cluster.otlp_endpoint:
        return {}
    return {"TIDEGATE_OTLP_ENDPOINT": cluster.otlp_endpoint, "TIDEGATE_OTLP_PROTOCOL": cluster.otlp_protocol}


def _environment(values: Mapping[str, str]) -> list[Manifest]:
    return [{"name": name, "value": value} for name, value in values.items()]


def _mounts(container: Mapping[str, Any]) -> list[Manifest]:
    return list(container["volumeMounts"])
