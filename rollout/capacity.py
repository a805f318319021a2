"""How much traffic each side can carry: replicas wanted, replicas ready, and what follows for the weights. Pure.

Two rules of docs/architecture.md live here. *Room to go back*: a rollback moves no more than stable's ready replicas
can take, unless the operator prefers to shed. *Room to go forward*: a canary's weight is capped by its own ready
replicas relative to those that stable runs.
"""

from __future__ import annotations

from collections.abc import Mapping

from rollout.actions import Deployed
from rollout.observation import Observation
from rollout.specs import Capacity, OnShortage
from rollout.status import ModelStatus, RolloutState
from rollout.wording import name_of
from rollout.workloads.base import WorkloadState


def wanted_replicas(status: ModelStatus) -> Mapping[str, int]:
    """How many replicas each running revision should have, by digest.

    With `capacity: replace` there is no spare accelerator: what the canary has (`room`), stable has given, keeping one
    at least; and while the old stable is kept warm after a promotion, it has one, which the new one lacks.
    """
    wanted = {d.digest: d.replicas for d in status.running()}
    rollout, stable = status.rollout, status.stable
    if rollout is None or stable is None or rollout.spec.engine.capacity is Capacity.SURGE:
        return wanted
    if rollout.active:
        wanted[rollout.target.digest] = min(rollout.room, rollout.target.replicas)
        wanted[stable.digest] = max(1, stable.replicas - rollout.room)
    elif status.previous is not None:
        wanted[status.previous.digest] = 1
        wanted[stable.digest] = max(1, stable.replicas - 1)
    return wanted


def ready_replicas(deployed: Deployed, wanted: int, seen: Observation) -> int | None:
    """How many replicas of a revision answer; None when that can't be told."""
    workload = seen.workload(deployed.application)
    if seen.workloads is None:
        return None
    if workload is None:
        return 0
    return max(workload.ready_replicas, wanted) if workload.state is WorkloadState.READY else workload.ready_replicas


def can_take(deployed: Deployed, wanted: int, seen: Observation | None) -> int:
    """How much of all traffic (percent) a revision could carry now: its ready replicas over the wanted ones.

    What can't be seen is no reason to leave traffic on a version that is being taken back: while the workloads are out
    of sight, only a gateway's word that it has no endpoint counts. A gateway that has not told yet has said nothing.
    """
    if seen is None:
        return 100
    ready = ready_replicas(deployed, wanted, seen)
    if ready is None:
        return 0 if seen.ready_endpoints.get(deployed.application) == 0 else 100
    return min(100, 100 * ready // max(1, wanted))


def must_keep(status: ModelStatus, rollout: RolloutState, seen: Observation | None) -> int:
    """What the canary keeps for now when it is taken back, in percent; 0 when stable takes all or it should shed."""
    if status.stable is None or rollout.spec.engine.on_shortage is OnShortage.SHED:
        return 0
    wanted = wanted_replicas(status)[status.stable.digest]
    return min(rollout.weight, 100 - can_take(status.stable, wanted, seen))


def shortage(status: ModelStatus, keep: int, seen: Observation | None) -> str:
    """Why a rollback does not move everything, and the way out; empty when it does."""
    if not keep or status.stable is None:
        return ""
    return short_of(status.stable, wanted_replicas(status)[status.stable.digest], keep, seen)


def short_of(back: Deployed, wanted: int, keep: int, seen: Observation | None) -> str:
    """The same for the revision `back` that traffic should return to."""
    able = can_take(back, wanted, seen)
    if able == 0:
        return (
            f"; {name_of(back)} has no ready replica, so nothing can be moved until it has one: start it again, deploy "
            "a version that works with --emergency, or repeat the rollback with full to shed the traffic"
        )
    return (
        f"; {name_of(back)} is not fully ready and can take {able} % now, so {keep} % stay until it is "
        "(a rollback with full moves all at once and sheds what does not fit)"
    )


def forward_cap(status: ModelStatus, rollout: RolloutState, seen: Observation) -> int:
    """The largest weight (percent) that the canary's ready replicas can carry; 100 when that can't be told."""
    stable = status.stable
    wanted = wanted_replicas(status)
    ready = ready_replicas(rollout.target, wanted[rollout.target.digest], seen)
    if stable is None or ready is None:
        return 100
    if rollout.spec.engine.capacity is Capacity.REPLACE:
        # Stable has given all but one: there is nothing left to wait for before the last switch.
        return 100 if ready >= stable.replicas - 1 else min(100, 100 * ready // stable.replicas)
    serving = ready_replicas(stable, wanted[stable.digest], seen) or 0
    return min(100, 100 * ready // max(stable.replicas, serving))


def can_make_room(status: ModelStatus, rollout: RolloutState) -> bool:
    """Whether stable could give the canary one replica more."""
    stable = status.stable
    if stable is None or rollout.spec.engine.capacity is not Capacity.REPLACE:
        return False
    return rollout.room < rollout.target.replicas and stable.replicas - rollout.room > 1
