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
    Degrade,
    Deployed,
    EndWatch,
    MakeRoom,
    Mirror,
    Pause,
    Preview,
    Promote,
    Remove,
    Resume,
    RetirePrevious,
    Scale,
    SetStep,
    Shift,
    Start,
    SwitchBack,
    Undeploy,
    Withdraw,
)
from rollout.specs import Capacity, RolloutSpec
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
    """The canary has a part of the traffic: a canary's step, or an A/B split."""
    SOAKING = "soaking"
    PREVIEWING = "previewing"
    """Blue-green: ready, and asked by nobody but testers and the smoke suite."""
    MIRRORING = "mirroring"
    """Shadow: it gets copies of requests; its answers reach nobody."""
    PROMOTED = "promoted"
    WITHDRAWING = "withdrawing"
    """Taken back, but stable can't take all of its traffic yet."""
    WITHDRAWN = "withdrawn"


_ACTIVE = frozenset({Stage.STARTING, Stage.STEPPING, Stage.SOAKING, Stage.PREVIEWING, Stage.MIRRORING})


class Retiring(Frozen):
    """A revision without new requests that may still be answering old ones."""

    deployed: Deployed
    since: float
    deadline_at: float
    served: bool = True
    """Whether it has answered since it was started; one that was superseded while it was starting may never have."""


class Leaving(Frozen):
    """A revision that was taken back and still carries what stable can't: its weight only ever falls."""

    deployed: Deployed
    weight: int
    since: float


class RolloutState(Frozen):
    """The current rollout, or the last one. `step` counts from 0 and is -1 while the canary starts."""

    id: str
    spec: RolloutSpec
    target: Deployed
    salt: str
    judge: str = ""
    """The policy that scores both arms, frozen for this rollout; "" where no signal needs one."""
    stage: Stage = Stage.STARTING
    step: int = -1
    weight: int = 0
    part: int = 0
    """Which part of the soak."""
    exposed: int = 0
    """How many requests the canary had had when the present step (or part of the soak) began."""
    mirror_percent: int = 0
    room: int = 1
    """Replicas that stable has given to the canary; with `capacity: replace` only."""
    room_at: float | None = None
    """When it gave the last one, or went on after a pause; None before the first beyond that of the start."""
    paused: bool = False
    at_end: bool = False
    """Paused because nothing is left but a person's word."""
    watch_until: float | None = None
    """Until when the promoted revision goes on being judged; None when it is not."""
    started_at: float
    step_started_at: float
    finished_at: float | None = None

    @property
    def active(self) -> bool:
        """Whether it still may move."""
        return self.stage in _ACTIVE

    @property
    def judged(self) -> bool:
        """Whether evidence is being gathered to let it go on."""
        return self.active and self.stage is not Stage.STARTING

    @property
    def has_traffic(self) -> bool:
        """Whether the canary gets a part of the traffic now."""
        return self.stage in (Stage.STEPPING, Stage.SOAKING)

    @property
    def watched(self) -> bool:
        """Whether it has been promoted and goes on being judged."""
        return self.stage is Stage.PROMOTED and self.watch_until is not None


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
    leaving: Leaving | None = None
    retiring: tuple[Retiring, ...] = ()
    history: tuple[Deployed, ...] = ()
    """Revisions that were stable, newest first, the present one included; bounded by `revisionHistoryLimit`."""
    quarantine: Mapping[str, str] = Field(default_factory=dict)
    """By digest: why it was condemned."""
    condemned: Mapping[str, str] = Field(default_factory=dict)
    """By digest: which version a quarantined revision is."""
    updated_at: float = 0.0

    @property
    def canary(self) -> Deployed | None:
        """The revision that is being rolled out, while it is."""
        return self.rollout.target if self.rollout is not None and self.rollout.active else None

    @property
    def namespace(self) -> str:
        """Whose model it is on a cluster: that of what serves, else of what comes, else of what was there last.

        Empty on the local platform.
        """
        last = self.rollout.target if self.rollout is not None else None
        leaving = self.leaving.deployed if self.leaving is not None else None
        owned = (self.stable, self.canary, leaving, self.previous, last, *self.history[:1])
        return next((d.namespace for d in owned if d is not None), "")

    def running(self) -> tuple[Deployed, ...]:
        """Every revision that should have a workload, stable first, each digest once."""
        leaving = self.leaving.deployed if self.leaving is not None else None
        wanted = [self.stable, self.canary, leaving, self.previous, *(r.deployed for r in self.retiring)]
        found: dict[str, Deployed] = {}
        for deployed in wanted:
            if deployed is not None:
                found.setdefault(deployed.digest, deployed)
        return tuple(found.values())

    def still_running(self, version: str) -> Deployed | None:
        """A revision of this version that is kept warm or being drained: it can take traffic again at once."""
        warm = [self.previous] if self.previous is not None else []
        return next((d for d in [*warm, *(r.deployed for r in self.retiring)] if d.version == version), None)


