"""What the gateway costs: the same fake engine asked directly and through the gateway, side by side in one run.

    python -m benchmarks.gateway_overhead [--rounds 5] [--seconds 2] [--concurrency 16]

Engine and gateway are processes of their own on uvloop; the load comes from this one, over raw sockets that read to
the end of each answer (or from `wrk` with --wrk). Rounds alternate between the two, and the ratio is taken within a
round, so that what else the machine does hits both. A canary at 10 % is in the table: the split, evidence, metrics
and reading of answers are all on. Loopback only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import httptools
import psutil
import uvloop
from websockets.asyncio.server import ServerConnection, serve

from serving.gateway.config import GatewayConfig
from serving.gateway.traffic_state import save_table
from serving.traffic import ModelTraffic, RevisionTraffic, Role, TrafficTable

ROOT = Path(__file__).resolve().parents[1]
CHUNKS = 64
BODY = {"model": "chat", "messages": [{"role": "user", "content": "Tell me something about tides."}], "max_tokens": 64}


def chunk(text: str, finish: str | None = None) -> bytes:
    """One server-sent event of a chat stream, framed as an HTTP chunk."""
    choice = {"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": finish}
    value = {
        "id": "chatcmpl-0123456789abcdef", "object": "chat.completion.chunk", "created": 1700000000,
        "model": "chat", "choices": [choice],
    }  # fmt: skip
    data = b"data: " + json.dumps(value).encode() + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(data), data)


UNARY = json.dumps({
    "id": "chatcmpl-1", "object": "chat.completion", "created": 1700000000, "model": "chat",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Tides rise and fall twice a day."},
                 "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 12, "completion_tokens": 9, "total_tokens": 21},
}).encode()  # fmt: skip
UNARY_ANSWER = (b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(UNARY)) + UNARY
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
PIECES = [chunk(f" word{i}") for i in range(CHUNKS - 1)] + [chunk(".", "stop")]
DONE = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


class Engine(asyncio.Protocol):
    """The fake engine: one write for a whole answer, or one for each of 64 events, a loop turn apart."""

    def __init__(self) -> None:
        self.parser = httptools.HttpRequestParser(self)
        self.body = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Of asyncio.Protocol or httptools."""
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Of asyncio.Protocol or httptools."""
        self.parser.feed_data(data)

    def on_message_begin(self) -> None:
        """Of asyncio.Protocol or httptools."""
        self.body = b""

    def on_body(self, body: bytes) -> None:
        """Of asyncio.Protocol or httptools."""
        self.body += body

    def on_message_complete(self) -> None:
        """Of asyncio.Protocol or httptools."""
        if b'"stream": true' in self.body:
            self.transport.write(STREAM_HEAD)  # type: ignore[attr-defined]
            self.next(0)
        else:
            self.transport.write(UNARY_ANSWER)  # type: ignore[attr-defined]

    def next(self, i: int) -> None:
        """Of asyncio.Protocol or httptools."""
        if i == CHUNKS:
            self.transport.write(DONE)  # type: ignore[attr-defined]
            return
        self.transport.write(PIECES[i])  # type: ignore[attr-defined]
        asyncio.get_running_loop().call_soon(self.next, i + 1)


async def controller(gateway: ServerConnection) -> None:
    """The least controller: renews the lease, accepts every event."""

    async def beat() -> None:
        while True:
            await gateway.send('{"type":"heartbeat","fence":1}')
            await asyncio.sleep(1)

    beating = asyncio.create_task(beat())
    async for text in gateway:
        message = json.loads(text)
        if message["type"] == "events":
            await gateway.send(json.dumps({"type": "accepted", "through": message["events"][-1]["sequence"]}))
    beating.cancel()


async def engine(port: int, control_port: int) -> None:
    """Run the fake engine and the fake controller."""
    server = await asyncio.get_running_loop().create_server(Engine, "127.0.0.1", port)
    async with serve(controller, "127.0.0.1", control_port):
        await server.serve_forever()


class Client(asyncio.Protocol):
    """One connection that asks again as soon as it has its answer."""

    def __init__(self, request: bytes, until: float, times: list[float]) -> None:
        self.request, self.until, self.times = request, until, times
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Of asyncio.Protocol or httptools."""
        self.transport = transport
        self.ask()

    def ask(self) -> None:
        """Of asyncio.Protocol or httptools."""
        self.parser = httptools.HttpResponseParser(self)
        self.asked = time.perf_counter()
        self.transport.write(self.request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        """Of asyncio.Protocol or httptools."""
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        """Of asyncio.Protocol or httptools."""
        if self.parser.get_status_code() != 200:
            self.done.set_exception(RuntimeError(f"status {self.parser.get_status_code()}"))
            return
        now = time.perf_counter()
        self.times.append(now - self.asked)
        if now < self.until:
            asyncio.get_running_loop().call_soon(self.ask)
        elif not self.done.done():
            self.transport.close()
            self.done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Of asyncio.Protocol or httptools."""
        if not self.done.done():
            self.done.set_exception(ConnectionError("closed"))


async def load(port: int, request: bytes, concurrency: int, seconds: float) -> tuple[float, list[float]]:
    """Ask from `concurrency` connections for `seconds`: (requests/s, seconds each took)."""
    loop, times, begun = asyncio.get_running_loop(), [], time.perf_counter()
    clients = [
        (await loop.create_connection(lambda: Client(request, begun + seconds, times), "127.0.0.1", port))[1]
        for _ in range(concurrency)
    ]
    await asyncio.gather(*(c.done for c in clients))
    return len(times) / (time.perf_counter() - begun), times


def wrk(port: int, stream: bool, concurrency: int, seconds: float) -> tuple[float, list[float]]:
    """The same by wrk, without single times."""
    body = json.dumps({**BODY, "stream": stream})
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(f"wrk.method='POST'\nwrk.body=[[{body}]]\nwrk.headers['content-type']='application/json'\n")
        script.flush()
        command = ["wrk", "-t1", f"-c{concurrency}", f"-d{round(seconds)}s", "-s", script.name,
                   f"http://127.0.0.1:{port}/v1/chat/completions"]  # fmt: skip
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"Requests/sec:\s+([\d.]+)", text)
    assert found, text
    assert "Non-2xx" not in text, text
    return float(found[1]), []


def free_port() -> int:
    """A port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as s:
        return int(s.getsockname()[1])


def wait_for(check: Callable[[], object]) -> None:
    """Try until it works, for 15 s."""
    for _ in range(300):
        try:
            check()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise SystemExit("a process did not start within 15 s")


def table() -> TrafficTable:
    """Stable 90 %, canary 10 %."""

    def revision(role: Role, weight: int) -> RevisionTraffic:
        digest = ("a" if role is Role.STABLE else "b") * 64
        return RevisionTraffic(digest=digest, version="1.0.0", role=role, weight=weight, application=role.value)

    revisions = (revision(Role.STABLE, 90), revision(Role.CANARY, 10))
    model = ModelTraffic(model="chat", salt="s" * 16, rollout="r", revisions=revisions)
    return TrafficTable(fence=1, sequence=1, issued_at=time.time(), models=(model,))


def measure(ports: dict[str, int], gateway: psutil.Process, args: argparse.Namespace) -> None:
    """Run all rounds and print a line for each kind of request and concurrency."""
    use_wrk = args.wrk and shutil.which("wrk")
    print(f"{'':8} {'c':>3}  {'direct /s':>18}  {'gateway /s':>18}  {'ratio':>14}  gateway CPU us  added ms p50 / p99")
    for stream in (False, True):
        body = json.dumps({**BODY, "stream": stream}).encode()
        head = "POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
        request = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
        for c in (1, args.concurrency):
            rates: dict[str, list[float]] = {name: [] for name in ports}
            times: dict[str, list[float]] = {name: [] for name in ports}
            cpu_us: list[float] = []
            for _ in range(args.rounds):
                for name, port in ports.items():
                    before = sum(gateway.cpu_times()[:2])
                    if use_wrk:
                        rate, took = wrk(port, stream, c, args.seconds)
                    else:
                        rate, took = uvloop.run(load(port, request, c, args.seconds))
                    if name == "gateway":
                        cpu_us.append((sum(gateway.cpu_times()[:2]) - before) * 1e6 / (rate * args.seconds))
                    rates[name].append(rate)
                    times[name] += took
            report("streams" if stream else "unary", c, rates, times, statistics.median(cpu_us))


def report(what: str, c: int, rates: dict[str, list[float]], times: dict[str, list[float]], cpu_us: float) -> None:
    """Print medians, the spread over rounds, and what does not depend on who else uses the machine: CPU time."""
    ratios = [g / d for g, d in zip(rates["gateway"], rates["direct"], strict=True)]

    def cell(values: list[float], digits: int) -> str:
        return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"

    added = ""
    if times["gateway"]:
        p50, p99 = ([statistics.quantiles(times[n], n=100)[q] * 1000 for n in ("gateway", "direct")] for q in (49, 98))
        added = f"{p50[0] - p50[1]:.2f} / {p99[0] - p99[1]:.2f}"
    direct, through, ratio = cell(rates["direct"], 0), cell(rates["gateway"], 0), cell(ratios, 2)
    print(f"{what:8} {c:3}  {direct:>18}  {through:>18}  {ratio:>14}  {cpu_us:14.0f}  {added}")


def main() -> None:
    """Start engine and gateway, measure, stop them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--wrk", action="store_true", help="make the load with wrk, when it is installed")
    parser.add_argument("--engine", type=int, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.engine:
        uvloop.run(engine(*args.engine))
        return
    ports = {"direct": free_port(), "gateway": free_port()}
    control_port = free_port()
    with tempfile.TemporaryDirectory() as home:
        processes = []
        try:
            url = f"http://127.0.0.1:{ports['direct']}"
            save_table(Path(home) / "gateway" / "table.json", table())
            config = GatewayConfig(
                home=Path(home), port=ports["gateway"], admin_port=free_port(), control_url=f"http://127.0.0.1:{control_port}",
                endpoints={"stable": (url,), "canary": (url,)},
            )  # fmt: skip
            commands = (
                ["-m", "benchmarks.gateway_overhead", "--engine", str(ports["direct"]), str(control_port)],
                ["-m", "serving.gateway.main", "--config", config.to_json()],
            )
            for command in commands:
                arguments = [sys.executable, *command]
                process = subprocess.Popen(arguments, cwd=ROOT, stderr=subprocess.DEVNULL, env={**os.environ})
                processes.append(process)
            wait_for(lambda: socket.create_connection(("127.0.0.1", ports["direct"])).close())
            wait_for(lambda: urllib.request.urlopen(f"http://127.0.0.1:{config.admin_port}/readyz").close())
            measure(ports, psutil.Process(processes[-1].pid), args)
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait(10)


if __name__ == "__main__":
    main()
