"""Which adapters the platform is made of on a cluster. Importing it costs nothing; building imports the client."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rollout.workloads.base import Owner

if TYPE_CHECKING:
    from rollout.cluster_api import ClusterApi
    from rollout.traffic_routers.gateway import GatewayRouter
    from rollout.versions import ClusterHome
    from rollout.workloads.base import WorkloadPort
    from rollout.workloads.engine_pods import EngineCluster
    from tidegate.settings import Settings


@dataclass(slots=True)
class Owners:
    """Who asked for which model. The operator knows it, and is made after the adapters."""

    look: Callable[[str], Owner | None] = field(default=lambda _: None)

    def of(self, model: str) -> Owner | None:
        """The owner of a model's workloads now, or None while nobody knows."""
        return self.look(model)


@dataclass(frozen=True, slots=True)
class ClusterParts:
    """What `control_plane.serve` needs."""

    workloads: WorkloadPort
    router: GatewayRouter
    home: ClusterHome
    owners: Owners
    beside: Mapping[str, Callable[[], Coroutine[Any, Any, None]]]
    """What must run beside the controller, by name."""
    close: Callable[[], None]


def engine_cluster(settings: Settings) -> EngineCluster:
    """What the pods of every revision have in common."""
    from rollout.workloads.engine_pods import EngineCluster

    return EngineCluster(
        release=settings.release,
        ray_version=importlib.metadata.version("ray"),
        ray_auth_secret=settings.ray_auth_secret or f"{settings.release}-ray-token",
        bind_address="::" if ":" in settings.host else "0.0.0.0",  # noqa: S104 - the pod network
        service_account=settings.engine_service_account,
        tracking_uri=settings.engine_tracking_uri or settings.tracking_uri,
        credentials_secret=settings.engine_credentials_secret,
        otlp_endpoint=settings.otlp_endpoint,
        otlp_protocol=settings.otlp_protocol.value,
        cache_path=settings.model_cache_path,
        cache_claim=settings.model_cache_claim,
        pull_secrets=settings.engine_pull_secrets,
        redis_address=settings.redis_address,
        redis_secret=settings.redis_secret,
    )


def build_cluster_parts(
    settings: Settings, monotonic: Callable[[], float], api: ClusterApi | None = None
) -> ClusterParts:
    """Make the adapters of a release.

    Args:
        settings: of this process.
        monotonic: seconds.
        api: the API server; left out: where `cluster_address` says.

    Raises:
        WrongUse: a setting is missing.
        ClusterError: there is no usable way to the cluster.

    """
    from rollout.cluster_api import connected
    from rollout.versions import ClusterHome
    from rollout.workloads.kuberay import KubeRayWorkloads
    from rollout.workloads.on_cluster import ClusterWorkloads
    from rollout.workloads.ray_dashboards import RayDashboards
    from rollout.workloads.referred import ReferredWorkloads
    from tidegate.composition import cluster_address
    from tidegate.errors import WrongUse

    if not settings.engine_image:
        raise WrongUse("engine_image is empty; on a cluster name the image that engines run from")
    api = api or connected(cluster_address(settings).configuration())
    owners = Owners()
    token_file = settings.ray_token_file

    def token() -> str:
        return token_file.read_text().strip() if token_file is not None else ""

    ours = KubeRayWorkloads(
        api,
        engine_cluster(settings),
        settings.watched_namespaces,
        owner_of=owners.of,
        # Without the token the dashboards would only say no.
        dashboards=RayDashboards(token) if token_file is not None else None,
    )
    router, beside = _router(settings, api, monotonic)
    return ClusterParts(
        workloads=ClusterWorkloads(ours, ReferredWorkloads(api)),
        router=router,
        home=ClusterHome(settings.watched_namespaces[0], settings.engine_image),
        owners=owners,
        beside=beside,
        close=api.close,
    )


def _router(
    settings: Settings, api: ClusterApi, monotonic: Callable[[], float]
) -> tuple[GatewayRouter, Mapping[str, Callable[[], Coroutine[Any, Any, None]]]]:
    """What divides the traffic, and what must run for it."""
    from rollout.traffic_routers.gateway import GatewayRouter
    from rollout.traffic_routers.gateway_api import GatewayApiRouter
    from rollout.traffic_routers.gateway_pods import GatewayPods

    if settings.traffic_router == "gateway-api":
        routes = GatewayApiRouter(
            api,
            monotonic,
            namespace=settings.http_route_namespace or settings.namespace,
            route_of=lambda model: settings.http_route.replace("{model}", model),
        )
        return routes, {"routes": routes.run}
    service = settings.gateway_service or f"{settings.release}-gateway"
    pods = GatewayPods(api, settings.namespace, service, monotonic, lambda: router.on_change())
    router = GatewayRouter(monotonic, pods.names)
    return router, {"gateway pods": pods.run}
