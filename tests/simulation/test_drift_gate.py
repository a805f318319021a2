"""A rollout waits while requests have drifted, goes on once somebody has looked, and is never taken back for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from rollout.drift_gate import DriftUnavailable, drift_reasons
from rollout.errors import InvalidSpec
from rollout.event_log.base import Kind
from rollout.gates import Gate, gated
from rollout.observation import Verdict
from rollout.replay import replay
from rollout.specs import parse_spec
from rollout.status import Phase
from serving.outcomes import Signal
from tests.simulation.world import MODEL, World
from tests.unit.rollout.evidence import make

GATED = {"analysis": {"signals": [{"name": "error"}, {"name": "drift/input"}]}}


class Watch:
    """What a drift watch answers."""

    def __init__(self) -> None:
        self.paging = False
        self.away = False
        self.references = True
        self.behind_s = 0.0


@pytest.fixture
def world() -> Iterator[World]:
    made = World(seed=1)
    yield made
    made.close()


def gate(world: World, watch: Watch) -> Gate:
    async def read() -> Mapping[str, Any]:
        if watch.away:
            raise DriftUnavailable("the drift watch does not answer")
        stream = {"model": MODEL, "stream": "all", "paging": watch.paging}
        return {"written_at": world.now - watch.behind_s, "streams": [stream] if watch.references else []}

    return Gate(
        drift_reasons(read, lambda: world.now),
        source="drift",
        wanted=lambda: gated(world.controller.statuses, "drift"),
        sink=world.controller.on_measured,
        boot="b",
        clock=lambda: world.now,
    )


def advance(world: World, asked: Gate, seconds: float = 60.0) -> None:
    for _ in range(int(seconds * 2)):
        world.run(asked.once())
        world.step(0.5, requests=20)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"paging": True}, "tidegate drift explain"),
        ({"away": True}, "does not answer"),
        ({"references": False}, "has no reference"),
        ({"behind_s": 60.0}, "has said nothing since 1970-01-1"),
    ],
)
def test_a_rollout_waits_and_goes_on(world: World, change: dict[str, Any], why: str) -> None:
    watch, fine = Watch(), Watch()
    asked = gate(world, watch)
    world.first()
    vars(watch).update(change)
    world.deploy("1.0.1", **GATED)
    advance(world, asked, 30)
    assert world.status.phase is Phase.PROGRESSING
    assert world.status.rollout is not None
    assert world.status.rollout.step == 0
    (reading,) = [s for s in world.controller.observation(MODEL).signals if s.name == "drift/input"]
    assert reading.verdict is Verdict.ERROR
    assert why in reading.error
    vars(watch).update(vars(fine))
    advance(world, asked, 60)
    assert world.status.phase is Phase.HEALTHY
    assert world.status.stable is not None
    assert world.status.stable.version == "1.0.1"


def test_drift_neither_takes_a_version_back_nor_keeps_a_broken_one(world: World) -> None:
    watch = Watch()
    asked = gate(world, watch)
    world.first()
    watch.paging = True
    world.faults["1.1.0"] = {Signal.ERROR: 1.0}
    world.deploy("1.1.0", **GATED)
    advance(world, asked)
    assert world.status.phase is Phase.DEGRADED
    assert "error" in world.status.reason
    assert "drift" not in world.status.reason


def test_only_changes_are_logged_and_the_log_tells_the_same_again(world: World) -> None:
    watch = Watch()
    asked = gate(world, watch)
    world.first()
    world.deploy("1.0.1", **GATED)
    advance(world, asked, 5)
    watch.paging = True
    advance(world, asked, 30)
    entries = list(world.log.read())
    told = [e for e in entries if e.kind is Kind.EVIDENCE and '"drift"' in str(e.payload).replace("'", '"')]
    assert len(told) == 2
    assert all(r.same for r in replay(entries))


def test_a_watch_that_has_stopped_is_one_line_in_the_log_and_an_ended_rollout_none(world: World) -> None:
    """It told its age, which is another reason every two seconds."""
    watch = Watch()
    asked = gate(world, watch)
    world.first()
    world.deploy("1.0.1", **GATED)

    def told() -> int:
        return sum(e.kind is Kind.EVIDENCE and e.payload.get("gateway") == "drift" for e in world.log.read())

    def stopped(seconds: int) -> None:
        for _ in range(seconds):
            watch.behind_s += 1.0
            world.run(asked.once())
            world.step(1.0, requests=5)

    stopped(40)
    assert told() == 2, "all is well, then it has stopped"
    watch.behind_s = 0.0
    advance(world, asked)
    assert world.status.stable is not None
    assert world.status.stable.version == "1.0.1"
    world.step(200_000.0)
    before = told()
    stopped(40)
    assert told() == before


def test_a_gate_takes_no_part_of_alpha_and_says_nothing_before_it_is_asked() -> None:
    with_gate, without = make({"name": "error"}, {"name": "drift/input"}), make({"name": "error"})
    error, gated_reading = with_gate.readings()
    assert error.threshold == without.readings()[0].threshold
    assert (gated_reading.verdict, gated_reading.error) == (Verdict.ERROR, "the drift watch has not been asked yet")
    with pytest.raises(InvalidSpec, match="of drift there is drift/input"):
        parse_spec({"model": "chat", "version": "1.0.0", "analysis": {"signals": [{"name": "drift/output"}]}})


def test_a_gate_outlives_an_answer_that_is_none_and_says_what_it_waits_for(world: World) -> None:
    """It ended for ever, and the rollout waited with the words of the last answer that could be read."""
    answers: list[Mapping[str, Any]] = [{"error": "another version of the watch"}]

    async def read() -> Mapping[str, Any]:
        return answers[-1]

    asked = Gate(
        drift_reasons(read, lambda: world.now),
        source="drift",
        wanted=lambda: gated(world.controller.statuses, "drift"),
        sink=world.controller.on_measured,
        boot="b",
        clock=lambda: world.now,
    )
    world.deploy("1.0.0")
    world.deploy("1.0.1", **GATED)
    advance(world, asked, 5.0)
    signals = {s.name: s for s in world.controller.observation(MODEL).signals}
    assert "can't be read (KeyError" in signals["drift/input"].error
    answers.append({"written_at": float("inf"), "streams": [{"model": MODEL, "stream": "all", "paging": False}]})
    advance(world, asked, 5.0)
    signals = {s.name: s for s in world.controller.observation(MODEL).signals}
    assert signals["drift/input"].error == ""
