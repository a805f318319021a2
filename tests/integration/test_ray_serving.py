"""A real Ray with simulated engines: found, killed in every way, brought back, and gone without a trace."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from rollout.workloads.base import Workload, WorkloadState, WorkloadStatus
from rollout.workloads.ray_serve import RayServeWorkloads
from serving.specs import EngineKind, RevisionSpec
from tests.ports import free_ports
from tidegate.ray_head import RayHead, RayStartFailed, processes_of
from tidegate.settings import Settings

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]


@pytest.fixture
def settings() -> Iterator[Settings]:
    (port,) = free_ports(1)
    home = Path(tempfile.mkdtemp(prefix="tg"))
    yield Settings(home=home, serve_port=port)
    RayHead(Settings(home=home, serve_port=port)).sweep()
    shutil.rmtree(home, ignore_errors=True)


def workload(version: str) -> Workload:
    spec = RevisionSpec(
        model="chat",
        version=version,
        manifest_sha256="0" * 64,
        engine=EngineKind.SIMULATED,
        source="sim:?ttft_ms=1&itl_ms=0",
    )
    return Workload(revision=spec, graceful_shutdown_s=1)


class Platform:
    """What the gateway and the controller would see."""

    def __init__(self, settings: Settings) -> None:
        self.workloads = RayServeWorkloads(settings.ray_file, log_dir=settings.log_dir, serve_port=settings.serve_port)
        self._file = settings.ray_file

    async def details(self) -> dict[str, Any]:
        ray = json.loads(self._file.read_text())
        async with httpx.AsyncClient(headers={"Authorization": f"Bearer {ray['token']}"}, timeout=30) as client:
            found = (await client.get(ray["dashboard_url"] + "/api/serve/applications/")).json()
        assert isinstance(found, dict)
        return found

    async def engines(self, application: str) -> list[dict[str, Any]]:
        """Every engine of an application, found as the gateway finds it: Serve's target groups, then the replica."""
        found = []
        async with httpx.AsyncClient(timeout=10) as client:
            for group in (await self.details())["target_groups"]:
                for target in group["targets"]:
                    if group["app_name"] == application and "SERVE_REPLICA" in target["name"]:
                        url = f"http://{target['ip']}:{target['port']}{group['route_prefix']}/-/engine"
                        with contextlib.suppress(httpx.HTTPError):
                            found.append((await client.get(url)).json())
        return found

    async def until(self, wanted: Callable[[Mapping[str, WorkloadStatus]], bool], timeout_s: float = 60) -> float:
        began = time.monotonic()
        while not wanted(seen := await self.workloads.observe()):
            assert time.monotonic() - began < timeout_s, seen
            await asyncio.sleep(0.2)
        return time.monotonic() - began


async def until_gone(pid: int, timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, f"process {pid} lives on"
        await asyncio.sleep(0.05)


async def test_deaths(settings: Settings) -> None:
    head = RayHead(settings)
    await head.start()
    assert settings.ray_file.stat().st_mode & 0o777 == 0o600
    platform = Platform(settings)
    one, two = workload("1.0.0"), workload("1.1.0")
    await platform.workloads.apply([one, two])

    def both_ready(seen: Mapping[str, WorkloadStatus]) -> bool:
        return all(w.application in seen and seen[w.application].state is WorkloadState.READY for w in (one, two))

    await platform.until(both_ready)
    await _the_engine_answers_directly(platform, one)
    await _a_replica_killed_comes_back_alone(platform, one, two)
    await _an_engine_killed_takes_its_replica_along(platform, one)
    await _nothing_is_reached_without_the_token(settings)
    await platform.workloads.close()

    gcs = next(p.pid for p in processes_of(head.marker) if "gcs_server" in p.name())
    os.kill(gcs, signal.SIGKILL)
    began = time.monotonic()
    line = await asyncio.wait_for(head.wait_for_death(), 10)
    assert time.monotonic() - began < 5
    assert "gcs_server" in line
    assert head.address is not None
    await head.stop()
    assert processes_of(head.marker, {head.address.pid}) == []
    assert not settings.ray_file.exists()


async def _the_engine_answers_directly(platform: Platform, one: Workload) -> None:
    (engine,) = await platform.engines(one.application)
    assert engine["digest"] == one.revision.digest
    assert engine["engine"] == "simulated"
    assert engine["ready"] is True
    async with httpx.AsyncClient(base_url=engine["url"]) as client:
        ask = {"model": "chat", "messages": [{"role": "user", "content": "[[mark:direct]]"}]}
        answer = (await client.post("/v1/chat/completions", json=ask)).json()
    assert answer["choices"][0]["message"]["content"].startswith("[[mark:direct]]")


async def _a_replica_killed_comes_back_alone(platform: Platform, one: Workload, two: Workload) -> None:
    (before,) = await platform.engines(one.application)
    (untouched,) = await platform.engines(two.application)
    replicas = (await platform.details())["applications"][one.application]["deployments"]["engine"]["replicas"]
    replica = psutil.Process(replicas[0]["pid"])
    (engine,) = [child for child in replica.children() if "serving.engines.simulated" in child.cmdline()]
    replica.kill()
    await until_gone(engine.pid)
    await platform.until(lambda seen: seen[one.application].ready_replicas == 0)
    await platform.until(lambda seen: seen[one.application].state is WorkloadState.READY)
    (after,) = await platform.engines(one.application)
    assert after["boot"] != before["boot"]
    assert await platform.engines(two.application) == [untouched]
    assert (await platform.workloads.observe())[one.application].restarts == 1


async def _an_engine_killed_takes_its_replica_along(platform: Platform, one: Workload) -> None:
    replicas = (await platform.details())["applications"][one.application]["deployments"]["engine"]["replicas"]
    replica = psutil.Process(replicas[0]["pid"])
    (engine,) = [child for child in replica.children() if "serving.engines.simulated" in child.cmdline()]
    engine.kill()
    await until_gone(replica.pid)
    await platform.until(lambda seen: seen[one.application].ready_replicas == 0)
    await platform.until(lambda seen: seen[one.application].state is WorkloadState.READY)


async def _nothing_is_reached_without_the_token(settings: Settings) -> None:
    url = json.loads(settings.ray_file.read_text())["dashboard_url"]
    async with httpx.AsyncClient() as client:
        assert (await client.get(url + "/api/serve/applications/")).status_code in (401, 403)


async def test_a_start_cleans_up_after_a_killed_one_and_homes_do_not_mix(settings: Settings) -> None:
    other_home = Path(tempfile.mkdtemp(prefix="tg"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        other = Settings(home=other_home, serve_port=probe.getsockname()[1])
    first, neighbour = RayHead(settings), RayHead(other)
    try:
        await asyncio.gather(first.start(), neighbour.start())
        assert first.address is not None
        os.kill(first.address.pid, signal.SIGKILL)
        again = RayHead(settings)
        await again.start()
        sessions = {os.getsid(p.pid) for p in processes_of(again.marker, {first.address.pid})}
        assert first.address.pid not in sessions
        assert neighbour.alive()
        await again.stop()
        assert neighbour.alive()
    finally:
        await neighbour.stop()
        await first.stop()
        shutil.rmtree(other_home, ignore_errors=True)


async def test_a_taken_port_is_said_before_anything_starts(settings: Settings) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", settings.serve_port))
        taken.listen()
        with pytest.raises(RayStartFailed, match=f"port {settings.serve_port} .* TIDEGATE_SERVE_PORT"):
            await RayHead(settings).start()
