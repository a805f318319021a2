"""A fake engine, a fake controller and a gateway between them, on real loopback sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve

from serving.gateway.config import GatewayConfig
from serving.gateway.discovery import StaticEndpoints
from serving.gateway.main import Gateway
from serving.outcomes import Event, Hello, TablePush, Total
from serving.traffic import ModelTraffic, RevisionTraffic, Role, TrafficTable, assigned_role

SALT = "0123456789abcdef"
STABLE_DIGEST = "a" * 64
CANARY_DIGEST = "b" * 64
TOKEN = "local-token"


def sse(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def chat_chunk(text: str, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    return sse({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "chat", "choices": [choice]})


def chat_answer(text: str, finish: str = "stop", tokens: int = 5) -> bytes:
    return json.dumps({
        "id": "c", "object": "chat.completion", "created": 1, "model": "chat",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}],
        "usage": {"prompt_tokens": 7, "completion_tokens": tokens, "total_tokens": 7 + tokens},
    }).encode()  # fmt: skip


class FakeEngine:
    """Answers as told by `do(body) -> dict`, or by the body's own `fake` object."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.do: Callable[[dict[str, Any]], dict[str, Any]] = lambda body: body.get("fake") or {}
        self.writers: set[asyncio.StreamWriter] = set()
        self.busy: set[asyncio.StreamWriter] = set()
        self.connections = 0
        self.aborted = 0
        self.sent_bytes = 0
        self._server: asyncio.Server | None = None
        self.port = 0

    async def start(self, port: int = 0) -> FakeEngine:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port, limit=32 * 1024 * 1024)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def kill(self, writers: set[asyncio.StreamWriter] | None = None) -> None:
        for writer in list(self.writers if writers is None else writers):
            writer.transport.abort()

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        self.kill()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.add(writer)
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            if writer in self.busy:
                self.aborted += 1
        finally:
            self.writers.discard(writer)
            self.busy.discard(writer)
            writer.transport.abort()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.strip().split("\r\n")
        headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines)}
        body = json.loads(await reader.readexactly(int(headers["content-length"])))
        self.requests.append((first.split(" ")[1], headers, body))
        self.busy.add(writer)
        watch = asyncio.create_task(reader.read(1))
        answer = asyncio.create_task(self._answer(body, writer))
        done, _ = await asyncio.wait({watch, answer}, return_when=asyncio.FIRST_COMPLETED)
        if answer not in done:
            answer.cancel()
            raise ConnectionResetError
        keep = answer.result()
        self.busy.discard(writer)
        if keep:
            watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watch
        return keep

    async def _answer(self, body: dict[str, Any], writer: asyncio.StreamWriter) -> bool:
        fake = self.do(body)
        mode = fake.get("do", "ok")
        await asyncio.sleep(fake.get("before_s", 0))
        if fake.get("gone") and self._server is not None:
            self._server.close()  # not only the connection: the process is gone
        if mode == "hang":
            await asyncio.sleep(60)
        if mode == "die":
            return False
        if "status" in fake:
            text = json.dumps({"error": {"message": "no", "type": "x", "param": None, "code": fake["status"]}}).encode()
            self._unary(writer, fake["status"], text)
            return True
        text = fake.get("text", "hello " + str(body.get("mark", "")))
        if not body.get("stream"):
            answer = (
                json.dumps(fake["body"]).encode()
                if "body" in fake
                else chat_answer(text, fake.get("finish", "stop"), fake.get("tokens", 5))
            )
            if mode in ("die-mid", "die-after-head"):
                writer.write(
                    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 999\r\n\r\n" + answer
                )
                await writer.drain()
                return False
            self._unary(writer, 200, answer)
            return True
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        await writer.drain()
        if mode == "die-after-head":
            await asyncio.sleep(0.02)
            return False
        texts = fake.get("pieces")
        count = fake.get("chunks", 5) if texts is None else len(texts)
        for i in range(count):
            if mode == "die-mid" and i == count // 2:
                return False
            last = i == count - 1
            said = fake.get("piece", f"{text}-{i} ") if texts is None else texts[i]
            piece = chat_chunk(said, fake.get("finish", "stop") if last else None)
            if "events" in fake and last:
                piece = b"".join(map(sse, fake["events"])) + piece
            await self._chunk(writer, piece)
            if fake.get("delay_s"):
                await asyncio.sleep(fake["delay_s"])
        if mode != "no-done":
            await self._chunk(writer, b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True

    async def _chunk(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        writer.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.sent_bytes += len(data)
        await writer.drain()

    @staticmethod
    def _unary(writer: asyncio.StreamWriter, status: int, body: bytes) -> None:
        head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)


class FakeController:
    """Records what gateways say; says what it is told to."""

    def __init__(self) -> None:
        self.hellos: list[Hello] = []
        self.acks: list[tuple[float, int, int]] = []
        self.events: list[Event] = []
        self.totals: dict[tuple[str, str, str, int], Total] = {}
        self.settled_through: dict[str, int] = {}
        self.in_flight: dict[str, int] = {}
        self.endpoints_ready: dict[str, int] = {}
        self.tokens: list[str | None] = []
        self.accepting = True
        self.beating = True
        self.sockets: set[ServerConnection] = set()
        self._server: Server | None = None
        self.port = 0

    async def start(self, port: int = 0) -> FakeController:
        self._server = await serve(self._talk, "127.0.0.1", port)
        self.port = next(iter(self._server.sockets)).getsockname()[1]
        return self

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    async def _talk(self, socket: ServerConnection) -> None:
        assert socket.request is not None
        assert socket.request.path == "/internal/v1/gateway"
        self.tokens.append(socket.request.headers.get("Authorization"))
        self.sockets.add(socket)
        beat = asyncio.create_task(self._beat(socket))
        try:
            async for text in socket:
                await self._heard(socket, json.loads(text))
        finally:
            beat.cancel()
            self.sockets.discard(socket)

    async def _beat(self, socket: ServerConnection) -> None:
        with contextlib.suppress(Exception):
            while True:
                if self.beating:
                    await socket.send('{"type":"heartbeat","fence":1}')
                await asyncio.sleep(0.1)

    async def _heard(self, socket: ServerConnection, message: dict[str, Any]) -> None:
        match message["type"]:
            case "hello":
                self.hellos.append(Hello.model_validate(message))
            case "ack":
                self.acks.append((time.monotonic(), message["fence"], message["sequence"]))
            case "events":
                self.events += [Event.model_validate(e) for e in message["events"]]
                if self.accepting:
                    through = message["events"][-1]["sequence"]
                    await socket.send(json.dumps({"type": "accepted", "through": through}))
            case "totals":
                for t in message["totals"]:
                    total = Total.model_validate(t)
                    self.totals[(total.model, total.rollout, total.digest, total.weight)] = total
                self.settled_through = message["settled_through"]
                self.in_flight = message["in_flight"]
                self.endpoints_ready = message["endpoints_ready"]

    async def push(self, table: TrafficTable) -> None:
        text = TablePush(table=table).model_dump_json()
        for socket in list(self.sockets):
            await socket.send(text)

    async def drop(self) -> None:
        for socket in list(self.sockets):
            await socket.close()


def revision(role: Role, weight: int, *, digest: str | None = None, version: str | None = None) -> RevisionTraffic:
    stable = role is Role.STABLE
    return RevisionTraffic(
        digest=digest or (STABLE_DIGEST if stable else CANARY_DIGEST),
        version=version or ("1.0.0" if stable else "1.1.0"),
        role=role, weight=weight, application="stable-app" if stable else "canary-app",
    )  # fmt: skip


def table(sequence: int, weight: int | None, *, fence: int = 1, rollout: str | None = "r1") -> TrafficTable:
    """A table with a canary at `weight` percent, or without one."""
    revisions = [revision(Role.STABLE, 100 - (weight or 0))]
    if weight is not None:
        revisions.append(revision(Role.CANARY, weight))
    model = ModelTraffic(
        model="chat", salt=SALT, rollout=rollout if weight is not None else None, revisions=tuple(revisions)
    )
    return TrafficTable(fence=fence, sequence=sequence, issued_at=time.time(), models=(model,))


def session_on(role: Role, weight: int, start: int = 0) -> str:
    """A session that falls on this arm."""
    return next(s for i in range(start, 100_000) if assigned_role(SALT, s := f"session-{i}", weight) is role)


class Rig:
    """A gateway, two engines and a controller."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.stable = FakeEngine()
        self.canary = FakeEngine()
        self.controller = FakeController()
        self.source = StaticEndpoints()
        self.gateway: Gateway

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.gateway.port}"

    @property
    def admin_url(self) -> str:
        return f"http://127.0.0.1:{self.gateway.admin_port}"

    async def apply(self, wanted: TrafficTable) -> None:
        await self.controller.push(wanted)
        await until(lambda: self.gateway.state.generation == wanted.generation)

    async def settled(self) -> None:
        """Wait until every outcome was told to the controller."""

        def quiet() -> bool:
            ledger = self.gateway.recorder.ledger
            told = {k: (t.admitted, t.settled, t.in_flight) for k, t in self.controller.totals.items()}
            now = {
                (t.model, t.rollout, t.digest, t.weight): (t.admitted, t.settled, t.in_flight)
                for t in (c.total() for c in ledger._counts.values())
            }
            return told == now and all(v[2] == 0 for v in now.values())

        await until(quiet)
        await asyncio.sleep(0.02)


async def until(condition: Callable[[], bool], within_s: float = 5.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        await asyncio.sleep(0.005)


def _write_credentials(home: Path) -> None:
    home.mkdir(parents=True, exist_ok=True)
    (home / "credentials").write_text(TOKEN)


@contextlib.asynccontextmanager
async def rig(
    home: Path, *, first: TrafficTable | None = None, controller: FakeController | None = None, **config: Any
) -> AsyncIterator[Rig]:
    made = Rig(home)
    made.controller = controller or made.controller
    await made.stable.start()
    await made.canary.start()
    await made.controller.start()
    _write_credentials(home)
    control = config.pop("control_url", f"http://127.0.0.1:{made.controller.port}")
    settings = GatewayConfig(home=home, port=0, admin_port=0, control_url=control, **config)
    made.source = StaticEndpoints({"stable-app": [made.stable.url], "canary-app": [made.canary.url]})
    made.gateway = Gateway(settings, made.source)
    await made.gateway.start()
    try:
        if control is not None:
            await until(lambda: bool(made.controller.hellos))
            if first is not None:
                await made.apply(first)
        # Warm-up is tested apart.
        for application in ("stable-app", "canary-app"):
            for endpoint in made.gateway.book.of(application):
                endpoint.served = 10
        yield made
    finally:
        await asyncio.gather(made.gateway.stop(), made.stable.stop(), made.canary.stop(), made.controller.stop())
