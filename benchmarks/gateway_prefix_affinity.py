"""What prefix affinity is worth: time to first token of shared-prefix conversations over four replicas with caches.

    python -m benchmarks.gateway_prefix_affinity [--rounds 3] [--virtual]

Eight system prompts of 1000 words, six conversations on each, five turns, 16 conversations at a time. First a replay
in virtual time, exact and repeatable (with --virtual nothing else). Then real processes: four simulated engines with
prefix caches, and in front of the same four a gateway for each way to pick: round robin, least outstanding work, prefix
affinity. Rounds alternate between the three, each with prompts of its own, so that no round finds the cache of another
one; the ratio is taken within a round. Loopback only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import uvloop

from benchmarks.gateway_overhead import free_port, wait_for
from benchmarks.prefix_workload import Conversation, Shape, Speed, conversations, replay
from serving.gateway.config import GatewayConfig
from serving.gateway.traffic_state import save_table
from serving.knobs import LEAST_WORK, ROUND_ROBIN, Picking
from serving.traffic import ModelTraffic, RevisionTraffic, Role, TrafficTable

ROOT = Path(__file__).resolve().parents[1]
REPLICAS = 4
PICKINGS = {"round robin": ROUND_ROBIN, "least work": LEAST_WORK, "prefix affinity": Picking()}
SHAPE = Shape(answer_tokens=16)
SPEED = Speed(itl_ms=20)
TIMEOUT_S = 60


@dataclass(slots=True)
class Round:
    """What one round over one gateway gave."""

    first_token_s: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int = 0

    @property
    def mean_ms(self) -> float:
        """Mean time to first token."""
        return statistics.mean(self.first_token_s) * 1000

    @property
    def p95_ms(self) -> float:
        """Its 95th percentile."""
        return statistics.quantiles(self.first_token_s, n=20)[-1] * 1000

    @property
    def cached_percent(self) -> float:
        """Prompt tokens that an engine found in its cache."""
        return 100 * self.cached_tokens / max(1, self.prompt_tokens)


async def ask(port: int, conversation: Conversation, body: bytes, result: Round) -> None:
    """One streamed request on a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\nconnection: close"
        )
        asked = time.perf_counter()
        writer.write(f"{head}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
        status = await reader.readuntil(b"\r\n\r\n")
        answer = await reader.read(65536)
        result.first_token_s.append(time.perf_counter() - asked)
        if not status.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"the gateway answered {status.splitlines()[0]!r}")
        while data := await reader.read(65536):
            answer += data
    finally:
        writer.close()
    text = ""
    for line in answer.splitlines():
        if line.startswith(b"data: {"):
            event = json.loads(line[6:])
            text += "".join(c["delta"].get("content", "") for c in event["choices"])
            if event.get("usage"):
                result.prompt_tokens += event["usage"]["prompt_tokens"]
                result.cached_tokens += event["usage"]["prompt_tokens_details"]["cached_tokens"]
    conversation.answered(text)


async def drive(port: int, seed: int, name: str) -> Round:
    """Hold all conversations, so many at a time."""
    waiting, result = iter(conversations(SHAPE, seed, name)), Round()

    async def client() -> None:
        for conversation in waiting:
            while (body := conversation.ask()) is not None:
                async with asyncio.timeout(TIMEOUT_S):
                    await ask(port, conversation, with_usage(body), result)
                await asyncio.sleep(SHAPE.think_s)

    async with asyncio.TaskGroup() as clients:
        for _ in range(SHAPE.at_once):
            clients.create_task(client())
    return result


def with_usage(body: bytes) -> bytes:
    """The same request, with a last event that tells the tokens."""
    return body[:-1] + b', "stream_options": {"include_usage": true}}'


def report(what: str, rounds: dict[str, list[Round]]) -> None:
    """A line for each way to pick: medians over the rounds, and how much longer it takes than with prefix affinity."""
    print(f"\n{what}\n{'':16} {'mean ms':>8} {'p95 ms':>8} {'cached %':>9}  time to first token / prefix affinity's")
    for name, found in rounds.items():
        ratios = [r.mean_ms / a.mean_ms for r, a in zip(found, rounds["prefix affinity"], strict=True)]
        mean, p95, cached = (
            statistics.median(getattr(r, field) for r in found) for field in ("mean_ms", "p95_ms", "cached_percent")
        )
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        print(f"{name:16} {mean:8.1f} {p95:8.1f} {cached:9.1f}  {spread}")


def virtual(seeds: Sequence[int]) -> dict[str, list[Round]]:
    """The replay, by way to pick."""
    found: dict[str, list[Round]] = {}
    for name, picking in PICKINGS.items():
        replays = [replay(SHAPE, SPEED, picking, seed, REPLICAS) for seed in seeds]
        found[name] = [Round(r.first_token_s, r.prompt_tokens, r.cached_tokens) for r in replays]
    return found


def table() -> TrafficTable:
    """One revision, all traffic."""
    revision = RevisionTraffic(digest="a" * 64, version="1.0.0", role=Role.STABLE, weight=100, application="stable")
    model = ModelTraffic(model="chat", salt="s" * 16, revisions=(revision,))
    return TrafficTable(fence=1, sequence=1, issued_at=time.time(), models=(model,))


def fetch(url: str) -> None:
    """Fetch a page; raises when it is not to be had."""
    urllib.request.urlopen(url).close()


def measure(rounds: int) -> dict[str, list[Round]]:
    """Start engines and gateways, run all rounds, stop them."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(*command: str) -> None:
        whole = [sys.executable, "-m", *command]
        processes.append(subprocess.Popen(whole, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))

    with tempfile.TemporaryDirectory(prefix="tidegate-bench-") as folder:
        try:
            engines = [free_port() for _ in range(REPLICAS)]
            for port in engines:
                start("serving.engines.simulated", "--uri", SPEED.uri(SHAPE.answer_tokens), "--port", str(port))
            ports = {}
            for number, (name, picking) in enumerate(PICKINGS.items()):
                config = GatewayConfig(
                    home=Path(folder) / str(number), port=free_port(), admin_port=free_port(), control_url=None,
                    endpoints={"stable": tuple(f"http://127.0.0.1:{port}" for port in engines)}, picking=picking,
                )  # fmt: skip
                save_table(config.home / "gateway" / "table.json", table())
                start("serving.gateway.main", "--config", config.to_json())
                ports[name] = (config.port, config.admin_port)
            for port in engines:
                wait_for(partial(fetch, f"http://127.0.0.1:{port}/health"))
            for _, port in ports.values():
                wait_for(partial(fetch, f"http://127.0.0.1:{port}/readyz"))
            found: dict[str, list[Round]] = {name: [] for name in PICKINGS}
            for number in range(rounds):
                for name, (port, _) in ports.items():
                    found[name].append(uvloop.run(drive(port, number, f"{number} {name}")))
            return found
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait(10)


def main() -> None:
    """Replay, then measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--virtual", action="store_true", help="only the replay in virtual time")
    args = parser.parse_args()
    report("replay in virtual time", virtual(range(args.rounds)))
    if not args.virtual:
        report(f"real processes, medians of {args.rounds} rounds", measure(args.rounds))


if __name__ == "__main__":
    main()
