"""How quick the controller is: many rollouts, many gateways, a bad outcome, a restart. On SQLite and on PostgreSQL.

    python -m benchmarks.controller_speed               # about two minutes
    python -m benchmarks.controller_speed --json
    python -m benchmarks.controller_speed --only tick   # or gateways, decision, append, recovery

The controller, its log, its hub and every message are the real ones; engines and gateways are made up in the same
process, and messages are handed over as text, so the sockets' own cost is not in the figures. PostgreSQL is a throwaway
one on loopback that flushes to the disk as in production; without its packages that half is left out.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import itertools
import json
import logging
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rollout.actions import Deployed, Promote, SetStep
from rollout.commands import Command, Verb
from rollout.controller import Controller
from rollout.decide import Cause, Decision
from rollout.event_log.base import Kind, NewEntry
from rollout.event_log.memory import MemoryEventLog
from rollout.event_log.sql import SqlEventLog
from rollout.specs import parse_spec
from rollout.traffic_routers.gateway import Connection, GatewayRouter
from rollout.workloads.memory import MemoryWorkloads
from serving.outcomes import FROM_CONTROLLER, Ack, Event, Events, Hello, Signal, TablePush, Total, Totals
from serving.specs import EngineKind, RevisionSpec
from serving.traffic import Role
from tests.postgres import Postgres, find_binaries

HEALTHY = {"steps": [{"weight": 10, "duration": "10h"}, {"weight": 100}]}


@dataclass(frozen=True)
class Figure:
    """One line of the table: the middle of its measurements, and where the most of them lie."""

    what: str
    value: float
    low: float
    high: float
    unit: str
    limit: float | None = None

    @property
    def missed(self) -> bool:
        """Whether a limit was given and exceeded."""
        return self.limit is not None and self.value > self.limit


def deployed(model: str, version: str) -> Deployed:
    """A version that only this benchmark knows."""
    manifest = hashlib.sha256(f"{model}@{version}".encode()).hexdigest()
    revision = RevisionSpec(
        model=model, version=version, manifest_sha256=manifest, engine=EngineKind.SIMULATED, source="sim:?"
    )
    return Deployed(revision=revision)


class Fleet:
    """A controller with models in their first step, and gateways that follow every table."""

    def __init__(self, event_log: MemoryEventLog | SqlEventLog, clock: Callable[[], float] = time.time) -> None:
        self.hub = GatewayRouter(time.monotonic)
        ids = itertools.count()
        self.controller = Controller(
            event_log=event_log,
            workloads=MemoryWorkloads(load_ticks=0, drain_ticks=0),
            router=self.hub,
            holder="bench",
            clock=clock,
            new_id=lambda: f"{next(ids):016x}",
        )
        self.connections: list[Connection] = []
        self.zero_at: dict[str, float] = {}

    async def models(self, names: list[str]) -> None:
        """Bring models to their first step, by the log alone."""
        assert self.controller.try_to_lead()
        for name in names:
            await self._deploy(name, "1.0.0")
            self._decide(name, Promote())
            await self._deploy(name, "1.1.0")
            self._decide(name, SetStep(step=0, weight=10))
        await self.controller.workloads.once()

    async def _deploy(self, model: str, version: str) -> None:
        spec = parse_spec({"model": model, "version": version, "strategy": {"canary": HEALTHY}})
        target = self.controller.new_target(spec, deployed(model, version))
        await self.controller.execute(model, Command(verb=Verb.DEPLOY, actor="bench"), target)

    def _decide(self, model: str, action: Promote | SetStep) -> None:
        decision = Decision(cause=Cause.PROGRESS, reason="by the benchmark", actions=(action,))
        self.controller._commit(model, decision, None, actor="bench")

    async def gateways(self, count: int, *, watching: str = "") -> None:
        """Connect gateways; `watching` names the model whose weight 0 is timed at the first one."""
        for n in range(count):
            hello = Hello(gateway=f"gateway-{n:03}", boot="boot")
            self.connections.append(await self.hub.attach(hello, self._receiver(n, watching)))
        await self.acknowledge()

    def _receiver(self, number: int, watching: str) -> Callable[[str], Awaitable[None]]:
        async def receive(text: str) -> None:
            if number or not watching or not text.startswith('{"type":"table"'):
                return
            arrived = time.perf_counter()
            message = FROM_CONTROLLER.validate_json(text)
            assert isinstance(message, TablePush)
            for traffic in message.table.models:
                canary = traffic.by_role(Role.CANARY)
                if canary is None or canary.weight == 0:
                    self.zero_at.setdefault(traffic.model, arrived)

        return receive

    async def acknowledge(self) -> None:
        """Every gateway follows the newest table."""
        await self.controller.tick()
        assert self.hub._table is not None
        generation = self.hub._table.generation
        text = Ack(fence=generation.fence, sequence=generation.sequence, applied_at=0).model_dump_json()
        for connection in self.connections:
            await self.hub.receive(connection, text)

    def report(self, models: list[str], n: int) -> str:
        """The n-th report of counters of one gateway: both revisions of every model, 1 % errors."""
        rows, ready, running = [], {}, {}
        for model in models:
            status = self.controller.status(model)
            rollout, stable = status.rollout, status.stable
            assert rollout is not None
            assert stable is not None
            for arm, role, per in ((rollout.target, Role.CANARY, 1), (stable, Role.STABLE, 9)):
                events = {"error": n * per // 100, "length-stop": n * per // 20, "slow-tokens:p95": n * per // 20}
                rows.append(
                    Total(
                        model=model, rollout=rollout.id, digest=arm.digest, role=role, weight=10, admitted=n * per,
                        first_sights=n * per, settled=n * per, settled_events=events, in_flight=3,
                        first_admitted_at=1.0, last_admitted_at=time.time(),
                    )
                )  # fmt: skip
                ready[arm.application] = 2
                running[arm.digest] = 3
        return Totals(
            sent_at=time.time(), totals=tuple(rows), settled_through=dict.fromkeys(models, n * 10),
            in_flight=running, endpoints_ready=ready,
        ).model_dump_json()  # fmt: skip

    def failures(self, model: str, sequence: int, count: int) -> str:
        """So many failed answers of a model's canary."""
        rollout = self.controller.status(model).rollout
        assert rollout is not None
        return Events(
            events=tuple(
                Event(
                    sequence=sequence + i, model=model, rollout=rollout.id, signal=Signal.ERROR, arm=Role.CANARY,
                    digest=rollout.target.digest, weight=10, admission=sequence + i, admitted_at=time.time(),
                    settled_at=time.time(),
                )
                for i in range(count)
            )
        ).model_dump_json()  # fmt: skip


