"""The hub of gateways: what each gets, what is known of all, and that a slow or broken one holds up nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from rollout.traffic_routers.gateway import SEND_S, STUCK_S, Connection, GatewayRouter
from serving.accounting import UsageRow
from serving.keys import KeyRecord, Quota, hash_secret
from serving.outcomes import (
    FROM_CONTROLLER,
    Ack,
    Event,
    Events,
    FromController,
    Hello,
    KeysPush,
    Signal,
    TablePush,
    Totals,
    UsageAccepted,
    UsageReport,
)
from serving.traffic import Role, TrafficTable


class Sink:
    """Takes what the hub passes on."""

    def __init__(self) -> None:
        self.events: list[tuple[int, ...]] = []
        self.totals: list[Totals] = []
        self.usage: list[UsageReport] = []
        self.takes = True

    def on_events(self, gateway: str, boot: str, message: Events, done: Callable[[int | None], None]) -> None:
        if not self.takes:
            done(None)
            return
        self.events.append(tuple(e.sequence for e in message.events))
        done(message.events[-1].sequence)

    def on_totals(self, gateway: str, boot: str, message: Totals) -> None:
        self.totals.append(message)

    def on_usage(self, report, accepted) -> None:
        self.usage.append(report)
        asyncio.get_running_loop().create_task(accepted())


class Socket:
    """A gateway's end of a connection."""

    def __init__(self) -> None:
        self.got: list[FromController] = []
        self.open = asyncio.Event()
        self.open.set()
        self.broken = False
        self.closed = False

    async def send(self, text: str) -> None:
        await self.open.wait()
        if self.broken:
            raise ConnectionError("gone")
        self.got.append(FROM_CONTROLLER.validate_json(text))

    async def close(self) -> None:
        self.closed = True

    def types(self) -> list[str]:
        return [m.type for m in self.got]


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def hub(clock) -> GatewayRouter:
    made = GatewayRouter(clock)
    made.sink = Sink()
    return made


async def dial(hub: GatewayRouter, name: str = "g1") -> tuple[Connection, Socket]:
    socket = Socket()
    return await hub.attach(Hello(gateway=name, boot="b"), socket.send, socket.close), socket


def table(sequence: int) -> TrafficTable:
    return TrafficTable(fence=1, sequence=sequence, issued_at=0.0)


def key(number: int) -> KeyRecord:
    return KeyRecord(id=f"{number:012d}", secret_sha256=hash_secret("x"), name="app", created_at=1.0)


def events(*sequences: int) -> str:
    return Events(
        events=tuple(
            Event(
                sequence=n, model="chat", rollout="r", signal=Signal.ERROR, arm=Role.CANARY, digest="0" * 64,
                weight=10, admission=n, admitted_at=1.0, settled_at=1.0,
            )
            for n in sequences
        )
    ).model_dump_json()  # fmt: skip


def totals(ready: dict[str, int], in_flight: dict[str, int]) -> str:
    return Totals(sent_at=1.0, totals=(), endpoints_ready=ready, in_flight=in_flight).model_dump_json()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_gateway_gets_the_newest_table_and_keys_whenever_it_dials(hub):
    await hub.set(table(1))
    await hub.set_keys([key(1)])
    await hub.set(table(2))
    _, socket = await dial(hub)
    assert [m for m in socket.got if isinstance(m, TablePush)] == [TablePush(table=table(2))]
    assert [m for m in socket.got if isinstance(m, KeysPush)] == [KeysPush(keys=(key(1),))]
    quota = Quota(namespace="shop", set_at=1.0, concurrency=4)
    await hub.set_keys([], [quota])
    assert socket.got[-1] == KeysPush(keys=(), quotas=(quota,))


async def test_no_keys_are_sent_before_they_were_read(hub):
    _, socket = await dial(hub)
    assert socket.types() == []


async def test_a_gateway_that_reads_slowly_holds_up_nobody_and_gets_only_what_is_newest(hub):
    (_, slow), (_, quick) = await dial(hub, "slow"), await dial(hub, "quick")
    slow.open.clear()
    began = asyncio.get_running_loop().time()
    for n in range(1, 30):
        await hub.set(table(n))
    assert [m.table.sequence for m in quick.got] == list(range(1, 30))
    assert asyncio.get_running_loop().time() - began < 29 * SEND_S + 5.0
    slow.open.set()
    await settle()
    assert [m.table.sequence for m in slow.got] == [1, 29]


