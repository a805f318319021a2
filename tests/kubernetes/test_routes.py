"""HTTPRoutes on the wire: trouble, owners who change them, Gateways that refuse."""

from __future__ import annotations

import asyncio
import time

import pytest

from rollout.traffic_routers.gateway_api import GatewayApiRouter
from rollout.traffic_routers.gateway_pods import STALE_S, GatewayPods
from tests.contract.test_traffic_routers import NAMESPACE, table
from tests.kubernetes.cluster import Write
from tests.kubernetes.definitions import HTTP_ROUTES
from tests.kubernetes.faults import Trouble
from tests.kubernetes.gateways import a_route, an_endpoint_slice, take_routes
from tests.kubernetes.server import ApiServer
from tests.kubernetes.tidegate import cluster_api

pytestmark = pytest.mark.integration


@pytest.fixture
def router(api: ApiServer) -> GatewayApiRouter:
    api.cluster.create("customresourcedefinitions", None, HTTP_ROUTES)
    api.cluster.create("httproutes", NAMESPACE, a_route("chat"))
    return GatewayApiRouter(cluster_api(api), time.monotonic, namespace=NAMESPACE)


async def settled(router: GatewayApiRouter, api: ApiServer) -> None:
    await router.once()
    take_routes(api.cluster)
    await router.once()


async def test_what_is_as_wanted_is_not_written(router: GatewayApiRouter, api: ApiServer) -> None:
    await router.set(table(1, canary=5))
    await settled(router, api)
    for _ in range(3):
        await router.once()
    assert router.writes == 1
    assert router.view().applied


async def test_an_owner_who_changes_the_route_keeps_the_change_and_we_the_weights(
    router: GatewayApiRouter, api: ApiServer
) -> None:
    await router.set(table(1, canary=5))
    await settled(router, api)
    route = api.cluster.get("httproutes", NAMESPACE, "chat")
    route["spec"]["hostnames"] = ["new.example.com"]
    route["spec"]["rules"][0]["backendRefs"][1]["weight"] = 99
    api.cluster.update(api.cluster.kind("httproutes"), NAMESPACE, "chat", route, Write(manager="owner"))
    await router.once()
    assert not router.view().applied, "the Gateway has not seen the present one"
    await settled(router, api)
    found = api.cluster.get("httproutes", NAMESPACE, "chat")["spec"]
    assert found["hostnames"] == ["new.example.com"]
    assert [ref["weight"] for ref in found["rules"][0]["backendRefs"]] == [95, 5]
    assert router.view().applied


async def test_a_change_between_our_reading_and_writing_is_not_lost(
    router: GatewayApiRouter, api: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All rules are written at once, so an older reading must never be."""
    read, changes = router._api.get, ["30s"]

    async def read_and_be_overtaken(path: str):
        found = await read(path)
        if changes:
            route = api.cluster.get("httproutes", NAMESPACE, "chat")
            route["spec"]["rules"][0]["timeouts"]["request"] = changes.pop()
            api.cluster.update(api.cluster.kind("httproutes"), NAMESPACE, "chat", route, Write(manager="owner"))
        return found

    monkeypatch.setattr(router._api, "get", read_and_be_overtaken)
    await router.set(table(1, canary=5))
    await router.once()
    await settled(router, api)
    rule = api.cluster.get("httproutes", NAMESPACE, "chat")["spec"]["rules"][0]
    assert rule["timeouts"]["request"] == "30s"
    assert [ref["weight"] for ref in rule["backendRefs"]] == [95, 5]


@pytest.mark.parametrize("trouble", [Trouble.CONFLICT, Trouble.TOO_MANY, Trouble.INTERNAL, Trouble.LOST_ANSWER])
async def test_a_write_that_meets_trouble_is_made_up_for(
    router: GatewayApiRouter, api: ApiServer, trouble: Trouble
) -> None:
    api.faults.plan(trouble, lambda asked: asked.verb == "patch")
    await router.set(table(1, canary=5))
    await router.once()
    assert not router.view().applied
    assert "chat" in router.messages
    await settled(router, api)
    assert router.view().applied
    assert router.messages == {}


async def test_a_gateway_that_refuses_holds_and_says_why(router: GatewayApiRouter, api: ApiServer) -> None:
    await router.set(table(1, canary=5))
    await router.once()
    take_routes(api.cluster, refused="BackendNotFound")
    await router.once()
    assert not router.view().applied
    assert "BackendNotFound: Service does not exist" in router.messages["chat"]
    await settled(router, api)
    assert router.view().applied


async def test_it_runs_by_itself(router: GatewayApiRouter, api: ApiServer) -> None:
    running = asyncio.create_task(router.run())
    await router.set(table(1, canary=5))
    async with asyncio.timeout(5):
        while not router.view().applied:
            take_routes(api.cluster)
            await asyncio.sleep(0.02)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_which_gateways_there_are_is_not_known_for_ever(api: ApiServer) -> None:
    """While the API server is away a rollout holds, but not on a set of long ago."""
    now, changes = [0.0], []
    api.cluster.create("endpointslices", NAMESPACE, an_endpoint_slice("gates", ["gateway-0"]))
    pods = GatewayPods(cluster_api(api), NAMESPACE, "gates", lambda: now[0], lambda: changes.append(now[0]))
    assert pods.names() is None
    await pods.once()
    assert pods.names() == {"gateway-0"}
    with api.away():
        now[0] += STALE_S
        await pods.once()
        assert pods.names() == {"gateway-0"}
        now[0] += 1
        await pods.once()
        assert pods.names() is None
    await pods.once()
    assert pods.names() == {"gateway-0"}
    assert len(changes) == 2
