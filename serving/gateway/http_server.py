"""An HTTP/1.1 server on asyncio.Protocol for one application: the gateway's own, since every token passes here.

A connection answers one request at a time. What a client sends ahead (pipelining) is kept, up to one read, and
the socket is not read further until the answer is out. A client that closes its side while its answer is outstanding
has gone, also when it closed only its sending half: HTTP clients don't do that, and an engine should not go on
generating for nobody (nginx decides the same).

One timer looks at all connections: heads and bodies that don't come, idle connections, clients that read nothing.
docs/adr/0005 tells why there is neither ASGI nor uvicorn here.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import socket
import ssl
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, Final, cast

from serving.gateway.exchange import Application, Exchange
from serving.gateway.http_parsing import (
    MAX_HEAD_BYTES,
    ChunkedBody,
    Head,
    Header,
    MalformedRequest,
    Notes,
    StartLine,
    check_beginning,
    parse_head,
)
from serving.gateway.running import Running
from serving.openai_protocol import Reply

logger = logging.getLogger("tidegate.gateway")

TICK_S: Final = 0.25
HIGH_WATER_BYTES: Final = 64 * 1024
"""Above so much unsent of an answer its engine is no longer read."""
DISCARD_TIMES: Final = 4
DISCARD_LEAST_BYTES: Final = 256 * 1024
"""Of a body that is not wanted so many times the limit, or so many bytes, are read and thrown away before closing."""
FRESH_WHILE_DRAINING_S: Final = 1.0
"""How long a connection that has just been made may still send its first request while the server stops."""

_STATUS_LINES: Final = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in HTTPStatus}
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_NO_HEAD: Final = Head(StartLine("", b"", "", 1), [], {}, 0, keep_alive=False, awaits_continue=False, notes=Notes())


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What one client may take of the server. Times in seconds, sizes in bytes."""

    body_bytes: int
    connections: int = 10_000
    head_within_s: float = 10.0
    body_within_s: float = 60.0
    idle_s: float = 75.0
    write_within_s: float = 60.0
    """A client that has taken nothing of its answer for so long is cut off."""
    discard_within_s: float = 1.0


class _Phase(enum.Enum):
    FRESH = enum.auto()
    """Connected, nothing sent."""
    IDLE = enum.auto()
    HEAD = enum.auto()
    BODY = enum.auto()
    ANSWERING = enum.auto()
    DISCARDING = enum.auto()
    """Answered; the rest of its body is read and thrown away."""
    CLOSING = enum.auto()


# Names of this module are looked up faster than members of an enum, and faster still once compiled.
_FRESH: Final = _Phase.FRESH
_IDLE: Final = _Phase.IDLE
_HEAD: Final = _Phase.HEAD
_BODY: Final = _Phase.BODY
_ANSWERING: Final = _Phase.ANSWERING
_DISCARDING: Final = _Phase.DISCARDING
_CLOSING: Final = _Phase.CLOSING
_BEFORE_A_HEAD: Final = (_IDLE, _FRESH, _HEAD)


