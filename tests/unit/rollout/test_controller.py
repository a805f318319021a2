"""The controller when its log is away, when replies are lost, and what a restarted one must know. Virtual time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rollout.actions import Trigger
from rollout.commands import Verb
from rollout.controller import KEEP_EVIDENCE_S
from rollout.errors import EventLogUnavailable, LogConflict, NotLeading
from rollout.event_log.base import Kind
from rollout.event_log.memory import MemoryEventLog
from rollout.fold import FORGET_S
from rollout.observation import SmokeResult, Verdict
from rollout.status import Stage
from serving.outcomes import Signal
from serving.traffic import Role
from tests.simulation.world import MODEL, World


class UncertainLog(MemoryEventLog):
    """A log that can be away, and that can do what it is asked and then lose the reply."""

    def __init__(self) -> None:
        super().__init__()
        self.away = False
        self.loses_replies = 0

    def _reach(self) -> None:
        if self.away:
            raise EventLogUnavailable("the log is away")

    def renew(self, holder, fence):
        self._reach()
        return super().renew(holder, fence)

    def append(self, entries, fence):
        self._reach()
        ids = super().append(entries, fence)
        if self.loses_replies:
            self.loses_replies -= 1
            raise EventLogUnavailable("the reply was lost")
        return ids

    def read(self, **narrowed):
        self._reach()
        return super().read(**narrowed)


@pytest.fixture
def log() -> UncertainLog:
    return UncertainLog()


@pytest.fixture
def world(log) -> Iterator[World]:
    made = World(seed=5, event_log=log)
    yield made
    made.close()


def with_canary(world: World, version: str = "1.0.1") -> None:
    world.first()
    world.deploy(version)
    world.until(lambda: world.status.rollout.stage is Stage.STEPPING)
    world.step()


def weight(world: World) -> int:
    table = world.gateways[0].table
    traffic = table.model(MODEL) if table is not None else None
    canary = traffic.by_role(Role.CANARY) if traffic is not None else None
    return 0 if canary is None else canary.weight


def commands(world: World) -> list[str]:
    return [e.payload["command"]["verb"] for e in world.log.read(kinds=[Kind.COMMAND])]


def test_nothing_is_decided_and_nothing_accepted_while_the_log_is_away(world, log):
    with_canary(world)
    world.faults["1.0.1"] = {Signal.ERROR: 1.0}
    log.away = True
    for _ in range(20):
        world.step(requests=50)
    gateway = world.gateways[0]
    assert world.controller.store_message == "the log is away"
    assert (world.status.rollout.stage, weight(world)) == (Stage.STEPPING, 10)
    assert len(gateway.events) > 50
    with pytest.raises(EventLogUnavailable, match="away"):
        world.say(Verb.ABORT)
    log.away = False
    world.until(lambda: world.status.rollout.stage is Stage.WITHDRAWN, steps=10)
    world.step()
    assert weight(world) == 0
    assert world.controller.store_message == ""
    assert gateway.events == []
    booked = [e["sequence"] for entry in log.read(kinds=[Kind.EVIDENCE]) for e in entry.payload.get("events", ())]
    assert booked == list(range(1, len(booked) + 1))


def test_a_command_whose_reply_was_lost_is_found_and_carried_out_once(world, log):
    with_canary(world)
    log.loses_replies = 1
    with pytest.raises(EventLogUnavailable, match="lost"):
        world.say(Verb.ABORT)
    assert world.status.rollout.stage is Stage.STEPPING
    told: list[str] = []
    world.controller.subscribe(lambda status: told.append(status.rollout.stage))
    world.step()
    world.step()
    assert told[0] is Stage.WITHDRAWN
    assert (world.status.rollout.stage, weight(world)) == (Stage.WITHDRAWN, 0)
    assert commands(world) == ["deploy", "deploy", "abort"]


def test_a_decision_whose_reply_was_lost_is_not_taken_twice(world, log):
    with_canary(world)
    decided = [e.id for e in log.read(kinds=[Kind.DECISION])][-1]
    world.faults["1.0.1"] = {Signal.ERROR: 1.0}
    log.loses_replies = 3
    world.until(lambda: world.status.rollout.stage is Stage.WITHDRAWN)
    world.step()
    withdrawn = [
        action["type"]
        for entry in log.read(kinds=[Kind.DECISION], after=decided)
        for action in entry.payload["decision"]["actions"]
    ]
    assert withdrawn.count("withdraw") == 1
    assert log.loses_replies == 0


def test_evidence_whose_reply_was_lost_counts_once(world, log):
    with_canary(world)
    world.faults = {v: {Signal.ERROR: 0.05} for v in ("1.0.0", "1.0.1")}
    for n in range(20):
        log.loses_replies = n % 3
        world.step(requests=20)
    log.loses_replies = 0
    for _ in range(4):
        world.step()
    error = next(s for s in world.controller.observation(MODEL).signals if s.name == Signal.ERROR)
    assert error.canary.events + error.stable.events == world.gateways[0].sequence


def test_a_controller_that_was_replaced_meanwhile_gives_up_when_the_log_is_back(world, log):
    with_canary(world)
    log.away = True
    with pytest.raises(EventLogUnavailable):
        world.say(Verb.ABORT)
    log.away = False
    log.acquire("another", now=0.0, ttl_s=0.0)
    log.acquire("another", now=1.0, ttl_s=0.0)
    world.now += 1.0
    with pytest.raises(LogConflict):
        world.step()
    assert commands(world) == ["deploy", "deploy"]


def test_counters_are_in_the_log_before_the_decision_that_used_them(world, log):
    with_canary(world)
    world.until(lambda: world.status.rollout.stage is not Stage.STEPPING or world.status.rollout.step > 0)
    entries = list(log.read())
    decided = next(e for e in reversed(entries) if e.kind is Kind.DECISION)
    used = {s["canary"]["n"] for s in decided.payload["observation"]["signals"]}
    newest: dict[tuple[str, int], int] = {}
    for entry in entries:
        if entry.kind is Kind.EVIDENCE and entry.id < decided.id:
            for total in entry.payload.get("totals", ()):
                if total["role"] == "canary" and total["rollout"] == world.status.rollout.id:
                    newest[(entry.payload["gateway"], total["weight"])] = total["admitted"]
    assert used == {sum(newest.values())}


def test_a_restarted_controller_reads_the_evidence_of_what_is_judged_and_of_what_has_just_ended(world, log):
    with_canary(world)
    world.faults["1.0.1"] = {Signal.ERROR: 1.0}
    world.until(lambda: world.status.rollout.stage is Stage.WITHDRAWN)
    world.step(requests=10)
    world.step()
    before = world.controller.observation(MODEL)
    world.start_controller()
    after = world.controller.observation(MODEL)
    assert (after.signals, after.exposure) == (before.signals, before.exposure)
    assert before.exposure.canary_requests > 0
    assert world.controller.folded.taken_back == {MODEL: Trigger.SIGNAL}
    world.deploy("1.1.0")
    assert world.controller.folded.taken_back == {}, "why the last one was taken back is no longer so of the next"


def test_evidence_of_a_rollout_that_ended_long_ago_is_shown_as_it_was_decided(world, log):
    with_canary(world)
    world.faults["1.0.1"] = {Signal.ERROR: 1.0}
    world.until(lambda: world.status.rollout.stage is Stage.WITHDRAWN)
    decided = next(e for e in log.read(kinds=[Kind.DECISION]) if "withdraw" in str(e.payload["decision"]))
    world.now += FORGET_S + 1
    world.start_controller()
    seen = world.controller.observation(MODEL)
    assert [s.verdict for s in seen.signals if s.name == Signal.ERROR] == [Verdict.FAILED]
    assert seen.model_dump(mode="json")["signals"] == decided.payload["observation"]["signals"]


def test_tidying_keeps_all_that_a_restart_needs(world, log):
    with_canary(world)
    world.say(Verb.ABORT)
    world.deploy("1.1.0")
    world.until(lambda: world.status.rollout.stage is Stage.STEPPING)
    for _ in range(3):
        world.step(requests=20)
    evidence = {e.rollout for e in log.read(kinds=[Kind.EVIDENCE])}
    assert len(evidence) >= 1
    before = world.status
    world.now += KEEP_EVIDENCE_S + FORGET_S
    world.run(world.controller.tidy())
    assert {e.rollout for e in log.read(kinds=[Kind.EVIDENCE])} == {before.rollout.id}
    world.start_controller()
    assert world.status == before


def test_a_follower_speaks_for_nothing(world):
    other = World(event_log=MemoryEventLog())
    other.controller._leadership.fence = None
    for asked in (lambda: other.controller.status(MODEL), lambda: other.run(other.controller.tidy())):
        with pytest.raises(NotLeading):
            asked()
    other.close()


def test_what_the_smoke_suite_found_is_seen_whether_noted_or_asked_for(world):
    with_canary(world)
    noted = SmokeResult(passed=True, ran=3)
    world.controller.note_smoke(world.status.rollout.id, noted)
    assert world.controller.observation(MODEL).smoke == noted
    asked = SmokeResult(passed=False, ran=2, failed=("hello",))
    world.controller._watching._smoke.clear()
    world.controller._watching._ask_smoke = lambda status: asked if status.model == MODEL else None
    assert world.controller.observation(MODEL).smoke == asked


def test_measured_evidence_of_another_rollout_is_left_out(world, log):
    from rollout.analysis.ledger import EvidenceIncrement

    with_canary(world)
    before = len(list(log.read()))
    world.controller.on_measured(MODEL, EvidenceIncrement(rollout="another", gateway="poller", boot="b"))
    world.controller.on_measured("unknown", EvidenceIncrement(rollout="another", gateway="poller", boot="b"))
    assert len(list(log.read())) == before
    increment = EvidenceIncrement(rollout=world.status.rollout.id, gateway="poller", boot="b")
    world.controller.on_measured(MODEL, increment)
    assert [e.rollout for e in log.read(after=before)] == [increment.rollout]
