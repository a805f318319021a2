"""The decision: pure, total, in stated precedence. Nothing here reads a clock, a network or a store.

Precedence, safety first:

    1. nothing to do          no active rollout
    2. safety                 a signal failed; the canary's engine keeps dying; it can't start
    3. waiting                the world could not be seen; gateways have not followed yet; paused
    4. progress               first step, next step, soak, promotion

An operator's commands do not wait for this function: commands.py turns them into decisions of their own, which
pre-empt whatever would have been decided here. Draining is decided apart (`housekeeping`), since it must go on
whatever the rollout does.
"""

from __future__ import annotations

import enum
from typing import assert_never

from rollout.actions import Action, Deployed, Promote, Remove, RetirePrevious, SetStep, Trigger, Withdraw
from rollout.actions import Pause as PauseAction
from rollout.observation import Observation, SignalReading, Verdict
from rollout.specs import OnInsufficient, RolloutSpec
from rollout.status import ModelStatus, RolloutState, Stage
from rollout.workloads.base import WorkloadState
from serving.specs import Frozen

MAX_ENGINE_RESTARTS = 3
"""A canary whose engine died this often is taken back; the first deaths may be the machine's fault."""


class Cause(enum.StrEnum):
    """Why a decision was taken: which guard spoke."""

    COMMAND = "command"
    SIGNAL_FAILED = "signal-failed"
    ENGINE_LOST = "engine-lost"
    START_FAILED = "start-failed"
    DEADLINE = "progress-deadline"
    NOT_OBSERVED = "not-observed"
    NOT_FOLLOWED = "not-followed"
    PAUSED = "paused"
    STARTING = "starting"
    CANARY_AWAY = "canary-away"
    STEP_TIME = "step-time"
    EVIDENCE = "evidence"
    INSUFFICIENT = "insufficient-evidence"
    PROGRESS = "progress"
    DRAINED = "drained"
    IDLE = "idle"


class Decision(Frozen):
    """What to do now and why. Without actions it is a reason to wait, which is not logged but shown."""

    cause: Cause
    reason: str
    actions: tuple[Action, ...] = ()


def decide(spec: RolloutSpec, status: ModelStatus, observation: Observation, now: float) -> Decision:
    """Judge the active rollout of one model.

    Args:
        spec: what was asked for.
        status: the fold of the event log.
        observation: what was seen just now.
        now: seconds since the epoch.

    Returns:
        The first guard that applies, in the order of this module's docstring.

    """
    rollout = status.rollout
    if rollout is None or not rollout.active:
        return Decision(cause=Cause.IDLE, reason="no rollout is active")
    return (
        _safety(rollout, observation, now)
        or _waiting(rollout, observation)
        or _progress(spec, status, rollout, observation, now)
    )


def _safety(rollout: RolloutState, seen: Observation, now: float) -> Decision | None:
    # Evidence against the version comes before everything: it needs neither gateways nor workloads to be seen,
    # and a paused rollout is not safe from it.
    if rollout.has_traffic:
        failed = [s for s in seen.signals if s.verdict is Verdict.FAILED]
        if failed:
            worst = max(failed, key=lambda s: s.log_e - s.threshold)
            return _take_back(Cause.SIGNAL_FAILED, Trigger.SIGNAL, describe(worst), condemn=True)
    workload = seen.workload(rollout.target.application)
    if workload is not None:
        # Failing to load is final for this rollout, yet says nothing sure about the version: the node may have
        # had no room. So it is withdrawn, not condemned.
        if workload.state is WorkloadState.FAILED:
            reason = f"{_name(rollout.target)} can't be served: {workload.message or 'no reason was given'}"
            return _take_back(Cause.START_FAILED, Trigger.NEVER_READY, reason, condemn=False)
        if rollout.has_traffic and workload.restarts >= MAX_ENGINE_RESTARTS:
            reason = (
                f"the engine of {_name(rollout.target)} died {workload.restarts} times since it took traffic "
                f"(limit {MAX_ENGINE_RESTARTS})"
            )
            return _take_back(Cause.ENGINE_LOST, Trigger.ENGINE_LOST, reason, condemn=False)
    waited_s = now - rollout.started_at
    if rollout.stage is Stage.STARTING and waited_s > rollout.spec.progress_deadline_seconds:
        reason = (
            f"{_name(rollout.target)} was not ready after {waited_s:.0f} s "
            f"(progressDeadlineSeconds {rollout.spec.progress_deadline_seconds})"
        )
        return _take_back(Cause.DEADLINE, Trigger.NEVER_READY, reason, condemn=False)
    return None


