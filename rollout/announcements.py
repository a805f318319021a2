"""What of the event log is worth telling people. Pure.

A notification follows from an entry and the status before it alone, so the same entry always gives the same
notifications with the same ids: after a crash they are made again, and receivers know them.
"""

from __future__ import annotations

import hashlib
from typing import Any

from rollout.actions import (
    Action,
    Degrade,
    Mirror,
    Pause,
    Preview,
    Promote,
    Resume,
    SetStep,
    Start,
    SwitchBack,
    Trigger,
    Withdraw,
)
from rollout.decision import Decision
from rollout.event_log.base import Entry
from rollout.notifications.base import Happening, Notification, Position
from rollout.status import ModelStatus, apply

_ENDED = {Trigger.ABORT: Happening.ABORTED, Trigger.SUPERSEDED: Happening.SUPERSEDED}
"""Withdrawals that say nothing against the version."""


def announce(status: ModelStatus, entry: Entry) -> tuple[ModelStatus, tuple[Notification, ...]]:
    """Fold one command or decision and tell what happened in it.

    Args:
        status: the model's status before the entry.
        entry: of the kind command or decision.

    Returns:
        The status after it, and the notifications in the order of the actions.

    """
    decision = Decision.model_validate(entry.payload["decision"])
    found: list[Notification] = []
    for action in decision.actions:
        before = status
        status = apply(status, (action,), at=entry.at, reason=decision.reason, actor=entry.actor)
        if (told := _told(before, status, action)) is not None:
            position = Position(entry=entry.id, index=len(found))
            who = {"reason": decision.reason, "cause": decision.cause.value, "actor": entry.actor}
            data = {"model": entry.model, **told[1], **who}
            found.append(
                Notification(id=_id(entry, len(found)), position=position, type=told[0], at=entry.at, data=data)
            )
    return status, tuple(found)


def _id(entry: Entry, index: int) -> str:
    """Stable, and different for another log whose numbers begin anew."""
    place = f"{entry.id}|{index}|{entry.at!r}|{entry.model}|{entry.kind}"
    return f"evt_{hashlib.sha256(place.encode()).hexdigest()[:32]}"


def _told(before: ModelStatus, after: ModelStatus, action: Action) -> tuple[Happening, dict[str, Any]] | None:
    """What an action means to people; None when it is housekeeping."""
    rollout = after.rollout
    data: dict[str, Any] = {
        "version": rollout.target.version if rollout is not None else None,
        "stable": after.stable.version if after.stable is not None else None,
        "rollout": rollout.id if rollout is not None else None,
        "weight": rollout.weight if rollout is not None else 0,
    }
    match action:
        case Start():
            return Happening.STARTED, {**data, "strategy": action.spec.strategy.name}
        case SetStep():
            return Happening.STEP, {**data, "step": action.step + 1, "soaking": action.soaking}
        case Preview():
            return Happening.STEP, {**data, "previewing": True}
        case Mirror():
            return Happening.STEP, {**data, "mirror_percent": action.percent}
        case Pause():
            return Happening.PAUSED, data
        case Resume():
            return Happening.RESUMED, data
        case Promote():
            previous = before.stable.version if before.stable is not None else None
            return Happening.PROMOTED, {**data, "previous": previous}
        case Withdraw():
            ended = {"trigger": action.trigger.value, "condemned": action.condemn}
            return _ENDED.get(action.trigger, Happening.ROLLED_BACK), {**data, **ended}
        case SwitchBack():
            bad = before.stable.version if before.stable is not None else None
            ended = {"trigger": action.trigger.value, "condemned": action.condemn}
            # The last rollout need not be the one that had brought the version which is left now.
            return Happening.ROLLED_BACK, {**data, "version": bad, "rollout": None, "weight": 0, **ended}
        case Degrade():
            return Happening.DEGRADED, data
        case _:
            return None
