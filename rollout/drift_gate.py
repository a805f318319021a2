"""Ask the drift watch whether requests have drifted, for rollouts that have the signal `drift/input`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from rollout.analysis.comparison import Kind, kind_of
from rollout.analysis.counter_signal import CounterReading
from rollout.analysis.gate import why_held
from rollout.analysis.ledger import EvidenceIncrement
from rollout.errors import EventLogUnavailable
from rollout.status import ModelStatus

log = logging.getLogger(__name__)

INTERVAL_S = 2.0
DRIFT = "drift"
"""The name under which readings are in the event log, in a gateway's place."""


class DriftUnavailable(Exception):
    """The drift watch does not answer. The message is for people."""


def gated(statuses: Iterable[ModelStatus]) -> tuple[tuple[str, str, tuple[str, ...]], ...]:
    """(model, rollout, names of its gates) of the rollouts under way that have any."""
    found = []
    for status in statuses:
        if status.rollout is None:
            continue
        names = tuple(str(s.name) for s in status.rollout.spec.analysis.signals if kind_of(s.name) is Kind.GATE)
        if names:
            found.append((status.model, status.rollout.id, names))
    return tuple(found)


class DriftGate:
    """Hands on what the drift watch says, whenever it has changed. Only a leader should run it.

    Args:
        read: the watch's status; raises `DriftUnavailable`.
        wanted: what to ask for now, for instance `lambda: gated(controller.statuses)`.
        sink: takes the evidence of a model (`Controller.on_measured`).
        boot: a new id for each start, so that readings are never taken for those of an earlier start.
        clock: seconds since the epoch.

    """

    def __init__(
        self,
        read: Callable[[], Awaitable[Mapping[str, Any]]],
        *,
        wanted: Callable[[], tuple[tuple[str, str, tuple[str, ...]], ...]],
        sink: Callable[[str, EvidenceIncrement], object],
        boot: str,
        clock: Callable[[], float],
    ) -> None:
        self._read = read
        self._wanted = wanted
        self._sink = sink
        self._boot = boot
        self._clock = clock
        self._number = 0
        self._told: dict[str, str] = {}

    async def run(self) -> None:
        """Ask for ever; cancel it to stop."""
        while True:
            await self.once()
            await asyncio.sleep(INTERVAL_S)

    async def once(self) -> None:
        """Ask once, and tell what has changed for any rollout."""
        wanted = self._wanted()
        self._told = {rollout: self._told[rollout] for _, rollout, _ in wanted if rollout in self._told}
        if not wanted:
            return
        status: Mapping[str, Any] | None = None
        unavailable = ""
        try:
            status = await self._read()
        except DriftUnavailable as error:
            unavailable = str(error)
        for model, rollout, names in wanted:
            why = unavailable if status is None else why_held(status, model, self._clock())
            if self._told.get(rollout) == why:
                continue
            self._number += 1
            readings = tuple(CounterReading(signal=n, number=self._number, at=self._clock(), error=why) for n in names)
            increment = EvidenceIncrement(
                rollout=rollout, gateway=DRIFT, boot=self._boot, at=self._clock(), counters=readings
            )
            try:
                self._sink(model, increment)
            except EventLogUnavailable as error:
                log.warning("%s: what the drift watch says can't be booked: %s", model, error)
            else:
                self._told[rollout] = why
