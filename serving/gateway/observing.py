"""What becomes of a finished request beside evidence and metrics: its trace, and its line in the request log.

Called once for each, from the recorder's reading between other work, with what is known by then; and for requests that
were refused, of which only so many are told. Nothing here waits.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import getrandbits
from typing import TYPE_CHECKING, Any, Final, Protocol

from monitoring.measurements import RequestOutcome
from monitoring.tracing import names
from monitoring.tracing.context import read_traceparent
from monitoring.tracing.records import (
    AttemptRecord,
    Found,
    GuardSpan,
    RefusalRecord,
    Said,
    TraceRecord,
    VoteRecord,
)
from monitoring.tracing.sampling import Allowance, Reason, RefusalSampler, TailSampler
from serving.gateway.exchange import Exchange
from serving.gateway.trail import TRACEPARENT, Trail, begin
from serving.gateway.transcript import Transcript
from serving.openai_protocol import Request, operation_of
from serving.outcomes import Signal
from serving.request_log.frames import pack
from serving.request_log.marks import user_of
from serving.streaming import Answer
from serving.traffic import RevisionTraffic, Role, TrafficTable

if TYPE_CHECKING:
    from serving.gateway.units import Unit

logger = logging.getLogger("tidegate.gateway")

LONGEST_CONTENT_BYTES: Final = 64 * 1024
LONGEST_STREAM_BYTES: Final = 256 * 1024
"""Longer prompts and answers together are not told in a trace; a stream's events are mostly not text."""
MOST_LINKED: Final = 8192
"""Requests whose trace was kept and that a vote may still be joined to."""
_ERROR: Final = RequestOutcome.ERROR
_TIMEOUT: Final = RequestOutcome.TIMEOUT
_RETRIED: Final = RequestOutcome.RETRIED
_BLOCKED: Final = RequestOutcome.BLOCKED
_UNCHECKED: Final = "guardrail"
_ERROR_EVENT: Final = Signal.ERROR.value
_CANARY: Final = Role.CANARY
_BY_CANARY: Final = Reason.CANARY
_TAKEN_BACK: Final = Reason.TAKEN_BACK
_LOOKED_FOR: Final = ":units"
"""Ends the name of an event that says only that its signal was looked for."""


class Sender(Protocol):
    """Takes traces that are kept."""

    dropped: int

    def offer(self, record: TraceRecord | VoteRecord | RefusalRecord) -> None:
        """Take one; at once."""
        ...


class Sink(Protocol):
    """Takes frames for the request log."""

    dropped: int

    def offer(self, frame: bytes) -> None:
        """Take one; at once."""
        ...


class Over:
    """One finished request, as the recorder knows it. Durations in seconds."""

    __slots__ = ("answer", "answered_by", "duration_s", "first_token_s", "outcome", "per_token_s", "trail",
                 "transcript", "unit")  # fmt: skip

    def __init__(
        self,
        unit: Unit,
        trail: Trail,
        outcome: RequestOutcome,
        duration_s: float,
        transcript: Transcript | None,
        answer: Answer,
        first_token_s: float | None = None,
        per_token_s: float | None = None,
        answered_by: RevisionTraffic | None = None,
    ) -> None:
        self.unit = unit
        self.trail = trail
        self.outcome = outcome
        self.duration_s = duration_s
        self.transcript = transcript
        self.answer = answer
        self.first_token_s = first_token_s
        self.per_token_s = per_token_s
        self.answered_by = answered_by

    def wall(self, monotonic: float) -> float:
        """Wall-clock seconds of a monotonic time."""
        return self.unit.admitted_at + monotonic - self.unit.started


@dataclass(frozen=True, slots=True)
class Refused:
    """A request that no version was picked for. `now` is in monotonic seconds, `wall` the same by the clock."""

    reason: str
    status: int
    model: str
    """"" when it is unknown."""
    request_id: bytes
    now: float
    wall: float


@dataclass(frozen=True, slots=True)
class Vote:
    """What somebody thinks of an answer. `at` is in wall-clock seconds."""

    request_id: str
    nonce: bytes
    model: str
    version: str
    revision: RevisionTraffic | None
    """The one that answered, while a traffic table still names it."""
    rating: str
    comment: str
    at: float


