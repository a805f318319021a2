"""Whole rollouts through resources: every strategy, every way back, and the operator killed or cut off in between."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from serving.outcomes import Signal
from tests.kubernetes.cluster import Write
from tests.kubernetes.patches import merge_patch
from tests.kubernetes.world import OperatorWorld
from tests.simulation.world import STRATEGIES, deployed

GOES_BY_ITSELF = ("canary", "soak", "blue-green", "shadow")


@pytest.fixture
def world() -> Iterator[OperatorWorld]:
    made = OperatorWorld()
    yield made
    made.close()


def served(world: OperatorWorld, version: str = "1.0.0", **spec: Any) -> None:
    """A first version that serves."""
    world.apply(version, **spec)
    world.until(lambda: world.serving(version))


def test_the_first_version_serves_as_soon_as_it_answers(world: OperatorWorld) -> None:
    served(world)
    told = world.told()
    assert (told["phase"], told["observedGeneration"]) == ("Healthy", 1)
    assert world.condition("Ready") == ("True", "Serving")
    assert world.condition("Progressing") == ("False", "Complete")
    assert world.condition("Degraded") == ("False", "AsExpected")
    assert world.resource()["metadata"]["finalizers"] == ["tidegate.dev/drain"]


@pytest.mark.parametrize("name", GOES_BY_ITSELF)
def test_a_changed_version_is_rolled_out_and_promoted(world: OperatorWorld, name: str) -> None:
    served(world)
    world.apply("1.1.0", strategy=STRATEGIES[name], rollbackWindow="10s")
    world.until(lambda: world.serving("1.1.0"), requests=40)
    assert world.told()["strategy"] == name.replace("soak", "canary")
    assert world.condition("RolledBack")[0] == "False"


@pytest.mark.parametrize("name", ["canary", "soak", "blue-green", "shadow", "ab"])
def test_a_bad_version_is_taken_back_and_not_tried_again(world: OperatorWorld, name: str) -> None:
    served(world)
    world.faults["1.1.0"] = {Signal.ERROR: 0.5}
    world.bad_smoke.add("1.1.0")
    world.apply("1.1.0", strategy=STRATEGIES[name])
    world.until(lambda: world.condition("RolledBack")[0] == "True", requests=40)
    rollout = world.told()["rollout"]
    for _ in range(60):
        world.step(requests=20)
    assert (world.told()["stable"], world.told()["rollout"]) == ("1.0.0", rollout), "the spec still names the bad one"
    assert world.resource()["spec"]["version"] == "1.1.0"
    assert world.condition("RolledBack") == ("True", "Condemned")
    assert world.condition("Degraded")[0] == "True"
    assert world.condition("Ready") == ("True", "Serving")


def test_ack_lets_a_condemned_version_be_tried_again(world: OperatorWorld) -> None:
    served(world)
    world.faults["1.1.0"] = {Signal.ERROR: 0.5}
    world.apply("1.1.0")
    world.until(lambda: world.condition("RolledBack")[0] == "True", requests=40)
    world.faults.clear()
    world.annotate("ack", "looked at it: the test set was wrong")
    world.until(lambda: world.serving("1.1.0"), requests=40)


def test_another_restart_does_not_repeat_a_rollback(world: OperatorWorld) -> None:
    served(world)
    world.apply("1.1.0")
    world.until(lambda: world.serving("1.1.0"))
    world.annotate("rollback", {"id": "r1", "reason": "riddles", "by": "ann"})
    world.until(lambda: world.serving("1.0.0"))
    told = world.told()
    assert told["lastHandledRollback"] == "r1"
    assert told["commands"][0]["outcome"] == "Done"
    assert world.status.actor == "ann"
    world.apply("1.2.0")
    world.until(lambda: world.serving("1.2.0"))
    world.start_controller()
    for _ in range(20):
        world.step(requests=5)
    assert world.serving("1.2.0"), "the annotation is still there, and was handled"
    assert world.resource()["metadata"]["annotations"]["tidegate.dev/rollback"], "nobody deletes what people wrote"


def test_plain_text_rolls_back_and_its_digest_is_its_id(world: OperatorWorld) -> None:
    served(world)
    world.apply("1.1.0")
    world.until(lambda: world.told().get("canary") == "1.1.0" and world.told()["weight"] > 0)
    world.annotate("rollback", "answers in riddles")
    world.until(lambda: world.serving("1.0.0"))
    first = world.told()["lastHandledRollback"]
    assert len(first) == 16
    assert "answers in riddles" in world.told()["reason"]
    world.apply("1.2.0")
    world.until(lambda: world.serving("1.2.0"))
    world.annotate("rollback", "and this one swears")
    world.until(lambda: world.serving("1.0.0"))
    assert world.told()["lastHandledRollback"] != first


def test_rollback_to_a_version_that_has_to_start(world: OperatorWorld) -> None:
    for version in ("1.0.0", "1.1.0", "1.2.0"):
        world.apply(version, rollbackWindow="1s")
        world.until(lambda v=version: world.serving(v))  # type: ignore[misc]
    world.until(lambda: "1.0.0" not in {d.version for d in world.status.running()})
    world.annotate("rollback", {"id": "far", "to": "1.0.0"})
    world.until(lambda: world.serving("1.0.0"))
    assert world.resource()["spec"]["version"] == "1.2.0"


def test_a_rollback_works_while_the_spec_cannot_be_read(world: OperatorWorld) -> None:
    served(world)
    world.apply("1.1.0")
    world.until(lambda: world.serving("1.1.0"))
    kind, key = world.cluster.kind("modeldeployments"), ("default", "chat")
    world.cluster._objects[kind.key][key]["spec"]["strategy"] = {
        "canary": {"steps": []}
    }  # as an older release let it in
    world.annotate("rollback", "now")
    world.until(lambda: world.serving("1.0.0"))
    assert world.condition("Progressing") == ("False", "InvalidSpec")
    assert world.condition("Ready")[0] == "True"


def test_a_newer_version_supersedes_what_rolls_out(world: OperatorWorld) -> None:
    served(world)
    world.apply("1.1.0")
    world.until(lambda: world.told().get("weight", 0) > 0)
    world.apply("1.2.0")
    world.until(lambda: world.serving("1.2.0"))
    assert "1.1.0" not in [c.version for c in world.status.history]


def test_going_back_to_stable_in_the_spec_ends_the_rollout(world: OperatorWorld) -> None:
    served(world)
    world.apply("1.1.0")
    world.until(lambda: world.told().get("weight", 0) > 0)
    world.apply("1.0.0")
    world.until(lambda: world.serving("1.0.0"))


def test_promote_steps_and_promote_full_ends(world: OperatorWorld) -> None:
    slow = {"canary": {"steps": [{"weight": 10, "duration": "1h"}, {"weight": 50, "duration": "1h"}]}}
    served(world)
    world.apply("1.1.0", strategy=slow)
    world.until(lambda: world.told().get("weight") == 10)
    world.annotate("promote", {"id": "p1"})
    world.until(lambda: world.told().get("weight") == 50)
    for _ in range(10):
        world.step(requests=5)
    assert world.told()["weight"] == 50, "one annotation is one step"
    world.annotate("promote", "full")
    world.until(lambda: world.serving("1.1.0"))


def test_pause_by_annotation_and_by_spec(world: OperatorWorld) -> None:
    served(world)
    world.apply("1.1.0", paused=True)
    world.until(lambda: world.condition("Progressing") == ("False", "Paused"))
    for _ in range(20):
        world.step(requests=20)
    assert world.told()["weight"] == 0
    world.apply("1.1.0", paused=False)
    world.until(lambda: world.told().get("weight") == 10)
    world.annotate("pause", "lunch")
    world.until(lambda: world.told()["phase"] == "Paused")
    weight = world.told()["weight"]
    for _ in range(20):
        world.step(requests=20)
    assert world.told()["weight"] == weight
    world.annotate("pause", None)
    world.until(lambda: world.serving("1.1.0"))


def test_abort_and_retry(world: OperatorWorld) -> None:
    served(world)
    world.apply("1.1.0")
    world.until(lambda: world.told().get("weight", 0) > 0)
    world.annotate("abort", "not now")
    world.until(lambda: world.serving("1.0.0"))
    for _ in range(20):
        world.step(requests=5)
    assert world.condition("RolledBack") == ("True", "Withdrawn")
    world.annotate("retry", "now")
    world.until(lambda: world.serving("1.1.0"))


@pytest.mark.parametrize(
    ("verb", "value", "message"),
    [
        ("promote", "x", "no rollout of chat is active"),
        ("rollback", "x", "chat has had no stable version before"),
        ("rollback", {"to": "9.9.9"}, "9.9.9 is none of the versions that were stable before"),
        ("rollback", '{"too": "1.0.0"}', "is not JSON of the fields id, reason, to, full, by"),
        ("retry", "x", ""),
        ("undo", "x", "has had no stable version before"),
        ("ack", "x", "nothing of chat is quarantined"),
    ],
)
def test_a_refused_command_is_told_with_the_way_out(world: OperatorWorld, verb: str, value: Any, message: str) -> None:
    served(world)
    world.annotate(verb, value)
    world.step()
    world.step()
    handled = next(c for c in world.told()["commands"] if c["verb"] == verb)
    assert handled["outcome"] == "Refused"
    assert message in handled["message"]
    assert any(n.kind == "Warning" and n.reason == "CommandRefused" and verb in n.message for n in world.writer.notes)
    posted = len(world.writer.notes)
    world.start_controller()
    for _ in range(10):
        world.step()
    assert len(world.writer.notes) == posted, "it was refused once, and is not refused again"


def test_a_version_that_is_not_registered_yet_is_waited_for(world: OperatorWorld) -> None:
    served(world)
    world.unknown.add("1.1.0")
    world.apply("1.1.0")
    world.until(lambda: world.condition("Progressing") == ("False", "VersionNotFound"))
    assert world.condition("Ready") == ("True", "Serving")
    world.unknown.clear()
    world.until(lambda: world.serving("1.1.0"))


def test_who_is_not_the_first_to_claim_a_model_gets_nothing(world: OperatorWorld) -> None:
    served(world)
    world.now += 5
    world.apply("7.7.7", name="thief")
    world.until(lambda: world.condition("Ready", "thief") == ("False", "ModelNameTaken"))
    for _ in range(10):
        world.step(requests=5)
    assert world.serving("1.0.0")
    assert world.told("thief").get("stable") is None
    world.delete("thief")
    world.step()
    assert world.cluster.find("modeldeployments", "default", "thief") is None
    assert world.serving("1.0.0"), "nothing of the model was touched"


def test_the_next_in_line_takes_over_once_the_first_is_gone(world: OperatorWorld) -> None:
    served(world)
    world.now += 5
    world.apply("7.7.7", name="heir")
    world.until(lambda: world.condition("Ready", "heir") == ("False", "ModelNameTaken"))
    world.delete()
    world.until(lambda: world.told("heir").get("stable") == "7.7.7")


def test_deletion_drains_first(world: OperatorWorld) -> None:
    served(world)
    digest = world.status.stable.digest if world.status.stable else ""
    world.streams[digest] = 2
    world.delete()
    for _ in range(20):
        world.step()
    assert world.resource()["metadata"]["deletionTimestamp"], "two answers are still under way"
    assert world.condition("Ready") == ("False", "Deleting")
    assert world.removed == []
    world.streams.clear()
    world.until(lambda: world.cluster.find("modeldeployments", "default", "chat") is None)
    world.step()
    assert len(world.removed) == 1
    world.apply("1.0.0")
    world.until(lambda: world.serving("1.0.0"))


def test_replicas_follow_the_scale_subresource_without_a_rollout(world: OperatorWorld) -> None:
    served(world)
    rollout = world.told()["rollout"]
    kind = world.cluster.kind("modeldeployments")
    scale = {"spec": {"engine": {"minReplicas": 3, "maxReplicas": 5}}}
    world.cluster.patch(kind, "default", "chat", lambda o: merge_patch(o, scale), Write("hpa"))
    world.until(lambda: world.told().get("replicas") == 3)
    application = world.status.stable.application if world.status.stable else ""
    assert world.workloads.desired[application].replicas == 3
    assert (world.told()["rollout"], world.told()["stable"]) == (rollout, "1.0.0"), "no rollout for that"
    assert world.status.stable is not None
    assert world.status.stable.engine.max_replicas == 5


def test_replicas_wait_for_the_end_of_a_rollout(world: OperatorWorld) -> None:
    served(world)
    world.apply("1.1.0", strategy={"canary": {"steps": [{"weight": 10, "duration": "1h"}]}})
    world.until(lambda: world.told().get("weight") == 10)
    world.apply("1.1.0", strategy={"canary": {"steps": [{"weight": 10, "duration": "1h"}]}}, engine={"minReplicas": 2})
    for _ in range(10):
        world.step(requests=5)
    assert world.told()["replicas"] == 1, "what stable can take must not be measured by replicas that are not there"
    world.annotate("promote", "full")
    world.until(lambda: world.serving("1.1.0") and world.told()["replicas"] == 2)


def test_an_unchanged_resource_is_not_written(world: OperatorWorld) -> None:
    served(world)
    for _ in range(5):
        world.step()
    before = list(world.writer.writes)
    for _ in range(100):
        world.step(seconds=5.0, requests=1)
    world.start_controller()
    for _ in range(20):
        world.step(seconds=2.0)
    assert world.writer.writes == before


def test_the_order_of_a_list_is_the_api_server_s_affair(world: OperatorWorld) -> None:
    served(world)
    world.annotate("undo", "nothing before")
    world.step()
    world.annotate("ack", "nothing held")
    world.step()
    assert [c["verb"] for c in world.told()["commands"]] == ["undo", "ack"], "merged by name, in its own order"
    before = list(world.writer.writes)
    for _ in range(20):
        world.step(seconds=5.0)
    assert world.writer.writes == before


def test_counts_of_requests_are_written_seldom(world: OperatorWorld) -> None:
    slow = {"canary": {"steps": [{"weight": 10, "duration": "1h"}]}}
    served(world)
    world.apply("1.1.0", strategy=slow)
    world.until(lambda: world.told().get("observedWeight") == 10)
    before = len(world.writer.writes)
    for _ in range(100):
        world.step(requests=20)
    assert 3 <= len(world.writer.writes) - before <= 6, "50 s, and at most once in 10"
    assert world.told()["signals"][0]["canaryRequests"] > 50


@pytest.mark.parametrize(
    "trouble",
    [
        'engine:typo can\'t be pulled: Back-off pulling image "engine:typo"; correct engine.image, or the pull secret',
        'the pod can\'t be made: secret "buckets" not found; make what is missing',
        "no node takes a pod: Insufficient nvidia.com/gpu; make room, add a node, or use capacity: replace",
    ],
    ids=["image", "secret", "gpu"],
)
def test_what_keeps_a_version_from_starting_is_in_the_resource_until_it_is_put_right(
    world: OperatorWorld, trouble: str
) -> None:
    served(world)
    application = deployed("1.1.0").application
    world.workloads.trouble[application] = trouble
    world.apply("1.1.0")
    world.until(lambda: trouble in world.told()["reason"])
    progressing = next(c for c in world.told()["conditions"] if c["type"] == "Progressing")
    assert (progressing["status"], progressing["reason"]) == ("True", "Starting")
    assert trouble in progressing["message"]
    for _ in range(50):  # longer than it takes after a start until all is seen
        world.step(requests=5)
    before, posted = len(world.writer.writes), len(world.writer.notes)
    for _ in range(100):
        world.step(requests=5)
    assert (len(world.writer.writes), len(world.writer.notes)) == (before, posted), "told once"
    assert world.condition("Ready") == ("True", "Serving")
    assert all(s.version == "1.0.0" for s in world.served[-500:]), "stable serves"
    del world.workloads.trouble[application]
    world.until(lambda: world.serving("1.1.0"), requests=40)
    assert "Starting" not in world.condition("Progressing")


def test_a_model_out_of_sight_holds_says_why_and_goes_on_when_it_is_seen_again(world: OperatorWorld) -> None:
    """As in a namespace whose rights are gone; one of somebody else's out of sight changes nothing."""
    world.workloads.hidden["other--1-0-0--00000000"] = "somebody else's"
    served(world)
    world.apply("1.1.0", rollbackWindow="10s")
    mine = deployed("1.0.0").application
    world.workloads.hidden[mine] = "namespace team can't be read"
    world.until(lambda: world.condition("Progressing") == ("Unknown", "Holding"), requests=10)
    told = {c["type"]: c["message"] for c in world.told()["conditions"]}
    assert told["Degraded"] == told["Progressing"] == "the workloads are away: namespace team can't be read"
    for _ in range(60):
        world.step(requests=40)
    assert world.told()["stable"] == "1.0.0", "nothing goes forward"
    assert world.condition("Ready") == ("True", "Serving"), "gateways say whether it answers"
    del world.workloads.hidden[mine]
    world.until(lambda: world.serving("1.1.0"), requests=40)
    assert world.condition("Degraded") == ("False", "AsExpected")


