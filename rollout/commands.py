"""An operator's commands as decisions. Pure. Each pre-empts what the controller would have decided by itself."""

from __future__ import annotations

import enum

from rollout.actions import (
    Acknowledge,
    Action,
    Deployed,
    Pause,
    Promote,
    Resume,
    Start,
    SwitchBack,
    Trigger,
    Withdraw,
)
from rollout.decide import Cause, Decision, next_step
from rollout.errors import CommandRefused, Quarantined
from rollout.specs import RolloutSpec
from rollout.status import ModelStatus, RolloutState, Stage
from serving.specs import Frozen


class Verb(enum.StrEnum):
    """What an operator may say about a model."""

    DEPLOY = "deploy"
    PROMOTE = "promote"
    PAUSE = "pause"
    RESUME = "resume"
    ABORT = "abort"
    RETRY = "retry"
    UNDO = "undo"
    ROLLBACK = "rollback"
    ACK = "ack"


class Command(Frozen):
    """A verb with its arguments, as it goes into the log: who, what, why."""

    verb: Verb
    actor: str
    reason: str = ""
    full: bool = False
    """promote: skip all that is left, not only the present step."""
    version: str | None = None
    """rollback, undo, ack: which version."""


class Target(Frozen):
    """What a deploy (or a rollback to a version that no longer runs) would start."""

    rollout: str
    spec: RolloutSpec
    deployed: Deployed
    salt: str

    def start(self) -> Start:
        """The action that starts it."""
        return Start(rollout=self.rollout, spec=self.spec, target=self.deployed, salt=self.salt)


def deploy(status: ModelStatus, target: Target, command: Command) -> Decision:
    """Start a rollout; one that is running is superseded.

    Raises:
        Quarantined: the revision was condemned and nobody has acknowledged it.
        CommandRefused: it is stable already, or it is being rolled out already.

    """
    digest = target.deployed.digest
    if why := status.quarantine.get(digest):
        raise Quarantined(
            f"{_name(target.deployed)} was condemned: {why}. Look at it, then `tidegate rollout ack {status.model}`, "
            "or register a new version"
        )
    if status.canary is not None and status.canary.digest == digest:
        raise CommandRefused(f"{_name(target.deployed)} is already being rolled out; see `rollout get {status.model}`")
    actions: list[Action] = []
    said = f"deploy {_name(target.deployed)}"
    if status.canary is not None:
        actions.append(Withdraw(trigger=Trigger.SUPERSEDED, condemn=False))
        said += f", superseding {_name(status.canary)}"
    if status.stable is not None and status.stable.digest == digest:
        if not actions:
            raise CommandRefused(f"{_name(target.deployed)} is already stable; there is nothing to roll out")
        return _said(command, f"{said}: it is stable already", *actions)
    return _said(command, said, *actions, target.start())


def promote(status: ModelStatus, command: Command) -> Decision:
    """Skip the present step's wait, or with `full` everything that is left.

    Raises:
        CommandRefused: nothing is rolling out, or the canary has not become ready yet.

    """
    rollout = _active(status, "promote")
    if rollout.stage is Stage.STARTING:
        raise CommandRefused(
            f"{_name(rollout.target)} is not ready yet; a version that does not answer gets no traffic"
        )
    actions = (Promote(),) if command.full else next_step(rollout.spec, rollout)
    if rollout.paused and not isinstance(actions[0], Promote):
        actions = (Resume(), *actions)
    return _said(command, "promoted " + ("fully" if command.full else "one step") + " by hand", *actions)


def pause(status: ModelStatus, command: Command) -> Decision:
    """Stay at the present weight."""
    rollout = _active(status, "pause")
    if rollout.paused:
        raise CommandRefused(f"the rollout of {_name(rollout.target)} is already paused; `resume` goes on")
    return _said(command, f"paused at weight {rollout.weight}", Pause())


def resume(status: ModelStatus, command: Command) -> Decision:
    """Go on after a pause."""
    rollout = _active(status, "resume")
    if not rollout.paused:
        raise CommandRefused(f"the rollout of {_name(rollout.target)} is not paused")
    return _said(command, "resumed", Resume())


def abort(status: ModelStatus, command: Command) -> Decision:
    """Stop this rollout; stable stays and the version may be rolled out again."""
    rollout = _active(status, "abort")
    return _said(command, f"aborted {_name(rollout.target)}", Withdraw(trigger=Trigger.ABORT, condemn=False))


def acknowledge(status: ModelStatus, command: Command, digests: tuple[str, ...]) -> Decision:
    """Release condemned revisions: those of `digests` that are quarantined."""
    held = tuple(d for d in digests if d in status.quarantine)
    if not held:
        raise CommandRefused(f"nothing of {status.model} is quarantined")
    return _said(command, f"acknowledged {len(held)} condemned revision(s)", *(Acknowledge(digest=d) for d in held))


def rollback(status: ModelStatus, command: Command, elsewhere: Target | None) -> Decision:
    """Go back at once, from any state.

    Args:
        status: where the model stands.
        command: `version` None means: whatever was stable before the version that is in question now.
        elsewhere: how to start `command.version` when it does not run any more, or None.

    Raises:
        CommandRefused: there is nothing to go back from or to.

    """
    canary, stable, previous = status.canary, status.stable, status.previous
    to = command.version
    if canary is not None and (to is None or (stable is not None and to == stable.version)):
        if stable is None:
            return _said(
                command,
                f"took back {_name(canary)}; {status.model} has no other version",
                Withdraw(trigger=Trigger.OPERATOR, condemn=True),
            )
        said = f"rolled back {_name(canary)} to {_name(stable)}"
        return _said(command, said, Withdraw(trigger=Trigger.OPERATOR, condemn=True))
    first: tuple[Action, ...] = (Withdraw(trigger=Trigger.OPERATOR, condemn=True),) if canary is not None else ()
    if stable is not None and to == stable.version:
        raise CommandRefused(f"{_name(stable)} is what serves now; there is nothing to roll back")
    if previous is not None and to in (None, previous.version):
        assert stable is not None
        said = f"rolled back {_name(stable)} to {_name(previous)}, which was kept warm"
        return _said(command, said, *first, SwitchBack(trigger=Trigger.OPERATOR))
    if elsewhere is not None:
        said = f"rolling back to {_name(elsewhere.deployed)}; it has to start first, stable serves until then"
        return _said(command, said, *first, elsewhere.start())
    raise CommandRefused(
        f"{status.model} keeps no earlier version warm; name one with --to, for instance one of `tidegate model list`"
    )


def _active(status: ModelStatus, verb: str) -> RolloutState:
    rollout = status.rollout
    if rollout is None or not rollout.active:
        raise CommandRefused(f"{verb}: no rollout of {status.model} is active; `tidegate deploy` starts one")
    return rollout


def _said(command: Command, what: str, *actions: Action) -> Decision:
    why = f": {command.reason}" if command.reason else ""
    return Decision(cause=Cause.COMMAND, reason=f"{what} by {command.actor}{why}", actions=actions)


def _name(deployed: Deployed) -> str:
    return f"{deployed.revision.model}@{deployed.version}"
