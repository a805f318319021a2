"""The way of one request, from its first byte to its outcome, in one file (docs/architecture.md).

    head -> authenticate -> body -> parse -> wait for a turn -> pick revision -> input guardrails -> (mirror)
    -> attempt -> (once more on stable) -> output guardrails -> release -> record

Who may ask, and when, is a gatekeeper's (`seams`). Guardrails are `guarded_way`; a request whose policy only observes
is looked at after its end (`overseeing`) and goes the way of one without. An answer's pieces go from the engine's
socket to the client's in one call, without waking a task. From the attempt on, most requests that aren't streams take a
short way (`express`) that does the same without waiting.

Before the first byte is released a failed canary is rescued by stable, and a request whose engine has gone by another
replica of its revision; after it nothing is ever retried.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from typing import Any, Final

from monitoring.instruments import GatewayInstruments
from monitoring.measurements import RequestOutcome
from serving.admission import Availability, Pick, Reason, Rejection, choose, is_tester, model_not_found
from serving.endpoints import EndpointBook
from serving.errors import UpstreamError, UpstreamTimeout
from serving.gateway.attempts import Attempts, Call, Failure, FailureKind, Opened, Sent, failure_in, fingerprint
from serving.gateway.config import GatewayConfig
from serving.gateway.connection import Abandoned
from serving.gateway.exchange import Exchange
from serving.gateway.express import Express
from serving.gateway.forwarding import (
    Header,
    client_headers,
    client_id,
    client_lines,
    passed_on,
    read_lines,
    version_lines,
)
from serving.gateway.guarded_way import GuardedWay
from serving.gateway.observing import Observer, Refused
from serving.gateway.recorder import Recorder
from serving.gateway.request_ids import Issuer, fresh_nonce
from serving.gateway.seams import ANYBODY, Caller, Gatekeeper, Mirror, Permit
from serving.gateway.sessions import session_mark
from serving.gateway.traffic_state import TrafficState
from serving.gateway.transcript import Transcript
from serving.gateway.units import Question
from serving.gateway.upstream import UpstreamClient
from serving.limits import PromptDeaths, prompt_refused, retry_allowed, timeout_of
from serving.openai_protocol import (
    MAX_SESSION_CHARS,
    Operation,
    Reply,
    Request,
    cost_tokens,
    error_event,
    failure_reply,
    metered_body,
    parse_request,
    rejection_reply,
    unpinned_body,
)
from serving.outcomes import Cause
from serving.scoring import Demand, demand_of
from serving.streaming import UsageFilter, says_done
from serving.traffic import RevisionTraffic, Role

MOST_ENDPOINTS_TRIED: Final = 3
"""Endpoints that are tried for a request, while each refuses the connection; one of them may die of something."""


_METERED: Final = (Operation.CHAT, Operation.COMPLETIONS)
"""Operations whose streams tell their usage only when asked."""

_OK: Final = RequestOutcome.OK
_RETRIED: Final = RequestOutcome.RETRIED


class Pipeline:
    """Serves requests that name a model."""

    def __init__(
        self,
        config: GatewayConfig,
        state: TrafficState,
        book: EndpointBook,
        client: UpstreamClient,
        recorder: Recorder,
        instruments: GatewayInstruments,
        secret: bytes,
        suspect: Callable[[str], None],
        gatekeeper: Gatekeeper | None = None,
        mirror: Mirror | None = None,
        guards: Callable[[Attempts], GuardedWay] | None = None,
        observer: Observer | None = None,
    ) -> None:
        self._config = config
        self._state = state
        self._book = book
        self._recorder = recorder
        self._instruments = instruments
        self._ids = Issuer(secret)
        self._gatekeeper = gatekeeper
        self._mirror = mirror
        self._observer = observer
        self._deaths = PromptDeaths()
        self._attempts = Attempts(book, client, recorder, self._deaths, suspect, config.picking)
        self._guards = guards(self._attempts) if guards is not None else None
        self._retries_in_flight = 0
        self._picked_at = 0.0
        self._available = Availability(
            ready=lambda application: book.ready(application, self._picked_at),
            known=lambda application: bool(book.of(application)),
            lease_valid=False,
        )
        if self._guards is not None:
            self._available = self._guards.available(self._available)

    # Before the body is read

    def authenticate(self, exchange: Exchange) -> Rejection | None:
        """Find out who asks: `exchange.caller` is set, or the request is rejected."""
        caller: Caller | Rejection = ANYBODY
        if self._gatekeeper is not None:
            caller = self._gatekeeper.authenticate(exchange.headers, time.time(), exchange.notes)
            if isinstance(caller, Rejection):
                return caller
        exchange.caller = caller
        encoding = exchange.fields.get(b"content-encoding")
        if encoding is not None and encoding.lower() != b"identity":
            return Rejection(
                Reason.UNSUPPORTED_ENCODING,
                "The request body is compressed (content-encoding); only identity is accepted. Send it uncompressed.",
            )
        return None

    def rejection(self, rejection: Rejection, model: str = "", exchange: Exchange | None = None) -> Reply:
        """Count a rejection and write the answer to it; `exchange` is the request, where there is one."""
        known = model if model in self._state.routes else ""  # what a client makes up never becomes a label
        reason = rejection.reason.value
        self._instruments.rejected(known, reason)
        reply = rejection_reply(rejection)
        request_id = b"req_" + fresh_nonce().hex().encode()
        if self._observer is not None:
            refused = Refused(reason, reply.status, known, request_id, time.monotonic(), time.time())
            self._observer.refused(refused, exchange)
        return Reply(reply.status, reply.body, (*reply.headers, (b"x-request-id", request_id)))

    def _reject(self, exchange: Exchange, rejection: Rejection, model: str = "") -> None:
        reply = self.rejection(rejection, model, exchange)
        exchange.respond(reply.status, list(reply.headers), reply.body)

    # The request as a whole

    def serve(self, exchange: Exchange) -> Coroutine[Any, Any, None] | None:
        """Answer one request, whose body is there; a coroutine when that takes one, None when callbacks do it."""
        request = parse_request(exchange.body)
        if isinstance(request, Rejection):
            self._reject(exchange, request)
            return None
        timeout_s = self._acceptable(exchange, request)
        if isinstance(timeout_s, Rejection):
            self._reject(exchange, timeout_s, request.model)
            return None
        deadline = exchange.arrived + timeout_s
        permit: Permit | None = None
        if self._gatekeeper is not None:
            cost = cost_tokens(request, len(exchange.body))
            entered = self._gatekeeper.enter_at_once(exchange.caller, request.model, cost, time.monotonic())
            if entered is None:
                return self._serve_in_turn(self._gatekeeper, exchange, request, cost, deadline)
            if isinstance(entered, Rejection):
                self._reject(exchange, entered, request.model)
                return None
            permit = entered
        call = self._call(exchange, request, deadline, permit)
        if call is None or (call.policy is None and Express(self, call, exchange).set_off(self._attempts)):
            return None
        return self.go_on(call, exchange)

    async def _serve_in_turn(
        self, gatekeeper: Gatekeeper, exchange: Exchange, request: Request, cost: int, deadline: float
    ) -> None:
        """The same for a request that must wait for its turn. Cancelled when its client goes away meanwhile."""
        exchange.on_gone = exchange.cancel
        entered = await gatekeeper.enter(exchange.caller, request.model, cost, deadline, time.monotonic())
        exchange.on_gone = None
        if isinstance(entered, Rejection):
            self._reject(exchange, entered, request.model)
            return
        call = self._call(exchange, request, deadline, entered)
        if call is not None:
            await self.go_on(call, exchange)

    def _call(self, exchange: Exchange, request: Request, deadline: float, permit: Permit | None) -> Call | None:
        """Pick the revision of a request whose turn it is, and book its admission; None when it was rejected."""
        nonce = fresh_nonce()
        notes = exchange.notes
        if notes.passed_on is None:
            notes.passed_on = passed_on(exchange.headers)
            named = exchange.fields.get(b"x-session-id")
            notes.session = named.decode("utf-8", "replace")[:MAX_SESSION_CHARS] if named else None
        session = notes.session or request.session
        pick = self._pick(exchange, request, session or nonce.hex())
        if isinstance(pick, Rejection):
            if permit is not None:
                permit.settle("", None, None)
            self._reject(exchange, pick, request.model)
            return None
        call = Call(
            unit=self._recorder.admit(pick, exchange.operation, stream=request.stream, session=session, permit=permit),
            target=exchange.target,
            headers=exchange.headers,
            passed_on=notes.passed_on,
            body=unpinned_body(request) if request.version is not None else exchange.body,
            prompt=exchange.body,
            nonce=nonce,
            own_id=client_id(exchange.fields),
            deadline=deadline,
            own_lines=permit.lines() if permit is not None else b"",
            show_version=self._config.show_version and exchange.caller.may_see_version,
            demand=self._demand(exchange, request, pick.revision),
            key=exchange.caller.key_id,
        )
        call.unit.question = Question(request.fields, nonce, exchange.caller.namespace, exchange.caller.key_id)
        if self._observer is not None:
            call.unit.trail = self._observer.begin(exchange, request, nonce, session, call.unit)
        exchange.on_gone = call.leash.pull
        if exchange.gone:  # while it waited for its turn
            call.leash.pull()
        if self._guards is not None:
            self._guards.admitted(call, request.fields)
        if request.stream and self._config.meter_streams and exchange.operation in _METERED:
            bare = request.fields if request.version is None else {**request.fields, "model": request.model}
            metered = metered_body(call.body, bare)
            if metered is not None:
                call.body, call.metered = metered, True
        if call.policy is None and pick.route.traffic.mirror_percent and self._mirror is not None:
            self._mirror.offer(call, request.fields)
        return call

    async def go_on(self, call: Call, exchange: Exchange, sent: Sent | None = None) -> None:
        """See a call through to its outcome; `sent` when it is on its way already."""
        try:
            await self._run(call, exchange, sent)
        except BaseException:  # also when cancelled: a unit without an outcome would hold up the watermark for ever
            self._recorder.dropped(call.unit)
            raise

    async def give_up(self, call: Call, error: Exception) -> None:
        """See `express.GeneralWay`."""
        self._recorder.dropped(call.unit)
        raise error

    def finish_plain(self, call: Call, exchange: Exchange, sent: Sent) -> None:
        """Attempt, release and record in one, for a good plain answer on the short way (`express`)."""
        unit, plain = call.unit, sent.connection.plain
        assert plain is not None
        revision = unit.revision
        transcript = self._attempts.concluded(call, revision, sent)
        exchange.respond_lines(plain.status, plain.lines + self._own_lines(call, revision), transcript.last)
        self._recorder.conclude(unit, _OK, transcript, answered_by=revision)

    def _acceptable(self, exchange: Exchange, request: Request) -> float | Rejection:
        """The seconds that the request may take, or why it is refused whatever the load."""
        model, version = request.model, request.version
        route = self._state.routes.get(model)
        if route is None or not exchange.caller.may_ask(model, route.traffic.namespace):
            return model_not_found(model + (f"@{version}" if version else ""))
        if version is not None and not exchange.caller.may_pin:
            return Rejection(
                Reason.NOT_PERMITTED,
                f"This key may not name a version ({version[:64]}); leave out @ and what follows, or use another key.",
                param="model",
            )
        if len(self._deaths) and self._deaths.refused(fingerprint(exchange.body), exchange.arrived):
            return prompt_refused()
        return timeout_of(exchange.fields.get(b"x-request-timeout"), self._config.request_timeout_s)

    def _demand(self, exchange: Exchange, request: Request, revision: RevisionTraffic) -> Demand:
        """What the request asks of an engine; looked into only where there is a choice of endpoints."""
        if len(self._book.of(revision.application)) < 2:
            return Demand()
        return demand_of(exchange.operation, exchange.body, request.fields)

    def _pick(self, exchange: Exchange, request: Request, unit: str) -> Pick | Rejection:
        """Pick the revision, by the table in force now."""
        route = self._state.routes.get(request.model)
        if route is None:  # gone while the request waited
            return model_not_found(request.model)
        now = self._picked_at = time.monotonic()
        available = self._available
        available.lease_valid = self._state.lease_valid(now)
        tester = bool(route.traffic.testers) and is_tester(route, exchange.fields, exchange.caller.key_id)
        return choose(route, request.version, unit, available, tester=tester)

    async def _run(self, call: Call, exchange: Exchange, sent: Sent | None) -> None:
        """Attempt, rescue, release."""
        unit = call.unit
        if call.policy is not None and self._guards is not None:
            refused = await self._guards.enter(call, call.policy)
            if refused is not None:
                self._stop(call, exchange, refused)
                return
            if unit.pick.route.traffic.mirror_percent and self._mirror is not None and call.fields is not None:
                self._mirror.offer(call, call.fields)
        result = await self._attempt(call, unit.revision, sent)
        failure = _failure(result, unit.operation)
        if failure is not None:
            if failure.kind is FailureKind.ABANDONED:
                self._recorder.aborted(unit)
                self._recorder.conclude(unit, RequestOutcome.CLIENT_ABORT, None)
                return
            if isinstance(result, Opened) and unit.trail is not None:
                unit.trail.failed(result.endpoint.url, failure.kind.value, time.monotonic())
            self._recorder.failed(unit, failure.cause)  # by intention to treat it counts, whoever answers in the end
            call.first_attempt = False
            rescuer = self._rescuer(call, failure)
            if rescuer is not None:
                if isinstance(result, Opened):
                    self._attempts.close(call, result)
                await self._rescue(call, failure, rescuer, exchange)
                return
        await self._conclude(call, result, failure, exchange)

    def _stop(self, call: Call, exchange: Exchange, refused: Rejection) -> None:
        """The guardrails do not let the prompt in: no engine is asked, and the version has neither won nor lost."""
        unit = call.unit
        self._recorder.stopped(unit)
        self._instruments.rejected(unit.pick.route.model, refused.reason.value)
        reply = rejection_reply(refused)
        exchange.respond(reply.status, [*reply.headers, *self._own_headers(call, unit.revision)], reply.body)

    async def _attempt(self, call: Call, revision: RevisionTraffic, sent: Sent | None = None) -> Opened | Failure:
        result = await self._attempts.open(call, revision, sent)
        if call.first_attempt and isinstance(result, Opened) and result.transcript.event_stream:
            self._recorder.first_token(call.unit, result.connection.first_body_at)
        return result

    def _rescuer(self, call: Call, failure: Failure) -> RevisionTraffic | None:
        """Who may answer instead, if anybody. A pinned request wants its version and no other.

        Another replica of the same revision has no budget: its revision's load is no more than it was.
        """
        if failure.kind is FailureKind.TIMEOUT or time.monotonic() >= call.deadline:
            return None
        unit = call.unit
        if unit.revision.role is Role.CANARY and not unit.pick.pinned:
            stable = self._stable_now(call)
            if stable is not None and self._attempts.untried(stable, call):
                in_flight = self._recorder.in_flight.get(stable.digest, 0)
                if retry_allowed(in_flight, self._retries_in_flight):
                    return stable
        gone = failure.kind in (FailureKind.UNREACHABLE, FailureKind.LOST)
        if gone and len(call.tried) < MOST_ENDPOINTS_TRIED and self._attempts.untried(unit.revision, call):
            return unit.revision
        return None

    def _stable_now(self, call: Call) -> RevisionTraffic | None:
        """The stable revision of the table in force: a rollback may have come while the canary was failing."""
        route = self._state.routes.get(call.unit.pick.route.model)
        stable = route.stable if route is not None else None
        return stable if stable is not None and stable.digest != call.unit.revision.digest else None

    async def _rescue(self, call: Call, failure: Failure, rescuer: RevisionTraffic, exchange: Exchange) -> None:
        """Ask others. Whoever refuses the connection did not see the request; of those that did, one may die."""
        unit = call.unit
        by_stable = rescuer.digest != unit.revision.digest
        if by_stable:
            self._recorder.retried(unit, failure.cause)
        else:
            self._instruments.retry(unit.pick.route.model, unit.revision.version, failure.cause.value)
        self._retries_in_flight += by_stable
        try:
            refused = await self._guards.change(call, rescuer) if by_stable and self._guards is not None else None
            if refused is not None:  # stable's policy is stricter: it answers nothing that it would not have let in
                blocked = refused.reason is Reason.CONTENT_FILTERED
                outcome = RequestOutcome.BLOCKED if blocked else RequestOutcome.ERROR
                self._recorder.conclude(unit, outcome, None, first_attempt=False)
                reply = rejection_reply(refused)
                exchange.respond(reply.status, [*reply.headers, *self._own_headers(call, rescuer)], reply.body)
                return
            result = await self._attempt(call, rescuer)
            died = failure.kind is FailureKind.LOST
            while (
                isinstance(result, Failure)
                and (result.kind is FailureKind.UNREACHABLE or (result.kind is FailureKind.LOST and not died))
                and len(call.tried) < MOST_ENDPOINTS_TRIED
                and self._attempts.untried(rescuer, call)
            ):
                died = died or result.kind is FailureKind.LOST
                result = await self._attempt(call, rescuer)
            await self._conclude(call, result, _failure(result, unit.operation), exchange)
        finally:
            self._retries_in_flight -= by_stable

    async def _conclude(
        self, call: Call, result: Opened | Failure, failure: Failure | None, exchange: Exchange
    ) -> None:
        """Give the client what there is: an answer, the engine's own error, or ours."""
        unit = call.unit
        if isinstance(result, Opened):
            try:
                outcome = await self._release(call, result, failure, exchange)
            finally:
                self._attempts.close(call, result)
            self._recorder.conclude(
                unit, outcome, result.transcript, first_attempt=call.first_attempt, answered_by=result.revision
            )
            return
        if result.kind is FailureKind.ABANDONED:
            self._recorder.conclude(unit, RequestOutcome.CLIENT_ABORT, None, first_attempt=False)
            return
        timed_out = result.kind is FailureKind.TIMEOUT
        outcome = RequestOutcome.TIMEOUT if timed_out else RequestOutcome.ERROR
        self._recorder.conclude(unit, outcome, None, first_attempt=False)
        reply = _failure_reply(result, unit.pick.route.model)
        exchange.respond(reply.status, [*reply.headers, *self._own_headers(call, unit.revision)], reply.body)

    async def _release(self, call: Call, opened: Opened, failure: Failure | None, exchange: Exchange) -> RequestOutcome:
        """Send an answer on to the client, and say how that went. Nothing is retried from here on."""
        unit, status, connection, transcript = call.unit, opened.status, opened.connection, opened.transcript
        own_lines = self._own_lines(call, opened.revision)
        if failure is not None and not (opened.is_json or transcript.event_stream):
            message = f"The engine answered with status {status}; try again."
            reply = failure_reply(status, message, "engine_error")
            exchange.respond(status, [*reply.headers, *read_lines(own_lines)], reply.body)
            return RequestOutcome.ERROR
        policy = self._guards.holding(call) if self._guards is not None else None
        if policy is not None and self._guards is not None and status < 400:  # also behind an error that came first
            outcome = await self._guards.release(call, opened, exchange, policy, read_lines(own_lines))
            return RequestOutcome.ERROR if failure is not None and outcome in (_OK, _RETRIED) else outcome
        if opened.whole:
            _keep(opened, opened.first)
            if 400 <= status < 500:
                self._recorder.refused(unit)
            exchange.respond(status, client_headers(connection.headers, read_lines(own_lines)), opened.first)
        else:
            lines = client_lines(connection.headers) + own_lines
            exchange.begin_lines(status, lines, opened.length)
            cut = await self._relay(call, opened, exchange)
            if cut is not None:
                return cut
            if 400 <= status < 500:
                self._recorder.refused(unit)
        if failure is not None:
            return RequestOutcome.ERROR
        if status >= 400:
            return RequestOutcome.CLIENT_ERROR
        return _OK if call.first_attempt or opened.revision is unit.revision else _RETRIED

    async def _relay(self, call: Call, opened: Opened, exchange: Exchange) -> RequestOutcome | None:
        """Pass the pieces of an answer on as they come. Returns how it was cut short, or None."""
        unit, connection, transcript = call.unit, opened.connection, opened.transcript
        usage = UsageFilter() if call.metered and transcript.event_stream else None
        passing = _Passing(exchange, transcript, usage)
        exchange.on_pause, exchange.on_resume = connection.pause, connection.resume
        lost = False
        try:
            if opened.first:
                passing.piece(opened.first)
            await connection.relay(passing.piece, passing.framed)
            if usage is not None and (rest := usage.rest()):
                exchange.write(rest)
        except Abandoned:
            self._recorder.aborted(unit)
            return RequestOutcome.CLIENT_ABORT
        except UpstreamTimeout:
            self._recorder.failed(unit, Cause.TIMEOUT)
            _break_off(opened, exchange, "The engine did not finish its answer in time.", "timeout")
            return RequestOutcome.TIMEOUT
        except UpstreamError:
            lost = True
        finally:
            _stamp(opened)
        if lost:
            message = "The engine was lost in the middle of its answer."
            _break_off(opened, exchange, message, "engine_connection_lost")
            self._recorder.failed(unit, Failure(await self._attempts.post_mortem(call, opened.endpoint)).cause)
            return RequestOutcome.ERROR
        if transcript.event_stream and opened.status < 400 and not says_done(unit.operation, transcript.tail):
            self._recorder.failed(unit, Cause.VERSION)
            _break_off(opened, exchange, "The engine ended its stream before its end.", "stream_cut")
            return RequestOutcome.ERROR
        exchange.finish()
        return None

    def _own_headers(self, call: Call, answered_by: RevisionTraffic) -> list[Header]:
        """The gateway's own headers of an answer."""
        return read_lines(self._own_lines(call, answered_by))

    def _own_lines(self, call: Call, answered_by: RevisionTraffic) -> bytes:
        """The same as they are written."""
        pick, role = call.unit.pick, answered_by.role
        by_chance = role[0] if pick.evidence else "f"
        kind = by_chance if answered_by is pick.revision else "r"
        route, version = pick.route, answered_by.version
        named = call.unit.session if pick.evidence else None
        mark = session_mark(route.traffic.salt, named) if named is not None else ""
        request_id = self._ids.issue(call.nonce, kind, route.generation, route.traffic.model, version, mark, call.key)
        if call.unit.trail is not None:
            call.unit.trail.request_id = request_id
        lines = b"x-request-id: %b\r\n%b" % (request_id, call.own_lines)
        if call.own_id is not None:
            lines += b"x-client-request-id: %b\r\n" % call.own_id
        return lines + version_lines(version, role) if call.show_version else lines


