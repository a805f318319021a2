"""One admitted request and what is to be known of it, from its admission to its end (`recorder`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from serving.admission import Pick
from serving.gateway.guard_records import GuardRecord
from serving.gateway.latency import Thresholds
from serving.gateway.ledger import Ticket
from serving.gateway.seams import Permit, Witness
from serving.gateway.trail import Trail
from serving.openai_protocol import Operation
from serving.outcomes import Signal

if TYPE_CHECKING:
    from serving.gateway.overseeing import Asked


class Question(NamedTuple):
    """What was asked, as whoever reads answers after their end needs it."""

    fields: Mapping[str, Any]
    """The body, parsed."""
    nonce: bytes
    namespace: str
    """Of the key."""
    key: str
    """Its id."""


class Unit:
    """One admitted request and what is to be known of it."""

    __slots__ = ("admitted_at", "asked", "events", "first_token_limits", "first_token_seen", "guard", "late_levels",
                 "no_latency", "operation", "per_token_limits", "permit", "pick", "question", "request_index",
                 "revision", "session", "shown", "started", "stream", "ticket", "trail", "witness")  # fmt: skip

    def __init__(
        self,
        pick: Pick,
        operation: Operation,
        stream: bool,
        ticket: Ticket,
        admitted_at: float,
        started: float,
        permit: Permit | None = None,
    ) -> None:
        self.pick = pick
        self.revision = pick.revision
        """The revision that was picked."""
        self.operation = operation
        self.stream = stream
        self.ticket = ticket
        self.admitted_at = admitted_at
        """Wall-clock seconds."""
        self.started = started
        """Monotonic seconds."""
        self.session: str | None = None
        """Its name; what travels is a keyed hash of it, made for the few units that have an event."""
        self.request_index = 1
        self.no_latency = False
        """Cold cache or warm-up: latency is no evidence."""
        self.first_token_limits: Thresholds | None = None
        self.per_token_limits: Thresholds | None = None
        self.first_token_seen = False
        self.late_levels: tuple[str, ...] = ()
        self.permit = permit
        self.witness: Witness | None = None
        """Who else hears of its outcome: it is half of a mirrored pair."""
        self.question: Question | None = None
        """None for what is no client's request."""
        self.shown: tuple[Signal, ...] = ()
        """What its answer's text showed."""
        self.trail: Trail | None = None
        """Its way, where traces or a request log are on."""
        self.events: list[str] = []
        self.guard: GuardRecord | None = None
        """What the guardrails said of it; None when nothing looked at it."""
        self.asked: Asked | None = None
        """What is kept for those who look at it after its end."""

    def without_question(self) -> Unit:
        """The same without the request's body, for keeping it a while."""
        kept = Unit(self.pick, self.operation, self.stream, self.ticket, self.admitted_at, self.started, self.permit)
        kept.session, kept.request_index, kept.no_latency = self.session, self.request_index, self.no_latency
        kept.first_token_limits, kept.per_token_limits = self.first_token_limits, self.per_token_limits
        kept.first_token_seen, kept.late_levels = self.first_token_seen, self.late_levels
        kept.witness, kept.shown, kept.trail, kept.events = self.witness, self.shown, self.trail, self.events
        kept.guard, kept.asked = self.guard, self.asked
        return kept

    @property
    def judged(self) -> bool:
        """Whether events of it still count."""
        return self.ticket.number > 0 and not self.ticket.settled
