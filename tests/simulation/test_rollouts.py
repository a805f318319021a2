"""Whole rollouts in the simulated world: what people are promised, end to end, in virtual time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rollout.commands import Command, Verb
from rollout.errors import CommandRefused, Quarantined
from rollout.event_log.base import Kind
from rollout.observation import Verdict
from rollout.replay import replay
from rollout.status import Phase, Stage
from serving.outcomes import Signal
from serving.traffic import Role
from tests.simulation.world import MODEL, World, deployed


@pytest.fixture
def world() -> Iterator[World]:
    made = World(seed=1)
    yield made
    made.close()


def canary_requests(world: World) -> int:
    return sum(1 for s in world.served if s.role is Role.CANARY)


def test_a_first_deployment_takes_all_traffic_once_it_is_ready(world):
    world.deploy("1.0.0")
    world.step(0.1)
    assert world.status.stable is None
    world.until(lambda: world.status.stable is not None)
    assert world.status.phase is Phase.HEALTHY


def test_a_faultless_version_is_promoted_on_evidence(world):
    world.first()
    world.deploy("1.0.1")
    world.until(lambda: world.status.phase is Phase.HEALTHY and world.status.stable.version == "1.0.1")
    # 63 clean settled units are what the objective needs at 5 % (monitoring/sequential/forward.py).
    assert canary_requests(world) >= 63
    assert world.status.previous.version == "1.0.0"


def test_without_traffic_nothing_is_promoted(world):
    world.first()
    world.deploy("1.0.1")
    for _ in range(200):
        world.step(1.0, requests=0)
    assert world.status.phase is Phase.PROGRESSING
    assert world.status.rollout.step == 0


def test_a_failing_version_is_taken_back_and_condemned(world):
    world.first()
    world.faults["1.1.0"] = {Signal.ERROR: 1.0}
    world.deploy("1.1.0")
    world.until(lambda: world.status.phase is Phase.DEGRADED)
    assert world.status.stable.version == "1.0.0"
    assert deployed("1.1.0").digest in world.status.quarantine
    assert canary_requests(world) <= 12
    with pytest.raises(Quarantined, match="ack"):
        world.deploy("1.1.0")
    world.say(Verb.ACK)
    world.deploy("1.1.0")
    assert world.status.phase is Phase.PROGRESSING


@pytest.mark.parametrize("signal", [Signal.ENGINE_4XX, Signal.LENGTH_STOP, Signal.REPETITION])
def test_each_signal_takes_a_broken_version_back(world, signal):
    world.faults = {"1.0.0": {signal: 0.05}, "1.1.0": {signal: 0.9}}
    world.first()
    world.deploy("1.1.0")
    world.until(lambda: world.status.phase is Phase.DEGRADED)
    assert signal.value in world.status.reason


def test_an_outage_that_hits_both_arms_takes_nothing_back(world):
    world.first()
    world.faults = {"1.0.0": {Signal.ERROR: 0.8}, "1.0.1": {Signal.ERROR: 0.8}}
    world.deploy("1.0.1")
    for _ in range(100):
        world.step(requests=20)
    assert world.status.phase is not Phase.DEGRADED


def test_a_version_that_never_gets_ready_never_gets_traffic(world):
    world.first()
    world.load_s = 1e9
    world.deploy("1.0.1", progressDeadlineSeconds=30)
    world.until(lambda: world.status.phase is Phase.DEGRADED)
    assert canary_requests(world) == 0
    assert "not ready after" in world.status.reason
    assert not world.status.quarantine


def test_a_version_that_fails_to_load_says_why(world):
    world.first()
    world.load_s = 5
    world.deploy("1.0.1")
    world.workloads.failed[deployed("1.0.1").application] = "config.json is no model"
    world.until(lambda: world.status.phase is Phase.DEGRADED)
    assert "config.json is no model" in world.status.reason


def test_an_engine_that_keeps_dying_is_withdrawn_but_not_condemned(world):
    world.first()
    world.deploy("1.0.1")
    world.until(lambda: world.status.rollout.stage is Stage.STEPPING)
    world.workloads.restarts[deployed("1.0.1").application] = 3
    world.step()
    assert world.status.phase is Phase.DEGRADED
    assert not world.status.quarantine


def test_what_cannot_be_observed_holds(world):
    world.first()
    world.deploy("1.0.1")
    world.until(lambda: world.status.rollout.stage is Stage.STEPPING)
    world.workloads.away = True
    for _ in range(50):
        world.step(requests=20)
    assert (world.status.phase, world.status.rollout.step) == (Phase.PROGRESSING, 0)
    assert "can't be observed" in world.controller.waiting_for(MODEL).reason
    world.workloads.away = False
    world.until(lambda: world.status.phase is Phase.HEALTHY and world.status.rollout.stage is Stage.PROMOTED)


def test_a_rollback_by_hand_moves_all_traffic_with_the_command(world):
    world.first()
    world.deploy("1.0.1")
    world.until(lambda: world.status.rollout.stage is Stage.STEPPING)
    before = canary_requests(world)
    world.say(Verb.ROLLBACK, reason="users complain")
    for _ in range(50):  # no tick between: the table went out with the command
        world.served.append(world.gateways[0].request(world.rng))
    assert canary_requests(world) == before
    assert "users complain" in world.status.reason


def test_after_promotion_a_rollback_goes_to_the_warm_version(world):
    world.first()
    world.deploy("1.0.1", emergency=True)
    world.until(lambda: world.status.stable.version == "1.0.1")
    world.say(Verb.ROLLBACK)
    assert world.status.stable.version == "1.0.0"
    assert world.gateways[0].request(world.rng).version == "1.0.0"
    assert deployed("1.0.1").digest in world.status.quarantine


def test_a_retired_version_stays_until_its_streams_have_ended(world):
    world.first()
    world.deploy("1.0.1")
    world.until(lambda: world.status.rollout.stage is Stage.STEPPING)
    canary = deployed("1.0.1")
    world.streams[canary.digest] = 1
    world.step()
    world.say(Verb.ABORT)
    for _ in range(20):
        world.step(1.0)
    assert canary.application in world.workloads.desired
    world.streams[canary.digest] = 0
    world.until(lambda: canary.application not in world.workloads.desired)
    assert world.status.retiring == ()


def test_a_drain_ends_at_its_deadline_and_counts_what_it_cut(world):
    world.first()
    world.deploy("1.0.1", drainDeadline="60s")
    world.until(lambda: world.status.rollout.stage is Stage.STEPPING)
    world.streams[deployed("1.0.1").digest] = 2
    world.step()
    world.say(Verb.ABORT)
    for _ in range(70):
        world.step(1.0)
    assert deployed("1.0.1").application not in world.workloads.desired
    removed = [e.payload["decision"]["reason"] for e in world.log.read(kinds=[Kind.DECISION])][-1]
    assert "2 streams open" in removed


def test_the_old_stable_is_kept_for_the_rollback_window(world):
    world.first()
    world.deploy("1.0.1", emergency=True, rollbackWindow="100s")
    world.until(lambda: world.status.stable.version == "1.0.1")
    world.step(90)
    assert deployed("1.0.0").application in world.workloads.desired
    world.until(lambda: deployed("1.0.0").application not in world.workloads.desired)


def test_a_new_deployment_supersedes_the_running_one(world):
    world.first()
    world.deploy("1.0.1")
    world.until(lambda: world.status.rollout.stage is Stage.STEPPING)
    world.deploy("1.0.2")
    assert world.status.canary.version == "1.0.2"
    assert world.status.rollout.weight == 0
    world.until(lambda: world.status.stable.version == "1.0.2")


def test_deploying_stable_again_ends_the_rollout(world):
    world.first()
    with pytest.raises(CommandRefused, match="already stable"):
        world.deploy("1.0.0")
    world.deploy("1.0.1")
    world.until(lambda: world.status.rollout.stage is Stage.STEPPING)
    world.deploy("1.0.0")
    assert world.status.canary is None
    assert world.gateways[0].request(world.rng).version == "1.0.0"


def test_pause_holds_and_does_not_switch_safety_off(world):
    world.first()
    world.deploy("1.1.0")
    world.until(lambda: world.status.rollout.stage is Stage.STEPPING)
    world.say(Verb.PAUSE)
    for _ in range(60):
        world.step(requests=20)
    assert (world.status.phase, world.status.rollout.step) == (Phase.PAUSED, 0)
    world.faults["1.1.0"] = {Signal.ERROR: 0.9}
    world.until(lambda: world.status.phase is Phase.DEGRADED)


def test_promote_by_hand_skips_the_wait_but_not_readiness(world):
    world.first()
    world.load_s = 3
    world.deploy("1.0.1")
    with pytest.raises(CommandRefused, match="not ready"):
        world.say(Verb.PROMOTE)
    world.until(lambda: world.status.rollout.stage is Stage.STEPPING)
    world.say(Verb.PROMOTE)
    assert world.status.rollout.weight == 50
    world.say(Verb.PROMOTE, full=True)
    assert world.status.stable.version == "1.0.1"


def test_events_sent_twice_count_once(world):
    world.first()
    world.faults = {"1.0.0": {Signal.ERROR: 0.3}, "1.0.1": {Signal.ERROR: 0.3}}
    world.deploy("1.0.1")
    world.until(lambda: world.status.rollout.stage is Stage.STEPPING)
    for _ in range(20):
        world.step(requests=20, doubled=True)
    error = next(s for s in world.controller.observation(MODEL).signals if s.name == Signal.ERROR)
    sent = world.gateways[0].sequence
    assert error.canary.events + error.stable.events == sent


def test_a_controller_killed_at_any_point_goes_on_where_it_stood(world):
    world.first()
    world.faults = {"1.0.0": {Signal.ERROR: 0.02}, "1.1.0": {Signal.ERROR: 0.3}}
    world.deploy("1.1.0")
    for _ in range(400):
        world.step(requests=5)
        signals, status = world.controller.observation(MODEL).signals, world.status
        world.start_controller()
        assert world.status == status
        again = world.controller.observation(MODEL).signals
        assert [(s.name, s.log_e, s.canary.events) for s in again] == [
            (s.name, s.log_e, s.canary.events) for s in signals
        ]
        if world.status.phase is Phase.DEGRADED:
            break
    assert world.status.phase is Phase.DEGRADED
    promoted = [e for e in world.log.read(kinds=[Kind.DECISION]) if "promote" in str(e.payload["decision"]["actions"])]
    assert len(promoted) == 1  # the first version's, once


def test_the_log_explains_and_replays_itself(world):
    world.first()
    world.faults["1.1.0"] = {Signal.LENGTH_STOP: 0.9}
    world.deploy("1.1.0")
    world.until(lambda: world.status.phase is Phase.DEGRADED)
    world.until(lambda: not world.status.retiring)
    decisions = replay(world.log.read(model=MODEL))
    assert len(decisions) >= 4
    assert all(d.same for d in decisions), [d for d in decisions if not d.same]
    seen = [e.payload["observation"] for e in world.log.read(kinds=[Kind.DECISION])]
    failed = [s for o in seen for s in o["signals"] if s["verdict"] == Verdict.FAILED]
    assert failed
    assert failed[0]["name"] == Signal.LENGTH_STOP


def test_a_gateway_cut_off_stops_feeding_the_canary(world):
    world.first()
    world.deploy("1.0.1")
    world.until(lambda: world.status.rollout.stage is Stage.STEPPING)
    world.gateways[0].cut = True
    world.now += 20
    assert all(world.gateways[0].request(world.rng).role is Role.STABLE for _ in range(100))


def test_two_controllers_never_both_write(world):
    world.first()
    world.deploy("1.0.1")
    old = world.controller
    world.start_controller()
    with pytest.raises(Exception, match="not the newest"):
        world.run(old.execute(MODEL, Command(verb=Verb.ABORT, actor="old")))
