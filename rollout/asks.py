"""Which wishes of a custom resource were carried out: a fold over the commands in the event log. Pure.

A resource stays as it is after its wish was carried out, so somebody must remember that it was. The log does: the
command and the id of its wish are one entry, so whoever is killed between the two has done both or neither.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from rollout.actions import Acknowledge, Start
from rollout.commands import Command, Verb
from rollout.decision import Decision
from serving.specs import Frozen


class Asked(Frozen):
    """What was carried out of one model's wishes."""

    commands: Mapping[Verb, str] = Field(default_factory=dict)
    """By verb: the id of the last wish."""
    wish: str = ""
    """The spec that was deployed last; empty when it is to be deployed (again)."""
    digest: str = ""
    """Which revision that was."""
    pause: str = ""
    """The wish that paused the present rollout; empty when none did."""


def noted(asked: Asked, decision: Decision, command: Command | None) -> Asked:
    """Fold one entry of the log."""
    change: dict[str, object] = {}
    for action in decision.actions:
        if isinstance(action, Start):
            change["pause"] = (command.ask if command is not None else "") or "start" if action.spec.paused else ""
        if isinstance(action, Acknowledge) and action.digest == asked.digest:
            change |= {"wish": "", "digest": ""}  # somebody has looked at it, so what is asked for is tried again
    if command is not None and command.ask:
        change |= _of_command(asked, decision, command)
    if command is not None and command.verb is Verb.UNDEPLOY:
        change |= {"wish": "", "digest": "", "pause": ""}
    return asked.model_copy(update=change) if change else asked


def _of_command(asked: Asked, decision: Decision, command: Command) -> dict[str, object]:
    match command.verb:
        case Verb.DEPLOY:
            started = next((a.target.digest for a in decision.actions if isinstance(a, Start)), "")
            return {"wish": command.ask, "digest": started}
        case Verb.PAUSE:
            return {"pause": command.ask}
        case Verb.RESUME:
            return {"pause": ""}
        case _:
            return {"commands": {**asked.commands, command.verb: command.ask}}
