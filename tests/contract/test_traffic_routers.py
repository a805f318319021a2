"""What every TrafficRouter promises: that setting is not verifying, that no older table wins, that silence is no news.

The hub of gateways is asked once with gateways that dial in, and once as on a cluster, where the EndpointSlices of
their Service say which gateways there are. HTTPRoutes are taken, or not, by a simulated Gateway controller.
"""

from __future__ import annotations

import abc
import time
from collections.abc import Iterator, Mapping

import pytest

from rollout.traffic_routers.base import TrafficRouter
from rollout.traffic_routers.gateway import SETTLE_S, Connection, GatewayRouter
from rollout.traffic_routers.gateway_api import GatewayApiRouter
from rollout.traffic_routers.gateway_pods import GatewayPods
from rollout.traffic_routers.memory import MemoryTrafficRouter
from serving.outcomes import FROM_CONTROLLER, Ack, Hello, TablePush, Totals
from serving.traffic import ModelTraffic, RevisionTraffic, Role, TrafficTable
from tests.kubernetes.cluster import Write
from tests.kubernetes.definitions import HTTP_ROUTES
from tests.kubernetes.gateways import a_route, an_endpoint_slice, take_routes
from tests.kubernetes.server import ApiServer
from tests.kubernetes.tidegate import cluster_api

NAMESPACE = "default"
Weights = Mapping[str, int]


def table(sequence: int, canary: int, fence: int = 1) -> TrafficTable:
    """Two revisions of one model, the canary with this weight."""
    arms = (("a", "1.0.0", Role.STABLE, 100 - canary), ("b", "2.0.0", Role.CANARY, canary))
    revisions = tuple(
        RevisionTraffic(
            digest=digit * 64,
            version=version,
            role=role,
            weight=weight,
            application=f"chat--{version[0]}--{digit * 8}",
            endpoints=f"service://{NAMESPACE}/chat-{role}:8000",
        )
        for digit, version, role, weight in arms
    )
    models = (ModelTraffic(model="chat", salt="s", rollout="r", revisions=revisions),)
    return TrafficTable(fence=fence, sequence=sequence, issued_at=0.0, models=models)


class World(abc.ABC):
    """A router, and whoever follows it."""

    router: TrafficRouter
    tells_in_flight = True

    @abc.abstractmethod
    async def follow(self) -> None:
        """Let those who follow do so, as far as they do."""

    @abc.abstractmethod
    def hold(self, held: bool) -> None:
        """Let those who follow stay where they are, or go on."""

    @abc.abstractmethod
    def weights(self) -> Weights:
        """What is in force, by role."""

    @abc.abstractmethod
    async def newcomer(self) -> None:
        """Let one more be there who gets requests, and does not follow."""

    @abc.abstractmethod
    async def nobody(self) -> None:
        """Let nobody be there who follows."""


class MemoryWorld(World):
    def __init__(self) -> None:
        self.router = self.memory = MemoryTrafficRouter()
        self.memory.follows = False

    async def follow(self) -> None:
        if self.memory.table is not None and not self.held:
            self.memory.applied = self.memory.table

    held = False

    def hold(self, held: bool) -> None:
        self.held = held

    def weights(self) -> Weights:
        return weights_of(self.memory.applied)

    async def newcomer(self) -> None:
        self.memory.applied = None

    async def nobody(self) -> None:
        self.memory.gateways = 0


