"""Engines on a cluster when things go wrong: what stays, what is said, and that it heals by itself.

The official client against the stand-in over HTTP; KubeRay, kubelets and scheduler are simulated in virtual time.
"""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Sequence

import httpx
import pytest

from rollout.engine_specs import EngineSpec
from rollout.errors import WorkloadRejected, WorkloadUnavailable
from rollout.workloads.base import Owner, Workload, WorkloadState, WorkloadStatus
from rollout.workloads.kuberay import KubeRayWorkloads
from rollout.workloads.ray_dashboards import RayDashboards
from rollout.workloads.referred import ReferredWorkloads
from serving.specs import EngineKind, RevisionSpec, object_name
from tests.kubernetes.cluster import Write
from tests.kubernetes.definitions import RAY_SERVICES
from tests.kubernetes.faults import Trouble
from tests.kubernetes.kuberay import KubeRay, a_node
from tests.kubernetes.rig import ACCOUNT, prepared
from tests.kubernetes.rig import NAMESPACE as RELEASE_NAMESPACE
from tests.kubernetes.server import ApiServer
from tests.kubernetes.tidegate import CLUSTER, cluster_api, kuberay_workloads
from tests.unit.helm.charts import objects

pytestmark = pytest.mark.integration

NAMESPACE = "default"
GPU = {"resources": {"limits": {"nvidia.com/gpu": 1}}}


def workload(
    version: str, replicas: int = 1, image: str = "engine:1", namespace: str = NAMESPACE, **engine
) -> Workload:
    revision = RevisionSpec(
        model="chat", version=version, manifest_sha256="0" * 64, engine=EngineKind.VLLM, source="/models/x",
        engine_image=image,
    )  # fmt: skip
    spec = EngineSpec.model_validate(GPU | {"minReplicas": replicas} | engine)
    return Workload(revision=revision, replicas=replicas, engine=spec, namespace=namespace)


class Rig:
    """One release's adapter, its cluster, and time."""

    def __init__(self, api: ApiServer) -> None:
        self.api = api
        for number in range(2):
            api.cluster.create("nodes", None, a_node(f"node-{number}", gpus=4))
        self.kuberay = KubeRay(api.cluster)
        self.port: KubeRayWorkloads = kuberay_workloads(api, NAMESPACE)

    async def settle(self, desired: Sequence[Workload], ticks: int = 8) -> dict[str, WorkloadStatus]:
        """Apply and let time pass, as the actuator does; what fails is tried again."""
        for _ in range(ticks):
            await self.step(desired)
        return dict(await self.port.observe())

    async def step(self, desired: Sequence[Workload]) -> None:
        with contextlib.suppress(WorkloadUnavailable, WorkloadRejected):
            await self.port.apply(desired)
        self.kuberay.tick()

    def node(self, name: str, gpus: int) -> None:
        kind = self.api.cluster.kind("nodes")
        self.api.cluster.update(kind, None, name, a_node(name, gpus=gpus), Write(subresource="status"))

    def cluster_of(self, wanted: Workload) -> str:
        return str((self.service(wanted) or {})["status"]["activeServiceStatus"]["rayClusterName"])

    def service(self, wanted: Workload) -> dict | None:
        return self.api.cluster.find("rayservices", wanted.namespace, object_name(wanted.application))


@pytest.fixture
def rig(api: ApiServer) -> Rig:
    return Rig(api)


async def test_an_unchanged_set_makes_no_write(rig: Rig) -> None:
    desired = [workload("1.0.0"), workload("1.1.0", replicas=2, maxReplicas=3)]
    await rig.settle(desired)
    before = len(rig.api.writes())
    for _ in range(3):
        await rig.port.apply(desired)
        await rig.port.observe()
    assert len(rig.api.writes()) == before


async def test_what_somebody_changed_is_put_right(rig: Rig) -> None:
    wanted = workload("1.0.0")
    await rig.settle([wanted])
    service = rig.service(wanted)
    assert service is not None
    service["spec"]["serveConfigV2"] = "{}"
    rig.api.cluster.update(
        rig.api.cluster.kind("rayservices"), NAMESPACE, service["metadata"]["name"], service, Write()
    )
    await rig.port.apply([wanted])
    mended = rig.service(wanted)
    assert mended is not None
    assert wanted.application in mended["spec"]["serveConfigV2"]


