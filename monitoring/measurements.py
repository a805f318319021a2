"""What is measured of one request, as plain values. Pure: whoever serves fills it, `instruments` exports it."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NamedTuple


class RequestOutcome(enum.StrEnum):
    """How a request ended for its client. A closed set: it is a metric's label."""

    OK = "ok"
    RETRIED = "retried"
    """The version failed, stable answered instead: the client saw a normal answer."""
    ERROR = "error"
    TIMEOUT = "timeout"
    CLIENT_ERROR = "client_error"
    """The engine answered with a 4xx."""
    CLIENT_ABORT = "client_abort"
    BLOCKED = "blocked"
    """The version's guardrail policy ended the answer: content_filter."""


class RequestMeasurement(NamedTuple):
    """One request, counted for the version that was picked first. None where something was not there to measure."""

    model: str
    version: str
    operation: str
    outcome: RequestOutcome
    duration_s: float
    first_token_s: float | None = None
    per_token_s: float | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    trace: tuple[str, float] | None = None
    """The id of the trace that was kept of it and when that was (wall-clock seconds), for exemplars."""


@dataclass(frozen=True, slots=True)
class RevisionInfo:
    """A revision that this gateway knows, for joining by role."""

    model: str
    version: str
    revision: str
    role: str


@dataclass(frozen=True, slots=True)
class SignalMeasurement:
    """Where one signal of a rollout stands. Evidence is in natural logarithms, beside the value that decides."""

    name: str
    verdict: str
    """Of a closed set: Running, Successful, Failed, Error, ..."""
    log_e: float = 0.0
    threshold: float = 0.0
    """Of the evidence against the canary; 0 for a gate that weighs none."""
    forward_log_e: float = 0.0
    forward_threshold: float = 0.0
    """Of the evidence for it; 0 where that decides nothing."""
    requests_to_decision: int | None = None


@dataclass(frozen=True, slots=True)
class RolloutMeasurement:
    """Where one model's rollout stands, the present one or the last. Ratios are of new requests."""

    model: str
    version: str
    """Of the new version; "" where nothing is rolling out and nothing was taken back."""
    phase: str
    phases: tuple[str, ...]
    """All there are: one series each, so that a phase that has ended reads 0."""
    desired_weight_ratio: float
    observed_weight_ratio: float | None
    signals: tuple[SignalMeasurement, ...] = ()
    namespace: str = ""
    """Whose model it is on a cluster; empty on the local platform."""
    stable: str = ""
    strategy: str = ""
    stage: str = ""
    cause: str = ""
    """What it waits for, or why it was taken back; of closed sets."""
    step: int = 0
    steps: int = 0
    exposed: int | None = None
    """Requests that have met the new version; None where nothing is judged."""
    lower_bound: int | None = None
    """The fewest with which the worst signal could have been noticed; None where that is not known."""
    started_at: float | None = None
    finished_at: float | None = None
    """In seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class DriftMeasurement:
    """Where one drift detector of one stream stands."""

    model: str
    stream: str
    """`all`, `tenant=NAME` or `route=NAME`."""
    detector: str
    statistic: float
    threshold: float
    active: bool
    alarms: int
