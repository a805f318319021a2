"""The way of one request, from its first byte to its outcome, in one file (docs/architecture.md).

    read -> [authenticate] -> parse -> [limit] -> admit -> pick revision -> [input guardrails]
    -> attempt -> (once more on stable) -> [output guardrails] -> release -> record

Steps in brackets come with later work and have their place marked `seam`. Before the first byte is released a
failed canary is rescued by stable; after it nothing is ever retried.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable

from monitoring.instruments import GatewayInstruments
from monitoring.measurements import RequestOutcome
from serving.admission import Availability, Pick, Reason, Rejection, choose, model_not_found
from serving.endpoints import EndpointBook
from serving.errors import UpstreamError, UpstreamTimeout
from serving.gateway.asgi import Receive, Scope, Send, read_body, send_reply
from serving.gateway.attempts import Attempts, Call, Failure, FailureKind, Opened, failure_in
from serving.gateway.config import GatewayConfig
from serving.gateway.forwarding import Header, client_headers, client_id, header
from serving.gateway.recorder import Recorder
from serving.gateway.request_ids import RequestFacts, fresh_nonce, issue
from serving.gateway.traffic_state import TrafficState
from serving.gateway.upstream import Abandoned, UpstreamClient
from serving.limits import PromptDeaths, prompt_refused, retry_allowed, timeout_of
from serving.openai_protocol import (
    MAX_SESSION_CHARS,
    Operation,
    Reply,
    Request,
    error_event,
    failure_reply,
    parse_request,
    rejection_reply,
    unpinned_body,
)
from serving.outcomes import Cause
from serving.streaming import says_done
from serving.traffic import RevisionTraffic, Role

MOST_ENDPOINTS_TRIED = 3
"""Endpoints of one revision that are tried for a request while each refuses the connection."""


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
    ) -> None:
        self._config = config
        self._state = state
        self._book = book
        self._recorder = recorder
        self._instruments = instruments
        self._secret = secret
        self._deaths = PromptDeaths()
        self._attempts = Attempts(book, client, recorder, self._deaths, suspect)
        self._retries_in_flight = 0
        self._loop = asyncio.get_running_loop()

    async def serve(self, scope: Scope, receive: Receive, send: Send, operation: Operation) -> None:
        """Answer one request."""
        arrived = time.monotonic()
        headers: list[Header] = scope["headers"]
        # seam: authenticate, before a byte of the body is read
        body = await read_body(headers, receive, self._config.max_body_bytes)
        if body is None:
            return
        request = parse_request(body) if isinstance(body, bytes) else body
        if isinstance(request, Rejection):
            await self.reject(send, request)
            return
        assert isinstance(body, bytes)
        admitted = self._admit(headers, body, request, arrived)
        if isinstance(admitted, Rejection):
            await self.reject(send, admitted, request.model)
            return
        pick, session, nonce, timeout_s = admitted
        # seam: input guardrails, by the policy of the picked version
        query = scope["query_string"]
        raw_path: bytes = scope["raw_path"]
        call = Call(
            unit=self._recorder.admit(pick, operation, stream=request.stream, session=session),
            target=raw_path + b"?" + query if query else raw_path,
            headers=headers,
            body=unpinned_body(request) if request.version is not None else body,
            nonce=nonce,
            own_id=client_id(headers),
            deadline=arrived + timeout_s,
            prompt=lambda: _fingerprint(body),
        )
        watcher = self._loop.create_task(_gone(receive))
        watcher.add_done_callback(lambda _: call.leash.pull())
        try:
            await self._run(call, send)
        except BaseException:  # also when cancelled: a unit without an outcome would hold up the watermark for ever
            self._recorder.dropped(call.unit)
            watcher.cancel()  # otherwise it ends by itself with the answer, which costs less
            raise

    def _admit(
        self, headers: list[Header], body: bytes, request: Request, arrived: float
    ) -> tuple[Pick, str | None, bytes, float] | Rejection:
        """Admit a request and pick its revision: (pick, session, random id, seconds it may take)."""
        # seam: limits per key, the bounded queue
        route = self._state.routes.get(request.model)
        if route is None:
            version = f"@{request.version}" if request.version else ""
            return model_not_found(request.model + version)
        timeout_s = timeout_of(header(headers, b"x-request-timeout"), self._config.request_timeout_s)
        if isinstance(timeout_s, Rejection):
            return timeout_s
        if len(self._deaths) and self._deaths.refused(_fingerprint(body), arrived):
            return prompt_refused()
        named = header(headers, b"x-session-id")
        session = named.decode("utf-8", "replace")[:MAX_SESSION_CHARS] if named else request.session
        nonce = fresh_nonce()
        available = Availability(
            ready=lambda application: self._book.ready(application, arrived),
            known=lambda application: bool(self._book.of(application)),
            lease_valid=self._state.lease_valid(arrived),
        )
        pick = choose(route, request.version, session or nonce.hex(), available)
        return pick if isinstance(pick, Rejection) else (pick, session, nonce, timeout_s)

    async def reject(self, send: Send, rejection: Rejection, model: str = "") -> None:
        """Answer a request that is not served."""
        known = model if model in self._state.routes else ""  # what a client makes up never becomes a label
        self._instruments.rejected(known, rejection.reason.value)
        await send_reply(send, rejection_reply(rejection), [(b"x-request-id", b"req_" + fresh_nonce().hex().encode())])

    async def _run(self, call: Call, send: Send) -> None:
        """Attempt, rescue, release."""
        unit = call.unit
        result = await self._attempt(call, unit.revision)
        failure = _failure(result, unit.operation)
        if failure is not None:
            if failure.kind is FailureKind.ABANDONED:
                self._recorder.aborted(unit)
                self._recorder.conclude(unit, RequestOutcome.CLIENT_ABORT, None)
                return
            self._recorder.failed(unit, failure.cause)  # by intention to treat it counts, whoever answers in the end
            call.first_attempt = False
            rescuer = self._rescuer(call, failure)
            if rescuer is not None:
                if isinstance(result, Opened):
                    self._attempts.close(call, result)
                await self._rescue(call, failure, rescuer, send)
                return
        await self._conclude(call, result, failure, send)

    async def _attempt(self, call: Call, revision: RevisionTraffic) -> Opened | Failure:
        result = await self._attempts.open(call, revision)
        if call.first_attempt and isinstance(result, Opened) and result.transcript.event_stream:
            self._recorder.first_token(call.unit, result.connection.first_body_at)
        return result

    def _rescuer(self, call: Call, failure: Failure) -> RevisionTraffic | None:
        """Who may answer instead, if anybody. A pinned request wants its version and no other."""
        if failure.kind is FailureKind.TIMEOUT or time.monotonic() >= call.deadline:
            return None
        unit = call.unit
        if unit.revision.role is Role.CANARY and not unit.pick.pinned:
            stable = self._stable_now(call)
            if stable is None or not self._attempts.untried(stable, call):
                return None
            in_flight = self._recorder.in_flight.get(stable.digest, 0)
            return stable if retry_allowed(in_flight, self._retries_in_flight) else None
        if failure.kind is FailureKind.UNREACHABLE and len(call.tried) < MOST_ENDPOINTS_TRIED:
            return unit.revision if self._attempts.untried(unit.revision, call) else None
        return None

    def _stable_now(self, call: Call) -> RevisionTraffic | None:
        """The stable revision of the table in force: a rollback may have come while the canary was failing."""
        route = self._state.routes.get(call.unit.pick.route.model)
        stable = route.stable if route is not None else None
        return stable if stable is not None and stable.digest != call.unit.revision.digest else None

    async def _rescue(self, call: Call, failure: Failure, rescuer: RevisionTraffic, send: Send) -> None:
        unit = call.unit
        if rescuer.digest != unit.revision.digest:
            self._recorder.retried(unit, failure.cause)
        else:
            self._instruments.retry(unit.pick.route.model, unit.revision.version, failure.cause.value)
        self._retries_in_flight += 1
        try:
            result = await self._attempt(call, rescuer)
            while (
                result == Failure(FailureKind.UNREACHABLE)
                and len(call.tried) < MOST_ENDPOINTS_TRIED
                and self._attempts.untried(rescuer, call)
            ):
                result = await self._attempt(call, rescuer)
            await self._conclude(call, result, _failure(result, unit.operation), send)
        finally:
            self._retries_in_flight -= 1

    async def _conclude(self, call: Call, result: Opened | Failure, failure: Failure | None, send: Send) -> None:
        """Give the client what there is: an answer, the engine's own error, or ours."""
        unit = call.unit
        if isinstance(result, Opened):
            try:
                outcome = await self._release(call, result, failure, send)
            finally:
                self._attempts.close(call, result)
            self._recorder.conclude(unit, outcome, result.transcript, first_attempt=call.first_attempt)
            return
        if result.kind is FailureKind.ABANDONED:
            self._recorder.conclude(unit, RequestOutcome.CLIENT_ABORT, None, first_attempt=False)
            return
        timed_out = result.kind is FailureKind.TIMEOUT
        outcome = RequestOutcome.TIMEOUT if timed_out else RequestOutcome.ERROR
        self._recorder.conclude(unit, outcome, None, first_attempt=False)
        reply = _failure_reply(result, unit.pick.route.model)
        await send_reply(send, reply, self._own_headers(call, unit.revision))

    async def _release(self, call: Call, opened: Opened, failure: Failure | None, send: Send) -> RequestOutcome:
        """Send an answer on to the client, and say how that went. Nothing is retried from here on."""
        unit, status, connection, transcript = call.unit, opened.status, opened.connection, opened.transcript
        own = self._own_headers(call, opened.revision)
        if failure is not None and not (opened.is_json or transcript.event_stream):
            message = f"The engine answered with status {status}; try again."
            await send_reply(send, failure_reply(status, message, "engine_error"), own)
            return RequestOutcome.ERROR
        headers = client_headers(connection.headers, own)
        # seam: output guardrails hold back, check and release
        if opened.whole:
            if header(headers, b"content-length") is None:
                headers.append((b"content-length", b"%d" % len(opened.first)))
            _keep(opened, opened.first)
            if 400 <= status < 500:
                self._recorder.refused(unit)
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": opened.first, "more_body": False})
        else:
            await send({"type": "http.response.start", "status": status, "headers": headers})
            cut = await self._relay(call, opened, send)
            if cut is not None:
                return cut
            if 400 <= status < 500:
                self._recorder.refused(unit)
        if failure is not None:
            return RequestOutcome.ERROR
        if status >= 400:
            return RequestOutcome.CLIENT_ERROR
        return RequestOutcome.OK if call.first_attempt or opened.revision is unit.revision else RequestOutcome.RETRIED

    async def _relay(self, call: Call, opened: Opened, send: Send) -> RequestOutcome | None:
        """Pass the pieces of an answer on as they come. Returns how it was cut short, or None."""
        unit, connection, transcript = call.unit, opened.connection, opened.transcript
        data = opened.first
        try:
            while data:
                transcript.add(data)
                await send({"type": "http.response.body", "body": data, "more_body": True})
                data = await connection.read()
        except Abandoned:
            self._recorder.aborted(unit)
            return RequestOutcome.CLIENT_ABORT
        except UpstreamTimeout:
            self._recorder.failed(unit, Cause.TIMEOUT)
            await _break_off(opened, send, "The engine did not finish its answer in time.", "timeout")
            return RequestOutcome.TIMEOUT
        except UpstreamError:
            await _break_off(opened, send, "The engine was lost in the middle of its answer.", "engine_connection_lost")
            self._recorder.failed(unit, Failure(await self._attempts.post_mortem(call, opened.endpoint)).cause)
            return RequestOutcome.ERROR
        finally:
            _stamp(opened)
        if transcript.event_stream and opened.status < 400 and not says_done(unit.operation, transcript.tail):
            self._recorder.failed(unit, Cause.VERSION)
            await _break_off(opened, send, "The engine ended its stream before its end.", "stream_cut")
            return RequestOutcome.ERROR
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        return None

    def _own_headers(self, call: Call, answered_by: RevisionTraffic) -> list[Header]:
        pick, role = call.unit.pick, answered_by.role
        by_chance = role.value[0] if pick.evidence else "f"
        kind = by_chance if answered_by is pick.revision else "r"
        facts = RequestFacts(kind, pick.route.generation, pick.route.model, answered_by.version)
        own = [(b"x-request-id", issue(self._secret, call.nonce, facts).encode())]
        if call.own_id is not None:
            own.append((b"x-client-request-id", call.own_id))
        if self._config.show_version:
            own.append((b"x-tidegate-version", answered_by.version.encode()))
            own.append((b"x-tidegate-role", role.value.encode()))
        return own


async def _gone(receive: Receive) -> None:
    """Wait until the client goes away."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _failure(result: Opened | Failure, operation: Operation) -> Failure | None:
    return result if isinstance(result, Failure) else failure_in(result, operation)


def _fingerprint(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=16).digest()


def _keep(opened: Opened, data: bytes) -> None:
    opened.transcript.add(data)
    _stamp(opened)


def _stamp(opened: Opened) -> None:
    transcript, connection = opened.transcript, opened.connection
    transcript.bodies = connection.bodies
    transcript.first_at, transcript.last_at = connection.first_body_at, connection.last_body_at


async def _break_off(opened: Opened, send: Send, message: str, code: str) -> None:
    """End an event stream with an error event. Other bodies simply end too early, which HTTP lets a client see."""
    if opened.transcript.event_stream:
        separator = b"" if opened.transcript.last.endswith(b"\n\n") else b"\n\n"
        event = separator + error_event(message, kind="server_error", code=code)
        await send({"type": "http.response.body", "body": event, "more_body": False})


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
