"""What every WorkloadPort promises: of the memory adapter and of KubeRay in virtual time, of Ray Serve in real time.

KubeRay and the API server are stood in for (tests/kubernetes); the official client talks to the latter over HTTP.
"""

from __future__ import annotations

import abc
import asyncio
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from rollout.errors import WorkloadUnavailable
from rollout.workloads.base import Workload, WorkloadPort, WorkloadState, WorkloadStatus
from rollout.workloads.memory import MemoryWorkloads
from rollout.workloads.on_cluster import ClusterWorkloads
from rollout.workloads.ray_serve import RayServeWorkloads
from rollout.workloads.referred import ReferredWorkloads
from serving.specs import EngineKind, RevisionSpec, object_name
from tests.kubernetes.cluster import Write
from tests.kubernetes.kuberay import KubeRay, a_node
from tests.kubernetes.people import People
from tests.kubernetes.server import ApiServer
from tests.kubernetes.tidegate import cluster_api, kuberay_workloads
from tests.ports import free_ports
from tidegate.ray_head import RayHead
from tidegate.settings import Settings

Seen = Mapping[str, WorkloadStatus]
NAMESPACE = "default"


def workload(version: str, uri: str = "sim:?ttft_ms=1&itl_ms=0", replicas: int = 1) -> Workload:
    spec = RevisionSpec(
        model="chat", version=version, manifest_sha256="0" * 64, engine=EngineKind.SIMULATED, source=uri
    )
    return Workload(revision=spec, replicas=replicas, graceful_shutdown_s=1, namespace=NAMESPACE)


class World(abc.ABC):
    """A port and what is needed to drive it."""

    port: WorkloadPort

    @abc.abstractmethod
    async def pass_time(self) -> None: ...

    @abc.abstractmethod
    def writes(self) -> int: ...

    @abc.abstractmethod
    def failing(self, version: str) -> Workload:
        """A workload that can't become ready."""

    knows_room = True

    def fill_up(self) -> None:
        """Leave no room for anything new."""
        self.knows_room = False

    @abc.abstractmethod
    def unreachable(self) -> WorkloadPort:
        """The port when the layer below is away."""

    async def until(self, wanted: Callable[[Seen], bool], always: Callable[[Seen], bool] = lambda _: True) -> Seen:
        """Let time pass until `wanted`; `always` must hold at every look."""
        deadline = time.monotonic() + 60
        while True:
            seen = await self.port.observe()
            assert always(seen), seen
            if wanted(seen):
                return seen
            assert time.monotonic() < deadline, seen
            await self.pass_time()


class MemoryWorld(World):
    def __init__(self) -> None:
        self.memory = MemoryWorkloads()
        self.port = self.memory

    async def pass_time(self) -> None:
        self.memory.tick()

    def writes(self) -> int:
        return self.memory.writes

    def failing(self, version: str) -> Workload:
        found = workload(version, "sim:?fail_load=1")
        self.memory.fail_load(found.application)
        return found

    def fill_up(self) -> None:
        self.memory.fill_up()

    def unreachable(self) -> WorkloadPort:
        self.memory.make_unavailable()
        return self.memory


class RayWorld(World):
    def __init__(self, settings: Settings) -> None:
        self.ray = RayServeWorkloads(settings.ray_file, log_dir=settings.log_dir, serve_port=settings.serve_port)
        self.port = self.ray

    async def pass_time(self) -> None:
        await asyncio.sleep(0.25)

    def writes(self) -> int:
        return self.ray.writes

    def failing(self, version: str) -> Workload:
        return workload(version, "sim:?fail_load=1")

    def unreachable(self) -> WorkloadPort:
        return RayServeWorkloads(Path("/nonexistent/ray.json"), log_dir=Path("/tmp"))


class KubeRayWorld(World):
    def __init__(self, api: ApiServer) -> None:
        api.cluster.create("nodes", None, a_node("one"))
        self.api = api
        self.kuberay = KubeRay(api.cluster)
        self.port = kuberay_workloads(api, NAMESPACE)

    async def pass_time(self) -> None:
        self.kuberay.tick()

    def writes(self) -> int:
        return len(self.api.writes())

    def failing(self, version: str) -> Workload:
        found = workload(version)
        self.kuberay.failing[found.application] = "simulated failure to load [permanent]"
        return found

    def fill_up(self) -> None:
        cordoned = {**self.api.cluster.get("nodes", None, "one"), "spec": {"unschedulable": True}}
        self.api.cluster.update(self.api.cluster.kind("nodes"), None, "one", cordoned, Write())

    def unreachable(self) -> WorkloadPort:
        self.api.leave()
        return self.port


