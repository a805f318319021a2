"""The decision: pure, total, in stated precedence. Nothing here reads a clock, a network or a store.

Precedence, safety first:

    1. nothing to do          no active rollout, and no promoted one that is still watched
    2. safety                 a signal or the smoke suite failed; the engine keeps dying; it can't start
    3. waiting                the world could not be seen; gateways have not followed yet; paused
    4. progress               what the strategy says: canary, blue-green, shadow, A/B (strategies/)

An operator's commands do not wait for this function: commands.py turns them into decisions of their own, which
pre-empt whatever would have been decided here. What must go on whatever the rollout does is decided apart
(`housekeeping`): traffic that a rollback could not move yet, the end of a watch, draining.
"""

from __future__ import annotations

from typing import assert_never

from rollout.actions import (
    Action,
    Degrade,
    EndWatch,
    Promote,
    Remove,
    RetirePrevious,
    Shift,
    SwitchBack,
    Trigger,
)
from rollout.capacity import can_take, ready_replicas, short_of, wanted_replicas
from rollout.decision import Cause as Cause
from rollout.decision import Decision as Decision
from rollout.decision import go, hold
from rollout.observation import Observation
from rollout.specs import OnShortage, RolloutSpec
from rollout.status import Leaving, ModelStatus, Phase, RolloutState, Stage
from rollout.strategies import ab, blue_green, canary, shadow
from rollout.strategies.evidence import failed_signals, withdrawn
from rollout.strategy_specs import AbStrategy, BlueGreenStrategy, CanaryStrategy, ShadowStrategy
from rollout.wording import describe, name_of
from rollout.workloads.base import WorkloadState, WorkloadStatus

MAX_ENGINE_RESTARTS = 3
"""A canary whose engine died this often is taken back; the first deaths may be the machine's fault."""


def decide(spec: RolloutSpec, status: ModelStatus, observation: Observation, now: float) -> Decision:
    """Judge the active rollout of one model, or the one that was promoted and is still watched.

    Args:
        spec: what was asked for.
        status: the fold of the event log.
        observation: what was seen just now.
        now: seconds since the epoch.

    Returns:
        The first guard that applies, in the order of this module's docstring.

    """
    rollout = status.rollout
    if rollout is not None and rollout.watched:
        return _watch(status, rollout, observation)
    if rollout is None or not rollout.active:
        return hold(Cause.IDLE, "no rollout is active")
    return (
        _safety(status, rollout, observation, now)
        or _waiting(rollout, observation)
        or _progress(spec, status, rollout, observation, now)
    )


def _watch(status: ModelStatus, rollout: RolloutState, seen: Observation) -> Decision:
    """After a switch: go back by itself on evidence, while there is somewhere to go back to."""
    failed = failed_signals(rollout, seen)
    name = name_of(rollout.target)
    if failed:
        told = describe(failed[0])
        if status.previous is not None:
            reason = f"{name} after the switch: {told}; back to {name_of(status.previous)}"
            return switched_back(status, seen, Cause.SIGNAL_FAILED, Trigger.SIGNAL, reason)
        reason = f"{name}: {told}; there is no earlier version to go back to: deploy one that works"
        actions: tuple[Action, ...] = () if status.phase is Phase.DEGRADED else (Degrade(),)
        return go(Cause.SIGNAL_FAILED, reason, *actions)
    workload = seen.workload(rollout.target.application)
    if status.previous is not None and workload is not None and workload.restarts >= MAX_ENGINE_RESTARTS:
        died = f"the engine of {name} died {workload.restarts} times (limit {MAX_ENGINE_RESTARTS})"
        reason = f"{died}; back to {name_of(status.previous)}"
        return switched_back(status, seen, Cause.ENGINE_LOST, Trigger.ENGINE_LOST, reason, condemn=False)
    return hold(Cause.WATCHING, f"{name} has all traffic and is watched until its rollback window is over")


