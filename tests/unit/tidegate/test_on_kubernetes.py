"""What a platform on a cluster is made of, by its settings."""

from __future__ import annotations

import pytest

from rollout.cluster_api import ClusterApi, connected
from rollout.traffic_routers.gateway import GatewayRouter
from rollout.traffic_routers.gateway_api import GatewayApiRouter
from rollout.workloads.base import Owner
from rollout.workloads.on_cluster import ClusterWorkloads
from tidegate.errors import WrongUse
from tidegate.on_kubernetes import build_cluster_parts, engine_cluster
from tidegate.settings import Settings


@pytest.fixture
def api() -> ClusterApi:
    import kubernetes

    return connected(kubernetes.client.Configuration(host="http://127.0.0.1:1"))


def settings(**more: object) -> Settings:
    given = {"platform": "kubernetes", "namespace": "tide", "pod_name": "tide-controller-0", "engine_image": "engine:1"}
    return Settings(**given | more)  # type: ignore[arg-type]


def test_gateways_are_counted_by_their_service(api: ClusterApi) -> None:
    parts = build_cluster_parts(settings(), lambda: 0.0, api)
    assert isinstance(parts.workloads, ClusterWorkloads)
    assert type(parts.router) is GatewayRouter
    assert parts.beside.keys() == {"gateway pods"}
    assert (parts.home.namespace, parts.home.image) == ("tide", "engine:1")
    parts.close()


def test_an_ingress_of_ones_own(api: ClusterApi) -> None:
    parts = build_cluster_parts(settings(traffic_router="gateway-api"), lambda: 0.0, api)
    assert isinstance(parts.router, GatewayApiRouter)
    assert parts.beside.keys() == {"routes"}
    parts.close()


def test_owners_are_asked_when_they_are_needed(api: ClusterApi) -> None:
    parts = build_cluster_parts(settings(), lambda: 0.0, api)
    assert parts.owners.of("chat") is None
    owner = Owner(api_version="a/v1", kind="B", namespace="tide", name="chat", uid="u")
    parts.owners.look = {"chat": owner}.get
    assert parts.owners.of("chat") is owner
    parts.close()


def test_what_pods_have_in_common_comes_from_the_settings() -> None:
    assert [engine_cluster(settings(host=host)).bind_address for host in ("0.0.0.0", "::")] == ["0.0.0.0", "::"]
    found = engine_cluster(settings(release="tide", tracking_uri="http://mlflow:5000", redis_address="redis:6379"))
    assert found.ray_auth_secret == "tide-ray-token"
    assert found.tracking_uri == "http://mlflow:5000"
    assert found.redis_address == "redis:6379"
    assert found.ray_version.count(".") == 2


def test_without_an_image_nothing_is_built(api: ClusterApi) -> None:
    with pytest.raises(WrongUse, match="engine_image"):
        build_cluster_parts(settings(engine_image=""), lambda: 0.0, api)
    api.close()