class ServerConnection:
    """One client's connection, an asyncio.Protocol in all but its base. Made by `HttpServer` only."""

    __slots__ = ("_buffer", "_chunked", "_exchange", "_head_only", "_keep_alive", "_left", "_parts",
                 "_reading_paused", "_running", "_server", "_transport", "_unsent", "_unsent_since", "minor", "phase",
                 "since", "writing_paused")  # fmt: skip

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._exchange: Exchange | None = None
        self._running: Running | None = None
        self._parts: list[bytes] = []
        self._left = 0
        """Of the body, or of what is thrown away, in bytes."""
        self._chunked: ChunkedBody | None = None
        self._keep_alive = True
        self._reading_paused = False
        self.writing_paused = False
        self._unsent = 0
        self._unsent_since = 0.0
        self.minor = 1
        self.phase = _FRESH
        self.since = time.monotonic()
        """When the phase began."""

    # What the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        if not self._server.admit(self):
            reply = self._server.application.refuse(503, "Too many connections are open here; try again in 1 s.")
            self._refuse(reply)

    def data_received(self, data: bytes) -> None:
        """Bytes of a request."""
        phase = self.phase
        if phase is _IDLE or phase is _FRESH or phase is _HEAD:
            self._buffer = self._buffer + data if self._buffer else data
            self._advance()
        elif phase is _BODY:
            self._body(data)
        elif phase is _ANSWERING:
            self._buffer += data
            self._pause_reading()
        elif phase is _DISCARDING:
            self._discard(data)

    def eof_received(self) -> bool:
        """The client has closed its side: it is gone. What is written already is still sent."""
        self._leave()
        self._begin_phase(_CLOSING)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self.phase = _CLOSING
        self._server.forget(self)
        self._leave()

    def pause_writing(self) -> None:
        """The client reads too slowly."""
        self.writing_paused = True
        self._unsent_since = time.monotonic()
        if self._transport is not None:
            self._unsent = self._transport.get_write_buffer_size()
        if self._exchange is not None and self._exchange.on_pause is not None:
            self._exchange.on_pause()

    def resume_writing(self) -> None:
        """It has caught up."""
        self.writing_paused = False
        if self._exchange is not None and self._exchange.on_resume is not None:
            self._exchange.on_resume()
        if self.phase is _IDLE:
            self._idle()
        elif self.phase is _CLOSING:
            self.since = time.monotonic()

    # Reading

    def _advance(self) -> None:
        """Take the next request out of the buffer, if its head is there."""
        data = self._buffer
        if data[:2] == b"\r\n":  # empty lines before a request are allowed (RFC 9112, 2.2)
            data = self._buffer = data.lstrip(b"\r\n")
        if not data or self.phase not in _BEFORE_A_HEAD:
            return
        if self.writing_paused:  # earlier answers are not taken: further ones would only be heaped up behind them
            self._pause_reading()
            return
        if self.phase is not _HEAD:
            self._begin_phase(_HEAD)
        end = data.find(b"\r\n\r\n")
        try:
            if end < 0:
                check_beginning(data)
                return
            if end > MAX_HEAD_BYTES:
                check_beginning(data[: end + 2])
            head = parse_head(data[:end])
        except MalformedRequest as e:
            self._refuse(self._server.application.refuse(e.status, str(e)))
            return
        self._begin(head, data[end + 4 :])

    def _begin(self, head: Head, rest: bytes) -> None:
        """The head of a request is there; `rest` is what came behind it."""
        self._buffer = b""
        self.minor = head.start.minor
        exchange = self._exchange = Exchange(self, head, self.since)
        limit = self._server.limits.body_bytes
        length = head.length
        self._chunked = ChunkedBody() if length is None else None
        reply = self._server.application.begin(exchange)
        if reply is None and length is not None and length > limit:
            message = f"The request body is {length} bytes; the limit is {limit} bytes. Send a shorter one."
            reply = self._server.application.refuse(413, message, exchange)
            exchange.keep_alive = False
        if reply is not None:
            if head.awaits_continue:
                exchange.keep_alive = False  # whether the body will come is the client's choice
            self._left = self._server.discarded_bytes if length is None or length > limit else length
            self.phase = _ANSWERING
            if length == 0:
                self._buffer = rest
            else:
                self._parts = [rest]
            exchange.respond(reply.status, list(reply.headers), reply.body)
            return
        if length == len(rest):  # nearly always
            exchange.body = rest
            self._serve(exchange)
            return
        if length is not None and length < len(rest):
            exchange.body = rest[:length]
            self._buffer = rest[length:]
            self._serve(exchange)
            return
        self.phase = _BODY
        self._parts = []
        self._left = length if length is not None else limit
        if head.awaits_continue and not rest:
            self.write(_CONTINUE)
        if rest:
            self._body(rest)

    def _body(self, data: bytes) -> None:
        """More of a body that is wanted."""
        exchange = self._exchange
        assert exchange is not None
        if self._chunked is not None:
            try:
                behind = self._chunked.feed(data, self._parts)
            except MalformedRequest as e:
                self._end_early(e.status, str(e))
                return
            if self._chunked.size_bytes > self._left:
                message = f"The request body is longer; the limit is {self._left} bytes. Send a shorter one."
                self._end_early(413, message)
                return
            if behind is None:
                return
            self._buffer = behind
        else:
            if len(data) < self._left:
                self._parts.append(data)
                self._left -= len(data)
                return
            self._parts.append(data[: self._left])
            self._buffer = data[self._left :]
        exchange.body = b"".join(self._parts)
        self._parts = []
        self._serve(exchange)

    def _end_early(self, status: int, message: str) -> None:
        exchange = self._exchange
        assert exchange is not None
        self._parts = []
        self._left = self._server.discarded_bytes
        self.phase = _ANSWERING
        self._chunked = None
        exchange.keep_alive = False
        reply = self._server.application.refuse(status, message, exchange)
        exchange.respond(reply.status, list(reply.headers), reply.body)

    def _serve(self, exchange: Exchange) -> None:
        self.phase = _ANSWERING
        self._left = 0
        self._chunked = None
        application = self._server.application
        try:
            answering = application.serve(exchange)
        except Exception:
            logger.exception("answering a request failed; the client gets a 500")
            if not exchange.begun:
                reply = application.refuse(500, "The gateway failed to serve this request; try again.")
                exchange.respond(reply.status, list(reply.headers), reply.body)
            return
        if answering is not None:
            self.run(exchange, answering)

    def run(self, exchange: Exchange, answering: Coroutine[Any, Any, None]) -> None:
        """Run what answers the request in hand."""
        running = self._running = Running(self._server.loop, self._answer(exchange, answering))
        exchange.cancel = running.cancel
        running.step()

    async def _answer(self, exchange: Exchange, answering: Coroutine[Any, Any, None]) -> None:
        application = self._server.application
        try:
            await answering
        except asyncio.CancelledError:
            exchange.cut()
        except Exception:
            logger.exception("answering a request failed; the client gets a 500 or a broken answer")
            if exchange.begun:
                exchange.cut()
            else:
                reply = application.refuse(500, "The gateway failed to serve this request; try again.")
                exchange.respond(reply.status, list(reply.headers), reply.body)
        else:
            exchange.cut()  # nothing to do when it was answered, as it always is

    def _discard(self, data: bytes) -> None:
        """More of a body that nobody wants."""
        if self._chunked is not None:
            ignored: list[bytes] = []
            try:
                behind = self._chunked.feed(data, ignored)
            except MalformedRequest:
                self._close()
                return
            self._left -= len(data)
            if behind is not None:
                self._discarded(behind)
                return
        else:
            if len(data) >= self._left:
                self._discarded(data[self._left :])
                return
            self._left -= len(data)
        if self._left <= 0:
            self._close()

    def _begin_phase(self, phase: _Phase) -> None:
        self.phase = phase
        self.since = time.monotonic()

    def _linger(self) -> None:
        self._begin_phase(_DISCARDING)
        self._left = self._left or DISCARD_LEAST_BYTES
        self._buffer = b""
        transport = self._transport
        if transport is not None:
            if self._reading_paused:
                self._reading_paused = False
                transport.resume_reading()
            if not self._keep_alive and transport.can_write_eof() and not transport.is_closing():
                transport.write_eof()

    def _discarded(self, behind: bytes) -> None:
        self._chunked = None
        self._left = 0
        if not self._keep_alive:
            self._close()
            return
        self._buffer = behind
        self._idle()

    def _idle(self) -> None:
        self._begin_phase(_IDLE)
        if self._reading_paused:
            self._reading_paused = False
            if self._transport is not None:
                self._transport.resume_reading()
        if self._buffer:
            self._server.loop.call_soon(self._advance)

    def _pause_reading(self) -> None:
        if not self._reading_paused and self._transport is not None:
            self._reading_paused = True
            self._transport.pause_reading()

    # Writing

    def head(self, status: int, headers: list[Header], framing: bytes, exchange: Exchange) -> bytes:
        """The head of an answer.

        Raises:
            ValueError: a header holds a line break.
        """
        lines = [_STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status, self._server.date]
        for name, value in headers:
            lines += (name, b": ", value, b"\r\n")
        if not exchange.keep_alive or self._server.draining:
            exchange.keep_alive = False
            lines.append(b"connection: close\r\n")
        elif self.minor == 0:
            lines.append(b"connection: keep-alive\r\n")
        lines += (framing, b"\r\n")
        head = b"".join(lines)
        closing = exchange.keep_alive is False or self.minor == 0
        if head.count(b"\n") != len(headers) + 3 + closing + (framing != b""):
            raise ValueError("a header of the answer holds a line break")
        return head

    def head_of_lines(self, status: int, lines: bytes, framing: bytes, exchange: Exchange) -> bytes:
        """The same of headers that are written out and checked already."""
        closing = b""
        if not exchange.keep_alive or self._server.draining:
            exchange.keep_alive = False
            closing = b"connection: close\r\n"
        elif self.minor == 0:
            closing = b"connection: keep-alive\r\n"
        first = _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status
        return b"%b%b%b%b%b\r\n" % (first, self._server.date, lines, closing, framing)

    def write(self, data: bytes) -> None:
        """Send bytes."""
        transport = self._transport
        if transport is not None and not transport.is_closing():
            transport.write(data)

    def answered(self, keep_alive: bool) -> None:
        """The answer to the request in hand is written."""
        self._exchange = None
        self._running = None
        self._keep_alive = keep_alive and not self._server.draining
        if self.phase is not _ANSWERING:
            return
        if self._left or self._chunked is not None:  # its body has not been read
            self._linger()
            data = b"".join(self._parts)
            self._parts = []
            self._discard(data)
            return
        if self._keep_alive:
            self._idle()
        else:
            self._close_unread()

    def cut(self, *, orderly: bool) -> None:
        """End an answer before its end. `orderly` when its framing lets the client see that; else by a reset."""
        self._exchange = None
        if self._transport is not None:
            if orderly:
                self._close()
            else:
                self._transport.abort()

    def _refuse(self, reply: Reply) -> None:
        """Answer what is no request, and close once the client has had a moment to read that."""
        exchange = Exchange(self, _NO_HEAD, self.since)
        exchange.keep_alive = False
        self._exchange = exchange
        self._buffer = b""
        self._parts = []
        self._chunked = None
        self._left = DISCARD_LEAST_BYTES
        self.phase = _ANSWERING
        exchange.respond(reply.status, list(reply.headers), reply.body)

    def _close_unread(self) -> None:
        self._keep_alive = False
        if self._buffer or self._reading_paused:  # closing on bytes that nobody read would reset the answer away
            self._linger()
        else:
            self._close()

    def _close(self) -> None:
        self._begin_phase(_CLOSING)
        self._buffer = b""
        if self._transport is not None:
            self._transport.close()

    def _leave(self) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.leave()

    # What the server calls

    def look(self, now: float, limits: ServerLimits) -> None:
        """Act on what takes too long."""
        phase, age = self.phase, now - self.since
        if self.writing_paused and self._transport is not None:
            unsent = self._transport.get_write_buffer_size()
            if unsent < self._unsent:
                self._unsent, self._unsent_since = unsent, now
            elif now - self._unsent_since > limits.write_within_s:
                self._transport.abort()
                return
        if phase is _IDLE:
            if self._server.draining or (age > limits.idle_s and not self.writing_paused):
                self._close_unread()
        elif phase is _FRESH:
            if age > (FRESH_WHILE_DRAINING_S if self._server.draining else limits.head_within_s):
                self._close()
        elif phase is _HEAD:
            if age > limits.head_within_s:
                message = f"The request's headers were not complete within {limits.head_within_s:g} s; send it again."
                self._refuse(self._server.application.refuse(408, message))
        elif phase is _BODY:
            if age > limits.body_within_s:
                message = f"The request body was not complete within {limits.body_within_s:g} s; send it again."
                self._end_early(408, message)
        elif phase is _DISCARDING:
            if age > limits.discard_within_s:
                self._close()
        elif phase is _CLOSING and age > limits.write_within_s and not self.writing_paused:
            self.stop()

    def stop(self) -> None:
        """Cut it off."""
        if self._exchange is not None:
            self._exchange.cancel()
        if self._transport is not None:
            self._transport.abort()