class ReferredWorld(World):
    """Deployments that somebody else runs: they make what is asked for here, and take it away again."""

    def __init__(self, api: ApiServer) -> None:
        self.api = api
        self.people = People(api.cluster, NAMESPACE)
        self.port = self.people.informed(ClusterWorkloads(MemoryWorkloads(), ReferredWorkloads(cluster_api(api))))

    async def pass_time(self) -> None:
        self.people.tick()

    def writes(self) -> int:
        return len(self.api.writes())

    def failing(self, version: str) -> Workload:
        found = workload(version)
        self.people.broken.add(object_name(found.application))
        return found

    def unreachable(self) -> WorkloadPort:
        self.api.leave()
        return self.port


@pytest.fixture(scope="module")
def ray_settings() -> Iterator[Settings]:
    """A Ray of this module's own."""
    (port,) = free_ports(1)
    home = Path(tempfile.mkdtemp(prefix="tg"))
    settings = Settings(home=home, serve_port=port)
    head = RayHead(settings)
    asyncio.run(head.start())
    yield settings
    asyncio.run(head.stop())
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(
    params=[
        "memory",
        pytest.param("kuberay", marks=pytest.mark.integration),
        pytest.param("referred", marks=pytest.mark.integration),
        pytest.param("ray_serve", marks=[pytest.mark.integration, pytest.mark.timeout(240)]),
    ]
)
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    match request.param:
        case "memory":
            yield MemoryWorld()
        case "kuberay" | "referred":
            with ApiServer() as api:
                yield KubeRayWorld(api) if request.param == "kuberay" else ReferredWorld(api)
        case _:
            yield RayWorld(request.getfixturevalue("ray_settings"))


def ready(*workloads: Workload) -> Callable[[Seen], bool]:
    return lambda seen: (
        seen.keys() == {w.application for w in workloads}
        and all(seen[w.application].state is WorkloadState.READY for w in workloads)
    )


def serving(*workloads: Workload) -> Callable[[Seen], bool]:
    return lambda seen: all(seen[w.application].ready_replicas >= 1 for w in workloads)


async def test_a_life(world: World) -> None:
    """Added, left alone, joined by a healthy and a broken one, scaled, removed: and never disturbed."""
    stable, canary = workload("1.0.0"), workload("1.1.0")
    assert ready()({n: s for n, s in (await world.port.observe()).items() if s.state is not WorkloadState.STOPPING})

    await world.port.apply([stable])
    seen = await world.until(ready(stable))
    assert seen[stable.application] == WorkloadStatus(
        application=stable.application, state=WorkloadState.READY, ready_replicas=1
    )

    before = world.writes()
    await world.port.apply([stable])
    assert world.writes() == before, "reconciling an unchanged set writes nothing"

    await world.port.apply([stable, canary])
    seen = await world.port.observe()
    assert canary.application not in seen or seen[canary.application].state is WorkloadState.STARTING
    await world.until(ready(stable, canary), always=serving(stable))

    broken = world.failing("1.2.0")
    await world.port.apply([stable, canary, broken])
    seen = await world.until(
        lambda seen: broken.application in seen and seen[broken.application].state is WorkloadState.FAILED,
        always=serving(stable, canary),
    )
    assert "simulated failure to load" in seen[broken.application].message
    assert "\n" not in seen[broken.application].message

    wider = workload("1.1.0", replicas=2)
    await world.port.apply([stable, wider])
    seen = await world.until(
        lambda seen: ready(stable, wider)(seen) and seen[wider.application].ready_replicas == 2,
        always=serving(stable, canary),
    )
    assert seen[wider.application].restarts == 0, "capacity changes without a restart"

    await world.port.apply([stable])
    await world.until(ready(stable), always=serving(stable))
    assert (await world.port.observe())[stable.application].restarts == 0

    await world.port.apply([])
    await world.until(lambda seen: not seen)
    await world.port.close()


async def test_unreachable_concludes_nothing(world: World) -> None:
    port = world.unreachable()
    with pytest.raises(WorkloadUnavailable):
        await port.apply([workload("1.0.0")])
    with pytest.raises(WorkloadUnavailable):
        await port.observe()
    if isinstance(world, MemoryWorld):
        world.memory.make_available()


async def test_room_is_an_estimate_and_what_runs_has_it(world: World) -> None:
    """Nothing is refused for want of knowledge, and never what runs already."""
    stable = workload("1.0.0")
    assert await world.port.shortage(stable) == ""
    await world.port.apply([stable])
    await world.until(ready(stable))
    world.fill_up()
    assert await world.port.shortage(stable) == ""
    told = await world.port.shortage(workload("1.1.0"))
    assert bool(told) == world.knows_room
    assert "\n" not in told
    await world.port.apply([])
    await world.until(lambda seen: not seen)
