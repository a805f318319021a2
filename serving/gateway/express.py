"""The short way of a request whose turn has come: sent on an idle connection, answered from within one read.

Nearly every request that isn't a stream goes this way: an endpoint has an idle connection, and its answer is plain
(`answer_heads`), JSON and good. Then nothing needs to wait in between: the read of the answer ends the attempt, writes
to the client and books the outcome, without a coroutine, a future or a turn of the loop. Anything else (no idle
connection, an error, a stream, an answer in several reads, a client that goes away, a server that stops) goes the
pipeline's general way, which takes over where this one stands. What is done for a request is the same on both.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, Protocol

from serving.gateway.attempts import Attempts, Call, Sent
from serving.gateway.exchange import Exchange, nothing_to_cancel


class GeneralWay(Protocol):
    """What the pipeline does with a call that was sent."""

    def finish_plain(self, call: Call, exchange: Exchange, sent: Sent) -> None:
        """Give the client a good plain answer, and book it."""
        ...

    def go_on(self, call: Call, exchange: Exchange, sent: Sent) -> Coroutine[Any, Any, None]:
        """Wait for the answer, or see what came instead, and do all that follows."""
        ...

    def give_up(self, call: Call, error: Exception) -> Coroutine[Any, Any, None]:
        """Book that the gateway itself failed, and raise why."""
        ...


class Express:
    """One call on the short way. `set_off` begins; then it is a callback's turn, once."""

    __slots__ = ("_call", "_exchange", "_general", "_sent")

    def __init__(self, general: GeneralWay, call: Call, exchange: Exchange) -> None:
        self._general = general
        self._call = call
        self._exchange = exchange
        self._sent: Sent | None = None

    def set_off(self, attempts: Attempts) -> bool:
        """Send the request; False, and nothing was done, when it can't be sent at once."""
        call = self._call
        sent = self._sent = attempts.start(call, call.unit.revision, self._ready)
        if sent is None:
            return False
        self._exchange.cancel = self._cancel
        return True

    def _ready(self) -> None:
        """The head of the answer is there, or won't come."""
        call, exchange, sent = self._call, self._exchange, self._sent
        assert sent is not None
        exchange.cancel = nothing_to_cancel  # it leads here and this leads to it: a circle that only a collection ends
        plain = sent.connection.plain
        if plain is None or plain.status >= 400 or not plain.is_json:
            exchange.run(self._general.go_on(call, exchange, sent))
            return
        try:
            self._general.finish_plain(call, exchange, sent)
        except Exception as e:  # nobody stands above a callback, so the error goes where those of coroutines go
            exchange.run(self._general.give_up(call, e))

    def _cancel(self) -> None:
        """The server stops: go on as a coroutine, which can be cancelled."""
        call, exchange, sent = self._call, self._exchange, self._sent
        assert sent is not None
        if sent.connection.on_ready is None:  # it was this object's turn already
            return
        sent.connection.on_ready = None
        exchange.run(self._general.go_on(call, exchange, sent))
        exchange.cancel()
