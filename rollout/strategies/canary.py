"""Canary: rising weights, each until the evidence suffices, then a soak in which stable keeps less and less. Pure."""

from __future__ import annotations

from rollout.actions import Action, Promote, SetStep
from rollout.decision import Cause, Decision, go, hold
from rollout.observation import Observation
from rollout.status import ModelStatus, RolloutState, Stage
from rollout.strategies.evidence import not_trusted, room_for, without_evidence
from rollout.strategy_specs import CanaryStrategy
from rollout.wording import name_of


def begin(plan: CanaryStrategy, status: ModelStatus, rollout: RolloutState, seen: Observation) -> Decision:
    """Give a version that has become ready its first weight."""
    action = following(plan, rollout, exposed=0)
    if isinstance(action, Promote):
        reason = f"{name_of(rollout.target)} is ready and the only step is 100; watched afterwards"
        return room_for(status, rollout, seen, 100) or go(Cause.PROGRESS, reason, Promote(watch=True))
    count = len(plan.shifting_steps)
    what = "the soak" if action.soaking else f"step 1 of {count}"
    reason = f"{name_of(rollout.target)} is ready; {what}, {action.weight} % of new requests"
    return room_for(status, rollout, seen, action.weight) or go(Cause.PROGRESS, reason, action)


def judge(plan: CanaryStrategy, status: ModelStatus, rollout: RolloutState, seen: Observation, now: float) -> Decision:
    """Judge a step or a part of the soak."""
    if doubt := not_trusted(rollout, seen):
        return doubt
    spent_s = max(0.0, now - rollout.step_started_at)
    if early := _too_early(plan, rollout, seen, spent_s):
        return early
    soaking = rollout.stage is Stage.SOAKING
    longest_s = None if soaking else plan.shifting_steps[rollout.step].max_duration
    forward = _forward(plan, status, rollout, seen)
    lack = without_evidence(status, rollout, seen, spent_s=spent_s, longest_s=longest_s, following=forward)
    return lack or forward


def _too_early(plan: CanaryStrategy, rollout: RolloutState, seen: Observation, spent_s: float) -> Decision | None:
    if rollout.stage is not Stage.SOAKING:
        least_s = plan.shifting_steps[rollout.step].duration
        if spent_s >= least_s:
            return None
        return hold(Cause.STEP_TIME, f"step {rollout.step + 1}: {spent_s:.0f} of at least {least_s:.0f} s")
    parts = len(plan.holdbacks)
    name = f"soak, part {rollout.part + 1} of {parts}"
    least_s = plan.soak / parts
    if spent_s < least_s:
        return hold(Cause.STEP_TIME, f"{name}: {spent_s:.0f} of at least {least_s:.0f} s")
    least = -(-(plan.soak_requests or 0) // parts)
    had = max(0, seen.exposure.canary_requests - rollout.exposed)
    if had < least:
        return hold(Cause.STEP_TIME, f"{name}: {had} of at least {least} canary requests")
    return None


def _forward(plan: CanaryStrategy, status: ModelStatus, rollout: RolloutState, seen: Observation) -> Decision:
    action = following(plan, rollout, exposed=seen.exposure.canary_requests)
    weight = action.weight if isinstance(action, SetStep) else 100
    if short := room_for(status, rollout, seen, weight):
        return short
    proof = "every gating signal shows that it is not worse"
    if isinstance(action, SetStep):
        what = f"soak, part {action.part + 1}," if action.soaking else f"step {action.step + 1}"
        return go(Cause.PROGRESS, f"{proof}; {what} at {action.weight} %", action)
    return go(Cause.PROGRESS, f"{proof}; promoted {name_of(rollout.target)}", action)


def following(plan: CanaryStrategy, rollout: RolloutState, *, exposed: int) -> SetStep | Promote:
    """What comes after where it stands: the next weight, a part of the soak, or promotion."""
    steps, holdbacks = plan.shifting_steps, plan.holdbacks
    if rollout.stage is Stage.SOAKING:
        part = rollout.part + 1
        if part >= len(holdbacks):
            return Promote()
        weight = 100 - holdbacks[part]
        return SetStep(step=rollout.step, weight=weight, soaking=True, part=part, exposed=exposed)
    step = rollout.step + 1
    if step < len(steps):
        return SetStep(step=step, weight=steps[step].weight, exposed=exposed)
    if plan.soaks:
        return SetStep(step=max(rollout.step, 0), weight=100 - holdbacks[0], soaking=True, exposed=exposed)
    return Promote()


def by_hand(plan: CanaryStrategy, rollout: RolloutState) -> Action:
    """What an operator's `promote` does: the next step; in the soak, the end of it."""
    return Promote() if rollout.stage is Stage.SOAKING else following(plan, rollout, exposed=0)