def _waiting(rollout: RolloutState, seen: Observation) -> Decision | None:
    # What can't be seen is no reason to go on and none to go back.
    if seen.workloads is None:
        return Decision(cause=Cause.NOT_OBSERVED, reason="the workloads can't be observed; holding")
    if seen.gateways == 0:
        return Decision(cause=Cause.NOT_OBSERVED, reason="no gateway is connected; holding")
    # Evidence gathered under the old table would be booked on the new one.
    if rollout.has_traffic and not seen.table_applied:
        return Decision(cause=Cause.NOT_FOLLOWED, reason="not every gateway has the newest table yet")
    if rollout.paused:
        return Decision(cause=Cause.PAUSED, reason=f"paused at weight {rollout.weight}; `resume` goes on")
    return None


def _progress(spec: RolloutSpec, status: ModelStatus, rollout: RolloutState, seen: Observation, now: float) -> Decision:
    match rollout.stage:
        case Stage.STARTING:
            return _first_step(spec, status, rollout, seen)
        case Stage.STEPPING | Stage.SOAKING:
            return _judge_step(spec, rollout, seen, now)
        case Stage.PROMOTED | Stage.WITHDRAWN:
            raise AssertionError("an inactive rollout has no progress")
        case _:
            assert_never(rollout.stage)


def _first_step(spec: RolloutSpec, status: ModelStatus, rollout: RolloutState, seen: Observation) -> Decision:
    target = rollout.target
    workload = seen.workload(target.application)
    if workload is None or workload.state is not WorkloadState.READY or not seen.answers(target.application):
        state = WorkloadState.MISSING if workload is None else workload.state
        return Decision(cause=Cause.STARTING, reason=f"{_name(target)} is {state}; no traffic before it is ready")
    if status.stable is None:
        reason = f"{_name(target)} is ready; {status.model} has no stable version, so it takes all traffic"
        return Decision(cause=Cause.PROGRESS, reason=reason, actions=(Promote(),))
    if spec.emergency:
        reason = f"{_name(target)} is ready; an emergency deployment skips steps and evidence"
        return Decision(cause=Cause.PROGRESS, reason=reason, actions=(Promote(),))
    steps = spec.strategy.canary.shifting_steps
    if not steps:
        reason = f"{_name(target)} is ready and the only step is 100"
        return Decision(cause=Cause.PROGRESS, reason=reason, actions=(Promote(),))
    reason = f"{_name(target)} is ready; step 1 of {len(steps)}, {steps[0].weight} % of new requests"
    return Decision(cause=Cause.PROGRESS, reason=reason, actions=(SetStep(step=0, weight=steps[0].weight),))


def _judge_step(spec: RolloutSpec, rollout: RolloutState, seen: Observation, now: float) -> Decision:
    if not seen.answers(rollout.target.application):
        # Gateways send its share to stable meanwhile; those requests carry no evidence, so the step can't pass.
        return Decision(cause=Cause.CANARY_AWAY, reason=f"{_name(rollout.target)} has no ready endpoint; holding")
    steps = spec.strategy.canary.shifting_steps
    soaking = rollout.stage is Stage.SOAKING
    least_s = spec.strategy.canary.soak if soaking else steps[rollout.step].duration
    longest_s = None if soaking else steps[rollout.step].max_duration
    spent_s = max(0.0, now - rollout.step_started_at)
    if spent_s < least_s:
        reason = f"{'soak' if soaking else f'step {rollout.step + 1}'}: {spent_s:.0f} of at least {least_s:.0f} s"
        return Decision(cause=Cause.STEP_TIME, reason=reason)
    missing = [s for s in seen.signals if s.gating and s.verdict is not Verdict.SUCCESSFUL]
    if missing or not seen.signals:
        return _insufficient(spec, rollout, missing, spent_s, longest_s)
    return _next_step(spec, rollout)


