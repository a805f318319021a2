"""What must be true when a soak is over, and the table that shows it."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx
import psutil

from benchmarks.soak.load import Sums, Tally
from benchmarks.soak.world import LEAVER, STEADY, World
from serving.accounting import UsageRow

SETTLE_WITHIN_S = 30.0
ALLOWED_GROWTH_MB = 12.0
"""Of a gateway between the first quarter and the end: allocators breathe, answers under way differ."""


@dataclass
class Memory:
    """Resident memory of the gateways over time, in MB."""

    samples: dict[str, list[float]] = field(default_factory=dict)

    async def watch(self, world: World, every_s: float = 1.0) -> None:
        """Look at it until cancelled."""
        watched = {g.name: psutil.Process(g.process.pid) for g in world.gateways}
        while True:
            for name, process in watched.items():
                self.samples.setdefault(name, []).append(process.memory_info().rss / 1e6)
            await asyncio.sleep(every_s)

    def growth(self) -> dict[str, tuple[float, float]]:
        """By gateway: the median of the second quarter of the time, and of the last."""
        found = {}
        for name, values in self.samples.items():
            quarter = max(1, len(values) // 4)
            early = values[quarter : 2 * quarter] or values
            found[name] = (statistics.median(early), statistics.median(values[-quarter:]))
        return found


@dataclass
class Verdict:
    """What was found; `faults` is empty when all is well."""

    rows: list[tuple[str, str]]
    faults: list[str]

    def table(self) -> str:
        """For people."""
        width = max(len(name) for name, _ in self.rows)
        lines = [f"{name:<{width}}  {value}" for name, value in self.rows]
        return "\n".join([*lines, *(f"FAULT: {fault}" for fault in self.faults)])


async def settle(condition: Callable[[], bool], within_s: float = SETTLE_WITHIN_S) -> bool:
    """Wait until something is so; False when it is not in time."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.05)
    return True


async def judge(world: World, tally: Tally, memory: Memory, took_s: float) -> Verdict:
    """Wait until the gateways have told everything, then compare it with what the clients saw."""
    faults = [f"wrong answer: {text}" for text in tally.wrong[:20]]
    faults += [f"unexcused: {text}" for text in tally.unexpected[:20]]
    controller = world.controller
    if not await settle(lambda: len(controller.in_flight) == 2 and not any(controller.in_flight.values())):
        faults.append(f"answers under way did not return to 0: {controller.in_flight}")
    if not await settle(lambda: all(_settled(world, g) for g in controller.totals)):
        faults.append(f"the watermark did not reach the end: {_watermarks(world)}")
    if not await settle(lambda: _used(world) == _expected(tally)):
        faults.append(f"usage is {_used(world)}, the clients saw {_expected(tally)}")
    faults += await _gauges(world)
    growth = memory.growth()
    faults += [
        f"{name} grew from {early:.0f} to {late:.0f} MB, more than {ALLOWED_GROWTH_MB:g}"
        for name, (early, late) in growth.items()
        if late - early > ALLOWED_GROWTH_MB
    ]
    return Verdict(_rows(world, tally, growth, took_s), faults)


def _settled(world: World, gateway: str) -> bool:
    totals = world.controller.totals[gateway].values()
    admitted = sum(t.admitted for t in totals)
    told = sum(t.settled for t in totals)
    through = world.controller.settled_through.get(gateway)
    return admitted == told == through and not any(t.in_flight for t in totals)


def _watermarks(world: World) -> dict[str, tuple[int | None, int]]:
    return {
        g: (world.controller.settled_through.get(g), sum(t.admitted for t in totals.values()))
        for g, totals in world.controller.totals.items()
    }


def _used(world: World, key: str = STEADY) -> dict[str, Sums]:
    found: dict[str, Sums] = {}
    rows: list[UsageRow] = [row for row in world.controller.usage.values() if row.key == key]
    for row in rows:
        sums = found.setdefault(row.version, Sums())
        sums.requests += row.requests
        sums.input_tokens += row.input_tokens
        sums.output_tokens += row.output_tokens
        sums.unmetered += row.unmetered
    return found


def _expected(tally: Tally) -> dict[str, Sums]:
    return tally.usage


async def _gauges(world: World) -> list[str]:
    """Faults in what the gateways say of themselves at the end."""
    faults = []
    async with httpx.AsyncClient(timeout=10, trust_env=False) as http:
        for gateway in world.gateways:
            if not gateway.alive:
                faults.append(f"{gateway.name} has ended with {gateway.process.returncode}")
                continue
            text = (await http.get(gateway.admin_url + "/metrics")).text
            lines = [line for line in text.splitlines() if line.startswith(("tidegate_streams_in_flight{",
                                                                            "tidegate_queue_depth{"))]  # fmt: skip
            faults += [f"{gateway.name}: {line}" for line in lines if float(line.split()[-1])]
            for line in text.splitlines():
                if line.startswith("tidegate_retries_total{"):
                    world.retries[line.split('cause="')[1].split('"')[0]] += round(float(line.split()[-1]))
            log = gateway.log.read_text(errors="replace")
            faults += [f"{gateway.name} logged: {line[:300]}" for line in log.splitlines() if '"traceback"' in line][:3]
    return faults


def _rows(world: World, tally: Tally, growth: dict[str, tuple[float, float]], took_s: float) -> list[tuple[str, str]]:
    rows = [("seconds", f"{took_s:.0f}"), ("requests", f"{tally.asked} ({tally.asked / took_s:.0f}/s)")]
    for kind, outcomes in tally.outcomes.items():
        rows.append((f"  {kind.value}", ", ".join(f"{n} {name}" for name, n in outcomes.most_common())))
    rows += [(name, str(n)) for name, n in sorted(world.done.items())]
    broken = sum(tally.broken_streams.values())
    used = sum((s.input_tokens + s.output_tokens for s in _used(world).values()), 0)
    leavers = sum(s.requests for s in _used(world, LEAVER).values())
    rows += [
        ("streams seen to have begun on an engine when it was killed", str(tally.begun_when_killed)),
        ("streams lost, each with the engine that it had begun on", str(broken)),
        ("requests saved from a dead or refusing engine", str(sum(world.retries.values()))),
        ("answers of somebody else, or not whole", str(len(tally.wrong))),
        ("other failures", str(len(tally.unexpected))),
        ("tokens counted by the gateways", f"{used}, of those who stayed; exactly what they saw is checked"),
        ("requests of leavers counted", str(leavers)),
        ("evidence events", str(world.controller.events)),
        ("watermark of each gateway, admitted", ", ".join(f"{a} of {b}" for a, b in _watermarks(world).values())),
        ("memory of each gateway, MB", ", ".join(f"{early:.1f} -> {late:.1f}" for early, late in growth.values())),
    ]
    return rows
