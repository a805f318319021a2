"""One HTTP request and its answer, as an application of the gateway's server sees them."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, Protocol

from serving.gateway.http_parsing import Head, Header
from serving.openai_protocol import Reply

if TYPE_CHECKING:
    from serving.gateway.http_server import ServerConnection

JOIN_BELOW_BYTES: Final = 32 * 1024
"""A shorter body is written together with its head: one call of the kernel instead of two."""

_BODILESS = (204, 304)


def nothing_to_cancel() -> None:
    """There is nothing to cancel."""


class Application(Protocol):
    """What the server serves."""

    def begin(self, exchange: Exchange) -> Reply | None:
        """The head is there. A reply ends the exchange at once, its body unread; None lets `serve` have it."""
        ...

    def serve(self, exchange: Exchange) -> Coroutine[Any, Any, None] | None:
        """The body is there too: answer it. What is returned is run, and cancelled when the server stops.

        None when it is answered, or will be from a callback: `exchange.cancel` must then say how to give it up.
        """
        ...

    def refuse(self, status: int, message: str, exchange: Exchange | None = None) -> Reply:
        """The answer to what is no proper request (400, 408, 413, 414, 417, 431, 501, 503, 505) or failed (500).

        `exchange` is the request, where its head could be read.
        """
        ...


class Exchange:
    """One request and its answer, as the application sees them."""

    __slots__ = ("_chunked", "_connection", "_head", "_left", "_server", "arrived", "begun", "body", "caller", "cancel",
                 "fields", "headers", "keep_alive", "method", "notes", "on_gone", "on_pause", "on_resume", "operation",
                 "path", "target")  # fmt: skip

    def __init__(self, connection: ServerConnection, head: Head, arrived: float) -> None:
        self._connection: ServerConnection | None = connection
        self._server = connection
        start = head.start
        self.method, self.target, self.path = start.method, start.target, start.path
        self.headers = head.headers
        self.fields = head.fields
        self.notes = head.notes
        self.keep_alive = head.keep_alive
        self.arrived = arrived
        """Monotonic seconds."""
        self.body = b""
        self.begun = False
        """Whether a part of an answer is out."""
        self.on_gone: Callable[[], object] | None = None
        """Called once when the client goes away before its answer is out."""
        self.on_pause: Callable[[], object] | None = None
        """Called when the client reads too slowly: write no more than what is under way, until `on_resume`."""
        self.on_resume: Callable[[], object] | None = None
        self.cancel: Callable[[], object] = nothing_to_cancel
        """Cancels the coroutine that answers."""
        self.caller: Any = None
        """The application's: who asks."""
        self.operation: Any = None
        """The application's: what is asked."""
        self._head = b""
        self._chunked = False
        self._left: int | None = None

    @property
    def gone(self) -> bool:
        """Whether the exchange is over: answered, or its client went away."""
        return self._connection is None

    @property
    def writing_paused(self) -> bool:
        """Whether the client reads too slowly at the moment."""
        return self._connection is not None and self._connection.writing_paused

    def run(self, answering: Coroutine[Any, Any, None]) -> None:
        """Go on with a coroutine: for whoever returned None from `serve` and can't answer from a callback after all."""
        self._server.run(self, answering)

    def respond_lines(self, status: int, lines: bytes, body: bytes) -> None:
        """The same as `respond`, of headers that are written out already, each with its CR LF, and nothing else."""
        connection = self._connection
        if connection is None:
            return
        head = connection.head_of_lines(status, lines, len(body), self)
        if len(body) < JOIN_BELOW_BYTES:
            connection.write(head + body)
        else:
            connection.write(head)
            connection.write(body)
        self._end(connection)

    def respond(self, status: int, headers: list[Header], body: bytes) -> None:
        """Answer as a whole. `headers` without any framing: content-length and connection are the server's."""
        connection = self._connection
        if connection is None:
            return
        framing = b"" if status in _BODILESS else b"content-length: %d\r\n" % len(body)
        head = connection.head(status, headers, framing, self)
        if self.method == "HEAD" or status in _BODILESS:
            connection.write(head)
        elif len(body) < JOIN_BELOW_BYTES:
            connection.write(head + body)
        else:
            connection.write(head)
            connection.write(body)
        self._end(connection)

    def begin(self, status: int, headers: list[Header], length: int | None = None) -> None:
        """Begin an answer that comes in pieces; its head goes out with the first of them.

        Args:
            status: The status.
            headers: Without any framing.
            length: Of the body, when it is known: then exactly so many bytes must be written.
        """
        connection = self._connection
        if connection is None:
            return
        self._left = length
        if length is not None:
            framing = b"content-length: %d\r\n" % length
        elif connection.minor == 1:
            framing = b"transfer-encoding: chunked\r\n"
            self._chunked = True
        else:
            framing = b""
            self.keep_alive = False
        self._head = connection.head(status, headers, framing, self)

    def write(self, data: bytes) -> None:
        """Send a piece of the body."""
        connection = self._connection
        if connection is None:
            return
        if self._chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        elif self._left is not None:
            self._left -= len(data)
        if self._head:
            data = self._head + data
            self._head = b""
            self.begun = True
        connection.write(data)

    def write_framed(self, data: bytes, framed: bytes) -> None:
        """Send a piece of the body that came in chunks; in those, where this answer goes in chunks too."""
        connection = self._connection
        if connection is not None and self._chunked and not self._head:
            connection.write(framed)
        else:
            self.write(data)

    def finish(self) -> None:
        """The body is complete."""
        connection = self._connection
        if connection is None:
            return
        ending = self._head + b"0\r\n\r\n" if self._chunked else self._head
        if ending:
            connection.write(ending)
        if self._left:  # fewer bytes than promised: the client must not take the next answer for the rest of this one
            self.keep_alive = False
        self._end(connection)

    def cut(self) -> None:
        """Break off: the client sees that its answer is not complete."""
        connection = self._connection
        if connection is not None:
            self._connection = None
            connection.cut(orderly=self._chunked or self._left is not None)

    def leave(self) -> None:
        """The server's: the client went away."""
        if self._connection is not None:
            self._connection = None
            if self.on_gone is not None:
                self.on_gone()

    def _end(self, connection: ServerConnection) -> None:
        self._connection = None
        connection.answered(self.keep_alive)
