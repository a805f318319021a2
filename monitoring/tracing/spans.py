"""Make OpenTelemetry's spans of finished requests, with their own times. Nothing here runs while one is served."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.status import Status, StatusCode

from monitoring.tracing import names
from monitoring.tracing.records import AttemptRecord, GuardSpan, RefusalRecord, Said, TraceRecord, VoteRecord
from monitoring.tracing.sampling import Reason

PROVIDER = "tidegate"
SCOPE = InstrumentationScope("tidegate.gateway")
SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_OK = Status(StatusCode.UNSET)

Attributes = dict[str, str | bool | int | float | tuple[str, ...]]
Content = Callable[[Said], Mapping[str, str]]
"""Redacts prompt and answers, and gives the attributes that tell them."""


def no_content(_: Said) -> Mapping[str, str]:
    """Tell nothing of them."""
    return {}


class SpanMaker:
    """Makes the spans of requests.

    Args:
        resource: whose they are.
        content: redacts what is told of prompts and answers.
    """

    def __init__(self, resource: Resource, content: Content = no_content) -> None:
        self._resource = resource
        self._content = content

    def spans(self, r: TraceRecord | VoteRecord | RefusalRecord) -> list[ReadableSpan]:
        """All spans of one request: itself, its queueing, each attempt, its guardrails.

        Of a vote on it, and of a request that was refused, the only one.
        """
        if isinstance(r, VoteRecord):
            return [self._of_vote(r)]
        if isinstance(r, RefusalRecord):
            return [self._of_refusal(r)]
        context = SpanContext(r.trace_id, r.span_id, is_remote=False, trace_flags=SAMPLED)
        parent = SpanContext(r.trace_id, r.parent_id, is_remote=True, trace_flags=SAMPLED) if r.parent_id else None
        made = [
            ReadableSpan(
                name=f"{r.operation} {r.model}",
                context=context,
                parent=parent,
                resource=self._resource,
                attributes=self._of_request(r),
                events=_events(r),
                kind=SpanKind.SERVER,
                status=Status(StatusCode.ERROR, str(r.outcome)) if r.failed else _OK,
                start_time=_ns(r.arrived_at),
                end_time=_ns(r.ended_at),
                instrumentation_scope=SCOPE,
            )
        ]
        inner = _Inner(self._resource, r.trace_id, context)
        made.append(inner.span(r.span_id ^ 1, names.QUEUE_SPAN, r.arrived_at, r.admitted_at))
        for number, attempt in enumerate(r.attempts, 1):
            made.append(_of_attempt(inner, attempt, number))
        if r.guard is not None:
            made.append(_of_guard(inner, r.guard, r.span_id ^ 2))
        return made

    def _of_refusal(self, r: RefusalRecord) -> ReadableSpan:
        told: Attributes = {
            names.OPERATION: r.operation,
            names.PROVIDER: PROVIDER,
            names.OUTCOME: "rejected",
            names.ERROR_TYPE: r.reason,
            names.STATUS: r.status,
            names.REQUEST_ID: r.request_id.decode(),
            names.KEPT_BECAUSE: Reason.REFUSED.value,
        }
        optional = {names.REQUEST_MODEL: r.model, names.KEY: r.key}
        told |= {name: value for name, value in optional.items() if value}
        return ReadableSpan(
            name=f"{r.operation} {r.model}".rstrip(),
            context=SpanContext(r.trace_id, r.span_id, is_remote=False, trace_flags=SAMPLED),
            parent=SpanContext(r.trace_id, r.parent_id, is_remote=True, trace_flags=SAMPLED) if r.parent_id else None,
            resource=self._resource,
            attributes=told,
            kind=SpanKind.SERVER,
            # After the conventions for HTTP a server's span is in error from 500 on: a 4xx is the caller's.
            status=Status(StatusCode.ERROR, r.reason) if r.status >= 500 else _OK,
            start_time=_ns(r.arrived_at),
            end_time=_ns(r.ended_at),
            instrumentation_scope=SCOPE,
        )

    def _of_vote(self, v: VoteRecord) -> ReadableSpan:
        told = {names.EVALUATION_NAME: "feedback", names.EVALUATION_LABEL: v.rating}
        parent = SpanContext(v.trace_id, v.parent_id, is_remote=False, trace_flags=SAMPLED)
        event = Event(names.EVALUATION, attributes=told, timestamp=_ns(v.at))
        inner = _Inner(self._resource, v.trace_id, parent)
        return inner.span(v.span_id, names.FEEDBACK_SPAN, v.at, v.at, {names.VERSION: v.version}, events=(event,))

    def _of_request(self, r: TraceRecord) -> Attributes:
        found: Attributes = {
            names.OPERATION: str(r.operation),
            names.PROVIDER: PROVIDER,
            names.REQUEST_MODEL: r.model,
            names.VERSION: r.version,
            names.REVISION: r.revision,
            names.ROLE: str(r.role),
            names.OUTCOME: str(r.outcome),
            names.STREAM: r.stream,
            names.REQUEST_ID: r.request_id.decode(),
            names.KEPT_BECAUSE: str(r.because),
        }
        optional: Mapping[str, str | int | float | tuple[str, ...] | None] = {
            names.ROLLOUT: r.rollout or None,
            names.WEIGHT: r.weight if r.rollout else None,
            names.KEY: r.key or None,
            names.ANSWERED_BY: r.answered_by or None,
            names.RESPONSE_MODEL: f"{r.model}@{r.answered_by}" if r.answered_by else None,
            names.INPUT_TOKENS: r.input_tokens,
            names.OUTPUT_TOKENS: r.output_tokens,
            names.FIRST_TOKEN_S: r.first_token_s,
            names.FINISH_REASONS: r.finish_reasons or None,
            names.ERROR_TYPE: str(r.outcome) if r.failed else None,
        }
        found |= {name: value for name, value in optional.items() if value is not None}
        found |= r.parameters
        if r.content is not None:
            found |= self._content(r.content)
        return found


class _Inner:
    """Makes the spans below a request's own."""

    def __init__(self, resource: Resource, trace_id: int, parent: SpanContext) -> None:
        self._resource = resource
        self._trace_id = trace_id
        self._parent = parent

    def span(
        self,
        span_id: int,
        name: str,
        start: float,
        end: float,
        attributes: Attributes | None = None,
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        failure: str = "",
        events: tuple[Event, ...] = (),
    ) -> ReadableSpan:
        return ReadableSpan(
            name=name,
            context=SpanContext(self._trace_id, span_id, is_remote=False, trace_flags=SAMPLED),
            parent=self._parent,
            resource=self._resource,
            attributes=attributes,
            events=events,
            kind=kind,
            status=Status(StatusCode.ERROR, failure) if failure else _OK,
            start_time=_ns(start),
            end_time=_ns(max(start, end)),
            instrumentation_scope=SCOPE,
        )