@pytest.mark.parametrize("trouble", [t for t in Trouble if t is not Trouble.GONE])
async def test_a_write_that_meets_trouble_is_made_up_for(rig: Rig, trouble: Trouble) -> None:
    """Also where it was done and only the answer was lost: the same is applied again, and nothing twice."""
    wanted = workload("1.0.0")
    rig.api.faults.plan(trouble, lambda asked: asked.verb == "patch" and asked.resource == "rayservices", times=2)
    with pytest.raises(WorkloadUnavailable):
        await rig.port.apply([wanted])
    seen = await rig.settle([wanted])
    assert seen[wanted.application].state is WorkloadState.READY
    assert len(rig.api.cluster.list("rayservices")) == 1


async def test_a_listing_that_expires_is_begun_anew(rig: Rig) -> None:
    desired = [workload("1.0.0")]
    await rig.settle(desired)
    rig.api.faults.plan(Trouble.GONE, lambda asked: asked.verb == "list" and asked.resource == "pods")
    assert (await rig.port.observe())[desired[0].application].state is WorkloadState.READY


async def test_nothing_is_concluded_while_the_api_is_away(rig: Rig) -> None:
    stable = workload("1.0.0")
    await rig.settle([stable])
    with rig.api.away():
        with pytest.raises(WorkloadUnavailable):
            await rig.port.observe()
        with pytest.raises(WorkloadUnavailable):
            await rig.port.apply([])
    assert rig.service(stable) is not None, "stable runs on"
    assert (await rig.settle([stable], ticks=1))[stable.application].state is WorkloadState.READY


async def test_whatever_happens_it_comes_out_right(rig: Rig) -> None:
    """A quarter of all requests meets some trouble, while revisions come and go."""
    chance = random.Random(7)
    rig.api.faults.chance = 0.25
    known = [workload(f"1.{minor}.0", replicas=1 + minor % 2) for minor in range(4)]
    desired: list[Workload] = []
    for _ in range(25):
        desired = chance.sample(known, chance.randint(0, 3))
        await rig.step(desired)
    rig.api.faults.clear()
    seen = await rig.settle(desired, ticks=12)
    assert seen.keys() == {w.application for w in desired}
    assert all(s.state is WorkloadState.READY for s in seen.values()), seen
    assert {b["metadata"]["name"] for b in rig.api.cluster.list("poddisruptionbudgets")} == {
        object_name(w.application) for w in desired
    }


async def test_one_that_is_refused_holds_up_no_other(rig: Rig) -> None:
    good, elsewhere = workload("1.0.0"), workload("1.1.0", namespace="not-ours")
    with pytest.raises(WorkloadRejected, match="watch_namespaces"):
        await rig.port.apply([elsewhere, good])
    rig.kuberay.tick(6)
    seen = await rig.port.observe()
    assert seen[good.application].state is WorkloadState.READY
    assert seen[elsewhere.application].state is WorkloadState.MISSING
    assert "not-ours" in seen[elsewhere.application].message


async def test_what_kuberay_refuses_is_told_in_its_words(rig: Rig) -> None:
    """Its validation runs after the API server's and leaves only a condition; it does not look again by itself."""
    rig.port = kuberay_workloads(rig.api, NAMESPACE, cluster=CLUSTER.model_copy(update={"ray_version": "2.40.0"}))
    wanted = workload("1.0.0")
    (told,) = (await rig.settle([wanted], ticks=3)).values()
    assert told.state is WorkloadState.FAILED
    assert told.message == "KubeRay refuses it: authOptions.mode is 'token' but minimum Ray version is 2.52.0"


async def test_two_releases_never_touch_each_other(rig: Rig, api: ApiServer) -> None:
    other = KubeRayWorkloads(cluster_api(api), CLUSTER.model_copy(update={"release": "other"}), [NAMESPACE])
    mine, theirs = workload("1.0.0"), workload("2.0.0")
    await rig.settle([mine])
    await other.apply([theirs])
    rig.kuberay.tick(6)
    assert set(await rig.port.observe()) == {mine.application}
    with pytest.raises(WorkloadRejected, match="belongs to tide"):
        await other.apply([theirs, mine])
    await other.apply([])
    rig.kuberay.tick(6)
    assert (await rig.port.observe())[mine.application].state is WorkloadState.READY


async def test_an_owner_that_was_made_anew_is_the_owner(api: ApiServer) -> None:
    api.cluster.create("customresourcedefinitions", None, RAY_SERVICES)
    owner = Owner(
        api_version="tidegate.dev/v1alpha1", kind="ModelDeployment", namespace=NAMESPACE, name="chat", uid="a"
    )
    now = [owner]
    port = kuberay_workloads(api, NAMESPACE, owner_of=lambda _: now[0])
    wanted = workload("1.0.0")
    await port.apply([wanted])
    now[0] = owner.model_copy(update={"uid": "b"})
    await port.apply([wanted])
    service = api.cluster.get("rayservices", NAMESPACE, object_name(wanted.application))
    assert [o["uid"] for o in service["metadata"]["ownerReferences"]] == ["b"]


