"""Our own gateways, which dial the controller. Tables and keys go down, acknowledgements and outcomes come up.

The hub knows nothing of sockets: a connection is a function that sends text, and one that closes. What gateways report
goes to a sink (the controller), in the order in which it arrived.

A gateway that reads slowly holds up nobody: what could not be sent within `SEND_S` goes on in a task of its own, and of
what waits behind it only the newest table, keys and heartbeat are kept.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, assert_never

from rollout.traffic_routers.base import RouterView
from serving.keys import KeyRecord, Quota
from serving.outcomes import (
    FROM_GATEWAY,
    Accepted,
    Ack,
    Events,
    FromController,
    Heartbeat,
    Hello,
    KeysPush,
    TablePush,
    Totals,
    UsageAccepted,
    UsageReport,
)
from serving.traffic import Generation, TrafficTable

log = logging.getLogger(__name__)

SETTLE_S = 0.5
"""In-flight counts are believed this long after the acknowledgement: gateways report them ten times a second, and a
count from before the table would miss a request that was admitted in between."""

SEND_S = 0.05
"""How long a broadcast waits for the slowest gateway."""

STUCK_S = 10.0
"""A gateway that takes nothing for this long is cut off: it dials again, or it is gone."""

MAX_WAITING = 100
"""Messages that wait for one slow gateway."""


class Sink(Protocol):
    """Where reports go."""

    def on_events(self, gateway: str, boot: str, message: Events, done: Callable[[int | None], None]) -> None:
        """Take events to be booked. Then `done` is told the highest sequence that is safely in the log.

        None means that these are not: they are not acknowledged, and must come again before any later ones.
        """
        ...

    def on_totals(self, gateway: str, boot: str, message: Totals) -> None:
        """Book cumulative counters."""
        ...

    def on_usage(self, report: UsageReport, accepted: Callable[[], Awaitable[None]]) -> None:
        """Take a report of usage to be booked; `accepted` is called once it is. May drop it: it comes again."""
        ...


@dataclass(slots=True)
class Connection:
    """One gateway process, while it is connected. Times are of the hub's monotonic clock."""

    hello: Hello
    send: Callable[[str], Awaitable[None]]
    close: Callable[[], Awaitable[None]] | None
    connected_at: float
    applied: Generation
    applied_at: float
    totals: Totals | None = None
    owed_from: int | None = None
    """The first event that could not be booked. Until it has come again, later ones are refused, or it were lost, and
    so are counters, which may say that it has settled."""
    waiting: dict[str, str] = field(default_factory=dict)
    """Messages to be sent, by what they replace."""
    sending: asyncio.Task[None] | None = None
    sending_since: float = 0.0


