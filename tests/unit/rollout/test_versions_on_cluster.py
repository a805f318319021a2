"""Resolving a version for a cluster: nothing is fetched here, and what it is given must fit what it needs."""

from __future__ import annotations

import pytest

from registry.models import RegisterRequest
from registry.stores.memory import MemoryStore
from rollout.actions import Deployed
from rollout.errors import InvalidSpec
from rollout.specs import RolloutSpec, parse_spec
from rollout.versions import ClusterHome, Versions
from serving.specs import EngineKind
from tests.unit.registry.tiny import write_model

HOME = ClusterHome(namespace="tide", image="engine:9")


class NothingFetched(MemoryStore):
    def materialise(self, *_: object, **__: object):
        raise AssertionError("the controller's machine serves nothing")


@pytest.fixture
def versions(tmp_path) -> Versions:
    store = NothingFetched(tmp_path / "registry")
    source = write_model(tmp_path / "source")
    for version, parallel in (("1.0.0", "1"), ("2.0.0", "2")):
        arguments = {"tensor_parallel_size": parallel}
        store.register(RegisterRequest(model="chat", source=str(source), version=version, engine_args=arguments))
    store.register(RegisterRequest(model="chat", source="sim:?tokens=8", version="3.0.0"))
    return Versions(store, cluster=HOME)


def spec(version: str = "1.0.0", **engine: object) -> RolloutSpec:
    return parse_spec({"model": "chat", "version": version, "engine": engine, "drainDeadline": "5m"})


async def resolved(versions: Versions, asked: RolloutSpec, namespace: str = "") -> Deployed:
    return (await versions.resolve(asked, namespace))[1]


async def test_a_version_for_a_cluster(versions: Versions) -> None:
    found = await resolved(versions, spec(minReplicas=2), "team")
    assert found.revision.source == f"/models/{found.revision.manifest_sha256}"
    assert found.revision.engine_image == "engine:9", "an image that is not named is part of the revision all the same"
    assert (found.namespace, found.replicas, found.longest_stream_s) == ("team", 2, 300)
    assert found.endpoints == f"ray://{found.application}-head-svc.team.svc:8265"
    assert (await resolved(versions, spec())).namespace == "tide"


async def test_another_accelerator_or_image_is_another_revision(versions: Versions) -> None:
    gpu = {"resources": {"limits": {"nvidia.com/gpu": 1}}}
    on_l4 = gpu | {"nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-L4"}}
    found = [await resolved(versions, spec(**e)) for e in ({}, gpu, on_l4, {"image": "engine:8"})]
    assert len({f.digest for f in found}) == 4
    assert [f.revision.accelerator for f in found] == ["cpu", "nvidia.com/gpu", "NVIDIA-L4", "cpu"]


@pytest.mark.parametrize(
    ("version", "limits", "complaint"),
    [
        ("2.0.0", {"nvidia.com/gpu": 1}, "gives a replica 1 nvidia.com/gpu, and chat@2.0.0 needs 2"),
        ("1.0.0", {"nvidia.com/gpu": 2}, "needs 1"),
        ("1.0.0", {"nvidia.com/gpu": 1, "amd.com/gpu": 1}, "2 kinds of accelerators"),
    ],
)
async def test_what_is_given_must_fit(versions: Versions, version: str, limits: dict, complaint: str) -> None:
    with pytest.raises(InvalidSpec, match=complaint):
        await resolved(versions, spec(version, resources={"limits": limits}))


async def test_a_simulated_version_fetches_nothing_anywhere(versions: Versions) -> None:
    found = await resolved(versions, spec("3.0.0"))
    assert found.revision.engine is EngineKind.SIMULATED
    assert found.revision.source.startswith("sim:")


async def test_somebody_elses_workload_need_not_be_registered(versions: Versions) -> None:
    one = await resolved(versions, spec("7.0.0", workloadRef={"name": "chat-7", "port": 8080}), "team")
    assert one.revision.engine is EngineKind.EXTERNAL
    assert one.endpoints == "service://team/chat-7:8080"
    other = await resolved(versions, spec("7.0.0", workloadRef={"name": "chat-7b"}), "team")
    assert one.digest != other.digest
    assert one.digest == (await resolved(versions, spec("7.0.0", workloadRef={"name": "chat-7", "port": 8080}))).digest


async def test_a_local_platform_has_no_cluster_to_point_into(tmp_path) -> None:
    with pytest.raises(InvalidSpec, match="one machine"):
        await Versions(MemoryStore(tmp_path)).resolve(spec(workloadRef={"name": "x"}))
