"""What every strategy asks before it goes forward: readiness, sample ratio, evidence, room. Pure."""

from __future__ import annotations

from typing import assert_never

from rollout.actions import MakeRoom, Pause, Trigger
from rollout.capacity import can_make_room, forward_cap, must_keep, ready_replicas, shortage, wanted_replicas
from rollout.decision import Cause, Decision, go, hold, take_back
from rollout.observation import Observation, SignalReading, Verdict
from rollout.specs import LATENCY_SIGNALS, OnInsufficient
from rollout.status import ModelStatus, RolloutState, Stage
from rollout.wording import describe, describe_mismatch, name_of

BLIND_ABOVE_PERCENT = 50
"""Above this weight one canary event multiplies the comparison's evidence by less than 2, so it sees little: going
forward then needs the objective as well, where the signal has one (monitoring/sequential)."""


def not_trusted(rollout: RolloutState, seen: Observation) -> Decision | None:
    """Why nothing may be concluded from the evidence now, or None."""
    if not seen.answers(rollout.target.application):
        # Gateways send its share to stable meanwhile; those requests carry no evidence, so the step can't pass.
        return hold(Cause.CANARY_AWAY, f"{name_of(rollout.target)} has no ready endpoint; holding")
    if seen.sample_ratio is not None and seen.sample_ratio.mismatched:
        return hold(Cause.SAMPLE_RATIO, describe_mismatch(seen.sample_ratio))
    return None


def failed_signals(rollout: RolloutState, seen: Observation) -> list[SignalReading]:
    """Signals with evidence against the version, the clearest first."""
    failed = [s for s in _judging(rollout, seen) if s.verdict is Verdict.FAILED]
    return sorted(failed, key=_excess, reverse=True)


def _excess(signal: SignalReading) -> float:
    own = signal.absolute_log_e - signal.absolute_threshold if signal.absolute_threshold > 0 else float("-inf")
    return max(signal.log_e - signal.threshold, own)


def lacking(rollout: RolloutState, seen: Observation) -> list[SignalReading]:
    """Gating signals that have not shown yet that the version is not worse."""
    return [s for s in _judging(rollout, seen) if s.gating and not _shown(s, rollout.weight)]


def _judging(rollout: RolloutState, seen: Observation) -> list[SignalReading]:
    # A mirror waits behind clients' requests and is dropped under load: its latency is its own, not the version's.
    shadow = rollout.stage is Stage.MIRRORING
    return [s for s in seen.signals if not (shadow and s.name in LATENCY_SIGNALS)]


def _shown(signal: SignalReading, weight: int) -> bool:
    if signal.verdict is not Verdict.SUCCESSFUL:
        return False
    objective = signal.objective_log_e
    return weight <= BLIND_ABOVE_PERCENT or objective is None or objective >= signal.forward_threshold


def without_evidence(
    status: ModelStatus,
    rollout: RolloutState,
    seen: Observation,
    *,
    spent_s: float,
    longest_s: float | None,
    following: Decision,
) -> Decision | None:
    """What to do while evidence is lacking; None when it is not.

    Args:
        status: where the model stands.
        rollout: its rollout.
        seen: what was seen now.
        spent_s: time in the present step.
        longest_s: its `maxDuration`; None means to wait for ever.
        following: what would be done if the evidence were there, for `onInsufficient: promote`.

    """
    missing = lacking(rollout, seen)
    if seen.signals and not missing:
        return None
    told = "; ".join(_lack(s, rollout.weight) for s in missing) or "no signal has been measured yet"
    # A signal that can't be measured only ever holds: neither time nor policy turns "don't know" into a verdict.
    unmeasured = any(s.verdict is Verdict.ERROR for s in missing)
    if longest_s is None or spent_s < longest_s or unmeasured:
        return hold(Cause.EVIDENCE, f"not enough evidence yet: {told}")
    over = f"no verdict after {spent_s:.0f} s (maxDuration {longest_s:.0f} s): {told}"
    policy = rollout.spec.analysis.on_insufficient
    match policy:
        case OnInsufficient.PAUSE:
            return go(Cause.INSUFFICIENT, over, Pause())
        case OnInsufficient.PROMOTE:
            if not following.actions or following.cause is Cause.CAPACITY:
                return following
            return go(Cause.INSUFFICIENT, f"{over}; onInsufficient: promote", *following.actions)
        case OnInsufficient.ROLLBACK:
            return withdrawn(status, rollout, seen, Cause.INSUFFICIENT, Trigger.INSUFFICIENT, over, condemn=False)
        case _:
            assert_never(policy)


def _lack(signal: SignalReading, weight: int) -> str:
    if signal.verdict is not Verdict.SUCCESSFUL:
        return describe(signal)
    return (
        f"{describe(signal)}; at {weight} % the comparison sees little, so the canary's own rate must be shown to be "
        "below maxRate (raise maxRate, or `promote` by hand)"
    )


def unmeasured(rollout: RolloutState, seen: Observation) -> Decision | None:
    """A hold when a gating signal can't be measured, for strategies that go on without its verdict."""
    blind = [s for s in _judging(rollout, seen) if s.gating and s.verdict is Verdict.ERROR]
    return hold(Cause.EVIDENCE, "; ".join(describe(s) for s in blind)) if blind else None


def withdrawn(
    status: ModelStatus,
    rollout: RolloutState,
    seen: Observation,
    cause: Cause,
    trigger: Trigger,
    reason: str,
    *,
    condemn: bool,
) -> Decision:
    """Take the canary back as far as stable can take its traffic."""
    keep = must_keep(status, rollout, seen)
    return take_back(cause, trigger, reason + shortage(status, keep, seen), condemn=condemn, keep=keep)


def room_for(status: ModelStatus, rollout: RolloutState, seen: Observation, weight: int) -> Decision | None:
    """A hold, or stable giving a replica, while the canary can't carry this weight (percent); None when it can."""
    most = forward_cap(status, rollout, seen)
    if weight <= most:
        return None
    name = name_of(rollout.target)
    wanted = wanted_replicas(status)[rollout.target.digest]
    ready = ready_replicas(rollout.target, wanted, seen)
    if can_make_room(status, rollout) and ready is not None and ready >= wanted:
        more = rollout.room + 1
        return go(
            Cause.CAPACITY, f"{name} needs more replicas for {weight} %; stable gives one", MakeRoom(replicas=more)
        )
    return hold(
        Cause.CAPACITY,
        f"{name} has replicas ready for {most} % and the next weight is {weight} %; raise its minReplicas, or "
        "`promote` by hand",
    )
