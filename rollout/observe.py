"""Look at the world: router, workloads, evidence, and a metrics store. The shell that fills an `Observation`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from monitoring.providers.base import ProviderError, RevisionQuery, SignalProvider, SignalQuery
from rollout.analysis.counter_signal import ArmCounters, CounterReading
from rollout.analysis.ledger import EvidenceIncrement, Ledger
from rollout.errors import EventLogUnavailable
from rollout.observation import Exposure, Observation
from rollout.specs import PrometheusQuery, SignalSpec
from rollout.status import ModelStatus
from rollout.traffic_routers.base import RouterView
from rollout.workloads.base import WorkloadState, WorkloadStatus

log = logging.getLogger(__name__)


def observe(
    view: RouterView, workloads: Mapping[str, WorkloadStatus] | None, ledger: Ledger | None, applications: set[str]
) -> Observation:
    """Put together what concerns one model.

    Args:
        view: what the router tells.
        workloads: what the workload layer tells; None when it could not be asked. One of the model's that is UNKNOWN
            is the same to this model.
        ledger: the evidence of the active rollout, if there is one.
        applications: the model's own applications, so that a decision's record holds nothing of other models.

    """
    own = None if workloads is None else {a: w for a, w in workloads.items() if a in applications}
    if own is not None and any(w.state is WorkloadState.UNKNOWN for w in own.values()):
        own = None
    return Observation(
        workloads=own,
        gateways=view.gateways,
        table_applied=view.applied,
        ready_endpoints={a: n for a, n in view.ready_endpoints.items() if a in applications},
        in_flight=view.in_flight,
        signals=ledger.readings() if ledger is not None else (),
        exposure=ledger.exposure() if ledger is not None else Exposure(),
        sample_ratio=ledger.sample_ratio() if ledger is not None else None,
        comparisons=ledger.comparisons() if ledger is not None else (),
        similarity=ledger.similarity() if ledger is not None else None,
        sessions=ledger.sessions if ledger is not None else 0,
        pairs=ledger.pairs if ledger is not None else 0,
    )


@dataclass(frozen=True, slots=True)
class Polled:
    """A rollout whose counters are to be read, with the canary's weight in percent as it is wished for now."""

    model: str
    rollout: str
    weight: int
    signals: tuple[SignalSpec, ...]
    canary: str
    """Its version."""
    stable: str | None


def polled(statuses: Iterable[ModelStatus]) -> tuple[Polled, ...]:
    """The rollouts that have traffic, or are watched after a switch, and have signals from a metrics store."""
    found: list[Polled] = []
    for status in statuses:
        rollout = status.rollout
        if rollout is None or not (rollout.has_traffic or rollout.watched):
            continue
        signals = tuple(s for s in rollout.spec.analysis.signals if s.prometheus is not None)
        if not signals:
            continue
        other = status.previous if rollout.watched else status.stable
        found.append(
            Polled(
                model=status.model,
                rollout=rollout.id,
                weight=100 if rollout.watched else rollout.weight,
                signals=signals,
                canary=rollout.target.version,
                stable=None if other is None else other.version,
            )
        )
    return tuple(found)


POLL_INTERVAL_S = 30.0
"""Between two readings. Not below the store's scrape interval, or the two arms' counters can't be told to belong
together (monitoring/sequential/counters.py)."""

POLL_SETTLE_S = 60.0
"""How long a weight must have been in force before what is counted is taken as admitted under it: longer than most
answers take, and than a scrape."""

COUNTERS = "counters"
"""The name under which readings are in the event log, in a gateway's place."""

MAX_READS_AT_ONCE = 8


class ProviderPoller:
    """Reads the counters of all rollouts that ask for it, again and again, and hands them on as evidence.

    Only a leader should run it. A reading that fails is handed on too: the signal is an Error until one succeeds.

    Args:
        provider: the metrics store.
        wanted: what to read now, for instance `lambda: polled(controller.statuses)`.
        applied: whether everything that divides traffic follows the newest table.
        sink: takes the evidence of a model; writes it into the log and folds it (`Controller.on_measured`).
        boot: a new id for each start, so that readings are never taken for those of an earlier start.
        clock: seconds since the epoch, for readings that failed.
        monotonic: seconds, for how long a weight has been in force.
        interval_s: between two readings.
        settle_s: how long a weight must have been in force.

    """

    def __init__(
        self,
        provider: SignalProvider,
        *,
        wanted: Callable[[], Sequence[Polled]],
        applied: Callable[[], bool],
        sink: Callable[[str, EvidenceIncrement], object],
        boot: str,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
        interval_s: float = POLL_INTERVAL_S,
        settle_s: float = POLL_SETTLE_S,
    ) -> None:
        self._provider = provider
        self._wanted = wanted
        self._applied = applied
        self._sink = sink
        self._boot = boot
        self._clock = clock
        self._monotonic = monotonic
        self._interval_s = interval_s
        self._settle_s = settle_s
        self._number = 0
        self._since: dict[tuple[str, str, int], float] = {}
        self._permits = asyncio.Semaphore(MAX_READS_AT_ONCE)

    async def run(self) -> None:
        """Read for ever; cancel it to stop."""
        while True:
            await self.once()
            await asyncio.sleep(self._interval_s)

    async def once(self) -> None:
        """Read every wanted signal once."""
        self._note_weights()
        wanted = tuple(self._wanted())
        async with asyncio.TaskGroup() as tasks:
            for one in wanted:
                tasks.create_task(self._read(one))

    def _note_weights(self) -> None:
        """Remember since when each rollout's weight has been in force without a break."""
        now = self._monotonic()
        wished = {(p.model, p.rollout, p.weight) for p in self._wanted()} if self._applied() else set()
        self._since = {key: self._since.get(key, now) for key in wished}

    async def _read(self, one: Polled) -> None:
        found: list[CounterReading] = []
        for signal in one.signals:
            async with self._permits:
                found.append(await self._signal(one, signal))
        # The weight may have changed while the store was asked: then nobody knows under which one was counted.
        self._note_weights()
        since = self._since.get((one.model, one.rollout, one.weight))
        settled = since is not None and self._monotonic() - since >= self._settle_s
        counters = tuple(r.model_copy(update={"weight": one.weight if settled else 0}) for r in found)
        increment = EvidenceIncrement(
            rollout=one.rollout, gateway=COUNTERS, boot=self._boot, at=self._clock(), counters=counters
        )
        try:
            self._sink(one.model, increment)
        except EventLogUnavailable as error:
            # Counters are cumulative: the next reading tells it all again.
            log.warning("%s: a reading of its counters can't be booked: %s", one.model, error)

    async def _signal(self, one: Polled, signal: SignalSpec) -> CounterReading:
        assert signal.prometheus is not None
        self._number += 1
        number = self._number
        query = SignalQuery(
            canary=_queries(signal.prometheus, one.model, one.canary),
            stable=None if one.stable is None else _queries(signal.prometheus, one.model, one.stable),
        )
        try:
            measured = await self._provider.read(query)
        except ProviderError as error:
            log.warning("%s: %s can't be read: %s", one.model, signal.name, error)
            return CounterReading(signal=signal.name, number=number, at=self._clock(), error=str(error))
        stable = measured.stable
        return CounterReading(
            signal=signal.name,
            number=number,
            at=measured.at,
            canary=ArmCounters(events=measured.canary.events, units=measured.canary.total),
            stable=None if stable is None else ArmCounters(events=stable.events, units=stable.total),
        )


def _queries(query: PrometheusQuery, model: str, version: str) -> RevisionQuery:
    return RevisionQuery(events=query.events_of(model, version), total=query.total_of(model, version))