class TestWhatIsSaid:
    """A condition says what is wrong and the way out; when it is put right, it goes on by itself."""

    async def test_an_image_that_cannot_be_pulled(self, rig: Rig) -> None:
        stable, canary = workload("1.0.0"), workload("1.1.0", image="engine:typo")
        rig.kuberay.unpullable.add("engine:typo")
        seen = await rig.settle([stable, canary])
        assert seen[canary.application].state is WorkloadState.STARTING
        assert "engine:typo can't be pulled" in seen[canary.application].message
        assert "correct engine.image" in seen[canary.application].message
        assert seen[stable.application].state is WorkloadState.READY
        rig.kuberay.unpullable.clear()
        assert (await rig.settle([stable, canary]))[canary.application].state is WorkloadState.READY

    async def test_a_secret_that_is_missing(self, rig: Rig) -> None:
        rig.kuberay.checks_secrets = True
        wanted = workload("1.0.0", weights={"credentialsSecret": "buckets"})
        seen = await rig.settle([wanted])
        assert 'secret "buckets" not found' in seen[wanted.application].message
        assert "make what is missing" in seen[wanted.application].message
        rig.api.cluster.create("secrets", NAMESPACE, {"metadata": {"name": "buckets"}})
        assert (await rig.settle([wanted]))[wanted.application].state is WorkloadState.READY

    async def test_a_gpu_that_nobody_has(self, rig: Rig) -> None:
        stable, canary = workload("1.0.0", replicas=8), workload("1.1.0")
        assert (await rig.settle([stable]))[stable.application].state is WorkloadState.READY
        told = await rig.port.shortage(canary)
        assert "nvidia.com/gpu is scarce" in told
        assert "capacity: replace" in told
        seen = await rig.settle([stable, canary])
        assert seen[canary.application].state is WorkloadState.STARTING
        assert "no node takes a pod" in seen[canary.application].message
        assert seen[stable.application].state is WorkloadState.READY
        rig.node("node-0", gpus=5)
        assert await rig.port.shortage(workload("1.2.0")) == ""
        assert (await rig.settle([stable, canary]))[canary.application].state is WorkloadState.READY

    async def test_an_engine_that_cannot_load(self, rig: Rig) -> None:
        wanted = workload("1.0.0")
        rig.kuberay.failing[wanted.application] = "no such dtype [permanent]"
        seen = await rig.settle([wanted])
        assert seen[wanted.application].state is WorkloadState.FAILED
        assert seen[wanted.application].message == "no such dtype"

    async def test_an_operator_that_is_not_there(self, rig: Rig) -> None:
        rig.kuberay.away = True
        wanted = workload("1.0.0")
        seen = await rig.settle([wanted])
        assert "is its operator running" in seen[wanted.application].message


async def test_a_lost_node_costs_what_ran_there_and_no_more(rig: Rig) -> None:
    stable = workload("1.0.0", replicas=6)
    await rig.settle([stable])
    rig.kuberay.lose_node("node-1")
    seen = await rig.port.observe()
    assert seen[stable.application].state is WorkloadState.DEGRADED
    assert seen[stable.application].ready_replicas == 4
    seen = await rig.settle([stable])
    assert "no node takes a pod" in seen[stable.application].message
    rig.api.cluster.create("nodes", None, a_node("node-2", gpus=4))
    assert (await rig.settle([stable]))[stable.application].state is WorkloadState.READY


async def test_more_and_fewer_replicas_in_the_same_cluster(rig: Rig) -> None:
    """No engine that answers goes, and what runs is not made anew."""
    sizes = [2, 4, 1]
    await rig.settle([workload("1.0.0", replicas=2)])
    cluster = rig.cluster_of(workload("1.0.0"))
    for before, size in itertools.pairwise(sizes):
        wanted = workload("1.0.0", replicas=size)
        for _ in range(9):
            await rig.step([wanted])
            seen = (await rig.port.observe())[wanted.application]
            assert seen.ready_replicas >= min(before, size)
        assert (seen.state, seen.ready_replicas) == (WorkloadState.READY, size)
        assert len(rig.api.cluster.list("pods", labels="ray.io/node-type=worker")) == size
    assert rig.cluster_of(workload("1.0.0")) == cluster


