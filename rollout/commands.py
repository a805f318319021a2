"""An operator's commands as decisions. Pure. Each pre-empts what the controller would have decided by itself."""

from __future__ import annotations

import enum
from typing import Annotated

from pydantic import Field

from rollout.actions import (
    Acknowledge,
    Action,
    Deployed,
    Pause,
    Promote,
    Resume,
    Scale,
    Shift,
    Start,
    Trigger,
    Undeploy,
    Withdraw,
)
from rollout.capacity import must_keep, shortage
from rollout.decide import next_action, switched_back
from rollout.decision import Cause, Decision
from rollout.errors import CommandRefused, Quarantined
from rollout.observation import Observation
from rollout.specs import RolloutSpec
from rollout.status import ModelStatus, RolloutState, Stage, kept_versions
from rollout.wording import name_of
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
    SCALE = "scale"
    UNDEPLOY = "undeploy"


STARTS = frozenset({Verb.DEPLOY, Verb.RETRY, Verb.UNDO})
"""Verbs that start a rollout, and need room for its version."""


class Command(Frozen):
    """A verb with its arguments, as it goes into the log: who, what, why."""

    verb: Verb
    actor: str
    reason: str = ""
    source: str = ""
    """From where it was said: an address, or the client's name."""
    namespace: Annotated[str, Field(exclude_if=lambda value: not value)] = ""
    """The one that who said it is bound to, on a cluster; empty for who may command every model."""
    full: bool = False
    """promote: skip all that is left, not only the present step. rollback, abort: move all traffic at once, whether
    or not stable can take it."""
    version: str | None = None
    """rollback, undo, ack: which version."""
    replicas: Annotated[int, Field(ge=1, le=64)] | None = None
    """scale: how many stable gets."""
    most: Annotated[int, Field(ge=1, le=64)] | None = None
    """scale: up to how many it may grow; None means no more."""
    ask: str = ""
    """Which wish of a custom resource it carries out; the log remembers it, so that no restart carries it out twice."""


class Target(Frozen):
    """What a deploy (or a rollback to a version that no longer runs) would start."""

    rollout: str
    spec: RolloutSpec
    deployed: Deployed
    salt: str
    judge: str = ""

    def start(self) -> Start:
        """The action that starts it."""
        return Start(rollout=self.rollout, spec=self.spec, target=self.deployed, salt=self.salt, judge=self.judge)


def deploy(status: ModelStatus, target: Target, command: Command, observation: Observation | None = None) -> Decision:
    """Start a rollout; one that is running is superseded.

    Args:
        status: where the model stands.
        target: what to start.
        command: who asked; for `undo` the version must be one that was stable before.
        observation: what is seen now, so that superseding moves only what stable can take; None moves everything.

    Raises:
        Quarantined: the revision was condemned and nobody has acknowledged it.
        CommandRefused: it is stable already, it is being rolled out already, or `undo` does not know it.

    """
    digest = target.deployed.digest
    _not_quarantined(status, target.deployed)
    if command.verb is Verb.UNDO:
        _known(status, target.deployed.version)
    if status.canary is not None and status.canary.digest == digest:
        raise CommandRefused(
            f"{name_of(target.deployed)} is already being rolled out; see `rollout get {status.model}`"
        )
    actions: list[Action] = []
    said = f"deploy {name_of(target.deployed)}"
    if status.canary is not None:
        withdraw, short = _withdraw(status, Trigger.SUPERSEDED, observation, condemn=False, shed=False)
        actions.append(withdraw)
        said += f", superseding {name_of(status.canary)}{short}"
    if status.stable is not None and status.stable.digest == digest:
        if not actions:
            raise CommandRefused(f"{name_of(target.deployed)} is already stable; there is nothing to roll out")
        return _said(command, f"{said}: it is stable already", *actions)
    return _said(command, said, *actions, target.start())


