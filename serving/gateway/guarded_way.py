"""The part of a request's way that leads through guardrails; the pipeline calls it where a policy holds something.

enter      before an engine is asked: room for the checks, then the prompt
change     the same for another version that is to answer instead
release    the answer, whole or in pieces; from here on nothing is retried, and a blocked answer is no failure
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from guardrails.verdicts import Direction, Verdict
from monitoring.measurements import RequestOutcome
from serving.admission import Availability, Rejection
from serving.errors import UpstreamError, UpstreamTimeout
from serving.gateway.attempts import Attempts, Call, Failure, Opened
from serving.gateway.connection import Abandoned
from serving.gateway.exchange import Exchange
from serving.gateway.forwarding import Header, client_headers
from serving.gateway.guard_records import GuardRecord
from serving.gateway.guarded_answers import MOST_WHOLE_BYTES, GenerationStopped, GuardedStream, check_whole
from serving.gateway.guarding import Guarding, PolicyInForce, unavailable
from serving.gateway.overseeing import Overseer
from serving.gateway.recorder import Recorder
from serving.openai_protocol import error_event, failure_reply, rejection_reply
from serving.outcomes import Cause
from serving.streaming import UsageFilter, says_done
from serving.traffic import RevisionTraffic

_CHANGED = (b"etag", b"content-md5", b"digest", b"repr-digest")
"""Headers of an engine that speak of a body which may be another one now."""


class GuardedWay:
    """Guardrails as the pipeline sees them."""

    def __init__(self, guarding: Guarding, overseer: Overseer, recorder: Recorder, attempts: Attempts) -> None:
        self._guarding = guarding
        self._overseer = overseer
        self._recorder = recorder
        self._attempts = attempts

    def available(self, endpoints: Availability) -> Availability:
        """What could serve now, without revisions whose policy is not in force here."""
        usable = self._guarding.usable
        return Availability(
            ready=lambda application: usable(application) and endpoints.ready(application),
            known=lambda application: usable(application) and endpoints.known(application),
            lease_valid=False,
        )

    @staticmethod
    def holding(call: Call) -> PolicyInForce | None:
        """The policy that a call's answer has to wait for: as of when it was asked, whatever tables came since."""
        policy = call.policy
        return policy if policy is not None and policy.holds_output else None

    def admitted(self, call: Call, fields: Mapping[str, Any]) -> None:
        """A request was admitted: note by which policy it goes, and who will look at it afterwards."""
        policy = self._guarding.of(call.unit.revision)
        if policy is not None and policy.holds:
            call.policy, call.fields = policy, fields
        self._overseer.admitted(call.unit, policy, call.prompt)

    async def enter(self, call: Call, policy: PolicyInForce) -> Rejection | None:
        """Check the prompt; None lets it go on, perhaps with a changed body."""
        assert call.fields is not None
        return await self._guarding.admit(call, policy, call.fields)

    async def change(self, call: Call, revision: RevisionTraffic) -> Rejection | None:
        """Another revision is to answer: check the prompt, as the client sent it, by that one's policy."""
        if not self._guarding.usable(revision.application):
            return unavailable("guardrails")
        before, policy = call.policy, self._guarding.of(revision)
        call.policy = policy = policy if policy is not None and policy.holds else None
        if policy is None or (before is not None and before.digest == policy.digest):
            return None
        return await self._guarding.admit(call, policy, self._guarding.fields_of(call))

    # Answers

    async def release(
        self, call: Call, opened: Opened, exchange: Exchange, policy: PolicyInForce, own: list[Header]
    ) -> RequestOutcome:
        """Send a good answer on to the client, as far as the policy lets it."""
        record = call.unit.guard = call.unit.guard or policy.record()
        headers = [h for h in client_headers(opened.connection.headers, own) if h[0] not in _CHANGED]
        try:
            if opened.transcript.event_stream and not opened.transcript.compressed:
                outcome = await self._stream(call, opened, exchange, policy, record, headers)
            else:
                outcome = await self._whole(call, opened, exchange, policy, record, headers, own)
        finally:
            self._guarding.count(policy, Direction.OUTPUT, record.worst(Direction.OUTPUT))
        if outcome is RequestOutcome.OK and not (call.first_attempt or opened.revision is call.unit.revision):
            return RequestOutcome.RETRIED
        return outcome

    async def _whole(
        self,
        call: Call,
        opened: Opened,
        exchange: Exchange,
        policy: PolicyInForce,
        record: GuardRecord,
        headers: list[Header],
        own: list[Header],
    ) -> RequestOutcome:
        body = await self._all_of(call, opened)
        if isinstance(body, RequestOutcome):
            if body is not RequestOutcome.CLIENT_ABORT:
                message = "The engine did not give its whole answer; try again."
                reply = failure_reply(502, message, "engine_connection_lost")
                exchange.respond(reply.status, [*reply.headers, *own], reply.body)
            return body
        if body is None or opened.transcript.compressed:
            record.output, record.check = Verdict.ERROR, "limits"
            return self._refuse(exchange, record, own)
        checked = await check_whole(policy, body, call.prompt_language, record)
        if checked.result is None:
            record.output = Verdict.ERROR
            self._recorder.failed(call.unit, Cause.VERSION)
            message = "The engine's answer can't be read, so it can't be checked; try again."
            reply = failure_reply(502, message, "engine_error")
            exchange.respond(reply.status, [*reply.headers, *own], reply.body)
            return RequestOutcome.ERROR
        if checked.result.verdict is Verdict.ERROR:
            return self._refuse(exchange, record, own)
        exchange.respond(opened.status, headers, checked.body)
        return RequestOutcome.BLOCKED if checked.result.verdict is Verdict.BLOCK else RequestOutcome.OK

    @staticmethod
    def _refuse(exchange: Exchange, record: GuardRecord, own: list[Header]) -> RequestOutcome:
        reply = rejection_reply(unavailable(record.check))
        exchange.respond(reply.status, [*reply.headers, *own], reply.body)
        return RequestOutcome.ERROR

    async def _all_of(self, call: Call, opened: Opened) -> bytes | RequestOutcome | None:
        """The whole body; None for one that is too long, an outcome when it did not come."""
        parts, size = [opened.first], len(opened.first)
        opened.transcript.add(opened.first)
        lost = False
        try:
            while not opened.whole:
                data = await opened.connection.read()
                if not data:
                    break
                opened.transcript.add(data)
                parts.append(data)
                size += len(data)
                if size > MOST_WHOLE_BYTES:
                    return None
        except Abandoned:
            self._recorder.aborted(call.unit)
            return RequestOutcome.CLIENT_ABORT
        except UpstreamTimeout:
            self._recorder.failed(call.unit, Cause.TIMEOUT)
            return RequestOutcome.TIMEOUT
        except UpstreamError:
            lost = True
        finally:
            _stamp(opened)
        if lost:
            self._recorder.failed(call.unit, Failure(await self._attempts.post_mortem(call, opened.endpoint)).cause)
            return RequestOutcome.ERROR
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _stream(
        self,
        call: Call,
        opened: Opened,
        exchange: Exchange,
        policy: PolicyInForce,
        record: GuardRecord,
        headers: list[Header],
    ) -> RequestOutcome:
        unit, connection, transcript = call.unit, opened.connection, opened.transcript

        def stop() -> None:
            if not connection.complete:
                connection.fail(GenerationStopped("the guardrails have ended this answer"))

        exchange.begin(opened.status, headers)
        stream = GuardedStream(policy, unit.operation, call.prompt_language, exchange.write, stop, record)

        usage = UsageFilter() if call.metered else None

        def take(data: bytes) -> None:
            transcript.add(data)
            stream.feed(data if usage is None or usage.passes(data) else usage.feed(data))

        exchange.on_pause, exchange.on_resume = connection.pause, connection.resume
        outcome: RequestOutcome | None = None
        cause, message, code = Cause.VERSION, "", ""
        lost = False
        try:
            if opened.first:
                take(opened.first)
            if not stream.over:
                await connection.relay(take)
                if usage is not None:
                    stream.feed(usage.rest())
        except GenerationStopped:
            pass
        except Abandoned:
            stream.close()
            self._recorder.aborted(unit)
            return RequestOutcome.CLIENT_ABORT
        except UpstreamTimeout:
            outcome, cause, code = RequestOutcome.TIMEOUT, Cause.TIMEOUT, "timeout"
            message = "The engine did not finish its answer in time."
        except UpstreamError:
            outcome, code = RequestOutcome.ERROR, "engine_connection_lost"
            message = "The engine was lost in the middle of its answer."
            lost = True
        except BaseException:
            stream.close()
            raise
        finally:
            _stamp(opened)
        if lost:
            cause = Failure(await self._attempts.post_mortem(call, opened.endpoint)).cause
        await stream.finish()
        if stream.failed:  # the error object is out; the version is not to blame
            exchange.finish()
            return RequestOutcome.ERROR
        if stream.blocked:
            stream.say_done()
            exchange.finish()
            return RequestOutcome.BLOCKED
        if outcome is None and (stream.unreadable or not says_done(unit.operation, transcript.tail)):
            outcome, code = RequestOutcome.ERROR, "stream_cut"
            message = "The engine ended its stream before its end."
        if outcome is not None:
            self._recorder.failed(unit, cause)
            exchange.write(error_event(message, kind="server_error", code=code))
            exchange.finish()
            return outcome
        stream.say_done()
        exchange.finish()
        return RequestOutcome.OK


def _stamp(opened: Opened) -> None:
    transcript, connection = opened.transcript, opened.connection
    transcript.bodies = connection.bodies
    transcript.first_at, transcript.last_at = connection.first_body_at, connection.last_body_at
