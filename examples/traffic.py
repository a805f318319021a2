"""Steady traffic, so that a rollout has something to judge: `python examples/traffic.py [--concurrency 4]`.

Every few seconds it prints how many answers each version gave and how many requests failed. Ctrl-C ends it.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import os
import random
from pathlib import Path

from openai import AsyncOpenAI, OpenAIError

BASE_URL = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1")
QUESTIONS = (Path(__file__).parent / "prompts" / "questions.txt").read_text().splitlines()
REPORT_EVERY_S = 5.0


async def client_loop(client: AsyncOpenAI, max_tokens: int, seen: collections.Counter[str]) -> None:
    """Ask one question after the other."""
    while True:
        try:
            raw = await client.chat.completions.with_raw_response.create(
                model="chat",
                messages=[{"role": "user", "content": random.choice(QUESTIONS)}],
                max_tokens=max_tokens,
            )
            seen[raw.headers.get("x-tidegate-version", "answered")] += 1
        except OpenAIError as error:
            seen[f"failed ({type(error).__name__})"] += 1
            await asyncio.sleep(0.5)


async def report(seen: collections.Counter[str]) -> None:
    """Print the counts since the last line."""
    while True:
        await asyncio.sleep(REPORT_EVERY_S)
        counts = "  ".join(f"{version}: {count}" for version, count in sorted(seen.items()))
        print(counts or "no answer yet", flush=True)
        seen.clear()


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--concurrency", type=int, default=4, help="requests under way at a time (4)")
    parser.add_argument("--max-tokens", type=int, default=48, help="the longest answer, in tokens (48)")
    args = parser.parse_args()
    seen: collections.Counter[str] = collections.Counter()
    client = AsyncOpenAI(base_url=BASE_URL, api_key=os.environ.get("OPENAI_API_KEY", "none"), max_retries=0)
    loops = [client_loop(client, args.max_tokens, seen) for _ in range(args.concurrency)]
    await asyncio.gather(report(seen), *loops)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
