"""What the gateway costs: the same fake engine asked directly and through the gateway, side by side in one run.

    python -m benchmarks.gateway_overhead [--rounds 8] [--seconds 1] [--concurrency 16] [--requests 100000]

Engine and gateway are processes of their own on uvloop; the load comes from this one, over raw sockets that read to
the end of each answer. Everything is on: keys, limits, accounting, a canary at 10 %, sticky sessions, metrics, evidence
and the reading of answers. Rounds alternate between direct and through, and ratios are taken within a round.

CPU per request is the gateway's own, as the kernel counts it. Who shares the machine makes it look larger, never
smaller (caches, cores that are two threads), so its least over the rounds is told beside the median. Then its memory:
after many requests, and per open stream. Loopback only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from functools import partial
from itertools import cycle
from pathlib import Path

import httptools
import psutil
import uvloop

from serving.gateway.config import GatewayConfig
from serving.gateway.traffic_state import save_table
from serving.keys import KeyRecord, hash_secret, write_key
from serving.knobs import QueueSettings
from serving.traffic import ModelTraffic, RevisionTraffic, Role, TrafficTable

ROOT = Path(__file__).resolve().parents[1]
BODY = {"model": "chat", "messages": [{"role": "user", "content": "Tell me something about tides."}], "max_tokens": 64}
KEY_ID, SECRET = "benchmark000", "a-secret-that-is-only-used-on-loopback"
SESSIONS = 500


def requests(**more: object) -> list[bytes]:
    """The same request of many sessions, with a key."""
    body = json.dumps({**BODY, **more}).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {write_key(KEY_ID, SECRET)}\r\ncontent-length: {len(body)}\r\n"
    )
    return [f"{head}x-session-id: session-{i}\r\n\r\n".encode() + body for i in range(SESSIONS)]


class Client(asyncio.Protocol):
    """One connection that asks again as soon as it has its answer."""

    def __init__(self, turns: list[bytes], until: float, times: list[float]) -> None:
        self.turns, self.until, self.times = cycle(turns), until, times
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Of asyncio.Protocol or httptools."""
        self.transport = transport
        self.ask()

    def ask(self) -> None:
        """Of asyncio.Protocol or httptools."""
        self.parser = httptools.HttpResponseParser(self)
        self.asked = time.perf_counter()
        self.transport.write(next(self.turns))  # type: ignore[attr-defined]

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


async def load(port: int, turns: list[bytes], concurrency: int, seconds: float) -> tuple[float, list[float]]:
    """Ask from `concurrency` connections for `seconds`: (requests/s, seconds each took)."""
    loop, begun = asyncio.get_running_loop(), time.perf_counter()
    times: list[float] = []
    clients = [
        (
            await loop.create_connection(
                partial(Client, turns[i * 31 % len(turns) :] or turns, begun + seconds, times), "127.0.0.1", port
            )
        )[1]
        for i in range(concurrency)
    ]
    await asyncio.gather(*(c.done for c in clients))
    return len(times) / (time.perf_counter() - begun), times


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
    print(f"{'':8} {'c':>3}  {'direct /s':>18}  {'gateway /s':>18}  {'ratio':>16}  {'CPU us':>14}  added ms p50 / p99")
    for stream in (False, True):
        turns = requests(stream=stream)
        for c in (1, args.concurrency):
            rates: dict[str, list[float]] = {name: [] for name in ports}
            times: dict[str, list[float]] = {name: [] for name in ports}
            cpu_us: list[float] = []
            for _ in range(args.rounds):
                for name, port in ports.items():
                    before = sum(gateway.cpu_times()[:2])
                    rate, took = uvloop.run(load(port, turns, c, args.seconds))
                    if name == "gateway":
                        cpu_us.append((sum(gateway.cpu_times()[:2]) - before) * 1e6 / len(took))
                    rates[name].append(rate)
                    times[name] += took
            report("streams" if stream else "unary", c, rates, times, cpu_us)