def kept_versions(status: ModelStatus) -> tuple[str, ...]:
    """The versions that `undo` and `rollback --to` may name: kept warm, being drained, or once stable; newest first."""
    there = [status.previous, *(r.deployed for r in status.retiring), *status.history]
    now = status.stable.version if status.stable is not None else None
    return tuple(dict.fromkeys(d.version for d in there if d is not None and d.version != now))


def apply(status: ModelStatus, actions: Iterable[Action], *, at: float, reason: str, actor: str) -> ModelStatus:
    """Fold a decision's actions into a status. `at` is the decision's time in seconds since the epoch.

    The reason a person sees stays that of the rollout: clearing up behind it is in the log, not in the way.
    """
    told = False
    for action in actions:
        status = _apply_one(status, action, at, reason)
        told = told or not isinstance(action, RetirePrevious | Remove | EndWatch | Shift | Scale)
    change: dict[str, object] = {"updated_at": at}
    if told:
        change |= {"reason": reason, "actor": actor}
    return status.model_copy(update=change)


def _apply_one(status: ModelStatus, action: Action, at: float, reason: str) -> ModelStatus:
    match action:
        case Start():
            return _start(status, action, at)
        case SetStep() | Preview() | Mirror() | MakeRoom() | Pause() | Resume():
            return _move(status, action, at)
        case Promote():
            return _promote(status, action, at)
        case Withdraw():
            return _withdraw(status, action, at, reason)
        case SwitchBack():
            return _switch_back(status, action, at, reason)
        case Shift():
            return _shift(status, action, at)
        case Degrade():
            return status.model_copy(update={"phase": Phase.DEGRADED})
        case EndWatch():
            return _unwatched(status)
        case RetirePrevious():
            retired = _unwatched(_retire(status, status.previous, at))
            return retired.model_copy(update={"previous": None, "warm_until": None})
        case Remove():
            kept = tuple(r for r in status.retiring if r.deployed.digest != action.digest)
            return status.model_copy(update={"retiring": kept})
        case Acknowledge():
            return _without_quarantine(status, action.digest)
        case Scale():
            assert status.stable is not None
            return status.model_copy(update={"stable": status.stable.scaled(action.replicas, action.most)})
        case Undeploy():
            return _undeploy(status, at)
        case _:
            assert_never(action)


