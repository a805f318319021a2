"""Whatever people, crashes and the API server do in whatever order: nothing is done twice, and it ends up right."""

from __future__ import annotations

import inspect
import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rollout.commands import Command, Verb
from rollout.event_log.base import Kind
from rollout.operator import intent as intents
from rollout.operator.resource import wish_of
from rollout.specs import parse_spec
from serving.outcomes import Signal
from tests.kubernetes.world import OperatorWorld

BAD = "1.3.0"
VERSIONS = ("1.1.0", "1.2.0", BAD)

ACTS = st.one_of(
    st.tuples(st.just("apply"), st.sampled_from(VERSIONS)),
    st.tuples(st.sampled_from(["rollback", "promote", "abort", "ack", "retry"]), st.integers(0, 3)),
    st.tuples(st.just("pause"), st.booleans()),
    st.tuples(st.just("crash"), st.none()),
    st.tuples(st.just("deaf"), st.booleans()),
    st.tuples(st.just("away"), st.booleans()),
    st.tuples(st.just("trouble"), st.sampled_from([0.0, 0.2, 0.6])),
    st.tuples(st.just("time"), st.integers(1, 8)),
    st.tuples(st.just("again"), st.none()),
)


def act(world: OperatorWorld, what: str, value: Any) -> None:
    match what:
        case "apply":
            world.apply(value, rollbackWindow="20s")
        case "rollback" | "promote" | "abort" | "ack" | "retry":
            world.annotate(what, {"id": f"{what}-{value}"})
        case "pause":
            world.annotate("pause", "wait" if value else "false")
        case "crash":
            world.start_controller()
        case "deaf":
            world.deaf = value
        case "away":
            world.writer.away = value
        case "trouble":
            world.writer.chance = value
        case "time":
            for _ in range(value):
                world.step(requests=15)
        case "again":
            world.listen_anew()
    world.step(requests=5)


def commands(world: OperatorWorld) -> list[tuple[Command, list[str]]]:
    """What was commanded, as the log has it, with the actions that followed."""
    entries = world.log.read(model="chat", kinds=(Kind.COMMAND,))
    return [
        (Command.model_validate(e.payload["command"]), [a["type"] for a in e.payload["decision"]["actions"]])
        for e in entries
    ]


def check_done_once(world: OperatorWorld) -> None:
    """No order was carried out twice, and no wish without a reason that lies between."""
    said = commands(world)
    orders = Counter((c.verb, c.ask) for c, _ in said if c.verb in (Verb.ROLLBACK, Verb.ABORT, Verb.ACK, Verb.RETRY))
    assert max(orders.values(), default=0) <= 1, orders
    wish = ""
    for command, _ in said:
        if command.verb is Verb.DEPLOY:
            assert command.ask != wish, f"the wish {wish} was carried out twice: {said}"
            wish = command.ask
        elif command.verb is Verb.ACK:
            wish = ""


def run(acts: list[tuple[str, Any]]) -> None:
    world = OperatorWorld()
    try:
        world.faults[BAD] = {Signal.ERROR: 0.5}
        world.apply("1.0.0", rollbackWindow="20s")
        world.until(lambda: world.serving("1.0.0"))
        for what, value in acts:
            act(world, what, value)
            check_done_once(world)
            assert world.status.stable is not None, "stable serves throughout"
        world.deaf = world.writer.away = False
        world.writer.chance = 0.0
        world.listen_anew()
        for _ in range(12):
            world.step(seconds=2.0, requests=30)
        check_done_once(world)
        check_told(world)
        if world.status.canary is None:
            check_quiet(world)
    finally:
        world.close()


def check_told(world: OperatorWorld) -> None:
    """Once all is well again the resource tells what is, and telling it again writes nothing."""
    told, status, resource = world.told(), world.status, world.resource()
    assert status.stable is not None
    assert told["stable"] == status.stable.version
    assert told.get("canary") == (status.canary.version if status.canary else None)
    assert told["observedGeneration"] == resource["metadata"]["generation"]
    assert told["phase"] == status.phase
    if BAD in (told.get("stable"), told.get("canary")):
        assert status.rollout is not None
    for verb in ("rollback", "abort", "ack", "retry", "promote"):
        said = resource["metadata"].get("annotations", {}).get(f"tidegate.dev/{verb}")
        if said is not None:
            handled = {c["verb"]: c["id"] for c in told["commands"]}
            asked = world.controller.asked("chat").commands
            assert json.loads(said)["id"] in (handled.get(verb), asked.get(Verb(verb))), f"{verb} was not handled"
    asked = world.controller.asked("chat")
    progressing = next(c for c in told["conditions"] if c["type"] == "Progressing")
    wish = wish_of(parse_spec(resource["spec"]))
    assert wish in (asked.wish, told.get("handledWish")) or progressing["reason"] == "Quarantined", "it was carried out"


def check_quiet(world: OperatorWorld) -> None:
    """When nothing rolls out any more, nothing is written any more."""
    quiet, before = 0, len(world.writer.writes)
    for _ in range(60):
        world.step(seconds=5.0)
        quiet = quiet + 1 if len(world.writer.writes) == before else 0
        before = len(world.writer.writes)
        if quiet == 8:  # longer than any pause between two looks
            return
    raise AssertionError(f"it goes on writing: {world.told()}")


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(st.lists(ACTS, max_size=10))
@example([("apply", BAD), ("time", 8), ("crash", None), ("ack", 0), ("crash", None), ("time", 8)])
@example([("apply", "1.1.0"), ("trouble", 0.6), ("rollback", 0), ("crash", None), ("time", 4), ("crash", None)])
def test_whatever_happens_it_ends_up_right(acts: list[tuple[str, Any]]) -> None:
    run(acts)


ORDERS = [
    *[("apply", "1.1.0"), ("time", 4), ("abort", 0), ("time", 3), ("crash", None), ("time", 3)],
    *[("apply", "1.2.0"), ("time", 8)],
]
MUTANTS = {
    "handled orders are forgotten": (
        "_pending",
        "order.id == known.asked.commands.get(verb) or _was_handled(resource, verb, order.id)",
        "False",
    ),
    "carried out wishes are forgotten": (
        "_wish",
        "(known.asked.wish, known.tried, resource.status.handled_wish)",
        "(known.tried,)",
    ),
}


def test_those_orders_are_carried_out_rightly() -> None:
    run(ORDERS)


@pytest.mark.parametrize("mutant", MUTANTS)
def test_planted_faults_are_seen(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, old, new = MUTANTS[mutant]
    source = inspect.getsource(getattr(intents, name))
    assert old in source
    space = dict(vars(intents))
    exec(compile(source.replace(old, new), name, "exec"), space)
    monkeypatch.setattr(intents, name, space[name])
    with pytest.raises(AssertionError):
        run(ORDERS)