def promote(status: ModelStatus, command: Command, observation: Observation | None = None) -> Decision:
    """Skip the present step's wait, or with `full` everything that is left.

    A person may go on without evidence and beyond the canary's replicas, but not to a version that does not answer.

    Raises:
        CommandRefused: nothing is rolling out, or the canary does not answer (yet).

    """
    rollout = _active(status, "promote")
    name = name_of(rollout.target)
    if rollout.stage is Stage.STARTING:
        raise CommandRefused(f"{name} is not ready yet; a version that does not answer gets no traffic")
    if observation is not None and observation.gateways > 0 and not observation.answers(rollout.target.application):
        if rollout.target.application not in observation.ready_endpoints:
            raise CommandRefused(f"no gateway has told yet whether {name} answers; try again in a moment")
        raise CommandRefused(f"{name} is not ready; a version that does not answer gets no traffic")
    action = next_action(rollout)
    if command.full:
        # What has not been compared at a weight of its own goes on being judged after the switch.
        action = Promote(watch=not rollout.at_end or (isinstance(action, Promote) and action.watch))
    actions: tuple[Action, ...] = (action,)
    if rollout.paused and not isinstance(action, Promote):
        actions = (Resume(), action)
    return _said(command, "promoted " + ("fully" if command.full else "one step") + " by hand", *actions)


def pause(status: ModelStatus, command: Command) -> Decision:
    """Stay at the present weight."""
    rollout = _active(status, "pause")
    if rollout.paused:
        raise CommandRefused(f"the rollout of {name_of(rollout.target)} is already paused; `resume` goes on")
    return _said(command, f"paused at weight {rollout.weight}", Pause())


def resume(status: ModelStatus, command: Command) -> Decision:
    """Go on after a pause."""
    rollout = _active(status, "resume")
    if not rollout.paused:
        raise CommandRefused(f"the rollout of {name_of(rollout.target)} is not paused")
    if rollout.at_end:
        raise CommandRefused(
            f"the rollout of {name_of(rollout.target)} has nothing left to wait for; `promote` gives it all traffic, "
            "`abort` ends it"
        )
    return _said(command, "resumed", Resume())


def abort(status: ModelStatus, command: Command, observation: Observation | None = None) -> Decision:
    """Stop this rollout; stable stays and the version may be rolled out again."""
    rollout = _active(status, "abort")
    withdraw, short = _withdraw(status, Trigger.ABORT, observation, condemn=False, shed=command.full)
    return _said(command, f"aborted {name_of(rollout.target)}{short}", withdraw)


def acknowledge(status: ModelStatus, command: Command, digests: tuple[str, ...]) -> Decision:
    """Release condemned revisions: those of `digests` that are quarantined, of one version when the command names it.

    Raises:
        CommandRefused: none is.

    """
    held = tuple(d for d in digests if d in status.quarantine)
    if command.version is not None:
        named = tuple(d for d in held if status.condemned.get(d) == command.version)
        if held and not named:
            there = ", ".join(sorted({status.condemned.get(d, d[:8]) for d in held}))
            raise CommandRefused(f"{status.model}@{command.version} is not quarantined; there is {there}")
        held = named
    if not held:
        raise CommandRefused(f"nothing of {status.model} is quarantined")
    return _said(command, f"acknowledged {len(held)} condemned revision(s)", *(Acknowledge(digest=d) for d in held))


def scale(status: ModelStatus, command: Command) -> Decision:
    """Give stable another number of replicas.

    Not while a version rolls out: what a rollback could move to stable is measured by the replicas that it should have,
    and more of them than are ready yet would leave traffic on a bad version.

    Raises:
        CommandRefused: a rollout is active, nothing is stable, or it has that number.

    """
    stable, replicas = status.stable, command.replicas
    if stable is None or replicas is None:
        raise CommandRefused(f"scale: {status.model} has no stable version, or no number of replicas is given")
    if status.canary is not None or status.leaving is not None:
        raise CommandRefused(f"scale: {status.model} rolls out; its replicas change when that has ended")
    if stable.engine.workload_ref is not None:
        raise CommandRefused(f"scale: {name_of(stable)} runs in somebody else's workload; scale that")
    if command.most is not None and command.most < replicas:
        raise CommandRefused(
            f"scale: at most {command.most} replicas is fewer than {replicas}; raise it, or leave it out"
        )
    if (stable.replicas, stable.engine.max_replicas) == (replicas, command.most):
        raise CommandRefused(f"scale: {name_of(stable)} has {replicas} replicas already")
    upto = f", at most {command.most}" if command.most is not None else ""
    said = f"{name_of(stable)} gets {replicas} replicas{upto} in place of {stable.replicas}"
    return _said(command, said, Scale(replicas=replicas, most=command.most))


