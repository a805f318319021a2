"""What is known of a finished request that is to be traced: plain values, from which spans are made later. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class AttemptRecord(NamedTuple):
    """One try at one engine. Times are wall-clock seconds."""

    span_id: int
    """The engine's spans are its children."""
    host: str
    port: int
    version: str
    started_at: float
    ended_at: float
    first_token_at: float | None
    failure: str
    """Why it gave no answer, "" when it did."""


class GuardSpan(NamedTuple):
    """How long a prompt waited for its guardrails, and what they said. Times are wall-clock seconds."""

    policy: str
    verdict: str
    check: str
    """The one that blocked, or could not run."""
    started_at: float
    ended_at: float


class Found(NamedTuple):
    """What guardrail checks found, without the text."""

    check: str
    direction: str
    verdict: str
    times: int


class VoteRecord(NamedTuple):
    """What somebody thinks of an answer whose trace was kept: a span of its own in that trace."""

    trace_id: int
    parent_id: int
    span_id: int
    rating: str
    version: str
    at: float


@dataclass(slots=True)
class TraceRecord:
    """One request, from its arrival to the end of its answer. Times are wall-clock seconds.

    The version is the one that was picked; `answered_by` the one whose answer the client got, "" for none.
    """

    trace_id: int
    span_id: int
    parent_id: int
    """0 when the trace begins here."""
    because: str
    """Why it is kept: see `sampling.Reason`."""
    operation: str
    model: str
    version: str
    revision: str
    role: str
    outcome: str
    failed: bool
    stream: bool
    arrived_at: float
    admitted_at: float
    """When its turn had come."""
    ended_at: float
    request_id: bytes = b""
    rollout: str = ""
    weight: int = 0
    key: str = ""
    answered_by: str = ""
    input_tokens: int | None = None
    output_tokens: int | None = None
    first_token_s: float | None = None
    finish_reasons: tuple[str, ...] = ()
    parameters: Mapping[str, float] = field(default_factory=dict)
    events: Sequence[str] = ()
    """The signals that its answer showed, `signal` or `signal:level`."""
    attempts: tuple[AttemptRecord, ...] = ()
    guard: GuardSpan | None = None
    found: tuple[Found, ...] = ()
    content: tuple[bytes, tuple[str, ...]] | None = None
    """Prompt body and answers, only where the policy lets them out: redacted before they become attributes."""
