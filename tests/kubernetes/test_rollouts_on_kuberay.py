"""Whole rollouts over RayServices: the controller, the KubeRay adapter on the wire, KubeRay simulated, virtual time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest

from rollout.engine_specs import EngineSpec
from rollout.errors import InsufficientCapacity
from rollout.status import Phase, Stage
from rollout.workloads.base import Workload, WorkloadStatus
from serving.outcomes import Signal
from tests.kubernetes.kuberay import KubeRay, a_node
from tests.kubernetes.server import ApiServer
from tests.kubernetes.tidegate import kuberay_workloads
from tests.simulation.world import STRATEGIES, SimulatedWorkloads, World

pytestmark = pytest.mark.integration

NAMESPACE = "default"
REPLACE = {"minReplicas": 3, "capacity": "replace"}
GPU, TWO = {"limits": {"nvidia.com/gpu": 1}}, {"limits": {"nvidia.com/gpu": 2}}


class OnKubeRay(SimulatedWorkloads):
    """The adapter in the place of simulated engines; each look lets KubeRay and the kubelets do a step."""

    def __init__(self, world: World, api: ApiServer) -> None:
        super().__init__(world)
        self.kuberay = KubeRay(api.cluster)
        self.port = kuberay_workloads(api, NAMESPACE)
        self.engines: dict[str, dict[str, Any]] = {}
        """What the specs of some versions say."""
        self.seen: Mapping[str, WorkloadStatus] = {}

    def placed(self, workload: Workload) -> Workload:
        said = self.engines.get(workload.revision.version, {})
        engine = EngineSpec.model_validate({"resources": GPU, "minReplicas": workload.replicas} | said)
        return workload.model_copy(update={"namespace": NAMESPACE, "engine": engine})

    async def apply(self, desired: Sequence[Workload]) -> None:
        await self.port.apply([self.placed(w) for w in desired])
        await super().apply(desired)

    async def shortage(self, wanted: Workload) -> str:
        return await self.port.shortage(self.placed(wanted))

    async def observe(self) -> Mapping[str, WorkloadStatus]:
        self.kuberay.tick()
        self.seen = await self.port.observe()
        return self.seen

    def ready(self, application: str) -> bool:
        found = self.seen.get(application)
        if found is not None and found.ready_replicas:
            self.ever_ready.add(application)
        return found is not None and found.ready_replicas > 0


class KubeRayWorld(World):
    def __init__(self, api: ApiServer) -> None:
        self.api = api
        super().__init__(seed=3)
        self.workloads: OnKubeRay = OnKubeRay(self, api)
        self.start_controller()

    def services(self) -> set[str]:
        return {s["metadata"]["labels"]["tidegate.dev/version"] for s in self.api.cluster.list("rayservices")}

    def reached(self, version: str) -> bool:
        stable = self.status.stable
        return stable is not None and stable.version == version and self.status.phase is Phase.HEALTHY


def is_ready(pod: Mapping[str, Any]) -> bool:
    conditions = (pod.get("status") or {}).get("conditions", ())
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


@pytest.fixture
def world(api: ApiServer) -> Iterator[KubeRayWorld]:
    api.cluster.create("nodes", None, a_node("node-0", gpus=2))
    made = KubeRayWorld(api)
    yield made
    made.close()


@pytest.mark.parametrize("strategy", ["canary", "blue-green", "shadow"])
def test_a_healthy_version_takes_over_and_the_old_one_goes(world: KubeRayWorld, strategy: str) -> None:
    world.first()
    world.deploy("1.0.1", strategy=STRATEGIES[strategy], rollbackWindow="2s")
    world.until(lambda: world.reached("1.0.1"))
    world.until(lambda: world.services() == {"1.0.1"})
    assert all(s.version is not None for s in world.served), "nobody was without an answer"


def test_a_bad_version_is_taken_back_and_gives_back_what_it_took(world: KubeRayWorld) -> None:
    world.first()
    world.faults["1.0.1"] = {Signal.ERROR: 0.5}
    world.deploy("1.0.1")
    world.until(lambda: world.status.phase is Phase.DEGRADED)
    world.until(lambda: world.services() == {"1.0.0"})
    assert len(world.api.cluster.list("pods", labels="ray.io/node-type=worker")) == 1


def test_without_room_nothing_is_started(world: KubeRayWorld) -> None:
    world.first()
    before = len(world.log.read())
    world.workloads.engines["1.0.1"] = {"resources": TWO}
    with pytest.raises(InsufficientCapacity, match=r"nvidia.com/gpu is scarce.*capacity: replace"):
        world.deploy("1.0.1")
    assert len(world.log.read()) == before, "nothing is in the log"
    assert world.services() == {"1.0.0"}


def test_what_does_not_come_up_gives_back_what_it_took(world: KubeRayWorld) -> None:
    """Where room is not checked, the progress deadline ends the wait, and says what was waited for."""
    world.first()
    world.workloads.engines["1.0.1"] = {"checkRoom": False, "resources": TWO}
    world.deploy("1.0.1", progressDeadlineSeconds=5)
    world.until(lambda: "1.0.1" in world.services())
    world.until(lambda: world.status.rollout is not None and world.status.rollout.stage is Stage.WITHDRAWN)
    assert "progressDeadlineSeconds 5" in world.status.reason
    assert "no node takes a pod" in world.status.reason
    world.until(lambda: world.services() == {"1.0.0"})
    assert len(world.api.cluster.list("pods")) == 2, "a head and an engine"


class TestWithoutSpareGpus:
    """`capacity: replace`: as many GPUs as stable has replicas."""

    @pytest.fixture
    def full(self, api: ApiServer) -> Iterator[KubeRayWorld]:
        api.cluster.create("nodes", None, a_node("node-0", gpus=3))
        made = KubeRayWorld(api)
        made.workloads.engines = dict.fromkeys(("1.0.0", "1.0.1"), REPLACE)
        made.replicas = 3
        made.first()
        made.until(lambda: self.engines(made) == {"1.0.0": 3})
        yield made
        made.close()

    def engines(self, world: KubeRayWorld) -> dict[str, int]:
        """Pods with engines that are ready, by version."""
        pods = world.api.cluster.list("pods", labels="ray.io/node-type=worker")
        ready = [p["metadata"]["labels"]["tidegate.dev/version"] for p in pods if is_ready(p)]
        return {version: ready.count(version) for version in sorted(set(ready))}

    def deploy(self, world: KubeRayWorld, **spec: Any) -> None:
        world.deploy("1.0.1", engine=REPLACE, rollbackWindow="2s", **spec)

    def test_stable_gives_its_replicas_one_by_one(self, full: KubeRayWorld) -> None:
        self.deploy(full)
        seen = [self.engines(full)]

        def over() -> bool:
            seen.append(self.engines(full))
            return full.reached("1.0.1") and seen[-1] == {"1.0.1": 3}

        full.until(over)
        assert {"1.0.0": 2} in seen, "stable gives first: there is no room for the new one before"
        assert {"1.0.0": 2, "1.0.1": 1} in seen
        assert all(sum(counts.values()) <= 3 for counts in seen)
        assert all(s.version is not None for s in full.served), "nobody was without an answer"

    def test_what_never_comes_up_is_withdrawn_and_stable_gets_its_replica_back(self, full: KubeRayWorld) -> None:
        full.workloads.kuberay.unpullable.add("1.0.1")
        self.deploy(full, progressDeadlineSeconds=5)
        full.until(lambda: self.engines(full) == {"1.0.0": 2})
        full.until(lambda: full.status.rollout is not None and full.status.rollout.stage is Stage.WITHDRAWN)
        assert "can't be pulled" in full.status.reason
        full.until(lambda: self.engines(full) == {"1.0.0": 3})
        assert full.services() == {"1.0.0"}

    def test_a_further_replica_that_never_comes_up_gives_all_back(self, full: KubeRayWorld) -> None:
        """The first one serves; what stable gave for the second is not left lying idle for ever."""
        self.deploy(full, progressDeadlineSeconds=8)
        full.until(lambda: self.engines(full) == {"1.0.0": 2, "1.0.1": 1})
        full.workloads.kuberay.unpullable.add("1.0.1")
        full.until(lambda: self.engines(full) == {"1.0.0": 1, "1.0.1": 1})
        full.until(lambda: full.status.rollout is not None and full.status.rollout.stage is Stage.WITHDRAWN)
        assert "has 1 of the 2 replicas that stable made room for" in full.status.reason
        assert "can't be pulled" in full.status.reason
        assert not full.status.quarantine
        full.until(lambda: self.engines(full) == {"1.0.0": 3})

    def test_what_would_not_fit_where_stable_gives_way_is_not_started(self, full: KubeRayWorld) -> None:
        full.workloads.engines["1.0.1"] = {**REPLACE, "resources": TWO}
        with pytest.raises(InsufficientCapacity, match=r"no room where stable gives one replica .*gpu is scarce"):
            self.deploy(full)
        full.api.cluster.create("nodes", None, a_node("node-1", gpus=2))
        with pytest.raises(InsufficientCapacity, match=r"room for 3 replicas, and where stable gives all .* for 2:"):
            self.deploy(full)
        full.api.cluster.create("nodes", None, a_node("node-2", gpus=2))
        self.deploy(full)
        full.until(lambda: full.reached("1.0.1"))


def test_an_api_server_away_holds_and_costs_nobody_an_answer(world: KubeRayWorld) -> None:
    world.first()
    world.deploy("1.0.1")
    world.until(lambda: world.status.rollout is not None and world.status.rollout.stage is Stage.STEPPING)
    where = world.status.rollout.weight if world.status.rollout is not None else 0
    with world.api.away():
        before = len(world.served)
        for _ in range(10):
            world.step(requests=5)
        assert world.status.rollout is not None
        assert world.status.rollout.weight == where, "what can't be seen is no reason to go on"
        assert all(s.version is not None for s in world.served[before:])
    world.until(lambda: world.reached("1.0.1"))