def _start(status: ModelStatus, action: Start, at: float) -> ModelStatus:
    rollout = RolloutState(
        id=action.rollout,
        spec=action.spec,
        target=action.target,
        salt=action.salt,
        judge=action.judge,
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


def _move(
    status: ModelStatus, action: SetStep | Preview | Mirror | MakeRoom | Pause | Resume, at: float
) -> ModelStatus:
    """What changes the rollout alone."""
    change: dict[str, object]
    phase = Phase.PAUSED if status.rollout is not None and status.rollout.paused else Phase.PROGRESSING
    match action:
        case SetStep():
            stage = Stage.SOAKING if action.soaking else Stage.STEPPING
            change = {"stage": stage, "step": action.step, "weight": action.weight, "step_started_at": at}
            change |= {"part": action.part, "exposed": action.exposed}
        case Preview():
            change = {"stage": Stage.PREVIEWING, "step": 0, "weight": 0, "step_started_at": at}
        case Mirror():
            change = {"stage": Stage.MIRRORING, "step": 0, "weight": 0, "step_started_at": at}
            change["mirror_percent"] = action.percent
        case MakeRoom():
            change = {"room": action.replicas, "room_at": at}
        case Pause():
            change, phase = {"paused": True, "at_end": action.at_end}, Phase.PAUSED
        case Resume():
            change, phase = {"paused": False, "at_end": False, "step_started_at": at}, Phase.PROGRESSING
            rollout = status.rollout
            if rollout is not None and rollout.room_at is not None and rollout.room_at >= rollout.step_started_at:
                change["room_at"] = at  # the replica given last has its time anew, as the step has
        case _:
            assert_never(action)
    return _with_rollout(status, change, phase=phase)


def _promote(status: ModelStatus, action: Promote, at: float) -> ModelStatus:
    rollout = status.rollout
    assert rollout is not None
    if status.leaving is not None:  # whoever still carried what stable could not, the new stable takes it over
        status = _shift(status, Shift(weight=0), at)
    if status.previous is not None:  # one way back is kept, not two
        status = _retire(status, status.previous, at)
    until = at + rollout.spec.rollback_window
    change = {"stage": Stage.PROMOTED, "weight": 100, "finished_at": at, "paused": False, "at_end": False}
    change |= {"watch_until": until if action.watch else None, "mirror_percent": 0}
    status = _with_rollout(status, change, phase=Phase.HEALTHY)
    earlier = tuple(d for d in status.history if d.digest != rollout.target.digest)
    return status.model_copy(
        update={
            "previous": status.stable,
            "stable": rollout.target,
            "warm_until": until if status.stable is not None else None,
            "history": (rollout.target, *earlier)[: rollout.spec.revision_history_limit + 1],
        }
    )


def _withdraw(status: ModelStatus, action: Withdraw, at: float, reason: str) -> ModelStatus:
    rollout = status.rollout
    assert rollout is not None
    target = _as_it_runs(rollout)
    keep = min(action.keep, rollout.weight) if status.stable is not None else 0
    stage = Stage.WITHDRAWING if keep else Stage.WITHDRAWN
    change = {"stage": stage, "weight": keep, "paused": False, "at_end": False, "mirror_percent": 0, "finished_at": at}
    if keep:
        status = status.model_copy(update={"leaving": Leaving(deployed=target, weight=keep, since=at)})
    elif status.leaving is None or status.leaving.deployed.digest != target.digest:
        status = _retire(status, target, at, served=rollout.judged)
    status = _with_rollout(status, change, phase=Phase.DEGRADED)
    return _condemn(status, target, reason) if action.condemn else status


def _switch_back(status: ModelStatus, action: SwitchBack, at: float, reason: str) -> ModelStatus:
    old = status.stable
    back = status.previous if action.to is None else next(d for d in status.running() if d.digest == action.to)
    assert old is not None
    assert back is not None
    if status.leaving is not None:
        status = _shift(status, Shift(weight=0), at)
    if status.previous is not None and status.previous.digest != back.digest:
        status = _retire(status, status.previous, at)
    kept = tuple(r for r in status.retiring if r.deployed.digest != back.digest)
    earlier = (d for d in status.history if d.digest not in (back.digest, old.digest if action.condemn else ""))
    change: dict[str, object] = {"stable": back, "previous": None, "warm_until": None, "phase": Phase.DEGRADED}
    change |= {"retiring": kept, "history": (back, *earlier)}
    if action.keep:
        change["leaving"] = Leaving(deployed=old, weight=action.keep, since=at)
    status = _unwatched(status.model_copy(update=change))
    if not action.keep:
        status = _retire(status, old, at)
    return _condemn(status, old, reason) if action.condemn else status


def _shift(status: ModelStatus, action: Shift, at: float) -> ModelStatus:
    leaving, rollout = status.leaving, status.rollout
    assert leaving is not None
    weight = min(action.weight, leaving.weight)
    if rollout is not None and rollout.stage is Stage.WITHDRAWING:
        stage = Stage.WITHDRAWING if weight else Stage.WITHDRAWN
        status = _with_rollout(status, {"stage": stage, "weight": weight}, phase=status.phase)
    if weight:
        return status.model_copy(update={"leaving": leaving.model_copy(update={"weight": weight})})
    status = status.model_copy(update={"leaving": None})
    wanted_again = status.canary is not None and status.canary.digest == leaving.deployed.digest
    return status if wanted_again else _retire(status, leaving.deployed, at)


def _as_it_runs(rollout: RolloutState) -> Deployed:
    """The canary with the replicas that it really has."""
    if rollout.spec.engine.capacity is Capacity.REPLACE:
        return rollout.target.model_copy(update={"replicas": min(rollout.room, rollout.target.replicas)})
    return rollout.target


def _retire(status: ModelStatus, deployed: Deployed | None, at: float, *, served: bool = True) -> ModelStatus:
    if deployed is None or any(r.deployed.digest == deployed.digest for r in status.retiring):
        return status
    deadline_s = status.rollout.spec.drain_deadline if status.rollout is not None else 600.0
    entry = Retiring(deployed=deployed, since=at, deadline_at=at + deadline_s, served=served)
    return status.model_copy(update={"retiring": (*status.retiring, entry)})


def _undeploy(status: ModelStatus, at: float) -> ModelStatus:
    """Everything that runs loses its traffic and is drained; what was condemned stays so."""
    if status.leaving is not None:
        status = _shift(status, Shift(weight=0), at)
    rollout = status.rollout
    if rollout is not None and rollout.active:
        served = rollout.judged or status.stable is None
        status = _retire(status, _as_it_runs(rollout), at, served=served)
        ended = {"stage": Stage.WITHDRAWN, "weight": 0, "paused": False, "at_end": False, "mirror_percent": 0}
        status = _with_rollout(status, {**ended, "finished_at": at}, phase=status.phase)
    status = _retire(_retire(_unwatched(status), status.previous, at), status.stable, at)
    gone: dict[str, object] = {"stable": None, "previous": None, "warm_until": None, "history": ()}
    return status.model_copy(update={**gone, "phase": Phase.HEALTHY})


def _condemn(status: ModelStatus, deployed: Deployed, reason: str) -> ModelStatus:
    quarantine = {**status.quarantine, deployed.digest: reason}
    condemned = {**status.condemned, deployed.digest: deployed.version}
    return status.model_copy(update={"quarantine": quarantine, "condemned": condemned})


def _without_quarantine(status: ModelStatus, digest: str) -> ModelStatus:
    left = {d: why for d, why in status.quarantine.items() if d != digest}
    names = {d: version for d, version in status.condemned.items() if d != digest}
    return status.model_copy(update={"quarantine": left, "condemned": names})


def _unwatched(status: ModelStatus) -> ModelStatus:
    if status.rollout is None or status.rollout.watch_until is None:
        return status
    return status.model_copy(update={"rollout": status.rollout.model_copy(update={"watch_until": None})})


def _with_rollout(status: ModelStatus, change: Mapping[str, object], *, phase: Phase) -> ModelStatus:
    assert status.rollout is not None
    return status.model_copy(update={"rollout": status.rollout.model_copy(update=dict(change)), "phase": phase})
