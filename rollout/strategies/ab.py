"""A/B: a fixed split for a number of sessions, then a report. It decides nothing but, where asked, safety. Pure."""

from __future__ import annotations

from rollout.actions import Action, Pause, Promote, SetStep
from rollout.decision import Cause, Decision, go, hold
from rollout.observation import Observation
from rollout.status import ModelStatus, RolloutState
from rollout.strategies.evidence import not_trusted, room_for
from rollout.strategy_specs import AbStrategy
from rollout.wording import describe_effect, name_of


def begin(plan: AbStrategy, status: ModelStatus, rollout: RolloutState, seen: Observation) -> Decision:
    """Split the traffic once the version is ready."""
    reason = f"{name_of(rollout.target)} is ready; {plan.weight} % of new sessions for {plan.sessions} sessions"
    action = SetStep(step=0, weight=plan.weight)
    return room_for(status, rollout, seen, plan.weight) or go(Cause.PROGRESS, reason, action)


def judge(plan: AbStrategy, rollout: RolloutState, seen: Observation) -> Decision:
    """Report once there were enough sessions."""
    if doubt := not_trusted(rollout, seen):
        return doubt
    if seen.sessions < plan.sessions:
        return hold(Cause.EVIDENCE, f"A/B: {seen.sessions} of {plan.sessions} sessions")
    effects = "; ".join(describe_effect(c) for c in seen.comparisons) or "no signal was measured"
    reason = f"A/B report after {seen.sessions} sessions: {effects}. `promote` takes it over, `abort` ends it"
    return go(Cause.REPORT, reason, Pause(at_end=True))


def by_hand() -> Action:
    """What an operator's `promote` does."""
    return Promote()