class Observer:
    """One gateway's.

    Args:
        sender: takes traces; None where there are none.
        sink: takes lines; None where nothing is logged.
        trace_ratio: the part of traces without a parent that is kept whatever comes.
        log_ratio: the part of requests that is logged whatever comes.
        may_tell: whether a revision's policy lets prompts and answers be kept, redacted.
        trace_content: whether traces tell them, where they may be told.
        canaries_per_s: so many requests of canaries are sampled at the head beyond the ratio.
        tell_engines: whether engines are told that every trace is sampled.

    """

    def __init__(
        self,
        sender: Sender | None,
        sink: Sink | None,
        *,
        trace_ratio: float = 0.0,
        log_ratio: float = 0.0,
        may_tell: Callable[[RevisionTraffic], bool] = lambda revision: False,
        trace_content: bool = False,
        canaries_per_s: float = 0.0,
        tell_engines: bool = False,
    ) -> None:
        self._sender = sender
        self._sink = sink
        self._trace_ratio = trace_ratio
        self._log_below = int(log_ratio * (1 << 32))
        self._may_tell = may_tell
        self._trace_content = trace_content
        self._canaries = Allowance(canaries_per_s) if canaries_per_s > 0 else None
        self._tell_engines = tell_engines
        self._tail = TailSampler()
        self._refusals = RefusalSampler()
        self._linked: OrderedDict[bytes, tuple[int, int]] = OrderedDict()

    @property
    def unkept(self) -> int:
        """Refused requests that were neither traced nor logged, since there were too many of their kind."""
        return self._refusals.unkept

    def begin(self, exchange: Exchange, request: Request, nonce: bytes, session: str | None, unit: Unit) -> Trail:
        """A request's turn has come, and its version is picked."""
        return begin(
            exchange.arrived, nonce, exchange.caller.key_id, session, request.fields, exchange.body, exchange.fields,
            traced=self._sender is not None, ratio=self._trace_ratio, tell_engine=self._tell_engines,
            canaries=self._canaries if unit.revision.role is _CANARY else None,
        )  # fmt: skip

    def table_applied(self, table: TrafficTable) -> None:
        """Keep the traces of a version that is being taken back."""
        if self._sender is None:
            return
        revisions = [r for m in table.models for r in m.revisions]
        stables = [r.digest for r in revisions if r.role == "stable"]
        for record in self._tail.follow(stables, [r.digest for r in revisions if r.role == "canary" and r.weight > 0]):
            self._sender.offer(record)

    def over(self, over: Over) -> tuple[str, float] | None:
        """A request is over: send its trace and log it, where they are wanted.

        Returns:
            When its trace was sent, what an exemplar may link to: its id, and wall-clock seconds.
        """
        outcome, events = over.outcome, over.unit.events
        failed = outcome is _ERROR or outcome is _TIMEOUT or outcome is _RETRIED or _ERROR_EVENT in events
        if outcome is _BLOCKED and _was_not_checked(over.unit):  # 503, as fast as clients ask
            failed = failed or self._refusals.take(_UNCHECKED, over.unit.started + over.duration_s)
        if self._sink is not None and (failed or int.from_bytes(over.trail.nonce[:4], "big") < self._log_below):
            self._log(self._sink, over)
        if self._sender is None or not self._trace(self._sender, over, failed=failed):
            return None
        return f"{over.trail.trace_id:032x}", over.wall(over.unit.started + over.duration_s)

    def voted(self, vote: Vote) -> None:
        """Somebody rated an answer: tell its trace, where that was kept, and the log."""
        linked = self._linked.get(vote.nonce)
        if linked is not None and self._sender is not None:
            self._sender.offer(VoteRecord(*linked, getrandbits(64) or 1, vote.rating, vote.version, vote.at))
        if self._sink is not None:
            tell = vote.revision is not None and self._may_tell(vote.revision)
            facts = {
                "kind": "feedback", "at": vote.at, "request_id": vote.request_id, "model": vote.model,
                "version": vote.version, "rating": vote.rating, "comment": vote.comment if tell else "",
                "may_tell": tell,
            }  # fmt: skip
            self._sink.offer(pack(facts))

    def refused(self, refused: Refused, exchange: Exchange | None) -> None:
        """A request was refused before a version was picked: tell of it, unless there are too many of its kind.

        Args:
            refused: what is known of it.
            exchange: the request; None where it was none that could be read.
        """
        if not self._refusals.take(refused.reason, refused.now):
            return
        try:
            self._tell_refusal(refused, exchange)
        except Exception:
            logger.exception("a refused request could not be traced or logged; it is left out")

    def _tell_refusal(self, refused: Refused, exchange: Exchange | None) -> None:
        operation, key, waited_s, parent = "other", "", 0.0, None
        if exchange is not None:
            operation = operation_of(exchange.path) or operation
            waited_s = refused.now - exchange.arrived
            if exchange.caller is not None:  # a stranger's spans join nobody's trace
                key = exchange.caller.key_id
                given = exchange.fields.get(TRACEPARENT)
                parent = read_traceparent(given) if given is not None else None
        trace_id, parent_id = (parent[0], parent[1]) if parent is not None else (getrandbits(128) or 1, 0)
        sender, sink = self._sender, self._sink
        if sender is not None:
            sender.offer(
                RefusalRecord(
                    trace_id, getrandbits(64) or 1, parent_id, operation, refused.model, refused.reason,
                    refused.status, key, refused.request_id, refused.wall - waited_s, refused.wall,
                )
            )  # fmt: skip
        if sink is not None:
            facts = {
                "kind": "request", "at": refused.wall - waited_s, "request_id": refused.request_id.decode(),
                "model": refused.model or None, "operation": operation, "outcome": "rejected",
                "reason": refused.reason, "status": refused.status, "duration_s": waited_s, "key": key or None,
                "trace_id": f"{trace_id:032x}" if sender is not None else None, "may_tell": False,
            }  # fmt: skip
            sink.offer(pack(facts))

    def _tells(self, over: Over) -> bool:
        """Whether the text may be kept: where stable answered in the canary's place, both versions must allow it."""
        picked, answered = over.unit.pick.revision, over.answered_by
        return self._may_tell(picked) and (answered is None or answered is picked or self._may_tell(answered))

    # Traces

    def _trace(self, sender: Sender, over: Over, *, failed: bool) -> bool:
        trail, digest = over.trail, over.unit.pick.revision.digest
        why = self._tail.why(digest, head=trail.sampled, failed=failed)
        if why is not None:
            sender.offer(self._record(over, _BY_CANARY if trail.by_canary else why, failed=failed))
            self._linked[trail.nonce] = (trail.trace_id, trail.span_id)
            if len(self._linked) > MOST_LINKED:
                self._linked.popitem(last=False)
            return True
        if self._tail.may_be_wanted(digest):
            self._tail.wait(digest, self._record(over, _TAKEN_BACK, failed=failed))
        return False

    def _record(self, over: Over, why: Reason, *, failed: bool) -> TraceRecord:
        unit, trail, answer = over.unit, over.trail, over.answer
        pick = unit.pick
        revision, traffic = pick.revision, pick.route.traffic
        ended = unit.started + over.duration_s
        offset = unit.admitted_at - unit.started
        record = TraceRecord(
            trail.trace_id, trail.span_id, trail.parent_id, why, unit.operation, traffic.model,
            revision.version, revision.digest[:12], revision.role, over.outcome, failed, unit.stream,
            offset + trail.arrived, unit.admitted_at, offset + ended,
        )  # fmt: skip
        record.request_id = trail.request_id
        record.rollout = traffic.rollout or ""
        record.weight = pick.weight
        record.key = trail.key
        record.answered_by = over.answered_by.version if over.answered_by is not None else ""
        record.input_tokens = answer.input_tokens
        record.output_tokens = answer.output_tokens
        record.first_token_s = over.first_token_s
        record.finish_reasons = answer.finish_reasons
        record.parameters = _parameters(trail.fields)
        record.events = _signals(unit)
        record.attempts = _attempts(over, ended)
        if unit.guard is not None:
            record.guard, record.found = _guard(over), _found(unit)
        if self._trace_content:
            record.content = self._said(over)
        return record

    def _said(self, over: Over) -> Said | None:
        """What was asked and answered, where a trace may hold it: traces wait in memory until they are sent."""
        body, transcript = over.trail.body, over.transcript
        if transcript is None or transcript.compressed:
            answer, event_stream, size = b"", False, len(body)
        else:
            answer, event_stream = transcript.text, transcript.event_stream
            size = len(body) + transcript.size_bytes
        if size > (LONGEST_STREAM_BYTES if event_stream else LONGEST_CONTENT_BYTES) or not self._tells(over):
            return None
        return Said(body, answer, over.unit.operation, event_stream)

    # The request log

    def _log(self, sink: Sink, over: Over) -> None:
        unit, trail, answer, transcript = over.unit, over.trail, over.answer, over.transcript
        pick = unit.pick
        revision, traffic = pick.revision, pick.route.traffic
        tell = self._tells(over)
        readable = transcript is not None and not transcript.compressed
        wanted = readable and (tell or trail.fields.get("logprobs") is not None)
        facts = {
            "kind": "request",
            "at": over.wall(trail.arrived),
            "request_id": trail.request_id.decode() or None,
            "engine_request_id": trail.nonce.hex(),
            "model": traffic.model,
            "version": revision.version,
            "revision": revision.digest[:12],
            "role": revision.role,
            "rollout": traffic.rollout,
            "weight": pick.weight if traffic.rollout else None,
            "answered_by": over.answered_by.version if over.answered_by is not None else None,
            "operation": unit.operation,
            "stream": unit.stream,
            "event_stream": transcript.event_stream if transcript is not None else None,
            "outcome": over.outcome,
            "duration_s": over.duration_s,
            "queue_s": unit.started - trail.arrived,
            "first_token_s": over.first_token_s,
            "per_token_s": over.per_token_s,
            "input_tokens": answer.input_tokens,
            "output_tokens": answer.output_tokens,
            "finish_reasons": answer.finish_reasons,
            "signals": _signals(unit),
            "key": trail.key or None,
            "user": user_of(trail.fields),
            "session": trail.session,
            "trace_id": f"{trail.trace_id:032x}" if trail.traced else None,
            "attempts": [
                {"host": t.host, "port": t.port, "version": t.version, "failure": t.failure or None}
                for t in trail.tries
                if t.started
            ],
            "verdicts": [f._asdict() for f in _found(unit)] if unit.guard is not None else [],
            "may_tell": tell,
        }
        answer_bytes = transcript.text if wanted and transcript is not None else b""
        sink.offer(pack(facts, trail.body if tell else b"", answer_bytes))