class GatewayRouter:
    """Holds the connections of all gateways; a `TrafficRouter`."""

    def __init__(
        self,
        monotonic: Callable[[], float],
        expected: Callable[[], Collection[str] | None] | None = None,
    ) -> None:
        """Start without a connection.

        Args:
            monotonic: seconds.
            expected: names the gateways that get clients' requests now, whether or not they have dialled; None while
                that can't be told. Left out: there are no others than those that dial.
        """
        self._monotonic = monotonic
        self._expected = expected
        self._connections: dict[str, Connection] = {}
        self._table: TrafficTable | None = None
        self._table_text = ""
        self._keys_text = ""
        self._in_flight: dict[str, int] = {}
        self._ready: dict[str, int] | None = None
        """The fewest usable endpoints by application; None when it must be counted again."""
        self.sink: Sink | None = None
        self.on_change: Callable[[], None] = lambda: None

    @property
    def connections(self) -> tuple[Connection, ...]:
        """Every connected gateway."""
        return tuple(self._connections.values())

    # -- down -----------------------------------------------------------------------------------------------------

    async def set(self, table: TrafficTable) -> None:
        """Send a table to every gateway; one whose connection fails gets it when it dials again."""
        self._table = table
        self._table_text = TablePush(table=table).model_dump_json()
        await self._broadcast("table", self._table_text)

    async def set_keys(self, records: Sequence[KeyRecord], quotas: Sequence[Quota] = ()) -> None:
        """Send all keys that may be used to every gateway, now and when one dials; what is not listed is no key.

        The quotas of namespaces go with them: what is not listed has none.
        """
        self._keys_text = KeysPush(keys=tuple(records), quotas=tuple(quotas)).model_dump_json()
        await self._broadcast("keys", self._keys_text)

    async def heartbeat(self, fence: int) -> None:
        """Renew the lease of the canary's weight at every gateway, and cut off those that take nothing."""
        now = self._monotonic()
        for connection in self.connections:
            if connection.sending is not None and now - connection.sending_since > STUCK_S:
                log.warning("gateway %s took nothing for %.0f s and is cut off", connection.hello.gateway, STUCK_S)
                connection.sending.cancel()
                await self._drop(connection)
        await self._broadcast("heartbeat", Heartbeat(fence=fence).model_dump_json())

    async def ask_again(self) -> None:
        """Have every gateway dial again: it then sends all events that were not acknowledged, and all counters."""
        for connection in self.connections:
            if connection.close is not None:
                await self._drop(connection)

    async def _drop(self, connection: Connection) -> None:
        self.detach(connection)
        if connection.close is not None:
            try:
                await asyncio.wait_for(connection.close(), SEND_S)
            except Exception as error:  # the socket layer's own errors; it is gone either way
                log.debug("closing gateway %s: %s", connection.hello.gateway, type(error).__name__)

    async def _broadcast(self, replaces: str, text: str) -> None:
        tasks = [self._post(connection, replaces, text) for connection in self.connections]
        if tasks:
            await asyncio.wait(tasks, timeout=SEND_S)

    async def _send(self, connection: Connection, replaces: str, message: FromController) -> None:
        await asyncio.wait([self._post(connection, replaces, message.model_dump_json())], timeout=SEND_S)

    def _post(self, connection: Connection, replaces: str, text: str) -> asyncio.Task[None]:
        if replaces in connection.waiting or len(connection.waiting) < MAX_WAITING:
            connection.waiting[replaces] = text
        if connection.sending is None or connection.sending.done():
            connection.sending_since = self._monotonic()
            connection.sending = asyncio.get_running_loop().create_task(self._flush(connection))
        return connection.sending

    async def _flush(self, connection: Connection) -> None:
        try:
            while connection.waiting:
                text = connection.waiting.pop(next(iter(connection.waiting)))
                await connection.send(text)
                connection.sending_since = self._monotonic()
        except Exception as error:  # the socket layer's own errors; whatever it is, this gateway must dial again
            log.warning("gateway %s can't be reached: %s", connection.hello.gateway, type(error).__name__)
            self.detach(connection)
        finally:
            connection.sending = None

    # -- up -------------------------------------------------------------------------------------------------------

    async def attach(
        self,
        hello: Hello,
        send: Callable[[str], Awaitable[None]],
        close: Callable[[], Awaitable[None]] | None = None,
    ) -> Connection:
        """Welcome a gateway and give it keys and table. A second connection of one name replaces the first."""
        now = self._monotonic()
        had = Generation(hello.fence, hello.sequence)
        connection = Connection(
            hello=hello, send=send, close=close, connected_at=now, applied=had, applied_at=now
        )  # fmt: skip
        if self._table is not None and had > self._table.generation:
            log.error(
                "gateway %s follows table %s, newer than ours %s, and refuses ours: the event log was replaced by an "
                "older one; restore it, or remove the gateway's table.json and restart it",
                hello.gateway,
                tuple(had),
                tuple(self._table.generation),
            )
        if (replaced := self._connections.get(hello.gateway)) is not None:
            self.detach(replaced)
        self._connections[hello.gateway] = connection
        self._ready = None
        first = [("keys", self._keys_text), ("table", self._table_text)]
        tasks = [self._post(connection, replaces, text) for replaces, text in first if text]
        if tasks:
            await asyncio.wait(tasks, timeout=SEND_S)
        self.on_change()
        return connection

    def detach(self, connection: Connection) -> None:
        """Forget a connection that has ended."""
        if self._connections.get(connection.hello.gateway) is connection:
            del self._connections[connection.hello.gateway]
            self._count(connection, None)
            connection.waiting.clear()
            self.on_change()

    async def receive(self, connection: Connection, text: str | bytes) -> None:
        """Take one message of a gateway.

        Raises:
            ValueError: it is not one of the messages of serving/outcomes.py.

        """
        message = FROM_GATEWAY.validate_json(text, extra="ignore")  # a newer gateway may say more
        match message:
            case Ack():
                connection.applied = Generation(message.fence, message.sequence)
                connection.applied_at = self._monotonic()
                self.on_change()
            case Events():
                self._events(connection, message)
            case Totals():
                if self._connections.get(connection.hello.gateway) is connection:
                    self._count(connection, message)
                if self.sink is not None and connection.owed_from is None:
                    self.sink.on_totals(connection.hello.gateway, connection.hello.boot, message)
            case UsageReport():
                self._usage(connection, message)
            case Hello():
                log.warning("gateway %s said hello twice on one connection", connection.hello.gateway)
            case _:
                assert_never(message)

    def _events(self, connection: Connection, message: Events) -> None:
        if self.sink is None or not message.events:
            return
        first = message.events[0].sequence
        if connection.owed_from is not None and first > connection.owed_from:
            return  # were these accepted, the gateway would forget the ones before them

        def done(through: int | None) -> None:
            if through is None:
                connection.owed_from = min(first, connection.owed_from or first)
            else:
                self._post(connection, "accepted", Accepted(through=through).model_dump_json())

        connection.owed_from = None
        self.sink.on_events(connection.hello.gateway, connection.hello.boot, message, done)

    def _usage(self, connection: Connection, report: UsageReport) -> None:
        async def accepted() -> None:
            message = UsageAccepted(number=report.number)
            await self._send(connection, f"usage-accepted {report.number}", message)

        if self.sink is not None:
            self.sink.on_usage(report, accepted)

    # -- what is known --------------------------------------------------------------------------------------------

    def _count(self, connection: Connection, totals: Totals | None) -> None:
        """Put a gateway's newest report in the place of its last one; None takes it out."""
        before = connection.totals
        for report, sign in ((before, -1), (totals, 1)):
            for digest, count in (report.in_flight if report is not None else {}).items():
                summed = self._in_flight.get(digest, 0) + sign * count
                if summed:
                    self._in_flight[digest] = summed
                else:
                    self._in_flight.pop(digest, None)
        if before is None or totals is None or before.endpoints_ready != totals.endpoints_ready:
            self._ready = None
            self.on_change()
        connection.totals = totals

    def view(self) -> RouterView:
        """How far all gateways have followed, and what they say of endpoints and streams."""
        connections = self._connections.values()
        now = self._monotonic()
        newest = self._table.generation if self._table is not None else None
        applied = bool(connections) and newest is not None and all(c.applied == newest for c in connections)
        applied = applied and self._all_dialled()
        known = applied and all(c.totals is not None and now - c.applied_at >= SETTLE_S for c in connections)
        if self._ready is None:
            self._ready = _fewest_ready(connections)
        return RouterView(
            gateways=len(connections),
            applied=applied,
            ready_endpoints=self._ready,
            in_flight=dict(self._in_flight) if known else None,
        )

    def _all_dialled(self) -> bool:
        """Whether every gateway that gets requests is connected: one that is not may follow a table of long ago."""
        if self._expected is None:
            return True
        expected = self._expected()
        return expected is not None and all(name in self._connections for name in expected)


def _fewest_ready(connections: Iterable[Connection]) -> dict[str, int]:
    told = [c.totals.endpoints_ready if c.totals is not None else {} for c in connections]
    names = {name for t in told for name in t}
    return {name: min(t.get(name, 0) for t in told) for name in names}