def report(
    what: str, c: int, rates: dict[str, list[float]], times: dict[str, list[float]], cpu_us: list[float]
) -> None:
    """Print medians and the spread over rounds."""
    ratios = [g / d for g, d in zip(rates["gateway"], rates["direct"], strict=True)]

    def cell(values: list[float], digits: int) -> str:
        return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"

    p50, p99 = ([statistics.quantiles(times[n], n=100)[q] * 1000 for n in ("gateway", "direct")] for q in (49, 98))
    direct, through, ratio = cell(rates["direct"], 0), cell(rates["gateway"], 0), cell(ratios, 2)
    cpu = f"{min(cpu_us):.0f} / {statistics.median(cpu_us):.0f}"
    added = f"{p50[0] - p50[1]:.2f} / {p99[0] - p99[1]:.2f}"
    print(f"{what:8} {c:3}  {direct:>18}  {through:>18}  {ratio:>16}  {cpu:>14}  {added}", flush=True)


async def hold(port: int, count: int, gateway: psutil.Process) -> float:
    """Open streams that don't end, and tell what one of them takes of the gateway's memory, in kB."""
    before = gateway.memory_info().rss
    turns = requests(stream=True, hold=True)
    opened = []
    for i in range(count):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=4096)
        writer.write(turns[i % len(turns)])
        opened.append((reader, writer))
    for reader, _ in opened:
        await reader.readuntil(b"data: ")
    grown = gateway.memory_info().rss - before
    for _, writer in opened:
        writer.transport.abort()
    return grown / count / 1000


def memory(port: int, gateway: psutil.Process, args: argparse.Namespace) -> None:
    """Print the gateway's memory after many requests, and per open stream."""
    print("\nmemory of the gateway, MB resident, after requests:")
    turns, asked = requests(), 0
    while asked < args.requests:
        _, took = uvloop.run(load(port, turns, args.concurrency, 5))
        asked += len(took)
        print(f"  {asked:8}  {gateway.memory_info().rss / 1e6:.1f}", flush=True)
    per_stream = uvloop.run(hold(port, args.open, gateway))
    print(f"per open stream, of {args.open}: {per_stream:.1f} kB")


def arguments() -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each round")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--requests", type=int, default=100_000, help="for the measure of memory; 0 leaves that out")
    parser.add_argument("--open", type=int, default=2000, help="streams that are open at once")
    return parser.parse_args()


def main() -> None:
    """Start engine and gateway, measure, stop them."""
    args = arguments()
    ports = {"direct": free_port(), "gateway": free_port()}
    control_port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        home, processes = Path(folder), []
        try:
            url = f"http://127.0.0.1:{ports['direct']}"
            save_table(home / "gateway" / "table.json", table())
            key = KeyRecord(
                id=KEY_ID, secret_sha256=hash_secret(SECRET), name="benchmark", created_at=time.time(),
                requests_per_minute=100_000_000, tokens_per_minute=100_000_000_000, concurrency=100_000,
            )  # fmt: skip
            (home / "keys.json").write_text(json.dumps([key.model_dump(mode="json")]))
            config = GatewayConfig(
                home=home, port=ports["gateway"], admin_port=free_port(), auth="keys",
                control_url=f"http://127.0.0.1:{control_port}", endpoints={"stable": (url,), "canary": (url,)},
                queue=QueueSettings(endpoint_concurrency=100_000),
            )  # fmt: skip
            engine = [str(ports["direct"]), str(control_port), str(home / "keys.json")]
            for command in (
                ["-m", "benchmarks.fake_engine", *engine],
                ["-m", "serving.gateway.main", "--config", config.to_json()],
            ):
                process = subprocess.Popen(
                    [sys.executable, *command], cwd=ROOT, stderr=subprocess.DEVNULL, env={**os.environ}
                )
                processes.append(process)
            wait_for(lambda: socket.create_connection(("127.0.0.1", ports["direct"])).close())
            wait_for(lambda: urllib.request.urlopen(f"http://127.0.0.1:{config.admin_port}/readyz").close())
            gateway = psutil.Process(processes[-1].pid)
            if args.rounds:
                measure(ports, gateway, args)
            if args.requests:
                memory(ports["gateway"], gateway, args)
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait(10)


if __name__ == "__main__":
    main()