class Gateway:
    """One that dials in and obeys as serving.gateway does: what is not newer it refuses."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.table: TrafficTable | None = None
        self.unread: list[TrafficTable] = []
        self.connection: Connection | None = None

    async def dial(self, router: GatewayRouter) -> None:
        had = (self.table.fence, self.table.sequence) if self.table else (0, 0)
        hello = Hello(gateway=self.name, boot="b", fence=had[0], sequence=had[1])
        self.connection = await router.attach(hello, self.take)

    async def take(self, text: str) -> None:
        message = FROM_CONTROLLER.validate_json(text)
        if isinstance(message, TablePush):
            self.unread.append(message.table)

    async def follow(self, router: GatewayRouter) -> None:
        assert self.connection is not None
        for pushed in self.unread:
            if self.table is None or pushed.generation > self.table.generation:
                self.table = pushed
        self.unread.clear()
        if self.table is not None:
            ack = Ack(fence=self.table.fence, sequence=self.table.sequence, applied_at=0.0)
            await router.receive(self.connection, ack.model_dump_json())
            totals = Totals(sent_at=0.0, totals=(), in_flight={"a" * 64: 2})
            await router.receive(self.connection, totals.model_dump_json())


class HubWorld(World):
    def __init__(self) -> None:
        self.now = 0.0
        self.hub = self.router = GatewayRouter(lambda: self.now)
        self.gateways = [Gateway("gateway-0"), Gateway("gateway-1")]
        self.held = False

    async def follow(self) -> None:
        for gateway in self.gateways:
            if gateway.connection is None:
                await gateway.dial(self.hub)
            if not self.held:
                await gateway.follow(self.hub)
        self.now += SETTLE_S

    def hold(self, held: bool) -> None:
        self.held = held

    def weights(self) -> Weights:
        found = [weights_of(gateway.table) for gateway in self.gateways]
        assert all(w == found[0] for w in found)
        return found[0]

    async def newcomer(self) -> None:
        await Gateway("gateway-2").dial(self.hub)

    async def nobody(self) -> None:
        for gateway in self.gateways:
            if gateway.connection is not None:
                self.hub.detach(gateway.connection)
                gateway.connection = None
        self.gateways.clear()


class ClusterHubWorld(HubWorld):
    """Gateways on a cluster: counted by the EndpointSlices of their Service."""

    def __init__(self, api: ApiServer) -> None:
        super().__init__()
        self.api = api
        self.pods = GatewayPods(cluster_api(api), NAMESPACE, "tide-gateway", lambda: self.now, lambda: None)
        self.hub = self.router = GatewayRouter(lambda: self.now, self.pods.names)
        pods = [g.name for g in self.gateways]
        api.cluster.create("endpointslices", NAMESPACE, an_endpoint_slice("tide-gateway", pods))

    async def follow(self) -> None:
        await self.pods.once()
        await super().follow()

    async def newcomer(self) -> None:
        """Ready by its probe, and never dialled in."""
        kind = self.api.cluster.kind("endpointslices")
        pods = [*(g.name for g in self.gateways), "gateway-2"]
        found = an_endpoint_slice("tide-gateway", pods)
        self.api.cluster.update(kind, NAMESPACE, found["metadata"]["name"], found, Write())
        await self.pods.once()


class RouteWorld(World):
    tells_in_flight = False

    def __init__(self, api: ApiServer) -> None:
        api.cluster.create("customresourcedefinitions", None, HTTP_ROUTES)
        api.cluster.create("httproutes", NAMESPACE, a_route("chat"))
        for role in Role:
            api.cluster.create("endpointslices", NAMESPACE, an_endpoint_slice(f"chat-{role}", ["one"]))
        self.api = api
        self.router = self.routes = GatewayApiRouter(cluster_api(api), time.monotonic, namespace=NAMESPACE)
        self.held = False

    async def follow(self) -> None:
        await self.routes.once()
        if not self.held:
            take_routes(self.api.cluster)
            await self.routes.once()

    def hold(self, held: bool) -> None:
        self.held = held

    def weights(self) -> Weights:
        rule = self.api.cluster.get("httproutes", NAMESPACE, "chat")["spec"]["rules"][0]
        return {ref["name"].removeprefix("chat-"): ref["weight"] for ref in rule["backendRefs"]}

    async def newcomer(self) -> None:
        route = self.api.cluster.get("httproutes", NAMESPACE, "chat")
        route["spec"]["parentRefs"].append({"name": "private"})
        self.api.cluster.update(self.api.cluster.kind("httproutes"), NAMESPACE, "chat", route, Write())
        await self.routes.once()

    async def nobody(self) -> None:
        self.api.cluster.delete("httproutes", NAMESPACE, "chat")
        await self.routes.once()


def weights_of(followed: TrafficTable | None) -> Weights:
    return {str(r.role): r.weight for r in followed.models[0].revisions} if followed is not None else {}


ON_CLUSTER = pytest.mark.integration


@pytest.fixture(
    params=["memory", "hub", pytest.param("cluster_hub", marks=ON_CLUSTER), pytest.param("routes", marks=ON_CLUSTER)]
)
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    if request.param in ("memory", "hub"):
        yield MemoryWorld() if request.param == "memory" else HubWorld()
        return
    with ApiServer() as api:
        yield ClusterHubWorld(api) if request.param == "cluster_hub" else RouteWorld(api)


async def test_setting_is_not_verifying(world: World) -> None:
    world.hold(True)
    await world.follow()
    await world.router.set(table(1, canary=5))
    await world.follow()
    view = world.router.view()
    assert not view.applied
    assert view.in_flight is None, "a count from before the table says nothing"
    world.hold(False)
    await world.follow()
    view = world.router.view()
    assert view.applied
    assert view.gateways > 0
    assert world.weights() == {"stable": 95, "canary": 5}
    assert (view.in_flight is not None) == world.tells_in_flight


async def test_every_new_table_must_be_followed_anew(world: World) -> None:
    await world.router.set(table(1, canary=5))
    await world.follow()
    assert world.router.view().applied
    world.hold(True)
    await world.router.set(table(2, canary=0))
    assert not world.router.view().applied
    await world.follow()
    assert not world.router.view().applied, "that they followed the one before says nothing"
    world.hold(False)
    await world.follow()
    assert world.router.view().applied
    assert world.weights() == {"stable": 100, "canary": 0}


async def test_an_older_table_never_wins(world: World) -> None:
    """A controller that has lost its leadership says what it said before."""
    await world.router.set(table(1, canary=5, fence=2))
    await world.follow()
    await world.router.set(table(9, canary=50, fence=1))
    await world.follow()
    assert world.weights() == {"stable": 95, "canary": 5}


async def test_the_same_table_again_does_no_harm(world: World) -> None:
    for _ in range(2):
        await world.router.set(table(1, canary=5))
        await world.follow()
        assert world.router.view().applied
    assert world.weights() == {"stable": 95, "canary": 5}


async def test_one_who_gets_requests_and_does_not_follow_is_one_too_many(world: World) -> None:
    await world.router.set(table(1, canary=5))
    await world.follow()
    assert world.router.view().applied
    await world.newcomer()
    assert not world.router.view().applied


async def test_where_nobody_follows_nothing_is_applied(world: World) -> None:
    await world.router.set(table(1, canary=5))
    await world.follow()
    await world.nobody()
    view = world.router.view()
    assert view.gateways == 0
    assert not view.applied
