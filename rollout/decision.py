"""What a decision is: a cause out of a closed set, a reason for people, and actions. Pure."""

from __future__ import annotations

import enum

from rollout.actions import Action, Trigger, Withdraw
from serving.specs import Frozen


class Cause(enum.StrEnum):
    """Why a decision was taken: which guard spoke."""

    COMMAND = "command"
    SIGNAL_FAILED = "signal-failed"
    SMOKE_FAILED = "smoke-failed"
    ENGINE_LOST = "engine-lost"
    START_FAILED = "start-failed"
    DEADLINE = "progress-deadline"
    NOT_OBSERVED = "not-observed"
    NOT_FOLLOWED = "not-followed"
    PAUSED = "paused"
    STARTING = "starting"
    WITHDRAWING = "withdrawing"
    CANARY_AWAY = "canary-away"
    SAMPLE_RATIO = "sample-ratio"
    STEP_TIME = "step-time"
    SMOKE = "smoke"
    EVIDENCE = "evidence"
    INSUFFICIENT = "insufficient-evidence"
    CAPACITY = "capacity"
    PROGRESS = "progress"
    REPORT = "report"
    DRAINED = "drained"
    WATCH_OVER = "watch-over"
    WATCHING = "watching"
    IDLE = "idle"


class Decision(Frozen):
    """What to do now and why. Without actions it is a reason to wait, which is not logged but shown."""

    cause: Cause
    reason: str
    actions: tuple[Action, ...] = ()


def hold(cause: Cause, reason: str) -> Decision:
    """Wait, and say for what."""
    return Decision(cause=cause, reason=reason)


def go(cause: Cause, reason: str, *actions: Action) -> Decision:
    """Do something."""
    return Decision(cause=cause, reason=reason, actions=actions)


def take_back(cause: Cause, trigger: Trigger, reason: str, *, condemn: bool, keep: int = 0) -> Decision:
    """Withdraw the canary; `keep` is what stable can't take yet, in percent."""
    return go(cause, reason, Withdraw(trigger=trigger, condemn=condemn, keep=keep))