def test_a_refusal_of_one_workload_is_not_told_of_another_model(world: OperatorWorld) -> None:
    world.workloads.refusal = "somebody else's is refused"
    served(world)
    assert world.condition("Degraded") == ("False", "AsExpected")


def test_what_is_tried_again_and_again_is_said_once(world: OperatorWorld) -> None:
    served(world)
    world.unknown.add("1.1.0")
    world.apply("1.1.0")
    world.until(lambda: world.condition("Degraded") == ("True", "VersionNotFound"))
    before = len(world.writer.writes)
    for _ in range(200):
        world.step(seconds=5.0)
    assert [n.reason for n in world.writer.notes].count("VersionNotFound") == 1
    assert len(world.writer.writes) == before


def test_a_drain_that_never_ends_ends_with_its_deadline(world: OperatorWorld) -> None:
    served(world, drainDeadline="60s")
    digest = world.status.stable.digest if world.status.stable else ""
    world.streams[digest] = 1  # a client that never goes
    world.delete()
    for _ in range(10):
        world.step(seconds=5.0)
    assert world.resource()["metadata"]["deletionTimestamp"]
    world.until(lambda: world.cluster.find("modeldeployments", "default", "chat") is None, steps=60)


def test_stable_keeps_serving_while_the_api_server_is_away(world: OperatorWorld) -> None:
    served(world)
    world.apply("1.1.0")
    world.until(lambda: world.told().get("weight", 0) > 0)
    world.writer.away = world.deaf = True
    world.faults["1.1.0"] = {Signal.ERROR: 0.5}
    world.until(lambda: world.status.canary is None, requests=40)
    assert world.status.stable is not None
    assert world.status.stable.version == "1.0.0", "the controller takes a bad version back without the API server"
    for _ in range(200):
        world.step(requests=2)
    world.writer.away = world.deaf = False
    world.until(lambda: world.condition("RolledBack") == ("True", "Condemned"))


@pytest.mark.parametrize("every", range(6))
def test_a_crash_at_any_step_costs_nothing(every: int) -> None:
    world = OperatorWorld()
    try:
        for index, version in enumerate(("1.0.0", "1.1.0")):
            world.apply(version)
            for step in range(200):
                if step % 6 == every:
                    world.start_controller()
                if world.serving(version):
                    break
                world.step(requests=20)
            assert world.serving(version)
            started = [e for e in world.log.read(model="chat") if "start" in str(e.payload.get("decision", {}))]
            starts = sum('"start"' in str(e.payload).replace("'", '"') for e in started)
            assert starts == index + 1, "each version was started once"
    finally:
        world.close()
