"""Room on nodes, counted by hand; and what is said of pods that do not come up."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.engine_specs import EngineSpec
from rollout.workloads.pod_troubles import is_ready, trouble
from rollout.workloads.room import fits_given, quantity, requests_of_pod, room_for

Object = dict[str, Any]


def node(name: str = "a", **changes: Any) -> Object:
    given_ = {"cpu": "8", "memory": "32Gi", "pods": "10", "nvidia.com/gpu": "4"} | changes.pop("allocatable", {})
    ready = changes.pop("ready", "True")
    return {
        "metadata": {"name": name, "labels": changes.pop("labels", {})},
        "spec": changes,
        "status": {"allocatable": given_, "conditions": [{"type": "Ready", "status": ready}]},
    }


def pod(where: str | None = None, phase: str = "Running", **asked: str) -> Object:
    spec: Object = {"containers": [{"name": "c", "resources": {"requests": asked}}]}
    return {"metadata": {}, "spec": spec | ({"nodeName": where} if where else {}), "status": {"phase": phase}}


WANTED = pod(cpu="2", memory="8Gi", **{"nvidia.com/gpu": "1"})
TAINT = {"key": "gpu", "effect": "NoSchedule"}


@pytest.mark.parametrize(
    ("nodes", "pods", "engine", "fits", "usable", "scarce"),
    [
        ([node()], [], {}, 4, 1, "nvidia.com/gpu"),
        ([node(), node("b")], [], {}, 8, 2, "nvidia.com/gpu"),
        ([node()], [pod("a", cpu="5")], {}, 1, 1, "cpu"),
        ([node()], [pod("a", memory="26Gi")], {}, 0, 1, "memory"),
        ([node()], [pod("a", phase="Succeeded", cpu="8"), pod(None, cpu="8")], {}, 4, 1, "nvidia.com/gpu"),
        ([node(allocatable={"pods": "1"})], [pod("a")], {}, 0, 1, "pods"),
        ([node(allocatable={"nvidia.com/gpu": "0"})], [], {}, 0, 1, "nvidia.com/gpu"),
        ([node(unschedulable=True), node("b", ready="False")], [], {}, 0, 0, ""),
        ([node(labels={"pool": "cpu"})], [], {"nodeSelector": {"pool": "gpu"}}, 0, 0, ""),
        ([node(labels={"pool": "gpu"})], [], {"nodeSelector": {"pool": "gpu"}}, 4, 1, "nvidia.com/gpu"),
        ([node(taints=[TAINT])], [], {}, 0, 0, ""),
        ([node(taints=[TAINT])], [], {"tolerations": [{"key": "gpu", "operator": "Exists"}]}, 4, 1, "nvidia.com/gpu"),
        ([node(taints=[TAINT])], [], {"tolerations": [{"operator": "Exists"}]}, 4, 1, "nvidia.com/gpu"),
        ([node(taints=[TAINT])], [], {"tolerations": [{"key": "gpu", "value": "no"}]}, 0, 0, ""),
        ([node(taints=[TAINT | {"effect": "PreferNoSchedule"}])], [], {}, 4, 1, "nvidia.com/gpu"),
    ],
)
def test_room(nodes, pods, engine, fits, usable, scarce) -> None:
    found = room_for(WANTED, EngineSpec.model_validate(engine), nodes, pods)
    assert (found.fits, found.nodes, found.scarce) == (fits, usable, scarce)


@pytest.mark.parametrize(
    ("gpus", "replicas", "first", "every"),
    [
        pytest.param(3, 3, 1, 3, id="the first finds what one gives"),
        pytest.param(1, 1, 0, 1, id="the only one keeps its place until the promotion"),
        pytest.param(2, 1, 1, 2, id="beside the only one"),
    ],
)
def test_stable_gives_all_but_one_before_the_promotion(gpus: int, replicas: int, first: int, every: int) -> None:
    """`capacity.wanted_replicas` leaves stable one: what that holds is not free for a canary's first replica."""
    nodes = [node(allocatable={"nvidia.com/gpu": str(gpus)})]
    stable = [pod("a", **{"nvidia.com/gpu": "1"}) for _ in range(replicas)]
    found = fits_given(WANTED, EngineSpec(), nodes, stable, stable)
    assert tuple(room.fits for room in found) == (first, every)


