"""One attempt at one endpoint: choose it, send, and wait until there is something to release or a failure."""

from __future__ import annotations

import asyncio
import enum
import hashlib
import random
import time
from binascii import hexlify
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from serving.endpoints import (
    Endpoint,
    EndpointBook,
    connect_failed,
    connected,
    dispatched,
    failed,
    finished,
    first_token_came,
    pick,
    progressed,
    succeeded,
)
from serving.errors import ConnectFailed, ConnectionLost, UpstreamTimeout
from serving.gateway.connection import Abandoned, Connection, Leash
from serving.gateway.forwarding import Header, engine_head, passed_on
from serving.gateway.recorder import Recorder
from serving.gateway.transcript import Transcript
from serving.gateway.units import Unit
from serving.gateway.upstream import UpstreamClient
from serving.knobs import Picking
from serving.limits import PromptDeaths
from serving.openai_protocol import Operation
from serving.outcomes import Cause
from serving.scoring import Demand
from serving.streaming import is_error_event, read_stream
from serving.traffic import RevisionTraffic

if TYPE_CHECKING:
    from guardrails.verdicts import Language
    from serving.gateway.guarding import PolicyInForce
    from serving.gateway.trail import Trail

GONE_AFTER_S: Final = 0.02
PROBE_S: Final = 0.5
"""How long a connection to an engine whose answer broke off may take before it counts as gone."""

HELD_BYTES: Final = 256 * 1024
"""A JSON answer is held back until complete, up to this: an engine that dies in it costs no client a cut body."""


class FailureKind(enum.StrEnum):
    """Why an attempt gave no answer."""

    ABANDONED = "abandoned"
    TIMEOUT = "timeout"
    UNREACHABLE = "unreachable"
    LOST = "lost"
    """The connection broke, and the engine is gone."""
    CUT = "cut"
    """The engine closed the connection before its answer was complete, and lives."""
    STATUS = "status"
    """It answered with a 5xx, or began its stream with an error."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed attempt."""

    kind: FailureKind

    @property
    def cause(self) -> Cause:
        """What it says about the version."""
        match self.kind:
            case FailureKind.TIMEOUT:
                return Cause.TIMEOUT
            case FailureKind.UNREACHABLE | FailureKind.LOST:
                return Cause.ENDPOINT_LOST
            case _:
                return Cause.VERSION


@dataclass(slots=True, init=False)
class Call:
    """One request on its way, over all its attempts."""

    unit: Unit
    target: bytes
    """Path and query."""
    headers: list[Header]
    """The client's."""
    passed_on: bytes
    """Those of them that go on to the engine, as they are written (`forwarding.passed_on`)."""
    body: bytes
    prompt: bytes
    """The body as the client sent it."""
    nonce: bytes
    own_id: bytes | None
    deadline: float
    """Monotonic seconds."""
    own_lines: bytes
    """Further headers of the answer, as they are written."""
    show_version: bool
    key: str
    """The id of the key that asks."""
    demand: Demand
    metered: bool
    """The gateway asks for the stream's usage, which its client did not."""
    leash: Leash
    tried: set[str]
    first_attempt: bool
    policy: PolicyInForce | None
    """The guardrails of the revision that is asked, where prompt or answer has to wait for them."""
    fields: Mapping[str, Any] | None
    """The body, parsed, where the guardrails need it."""
    prompt_language: Language | None
    """The language that the user wrote in, once the prompt was checked."""
    copied: bool
    """It is a copy of its unit's request, so its attempts are no part of that one's way."""

    def __init__(  # written out, since it may come compiled (docs/adr/0008), as what a dataclass makes never does
        self,
        unit: Unit,
        target: bytes,
        headers: list[Header],
        passed_on: bytes,
        body: bytes,
        prompt: bytes,
        nonce: bytes,
        own_id: bytes | None,
        deadline: float,
        own_lines: bytes,
        show_version: bool,
        key: str,
        demand: Demand,
        metered: bool = False,
        leash: Leash | None = None,
        tried: set[str] | None = None,
        first_attempt: bool = True,
        policy: PolicyInForce | None = None,
        fields: Mapping[str, Any] | None = None,
        prompt_language: Language | None = None,
        copied: bool = False,
    ) -> None:
        self.unit = unit
        self.target = target
        self.headers = headers
        self.passed_on = passed_on
        self.body = body
        self.prompt = prompt
        self.nonce = nonce
        self.own_id = own_id
        self.deadline = deadline
        self.own_lines = own_lines
        self.show_version = show_version
        self.key = key
        self.demand = demand
        self.metered = metered
        self.leash = leash if leash is not None else Leash()
        self.tried = tried if tried is not None else set()
        self.first_attempt = first_attempt
        self.policy = policy
        self.fields = fields
        self.prompt_language = prompt_language
        self.copied = copied

    @property
    def trail(self) -> Trail | None:
        """Where its attempts are written down."""
        return None if self.copied else self.unit.trail

    def fingerprint(self) -> bytes:
        """Of the prompt, for remembering which ones kill engines."""
        return fingerprint(self.prompt)