async def test_a_cluster_that_gets_an_autoscaler_costs_no_answer(rig: Rig) -> None:
    """KubeRay makes another cluster beside the first, which takes over when it answers."""
    before, after = workload("1.0.0"), workload("1.0.0", maxReplicas=2)
    assert before.application == after.application
    await rig.settle([before])
    cluster = rig.cluster_of(before)
    for _ in range(8):
        await rig.step([after])
        assert (await rig.port.observe())[after.application].ready_replicas == 1, "never both, never none"
    assert rig.cluster_of(after) != cluster
    assert len(rig.api.cluster.list("rayclusters")) == 1


async def test_another_setting_restarts_nothing_that_runs(rig: Rig, api: ApiServer) -> None:
    old, new = workload("1.0.0"), workload("1.1.0")
    await rig.settle([old])
    cluster = rig.cluster_of(old)
    rig.port = kuberay_workloads(
        api, NAMESPACE, cluster=CLUSTER.model_copy(update={"redis_address": "redis:6379", "head_memory": "8Gi"})
    )
    seen = await rig.settle([old, new])
    assert rig.cluster_of(old) == cluster
    assert seen[new.application].state is WorkloadState.READY
    config = (rig.service(new) or {})["spec"]["rayClusterConfig"]
    assert config["gcsFaultToleranceOptions"] == {"redisAddress": "redis:6379"}


async def test_replicas_are_given_one_by_one(rig: Rig) -> None:
    """With capacity: replace the number is in Serve's configuration alone, and the cluster stays the same one."""
    engine = {"minReplicas": 3, "capacity": "replace"}
    whole = workload("1.0.0", replicas=3, **engine)
    await rig.settle([whole])
    cluster = rig.cluster_of(whole)
    smaller = whole.model_copy(update={"replicas": 2})
    seen = await rig.settle([smaller])
    assert seen[whole.application].state is WorkloadState.READY
    assert seen[whole.application].ready_replicas == 2
    assert rig.cluster_of(whole) == cluster


async def test_a_right_that_was_revoked(api: ApiServer) -> None:
    """Nothing is concluded from a 403, and the message names what is missing."""
    api.cluster.create("customresourcedefinitions", None, RAY_SERVICES)
    port = KubeRayWorkloads(cluster_api(api, token="system:serviceaccount:default:nobody"), CLUSTER, [NAMESPACE])
    api.grant([])
    with pytest.raises(WorkloadUnavailable, match="not allowed"):
        await port.observe()