class HttpServer:
    """Serves one application on one listening socket. Made inside a running event loop."""

    def __init__(self, application: Application, limits: ServerLimits) -> None:
        self.application = application
        self.limits = limits
        self.discarded_bytes = max(DISCARD_TIMES * limits.body_bytes, DISCARD_LEAST_BYTES)
        self.loop = asyncio.get_running_loop()
        self.draining = False
        self.served = 0
        """Connections that were accepted since the start."""
        self.date = _date()
        """The header line, renewed every second."""
        self._connections: set[ServerConnection] = set()
        self._server: asyncio.Server | None = None
        self._empty = asyncio.Event()
        self._empty.set()
        self._ticker: asyncio.TimerHandle | None = None

    async def start(self, listener: socket.socket, context: ssl.SSLContext | None = None) -> None:
        """Accept connections on a bound socket, with TLS when a context is given."""
        handshake_s = self.limits.head_within_s if context is not None else None
        self._server = await self.loop.create_server(
            lambda: cast(asyncio.Protocol, ServerConnection(self)),
            sock=listener, backlog=2048, ssl=context, ssl_handshake_timeout=handshake_s,
        )  # fmt: skip
        self._tick()

    @property
    def open_connections(self) -> int:
        """Connections that are open now."""
        return len(self._connections)

    def admit(self, connection: ServerConnection) -> bool:
        """The server's own: take a connection in; False above the limit."""
        self._connections.add(connection)
        self.served += 1
        self._empty.clear()
        return len(self._connections) <= self.limits.connections

    def forget(self, connection: ServerConnection) -> None:
        """The server's own: a connection is gone."""
        self._connections.discard(connection)
        if not self._connections:
            self._empty.set()

    def _tick(self) -> None:
        self.date = _date()
        self._look()
        self._ticker = self.loop.call_later(TICK_S, self._tick)

    def _look(self) -> None:
        now = time.monotonic()
        for connection in list(self._connections):
            try:
                connection.look(now, self.limits)
            except Exception:  # one connection must not end the watch over all others
                logger.exception("looking at a connection failed; it is cut off")
                connection.stop()

    async def drain(self, within_s: float) -> None:
        """Stop: accept nobody, close idle connections, let answers end within `within_s`, cut the rest off."""
        self.draining = True
        if self._server is not None:
            self._server.close()
        self._look()
        try:
            async with asyncio.timeout(within_s):
                await self._empty.wait()
        except TimeoutError:
            logger.warning("%d connections were cut off after the drain window", len(self._connections))
        for connection in list(self._connections):
            connection.stop()
        await asyncio.sleep(0)
        if self._ticker is not None:
            self._ticker.cancel()


def _date() -> bytes:
    return b"date: " + formatdate(usegmt=True).encode() + b"\r\n"
