"""What a ModelDeployment's status says, from what the controller knows. Pure.

Whoever reads `kubectl get mdep` or a condition must learn what is the matter and what to do about it.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from rollout.decision import Cause, Decision
from rollout.observation import Observation, SignalReading
from rollout.operator.documents import (
    Condition,
    ConditionType,
    DeploymentStatus,
    Handled,
    SignalView,
)
from rollout.operator.resource import Resource
from rollout.reports import step_count
from rollout.status import ModelStatus, Phase, RolloutState, Stage, kept_versions

OBSTACLES = frozenset({
    Cause.STARTING, Cause.CAPACITY, Cause.CANARY_AWAY, Cause.NOT_OBSERVED, Cause.NOT_FOLLOWED, Cause.WITHDRAWING,
    Cause.SAMPLE_RATIO,
})  # fmt: skip
"""What a rollout may wait for that is worth a sentence: somebody may have to do something. The sentence stays the same
while the obstacle does, so that no status is written for it again; what counts seconds and requests is not among them.
"""
MAX_SENTENCE = 1000
MAX_REASON = 250


@dataclass(frozen=True)
class Problem:
    """Why something that is asked for is not being done."""

    reason: str
    """One word, in Kubernetes' way."""
    message: str


@dataclass(frozen=True)
class Seen:
    """What the controller knows of a resource's model."""

    status: ModelStatus | None = None
    observation: Observation | None = None
    waiting: Decision | None = None
    holding: str = ""
    """Why nothing can be decided or done at all: the store or the workloads are away."""
    problem: Problem | None = None
    """Why the resource is not carried out."""
    handled: tuple[Handled, ...] = ()
    """Commands that were handled just now, beside those that the status remembers."""
    handled_wish: str | None = None
    owns: bool = True
    """Whether the model is this resource's."""
    fresh: bool = False
    """The controller has only just begun to look: what it does not see yet may be there all the same."""


def tell(resource: Resource, seen: Seen, now: float) -> DeploymentStatus:
    """The whole status of a resource."""
    status = seen.status if seen.owns else None
    rollout = status.rollout if status is not None else None
    active = rollout if rollout is not None and rollout.active else None
    commands = _commands(resource, seen.handled)
    rollback = next((c.id for c in commands if c.verb == "rollback"), resource.status.last_handled_rollback)
    told = DeploymentStatus(
        observed_generation=resource.generation,
        reason=_short(_why(status, seen)),
        phase=_phase(status, seen),
        handled_wish=seen.handled_wish,
        last_handled_rollback=rollback,
        commands=commands,
    )
    if status is not None:
        leaving = status.leaving
        told = told.model_copy(
            update={
                "stable": status.stable.version if status.stable is not None else None,
                "canary": active.target.version if active is not None else None,
                "weight": active.weight if active is not None else leaving.weight if leaving is not None else 0,
                "observed_weight": _observed(active, seen.observation),
                "replicas": status.stable.replicas if status.stable is not None else 0,
                "previous": status.previous.version if status.previous is not None else None,
                "kept": kept_versions(status)[:100],
                "quarantined": tuple(sorted(set(status.condemned.values()))),
                "draining": tuple(r.deployed.version for r in status.retiring),
                **_of_rollout(rollout, seen),
            }
        )
    told = _not_unsaid(resource.status, told, seen)
    return told.model_copy(update={"conditions": _conditions(resource, told, seen, now)})


def _why(status: ModelStatus | None, seen: Seen) -> str:
    """The one sentence of the column REASON: what stands in the way, else the last decision's."""
    if seen.problem is not None:
        return seen.problem.message
    if status is None:
        return ""
    waiting, canary = seen.waiting, status.canary
    if waiting is None or canary is None:
        return status.reason
    workload = seen.observation.workload(canary.application) if seen.observation is not None else None
    troubled = waiting.cause is Cause.STARTING and workload is not None and workload.message
    return waiting.reason if troubled or waiting.cause is Cause.CAPACITY else status.reason


def _not_unsaid(before: DeploymentStatus, told: DeploymentStatus, seen: Seen) -> DeploymentStatus:
    """Right after a start: what was seen of the same moment of the same rollout before still holds."""
    same = ("rollout", "stage", "step", "weight", "stable")
    if not seen.fresh or any(getattr(before, name) != getattr(told, name) for name in same):
        return told
    kept = {n: getattr(before, n) for n in ("observed_weight", "waiting_for", "signals") if not getattr(told, n)}
    return told.model_copy(update=kept)


def without_evidence(status: DeploymentStatus) -> DeploymentStatus:
    """What must be told at once; the rest of it counts requests, and can wait for its turn."""
    return status.model_copy(update={"signals": ()})


