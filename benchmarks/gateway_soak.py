"""A soak: two gateways on one port under mixed load, while engines are killed, added, held and retired.

    python -m benchmarks gateway_soak [--seconds 600] [--clients 24] [--seed 1]

Clients ask whole answers and streams, in sessions and pinned to versions; some leave, some read slowly. Every answer
must carry its request's mark and be whole; the only failures allowed are streams that had begun on an engine that was
killed (`kill -9`). At the end nothing may be under way, the watermark has reached the last admission, usage is exactly
what the clients saw, and the gateways' memory is flat. Exit code 1 if any of it is not so. Loopback only.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.soak.load import SHARES, Client, Kind, Tally
from benchmarks.soak.verdict import Memory, Verdict, judge
from benchmarks.soak.world import TROUBLE, Shape, World
from serving.traffic import Role

PROGRESS_EVERY_S = 10.0


@dataclass
class Soak:
    """What is run, and what came of it."""

    seconds: float
    clients: int
    seed: int
    trouble_every_s: float = 1.0
    trouble: Mapping[str, int] = field(default_factory=lambda: TROUBLE)
    shares: Mapping[Kind, int] = field(default_factory=lambda: SHARES)
    shape: Shape = field(default_factory=Shape)
    tally: Tally = field(default_factory=Tally)
    done: Counter[str] = field(default_factory=Counter)
    retries: Counter[str] = field(default_factory=Counter)


async def run(soak: Soak, folder: Path) -> Verdict:
    """Run one and judge it."""
    tally, memory, seconds = soak.tally, Memory(), soak.seconds
    replicas = {Role.STABLE: 3, Role.CANARY: 3}
    async with World(folder, random.Random(soak.seed), soak.shape, replicas) as world:
        world.on_kill, world.done, world.retries = tally.engine_dies, soak.done, soak.retries
        began = time.monotonic()
        until = began + seconds
        watching = [asyncio.create_task(memory.watch(world)), asyncio.create_task(_progress(world, tally, began))]
        askers = [Client(i, world, tally, random.Random(soak.seed * 1000 + i)) for i in range(soak.clients)]
        try:
            await asyncio.gather(
                world.trouble(until - min(5.0, seconds / 10), soak.trouble_every_s, soak.trouble),
                *(asker.run(until, soak.shares) for asker in askers),
            )
        finally:
            for task in watching:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        return await judge(world, tally, memory, time.monotonic() - began)


async def _progress(world: World, tally: Tally, began: float) -> None:
    while True:
        await asyncio.sleep(PROGRESS_EVERY_S)
        engines = f"{len(world.fingerprints(Role.STABLE))}+{len(world.fingerprints(Role.CANARY))}"
        print(
            f"{time.monotonic() - began:5.0f} s  {tally.asked:7} requests  {len(tally.wrong)} wrong  "
            f"{len(tally.unexpected)} unexcused  engines {engines}  weight {world.weight}",
            file=sys.stderr,
            flush=True,
        )


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0, help="how long the load lasts")
    parser.add_argument("--clients", type=int, default=24, help="requests under way at once")
    parser.add_argument("--seed", type=int, default=1, help="of every draw; the machine's own pace is not repeated")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tidegate-soak-") as folder:
        verdict = asyncio.run(run(Soak(args.seconds, args.clients, args.seed), Path(folder)))
    print(verdict.table())
    return 1 if verdict.faults else 0


if __name__ == "__main__":
    sys.exit(main())