def _signals(unit: Unit) -> list[str]:
    """The signals that were shown, without the notes of what was looked for."""
    return [name for name in unit.events if not name.endswith(_LOOKED_FOR)] if unit.events else []


def _found(unit: Unit) -> tuple[Found, ...]:
    if unit.guard is None:
        return ()
    counts = sorted(unit.guard.counts.items())
    return tuple(Found(check, direction.value, verdict.value, n) for (direction, check, verdict), n in counts)


def _was_not_checked(unit: Unit) -> bool:
    """Whether a prompt was refused because its checks could not run, not for what it says."""
    return unit.guard is not None and (unit.guard.input is None or unit.guard.input.value == "error")


def _guard(over: Over) -> GuardSpan | None:
    """What held the prompt; None when nothing did."""
    guard, admitted = over.unit.guard, over.unit.admitted_at
    if guard is None or guard.input is None:
        return None
    return GuardSpan(guard.policy, guard.input.value, guard.check, admitted, admitted + guard.input_s)


def _attempts(over: Over, ended: float) -> tuple[AttemptRecord, ...]:
    tries = [t for t in over.trail.tries if t.started]
    outcome = over.outcome
    if tries and not tries[-1].failure and (outcome is _ERROR or outcome is _TIMEOUT):
        tries[-1].failure = outcome.value  # it began its answer, and broke it off or answered badly
    offset = over.unit.admitted_at - over.unit.started
    transcript = over.transcript
    last = transcript.last_at if transcript is not None and transcript.last_at else ended
    first = transcript.first_at if transcript is not None and transcript.event_stream and transcript.first_at else None
    return tuple([
        AttemptRecord(
            t.span_id, t.host, t.port, t.version, offset + t.started, offset + (t.ended or last),
            offset + first if first is not None and not t.failure else None, t.failure,
        )
        for t in tries
    ])  # fmt: skip


def _parameters(fields: Mapping[str, Any]) -> dict[str, float]:
    """What a body says of sampling: numbers only, and only those that the conventions have a name for.

    An integer that OTLP has no room for is left out: its encoder would write a trace back to the log for each.
    """
    told = names.REQUEST_PARAMETERS
    return {
        told[n]: value
        for n, value in fields.items()
        if n in told and (type(value) is float or (type(value) is int and value.bit_length() < 64))
    }
