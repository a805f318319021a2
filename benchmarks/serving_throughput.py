"""Output tokens per second of the platform beside the bare vLLM server, measured in one run.

    python -m benchmarks.serving_throughput --model-dir DIR --url http://127.0.0.1:8000 --model chat

Rounds alternate between the two, so that a noisy neighbour hits both; medians and the spread are printed, and the
ratio of the medians. The bare server is `python -m vllm.entrypoints.openai.api_server` with the same engine arguments;
while one side is measured the other is idle. Give `--bare-url` when it runs already.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import httpx

from serving.engines.base import bind_listener

WORDS = [
    "river",
    "stone",
    "window",
    "summer",
    "engine",
    "letter",
    "garden",
    "silver",
    "market",
    "quiet",
    "bridge",
    "yellow",
    "forest",
    "number",
    "winter",
]
CONCURRENCIES = (1, 16)


@dataclass(frozen=True)
class Load:
    """One measurement: `requests` prompts of about `input_tokens`, answered with exactly `output_tokens`."""

    concurrency: int
    requests: int
    input_tokens: int = 64
    output_tokens: int = 48


@dataclass(frozen=True)
class Result:
    """What a measurement gave."""

    tokens_per_s: float
    ttft_p50_s: float
    failed: int


async def measure(base_url: str, model: str, load: Load, seed: int) -> Result:
    """Keep `concurrency` requests in flight until all are answered; count tokens by the usage that the engine tells."""
    rng = random.Random(seed)
    prompts = [" ".join(rng.choices(WORDS, k=load.input_tokens)) for _ in range(load.requests)]
    limits = httpx.Limits(max_connections=load.concurrency, max_keepalive_connections=load.concurrency)
    gate = asyncio.Semaphore(load.concurrency)
    async with httpx.AsyncClient(base_url=base_url, timeout=600, limits=limits, trust_env=False) as client:
        began = time.perf_counter()
        answers = await asyncio.gather(*(_one(client, model, prompt, load.output_tokens, gate) for prompt in prompts))
        took = time.perf_counter() - began
    good = [answer for answer in answers if answer is not None]
    if not good:
        raise SystemExit(
            f"{base_url}: none of {load.requests} requests was answered; is the model {model!r} served there?"
        )
    return Result(
        sum(tokens for tokens, _ in good) / took, statistics.median(ttft for _, ttft in good), len(answers) - len(good)
    )


async def _one(
    client: httpx.AsyncClient, model: str, prompt: str, tokens: int, gate: asyncio.Semaphore
) -> tuple[int, float] | None:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    async with gate:
        began, first, counted = time.perf_counter(), 0.0, 0
        try:
            async with client.stream("POST", "/v1/chat/completions", json=body) as response:
                if response.status_code != 200:
                    return None
                async for line in response.aiter_lines():
                    if not line.startswith("data: {"):
                        continue
                    first = first or time.perf_counter() - began
                    if '"usage":{' in line:
                        counted = (json.loads(line[6:]).get("usage") or {}).get("completion_tokens", counted)
        except httpx.HTTPError:
            return None
    return (counted, first) if counted else None


class BareServer:
    """The bare vLLM server as a child process."""

    def __init__(
        self, model_dir: str, model: str, engine_args: Sequence[str], threads: int, environment: Mapping[str, str]
    ) -> None:
        listener = bind_listener("127.0.0.1")
        listener.sock.close()
        self.url = listener.url
        env = os.environ | {
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "OMP_NUM_THREADS": str(threads),
            **environment,
        }
        flags = [
            "--model",
            model_dir,
            "--served-model-name",
            model,
            "--host",
            "127.0.0.1",
            "--port",
            str(listener.port),
        ]
        flags += ["--enforce-eager", "--max-num-seqs", "64", "--disable-uvicorn-access-log", *engine_args]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *flags],
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def wait_ready(self, timeout_s: float = 300) -> float:
        """Wait for /health; return the seconds it took."""
        began = time.perf_counter()
        while time.perf_counter() - began < timeout_s:
            if self._process.poll() is not None:
                raise SystemExit(f"the bare vLLM server ended with {self._process.returncode}")
            try:
                if httpx.get(self.url + "/health", timeout=2, trust_env=False).status_code == 200:
                    return time.perf_counter() - began
            except httpx.HTTPError:
                pass
            time.sleep(0.25)
        raise SystemExit(f"the bare vLLM server was not ready within {timeout_s:g} s")

    def stop(self) -> None:
        """End it and its children."""
        for sig, grace_s in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
            try:
                os.killpg(self._process.pid, sig)
                self._process.wait(grace_s)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue


def compare(sides: dict[str, str], model: str, rounds: int, requests: dict[int, int]) -> dict[str, dict[str, object]]:
    """Measure all sides in alternating rounds, after one warm-up each; print as it goes."""
    figures: dict[tuple[str, int], list[Result]] = {}
    for url in sides.values():
        asyncio.run(measure(url, model, Load(4, 4, output_tokens=8), seed=0))
    for turn in range(rounds):
        for concurrency, count in requests.items():
            for name, url in list(sides.items()) if turn % 2 == 0 else list(sides.items())[::-1]:
                result = asyncio.run(measure(url, model, Load(concurrency, count), seed=1000 * turn + concurrency))
                figures.setdefault((name, concurrency), []).append(result)
                print(
                    f"round {turn + 1} c={concurrency:<3} {name:<10} {result.tokens_per_s:7.1f} tok/s  "
                    f"ttft {result.ttft_p50_s * 1000:6.0f} ms  failed {result.failed}",
                    flush=True,
                )
    report: dict[str, dict[str, object]] = {}
    for concurrency in requests:
        row: dict[str, object] = {}
        for name in sides:
            values = [r.tokens_per_s for r in figures[name, concurrency]]
            row[name] = {
                "median": round(statistics.median(values), 1),
                "min": round(min(values), 1),
                "max": round(max(values), 1),
            }
        if len(sides) > 1:
            first, *others = (statistics.median([r.tokens_per_s for r in figures[name, concurrency]]) for name in sides)
            row["ratio"] = [round(other / first, 3) for other in others]
        report[f"c={concurrency}"] = row
    return report


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving_throughput", description=__doc__.split("\n")[0])
    parser.add_argument("--url", help="the platform's OpenAI address; without it only the bare server is measured")
    parser.add_argument("--bare-url", help="a bare vLLM server that runs already")
    parser.add_argument("--model-dir", help="folder of safetensors, to start a bare server from")
    parser.add_argument("--model", default="chat", help="the model's name")
    parser.add_argument(
        "--engine-arg", action="append", default=[], metavar="K=V", help="vLLM flag, as the version has it"
    )
    parser.add_argument(
        "--threads", type=int, default=len(os.sched_getaffinity(0)), help="OMP_NUM_THREADS of the bare server"
    )
    parser.add_argument("--bare-env", action="append", default=[], metavar="K=V", help="environment of the bare server")
    parser.add_argument("--rounds", type=int, default=3, help="alternating rounds")
    parser.add_argument(
        "--requests", default="1:4,16:32", metavar="C:N,...", help="requests per round at each concurrency"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON only")
    args = parser.parse_args()
    if not (args.bare_url or args.model_dir or args.url):
        parser.error("give --model-dir (or --bare-url), and --url")
    requests = {int(c): int(n) for c, n in (pair.split(":") for pair in args.requests.split(","))}
    flags = [
        f for pair in args.engine_arg for k, _, v in [pair.partition("=")] for f in ("--" + k.replace("_", "-"), v) if f
    ]
    bare = (
        BareServer(args.model_dir, args.model, flags, args.threads, dict(p.split("=", 1) for p in args.bare_env))
        if args.model_dir and not args.bare_url
        else None
    )
    try:
        sides: dict[str, str] = {}
        if bare:
            print(f"bare vLLM ready after {bare.wait_ready():.0f} s", flush=True)
            sides["bare"] = bare.url
        elif args.bare_url:
            sides["bare"] = args.bare_url
        if args.url:
            sides["platform"] = args.url
        print(json.dumps(compare(sides, args.model, args.rounds, requests), indent=None if args.json else 1))
    finally:
        if bare:
            bare.stop()


if __name__ == "__main__":
    main()