def _of_rollout(rollout: RolloutState | None, seen: Seen) -> dict[str, object]:
    if rollout is None:
        return {}
    active = rollout.active
    waiting = seen.waiting.cause.value if seen.waiting is not None and active else None
    signals = seen.observation.signals if seen.observation is not None and active else ()
    return {
        "strategy": rollout.spec.strategy.name.value,
        "stage": rollout.stage.value,
        "step": max(0, rollout.step + 1) if active else 0,
        "steps": step_count(rollout.spec.strategy.chosen) if active else 0,
        "rollout": rollout.id,
        "target": rollout.target.version,
        "waiting_for": waiting if waiting != Cause.IDLE else None,
        "awaits": "promote" if active and rollout.at_end else None,
        "started_at": moment(rollout.started_at),
        "finished_at": moment(rollout.finished_at) if rollout.finished_at is not None else None,
        "signals": tuple(_signal(s) for s in signals),
    }


def _observed(active: RolloutState | None, seen: Observation | None) -> int | None:
    return active.weight if active is not None and seen is not None and seen.table_applied else None


def _signal(reading: SignalReading) -> SignalView:
    return SignalView(
        name=str(reading.name),
        verdict=reading.verdict.value,
        canary_events=reading.canary.events,
        canary_requests=reading.canary.n,
        stable_events=reading.stable.events,
        stable_requests=reading.stable.n,
        log_e=f"{reading.log_e:.2f}",
        threshold=f"{reading.threshold:.2f}",
    )


def _phase(status: ModelStatus | None, seen: Seen) -> str:
    if status is None or (status.rollout is None and status.stable is None):
        return Phase.DEGRADED.value if seen.problem is not None else Phase.PROGRESSING.value
    return status.phase.value


def _commands(resource: Resource, handled: Iterable[Handled]) -> tuple[Handled, ...]:
    """The last command of each kind; what was handled just now takes the place of what is remembered."""
    by_verb = {c.verb: c for c in resource.status.commands}
    by_verb |= {c.verb: c for c in handled}
    return tuple(by_verb[verb] for verb in sorted(by_verb))


# -- conditions --------------------------------------------------------------------------------------------------------

Truth = Literal["True", "False", "Unknown"]


@dataclass(frozen=True)
class _Said:
    status: Truth
    reason: str
    message: str = ""


def _conditions(resource: Resource, told: DeploymentStatus, seen: Seen, now: float) -> tuple[Condition, ...]:
    said = {
        ConditionType.READY: _ready(resource, told, seen),
        ConditionType.PROGRESSING: _progressing(resource, told, seen),
        ConditionType.ROLLED_BACK: _rolled_back(resource, told, seen),
        ConditionType.DEGRADED: _degraded(resource, told, seen),
    }
    return tuple(_kept_since(resource, kind, one, now) for kind, one in said.items())


def _kept_since(resource: Resource, kind: ConditionType, said: _Said, now: float) -> Condition:
    """A condition whose time is that of the last change of its status, and of nothing else."""
    before = resource.status.condition(kind)
    since = before.last_transition_time if before is not None and before.status == said.status else moment(now)
    return Condition(
        type=kind,
        status=said.status,
        reason=said.reason,
        message=said.message[:MAX_SENTENCE],
        last_transition_time=since,
        observed_generation=resource.generation,
    )


def _ready(resource: Resource, told: DeploymentStatus, seen: Seen) -> _Said:
    status, problem = seen.status if seen.owns else None, seen.problem
    if resource.deleting:
        return _Said("False", "Deleting", "the model is being drained; its resource goes when that is done")
    if status is None or status.stable is None:
        if problem is not None:
            return _Said("False", problem.reason, problem.message)
        return _Said("False", "NotDeployed", "no version serves yet")
    name = f"{status.model}@{status.stable.version}"
    observation = seen.observation
    known = resource.status.condition(ConditionType.READY)
    unseen = observation is None or not observation.answers(status.stable.application)
    if seen.fresh and unseen and known is not None and resource.status.stable == status.stable.version:
        return _Said(known.status, known.reason, known.message)
    if observation is None or observation.gateways == 0:
        return _Said(
            "Unknown", "NoGateway", f"{name} is deployed; no gateway is connected that could tell whether it answers"
        )
    if not observation.answers(status.stable.application):
        workload = observation.workload(status.stable.application)
        why = workload.message if workload is not None else ""
        where = f": {why}" if why else "; see the RayService's or workload's pods"
        return _Said("False", "NoEndpoint", f"no gateway has an endpoint of {name}{where}")
    return _Said("True", "Serving", f"{name} answers")


