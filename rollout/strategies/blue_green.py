"""Blue-green: no traffic but testers', a smoke suite, then all traffic in one switch, watched afterwards. Pure."""

from __future__ import annotations

from rollout.actions import Action, Pause, Preview, Promote, Trigger
from rollout.decision import Cause, Decision, go, hold
from rollout.observation import Observation
from rollout.status import ModelStatus, RolloutState
from rollout.strategies.evidence import not_trusted, room_for, unmeasured, withdrawn
from rollout.strategy_specs import BlueGreenStrategy
from rollout.wording import name_of


def begin(plan: BlueGreenStrategy, rollout: RolloutState) -> Decision:
    """Open a version that has become ready to its testers and the smoke suite."""
    who = f"{len(plan.testers)} testers' rules" if plan.testers else "no testers"
    reason = f"{name_of(rollout.target)} is ready; preview with {who} and {len(plan.smoke)} smoke cases"
    return go(Cause.PROGRESS, reason, Preview())


def unsafe(status: ModelStatus, rollout: RolloutState, seen: Observation) -> Decision | None:
    """Take back a candidate that failed its smoke suite: wrong answers to known questions condemn a version."""
    smoke = seen.smoke
    if smoke is None or smoke.passed:
        return None
    failed = ", ".join(smoke.failed) or "none named"
    reason = f"{name_of(rollout.target)} failed {len(smoke.failed)} of {smoke.ran} smoke cases: {failed}"
    if smoke.message:
        reason += f" ({smoke.message})"
    return withdrawn(status, rollout, seen, Cause.SMOKE_FAILED, Trigger.SMOKE, reason, condemn=True)


def judge(
    plan: BlueGreenStrategy, status: ModelStatus, rollout: RolloutState, seen: Observation, now: float
) -> Decision:
    """Judge the preview; the switch is one action, from nothing to everything."""
    if doubt := not_trusted(rollout, seen) or unmeasured(rollout, seen):
        return doubt
    if plan.smoke and seen.smoke is None:
        return hold(Cause.SMOKE, f"the smoke suite has not answered yet ({len(plan.smoke)} cases)")
    spent_s = max(0.0, now - rollout.step_started_at)
    if spent_s < plan.preview_duration:
        return hold(Cause.STEP_TIME, f"preview: {spent_s:.0f} of at least {plan.preview_duration:.0f} s")
    least, had = plan.preview_requests or 0, seen.exposure.forced
    if had < least:
        return hold(Cause.STEP_TIME, f"preview: {had} of at least {least} testers' requests")
    passed = f"the preview of {name_of(rollout.target)} has passed"
    if not plan.auto_switch:
        return go(Cause.REPORT, f"{passed}; `promote` switches, `abort` ends it", Pause(at_end=True))
    if short := room_for(status, rollout, seen, 100):
        return short
    return go(Cause.PROGRESS, f"{passed}; switched, and watched through the rollback window", Promote(watch=True))


def by_hand() -> Action:
    """What an operator's `promote` does: the switch."""
    return Promote(watch=True)