def _of_attempt(inner: _Inner, a: AttemptRecord, number: int) -> ReadableSpan:
    attributes: Attributes = {
        names.ATTEMPT: number,
        names.VERSION: a.version,
        names.SERVER_ADDRESS: a.host,
        names.SERVER_PORT: a.port,
    }
    if a.failure:
        attributes[names.ERROR_TYPE] = a.failure
    events = (Event(names.FIRST_TOKEN, timestamp=_ns(a.first_token_at)),) if a.first_token_at is not None else ()
    return inner.span(
        a.span_id, names.ATTEMPT_SPAN, a.started_at, a.ended_at, attributes,
        kind=SpanKind.CLIENT, failure=a.failure, events=events,
    )  # fmt: skip


def _of_guard(inner: _Inner, g: GuardSpan, span_id: int) -> ReadableSpan:
    attributes: Attributes = {names.POLICY: g.policy, names.DIRECTION: "input", names.VERDICT: g.verdict}
    if g.check:
        attributes[names.CHECK] = g.check
    return inner.span(span_id, names.GUARDRAIL_SPAN, g.started_at, g.ended_at, attributes)


def _events(r: TraceRecord) -> tuple[Event, ...]:
    """What the gateway's signals and the guardrails say of the answer, as the conventions' evaluations."""
    found = [(name, "bad") for name in r.events] + [(f"guardrail/{f.check}", f.verdict) for f in r.found]
    return tuple(
        Event(
            names.EVALUATION,
            attributes={names.EVALUATION_NAME: name, names.EVALUATION_LABEL: label},
            timestamp=_ns(r.ended_at),
        )
        for name, label in found
    )


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
