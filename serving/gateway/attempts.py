"""One attempt at one endpoint: choose it, send, and wait until there is something to release or a failure."""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from serving.endpoints import Endpoint, EndpointBook, connect_failed, connected, dispatched, finished, pick
from serving.errors import ConnectFailed, ConnectionLost, UpstreamTimeout
from serving.gateway.forwarding import Header, engine_head, header
from serving.gateway.recorder import Recorder, Unit
from serving.gateway.transcript import Transcript
from serving.gateway.upstream import Abandoned, Connection, Leash, UpstreamClient
from serving.limits import PromptDeaths
from serving.openai_protocol import Operation
from serving.outcomes import Cause
from serving.streaming import is_error_event, read_stream
from serving.traffic import RevisionTraffic

GONE_AFTER_S = 0.02
PROBE_S = 0.5
"""How long a connection to an engine whose answer broke off may take before it counts as gone."""

HELD_BYTES = 256 * 1024
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


@dataclass(slots=True)
class Call:
    """One request on its way, over all its attempts."""

    unit: Unit
    target: bytes
    """Path and query."""
    headers: list[Header]
    body: bytes
    nonce: bytes
    own_id: bytes | None
    deadline: float
    """Monotonic seconds."""
    prompt: Callable[[], bytes]
    """Its fingerprint, made only when it is needed."""
    leash: Leash = field(default_factory=Leash)
    tried: set[str] = field(default_factory=set)
    first_attempt: bool = True


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

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.connection.status

    @property
    def is_json(self) -> bool:
        """Whether the engine says that it is JSON."""
        return b"json" in (header(self.connection.headers, b"content-type") or b"")


class Attempts:
    """Makes attempts, and keeps the book of what is under way where."""

    def __init__(
        self,
        book: EndpointBook,
        client: UpstreamClient,
        recorder: Recorder,
        deaths: PromptDeaths,
        suspect: Callable[[str], None],
    ) -> None:
        self._book = book
        self._client = client
        self._recorder = recorder
        self._deaths = deaths
        self._suspect = suspect

    def untried(self, revision: RevisionTraffic, call: Call) -> bool:
        """Whether the revision has an endpoint that takes requests and was not tried for this call."""
        now = time.monotonic()
        found = pick(self._book.of(revision.application), now, call.tried)
        return found is not None

    async def open(self, call: Call, revision: RevisionTraffic) -> Opened | Failure:
        """Try one endpoint of a revision. Never raises but for being cancelled."""
        now = time.monotonic()
        endpoint = pick(self._book.of(revision.application), now, call.tried)
        if endpoint is None:
            return Failure(FailureKind.UNREACHABLE)
        call.tried.add(endpoint.url)
        if dispatched(endpoint, now) and call.first_attempt:
            self._recorder.warming_up(call.unit)
        self._recorder.begun(revision)
        opened: Opened | None = None
        try:
            opened = await self._exchange(call, revision, endpoint)
        except Abandoned:
            return Failure(FailureKind.ABANDONED)
        except UpstreamTimeout:
            return Failure(FailureKind.TIMEOUT)
        except ConnectFailed:
            connect_failed(endpoint, time.monotonic())
            self._suspect(endpoint.url)
            return Failure(FailureKind.UNREACHABLE)
        except ConnectionLost:
            return Failure(await self.post_mortem(call, endpoint))
        finally:
            if opened is None:
                finished(endpoint)
                self._recorder.over(revision)
        return opened

    async def _exchange(self, call: Call, revision: RevisionTraffic, endpoint: Endpoint) -> Opened:
        key = (endpoint.host, endpoint.port)
        target = endpoint.prefix.encode() + call.target if endpoint.prefix else call.target
        host = f"{endpoint.host}:{endpoint.port}".encode()
        request_id = call.nonce.hex().encode()
        head = engine_head(target, host, call.headers, len(call.body), request_id, call.own_id)
        connection = await self._client.send(key, head, call.body, call.deadline, call.leash)
        connected(endpoint)
        kind = header(connection.headers, b"content-type") or b""
        encoding = header(connection.headers, b"content-encoding")
        transcript = Transcript(kind.startswith(b"text/event-stream"), encoding not in (None, b"identity"))
        opened = Opened(revision, endpoint, connection, transcript, b"", whole=False)
        try:
            opened.first = await connection.read()
            if b"json" in kind:
                await self._hold(opened)
        except BaseException:
            self._client.release(connection, call.leash)
            raise
        return opened

    async def _hold(self, opened: Opened) -> None:
        data = opened.first
        if opened.connection.drained:
            opened.whole = True
            return
        parts, size = [data], len(data)
        while data and size < HELD_BYTES:
            data = await opened.connection.read()
            parts.append(data)
            size += len(data)
        opened.first = b"".join(parts)
        opened.whole = not data

    def close(self, call: Call, opened: Opened) -> None:
        """Leave an answer: read to its end it gives back its connection, otherwise that is closed at once."""
        self._client.release(opened.connection, call.leash)
        finished(opened.endpoint)
        self._recorder.over(opened.revision)

    async def post_mortem(self, call: Call, endpoint: Endpoint) -> FailureKind:
        """Tell why a connection broke: the engine has gone, or it lives and cut its answer short.

        Only the first may be the machine's fault, so only the second is evidence against the version; and only the
        first is a death that a prompt can be blamed for.
        """
        await asyncio.sleep(GONE_AFTER_S)  # a process that ends closes its connections before its listening socket
        try:
            async with asyncio.timeout(PROBE_S):
                _, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
        except (OSError, TimeoutError):
            self._deaths.record(call.prompt(), endpoint.url, time.monotonic())
            self._suspect(endpoint.url)
            return FailureKind.LOST
        writer.close()
        return FailureKind.CUT


def failure_in(opened: Opened, operation: Operation) -> Failure | None:
    """Whether what has begun is no answer: a 5xx, or a stream that starts with an error that is not a 4xx."""
    if opened.status >= 500:
        return Failure(FailureKind.STATUS)
    if opened.transcript.event_stream and is_error_event(opened.first):
        code = read_stream(operation, opened.first).error_code
        if code is None or not (code.startswith("4") or code == "BadRequestError"):
            return Failure(FailureKind.STATUS)
    return None
