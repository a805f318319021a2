"""What is known of a finished request that is to be traced: plain values, from which spans are made later. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

_NONE: Final[Mapping[str, float]] = {}


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


class RefusalRecord(NamedTuple):
    """A request that was refused before a version was picked. Times are wall-clock seconds."""

    trace_id: int
    span_id: int
    parent_id: int
    operation: str
    model: str
    """"" when it is unknown: what a client makes up is not repeated."""
    reason: str
    status: int
    """Of HTTP."""
    key: str
    request_id: bytes
    arrived_at: float
    ended_at: float


class Said(NamedTuple):
    """What was asked and answered, as it came; redacted before it becomes attributes."""

    prompt: bytes
    answer: bytes
    operation: str
    event_stream: bool

    @property
    def size_bytes(self) -> int:
        """Of both."""
        return len(self.prompt) + len(self.answer)


class TraceRecord:
    """One request, from its arrival to the end of its answer. Times are wall-clock seconds.

    The version is the one that was picked; `answered_by` the one whose answer the client got, "" for none.
    """

    __slots__ = ("admitted_at", "answered_by", "arrived_at", "attempts", "because", "content", "ended_at", "events",
                 "failed", "finish_reasons", "first_token_s", "found", "guard", "input_tokens", "key", "model",
                 "operation", "outcome", "output_tokens", "parameters", "parent_id", "request_id", "revision", "role",
                 "rollout", "span_id", "stream", "trace_id", "version", "weight")  # fmt: skip

    def __init__(
        self,
        trace_id: int,
        span_id: int,
        parent_id: int,
        because: str,
        operation: str,
        model: str,
        version: str,
        revision: str,
        role: str,
        outcome: str,
        failed: bool,
        stream: bool,
        arrived_at: float,
        admitted_at: float,
        ended_at: float,
    ) -> None:
        self.trace_id = trace_id
        self.span_id = span_id
        self.parent_id = parent_id
        """0 when the trace begins here."""
        self.because = because
        """Why it is kept: see `sampling.Reason`."""
        self.operation = operation
        self.model = model
        self.version = version
        self.revision = revision
        self.role = role
        self.outcome = outcome
        self.failed = failed
        self.stream = stream
        self.arrived_at = arrived_at
        self.admitted_at = admitted_at
        """When its turn had come."""
        self.ended_at = ended_at
        self.request_id = b""
        self.rollout = ""
        self.weight = 0
        self.key = ""
        self.answered_by = ""
        self.input_tokens: int | None = None
        self.output_tokens: int | None = None
        self.first_token_s: float | None = None
        self.finish_reasons: tuple[str, ...] = ()
        self.parameters: Mapping[str, float] = _NONE
        self.events: Sequence[str] = ()
        """The signals that its answer showed, `signal` or `signal:level`."""
        self.attempts: tuple[AttemptRecord, ...] = ()
        self.guard: GuardSpan | None = None
        self.found: tuple[Found, ...] = ()
        self.content: Said | None = None
        """Only where the policy lets it out."""
