"""The Ray Serve application of a workload, as Serve's configuration says it. Pure; local platform and cluster alike.

What decides a revision's answers goes into `args`, where a change restarts the replicas; capacity goes into the
deployment's options, where it does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rollout.workloads.base import Workload

IMPORT_PATH = "serving.ray_app.application:build"
DEPLOYMENT = "engine"
STOP_MARGIN_S = 5.0
"""Serve kills a replica so long after its engine's drain should have ended."""
SCALING_POLICY = "serving.ray_app.scaling:ReplicasForLoad"
ENGINE_RESOURCE = "engine"
"""A Ray resource of which each pod for engines has one: so a pod holds one replica, and the head none."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What every engine of a platform is started with."""

    log_dir: str
    host: str = "127.0.0.1"
    threads: int = 0
    load_timeout_s: float = 900.0


def application(workload: Workload, settings: EngineSettings) -> dict[str, Any]:
    """The application on the local platform: a fixed number of replicas on one machine."""
    options = {**_options(workload), "num_replicas": workload.replicas}
    return _application(workload, _args(workload, settings), options)


def cluster_application(workload: Workload, settings: EngineSettings, pod_dir: str, gpus: int) -> dict[str, Any]:
    """The application on a cluster: one replica per pod; by load, where the spec gives bounds.

    Args:
        workload: what shall run.
        settings: what engines are started with.
        pod_dir: a folder of the pod, by which the replica and the pod's hooks know of each other.
        gpus: how many GPUs of Ray's a replica takes.

    """
    engine = workload.engine
    options: dict[str, Any] = {
        **_options(workload),
        "ray_actor_options": {"num_cpus": 0, "num_gpus": gpus, "resources": {ENGINE_RESOURCE: 1}},
    }
    if engine.most_replicas > workload.replicas and engine.most_replicas > engine.min_replicas:
        options["autoscaling_config"] = {
            "min_replicas": workload.replicas,
            "max_replicas": engine.most_replicas,
            "policy": {
                "policy_function": SCALING_POLICY,
                "policy_kwargs": {"per_replica": engine.target_requests_per_replica},
            },
        }
    else:
        options["num_replicas"] = workload.replicas
    args = {**_args(workload, settings), "pod_dir": pod_dir, "verify": False}
    return _application(workload, args, options)


def _args(workload: Workload, settings: EngineSettings) -> dict[str, Any]:
    return {
        "revision": workload.revision.model_dump(mode="json"),
        "host": settings.host,
        "log_dir": settings.log_dir,
        "load_timeout_s": settings.load_timeout_s,
        "threads": settings.threads,
    }


def _options(workload: Workload) -> dict[str, Any]:
    return {
        "name": DEPLOYMENT,
        "max_ongoing_requests": workload.max_ongoing_requests,
        "graceful_shutdown_timeout_s": workload.graceful_shutdown_s + STOP_MARGIN_S,
        "user_config": {"drain_s": workload.graceful_shutdown_s},
    }


def _application(workload: Workload, args: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": workload.application,
        "route_prefix": f"/{workload.application}",
        "import_path": IMPORT_PATH,
        "args": dict(args),
        "deployments": [dict(options)],
    }