def spread(what: str, found: list[float], unit: str, *, limit: float | None = None, at: float = 0.5) -> Figure:
    """A quantile of measurements, and the range from their 10th to their 90th percent."""
    ordered = sorted(found)

    def quantile(q: float) -> float:
        return ordered[min(len(ordered) - 1, int(q * len(ordered)))]

    return Figure(what, quantile(at), quantile(0.1), quantile(0.9), unit, limit)


async def ticks(count: int = 1000) -> list[Figure]:
    """A tick with many active rollouts of which little is heard."""
    fleet = Fleet(MemoryEventLog())
    names = [f"model-{n:04}" for n in range(count)]
    await fleet.models(names)
    await fleet.gateways(10)
    for connection in fleet.connections:
        for first in range(0, count, 100):
            await fleet.hub.receive(connection, fleet.report(names[first : first + 100], 100))
    for _ in range(15):
        await fleet.controller.tick()
    quiet, busy = [], []
    for n in range(60):
        began = time.perf_counter()
        await fleet.controller.tick()
        quiet.append(1e3 * (time.perf_counter() - began))
        for connection in fleet.connections[:5]:
            await fleet.hub.receive(connection, fleet.report(names[n * 10 : n * 10 + 10], 200 + n))
        began = time.perf_counter()
        await fleet.controller.tick()
        busy.append(1e3 * (time.perf_counter() - began))
    return [
        spread(f"tick, {count:,} active rollouts, nothing new", quiet, "ms", limit=100.0),
        spread(f"tick, {count:,} active rollouts, 10 of them with new counters", busy, "ms", limit=100.0),
    ]