async def test_a_gateway_that_takes_nothing_for_long_is_cut_off(hub, clock):
    connection, socket = await dial(hub)
    socket.open.clear()
    await hub.set(table(1))
    clock.now += STUCK_S + 1
    await hub.heartbeat(1)
    assert socket.closed
    assert connection not in hub.connections


async def test_a_gateway_whose_socket_breaks_is_forgotten(hub):
    _, socket = await dial(hub)
    socket.broken = True
    await hub.set(table(1))
    assert hub.connections == ()


async def test_a_second_connection_of_one_gateway_replaces_the_first(hub):
    first, _ = await dial(hub)
    await hub.receive(first, totals({"a": 2}, {"d": 5}))
    second, _ = await dial(hub)
    await hub.receive(first, totals({"a": 9}, {"d": 50}))  # still under way when the second one came
    hub.detach(first)
    assert hub.connections == (second,)
    assert hub.view().gateways == 1
    assert hub._in_flight == {}


async def test_a_view_sums_streams_and_takes_the_fewest_endpoints(hub, clock):
    await hub.set(table(1))
    (a, _), (b, _) = await dial(hub, "a"), await dial(hub, "b")
    await hub.receive(a, totals({"app": 3, "other": 1}, {"d1": 2, "d2": 1}))
    await hub.receive(b, totals({"app": 2}, {"d1": 5}))
    for connection in (a, b):
        await hub.receive(connection, Ack(fence=1, sequence=1, applied_at=0).model_dump_json())
    assert hub.view().in_flight is None  # counted before the table was in force everywhere, perhaps
    clock.now += 1.0
    assert hub.view().model_dump() == {
        "gateways": 2, "applied": True, "ready_endpoints": {"app": 2, "other": 0}, "in_flight": {"d1": 7, "d2": 1},
    }  # fmt: skip
    await hub.receive(a, totals({"app": 1}, {"d1": 0}))
    assert (hub.view().ready_endpoints, hub.view().in_flight) == ({"app": 1}, {"d1": 5})
    hub.detach(b)
    assert (hub.view().ready_endpoints, hub.view().in_flight) == ({"app": 1}, {})


async def test_events_that_could_not_be_booked_are_not_accepted_and_none_behind_them_is(hub):
    connection, socket = await dial(hub)
    await hub.receive(connection, events(1, 2))
    hub.sink.takes = False
    await hub.receive(connection, events(3, 4))
    hub.sink.takes = True
    await hub.receive(connection, events(5))
    await hub.receive(connection, totals({}, {}))
    await settle()
    assert hub.sink.events == [(1, 2)]
    assert hub.sink.totals == []  # they may say that 3 and 4 have settled
    assert [m.through for m in socket.got] == [2]
    await hub.receive(connection, events(3, 4, 5))
    await hub.receive(connection, totals({}, {}))
    await settle()
    assert hub.sink.events == [(1, 2), (3, 4, 5)]
    assert len(hub.sink.totals) == 1
    assert [m.through for m in socket.got] == [2, 5]


async def test_all_are_asked_to_dial_again(hub):
    sockets = [(await dial(hub, f"g{n}"))[1] for n in range(3)]
    await hub.ask_again()
    assert hub.connections == ()
    assert all(socket.closed for socket in sockets)


async def test_usage_is_accepted_by_its_number(hub):
    connection, socket = await dial(hub)
    row = UsageRow(gateway="g1", boot="b", hour=0, key="", model="chat", version="1.0.0", requests=1)
    await hub.receive(connection, UsageReport(number=7, rows=(row,)).model_dump_json())
    await settle()
    assert socket.got == [UsageAccepted(number=7)]


async def test_what_is_no_message_is_refused(hub):
    connection, _ = await dial(hub)
    for text in ("", "{}", '{"type":"table"}', '{"type":"events","events":[{}]}', "[" * 500):
        with pytest.raises(ValueError, match="validation error"):
            await hub.receive(connection, text)
