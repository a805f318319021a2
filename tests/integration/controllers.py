"""Real controllers over a real store, and a gateway that dials whichever of them leads. Engines are made up.

`python -m tests.integration.controllers URL HOLDER PORT LEASE_S` runs one controller as a process of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import json
import logging
import sys
import time
from collections.abc import Callable
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from rollout.accounts.sql import SqlAccountStore
from rollout.actions import Deployed
from rollout.commands import Command, Verb
from rollout.controller import Controller
from rollout.decide import Decision
from rollout.errors import RolloutError
from rollout.event_log.database import Database
from rollout.event_log.sql import SqlEventLog
from rollout.specs import parse_spec
from rollout.traffic_routers.gateway import GatewayRouter
from rollout.workloads.memory import MemoryWorkloads
from serving.keys import KeyRecord
from serving.outcomes import (
    FROM_CONTROLLER,
    FROM_GATEWAY,
    Accepted,
    Ack,
    Event,
    Events,
    Heartbeat,
    Hello,
    KeysPush,
    Refused,
    Signal,
    TablePush,
    Totals,
    UsageAccepted,
    UsageReport,
)
from serving.specs import EngineKind, RevisionSpec
from serving.traffic import Generation, ModelTraffic, Role, TrafficTable

MODEL = "chat"
STEPS = [{"weight": 10, "duration": "1h"}, {"weight": 100}]


def deployed(version: str) -> Deployed:
    """A simulated version."""
    manifest = hashlib.sha256(version.encode()).hexdigest()
    return Deployed(
        revision=RevisionSpec(
            model=MODEL, version=version, manifest_sha256=manifest, engine=EngineKind.SIMULATED, source="sim:?"
        )
    )


class RunningController:
    """One controller with connections, engines and gateways' socket of its own, over a store that others share."""

    def __init__(
        self, url: str, holder: str, port: int, *, lease_s: float, clock: Callable[[], float] = time.time
    ) -> None:
        self.port = port
        self.database = Database(url)
        self.log = SqlEventLog(self.database)
        self.hub = GatewayRouter(time.monotonic)
        ids = itertools.count()
        self.controller = Controller(
            event_log=self.log,
            accounts=SqlAccountStore(self.database),
            workloads=MemoryWorkloads(load_ticks=0, drain_ticks=0),
            router=self.hub,
            holder=holder,
            clock=clock,
            new_id=lambda: f"{holder}-{time.time_ns():x}-{next(ids)}",
            lease_s=lease_s,
        )
        self._tasks: list[asyncio.Task[Any]] = []

    def start(self) -> None:
        """Begin to serve and to lead."""
        self._tasks = [asyncio.create_task(self._serve()), asyncio.create_task(self.controller.run())]

    @property
    def leading(self) -> asyncio.Task[Any]:
        """The task that ends when the leadership is lost."""
        return self._tasks[1]

    async def stop(self) -> None:
        """End both, the lease being given back."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.database.close()

    async def deploy(self, version: str) -> Decision:
        """Start a rollout."""
        spec = parse_spec({"model": MODEL, "version": version, "strategy": {"canary": {"steps": STEPS}}})
        target = self.controller.new_target(spec, deployed(version))
        return await self.controller.execute(MODEL, Command(verb=Verb.DEPLOY, actor="ada"), target)

    async def _serve(self) -> None:
        async with serve(self._answer, "127.0.0.1", self.port):
            await asyncio.get_running_loop().create_future()

    async def _answer(self, socket: ServerConnection) -> None:
        assert socket.request is not None
        with contextlib.suppress(ConnectionClosed):
            if socket.request.path == "/command":
                async for text in socket:
                    await socket.send(json.dumps(await self._command(json.loads(text))))
            elif not self.controller.leads:
                await socket.send(Refused(reason="does not lead").model_dump_json())
            else:
                await self._gateway(socket)

    async def _gateway(self, socket: ServerConnection) -> None:
        hello = FROM_GATEWAY.validate_json(await socket.recv())
        assert isinstance(hello, Hello)
        connection = await self.hub.attach(hello, socket.send, socket.close)
        try:
            async for text in socket:
                await self.hub.receive(connection, text)
        finally:
            self.hub.detach(connection)

    async def _command(self, asked: dict[str, Any]) -> dict[str, Any]:
        try:
            if "deploy" in asked:
                await self.deploy(asked["deploy"])
            if "key" in asked:
                await self.controller.accounting.put_key(KeyRecord.model_validate(asked["key"]))
        except RolloutError as error:
            return {"error": str(error), "retryable": error.retryable}
        statuses = {s.model: s.model_dump(mode="json") for s in self.controller.statuses}
        return {"leads": self.controller.leads, "statuses": statuses}


class Gateway:
    """Follows the newest table of whoever leads, and sends each event until it is accepted."""

    def __init__(self, ports: list[int], name: str = "g1") -> None:
        self._ports = ports
        self.name = name
        self.table: TrafficTable | None = None
        self.generations: list[Generation] = []
        self.refused: list[Generation] = []
        self.events: list[Event] = []
        self.accepted = 0
        self.keys: dict[str, KeyRecord] | None = None
        self.usage_accepted: set[int] = set()
        self.heartbeats = 0
        self.connections = 0
        self._socket: ClientConnection | None = None
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Hang up for good."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def traffic(self) -> ModelTraffic | None:
        """The model's part of the table in force."""
        return None if self.table is None else self.table.model(MODEL)

    async def happen(self, count: int, *, arm: Role = Role.CANARY) -> None:
        """Let so many requests of one arm fail."""
        traffic = self.traffic()
        assert traffic is not None
        assert traffic.rollout is not None
        canary, stable = traffic.by_role(Role.CANARY), traffic.by_role(Role.STABLE)
        chosen = canary if arm is Role.CANARY else stable
        assert chosen is not None
        assert canary is not None
        fresh = []
        for _ in range(count):
            number = len(self.events) + 1
            now = time.time()
            event = Event(
                sequence=number, model=MODEL, rollout=traffic.rollout, signal=Signal.ERROR, arm=arm,
                digest=chosen.digest, weight=canary.weight, admission=number, admitted_at=now, settled_at=now,
            )  # fmt: skip
            self.events.append(event)
            fresh.append(event)
        await self.send(Events(events=tuple(fresh)))

    async def send(self, message: Events | Totals | UsageReport) -> None:
        """Send now, if there is a connection."""
        if self._socket is not None:
            with contextlib.suppress(ConnectionClosed):
                await self._socket.send(message.model_dump_json())

    async def _run(self) -> None:
        for port in itertools.cycle(self._ports):
            with contextlib.suppress(OSError, ConnectionClosed, InvalidHandshake, TimeoutError):
                async with connect(f"ws://127.0.0.1:{port}/", proxy=None) as socket:
                    await self._talk(socket)
            self._socket = None
            await asyncio.sleep(0.05)

    async def _talk(self, socket: ClientConnection) -> None:
        generation = self.table.generation if self.table is not None else Generation(0, 0)
        hello = Hello(gateway=self.name, boot="b1", fence=generation.fence, sequence=generation.sequence)
        await socket.send(hello.model_dump_json())
        self._socket = socket
        telling: asyncio.Task[None] | None = None
        try:
            async for text in socket:
                match FROM_CONTROLLER.validate_json(text):
                    case Refused():
                        return
                    case TablePush(table=table):
                        if telling is None:
                            self.connections += 1
                            telling = asyncio.create_task(self._tell(socket))
                        await self._follow(socket, table)
                    case Accepted(through=through):
                        self.accepted = max(self.accepted, through)
                    case KeysPush(keys=keys):
                        self.keys = {key.id: key for key in keys}
                    case UsageAccepted(number=number):
                        self.usage_accepted.add(number)
                    case Heartbeat():
                        self.heartbeats += 1
        finally:
            if telling is not None:
                telling.cancel()

    async def _follow(self, socket: ClientConnection, table: TrafficTable) -> None:
        if self.table is not None and table.generation < self.table.generation:
            self.refused.append(table.generation)
            return
        self.table = table
        self.generations.append(table.generation)
        ack = Ack(fence=table.fence, sequence=table.sequence, applied_at=time.time())
        await socket.send(ack.model_dump_json())

    async def _tell(self, socket: ClientConnection) -> None:
        left = tuple(e for e in self.events if e.sequence > self.accepted)
        with contextlib.suppress(ConnectionClosed):
            if left:
                await socket.send(Events(events=left).model_dump_json())
            while True:
                traffic = self.traffic()
                ready = {r.application: 1 for r in (traffic.revisions + traffic.drains if traffic else ())}
                totals = Totals(sent_at=time.time(), totals=(), endpoints_ready=ready)
                await socket.send(totals.model_dump_json())
                await asyncio.sleep(0.1)


async def until(condition: Callable[[], Any], what: str, timeout_s: float = 30.0) -> None:
    """Wait until a condition holds.

    Raises:
        AssertionError: it never did.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        await asyncio.sleep(0.02)


async def ask(port: int, **asked: Any) -> dict[str, Any]:
    """Give a controller's process a command."""
    async with connect(f"ws://127.0.0.1:{port}/command", proxy=None) as socket:
        await socket.send(json.dumps(asked))
        answer: dict[str, Any] = json.loads(await socket.recv())
        return answer


async def _main(url: str, holder: str, port: str, lease_s: str) -> None:
    running = RunningController(url, holder, int(port), lease_s=float(lease_s))
    running.start()
    await running.leading


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    asyncio.run(_main(*sys.argv[1:]))
