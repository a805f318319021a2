"""A pooled keep-alive HTTP/1.1 client on asyncio.Protocol, with httptools' parser. Every token passes here.

One connection carries one exchange at a time. What arrives is handed on in the moment it is read, or kept as
references until it is taken; above 64 KiB not taken the socket is no longer read. A slow client pauses its engine.

Failures are `serving.errors`: ConnectFailed (nothing was sent), ConnectionLost, UpstreamTimeout; and Abandoned, when
the client went away. An engine is told of that the way HTTP/1.1 can: its connection is closed at once.

A plain answer that comes whole in the first read (`answer_heads`) does not pass through the parser, and whoever sent
with `start` hears of it in that very read, without a future or a task.

A reused connection may be closed by the engine in the moment it is taken. Only then (no byte of an answer, within
a second) the request is sent once more, silently, on a fresh connection.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Final, cast

from serving.errors import ConnectFailed, ConnectionLost, UpstreamTimeout
from serving.gateway.connection import Abandoned, Connection, EndpointKey, Leash

STALE_WITHIN_S: Final = 1.0
MAX_IDLE_PER_ENDPOINT: Final = 256
TICK_S: Final = 0.25
"""How often time-outs are looked at: one timer for all connections instead of one for each chunk."""


class UpstreamClient:
    """Connections to all endpoints: at most one exchange on each, idle ones kept for a few seconds."""

    def __init__(self, *, connect_timeout_s: float, idle_timeout_s: float, keepalive_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._connect_timeout_s = connect_timeout_s
        self._idle_timeout_s = idle_timeout_s
        self._keepalive_s = keepalive_s
        self._idle: dict[EndpointKey, list[Connection]] = defaultdict(list)
        self._all: set[Connection] = set()
        self._ticker = self._loop.call_later(TICK_S, self._tick)

    def start(
        self, key: EndpointKey, head: bytes, body: bytes, deadline: float, leash: Leash, on_ready: Callable[[], object]
    ) -> Connection | None:
        """Send a request at once, if there is an idle connection; None, and nothing is sent, when there is none.

        `on_ready` is called once, when the head of the answer is there or won't come: then `plain` says whether the
        whole answer is there, or `send` goes on with the connection as `begun`. Whoever wants to go on earlier takes
        `on_ready` away first.
        """
        if leash.pulled:
            return None
        connection = self._take_idle(key)
        if connection is None:
            return None
        leash.connection = connection
        connection.begin(head, body, deadline)
        connection.on_ready = on_ready
        return connection

    async def send(
        self,
        key: EndpointKey,
        head: bytes,
        body: bytes,
        deadline: float,
        leash: Leash,
        begun: Connection | None = None,
    ) -> Connection:
        """Send a request and wait for the head of its answer.

        Args:
            key: Host and port.
            head: Request line and headers, with the empty line.
            body: The body.
            deadline: Monotonic seconds by which the whole answer must be there.
            leash: Where the client's going away is told.
            begun: The connection on which `start` has sent this already.

        Returns:
            The connection, its `status` and `headers` set; give it back with `release`.

        Raises:
            ConnectFailed, ConnectionLost, UpstreamTimeout, Abandoned: there is no answer.
        """
        if leash.pulled and begun is None:
            raise Abandoned("the client went away")
        reused = begun or self._take_idle(key)
        if reused is not None:
            lost: ConnectionLost | None = None
            try:
                if begun is None:
                    leash.connection = reused
                    reused.begin(head, body, deadline)
                return await self._head(reused, leash)
            except ConnectionLost as e:
                if reused.started or time.monotonic() - reused.begun_at > STALE_WITHIN_S:
                    raise
                lost = e
            try:
                fresh = await self._loop.create_task(self._connect(key, deadline, leash))
            except ConnectFailed:
                raise lost from None  # it took the request and is gone: a death, not a refusal
            return await self._exchange(fresh, head, body, deadline, leash)
        made = await self._loop.create_task(self._connect(key, deadline, leash))
        return await self._exchange(made, head, body, deadline, leash)

    async def _exchange(
        self, connection: Connection, head: bytes, body: bytes, deadline: float, leash: Leash
    ) -> Connection:
        leash.connection = connection
        connection.begin(head, body, deadline)
        return await self._head(connection, leash)

    @staticmethod
    async def _head(connection: Connection, leash: Leash) -> Connection:
        try:
            await connection.head()
        except BaseException:
            leash.connection = None
            connection.close()
            connection.end()
            raise
        return connection

    def _take_idle(self, key: EndpointKey) -> Connection | None:
        idle = self._idle.get(key)
        while idle:
            connection = idle.pop()
            if not connection.closed:
                return connection
        return None

    async def _connect(self, key: EndpointKey, deadline: float, leash: Leash) -> Connection:
        left = deadline - time.monotonic()
        if left <= 0:
            raise UpstreamTimeout("the request's time limit was over before it could be sent")
        connection = Connection(self._loop, key, self._forget)
        try:
            async with asyncio.timeout(min(self._connect_timeout_s, left)):
                await self._loop.create_connection(lambda: cast(asyncio.Protocol, connection), key[0], key[1])
        except TimeoutError:
            raise ConnectFailed(
                f"no connection to {key[0]}:{key[1]} within {min(self._connect_timeout_s, left):g} s"
            ) from None
        except OSError as e:
            raise ConnectFailed(f"no connection to {key[0]}:{key[1]} ({e.strerror or type(e).__name__})") from None
        if not connection.closed:
            self._all.add(connection)
        if leash.pulled:
            connection.close()
            raise Abandoned("the client went away")
        return connection

    def release(self, connection: Connection, leash: Leash) -> None:
        """Give a connection back: kept when its answer was read to the end, closed otherwise."""
        leash.connection = None
        if connection.end():
            idle = self._idle[connection.key]
            if len(idle) < MAX_IDLE_PER_ENDPOINT:
                connection.idle_since = time.monotonic()
                idle.append(connection)
            else:
                connection.close()

    def forget_endpoints(self, keep: frozenset[EndpointKey]) -> None:
        """Close idle connections to endpoints that are no more."""
        for key in self._idle.keys() - keep:
            for connection in self._idle.pop(key):
                connection.close()

    def _forget(self, connection: Connection) -> None:
        self._all.discard(connection)

    def _tick(self) -> None:
        now = time.monotonic()
        for connection in list(self._all):
            if connection.busy and not connection.complete and now > connection.deadline:
                connection.out_of_time()
                continue
            silent = connection.silent_since
            if silent is not None and now - silent > self._idle_timeout_s:
                limit = self._idle_timeout_s
                connection.fail(UpstreamTimeout(f"the engine was silent for {limit:g} s inside its answer"))
        for key, idle in list(self._idle.items()):
            kept = [c for c in idle if not c.closed and now - c.idle_since < self._keepalive_s]
            for connection in idle:
                if connection not in kept:
                    connection.close()
            if kept:
                self._idle[key] = kept
            else:
                del self._idle[key]
        self._ticker = self._loop.call_later(TICK_S, self._tick)

    def close(self) -> None:
        """Close everything; exchanges under way fail."""
        self._ticker.cancel()
        for connection in list(self._all):
            connection.fail(ConnectionLost("the gateway is stopping"))

    @property
    def open_connections(self) -> int:
        """Connections that are open now, idle ones included."""
        return len(self._all)