async def gateways(count: int = 100, models: int = 5, seconds: float = 8.0) -> list[Figure]:
    """The share of a core that gateways cost which push counters ten times a second."""
    found: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        fleet = Fleet(SqlEventLog(f"sqlite:///{folder}/state.db"))
        names = [f"model-{n}" for n in range(models)]
        await fleet.models(names)
        await fleet.gateways(count)
        reports = [fleet.report(names, 100 + n) for n in range(int(seconds * 10) + 10)]
        ticking = asyncio.create_task(fleet.controller._tick_for_ever())
        started = began = time.perf_counter()
        used = time.process_time()
        for n, text in enumerate(reports[: int(seconds * 10)], start=1):
            for i, connection in enumerate(fleet.connections):
                await fleet.hub.receive(connection, text)
                if i % 10 == 9:
                    await asyncio.sleep(0)
            await asyncio.sleep(max(0.0, started + n / 10 - time.perf_counter()))
            if n % 10 == 0:
                wall, cpu = time.perf_counter() - began, time.process_time() - used
                found.append(cpu / wall)
                began, used = time.perf_counter(), time.process_time()
        ticking.cancel()
    told = f"{count} gateways, {models} rollouts each, counters ten times a second"
    return [spread(told, found, "cores", limit=0.5)]


async def decision(url: str, name: str, rounds: int = 120, crowd: int = 20) -> list[Figure]:
    """From the bad outcome that decides, as it arrives, to the table with weight 0 at a gateway."""
    fleet = Fleet(SqlEventLog(url))
    names = [f"model-{n:03}" for n in range(rounds)]
    await fleet.models(names)
    await fleet.gateways(crowd, watching="all")
    ticking = asyncio.create_task(fleet.controller._tick_for_ever())
    others = asyncio.create_task(_crowd(fleet, names[-5:]))
    took: list[float] = []
    sequence = 1
    for model in names[:-5]:
        arrived: list[float] = []
        while model not in fleet.zero_at:
            text = fleet.failures(model, sequence, 1)
            sequence += 1
            arrived.append(time.perf_counter())
            await fleet.hub.receive(fleet.connections[0], text)
            await asyncio.sleep(0.005)
        # Events that came while it was being decided don't count: the deciding one is the last that the decision saw.
        seen = fleet.controller._fold_of_log.last_seen[model]["signals"]
        counted = next(s["canary"]["events"] for s in seen if s["name"] == "error")
        took.append(1e3 * (fleet.zero_at[model] - arrived[counted - 1]))
    others.cancel()
    ticking.cancel()
    return [
        spread(f"deciding outcome to weight 0, p50, {name}", took, "ms"),
        spread(f"deciding outcome to weight 0, p99, {name}", took, "ms", limit=100.0, at=0.99),
    ]


async def _crowd(fleet: Fleet, names: list[str]) -> None:
    """The other gateways go on reporting all the while."""
    for n in itertools.count(100):
        text = fleet.report(names, n)
        for connection in fleet.connections[1:]:
            await fleet.hub.receive(connection, text)
            await asyncio.sleep(0)
        await asyncio.sleep(0.1)


def append(url: str, name: str, count: int = 1500) -> list[Figure]:
    """One entry of evidence into the log."""
    log = SqlEventLog(url)
    fence = log.acquire("bench", 0.0, 10.0) or 0
    payload = {"rollout": "r", "gateway": "g", "boot": "b", "events": [{"text": "x" * 500}]}
    entry = NewEntry(model="chat", at=1.0, kind=Kind.EVIDENCE, actor="gateway/g", rollout="r", payload=payload)
    took = []
    for _ in range(count):
        began = time.perf_counter()
        log.append([entry], fence)
        took.append(1e3 * (time.perf_counter() - began))
    log.close()
    return [
        spread(f"append one entry, p50, {name}", took, "ms"),
        spread(f"append one entry, p99, {name}", took, "ms", at=0.99),
    ]


