"""What a gateway talks to besides clients and engines: a controller, and Ray's list of replicas. In this process."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from serving.accounting import UsageRow
from serving.keys import KeyRecord
from serving.outcomes import KeysPush, TablePush, Total, UsageAccepted, UsageReport
from serving.traffic import TrafficTable

BEAT_S = 0.5


class Controller:
    """Pushes the table and the keys, and keeps what gateways tell as the store does: the greatest row of each place."""

    def __init__(self, keys: tuple[KeyRecord, ...]) -> None:
        self._keys = keys
        self._sockets: set[ServerConnection] = set()
        self._server: Server | None = None
        self.table: TrafficTable | None = None
        self.acknowledged: dict[str, int] = {}
        """Gateway -> sequence of the table that it obeys."""
        self.usage: dict[tuple[str, ...], UsageRow] = {}
        self.totals: dict[str, dict[tuple[str, ...], Total]] = {}
        self.settled_through: dict[str, int] = {}
        self.in_flight: dict[str, int] = {}
        """Gateway -> answers under way, of all revisions."""
        self.events = 0
        self.port = 0

    async def start(self) -> None:
        """Listen on a free port of loopback."""
        self._server = await serve(self._talk, "127.0.0.1", 0)
        self.port = next(iter(self._server.sockets)).getsockname()[1]

    async def stop(self) -> None:
        """Hang up."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def push(self, table: TrafficTable) -> None:
        """Make this table the one to obey."""
        self.table = table
        text = TablePush(table=table).model_dump_json()
        for socket in list(self._sockets):
            with contextlib.suppress(ConnectionClosed):
                await socket.send(text)

    async def _talk(self, socket: ServerConnection) -> None:
        self._sockets.add(socket)
        beat = asyncio.create_task(self._beat(socket))
        name = "?"
        try:
            with contextlib.suppress(ConnectionClosed):
                async for text in socket:
                    message = json.loads(text)
                    name = message.get("gateway", name) if message["type"] == "hello" else name
                    await self._heard(socket, name, message)
        finally:
            beat.cancel()
            self._sockets.discard(socket)

    async def _beat(self, socket: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            while True:
                await socket.send('{"type":"heartbeat","fence":1}')
                await asyncio.sleep(BEAT_S)

    async def _heard(self, socket: ServerConnection, name: str, message: dict[str, Any]) -> None:
        match message["type"]:
            case "hello":
                await socket.send(KeysPush(keys=self._keys).model_dump_json())
                if self.table is not None:
                    await socket.send(TablePush(table=self.table).model_dump_json())
            case "ack":
                self.acknowledged[name] = message["sequence"]
            case "events":
                self.events += len(message["events"])
                through = message["events"][-1]["sequence"]
                await socket.send(json.dumps({"type": "accepted", "through": through}))
            case "totals":
                for one in message["totals"]:
                    total = Total.model_validate(one)
                    place = (total.model, total.rollout, total.digest, str(total.weight))
                    self.totals.setdefault(name, {})[place] = total
                self.settled_through[name] = sum(message["settled_through"].values())
                self.in_flight[name] = sum(message["in_flight"].values())
            case "usage":
                report = UsageReport.model_validate(message)
                for row in report.rows:
                    at = (row.gateway, row.boot, str(row.hour), row.key, row.model, row.version)
                    if at not in self.usage or row.requests > self.usage[at].requests:
                        self.usage[at] = row
                await socket.send(UsageAccepted(number=report.number).model_dump_json())


class ReplicaList:
    """Ray Serve's list of replicas, and the replicas' word on where their engines listen."""

    def __init__(self) -> None:
        self.listed: dict[str, tuple[str, str]] = {}
        """By a name that is used once: application and the engine's URL."""
        self._server: asyncio.Server | None = None
        self.port = 0

    async def start(self) -> None:
        """Listen on a free port of loopback."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            while True:
                path = (await reader.readuntil(b"\r\n\r\n")).split(b" ", 2)[1].decode()
                status, answer = self._answer(path)
                data = json.dumps(answer).encode()
                head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
                writer.write(head.encode() + data)
                await writer.drain()
        writer.close()

    def _answer(self, path: str) -> tuple[int, dict[str, Any]]:
        if path == "/api/serve/applications/":
            names = {application for application, _ in self.listed.values()}
            target = {"ip": "127.0.0.1", "port": self.port}
            groups = [
                {"app_name": application, "route_prefix": f"/{name}", "protocol": "HTTP", "targets": [target]}
                for name, (application, _) in self.listed.items()
            ]
            return 200, {"applications": {n: {"status": "RUNNING"} for n in names}, "target_groups": groups}
        name = path.strip("/").split("/")[0]
        if name in self.listed:
            return 200, {"url": self.listed[name][1], "boot": name, "ready": True}
        return 404, {}