def switched_back(
    status: ModelStatus,
    seen: Observation | None,
    cause: Cause,
    trigger: Trigger,
    reason: str,
    *,
    to: str | None = None,
    condemn: bool = True,
    shed: bool = False,
) -> Decision:
    """Go from stable back to a revision that still runs (`to`, or the previous one), as far as it can take traffic."""
    back = status.previous if to is None else next(d for d in status.running() if d.digest == to)
    assert back is not None
    wanted = wanted_replicas(status)[back.digest]
    rollout = status.rollout
    shed = shed or (rollout is not None and rollout.spec.engine.on_shortage is OnShortage.SHED)
    keep = 0 if shed else 100 - can_take(back, wanted, seen)
    told = reason + (short_of(back, wanted, keep, seen) if keep else "")
    return go(cause, told, SwitchBack(trigger=trigger, condemn=condemn, to=to, keep=keep))


def _safety(status: ModelStatus, rollout: RolloutState, seen: Observation, now: float) -> Decision | None:
    # Evidence against the version comes before everything: it needs neither gateways nor workloads to be seen,
    # and a paused rollout is not safe from it.
    plan = rollout.spec.strategy.chosen
    if rollout.judged and not (isinstance(plan, AbStrategy) and not plan.safety):
        failed = failed_signals(rollout, seen)
        if failed:
            told = describe(failed[0])
            return withdrawn(status, rollout, seen, Cause.SIGNAL_FAILED, Trigger.SIGNAL, told, condemn=True)
    if rollout.stage is Stage.PREVIEWING and (found := blue_green.unsafe(status, rollout, seen)):
        return found
    return _cannot_serve(status, rollout, seen) or _too_late(status, rollout, seen, now)


def _cannot_serve(status: ModelStatus, rollout: RolloutState, seen: Observation) -> Decision | None:
    workload = seen.workload(rollout.target.application)
    if workload is None:
        return None
    name = name_of(rollout.target)
    # Failing to load is final for this rollout, yet says nothing sure about the version: the node may have
    # had no room. So it is withdrawn, not condemned.
    if workload.state is WorkloadState.FAILED:
        reason = f"{name} can't be served: {workload.message or 'no reason was given'}"
        return withdrawn(status, rollout, seen, Cause.START_FAILED, Trigger.NEVER_READY, reason, condemn=False)
    if rollout.judged and workload.restarts >= MAX_ENGINE_RESTARTS:
        reason = (
            f"the engine of {name} died {workload.restarts} times since it was started (limit {MAX_ENGINE_RESTARTS})"
        )
        return withdrawn(status, rollout, seen, Cause.ENGINE_LOST, Trigger.ENGINE_LOST, reason, condemn=False)
    return None


def _too_late(status: ModelStatus, rollout: RolloutState, seen: Observation, now: float) -> Decision | None:
    return _room_in_vain(status, rollout, seen, now) or _never_ready(status, rollout, seen, now)


def _room_in_vain(status: ModelStatus, rollout: RolloutState, seen: Observation, now: float) -> Decision | None:
    # Without spare capacity stable runs with fewer replicas for as long as this lasts. What it gave and the canary
    # could not use, for want of a node that takes the pod for instance, it must get back some day. Not during a pause:
    # one may last longer than the deadline, and what is missing then may be a replica that served and just restarts.
    given_at, limit_s = rollout.room_at, rollout.spec.progress_deadline_seconds
    if rollout.paused or given_at is None or given_at < rollout.step_started_at or now - given_at <= limit_s:
        return None
    wanted = wanted_replicas(status)[rollout.target.digest]
    ready = ready_replicas(rollout.target, wanted, seen)
    if ready is None or ready >= wanted:
        return None
    reason = (
        f"{name_of(rollout.target)} has {ready} of the {wanted} replicas that stable made room for, "
        f"{now - given_at:.0f} s after the last one (progressDeadlineSeconds {limit_s})"
    )
    reason += _because(seen.workload(rollout.target.application)) + "; stable gets its replicas back"
    return withdrawn(status, rollout, seen, Cause.DEADLINE, Trigger.NEVER_READY, reason, condemn=False)


