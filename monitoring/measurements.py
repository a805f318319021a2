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
class RolloutMeasurement:
    """Where one model's rollout stands. Ratios are of new requests; `version` is the canary's, "" without one."""

    model: str
    version: str
    phase: str
    phases: tuple[str, ...]
    """All there are: one series each, so that a phase that has ended reads 0."""
    desired_weight_ratio: float
    observed_weight_ratio: float | None
    signals: tuple[tuple[str, float, float], ...]
    """Name, ln W, threshold of ln W."""


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
