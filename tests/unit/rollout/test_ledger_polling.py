"""The shell around a metrics store: what is read when, under which weight, and what becomes of failures."""

from __future__ import annotations

import asyncio

from monitoring.providers.base import NoData
from monitoring.providers.memory import MemoryProvider
from rollout.actions import Deployed
from rollout.analysis.ledger import EvidenceIncrement
from rollout.errors import EventLogUnavailable
from rollout.observe import COUNTERS, Polled, ProviderPoller, polled
from rollout.specs import parse_spec
from rollout.status import ModelStatus, RolloutState, Stage
from serving.specs import EngineKind, RevisionSpec

QUERIES = {"events": 'bad{model="$model",version="$version"}', "total": 'all{version="$version"}'}
SPEC = parse_spec(
    {
        "model": "chat",
        "version": "1.1.0",
        "analysis": {"signals": [{"name": "error"}, {"name": "prometheus/x", "prometheus": QUERIES}]},
    }
)


def deployed(version: str) -> Deployed:
    revision = RevisionSpec(
        model="chat", version=version, manifest_sha256=f"{int(version.replace('.', '')):064x}",
        engine=EngineKind.SIMULATED, source="sim:?",
    )  # fmt: skip
    return Deployed(revision=revision)


def status(stage: Stage = Stage.STEPPING, weight: int = 10, **changes) -> ModelStatus:
    rollout = RolloutState(
        id="r", spec=SPEC, target=deployed("1.1.0"), salt="s", stage=stage, weight=weight, started_at=0.0,
        step_started_at=0.0, **changes,
    )  # fmt: skip
    return ModelStatus(model="chat", stable=deployed("1.0.0"), previous=deployed("0.9.0"), rollout=rollout)


class Bench:
    """A poller with everything around it in hand."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.applied = True
        self.weight = 10
        self.booked: list[tuple[str, EvidenceIncrement]] = []
        self.thrice = asyncio.Event()
        self.away = False
        self.provider = MemoryProvider(lambda: self.now)
        for version, bad, everything in (("1.1.0", 2.0, 100.0), ("1.0.0", 5.0, 900.0)):
            self.provider.set(f'bad{{model="chat",version="{version}"}}', bad)
            self.provider.set(f'all{{version="{version}"}}', everything)
        self.poller = ProviderPoller(
            self.provider,
            wanted=lambda: polled([status(weight=self.weight)]),
            applied=lambda: self.applied,
            sink=self.book,
            boot="b",
            clock=lambda: self.now,
            monotonic=lambda: self.now,
            interval_s=0.01,
            settle_s=60.0,
        )

    def book(self, model: str, increment: EvidenceIncrement) -> None:
        if self.away:
            raise EventLogUnavailable("the database is away")
        self.booked.append((model, increment))
        if len(self.booked) >= 3:
            self.thrice.set()

    async def after(self, seconds: float) -> EvidenceIncrement:
        """Let time pass and read once."""
        self.now += seconds
        await self.poller.once()
        return self.booked[-1][1]


def test_rollouts_with_traffic_or_under_watch_are_read_and_no_others():
    stepping = polled([status()])
    assert stepping == (Polled("chat", "r", 10, (SPEC.analysis.signals[1],), "1.1.0", "1.0.0"),)
    assert (
        polled([status(Stage.STARTING), status(Stage.WITHDRAWN), status(Stage.PROMOTED), ModelStatus(model="a")]) == ()
    )
    (watched,) = polled([status(Stage.PROMOTED, watch_until=99.0)])
    assert (watched.weight, watched.canary, watched.stable) == (100, "1.1.0", "0.9.0")


async def test_a_reading_carries_both_revisions_counters_with_a_number_of_its_own():
    bench = Bench()
    first, second = await bench.after(1.0), await bench.after(1.0)
    (one,), (two,) = first.counters, second.counters
    assert (first.rollout, first.gateway, first.boot) == ("r", COUNTERS, "b")
    assert (one.canary.events, one.canary.units, one.stable.events, one.stable.units) == (2, 100, 5, 900)
    assert two.number > one.number


async def test_a_weight_counts_only_once_it_has_been_in_force_for_long_enough():
    bench = Bench()
    weights = [(await bench.after(seconds)).counters[0].weight for seconds in (1.0, 30.0, 31.0, 30.0)]
    assert weights == [0, 0, 10, 10]
    bench.weight = 25
    assert (await bench.after(1.0)).counters[0].weight == 0
    assert (await bench.after(61.0)).counters[0].weight == 25
    bench.applied = False
    assert (await bench.after(1.0)).counters[0].weight == 0
    bench.applied = True
    assert (await bench.after(1.0)).counters[0].weight == 0, "nobody knows what was in force in between"


async def test_a_weight_that_changes_while_the_store_is_asked_is_not_believed():
    bench = Bench()
    await bench.after(1.0)
    await bench.after(100.0)
    read = bench.provider.read

    async def slowly(query):
        bench.weight = 25
        return await read(query)

    bench.provider.read = slowly
    assert (await bench.after(1.0)).counters[0].weight == 0


async def test_a_store_that_fails_is_told_and_the_next_reading_goes_on():
    bench = Bench()
    bench.provider.failure = NoData("'bad' finds nothing")
    failed = (await bench.after(1.0)).counters[0]
    assert failed.canary is None
    assert failed.error == "'bad' finds nothing"
    bench.provider.failure = None
    assert (await bench.after(1.0)).counters[0].error == ""


async def test_a_log_that_is_away_stops_nothing_since_counters_tell_it_all_again():
    bench = Bench()
    bench.away = True
    await bench.poller.once()
    assert bench.booked == []
    bench.away = False
    assert (await bench.after(1.0)).counters[0].canary.units == 100


async def test_it_reads_again_and_again_until_it_is_stopped():
    bench = Bench()
    task = asyncio.create_task(bench.poller.run())
    await asyncio.wait_for(bench.thrice.wait(), 20)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert bench.provider.reads >= 3
