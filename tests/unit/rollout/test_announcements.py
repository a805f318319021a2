"""What of the log people are told: which happening each action is, and that an entry always gives the same ids."""

from __future__ import annotations

import pytest

from rollout.actions import (
    Action,
    Degrade,
    Mirror,
    Pause,
    Preview,
    Promote,
    Remove,
    Resume,
    RetirePrevious,
    SetStep,
    Start,
    SwitchBack,
    Trigger,
    Withdraw,
)
from rollout.announcements import announce
from rollout.decision import Cause, Decision
from rollout.event_log.base import Entry, Kind
from rollout.notifications.base import Happening
from rollout.status import ModelStatus
from tests.simulation.world import deployed, spec


def entry(number: int, *actions: Action, at: float = 100.0, reason: str = "理由") -> Entry:
    decision = Decision(cause=Cause.PROGRESS, reason=reason, actions=actions)
    payload = {"decision": decision.model_dump(mode="json"), "observation": None, "command": None}
    return Entry(id=number, fence=1, model="chat", at=at, kind=Kind.DECISION, actor="controller", payload=payload)


def start(version: str) -> Start:
    return Start(rollout=f"r-{version}", spec=spec(version), target=deployed(version), salt="0123456789abcdef")


FIRST = (start("1.0.0"), Promote())


def after(*actions: Action) -> ModelStatus:
    status, _ = announce(ModelStatus(model="chat"), entry(1, *FIRST, *actions))
    return status


@pytest.mark.parametrize(
    ("before", "actions", "told"),
    [
        ((), (start("1.1.0"),), [(Happening.STARTED, "1.1.0")]),
        ((start("1.1.0"),), (SetStep(step=0, weight=10),), [(Happening.STEP, "1.1.0")]),
        ((start("1.1.0"),), (Preview(),), [(Happening.STEP, "1.1.0")]),
        ((start("1.1.0"),), (Mirror(percent=5),), [(Happening.STEP, "1.1.0")]),
        ((start("1.1.0"),), (Pause(),), [(Happening.PAUSED, "1.1.0")]),
        ((start("1.1.0"), Pause()), (Resume(),), [(Happening.RESUMED, "1.1.0")]),
        ((start("1.1.0"),), (Promote(),), [(Happening.PROMOTED, "1.1.0")]),
        ((start("1.1.0"),), (Withdraw(trigger=Trigger.SIGNAL, condemn=True),), [(Happening.ROLLED_BACK, "1.1.0")]),
        (
            (start("1.1.0"),),
            (Withdraw(trigger=Trigger.ENGINE_LOST, condemn=False),),
            [(Happening.ROLLED_BACK, "1.1.0")],
        ),
        ((start("1.1.0"),), (Withdraw(trigger=Trigger.ABORT, condemn=False),), [(Happening.ABORTED, "1.1.0")]),
        (
            (start("1.1.0"),),
            (Withdraw(trigger=Trigger.SUPERSEDED, condemn=False), start("1.2.0")),
            [(Happening.SUPERSEDED, "1.1.0"), (Happening.STARTED, "1.2.0")],
        ),
        ((start("1.1.0"), Promote()), (SwitchBack(trigger=Trigger.OPERATOR),), [(Happening.ROLLED_BACK, "1.1.0")]),
        ((), (Degrade(),), [(Happening.DEGRADED, "1.0.0")]),
        ((start("1.1.0"), Promote()), (RetirePrevious(), Remove(digest=deployed("1.0.0").digest)), []),
    ],
    ids=[
        "start",
        "step",
        "preview",
        "mirror",
        "pause",
        "resume",
        "promote",
        "evidence against it",
        "its engine keeps dying",
        "abort",
        "superseded by another",
        "switch back",
        "nothing to go back to",
        "clearing up",
    ],
)
def test_what_an_action_means_to_people(
    before: tuple[Action, ...], actions: tuple[Action, ...], told: list[tuple[Happening, str]]
) -> None:
    _, found = announce(after(*before), entry(2, *actions))
    assert [(n.type, n.data["version"]) for n in found] == told
    assert all(n.data["reason"] == "理由" for n in found)
    assert "0123456789abcdef" not in str([n.model_dump() for n in found])


def test_the_same_entry_has_the_same_ids_and_each_happening_its_own() -> None:
    both = entry(2, Withdraw(trigger=Trigger.SUPERSEDED, condemn=False), start("1.2.0"))
    status = after(start("1.1.0"))
    _, first = announce(status, both)
    _, again = announce(status, both)
    assert first == again
    assert len({n.id for n in first}) == 2
    assert first[1].position.after(first[0].position)


def test_a_new_log_with_the_old_numbers_has_other_ids() -> None:
    status = after()
    _, old = announce(status, entry(2, start("1.1.0"), at=100.0))
    _, new = announce(status, entry(2, start("1.1.0"), at=5000.0))
    assert old[0].id != new[0].id