class _Passing:
    """Passes the pieces of one answer on to its client, and keeps them.

    No pair of closures: those refer to each other, and what such a circle holds, the whole answer, stays until a
    collection finds it.
    """

    __slots__ = ("_exchange", "_transcript", "_usage")

    def __init__(self, exchange: Exchange, transcript: Transcript, usage: UsageFilter | None) -> None:
        self._exchange = exchange
        self._transcript = transcript
        self._usage = usage

    def piece(self, data: bytes) -> None:
        """A piece of the body."""
        usage = self._usage
        self._transcript.add(data)
        if usage is None or usage.passes(data):
            self._exchange.write(data)
        elif released := usage.feed(data):
            self._exchange.write(released)

    def framed(self, data: bytes, framed: bytes) -> None:
        """A piece that came in whole chunks, and those."""
        usage = self._usage
        if usage is None or usage.passes(data):
            self._transcript.add(data)
            self._exchange.write_framed(data, framed)
        else:
            self.piece(data)


def _failure(result: Opened | Failure, operation: Operation) -> Failure | None:
    return result if isinstance(result, Failure) else failure_in(result, operation)


def _keep(opened: Opened, data: bytes) -> None:
    opened.transcript.add(data)
    _stamp(opened)


def _stamp(opened: Opened) -> None:
    transcript, connection = opened.transcript, opened.connection
    transcript.bodies = connection.bodies
    transcript.first_at, transcript.last_at = connection.first_body_at, connection.last_body_at


def _break_off(opened: Opened, exchange: Exchange, message: str, code: str) -> None:
    """End an event stream with an error event. Other bodies simply end too early, which HTTP lets a client see."""
    if opened.transcript.event_stream and opened.length is None:
        separator = b"" if opened.transcript.last.endswith(b"\n\n") else b"\n\n"
        exchange.write(separator + error_event(message, kind="server_error", code=code))
        exchange.finish()
    else:
        exchange.cut()


def _failure_reply(failure: Failure, model: str) -> Reply:
    match failure.kind:
        case FailureKind.TIMEOUT:
            return failure_reply(504, "The engine gave no answer within the request's time limit.", "timeout")
        case FailureKind.UNREACHABLE:
            message = f"The model `{model}` has no engine that takes connections at the moment; try again in 1 s."
            return failure_reply(503, message, Reason.MODEL_NOT_READY.value, retry_after_s=1)
        case _:
            message = "The engine closed the connection before its answer was complete; try again."
            return failure_reply(502, message, "engine_connection_lost")