def _insufficient(
    spec: RolloutSpec, rollout: RolloutState, missing: list[SignalReading], spent_s: float, longest_s: float | None
) -> Decision:
    lacking = "; ".join(describe(s) for s in missing) or "no signal has been measured yet"
    unmeasured = any(s.verdict is Verdict.ERROR for s in missing)
    # A signal that can't be measured only ever holds: neither time nor policy turns "don't know" into a verdict.
    if longest_s is None or spent_s < longest_s or unmeasured:
        return Decision(cause=Cause.EVIDENCE, reason=f"not enough evidence yet: {lacking}")
    over = f"no verdict after {spent_s:.0f} s (maxDuration {longest_s:.0f} s): {lacking}"
    match spec.analysis.on_insufficient:
        case OnInsufficient.PAUSE:
            return Decision(cause=Cause.INSUFFICIENT, reason=over, actions=(PauseAction(),))
        case OnInsufficient.PROMOTE:
            step = _next_step(spec, rollout)
            return Decision(cause=Cause.INSUFFICIENT, reason=f"{over}; onInsufficient: promote", actions=step.actions)
        case OnInsufficient.ROLLBACK:
            return _take_back(Cause.INSUFFICIENT, Trigger.INSUFFICIENT, over, condemn=False)
        case _:
            assert_never(spec.analysis.on_insufficient)


def _next_step(spec: RolloutSpec, rollout: RolloutState) -> Decision:
    actions = next_step(spec, rollout)
    first = actions[0]
    proof = "every gating signal shows that it is not worse"
    if isinstance(first, SetStep):
        what = "soak" if first.soaking else f"step {first.step + 1}"
        return Decision(cause=Cause.PROGRESS, reason=f"{proof}; {what} at {first.weight} %", actions=actions)
    return Decision(cause=Cause.PROGRESS, reason=f"{proof}; promoted {_name(rollout.target)}", actions=actions)


def next_step(spec: RolloutSpec, rollout: RolloutState) -> tuple[Action, ...]:
    """What follows the present step: the next weight, the soak, or promotion."""
    canary = spec.strategy.canary
    steps = canary.shifting_steps
    if rollout.stage is Stage.SOAKING:
        return (Promote(),)
    following = rollout.step + 1
    if following < len(steps):
        return (SetStep(step=following, weight=steps[following].weight),)
    if canary.soak > 0:
        return (SetStep(step=rollout.step, weight=100 - canary.holdback_percent, soaking=True),)
    return (Promote(),)


def housekeeping(status: ModelStatus, observation: Observation, now: float) -> Decision | None:
    """Retire what is no longer needed: a previous revision after its window, a drained revision.

    A revision is drained when every gateway follows the newest table and none has an answer of it under way, or
    when its deadline has passed (then the streams that are left are cut, and counted).
    """
    actions: list[Action] = []
    reasons: list[str] = []
    if status.previous is not None and status.warm_until is not None and now >= status.warm_until:
        actions.append(RetirePrevious())
        reasons.append(f"the rollback window of {_name(status.previous)} is over")
    for entry in status.retiring:
        left = None if observation.in_flight is None else observation.in_flight.get(entry.deployed.digest, 0)
        if observation.table_applied and left == 0:
            actions.append(Remove(digest=entry.deployed.digest))
            reasons.append(f"{_name(entry.deployed)} drained in {max(0.0, now - entry.since):.1f} s")
        elif now >= entry.deadline_at:
            actions.append(Remove(digest=entry.deployed.digest, streams_cut=left or 0))
            reasons.append(f"{_name(entry.deployed)} reached its drain deadline with {left or 0} streams open")
    if not actions:
        return None
    return Decision(cause=Cause.DRAINED, reason="; ".join(reasons), actions=tuple(actions))


def describe(signal: SignalReading) -> str:
    """One signal in one line that a person can read.

    For instance `error: canary 12 of 142 (8.5 %) against stable 3 of 1290 (0.2 %), evidence e^4.8 of e^5.3`.
    """
    rates = f"canary {_rate(signal.canary.events, signal.canary.n)} against stable " + _rate(
        signal.stable.events, signal.stable.n
    )
    evidence = f"evidence against it e^{signal.log_e:.1f} of e^{signal.threshold:.1f}"
    forward = f", for it e^{signal.forward_log_e:.1f} of e^{signal.forward_threshold:.1f}"
    return f"{signal.name}: {rates}, {evidence}{'' if signal.verdict is Verdict.FAILED else forward}"


def _rate(events: int, n: int) -> str:
    return f"{events} of {n} ({100 * events / n:.1f} %)" if n else f"{events} of 0"


def _take_back(cause: Cause, trigger: Trigger, reason: str, *, condemn: bool) -> Decision:
    return Decision(cause=cause, reason=reason, actions=(Withdraw(trigger=trigger, condemn=condemn),))


def _name(deployed: Deployed) -> str:
    return f"{deployed.revision.model}@{deployed.version}"
