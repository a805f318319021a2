"""What a resource asks for: the precedence of the guards, one named case each."""

from __future__ import annotations

from typing import Any

import pytest

from rollout.actions import Acknowledge, Start, Undeploy
from rollout.asks import Asked, noted
from rollout.commands import Command, Verb
from rollout.decision import Cause, Decision
from rollout.operator.intent import Ask, Known, intent, rivals
from rollout.operator.names import FINALIZER
from rollout.operator.resource import Order, Resource, Unreadable, digest, read_order, read_resource
from rollout.status import ModelStatus, RolloutState, Stage
from tests.simulation.world import deployed, spec

STABLE, NEXT = deployed("1.0.0"), deployed("1.1.0")


def resource(version: str = "1.1.0", *, held: bool = True, going: bool = False, **more: Any) -> Resource:
    metadata: dict[str, Any] = {"name": "chat", "namespace": "models", "uid": "u1", "generation": 2}
    metadata |= {"creationTimestamp": "2026-01-01T00:00:00Z", "resourceVersion": "7"}
    metadata |= {"finalizers": [FINALIZER]} if held else {}
    metadata |= {"deletionTimestamp": "2026-01-02T00:00:00Z"} if going else {}
    metadata["annotations"] = {f"tidegate.dev/{k}": v for k, v in more.pop("say", {}).items()}
    body = {"metadata": metadata, "spec": {"model": "chat", "version": version, **more.pop("spec", {})}}
    return read_resource({**body, "status": more.pop("status", {})})


def rolling(*, paused: bool = False, stage: Stage = Stage.STEPPING) -> ModelStatus:
    state = RolloutState(
        id="r1", spec=spec("1.1.0"), target=NEXT, salt="s", stage=stage, paused=paused, started_at=0, step_started_at=0
    )
    return ModelStatus(model="chat", stable=STABLE, rollout=state)


SERVING = ModelStatus(model="chat", stable=STABLE)
WISH = resource().wish
DONE = Asked(wish=WISH)
OLDER = resource()

PAUSED, BY_WISH = rolling(paused=True), Asked(wish=WISH, pause="p")
ROLLBACK = {"rollback": "x"}

CASES: list[tuple[str, Resource, Known, Ask, Verb | None]] = [
    ("nothing new", resource(), Known(SERVING, DONE), Ask.NOTHING, None),
    ("a new wish", resource(), Known(SERVING), Ask.DEPLOY, Verb.DEPLOY),
    ("tried just now", resource(), Known(SERVING, tried=WISH), Ask.NOTHING, None),
    ("needed no deployment", resource(status={"handledWish": WISH}), Known(SERVING), Ask.NOTHING, None),
    ("the hold comes first", resource(held=False), Known(SERVING), Ask.HOLD, None),
    ("the name comes before the hold", resource(held=False), Known(SERVING, rival=OLDER), Ask.REFUSE_NAME, None),
    ("a rollback before a wish", resource(say=ROLLBACK), Known(SERVING), Ask.COMMAND, Verb.ROLLBACK),
    (
        "a rollback before a spec that can't be read",
        resource(spec={"steps": 3}, say=ROLLBACK),
        Known(SERVING),
        Ask.COMMAND,
        Verb.ROLLBACK,
    ),
    (
        "a promotion not before it",
        resource(spec={"steps": 3}, say={"promote": "x"}),
        Known(SERVING),
        Ask.REFUSE_SPEC,
        None,
    ),
    ("rollback before abort", resource(say={"abort": "y", **ROLLBACK}), Known(SERVING), Ask.COMMAND, Verb.ROLLBACK),
    (
        "done according to the log",
        resource(say=ROLLBACK),
        Known(SERVING, Asked(wish=WISH, commands={Verb.ROLLBACK: digest("x")})),
        Ask.NOTHING,
        None,
    ),
    (
        "refused according to the status",
        resource(
            say={"abort": "x"}, status={"commands": [{"verb": "abort", "id": digest("x"), "outcome": "Refused"}]}
        ),
        Known(SERVING, DONE),
        Ask.NOTHING,
        None,
    ),
    ("an order that can't be read", resource(say={"undo": "{"}), Known(SERVING, DONE), Ask.REFUSE_ORDER, Verb.UNDO),
    ("a pause", resource(say={"pause": "x"}), Known(rolling(), DONE), Ask.COMMAND, Verb.PAUSE),
    ("a pause of nothing", resource(say={"pause": "x"}), Known(SERVING, DONE), Ask.NOTHING, None),
    ("paused already", resource(say={"pause": "x"}), Known(PAUSED, BY_WISH), Ask.NOTHING, None),
    ("a pause that is over", resource(), Known(PAUSED, BY_WISH), Ask.COMMAND, Verb.RESUME),
    ("a pause that nobody asked for", resource(), Known(PAUSED, DONE), Ask.NOTHING, None),
    ("more replicas", resource(spec={"engine": {"minReplicas": 2}}), Known(SERVING, DONE), Ask.COMMAND, Verb.SCALE),
    (
        "more replicas later",
        resource(spec={"engine": {"minReplicas": 2}}),
        Known(rolling(), DONE),
        Ask.NOTHING,
        None,
    ),
    ("going, and it serves", resource(going=True), Known(SERVING), Ask.UNDEPLOY, Verb.UNDEPLOY),
    ("going, and nothing was deployed", resource(going=True), Known(), Ask.RELEASE, None),
    ("going, and it is another's", resource(going=True), Known(SERVING, rival=OLDER), Ask.RELEASE, None),
    ("going, and let go", resource(going=True, held=False), Known(SERVING), Ask.NOTHING, None),
    ("going before anything else", resource(going=True, say=ROLLBACK), Known(SERVING), Ask.UNDEPLOY, Verb.UNDEPLOY),
]  # fmt: skip