def undeploy(status: ModelStatus, command: Command) -> Decision:
    """Take the model away: all that runs is drained and removed.

    Raises:
        CommandRefused: nothing of it gets traffic or is about to.

    """
    if status.stable is None and status.canary is None and status.leaving is None and status.previous is None:
        raise CommandRefused(f"undeploy: nothing of {status.model} is deployed")
    serving = ", ".join(name_of(d) for d in status.running())
    return _said(command, f"took {status.model} away, draining {serving}", Undeploy())


def rollback(
    status: ModelStatus, command: Command, elsewhere: Target | None, observation: Observation | None = None
) -> Decision:
    """Go back at once, from any state.

    Args:
        status: where the model stands.
        command: `version` None means: whatever was stable before the version that is in question now.
        elsewhere: how to start `command.version` when it does not run any more, or None.
        observation: what is seen now: only what the other side can take is moved (`engine.onShortage`); None, or
            `command.full`, moves everything.

    Raises:
        CommandRefused: there is nothing to go back from or to.
        Quarantined: it would go back to a condemned revision.

    """
    if command.full:
        observation = None
    canary, stable, to = status.canary, status.stable, command.version
    if canary is not None and (to is None or (stable is not None and to == stable.version)):
        withdraw, short = _withdraw(status, Trigger.OPERATOR, observation, condemn=True, shed=command.full)
        if stable is None:
            return _said(command, f"took back {name_of(canary)}; {status.model} has no other version", withdraw)
        return _said(command, f"rolled back {name_of(canary)} to {name_of(stable)}{short}", withdraw)
    if canary is not None and to == canary.version:
        raise CommandRefused(
            f"{name_of(canary)} is being rolled out already, at {status.rollout.weight if status.rollout else 0} %; "
            "`promote --full` gives it all traffic"
        )
    if status.leaving is not None and canary is None and (to is None or (stable is not None and to == stable.version)):
        return _finish(status, command)
    if stable is not None and to == stable.version:
        raise CommandRefused(f"{name_of(stable)} is what serves now; there is nothing to roll back")
    return _leave_stable(status, command, elsewhere, observation)


def _finish(status: ModelStatus, command: Command) -> Decision:
    """A rollback that is repeated while stable can't take everything yet."""
    leaving = status.leaving
    assert leaving is not None
    if not command.full:
        raise CommandRefused(
            f"{name_of(leaving.deployed)} is being taken back already and keeps {leaving.weight} % until stable is "
            "ready; repeat with full to shed that traffic at once"
        )
    return _said(command, f"shed the {leaving.weight} % that {name_of(leaving.deployed)} still had", Shift(weight=0))