def fingerprint(body: bytes) -> bytes:
    """A short name of a body."""
    return hashlib.blake2b(body, digest_size=16).digest()


@dataclass(slots=True)
class Opened:
    """An answer that has begun; nothing of it was released yet."""

    revision: RevisionTraffic
    endpoint: Endpoint
    connection: Connection
    transcript: Transcript
    first: bytes
    """What came so far: a JSON answer as a whole, of others the first piece."""
    whole: bool
    is_json: bool
    """Whether the engine says so."""
    length: int | None
    """Of the body, where the engine stated it."""
    sent_at: float = 0.0
    """When the request was sent, in monotonic seconds."""

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.connection.status


class Sent:
    """A request that is on its way to an endpoint; its answer is still to come."""

    __slots__ = ("at", "connection", "endpoint")

    def __init__(self, endpoint: Endpoint, connection: Connection, at: float) -> None:
        self.endpoint = endpoint
        self.connection = connection
        self.at = at
        """Monotonic seconds."""


class Attempts:
    """Makes attempts, and keeps the book of what is under way where."""

    def __init__(
        self,
        book: EndpointBook,
        client: UpstreamClient,
        recorder: Recorder,
        deaths: PromptDeaths,
        suspect: Callable[[str], None],
        picking: Picking,
    ) -> None:
        self._book = book
        self._client = client
        self._recorder = recorder
        self._deaths = deaths
        self._suspect = suspect
        self._picking = picking
        self._chance = random.Random()  # noqa: S311 - which endpoints are looked at is no secret

    def untried(self, revision: RevisionTraffic, call: Call) -> bool:
        """Whether the revision has an endpoint that takes requests and was not tried for this call."""
        now = time.monotonic()
        found = pick(self._book.of(revision.application), now, call.tried)
        return found is not None

    def start(self, call: Call, revision: RevisionTraffic, on_ready: Callable[[], object]) -> Sent | None:
        """Send to one endpoint of a revision at once, where an idle connection is there; None when there is none.

        `on_ready` is called once, in the read that brings the answer's head or the news that it won't come. From then
        on it is `concluded` or goes on with `open`; whoever wants to do so earlier takes the connection's `on_ready`.
        """
        now = time.monotonic()
        endpoint = pick(self._book.of(revision.application), now, call.tried, call.demand, self._picking, self._chance)
        if endpoint is None:
            return None
        head = self._head(call, endpoint)
        connection = self._client.start(endpoint.key, head, call.body, call.deadline, call.leash, on_ready)
        if connection is None:
            return None
        self._dispatched(call, revision, endpoint, now)
        return Sent(endpoint, connection, now)

    def concluded(self, call: Call, revision: RevisionTraffic, sent: Sent) -> Transcript:
        """The end of an attempt that `start` made and a good plain answer ended: `open` and `close` in one."""
        endpoint, connection = sent.endpoint, sent.connection
        plain, body = connection.plain, connection.take_whole()
        assert plain is not None
        assert body is not None
        connected(endpoint)
        progressed(endpoint, call.demand, 0)
        succeeded(endpoint)
        finished(endpoint, call.demand)
        first, last = connection.first_body_at, connection.last_body_at
        transcript = Transcript(False, plain.compressed, [body], len(body), b"", body, 1, first, last)
        self._client.release(connection, call.leash)
        self._recorder.over(revision)
        return transcript

    def _dispatched(self, call: Call, revision: RevisionTraffic, endpoint: Endpoint, now: float) -> None:
        call.tried.add(endpoint.address.url)
        if dispatched(endpoint, now, call.demand) and call.first_attempt:
            self._recorder.warming_up(call.unit)
        self._recorder.begun(revision)
        if call.trail is not None:
            call.trail.dispatched(endpoint.url, endpoint.host, endpoint.port, revision.version, now)

    async def open(self, call: Call, revision: RevisionTraffic, sent: Sent | None = None) -> Opened | Failure:
        """Try one endpoint of a revision, or go on with what `start` sent. Never raises but for being cancelled."""
        if sent is None:
            now = time.monotonic()
            peers = self._book.of(revision.application)
            endpoint = pick(peers, now, call.tried, call.demand, self._picking, self._chance)
            if endpoint is None:
                return Failure(FailureKind.UNREACHABLE)
            self._dispatched(call, revision, endpoint, now)
        else:
            endpoint, now = sent.endpoint, sent.at
        try:
            result = await self._answered(call, revision, endpoint, sent)
        except BaseException:
            finished(endpoint, call.demand)
            self._recorder.over(revision)
            raise
        if isinstance(result, Failure):
            finished(endpoint, call.demand)
            self._recorder.over(revision)
            return result
        result.sent_at = now
        progressed(endpoint, call.demand, 0)
        return result

    async def _answered(
        self, call: Call, revision: RevisionTraffic, endpoint: Endpoint, sent: Sent | None
    ) -> Opened | Failure:
        try:
            return await self._exchange(call, revision, endpoint, sent)
        except Abandoned:
            return _failed(call, endpoint, FailureKind.ABANDONED)
        except UpstreamTimeout:
            return _failed(call, endpoint, FailureKind.TIMEOUT)
        except ConnectFailed:
            connect_failed(endpoint, time.monotonic())
            self._suspect(endpoint.url)
            return _failed(call, endpoint, FailureKind.UNREACHABLE)
        except ConnectionLost:
            pass  # no waiting in here: see docs/adr/0008
        return _failed(call, endpoint, await self.post_mortem(call, endpoint))

    def _head(self, call: Call, endpoint: Endpoint) -> bytes:
        """The head of the request to an endpoint."""
        target = endpoint.prefix.encode() + call.target if endpoint.prefix else call.target
        trail = call.unit.trail
        if trail is None or not trail.traced:
            lines = call.passed_on
        else:
            trace = b"" if call.copied else trail.lines(endpoint.url)
            lines = passed_on(call.headers, traced=True) + trace
        if call.own_id is not None:
            lines += b"x-client-request-id: %b\r\n" % call.own_id
        return engine_head(target, endpoint.authority, lines, len(call.body), hexlify(call.nonce))

    async def _exchange(self, call: Call, revision: RevisionTraffic, endpoint: Endpoint, sent: Sent | None) -> Opened:
        begun = sent.connection if sent is not None else None
        connection = await self._client.send(
            endpoint.key, self._head(call, endpoint), call.body, call.deadline, call.leash, begun
        )
        connected(endpoint)
        fields = dict(connection.headers)
        kind = fields.get(b"content-type", b"")
        encoding = fields.get(b"content-encoding", b"identity")
        length = fields.get(b"content-length")
        transcript = Transcript(kind.startswith(b"text/event-stream"), encoding != b"identity")
        opened = Opened(
            revision, endpoint, connection, transcript, b"", whole=False, is_json=b"json" in kind,
            length=int(length) if length is not None else None,
        )  # fmt: skip
        whole = connection.take_whole()
        if whole is not None:
            opened.first, opened.whole = whole, opened.is_json
            return opened
        try:
            opened.first = await connection.read()
            if opened.is_json:
                await self._hold(opened)
        except BaseException:
            self._client.release(connection, call.leash)
            raise
        return opened

    async def _hold(self, opened: Opened) -> None:
        data = opened.first
        parts, size = [data], len(data)
        while data and size < HELD_BYTES:
            data = await opened.connection.read()
            parts.append(data)
            size += len(data)
        opened.first = b"".join(parts)
        opened.whole = not data

    def close(self, call: Call, opened: Opened) -> None:
        """Leave an answer: read to its end it gives back its connection, otherwise that is closed at once."""
        self._judge(call, opened)
        self._client.release(opened.connection, call.leash)
        finished(opened.endpoint, call.demand)
        self._recorder.over(opened.revision)

    def _judge(self, call: Call, opened: Opened) -> None:
        """Note how an answer went: well, badly, or neither when it was left or cut before its end."""
        endpoint, connection, now = opened.endpoint, opened.connection, time.monotonic()
        peers = self._book.of(endpoint.application)
        if opened.status >= 500:
            failed(endpoint, peers, now, self._picking)
        elif connection.complete:
            succeeded(endpoint)
        if opened.transcript.event_stream and connection.first_body_at:
            progressed(endpoint, call.demand, connection.bodies)
            first_token_came(endpoint, connection.first_body_at - opened.sent_at, peers, now)

    async def post_mortem(self, call: Call, endpoint: Endpoint) -> FailureKind:
        """Tell why a connection broke: the engine has gone, or it lives and cut its answer short.

        Only the first may be the machine's fault, so only the second is evidence against the version; and only the
        first is a death that a prompt can be blamed for.
        """
        await asyncio.sleep(GONE_AFTER_S)  # a process that ends closes its connections before its listening socket
        try:
            # A task of its own: requests run without one (see `running`), and a time-out needs it.
            await asyncio.create_task(_knock(endpoint))
        except (OSError, TimeoutError):
            self._deaths.record(call.fingerprint(), endpoint.url, time.monotonic())
            connect_failed(endpoint, time.monotonic())
            self._suspect(endpoint.url)
            return FailureKind.LOST
        failed(endpoint, self._book.of(endpoint.application), time.monotonic(), self._picking)
        return FailureKind.CUT


async def _knock(endpoint: Endpoint) -> None:
    """Connect and go: whoever takes the connection is alive."""
    async with asyncio.timeout(PROBE_S):
        _, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
    writer.close()


def _failed(call: Call, endpoint: Endpoint, kind: FailureKind) -> Failure:
    if call.trail is not None:
        call.trail.failed(endpoint.url, kind.value, time.monotonic())
    return Failure(kind)


def failure_in(opened: Opened, operation: Operation) -> Failure | None:
    """Whether what has begun is no answer: a 5xx, or a stream that starts with an error that is not a 4xx."""
    if opened.status >= 500:
        return Failure(FailureKind.STATUS)
    if opened.transcript.event_stream and is_error_event(opened.first):
        code = read_stream(operation, opened.first).error_code
        if code is None or not (code.startswith("4") or code == "BadRequestError"):
            return Failure(FailureKind.STATUS)
    return None
