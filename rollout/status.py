"""Where a model stands: a fold over its event log. Pure.

`apply` is the only way a status changes, for the running controller, for recovery after a crash and for replay
alike, so the three can't disagree.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from typing import assert_never

from pydantic import Field

from rollout.actions import (
    Acknowledge,
    Action,
    Deployed,
    Pause,
    Promote,
    Remove,
    Resume,
    RetirePrevious,
    SetStep,
    Start,
    SwitchBack,
    Withdraw,
)
from rollout.specs import RolloutSpec
from serving.specs import Frozen


class Phase(enum.StrEnum):
    """What a person is told, in Argo Rollouts' words."""

    PROGRESSING = "Progressing"
    PAUSED = "Paused"
    HEALTHY = "Healthy"
    DEGRADED = "Degraded"


class Stage(enum.StrEnum):
    """Where a rollout stands inside."""

    STARTING = "starting"
    """The canary's workload is coming up; no traffic."""
    STEPPING = "stepping"
    SOAKING = "soaking"
    PROMOTED = "promoted"
    WITHDRAWN = "withdrawn"


class Retiring(Frozen):
    """A revision without new requests that may still be answering old ones."""

    deployed: Deployed
    since: float
    deadline_at: float


class RolloutState(Frozen):
    """The current rollout, or the last one. `step` counts from 0 and is -1 while the canary starts."""

    id: str
    spec: RolloutSpec
    target: Deployed
    salt: str
    stage: Stage = Stage.STARTING
    step: int = -1
    weight: int = 0
    paused: bool = False
    started_at: float
    step_started_at: float
    finished_at: float | None = None

    @property
    def active(self) -> bool:
        """Whether it still may move."""
        return self.stage in (Stage.STARTING, Stage.STEPPING, Stage.SOAKING)

    @property
    def has_traffic(self) -> bool:
        """Whether the canary gets a part of the traffic now."""
        return self.stage in (Stage.STEPPING, Stage.SOAKING)


class ModelStatus(Frozen):
    """One model: who serves it, what is rolling out, what is kept for the way back."""

    model: str
    phase: Phase = Phase.HEALTHY
    reason: str = ""
    actor: str = ""
    stable: Deployed | None = None
    previous: Deployed | None = None
    warm_until: float | None = None
    rollout: RolloutState | None = None
    retiring: tuple[Retiring, ...] = ()
    quarantine: Mapping[str, str] = Field(default_factory=dict)
    """By digest: why it was condemned."""
    updated_at: float = 0.0

    @property
    def canary(self) -> Deployed | None:
        """The revision that is being rolled out, while it is."""
        return self.rollout.target if self.rollout is not None and self.rollout.active else None

    def running(self) -> tuple[Deployed, ...]:
        """Every revision that should have a workload, stable first, each digest once."""
        wanted = [self.stable, self.canary, self.previous, *(r.deployed for r in self.retiring)]
        return tuple({d.digest: d for d in wanted if d is not None}.values())


def apply(status: ModelStatus, actions: Iterable[Action], *, at: float, reason: str, actor: str) -> ModelStatus:
    """Fold a decision's actions into a status. `at` is the decision's time in seconds since the epoch.

    The reason a person sees stays that of the rollout: clearing up behind it is in the log, not in the way.
    """
    told = False
    for action in actions:
        status = _apply_one(status, action, at, reason)
        told = told or not isinstance(action, RetirePrevious | Remove)
    change: dict[str, object] = {"updated_at": at}
    if told:
        change |= {"reason": reason, "actor": actor}
    return status.model_copy(update=change)