@pytest.mark.parametrize(("of", "known", "ask", "verb"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_the_first_guard_that_applies(of: Resource, known: Known, ask: Ask, verb: Verb | None) -> None:
    found = intent(of, known)
    assert (found.ask, found.verb or (found.command.verb if found.command else None)) == (ask, verb)


def test_how_much_of_it_and_by_whom_is_no_wish_of_its_own() -> None:
    for change in (
        {"paused": True}, {"engine": {"minReplicas": 3, "maxReplicas": 9}}, {"rollbackWindow": "1h"},
        {"drainDeadline": "1m"}, {"progressDeadlineSeconds": 60}, {"revisionHistoryLimit": 1}, {"emergency": False},
    ):  # fmt: skip
        assert resource(spec=change).wish == WISH, change
    for change in ({"engine": {"image": "x"}}, {"emergency": True}, {"strategy": {"ab": {}}}):
        assert resource(spec=change).wish != WISH, change


def test_the_oldest_keeps_a_name() -> None:
    made = [("b", "2026-01-02"), ("a", "2026-01-02"), ("c", "2026-01-01")]
    bodies = [
        {"metadata": {"name": n, "uid": n, "creationTimestamp": at}, "spec": {"model": "chat", "version": "1"}}
        for n, at in made
    ]
    found = rivals([read_resource(b) for b in bodies])
    assert {uid: r.uid for uid, r in found.items()} == {"a": "c", "b": "c"}
    assert {uid: r.uid for uid, r in rivals([read_resource(b) for b in bodies[:2]]).items()} == {"b": "a"}


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ("answers in riddles", Order(id=digest("answers in riddles"), reason="answers in riddles")),
        ("", Order(id=digest(""))),
        ('{"id": "a", "to": "1.2.0"}', Order(id="a", to="1.2.0")),
        (' {"full": true}', Order(id=digest(' {"full": true}'), full=True)),
    ],
)
def test_orders_are_json_or_a_reason(said: str, read: Order) -> None:
    assert read_order(said) == read


@pytest.mark.parametrize("said", ["{", '{"too": 1}', '{"id": ""}', '{"full": "perhaps"}', '{"id": 3}'])
def test_other_json_is_refused(said: str) -> None:
    found = read_order(said)
    assert isinstance(found, Unreadable)
    assert "id, reason, to, full, by" in found.problem


def command(verb: Verb, ask: str = "w") -> Command:
    return Command(verb=verb, actor="a", ask=ask)


def test_the_log_remembers_a_wish_until_somebody_looked_at_it_or_it_is_gone() -> None:
    start = Start(rollout="r", spec=spec("1.1.0"), target=NEXT, salt="s")
    asked = noted(Asked(), Decision(cause=Cause.COMMAND, reason="", actions=(start,)), command(Verb.DEPLOY))
    assert (asked.wish, asked.digest) == ("w", NEXT.digest)
    other = Decision(cause=Cause.COMMAND, reason="", actions=(Acknowledge(digest=STABLE.digest),))
    assert noted(asked, other, None).wish == "w", "another revision was looked at"
    own = Decision(cause=Cause.COMMAND, reason="", actions=(Acknowledge(digest=NEXT.digest),))
    assert noted(asked, own, None).wish == ""
    gone = Decision(cause=Cause.COMMAND, reason="", actions=(Undeploy(),))
    assert noted(asked, gone, command(Verb.UNDEPLOY)).wish == ""
    rollback = noted(asked, Decision(cause=Cause.COMMAND, reason=""), command(Verb.ROLLBACK, "r1"))
    assert (rollback.wish, rollback.commands[Verb.ROLLBACK]) == ("w", "r1")
