"""One connection to one engine, on the socket's own callbacks, with httptools' parser (`upstream` keeps the pool).

It carries one exchange at a time. What arrives is handed on in the moment it is read, or kept as references until it is
taken; above 64 KiB not taken the socket is no longer read.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, cast

import httptools

from serving.errors import ConnectionLost, ServingError, UpstreamTimeout
from serving.gateway.answer_heads import AnswerHead, plain_head

if TYPE_CHECKING:
    from mypy_extensions import i64  # an int like any other, which compiled code keeps in a register

HIGH_WATER_BYTES: Final = 64 * 1024
EXACT_BELOW_S: Final = 10.0
"""A shorter deadline gets a timer of its own."""

JOIN_BELOW_BYTES: Final = 32 * 1024

_MOST_SIZE_DIGITS: Final = 8
"""Of a chunk's size: larger chunks than 4 GiB are left to the parser."""

Header = tuple[bytes, bytes]
EndpointKey = tuple[str, int]


class Abandoned(ServingError):
    """The client went away, so its request was given up."""


class Leash:
    """Ties an exchange to its client: `pull()` gives it up at any moment, also while it still connects."""

    __slots__ = ("connection", "pulled")

    def __init__(self) -> None:
        self.connection: Connection | None = None
        self.pulled = False

    def pull(self) -> None:
        """The client is gone: close the connection to the engine at once."""
        self.pulled = True
        if self.connection is not None:
            self.connection.fail(Abandoned("the client went away"))