def _apply_one(status: ModelStatus, action: Action, at: float, reason: str) -> ModelStatus:
    match action:
        case Start():
            return _start(status, action, at)
        case SetStep():
            stage = Stage.SOAKING if action.soaking else Stage.STEPPING
            change = {"stage": stage, "step": action.step, "weight": action.weight, "step_started_at": at}
            return _with_rollout(status, change, phase=_moving_phase(status))
        case Promote():
            return _promote(status, at)
        case Withdraw():
            return _withdraw(status, action, at, reason)
        case SwitchBack():
            return _switch_back(status, action, at, reason)
        case Pause():
            return _with_rollout(status, {"paused": True}, phase=Phase.PAUSED)
        case Resume():
            return _with_rollout(status, {"paused": False, "step_started_at": at}, phase=Phase.PROGRESSING)
        case RetirePrevious():
            retired = _retire(status, status.previous, at)
            return retired.model_copy(update={"previous": None, "warm_until": None})
        case Remove():
            kept = tuple(r for r in status.retiring if r.deployed.digest != action.digest)
            return status.model_copy(update={"retiring": kept})
        case Acknowledge():
            left = {d: why for d, why in status.quarantine.items() if d != action.digest}
            return status.model_copy(update={"quarantine": left})
        case _:
            assert_never(action)


def _start(status: ModelStatus, action: Start, at: float) -> ModelStatus:
    rollout = RolloutState(
        id=action.rollout,
        spec=action.spec,
        target=action.target,
        salt=action.salt,
        paused=action.spec.paused,
        started_at=at,
        step_started_at=at,
    )
    # A revision that was being kept or drained and is wanted again simply goes on running.
    kept = tuple(r for r in status.retiring if r.deployed.digest != action.target.digest)
    change: dict[str, object] = {"rollout": rollout, "retiring": kept, "phase": Phase.PROGRESSING}
    if action.spec.paused:
        change["phase"] = Phase.PAUSED
    if status.previous is not None and status.previous.digest == action.target.digest:
        change |= {"previous": None, "warm_until": None}
    return status.model_copy(update=change)


def _promote(status: ModelStatus, at: float) -> ModelStatus:
    rollout = status.rollout
    assert rollout is not None
    if status.previous is not None:  # one way back is kept, not two
        status = _retire(status, status.previous, at)
    change = {"stage": Stage.PROMOTED, "weight": 100, "finished_at": at, "paused": False}
    status = _with_rollout(status, change, phase=Phase.HEALTHY)
    warm_until = at + rollout.spec.rollback_window if status.stable is not None else None
    return status.model_copy(update={"previous": status.stable, "stable": rollout.target, "warm_until": warm_until})


def _withdraw(status: ModelStatus, action: Withdraw, at: float, reason: str) -> ModelStatus:
    rollout = status.rollout
    assert rollout is not None
    status = _retire(status, rollout.target, at)
    change = {"stage": Stage.WITHDRAWN, "weight": 0, "finished_at": at, "paused": False}
    status = _with_rollout(status, change, phase=Phase.DEGRADED)
    return _condemn(status, rollout.target.digest, reason) if action.condemn else status


def _switch_back(status: ModelStatus, action: SwitchBack, at: float, reason: str) -> ModelStatus:
    old, back = status.stable, status.previous
    assert old is not None
    assert back is not None
    status = _retire(status, old, at)
    status = status.model_copy(update={"stable": back, "previous": None, "warm_until": None, "phase": Phase.DEGRADED})
    return _condemn(status, old.digest, reason) if action.condemn else status


def _retire(status: ModelStatus, deployed: Deployed | None, at: float) -> ModelStatus:
    if deployed is None or any(r.deployed.digest == deployed.digest for r in status.retiring):
        return status
    deadline_s = status.rollout.spec.drain_deadline if status.rollout is not None else 600.0
    entry = Retiring(deployed=deployed, since=at, deadline_at=at + deadline_s)
    return status.model_copy(update={"retiring": (*status.retiring, entry)})


def _condemn(status: ModelStatus, digest: str, reason: str) -> ModelStatus:
    return status.model_copy(update={"quarantine": {**status.quarantine, digest: reason}})


def _moving_phase(status: ModelStatus) -> Phase:
    return Phase.PAUSED if status.rollout is not None and status.rollout.paused else Phase.PROGRESSING


def _with_rollout(status: ModelStatus, change: Mapping[str, object], *, phase: Phase) -> ModelStatus:
    assert status.rollout is not None
    return status.model_copy(update={"rollout": status.rollout.model_copy(update=dict(change)), "phase": phase})
