"""Every strategy through promotion, automatic and manual rollback, supersession and crashes, on every event log."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rollout.commands import Verb
from rollout.event_log.base import Kind
from rollout.event_log.memory import MemoryEventLog
from rollout.event_log.sql import SqlEventLog
from rollout.replay import replay
from rollout.status import Phase, Stage
from serving.outcomes import Signal
from serving.traffic import Role
from tests.simulation.world import MODEL, SHADOW, STRATEGIES, World, deployed

STORES = ("memory", "sqlite", "postgresql")
PAUSING_SHADOW = {"shadow": {**SHADOW["shadow"], "onPassed": "pause"}}


@pytest.fixture(params=STORES)
def world(request, tmp_path) -> Iterator[World]:
    match request.param:
        case "memory":
            log = MemoryEventLog()
        case "sqlite":
            log = SqlEventLog(f"sqlite:///{tmp_path / 'state.db'}")
        case _:
            log = SqlEventLog(request.getfixturevalue("postgres").new_database())
    made = World(seed=3, event_log=log)
    yield made
    made.close()
    log.close()


@pytest.fixture
def simple() -> Iterator[World]:
    made = World(seed=3)
    yield made
    made.close()


def begin(world: World, strategy: str, version: str = "1.0.1", **changes) -> None:
    world.deploy(version, strategy=STRATEGIES[strategy], **changes)


def is_stable(world: World, version: str) -> bool:
    stable = world.status.stable
    return stable is not None and stable.version == version


def under_way(world: World, strategy: str) -> None:
    """Start a rollout and wait until it is judged."""
    world.first()
    begin(world, strategy)
    world.until(lambda: world.status.rollout.judged)


def finish(world: World, strategy: str) -> None:
    """Wait until the new version is stable; an A/B test needs a person."""
    if strategy == "ab":
        world.until(lambda: world.status.rollout.at_end)
        world.say(Verb.PROMOTE)
    world.until(lambda: is_stable(world, "1.0.1"))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_good_version_becomes_stable(world, strategy):
    under_way(world, strategy)
    finish(world, strategy)
    assert (world.status.phase, world.status.previous.version) == (Phase.HEALTHY, "1.0.0")
    replayed = replay(world.log.read(model=MODEL))
    assert all(d.same for d in replayed), [d for d in replayed if not d.same]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_bad_version_is_taken_back_by_itself_and_condemned(world, strategy):
    world.faults["1.0.1"] = {Signal.ERROR: 0.9}
    world.first()
    begin(world, strategy)
    world.until(lambda: world.status.phase is Phase.DEGRADED)
    assert is_stable(world, "1.0.0")
    assert dict(world.status.condemned) == {deployed("1.0.1").digest: "1.0.1"}
    assert "error" in world.status.reason
    assert all(world.gateways[0].request(world.rng).version == "1.0.0" for _ in range(20))
    replayed = replay(world.log.read(model=MODEL))
    assert all(d.same for d in replayed), [d for d in replayed if not d.same]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_rollback_by_hand_works_while_it_runs_and_after_it(world, strategy):
    under_way(world, strategy)
    world.say(Verb.ROLLBACK, reason="pager")
    assert all(world.gateways[0].request(world.rng).version == "1.0.0" for _ in range(20))
    world.say(Verb.ACK)
    world.until(lambda: not world.status.retiring)
    begin(world, strategy)
    finish(world, strategy)
    world.say(Verb.ROLLBACK, reason="pager again")
    assert is_stable(world, "1.0.0")
    assert world.gateways[0].request(world.rng).version == "1.0.0"


@pytest.mark.parametrize("third", ["1.0.0", "1.0.2"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_new_deployment_supersedes_while_it_runs_and_while_it_is_paused(world, strategy, third):
    under_way(world, strategy)
    world.say(Verb.PAUSE)
    begin(world, strategy, third)
    assert world.status.canary is None or world.status.canary.version == "1.0.2"
    assert not world.status.quarantine
    if third == "1.0.2":
        begin(world, strategy, "1.0.1")  # and back again, while its workload is still being drained
        finish(world, strategy)
    assert world.gateways[0].request(world.rng).version == ("1.0.0" if third == "1.0.0" else "1.0.1")


@pytest.mark.parametrize("bad", [False, True])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_controller_killed_at_each_step_goes_on_where_it_stood(world, strategy, bad):
    world.faults["1.0.1"] = {Signal.ERROR: 0.9} if bad else {}
    world.first()
    begin(world, strategy)

    def over() -> bool:
        # Blue-green meets its users only after the switch, so that is where a bad version is found.
        return world.status.phase is Phase.DEGRADED if bad else is_stable(world, "1.0.1")

    for number in range(300):
        world.step(requests=20)
        if number % 2:  # a new controller's table must be acknowledged before anything goes forward
            continue
        if world.status.rollout.at_end:
            world.say(Verb.PROMOTE)
        status = world.status
        world.start_controller()
        assert world.status == status
        if over():
            break
    assert over(), world.status.reason


# -- what is particular to one of them --------------------------------------------------------------------------------


def clients_of(world: World, version: str) -> int:
    """How many clients that were no testers got an answer of a version."""
    return sum(1 for s in world.served if s.version == version and not s.tester)


def test_blue_green_shows_the_candidate_to_testers_alone_and_switches_at_once(simple):
    under_way(simple, "blue-green")
    simple.until(lambda: is_stable(simple, "1.0.1"))
    before = [s for s in simple.served if s.at <= simple.status.rollout.finished_at]
    assert any(s.version == "1.0.1" and s.tester for s in before)
    assert not any(s.version == "1.0.1" and not s.tester for s in before)
    weights = [a["weight"] for e in simple.log.read(kinds=[Kind.DECISION]) for a in e.payload["decision"]["actions"]
               if a["type"] == "set-step"]  # fmt: skip
    assert weights == []


def test_blue_green_with_a_failing_smoke_suite_meets_no_client(simple):
    simple.bad_smoke.add("1.0.1")
    simple.first()
    begin(simple, "blue-green")
    simple.until(lambda: simple.status.phase is Phase.DEGRADED)
    assert clients_of(simple, "1.0.1") == 0
    assert "failed 1 of 1 smoke cases: greeting" in simple.status.reason
    assert deployed("1.0.1").digest in simple.status.quarantine


def test_blue_green_goes_back_by_itself_within_the_window_and_not_after_it(simple):
    under_way(simple, "blue-green")
    simple.until(lambda: is_stable(simple, "1.0.1"))
    simple.step(3600)
    simple.until(lambda: not simple.status.rollout.watched)
    assert simple.gateways[0].table.model(MODEL).rollout is None
    simple.faults["1.0.1"] = {Signal.ERROR: 0.9}
    for _ in range(50):
        simple.step(requests=20)
    assert is_stable(simple, "1.0.1")


def test_a_rate_that_stable_had_too_does_not_switch_back(simple):
    simple.faults = {"1.0.0": {Signal.ERROR: 0.2}, "1.0.1": {Signal.ERROR: 0.2}}
    simple.first()
    simple.step(30, requests=200)
    simple.deploy("1.0.1", strategy={"blueGreen": {**STRATEGIES["blue-green"]["blueGreen"], "previewDuration": "60s"}})
    simple.until(lambda: is_stable(simple, "1.0.1"))
    for _ in range(100):
        simple.step(requests=20)
    assert is_stable(simple, "1.0.1"), simple.status.reason


def test_a_first_version_that_fails_is_told_and_left_where_it_is(simple):
    simple.faults["1.0.0"] = {Signal.ERROR: 0.9}
    simple.first()
    simple.until(lambda: simple.status.phase is Phase.DEGRADED)
    assert is_stable(simple, "1.0.0")
    assert "no earlier version to go back to" in simple.status.reason


def test_a_shadows_answers_reach_nobody(simple):
    simple.faults["1.0.1"] = {Signal.ERROR: 0.02}
    simple.first()
    simple.deploy("1.0.1", strategy=PAUSING_SHADOW)
    simple.until(lambda: simple.status.rollout.at_end)
    assert clients_of(simple, "1.0.1") == 0
    assert simple.controller.observation(MODEL).pairs >= 100
    simple.say(Verb.PROMOTE)
    assert is_stable(simple, "1.0.1")
    assert simple.status.rollout.watched


def test_an_ab_test_reports_effect_and_interval_and_waits(simple):
    simple.faults = {"1.0.0": {Signal.ERROR: 0.1}, "1.0.1": {Signal.ERROR: 0.01}}
    under_way(simple, "ab")
    simple.until(lambda: simple.status.rollout.at_end)
    assert "times stable's rate" in simple.status.reason
    for _ in range(50):
        simple.step(requests=20)
    assert simple.status.rollout.stage is Stage.STEPPING
    simple.say(Verb.ABORT)
    assert simple.gateways[0].request(simple.rng).version == "1.0.0"


def test_the_soak_leaves_stable_less_and_less(simple):
    simple.first()
    begin(simple, "soak")
    simple.until(lambda: is_stable(simple, "1.0.1"))
    actions = [a for e in simple.log.read(kinds=[Kind.DECISION]) for a in e.payload["decision"]["actions"]]
    assert [a["weight"] for a in actions if a["type"] == "set-step"] == [10, 50, 80, 90, 95]


def test_lost_units_of_one_arm_hold_the_rollout(simple):
    simple.skewed = True
    under_way(simple, "canary")
    for _ in range(60):
        simple.step(requests=20)
    assert simple.status.rollout.stage is Stage.STEPPING
    assert "sessions do not divide" in simple.controller.waiting_for(MODEL).reason
    simple.say(Verb.PROMOTE, full=True)  # a person may know better
    assert is_stable(simple, "1.0.1")


def test_a_rollback_to_half_a_stable_moves_half_and_the_rest_as_stable_comes_back():
    world = World(seed=3, replicas=2)
    try:
        world.first()
        world.deploy("1.0.1", strategy=STRATEGIES["soak"])
        world.until(lambda: world.status.rollout.weight == 80)
        stable = deployed("1.0.0").application
        world.workloads.lost[stable] = 1
        world.step(0.1)
        world.say(Verb.ROLLBACK)
        assert (world.status.phase, world.status.leaving.weight) == (Phase.DEGRADED, 50)
        served = [world.gateways[0].request(world.rng).role for _ in range(400)]
        assert 130 < served.count(Role.CANARY) < 270
        world.workloads.lost[stable] = 2
        world.step(1.0, requests=20)
        assert world.status.leaving.weight == 50
        world.workloads.lost[stable] = 0
        world.step(1.0, requests=20)
        assert world.status.leaving is None
        assert world.status.rollout.stage is Stage.WITHDRAWN
        world.until(lambda: not world.status.retiring)
    finally:
        world.close()


def test_a_rollback_takes_a_version_out_of_its_drain():
    world = World(seed=3)
    try:
        world.first()
        world.streams[deployed("1.0.0").digest] = 1
        for version in ("1.0.1", "1.0.2"):
            world.deploy(version, emergency=True)
            world.until(lambda v=version: is_stable(world, v))
        assert [r.deployed.version for r in world.status.retiring] == ["1.0.0"]
        world.say(Verb.ROLLBACK, version="1.0.0")
        assert world.gateways[0].request(world.rng).version == "1.0.0"
        assert is_stable(world, "1.0.0")
    finally:
        world.close()