async def test_a_namespace_that_may_not_be_read_holds_up_no_other_and_heals(
    api: ApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    """As after a served namespace was deleted, and its Role with it: elsewhere engines are started and stopped."""
    caplog.set_level("INFO", "rollout.workloads.kuberay")
    kuberay = KubeRay(api.cluster)
    api.cluster.create("nodes", None, a_node("node-0", gpus=4))
    prepared(api, objects({"watchNamespaces": ["team"]}))
    api.cluster.create("namespaces", None, {"metadata": {"name": "team"}})
    client = cluster_api(api, token=ACCOUNT)
    port = KubeRayWorkloads(client, CLUSTER.model_copy(update={"release": "r"}), ["team", RELEASE_NAMESPACE])
    theirs = workload("9.0.0", namespace="team")
    mine = [workload(f"1.{minor}.0", namespace=RELEASE_NAMESPACE) for minor in range(2)]

    async def settled(wanted: list[Workload]) -> dict[str, WorkloadState]:
        for _ in range(8):
            await port.apply(wanted)
            kuberay.tick()
            await port.observe()
        return {a: s.state for a, s in (await port.observe()).items()}

    up, down = WorkloadState.READY, WorkloadState.UNKNOWN
    assert await settled([theirs, mine[0]]) == {theirs.application: up, mine[0].application: up}
    with_role, api.access.grants = api.access.grants, [g for g in api.access.grants if g.namespace != "team"]
    assert await settled([theirs, mine[1]]) == {theirs.application: down, mine[1].application: up}
    told = (await port.observe())[theirs.application].message
    assert "namespace team can't be read" in told
    assert "take it out of watchNamespaces" in told
    fresh = KubeRayWorkloads(client, CLUSTER, ["team", RELEASE_NAMESPACE])
    with pytest.raises(WorkloadUnavailable, match="not known yet what is wanted there"):
        await fresh.observe()
    assert caplog.text.count("namespace team can't be read") == 2, "once for each process"
    kept = api.cluster.get("rayservices", "team", object_name(theirs.application))
    assert "deletionTimestamp" not in kept["metadata"], "nothing is concluded of what is not seen"

    api.access.grants = with_role
    assert await settled([mine[1]]) == {mine[1].application: up}, "what is not wanted there any more goes now"
    assert caplog.text.count("namespace team can be read again") == 1


async def test_a_namespace_that_is_gone_holds_up_no_other_where_rights_are_of_the_whole_cluster(rig: Rig) -> None:
    """Nothing is forbidden then; what would be made there finds no namespace."""
    rig.port = kuberay_workloads(rig.api, NAMESPACE, "gone")
    good, theirs = workload("1.0.0"), workload("1.1.0", namespace="gone")
    with pytest.raises(WorkloadRejected, match='namespaces "gone" not found'):
        await rig.port.apply([theirs, good])
    seen = await rig.settle([theirs, good])
    assert seen[good.application].state is WorkloadState.READY
    assert seen[theirs.application].state is WorkloadState.MISSING


async def test_somebody_elses_workload_that_may_not_be_read_holds_up_no_other(api: ApiServer) -> None:
    prepared(api, objects({"engine": {"workloadRef": True}}))
    port = ReferredWorkloads(cluster_api(api, token=ACCOUNT))
    spec = EngineSpec.model_validate({"workloadRef": {"kind": "Deployment", "name": "chat"}})
    here, there = (
        workload(version, namespace=namespace).model_copy(update={"engine": spec})
        for version, namespace in (("1.0.0", RELEASE_NAMESPACE), ("1.1.0", "deleted"))
    )
    await port.apply([here, there])
    assert {a: s.state for a, s in (await port.observe()).items()} == {
        here.application: WorkloadState.MISSING, there.application: WorkloadState.UNKNOWN,
    }  # fmt: skip


async def test_replicas_that_died_are_counted_by_the_dashboard(rig: Rig, api: ApiServer) -> None:
    wanted = workload("1.0.0")
    await rig.settle([wanted])
    asked: list[httpx.Request] = []

    def dashboard(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        dead = [{"replica_id": n} for n in ("x", "y")]
        engine = {"replicas": [{"state": "RUNNING"}], "target_num_replicas": 1, "recent_dead_replicas": dead}
        return httpx.Response(
            200, json={"applications": {wanted.application: {"status": "RUNNING", "deployments": {"engine": engine}}}}
        )

    dashboards = RayDashboards(lambda: "token", transport=httpx.MockTransport(dashboard))
    port = kuberay_workloads(api, NAMESPACE, dashboards=dashboards)
    seen = (await port.observe())[wanted.application]
    assert (seen.state, seen.restarts) == (WorkloadState.READY, 2)
    assert asked[0].url.host == f"{object_name(wanted.application)}-head-svc.{NAMESPACE}.svc"
    assert asked[0].headers["authorization"] == "Bearer token"
    gone = RayDashboards(lambda: "", transport=httpx.MockTransport(lambda _: httpx.Response(503)))
    port = kuberay_workloads(api, NAMESPACE, dashboards=gone)
    assert (await port.observe())[wanted.application].state is WorkloadState.READY, "a lost head stops no engine"


async def test_a_life_with_the_chart_s_rights(api: ApiServer) -> None:
    """Made, scaled both ways, moved and removed, the room asked for; and nothing asked that the chart does not give."""
    kuberay = KubeRay(api.cluster)
    api.cluster.create("nodes", None, a_node("node-0", gpus=4))
    prepared(api, objects({"engine": {"checkRoom": True, "workloadRef": True}}))
    cluster = CLUSTER.model_copy(update={"release": "r"})
    port = KubeRayWorkloads(cluster_api(api, token=ACCOUNT), cluster, [RELEASE_NAMESPACE])

    def sized(replicas: int) -> Workload:
        return workload("1.0.0", replicas=replicas, namespace=RELEASE_NAMESPACE)

    assert await port.shortage(sized(2)) == ""
    for wanted in ([sized(1)], [sized(2)], [sized(1)], []):
        for _ in range(8):
            await port.apply(wanted)
            kuberay.tick()
            await port.observe()
        assert {s.ready_replicas for s in (await port.observe()).values()} == {w.replicas for w in wanted}
    referred = ReferredWorkloads(cluster_api(api, token=ACCOUNT))
    for kind in ("Deployment", "InferenceService"):
        spec = EngineSpec.model_validate({"workloadRef": {"kind": kind, "name": "chat"}})
        await referred.apply([sized(1).model_copy(update={"engine": spec})])
        await referred.observe()
    assert [(a, code) for a, code in api.asked if code == 403] == []
