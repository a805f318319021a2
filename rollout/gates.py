"""Signals that only hold a rollout: somebody outside is asked why it should wait, and what they say is evidence.

A gate is asked for every rollout that names it, while it is under way, and whatever has changed is booked like a
counter's reading, so that a fold of the log holds at the same moments again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from rollout.analysis.comparison import Kind, kind_of
from rollout.analysis.counter_signal import CounterReading
from rollout.analysis.ledger import EvidenceIncrement
from rollout.errors import EventLogUnavailable
from rollout.fold import is_live
from rollout.status import ModelStatus

log = logging.getLogger(__name__)

INTERVAL_S = 2.0
MAX_REASON = 200
"""Characters of an error that nobody has thought of."""


@dataclass(frozen=True, slots=True)
class Gated:
    """A rollout under way that has gates: which version it brings, beside which one (None: beside none)."""

    model: str
    rollout: str
    version: str
    stable: str | None
    names: tuple[str, ...]


def gated(statuses: Iterable[ModelStatus], family: str) -> tuple[Gated, ...]:
    """The rollouts that have gates of a family (`drift`, `probe`)."""
    found = []
    for status in statuses:
        rollout = status.rollout
        if rollout is None or not is_live(rollout):
            continue
        own = (str(s.name) for s in rollout.spec.analysis.signals if kind_of(s.name) is Kind.GATE)
        names = tuple(name for name in own if name.partition("/")[0] == family)
        if names:
            stable = status.stable.version if status.stable is not None else None
            found.append(Gated(status.model, rollout.id, rollout.target.version, stable, names))
    return tuple(found)


Reasons = Callable[[Sequence[Gated]], Awaitable[Mapping[str, str]]]
"""Why rollouts are to wait, by rollout; empty for one that is not."""


class Gate:
    """Hands on why rollouts are to wait, whenever that has changed. Only a leader should run it.

    Args:
        reasons: asks.
        source: the name under which readings are in the event log, in a gateway's place.
        wanted: what to ask for now, for instance `lambda: gated(controller.statuses, "drift")`.
        sink: takes the evidence of a model (`Controller.on_measured`).
        boot: a new id for each start, so that readings are never taken for those of an earlier start.
        clock: seconds since the epoch.

    """

    def __init__(
        self,
        reasons: Reasons,
        *,
        source: str,
        wanted: Callable[[], Sequence[Gated]],
        sink: Callable[[str, EvidenceIncrement], object],
        boot: str,
        clock: Callable[[], float],
    ) -> None:
        self._reasons = reasons
        self._source = source
        self._wanted = wanted
        self._sink = sink
        self._boot = boot
        self._clock = clock
        self._number = 0
        self._told: dict[str, str] = {}
        self._failure = ""

    async def run(self) -> None:
        """Ask for ever; cancel it to stop."""
        while True:
            await self.once()
            await asyncio.sleep(INTERVAL_S)

    async def once(self) -> None:
        """Ask once, and tell what has changed for any rollout."""
        wanted = self._wanted()
        self._told = {one.rollout: self._told[one.rollout] for one in wanted if one.rollout in self._told}
        if not wanted:
            return
        reasons = await self._ask(wanted)
        for one in wanted:
            why = reasons[one.rollout]
            if self._told.get(one.rollout) == why:
                continue
            self._number += 1
            at = self._clock()
            readings = tuple(CounterReading(signal=n, number=self._number, at=at, error=why) for n in one.names)
            increment = EvidenceIncrement(
                rollout=one.rollout, gateway=self._source, boot=self._boot, at=at, counters=readings
            )
            try:
                self._sink(one.model, increment)
            except EventLogUnavailable as error:
                log.warning("%s: what its %s gate says can't be booked: %s", one.model, self._source, error)
            else:
                self._told[one.rollout] = why

    async def _ask(self, wanted: Sequence[Gated]) -> Mapping[str, str]:
        """Why rollouts are to wait; whatever goes wrong with the asking is a reason too, and no end of it."""
        try:
            found = await self._reasons(wanted)
        except Exception as error:
            what = f"what the {self._source} gate asks can't be read ({type(error).__name__}: {error})"[:MAX_REASON]
            if what != self._failure:
                log.warning("%s; asking again", what, exc_info=error)
            self._failure = what
            return {one.rollout: f"{what}; see the controller's log, or leave the signal out" for one in wanted}
        self._failure = ""
        return found