class Connection:
    """One connection to one engine, an asyncio.Protocol in all but its base. Made by `UpstreamClient` only."""

    __slots__ = (
        "_between_chunks",
        "_chunk_ended",
        "_chunks",
        "_closed",
        "_deadline",
        "_error",
        "_framed",
        "_framed_sink",
        "_keep_alive",
        "_last_chunk",
        "_loop",
        "_on_closed",
        "_parser",
        "_paused",
        "_sink",
        "_transport",
        "_waiter",
        "begun_at",
        "bodies",
        "busy",
        "complete",
        "deadline",
        "first_body_at",
        "headers",
        "idle_since",
        "key",
        "last_activity",
        "last_body_at",
        "on_body",
        "on_ready",
        "plain",
        "started",
        "status",
    )

    def __init__(
        self, loop: asyncio.AbstractEventLoop, key: EndpointKey, on_closed: Callable[[Connection], None]
    ) -> None:
        self._loop = loop
        self.key = key
        self._on_closed = on_closed
        self._chunks: list[bytes] = []
        self.on_body = self._chunks.append  # httptools calls it for each piece of a body, with nothing in between
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._closed = False
        self._paused = False
        self.idle_since = 0.0
        self.last_activity = 0.0
        self.busy = False
        self.deadline = 0.0
        self.begun_at = 0.0
        self._reset()

    def _reset(self) -> None:
        self._chunks.clear()
        self._last_chunk = 0
        self._error: ServingError | None = None
        self._framed = False
        self._keep_alive = False
        self._sink: Callable[[bytes], object] | None = None
        self._framed_sink: Callable[[bytes, bytes], object] | None = None
        self._between_chunks = False
        self._chunk_ended = False
        self.started = False
        self.on_ready: Callable[[], object] | None = None
        """Called once, instead of waking a waiter, when the head of the answer is there or won't come."""
        self.plain: AnswerHead | None = None
        """The head of a plain answer, which is then complete."""
        self.status = 0
        self.headers: list[Header] = []
        self.complete = False
        self.bodies = 0
        self.first_body_at = 0.0
        self.last_body_at = 0.0

    # What the client does with it

    def begin(self, head: bytes, body: bytes, deadline: float) -> None:
        """Send a request. `deadline` is in monotonic seconds."""
        self._reset()
        assert self._transport is not None
        if self._closed:
            raise ConnectionLost("the engine closed the connection before the request was sent")
        self.busy = True
        now = self.begun_at = self.last_activity = time.monotonic()
        self.deadline = deadline
        if deadline - now < EXACT_BELOW_S:
            self._deadline = self._loop.call_later(deadline - now, self.out_of_time)
        if len(body) < JOIN_BELOW_BYTES:
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            self._transport.write(body)

    async def head(self) -> None:
        """Wait for the head of the answer: then `status` and `headers` are there.

        Raises:
            ConnectionLost, UpstreamTimeout, Abandoned: it won't come.
        """
        while not self.status:
            if self._error is not None:
                raise self._error
            await self._wait()

    async def read(self) -> bytes:
        """The next piece of the body, b"" after the last.

        Raises:
            ConnectionLost, UpstreamTimeout, Abandoned: the rest won't come; what had come before was returned.
        """
        while not self._chunks:
            if self._error is not None:
                raise self._error
            if self.complete:
                return b""
            await self._wait()
        data = self._take()
        if self._paused:
            self.resume()
        return data

    def take_whole(self) -> bytes | None:
        """The body, if all of it has come and nothing of it was read; else None."""
        return self._take() if self.complete and self._error is None else None

    def _take(self) -> bytes:
        chunks = self._chunks
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        return data

    async def relay(
        self, sink: Callable[[bytes], object], framed: Callable[[bytes, bytes], object] | None = None
    ) -> None:
        """Hand the rest of the body to `sink`, piece by piece in the moment it comes, until it is complete.

        It is called from within the read of the socket: no task is woken for a piece. Whoever calls this slows the
        engine down with `pause` and `resume`.

        Args:
            sink: Takes a piece.
            framed: Called instead for a piece that came in whole chunks, with the piece and those chunks as they came,
                which are framed as any HTTP/1.1 body may be: without extensions, and none of them the last.

        Raises:
            ConnectionLost, UpstreamTimeout, Abandoned: the rest won't come; what had come before was handed on.
        """
        if self._chunks:
            sink(self._take())
        self._sink, self._framed_sink = sink, framed
        while not self.complete:
            if self._error is not None:
                raise self._error
            await self._wait()

    def pause(self) -> None:
        """Read no further: whoever takes the answer is too slow."""
        if not self._paused and not self._closed and not self.complete and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self._paused:
            self._paused = False
            if self._transport is not None and not self._closed:
                self._transport.resume_reading()
            self.last_activity = time.monotonic()

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        on_ready = self.on_ready
        if on_ready is not None:
            if self.status or self._error is not None:
                self.on_ready = None
                on_ready()
            return
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def fail(self, error: ServingError) -> None:
        """End the exchange with this error, unless it is over, and close the connection at once."""
        if not self.complete and self._error is None:
            self._error = error
            if isinstance(error, Abandoned):
                self._chunks.clear()
        self.close()
        self._wake()

    def out_of_time(self) -> None:
        """The deadline has passed."""
        self.fail(UpstreamTimeout("the engine's answer was not complete within the request's time limit"))

    def end(self) -> bool:
        """Leave the exchange. Returns whether the connection can carry another one."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self.busy = False
        self._sink = self._framed_sink = None
        reusable = self.complete and not self._closed and self._error is None and self._keep_alive
        if not reusable:
            self.close()
        elif self._paused:
            self.resume()
        return reusable

    def close(self) -> None:
        """Close at once, dropping what was not sent."""
        if not self._closed:
            self._closed = True
            if self._transport is not None:
                self._transport.abort()

    @property
    def closed(self) -> bool:
        """Whether it is closed, or about to be."""
        return self._closed

    @property
    def silent_since(self) -> float | None:
        """Since when nothing came of an answer that had begun; None while it is not the engine's turn."""
        if not self.busy or self.complete or self._paused or not self.bodies:
            return None
        return self.last_activity

    # What the transport and the parser call

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The transport is connected."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Parse what came, then wake the relay once for all of it."""
        if not self.busy or self.complete:  # an answer that nobody asked for: this connection can't be trusted
            self.close()
            return
        self.last_activity = time.monotonic()
        if not self.started:
            self.started = True
            if self._read_plain(data):
                self._wake()
                return
        chunks = self._chunks
        had = len(chunks)
        if self._between_chunks:
            if self._framed_sink is not None:
                read = self._read_chunks(data)
                if read == len(data):
                    return
                if read:
                    data = data[read:]
            self._between_chunks = False
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.fail(ConnectionLost("the engine's answer is not HTTP/1.1"))
            return
        if self._chunk_ended and data[-2:] == b"\r\n":
            self._between_chunks = True
        if self.complete:
            del chunks[self._last_chunk :]  # of a second answer in the same read, which nobody asked for
        if len(chunks) > had:
            self.last_body_at = self.last_activity
            if not self.bodies:
                self.first_body_at = self.last_activity
            self.bodies += len(chunks) - had
            if self._sink is not None:
                self._sink(self._take())
                if not self.complete:
                    return
            elif not self.complete and sum(map(len, chunks)) > HIGH_WATER_BYTES:
                self.pause()
        self._wake()

    def _read_plain(self, data: bytes) -> bool:
        """Take in a plain answer, if the first read is one from its first byte to its last."""
        end = data.find(b"\r\n\r\n")
        if end < 0:
            return False
        head = plain_head(data[:end])
        if head is None or not head.length or head.length != len(data) - end - 4:
            return False
        self.plain, self.status, self.headers = head, head.status, head.headers
        self._chunks.append(data[end + 4 :])
        self._framed = self._keep_alive = self.complete = True
        self.first_body_at = self.last_body_at = self.last_activity
        self.bodies = self._last_chunk = 1
        return True

    def _read_chunks(self, data: bytes) -> int:
        """Hand on the whole chunks that a read begins with, past the parser, which stands before and after them.

        That is how engines write a stream: an event, a chunk, a write. What else a read holds, be it the last chunk,
        a part of one or an extension, is left to the parser. Bytes are compared one by one: compiled, that is a few
        machine instructions each, where a method of `bytes` is a call that makes an object.

        Returns:
            The bytes that were handed on.
        """
        at: i64 = 0
        size: i64 = len(data)
        pieces: list[bytes] = []
        while at < size:
            end: i64 = at
            length: i64 = 0
            while end < size and end - at <= _MOST_SIZE_DIGITS:
                digit: i64 = data[end]
                if 48 <= digit <= 57:  # 0 to 9
                    length = length * 16 + digit - 48
                elif 97 <= digit <= 102:  # a to f
                    length = length * 16 + digit - 87
                elif 65 <= digit <= 70:  # A to F
                    length = length * 16 + digit - 55
                else:
                    break
                end += 1
            after: i64 = end + 2 + length
            if not length or end - at > _MOST_SIZE_DIGITS or after + 2 > size:
                break
            if data[end] != 13 or data[end + 1] != 10 or data[after] != 13 or data[after + 1] != 10:  # CR LF
                break
            pieces.append(data[end + 2 : after])
            at = after + 2
        if pieces:
            self.last_body_at = self.last_activity
            self.bodies += len(pieces)
            framed = self._framed_sink
            assert framed is not None
            framed(pieces[0] if len(pieces) == 1 else b"".join(pieces), data if at == size else data[:at])
        return at

    def eof_received(self) -> None:
        """The engine has closed its side: the connection is closed and lost."""

    def pause_writing(self) -> None:
        """The engine reads slowly. Requests are whole when they are sent, so there is nothing to hold back."""

    def resume_writing(self) -> None:
        """It has caught up."""

    def connection_lost(self, exc: Exception | None) -> None:
        """The engine closed it, or we did."""
        self._closed = True
        if self.busy and not self.complete:
            if self.status and not self._framed and self._error is None:
                self.complete = True  # neither length nor chunks: the end of the connection is the end of the body
            elif self._error is None:
                self._error = ConnectionLost("the engine closed the connection before its answer was complete")
        self._wake()
        self._on_closed(self)

    def on_chunk_header(self) -> None:
        """A chunk begins."""
        self._chunk_ended = False

    def on_chunk_complete(self) -> None:
        """It has ended: if nothing else came behind it, the next read begins with a chunk."""
        self._chunk_ended = True

    def on_message_begin(self) -> None:
        """An answer begins."""
        if self.complete:
            self.close()

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header; names are compared in lower case."""
        if self.complete:  # a second answer in the same read: nobody asked for it
            return
        name = name.lower()
        if name in (b"content-length", b"transfer-encoding"):
            self._framed = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """The head is there; an informational one (1xx) is dropped."""
        if self.complete:
            return
        status: int = self._parser.get_status_code()
        if status < 200:
            self.headers = []
            self._framed = False
        else:
            self.status = status
            self._keep_alive = self._parser.should_keep_alive()  # once the answer is complete, the parser forgot

    def on_message_complete(self) -> None:
        """The answer is complete."""
        if self.status and not self.complete:
            self.complete = True
            self._last_chunk = len(self._chunks)
