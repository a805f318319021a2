"""Divides traffic by the weights of HTTPRoutes, for people who keep their own ingress. Setting is not verifying.

`set` only says what is wanted; a task of its own writes it and looks whether every Gateway has taken it
(`status.parents`, at the route's present generation). Weights of a route are no sticky assignment and tell nothing of
outcomes: rollouts are then judged by signals from a metrics store.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from rollout.cluster_api import ClusterApi, Object
from rollout.endpoint_slices import SERVICE_NAME, ready_addresses, slices_path
from rollout.errors import ClusterRejected, ClusterUnavailable
from rollout.traffic_routers.base import RouterView
from rollout.traffic_routers.gateway import GatewayRouter
from rollout.traffic_routers.http_routes import (
    NotRoutable,
    accepted_by,
    backends,
    has_backends,
    refusal,
    with_backends,
)
from serving.traffic import ModelTraffic, TrafficTable

log = logging.getLogger(__name__)

LOOK_S = 2.0
"""Between two looks at routes that are as wanted: somebody may have changed them."""
HURRY_S = 0.2
"""While a Gateway has not taken the newest table."""
GENERATION = "tidegate.dev/table"


@dataclass(slots=True)
class _Seen:
    """The routes as they were found last."""

    accepted: dict[str, int] = field(default_factory=dict)
    """By model: how many Gateways follow the table `at`."""
    endpoints: dict[str, int] = field(default_factory=dict)
    at: TrafficTable | None = None


class GatewayApiRouter(GatewayRouter):
    """A `TrafficRouter` over one HTTPRoute per model. It is a hub too, for gateways that dial to look after keys."""

    def __init__(
        self,
        api: ClusterApi,
        monotonic: Callable[[], float],
        *,
        namespace: str,
        route_of: Callable[[str], str] = lambda model: model,
    ) -> None:
        """Prepare; nothing is asked yet.

        Args:
            api: the API server.
            monotonic: seconds.
            namespace: where the routes are.
            route_of: the name of a model's route.
        """
        super().__init__(monotonic)
        self._api = api
        self._routes = f"/apis/gateway.networking.k8s.io/v1/namespaces/{namespace}/httproutes"
        self._namespace = namespace
        self._route_of = route_of
        self._wanted: TrafficTable | None = None
        self._seen = _Seen()
        self._gateways = 0
        self._wake = asyncio.Event()
        self.messages: dict[str, str] = {}
        """Why a model's route is not as wanted, for people."""
        self.writes = 0

    async def set(self, table: TrafficTable) -> None:
        """Want this table from now on, unless a newer one is wanted already."""
        if self._wanted is None or table.generation > self._wanted.generation:
            self._wanted = table
            self._wake.set()
        await super().set(self._wanted)

    def view(self) -> RouterView:
        """How far the Gateways have followed. How many answers are under way they do not tell."""
        seen = self._seen
        current = self._wanted is not None and seen.at is self._wanted
        served = [m.model for m in self._wanted.models if m.revisions] if self._wanted is not None else []
        return RouterView(
            gateways=self._gateways,
            applied=current and bool(served) and all(seen.accepted.get(model) for model in served),
            ready_endpoints=dict(seen.endpoints),
            in_flight=None,
        )

    async def run(self) -> None:
        """Write and look, for ever."""
        while True:
            calm = await self.once()
            try:
                async with asyncio.timeout(LOOK_S if calm else HURRY_S):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def once(self) -> bool:
        """Write what differs, then look; returns whether there is no hurry to look again."""
        self._wake.clear()
        table = self._wanted
        if table is None:
            return True
        seen, messages = _Seen(at=table), dict[str, str]()
        for traffic in table.models:
            if not traffic.revisions:
                continue
            try:
                accepted = await self._follow(traffic, table)
                seen.endpoints |= await self._endpoints(traffic)
            except (ClusterUnavailable, ClusterRejected, NotRoutable) as error:
                messages[traffic.model] = str(error)
                continue
            if accepted is not None:
                seen.accepted[traffic.model] = accepted
        for model, message in messages.items():
            if self.messages.get(model) != message:
                log.warning("traffic of %s is not as wanted: %s", model, message)
        self.messages = messages
        changed = seen != self._seen
        self._seen = seen
        if seen.accepted or messages:  # between two tables a route is taken by nobody, and its Gateways are still there
            self._gateways = max(seen.accepted.values(), default=0)
        if changed:
            self.on_change()
        return bool(messages) or self.view().applied

    async def _follow(self, traffic: ModelTraffic, table: TrafficTable) -> int | None:
        """Bring one route to where it should be; how many Gateways have taken that, or None."""
        name = self._route_of(traffic.model)
        path = f"{self._routes}/{name}"
        route = await self._api.get(path)
        if route is None:
            raise NotRoutable(
                f"there is no HTTPRoute {self._namespace}/{name}; make one with your Gateway, hosts and one rule"
            )
        wanted = backends(traffic, self._namespace)
        if not has_backends(route, wanted):
            self.writes += 1
            route = await self._api.apply(path, self._patch(route, with_backends(route, wanted), table))
        said = refusal(route)
        if said and accepted_by(route) is None:
            raise NotRoutable(f"HTTPRoute {self._namespace}/{name} is refused: {said}")
        return accepted_by(route)

    def _patch(self, route: Object, rules: list[dict[str, object]], table: TrafficTable) -> Mapping[str, object]:
        """What is applied: with the version that was read, so that somebody's change in between is not lost."""
        meta = route["metadata"]
        return {
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "HTTPRoute",
            "metadata": {
                "name": meta["name"],
                "namespace": meta["namespace"],
                "resourceVersion": meta["resourceVersion"],
                "annotations": {GENERATION: f"{table.fence}.{table.sequence}"},
            },
            "spec": {"rules": rules},
        }

    async def _endpoints(self, traffic: ModelTraffic) -> dict[str, int]:
        """How many pods of each revision get requests, by application."""
        found: dict[str, int] = {}
        for revision in (*traffic.revisions, *traffic.drains):
            namespace, _, rest = revision.endpoints.removeprefix("service://").partition("/")
            service = rest.partition(":")[0]
            slices = await self._api.every(slices_path(namespace), labels=f"{SERVICE_NAME}={service}")
            found[revision.application] = len(ready_addresses(slices))
        return found