def _progressing(resource: Resource, told: DeploymentStatus, seen: Seen) -> _Said:
    if seen.problem is not None:
        return _Said("False", seen.problem.reason, seen.problem.message)
    if seen.holding:
        return _Said("Unknown", "Holding", seen.holding)
    rollout = seen.status.rollout if seen.status is not None else None
    if rollout is None:
        return _Said("True", "Starting", "the spec was read and is about to be carried out")
    name = f"{resource.model}@{rollout.target.version}"
    if rollout.active:
        if rollout.at_end:
            return _Said(
                "False", "AwaitsPromotion", f"{name} waits for a person: annotate {_annotation('promote')} or abort"
            )
        if rollout.paused:
            return _Said(
                "False", "Paused", f"{name} is paused at {rollout.weight} %; take {_annotation('pause')} away to go on"
            )
        how_far = f"{name}, {rollout.spec.strategy.name.value}, at {rollout.weight} %"
        if seen.waiting is not None and seen.waiting.cause in OBSTACLES:
            how_far += f": {seen.waiting.reason}"
        return _Said("True", _STAGES[rollout.stage], how_far)
    if rollout.stage is Stage.PROMOTED:
        return _Said("False", "Complete", f"{name} was promoted")
    return _Said("False", "Ended", f"the rollout of {name} ended without a promotion")


_STAGES = {
    Stage.STARTING: "Starting",
    Stage.STEPPING: "Stepping",
    Stage.SOAKING: "Soaking",
    Stage.PREVIEWING: "Previewing",
    Stage.MIRRORING: "Mirroring",
}


def _rolled_back(resource: Resource, told: DeploymentStatus, seen: Seen) -> _Said:
    """Whether what was rolled out last is not what serves, because it was taken back."""
    status = seen.status if seen.owns else None
    rollout = status.rollout if status is not None else None
    if status is None or rollout is None or rollout.active:
        return _Said("False", "NotRolledBack")
    serves = status.stable is not None and status.stable.digest == rollout.target.digest
    if serves or (status.stable is None and rollout.stage is Stage.PROMOTED):
        return _Said("False", "NotRolledBack")
    why = status.quarantine.get(rollout.target.digest)
    name = f"{resource.model}@{rollout.target.version}"
    if why is not None:
        out = f"register a new version and change spec.version, or release it with {_annotation('ack')}"
        return _Said("True", "Condemned", f"{name} was taken back: {why}; it is not tried again: {out}"[:MAX_SENTENCE])
    out = f"it is not tried again by itself: change the spec, or annotate {_annotation('retry')}"
    return _Said("True", "Withdrawn", f"{name} was taken back: {status.reason}; {out}")


def _degraded(resource: Resource, told: DeploymentStatus, seen: Seen) -> _Said:
    if seen.holding:
        return _Said("True", "Holding", seen.holding)
    if seen.problem is not None:
        return _Said("True", seen.problem.reason, seen.problem.message)
    if seen.status is not None and seen.status.phase is Phase.DEGRADED:
        return _Said("True", "RolloutFailed", seen.status.reason)
    return _Said("False", "AsExpected")


def _annotation(verb: str) -> str:
    return f"tidegate.dev/{verb}"


def moment(at: float) -> str:
    """A time as Kubernetes writes it, in whole seconds.

    >>> moment(0.0)
    '1970-01-01T00:00:00Z'
    """
    return dt.datetime.fromtimestamp(int(at), dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _short(text: str) -> str:
    return text if len(text) <= MAX_REASON else text[: MAX_REASON - 1] + "…"


# -- events ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Note:
    """An Event to be posted about a resource."""

    kind: Literal["Normal", "Warning"]
    reason: str
    message: str


def notes(before: DeploymentStatus, after: DeploymentStatus) -> tuple[Note, ...]:
    """What happened between two statuses that somebody who reads `kubectl describe` wants to know."""
    found = [_of_handled(c) for c in after.commands if c != before.handled(c.verb)]
    if after.rollout != before.rollout and after.rollout is not None:
        found.append(Note("Normal", "RolloutStarted", f"{after.strategy} rollout of {after.target} began"))
    elif after.rollout is not None and (after.weight, after.stage) != (before.weight, before.stage):
        found.append(Note("Normal", "RolloutMoved", f"{after.target}: {after.stage}, weight {after.weight} %"))
    if after.stable != before.stable and after.stable is not None:
        found.append(Note("Normal", "Stable", f"{after.stable} serves: {after.reason}"))
    for kind, reason in ((ConditionType.ROLLED_BACK, "RolledBack"), (ConditionType.DEGRADED, "")):
        was, now = before.condition(kind), after.condition(kind)
        if (
            now is not None
            and now.status == "True"
            and (was is None or (was.status, was.reason) != ("True", now.reason))
        ):
            found.append(Note("Warning", reason or now.reason, now.message))
    return tuple(found)


def _of_handled(command: Handled) -> Note:
    if command.outcome == "Done":
        return Note("Normal", "CommandDone", f"{command.verb}: {command.message}")
    return Note("Warning", "CommandRefused", f"{command.verb}: {command.message}")