def _never_ready(status: ModelStatus, rollout: RolloutState, seen: Observation, now: float) -> Decision | None:
    # It was ready with what it had when stable gave one more, and that one has its own time.
    waited_s = now - max(rollout.started_at, rollout.room_at or 0.0)
    limit_s = rollout.spec.progress_deadline_seconds
    if rollout.stage is not Stage.STARTING or waited_s <= limit_s or _is_ready(rollout, seen):
        return None
    reason = f"{name_of(rollout.target)} was not ready after {waited_s:.0f} s (progressDeadlineSeconds {limit_s})"
    reason += _because(seen.workload(rollout.target.application))
    return withdrawn(status, rollout, seen, Cause.DEADLINE, Trigger.NEVER_READY, reason, condemn=False)


def _waiting(rollout: RolloutState, seen: Observation) -> Decision | None:
    # What can't be seen is no reason to go on and none to go back.
    if seen.workloads is None:
        return hold(Cause.NOT_OBSERVED, "the workloads can't be observed; holding")
    if seen.gateways == 0:
        return hold(Cause.NOT_OBSERVED, "no gateway is connected; holding")
    # Evidence gathered under the old table would be booked on the new one.
    if rollout.judged and not seen.table_applied:
        return hold(Cause.NOT_FOLLOWED, "not every gateway has the newest table yet")
    if rollout.at_end:
        return hold(Cause.PAUSED, "waits for a person: `promote` gives it all traffic, `abort` ends it")
    if rollout.paused:
        return hold(Cause.PAUSED, f"paused at weight {rollout.weight}; `resume` goes on")
    return None


def _progress(spec: RolloutSpec, status: ModelStatus, rollout: RolloutState, seen: Observation, now: float) -> Decision:
    if rollout.stage is Stage.STARTING:
        return _first_step(spec, status, rollout, seen)
    plan = spec.strategy.chosen
    match plan:
        case CanaryStrategy():
            return canary.judge(plan, status, rollout, seen, now)
        case BlueGreenStrategy():
            return blue_green.judge(plan, status, rollout, seen, now)
        case ShadowStrategy():
            return shadow.judge(plan, status, rollout, seen, now)
        case AbStrategy():
            return ab.judge(plan, rollout, seen)
        case _:
            assert_never(plan)


def _because(workload: WorkloadStatus | None) -> str:
    """What the layer below says of a workload that is not ready, behind what is said of it here."""
    return f": {workload.message}" if workload is not None and workload.message else ""


def _is_ready(rollout: RolloutState, seen: Observation) -> bool:
    workload = seen.workload(rollout.target.application)
    ready = workload is not None and workload.state is WorkloadState.READY
    return ready and seen.answers(rollout.target.application)


def _first_step(spec: RolloutSpec, status: ModelStatus, rollout: RolloutState, seen: Observation) -> Decision:
    name = name_of(rollout.target)
    if not _is_ready(rollout, seen):
        workload = seen.workload(rollout.target.application)
        state = WorkloadState.MISSING if workload is None else workload.state
        return hold(Cause.STARTING, f"{name} is {state}; no traffic before it is ready{_because(workload)}")
    if status.stable is None:
        reason = f"{name} is ready; {status.model} has no stable version, so it takes all traffic"
        return go(Cause.PROGRESS, reason, Promote(watch=True))
    if spec.emergency:
        reason = f"{name} is ready; an emergency deployment skips steps and evidence, and is watched afterwards"
        return go(Cause.PROGRESS, reason, Promote(watch=True))
    if status.leaving is not None:
        # Two versions beside stable would need three arms; the one that is leaving goes first.
        left = status.leaving
        return hold(Cause.WITHDRAWING, f"{name} is ready; {name_of(left.deployed)} still carries {left.weight} %")
    plan = spec.strategy.chosen
    match plan:
        case CanaryStrategy():
            return canary.begin(plan, status, rollout, seen)
        case BlueGreenStrategy():
            return blue_green.begin(plan, rollout)
        case ShadowStrategy():
            return shadow.begin(plan, rollout)
        case AbStrategy():
            return ab.begin(plan, status, rollout, seen)
        case _:
            assert_never(plan)


