"""What gateways have told and is not booked yet. Pure.

Events are booked in the order in which they came, and as soon as possible. Counters come behind them: they tell what of
the events has settled, so they may be late, but never early. With few gateways they are booked at once; with many, each
gateway's at most once a second, the newest ones for all that came meanwhile, since they replace each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from rollout.analysis.ledger import EvidenceIncrement
from rollout.fold import Fold
from serving.outcomes import Event, Events, Total, Totals

MAX_WAITING = 2000
"""Messages that wait to be booked; what comes beyond must come again."""

PACE_S = 0.002
"""How much later counters may be booked for each rollout of each gateway that has some: what bounds the work."""
LONGEST_S = 1.0
FEW = 20
"""So many are booked at once."""

Done = Callable[[int | None], None]
"""Is told the highest sequence that is in the log, or None: these events must come again."""

Source = tuple[str, str]
"""A gateway, and which start of it."""

Increment = tuple[str, EvidenceIncrement]
"""Evidence, and the model that it is of."""


class _Message(NamedTuple):
    source: Source
    content: Events
    done: Done


@dataclass(slots=True)
class _Counters:
    """The newest counters of one start of one gateway, by model and rollout."""

    since: float
    rows: dict[tuple[str, str], dict[tuple[str, int], Total]] = field(default_factory=dict)
    settled: dict[str, int] = field(default_factory=dict)


@dataclass
class Batch:
    """All that waited, as evidence."""

    increments: list[Increment] = field(default_factory=list)
    """In order; those with events must be in the log before any of it is folded."""
    through: dict[Source, int] = field(default_factory=dict)
    """The highest sequence of each source's events."""
    waiting: list[tuple[Source, Done]] = field(default_factory=list)

    @property
    def events(self) -> list[Increment]:
        """What must be in the log."""
        return [(model, increment) for model, increment in self.increments if increment.events]

    def tell(self, *, booked: bool) -> None:
        """Tell those who wait whether their events are in the log."""
        for source, done in self.waiting:
            done(self.through[source] if booked else None)


class Intake:
    """Messages between their arrival and the tick that books them."""

    def __init__(self) -> None:
        self._messages: list[_Message] = []
        self._counters: dict[Source, _Counters] = {}

    @property
    def urgent(self) -> bool:
        """Whether events wait."""
        return bool(self._messages)

    @property
    def full(self) -> bool:
        """Whether no more events are taken in."""
        return len(self._messages) >= MAX_WAITING

    def events(self, gateway: str, boot: str, message: Events, done: Done) -> None:
        """Take events in."""
        self._messages.append(_Message((gateway, boot), message, done))

    def totals(self, gateway: str, boot: str, message: Totals, now: float) -> None:
        """Take counters in, in the place of those that they replace."""
        counters = self._counters.get((gateway, boot))
        if counters is None:
            counters = self._counters[(gateway, boot)] = _Counters(now)
        for total in message.totals:
            if total.rollout:
                rows = counters.rows.setdefault((total.model, total.rollout), {})
                rows[(total.digest, total.weight)] = total
        for model, through in message.settled_through.items():
            counters.settled[model] = max(through, counters.settled.get(model, 0))

    def drop(self) -> None:
        """Forget all that waits; those who wait for their events are told to send them again."""
        messages, self._messages = self._messages, []
        self._counters.clear()
        for message in messages:
            message.done(None)

    def take(self, fold: Fold, now: float) -> Batch:
        """What can be booked now and concerns the rollouts that are judged, each event once."""
        messages, self._messages = self._messages, []
        batch = Batch()
        for source, content, done in messages:
            last = max(batch.through.get(source, 0), fold.accepted.get(source, 0))
            fresh = [e for e in content.events if e.sequence > last]
            batch.increments += _events(fold, source, fresh)
            batch.through[source] = max([last, *(e.sequence for e in fresh)])
            batch.waiting.append((source, done))
        waiting = sum(len(c.rows) for c in self._counters.values())
        pace_s = 0.0 if waiting <= FEW else min(LONGEST_S, PACE_S * waiting)
        for source in [s for s, c in self._counters.items() if not 0 <= now - c.since < pace_s]:
            batch.increments += _told(fold, source, self._counters.pop(source), now)
        return batch


def _events(fold: Fold, source: Source, fresh: Iterable[Event]) -> Iterable[Increment]:
    """Events by rollout. Those of a rollout that is over came late and change nothing."""
    chosen: dict[tuple[str, str], list[Event]] = {}
    for event in fresh:
        ledger = fold.ledgers.get(event.model)
        if ledger is not None and ledger.rollout == event.rollout and ledger.watches(event.signal):
            chosen.setdefault((event.model, event.rollout), []).append(event)
    for (model, rollout), events in chosen.items():
        yield model, EvidenceIncrement(rollout=rollout, gateway=source[0], boot=source[1], events=tuple(events))


def _told(fold: Fold, source: Source, counters: _Counters, now: float) -> Iterable[Increment]:
    """Counters by rollout."""
    for (model, rollout), rows in counters.rows.items():
        ledger = fold.ledgers.get(model)
        if ledger is not None and ledger.rollout == rollout:
            increment = EvidenceIncrement(
                rollout=rollout,
                gateway=source[0],
                boot=source[1],
                at=now,
                totals=tuple(rows.values()),
                settled_through=counters.settled.get(model, 0),
            )
            yield model, increment
