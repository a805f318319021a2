"""What the control plane answers, as types. Read tolerantly: a newer control plane may say more than is known here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Reply(BaseModel):
    """Base of what the control plane says: unknown fields are ignored, missing ones have defaults."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Count(Reply):
    """Events among units."""

    events: int = 0
    n: int = 0


class SignalStatus(Reply):
    """One signal as judged now. `log_e` and the thresholds are natural logarithms."""

    name: str
    canary: Count = Count()
    stable: Count = Count()
    log_e: float = 0.0
    threshold: float = 0.0
    verdict: str = ""
    forward_log_e: float = 0.0
    forward_threshold: float = 0.0
    requests_to_decision: int | None = None


class ExposureStatus(Reply):
    """How many requests the canary has had, beside the fewest that could have shown the worst signal."""

    canary_requests: int = 0
    lower_bound: int | None = None
    first_admitted_at: float | None = None
    last_admitted_at: float | None = None


class StepStatus(Reply):
    """One step of the rollout: weight in percent, its least duration in seconds."""

    weight: int
    duration_s: float = 0.0
    soak: bool = False
    sessions: int | None = None


class LeavingStatus(Reply):
    """A version that was taken back and still carries what stable can't take yet (percent)."""

    version: str
    weight: int = 0


class ToldStatus(Reply):
    """Something that the control plane puts in words."""

    told: str = ""


class WatchStatus(Reply):
    """Until when a version that got all traffic goes on being judged."""

    until: float | None = None


class RetiringStatus(Reply):
    """A revision that drains."""

    version: str
    since: float = 0.0
    deadline_at: float = 0.0
    in_flight: int | None = None


class RolloutStatus(Reply):
    """Where a model stands. `step` counts from 1 and is 0 while the canary starts.

    `endpoints` holds, by version, how many engines the least connected gateway could use.
    """

    model: str
    phase: str = ""
    strategy: str | None = None
    stable: str | None = None
    canary: str | None = None
    weight: int = 0
    observed_weight: int | None = None
    step: int = 0
    steps: tuple[StepStatus, ...] = ()
    step_started_at: float | None = None
    gateways: int | None = None
    endpoints: Mapping[str, int] = Field(default_factory=dict)
    stage: str | None = None
    cause: str | None = None
    reason: str | None = ""
    waiting_for: str | None = ""
    streams_in_flight: Mapping[str, int] = Field(default_factory=dict)
    signals: tuple[SignalStatus, ...] = ()
    exposure: ExposureStatus = ExposureStatus()
    started_at: float | None = None
    updated_at: float | None = None
    actor: str | None = ""
    rollout: str | None = None
    target: str | None = None
    """The version of the present rollout, or of the last one."""
    previous: str | None = None
    warm_until: float | None = None
    retiring: tuple[RetiringStatus, ...] = ()
    leaving: LeavingStatus | None = None
    kept: tuple[str, ...] = ()
    """Versions that `undo` and `rollback --to` may name."""
    sessions: int | None = None
    pairs: int | None = None
    mirror_percent: int = 0
    comparisons: tuple[ToldStatus, ...] = ()
    """A/B: the effect on each signal."""
    smoke: dict[str, Any] | None = None
    sample_ratio: dict[str, Any] | None = None
    watch: WatchStatus | None = None
    awaits: str | None = None
    """The verb that a finished strategy waits for."""
    quarantine: Mapping[str, str] = Field(default_factory=dict)
    """By digest: why it was condemned."""
    quarantined_versions: Mapping[str, str] = Field(default_factory=dict)
    """By digest: which version it is."""

    @property
    def finished(self) -> bool:
        """Whether nothing is rolling out."""
        return self.phase in ("Healthy", "Degraded")


class DecisionReply(Reply):
    """What was decided, why, and what it does."""

    cause: str = ""
    reason: str = ""
    actions: tuple[dict[str, Any], ...] = ()


class Confirmation(Reply):
    """Whether every connected gateway has the table in which traffic has left, and how long that took.

    `weight` is what the version still carries (percent), since stable can't take it yet.
    """

    weight: int = 0
    all: bool = False
    gateways: int = 0
    after_s: float | None = None


class CommandReply(Reply):
    """The control plane's answer to a command; with a dry run `plan` alone."""

    decision: DecisionReply | None = None
    confirmed: Confirmation | None = None
    plan: dict[str, Any] | None = None
    accepted_at: float | None = None
    status: RolloutStatus | None = None


class HistoryEntry(Reply):
    """One entry of the event log."""

    id: int
    at: float
    kind: str
    actor: str = ""
    cause: str | None = ""
    reason: str | None = ""
    actions: tuple[dict[str, Any], ...] = ()
    observation: dict[str, Any] | None = None
    payload: dict[str, Any] = Field(default_factory=dict)

    @property
    def source(self) -> str:
        """The address that a command came from; "" for what nobody commanded."""
        return str((self.payload.get("command") or {}).get("source") or "")


class ReplayedDecision(Reply):
    """A recorded decision beside what today's code says to the same observation."""

    id: int
    same: bool
    recorded: dict[str, Any] = Field(default_factory=dict)
    today: dict[str, Any] | None = None


class GatewayStatus(Reply):
    """A gateway that the controller knows."""

    gateway: str
    boot: str = ""
    generation: tuple[int, int] | None = None
    connected_at: float | None = None


class RayStatus(Reply):
    """Whether the workload layer can be asked."""

    available: bool = False
    message: str = ""


class PlatformStatus(Reply):
    """The control plane's view of the platform."""

    controller: dict[str, Any] = Field(default_factory=dict)
    gateways: tuple[GatewayStatus, ...] = ()
    ray: RayStatus = RayStatus()


class ModelStatus(Reply):
    """One served model in short."""

    model: str
    stable: str | None = None
    canary: str | None = None
    phase: str = ""


class Key(Reply):
    """A key without its secret."""

    id: str
    name: str = ""
    namespace: str = "default"
    scopes: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    priority: str = ""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None
    created_at: float | None = None
    expires_at: float | None = None
    revoked_at: float | None = None
    state: str = ""


class NewKey(Reply):
    """A key that was just made. `key` is its text, which nobody can ask for again."""

    key: str
    record: Key
    warning: str = ""


class Quota(Reply):
    """What all keys of a namespace may use together."""

    namespace: str
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None
    set_at: float | None = None


class UsageRow(Reply):
    """What one key used of one version."""

    key: str = ""
    key_name: str | None = None
    model: str = ""
    version: str = ""
    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    unmetered: int = 0


class Usage(Reply):
    """Usage over a time (seconds since the epoch)."""

    since: float = 0.0
    until: float = 0.0
    usage: tuple[UsageRow, ...] = ()