def next_action(rollout: RolloutState) -> Action:
    """What an operator's `promote` does in this rollout."""
    plan = rollout.spec.strategy.chosen
    match plan:
        case CanaryStrategy():
            return canary.by_hand(plan, rollout)
        case BlueGreenStrategy():
            return blue_green.by_hand()
        case ShadowStrategy():
            return shadow.by_hand()
        case AbStrategy():
            return ab.by_hand()
        case _:
            assert_never(plan)


SETTLE_S = 1.0
"""A revision that has just lost its traffic is not removed before this: the look that tells "no answer under way" may
be older than the table that took the traffic away."""

HOUSEKEEPING = frozenset({Cause.DRAINED, Cause.WATCH_OVER, Cause.WITHDRAWING})
"""Causes of decisions that `housekeeping` takes."""


def housekeeping(status: ModelStatus, observation: Observation, now: float) -> Decision | None:
    """Go on with what must go on whatever the rollout does: finish a rollback, end a watch, drain and remove.

    A revision is drained when every gateway follows the newest table and none has an answer of it under way, or
    when its deadline has passed (then the streams that are left are cut, and counted).
    """
    if status.leaving is not None and (moved := _shift(status, status.leaving, observation)):
        return moved
    rollout = status.rollout
    until = rollout.watch_until if rollout is not None and status.previous is None else None
    if rollout is not None and until is not None and now >= until:
        return go(Cause.WATCH_OVER, f"the watch over {name_of(rollout.target)} is over", EndWatch())
    return _drain(status, observation, now)


def _shift(status: ModelStatus, leaving: Leaving, seen: Observation) -> Decision | None:
    """Move to stable what it has become able to take; what is left only ever falls."""
    stable = status.stable
    assert stable is not None
    wanted = wanted_replicas(status)
    able = can_take(stable, wanted[stable.digest], seen)
    dead = ready_replicas(leaving.deployed, wanted[leaving.deployed.digest], seen) == 0
    left = 0 if dead else min(leaving.weight, 100 - able)
    if left == leaving.weight:
        return None
    name = name_of(leaving.deployed)
    why = f"{name} does not answer any more" if dead else f"{name_of(stable)} can take {able} % now"
    done = f"{name} keeps {left} %" if left else f"{name} carries nothing any more"
    return go(Cause.WITHDRAWING, f"{why}; {done}", Shift(weight=left))


def _drain(status: ModelStatus, seen: Observation, now: float) -> Decision | None:
    actions: list[Action] = []
    reasons: list[str] = []
    if status.previous is not None and status.warm_until is not None and now >= status.warm_until:
        actions.append(RetirePrevious())
        reasons.append(f"the rollback window of {name_of(status.previous)} is over")
    for entry in status.retiring:
        left = None if seen.in_flight is None else seen.in_flight.get(entry.deployed.digest, 0)
        if seen.table_applied and left == 0 and now - entry.since >= SETTLE_S:
            actions.append(Remove(digest=entry.deployed.digest))
            reasons.append(f"{name_of(entry.deployed)} drained in {max(0.0, now - entry.since):.1f} s")
        elif now >= entry.deadline_at:
            actions.append(Remove(digest=entry.deployed.digest, streams_cut=left or 0))
            reasons.append(f"{name_of(entry.deployed)} reached its drain deadline with {left or 0} streams open")
    if not actions:
        return None
    return go(Cause.DRAINED, "; ".join(reasons), *actions)