@given(st.integers(0, 12), st.integers(1, 12), st.integers(1, 4))
def test_one_more_replica_fits_exactly_when_there_is_room_for_it(taken: int, gpus: int, each: int) -> None:
    """Placing replicas one by one comes to the same number."""
    nodes = [node(allocatable={"nvidia.com/gpu": str(gpus), "cpu": "1000", "memory": "1000Gi", "pods": "1000"})]
    pods = [pod("a", **{"nvidia.com/gpu": "1"}) for _ in range(min(taken, gpus))]
    wanted = pod(**{"nvidia.com/gpu": str(each)})
    told = room_for(wanted, EngineSpec(), nodes, pods).fits
    placed = 0
    while room_for(wanted, EngineSpec(), nodes, pods).fits:
        pods.append(pod("a", **{"nvidia.com/gpu": str(each)}))
        placed += 1
    assert placed == told


@pytest.mark.parametrize(
    ("text", "value"),
    [("0", 0), ("1500m", Fraction(3, 2)), ("1Ki", 1024), ("2e3", 2000), ("1.5Gi", 3 * 2**29), (3, 3), ("lots", 0)],
)
def test_quantities(text: object, value: object) -> None:
    assert quantity(text) == value


def test_a_pod_counts_its_largest_init_container_and_limits_where_nothing_is_requested() -> None:
    spec = {
        "containers": [{"resources": {"limits": {"cpu": "1"}}}, {"resources": {"requests": {"cpu": "1"}}}],
        "initContainers": [
            {"resources": {"requests": {"cpu": "5"}}},
            {"restartPolicy": "Always", "resources": {"requests": {"cpu": "1"}}},
        ],
    }
    assert requests_of_pod({"spec": spec})["cpu"] == 5
    spec["initContainers"].pop(0)
    assert requests_of_pod({"spec": spec})["cpu"] == 3


def in_trouble(**status: Any) -> Object:
    return {"metadata": {}, "status": status}


def waiting(reason: str, message: str = "", name: str = "engine") -> Object:
    return {"name": name, "image": "e:1", "state": {"waiting": {"reason": reason, "message": message}}}


OOM = {"name": "engine", "state": {}, "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}
LOG = {"name": "weights", "state": {"terminated": {"exitCode": 1, "message": "fetch: 1 of 2 GB\nno such bucket\n"}}}
PENDING = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes are available."}


@pytest.mark.parametrize(
    ("pods", "told"),
    [
        ([], ""),
        ([in_trouble(conditions=[PENDING])], "no node takes a pod: 0/3 nodes are available; make room"),
        ([in_trouble(containerStatuses=[waiting("ErrImagePull")])], "e:1 can't be pulled: ErrImagePull"),
        ([in_trouble(containerStatuses=[waiting("ContainerCreating")])], ""),
        ([in_trouble(containerStatuses=[OOM])], "raise engine.resources.limits.memory"),
        ([in_trouble(initContainerStatuses=[LOG])], "container weights failed: no such bucket"),
        ([in_trouble(phase="Failed", reason="Evicted", message="The node was low on memory.")], "taken by its node"),
        # The one that tells most comes first, whatever the order of the pods.
        ([in_trouble(conditions=[PENDING]), in_trouble(initContainerStatuses=[LOG])], "no such bucket"),
        ([{"metadata": {"deletionTimestamp": "now"}, "status": {"containerStatuses": [OOM]}}], ""),
    ],
)
def test_troubles(pods: list[Object], told: str) -> None:
    found = trouble(pods)
    assert told in found if told else found == ""
    assert "\n" not in found


def test_a_pod_on_its_way_out_is_not_ready() -> None:
    ready = in_trouble(conditions=[{"type": "Ready", "status": "True"}])
    assert is_ready(ready)
    assert not is_ready(ready | {"metadata": {"deletionTimestamp": "now"}})