def _leave_stable(
    status: ModelStatus, command: Command, elsewhere: Target | None, observation: Observation | None
) -> Decision:
    """Go from what is stable to what is warm, to what is still being drained, or to what has to start."""
    stable, to = status.stable, command.version
    back = status.previous if to is None else _able_to_return(status, to, observation)
    if back is not None and stable is not None:
        _not_quarantined(status, back)
        # What a canary had goes to the new stable with all the rest, so nothing is kept for it.
        first = (Withdraw(trigger=Trigger.OPERATOR, condemn=True),) if status.canary is not None else ()
        warm = status.previous is not None and status.previous.digest == back.digest
        how = "which was kept warm" if warm else "which was still being drained"
        said = f"rolled back {name_of(stable)} to {name_of(back)}, {how}"
        to_digest = None if warm else back.digest
        shed = observation is None
        found = switched_back(status, observation, Cause.COMMAND, Trigger.OPERATOR, said, to=to_digest, shed=shed)
        return _said(command, found.reason, *first, *found.actions)
    if elsewhere is not None:
        _not_quarantined(status, elsewhere.deployed)
        _known(status, elsewhere.deployed.version)
        said = f"rolling back to {name_of(elsewhere.deployed)}; it has to start first, stable serves until then"
        if status.canary is None:
            return _said(command, said, elsewhere.start())
        withdraw, short = _withdraw(status, Trigger.OPERATOR, observation, condemn=True, shed=command.full)
        return _said(command, said + short, withdraw, elsewhere.start())
    kept = kept_versions(status)
    raise CommandRefused(
        f"{status.model} keeps no earlier version warm; name one with --to"
        + (f": {', '.join(kept)}" if kept else ", for instance one of `tidegate model list`")
    )


def _able_to_return(status: ModelStatus, version: str, observation: Observation | None) -> Deployed | None:
    """A revision of this version that runs and can take traffic at once, or None.

    What is being drained may never have become ready, if it was superseded while it started.
    """
    back = status.still_running(version)
    if back is None or all(r.served for r in status.retiring if r.deployed.digest == back.digest):
        return back
    if observation is not None and observation.answers(back.application):
        return back
    raise CommandRefused(
        f"{name_of(back)} is being drained, never became ready and does not answer; wait until it is gone, or "
        f"`tidegate deploy {status.model}@{version} --emergency`"
    )


def earlier_version(status: ModelStatus, version: str | None = None) -> Deployed:
    """The revision that `undo` (or a rollback to something that does not run) goes to: exactly as it ran.

    Args:
        status: where the model stands.
        version: which one; None means the one that was stable before the present one.

    Raises:
        CommandRefused: no such revision is remembered.

    """
    now = status.stable.digest if status.stable is not None else None
    earlier = [d for d in status.history if d.digest != now]
    if version is None and earlier:
        return earlier[0]
    if version is not None:
        _known(status, version)
        there = [status.previous, *(r.deployed for r in status.retiring), *status.history]
        return next(d for d in there if d is not None and d.version == version)
    raise CommandRefused(f"{status.model} has had no stable version before; `tidegate deploy` starts one")


def _known(status: ModelStatus, version: str) -> None:
    kept = kept_versions(status)
    if version not in kept:
        raise CommandRefused(
            f"{status.model}@{version} is none of the versions that were stable before "
            f"({', '.join(kept) or 'there is none'}; revisionHistoryLimit says how many are remembered); "
            f"`tidegate deploy {status.model}@{version} --emergency` starts any registered version"
        )


def _not_quarantined(status: ModelStatus, deployed: Deployed) -> None:
    if why := status.quarantine.get(deployed.digest):
        raise Quarantined(
            f"{name_of(deployed)} was condemned: {why}. Look at it, then `tidegate rollout ack {status.model}`, "
            "or register a new version"
        )


def _withdraw(
    status: ModelStatus, trigger: Trigger, observation: Observation | None, *, condemn: bool, shed: bool
) -> tuple[Withdraw, str]:
    """The withdrawal of the canary, and why it can't be complete, if so."""
    assert status.rollout is not None
    keep = 0 if shed else must_keep(status, status.rollout, observation)
    return Withdraw(trigger=trigger, condemn=condemn, keep=keep), shortage(status, keep, observation)


def _active(status: ModelStatus, verb: str) -> RolloutState:
    rollout = status.rollout
    if rollout is None or not rollout.active:
        raise CommandRefused(f"{verb}: no rollout of {status.model} is active; `tidegate deploy` starts one")
    return rollout


def _said(command: Command, what: str, *actions: Action) -> Decision:
    why = f": {command.reason}" if command.reason else ""
    return Decision(cause=Cause.COMMAND, reason=f"{what} by {command.actor}{why}", actions=actions)