def _in_two_hours() -> float:
    return time.time() + 7200.0


async def recovery(url: str, name: str, entries: int = 100_000) -> list[Figure]:
    """Folding a log after a restart: once with all its evidence of finished rollouts, once of active ones."""
    figures = []
    log = SqlEventLog(url)
    fleet = Fleet(log)
    names = [f"model-{n:02}" for n in range(20)]
    await fleet.models(names)
    fence = fleet.controller._fence or 0
    evidence: list[NewEntry] = []
    for n in range(entries):
        model = names[n % len(names)]
        rollout = fleet.controller.status(model).rollout
        assert rollout is not None
        total = Total(
            model=model, rollout=rollout.id, digest=rollout.target.digest, role=Role.CANARY, weight=10, admitted=n,
            settled=n, settled_events={"error": n // 100}, last_admitted_at=1.0,
        ).model_dump(mode="json", exclude_defaults=True)  # fmt: skip
        payload = {"rollout": rollout.id, "gateway": f"g{n % 7}", "boot": "b", "totals": [total], "settled_through": n}
        evidence.append(
            NewEntry(model=model, at=1.0, kind=Kind.EVIDENCE, actor="g", rollout=rollout.id, payload=payload)
        )
    for first in range(0, entries, 1000):
        log.append(evidence[first : first + 1000], fence)
    for told, end in (("of active rollouts", False), ("of rollouts that ended two hours ago", True)):
        if end:
            for model in names:
                fleet._decide(model, Promote())
        took = []
        for _ in range(3):
            fleet = Fleet(SqlEventLog(url), clock=_in_two_hours if end else time.time)
            began = time.perf_counter()
            assert fleet.controller.try_to_lead()
            took.append(time.perf_counter() - began)
        figures.append(spread(f"restart, log of {entries:,} entries {told}, {name}", took, "s", limit=15.0))
    return figures


@contextmanager
def stores() -> Iterator[list[tuple[str, Callable[[], str]]]]:
    """Each database's name, and what makes an empty one."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        numbers = itertools.count()
        found: list[tuple[str, Callable[[], str]]] = [
            ("SQLite", lambda: f"sqlite:///{Path(folder) / f'{next(numbers)}.db'}")
        ]
        if find_binaries() is not None:
            server = Postgres(flushed=True)
            stack.callback(server.remove)
            server.start()
            found.append(("PostgreSQL", server.new_database))
        yield found


def measure(only: str) -> list[Figure]:
    """Every figure, or those of one part."""
    figures: list[Figure] = []
    with stores() as databases:
        if only in ("", "tick"):
            figures += asyncio.run(ticks())
        if only in ("", "gateways"):
            figures += asyncio.run(gateways())
        for name, new in databases:
            if only in ("", "append"):
                figures += append(new(), name)
            if only in ("", "decision"):
                figures += asyncio.run(decision(new(), name))
            if only in ("", "recovery"):
                figures += asyncio.run(recovery(new(), name))
    return figures


def main() -> int:
    """Print the table; 1 when a limit is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--only", default="", choices=("", "tick", "gateways", "append", "decision", "recovery"))
    arguments = parser.parse_args()
    logging.disable(logging.ERROR)
    figures = measure(arguments.only)
    if arguments.json:
        sys.stdout.write(json.dumps([asdict(f) for f in figures], indent=2) + "\n")
        return int(any(f.missed for f in figures))
    table = Table(title="Controller")
    table.add_column("what")
    for column in ("figure", "10 % to 90 %", "unit", "limit"):
        table.add_column(column, justify="right")
    for f in figures:
        limit = "" if f.limit is None else f"<= {f.limit:g}"
        table.add_row(f.what, f"{f.value:.3g}", f"{f.low:.3g} to {f.high:.3g}", f.unit, limit)
    Console(width=None if sys.stdout.isatty() else 130).print(table)
    return int(any(f.missed for f in figures))


if __name__ == "__main__":
    raise SystemExit(main())
