"""Shadow: copies of stable's requests; pairs of answers judge the new version, which no client ever hears. Pure."""

from __future__ import annotations

from rollout.actions import Action, Mirror, Pause, Promote
from rollout.decision import Cause, Decision, go, hold
from rollout.observation import Observation, Similarity
from rollout.status import ModelStatus, RolloutState
from rollout.strategies.evidence import not_trusted, room_for, without_evidence
from rollout.strategy_specs import OnPassed, ShadowStrategy
from rollout.wording import describe_similarity, name_of


def begin(plan: ShadowStrategy, rollout: RolloutState) -> Decision:
    """Mirror to a version that has become ready."""
    reason = f"{name_of(rollout.target)} is ready; {plan.mirror_percent} % of stable's requests are copied to it"
    return go(Cause.PROGRESS, reason, Mirror(percent=plan.mirror_percent))


def judge(plan: ShadowStrategy, status: ModelStatus, rollout: RolloutState, seen: Observation, now: float) -> Decision:
    """Judge the pairs so far."""
    if doubt := not_trusted(rollout, seen):
        return doubt
    spent_s = max(0.0, now - rollout.step_started_at)
    if spent_s < plan.duration:
        return hold(Cause.STEP_TIME, f"shadow: {spent_s:.0f} of at least {plan.duration:.0f} s")
    forward = _forward(plan, status, rollout, seen)
    if seen.pairs < plan.pairs and (plan.max_duration is None or spent_s < plan.max_duration):
        return hold(Cause.EVIDENCE, f"shadow: {seen.pairs} of at least {plan.pairs} pairs of answers")
    longest_s = plan.max_duration
    lack = without_evidence(status, rollout, seen, spent_s=spent_s, longest_s=longest_s, following=forward)
    if lack is None and seen.pairs < plan.pairs:
        return go(
            Cause.INSUFFICIENT,
            f"only {seen.pairs} of at least {plan.pairs} pairs after {spent_s:.0f} s (maxDuration); `promote`, `abort`",
            Pause(at_end=True),
        )
    return lack or forward


def _forward(plan: ShadowStrategy, status: ModelStatus, rollout: RolloutState, seen: Observation) -> Decision:
    likeness = describe_similarity(seen.similarity or Similarity())
    passed = f"{seen.pairs} pairs show that {name_of(rollout.target)} is not worse{likeness}"
    if plan.on_passed is OnPassed.PAUSE:
        return go(Cause.REPORT, f"{passed}; `promote` gives it the traffic, `abort` ends it", Pause(at_end=True))
    if short := room_for(status, rollout, seen, 100):
        return short
    # A shadow has met no client: latency and feedback are still unknown, so it is watched like any switch.
    return go(Cause.PROGRESS, f"{passed}; promoted, and watched through the rollback window", Promote(watch=True))


def by_hand() -> Action:
    """What an operator's `promote` does."""
    return Promote(watch=True)
