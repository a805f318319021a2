"""Tidegate's adapters against the stand-in, through the official client."""

from __future__ import annotations

from typing import Any

import kubernetes

from rollout.cluster_api import ClusterApi
from rollout.workloads.engine_pods import EngineCluster
from rollout.workloads.kuberay import KubeRayWorkloads
from tests.kubernetes.server import ApiServer

CLUSTER = EngineCluster(release="tide", ray_version="2.60.0", ray_auth_secret="tide-ray-token")


def cluster_api(api: ApiServer, token: str = "admin", timeout_s: tuple[float, float] = (1.0, 5.0)) -> ClusterApi:
    """A client of this server; by a token, as that service account or an administrator."""
    configuration = kubernetes.client.Configuration(host=api.url)
    configuration.api_key = {"BearerToken": f"Bearer {token}"}
    configuration.retries = False
    return ClusterApi(kubernetes.client.ApiClient(configuration), timeout_s=timeout_s)


def kuberay_workloads(
    api: ApiServer, *namespaces: str, cluster: EngineCluster = CLUSTER, **more: Any
) -> KubeRayWorkloads:
    return KubeRayWorkloads(cluster_api(api), cluster, namespaces, **more)
