"""Endpoints on a cluster: each revision is asked where the table says, and who does not answer holds up nobody."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from serving.endpoints import Address, endpoint_of
from serving.gateway.discovery_cluster import ClusterAccess, ClusterEndpoints, addresses_of
from serving.traffic import ModelTraffic, RevisionTraffic, Role, TrafficTable

RAY, OTHER_RAY = "ray://chat-a-head-svc.team.svc:8265", "ray://chat-b-head-svc.team.svc:8265"
SERVICE = "service://team/old-chat:8000"


def table(**where: str) -> TrafficTable:
    """One model per application, so that any number of revisions fits."""
    return TrafficTable(
        fence=1, sequence=1, issued_at=0.0,
        models=tuple(
            ModelTraffic(
                model=name, salt="s",
                revisions=(
                    RevisionTraffic(
                        digest="a" * 64, version="1.0.0", role=Role.STABLE, weight=100, application=name, endpoints=at
                    ),
                ),
            )
            for name, at in where.items()
        ),
    )  # fmt: skip


class ClusterNet:
    """Dashboards, replicas and an API server behind one transport."""

    def __init__(self) -> None:
        self.targets = {"chat-a-head-svc.team.svc": ("a", "10.0.0.1"), "chat-b-head-svc.team.svc": ("b", "10.0.0.2")}
        self.silent: set[str] = set()
        self.leaving: set[str] = set()
        self.tokens: list[str] = []
        self.slices: list[dict] = []
        self.code = 200
        self.refused = asyncio.Event()

    async def answer(self, request: httpx.Request) -> httpx.Response:
        host = request.url.host
        if host in self.silent:
            await asyncio.sleep(3600)
        if host == "kubernetes.default.svc":
            self.tokens.append(request.headers["authorization"])
            assert request.url.params["labelSelector"] == "kubernetes.io/service-name in (old-chat)"
            if self.code != 200:
                self.refused.set()
            return httpx.Response(self.code, json={"items": self.slices})
        if host in self.targets:
            self.tokens.append(request.headers["authorization"])
            application, ip = self.targets[host]
            group = {
                "app_name": application, "protocol": "HTTP", "route_prefix": f"/{application}",
                "targets": [{"ip": ip, "port": 30000}, {"ip": ip, "port": 8000}],
            }  # fmt: skip
            return httpx.Response(
                200, json={"applications": {application: {"status": "RUNNING"}}, "target_groups": [group]}
            )
        body = {"url": f"http://{host}:41000", "boot": "x", "ready": True, "draining": host in self.leaving}
        return httpx.Response(200, json=body)


class Told:
    """What was published last, and a way to wait for it."""

    def __init__(self) -> None:
        self.now: dict[str, list[Address]] = {}
        self.changed = asyncio.Event()

    def publish(self, found) -> None:
        self.now = {a: list(f) for a, f in found.items()}
        self.changed.set()

    async def until(self, wanted) -> None:
        async with asyncio.timeout(5):
            while not wanted(self.now):
                self.changed.clear()
                await self.changed.wait()


@pytest.fixture
def net() -> ClusterNet:
    return ClusterNet()


@pytest.fixture
async def source(net, tmp_path):
    (tmp_path / "ray").write_text("ray-token\n")
    (tmp_path / "pod").write_text("pod-token\n")
    access = ClusterAccess(tmp_path / "ray", token_file=tmp_path / "pod", ca_file=Path("/nonexistent"))
    found = ClusterEndpoints(access, httpx.MockTransport(net.answer))
    told = Told()
    found.told = told
    task = asyncio.create_task(found.run(told.publish))
    yield found
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def an_endpoint(address: str, ready: bool | None = True, **conditions: bool) -> dict:
    return {
        "addresses": [address],
        "conditions": {**({} if ready is None else {"ready": ready}), **conditions},
        "targetRef": {"kind": "Pod", "uid": f"uid-{address}"},
    }


def a_slice(*endpoints: dict, kind: str = "IPv4", service: str = "old-chat") -> dict:
    labels = {"kubernetes.io/service-name": service}
    return {"metadata": {"labels": labels}, "addressType": kind, "endpoints": list(endpoints)}


async def test_each_revision_is_asked_where_the_table_says(source, net):
    net.slices = [a_slice(an_endpoint("10.0.0.9"))]
    source.follow(table(a=RAY, c=SERVICE, local=""))
    await source.told.until(lambda now: now.keys() == {"a", "c"})
    assert source.told.now == {
        "a": [Address("http://10.0.0.1:41000", "x")],
        "c": [Address("http://10.0.0.9:8000", "uid-10.0.0.9")],
    }
    assert {"Bearer ray-token", "Bearer pod-token"} == set(net.tokens)
    source.follow(table(c=SERVICE))
    await source.told.until(lambda now: now.keys() == {"c"})


async def test_who_does_not_answer_holds_up_nobody_and_keeps_its_set(source, net):
    source.follow(table(a=RAY))
    await source.told.until(lambda now: "a" in now)
    net.silent.add("chat-a-head-svc.team.svc")
    source.follow(table(a=RAY, b=OTHER_RAY))
    await source.told.until(lambda now: "b" in now)
    assert source.told.now["a"] == [Address("http://10.0.0.1:41000", "x")]


async def test_a_pod_that_must_leave_drains(source, net):
    source.follow(table(a=RAY))
    await source.told.until(lambda now: "a" in now)
    net.leaving.add("10.0.0.1")
    source.suspect("http://10.0.0.1:41000")
    await source.told.until(lambda now: now["a"] and now["a"][0].draining)


async def test_a_right_that_was_revoked_changes_nothing(source, net):
    net.slices = [a_slice(an_endpoint("10.0.0.9"))]
    source.follow(table(c=SERVICE))
    await source.told.until(lambda now: "c" in now)
    net.code = 403
    net.refused.clear()
    source.suspect("http://10.0.0.9:8000")
    async with asyncio.timeout(5):
        await net.refused.wait()
    await asyncio.sleep(0.02)
    assert source.told.now["c"]


def ending(*, serving: bool) -> dict:
    return an_endpoint("10.0.0.1", ready=False, serving=serving, terminating=True)


@pytest.mark.parametrize(
    ("endpoint", "kind", "wanted"),
    [
        (an_endpoint("10.0.0.1"), "IPv4", [("http://10.0.0.1:8000", False)]),
        (an_endpoint("10.0.0.1", ready=None), "IPv4", [("http://10.0.0.1:8000", False)]),
        (an_endpoint("10.0.0.1", ready=False), "IPv4", []),
        (
            an_endpoint("10.0.0.1", ready=False, serving=True, terminating=True),
            "IPv4",
            [("http://10.0.0.1:8000", True)],
        ),
        (an_endpoint("10.0.0.1", ready=False, serving=False, terminating=True), "IPv4", []),
        (an_endpoint("fd00::1"), "IPv6", [("http://[fd00::1]:8000", False)]),
        (an_endpoint("chat.example.com"), "FQDN", []),
    ],
)
def test_conditions_of_an_endpoint(endpoint, kind, wanted):
    assert [(a.url, a.draining) for a in addresses_of([a_slice(endpoint, kind=kind)], 8000)] == wanted


def test_a_pod_with_two_families_of_addresses_is_one_engine():
    six, four = a_slice(an_endpoint("fd00::1"), kind="IPv6"), a_slice(an_endpoint("10.0.0.1"))
    assert [a.url for a in addresses_of([six, four], 8000)] == ["http://10.0.0.1:8000"]
    (address,) = addresses_of([six, a_slice()], 8000)
    assert address.url == "http://[fd00::1]:8000"
    endpoint = endpoint_of("chat", address)
    assert (endpoint.host, endpoint.authority) == ("fd00::1", b"[fd00::1]:8000"), "what is dialled, and `host:`"
