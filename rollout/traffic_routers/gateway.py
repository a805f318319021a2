"""Our own gateways, which dial the controller. Tables go down, acknowledgements and outcomes come up.

The hub knows nothing of sockets: a connection is a function that sends text. What gateways report goes to a sink
(the controller), in the order in which it arrived.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from rollout.traffic_routers.base import RouterView
from serving.outcomes import (
    FROM_GATEWAY,
    Accepted,
    Ack,
    Events,
    FromController,
    Heartbeat,
    Hello,
    TablePush,
    Totals,
    UsageReport,
)
from serving.traffic import Generation, TrafficTable

log = logging.getLogger(__name__)

SETTLE_S = 0.5
"""In-flight counts are believed this long after the acknowledgement: gateways report them ten times a second, and a
count from before the table would miss a request that was admitted in between."""


class Sink(Protocol):
    """Where reports go."""

    def on_events(self, gateway: str, boot: str, message: Events) -> int:
        """Book events; returns the highest sequence that is safely in the log."""
        ...

    def on_totals(self, gateway: str, boot: str, message: Totals) -> None:
        """Book cumulative counters."""
        ...


@dataclass(slots=True)
class Connection:
    """One gateway process, while it is connected. Times are of the hub's monotonic clock."""

    hello: Hello
    send: Callable[[str], Awaitable[None]]
    connected_at: float
    applied: Generation
    applied_at: float
    totals: Totals | None = None
    totals_at: float = 0.0


class GatewayRouter:
    """Holds the connections of all gateways; a `TrafficRouter`."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._connections: dict[str, Connection] = {}
        self._table: TrafficTable | None = None
        self.sink: Sink | None = None
        self.on_change: Callable[[], None] = lambda: None

    @property
    def connections(self) -> tuple[Connection, ...]:
        """Every connected gateway."""
        return tuple(self._connections.values())

    async def set(self, table: TrafficTable) -> None:
        """Send a table to every gateway; one whose connection fails gets it when it dials again."""
        self._table = table
        await self._broadcast(TablePush(table=table))

    async def heartbeat(self, fence: int) -> None:
        """Renew the lease of the canary's weight at every gateway."""
        await self._broadcast(Heartbeat(fence=fence))

    async def attach(self, hello: Hello, send: Callable[[str], Awaitable[None]]) -> Connection:
        """Welcome a gateway and give it the newest table. A second connection of one name replaces the first."""
        now = self._monotonic()
        had = Generation(hello.fence, hello.sequence)
        connection = Connection(hello=hello, send=send, connected_at=now, applied=had, applied_at=now)
        if self._table is not None and had > self._table.generation:
            log.error(
                "gateway %s follows table %s, newer than ours %s, and refuses ours: the event log was replaced by an "
                "older one; restore it, or remove the gateway's table.json and restart it",
                hello.gateway,
                tuple(had),
                tuple(self._table.generation),
            )
        self._connections[hello.gateway] = connection
        if self._table is not None:
            await self._send(connection, TablePush(table=self._table))
        self.on_change()
        return connection

    def detach(self, connection: Connection) -> None:
        """Forget a connection that has ended."""
        if self._connections.get(connection.hello.gateway) is connection:
            del self._connections[connection.hello.gateway]
            self.on_change()

    async def receive(self, connection: Connection, text: str | bytes) -> None:
        """Take one message of a gateway.

        Raises:
            ValueError: it is not one of the messages of serving/outcomes.py.

        """
        message = FROM_GATEWAY.validate_json(text)
        hello = connection.hello
        match message:
            case Ack():
                connection.applied = Generation(message.fence, message.sequence)
                connection.applied_at = self._monotonic()
                self.on_change()
            case Events():
                if self.sink is not None:
                    through = self.sink.on_events(hello.gateway, hello.boot, message)
                    await self._send(connection, Accepted(through=through))
            case Totals():
                connection.totals, connection.totals_at = message, self._monotonic()
                if self.sink is not None:
                    self.sink.on_totals(hello.gateway, hello.boot, message)
            case UsageReport():
                pass  # accounting comes with keys
            case Hello():
                log.warning("gateway %s said hello twice on one connection", hello.gateway)

    def view(self) -> RouterView:
        """How far all gateways have followed, and what they say of endpoints and streams."""
        connections = self.connections
        now = self._monotonic()
        newest = self._table.generation if self._table is not None else None
        applied = bool(connections) and newest is not None and all(c.applied == newest for c in connections)
        known = applied and all(c.totals is not None and now - c.applied_at >= SETTLE_S for c in connections)
        return RouterView(
            gateways=len(connections),
            applied=applied,
            ready_endpoints=_fewest_ready(connections),
            in_flight=_in_flight(connections) if known else None,
        )

    async def _broadcast(self, message: FromController) -> None:
        for connection in self.connections:
            await self._send(connection, message)

    async def _send(self, connection: Connection, message: FromController) -> None:
        try:
            await connection.send(message.model_dump_json())
        except Exception as error:  # the socket layer's own errors; whatever it is, this gateway must dial again
            log.warning("gateway %s can't be reached: %s", connection.hello.gateway, type(error).__name__)
            self.detach(connection)


def _fewest_ready(connections: tuple[Connection, ...]) -> dict[str, int]:
    told = [c.totals.endpoints_ready if c.totals is not None else {} for c in connections]
    names = {name for t in told for name in t}
    return {name: min(t.get(name, 0) for t in told) for name in names}


def _in_flight(connections: tuple[Connection, ...]) -> dict[str, int]:
    summed: dict[str, int] = {}
    for connection in connections:
        for digest, count in (connection.totals.in_flight if connection.totals is not None else {}).items():
            summed[digest] = summed.get(digest, 0) + count
    return summed
