"""What is known of one start of one gateway, and counts that are kept up to date as totals replace each other. Pure."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import NamedTuple

from serving.outcomes import UNITS, Event, SignalName, Total

MAX_HALVES = 10_000
"""Scores of one gateway's pairs that wait for the other answer's. The oldest is given up first."""


class Pending(NamedTuple):
    """An event of a unit that has not settled. A weight of 1 marks a watched unit, which had no choice."""

    admission: int
    signal: SignalName
    on_canary: bool
    weight: float


@dataclass(slots=True)
class Source:
    """One start of one gateway.

    `totals_at` is the highest admission that its newest totals are sure to count: those at or below its watermark, and
    those of events that came before. `last_admission` is the highest of any event. `watched` counts admitted units of
    a canary that is `watching`, without another revision beside it.
    """

    last_event: int = 0
    settled_through: int = 0
    pending: list[Pending] = field(default_factory=list)
    earliest: float = math.inf
    totals: dict[tuple[str, int], Total] = field(default_factory=dict)
    told: set[SignalName] = field(default_factory=set)
    sampled: set[SignalName] = field(default_factory=set)
    """Signals that it measures on some answers only, and says on how many."""
    last_reading: dict[SignalName, int] = field(default_factory=dict)
    halves: OrderedDict[tuple[SignalName, int], Event] = field(default_factory=OrderedDict)
    watched: int = 0
    watching: bool = False
    first_admission: int = 0
    last_admission: int = 0
    totals_at: int = 0

    @property
    def watched_units(self) -> int:
        """Watched units of the canary: at least all that were admitted up to the last event known.

        Events travel at once and totals a moment later, so the units between the two are bounded by the admission
        numbers, as if all of them had been the canary's.
        """
        return self.watched + max(0, self.last_admission - self.totals_at) if self.watching else 0

    def note_names(self, total: Total) -> None:
        """Take note of which signals a total tells of."""
        for name in total.settled_events:
            signal, _, detail = name.partition(":")
            self.told.add(signal)
            if f":{detail}" == UNITS:
                self.sampled.add(signal)

    def measured(self, total: Total, signal: SignalName) -> int:
        """The settled units of a total that a signal was measured on."""
        return total.settled_events.get(f"{signal}{UNITS}", 0) if signal in self.sampled else total.settled

    def note_event(self, admission: int) -> int:
        """Take note of an event's admission number; by how much the range of known numbers has grown."""
        if not self.first_admission:
            self.first_admission = self.last_admission = admission
            return 0
        grown = max(0, admission - self.last_admission) + max(0, self.first_admission - admission)
        self.first_admission = min(self.first_admission, admission)
        self.last_admission = max(self.last_admission, admission)
        return grown

    def note_totals(self, settled_through: int) -> bool:
        """Take note that totals have come, with this watermark; True when they tell of more admissions."""
        before = self.totals_at
        self.totals_at = max(before, settled_through, self.last_admission)
        return self.watching and self.totals_at > before

    def other_half(self, event: Event) -> Event | None:
        """The other answer's score of the same pair, if it came before; else this one waits for it."""
        key = (event.signal, event.admission)
        other = self.halves.get(key)
        if other is not None and other.arm is not event.arm:
            del self.halves[key]
            return other
        self.halves[key] = event
        if len(self.halves) > MAX_HALVES:
            self.halves.popitem(last=False)
        return None


@dataclass(slots=True)
class Counted:
    """Sums over all gateways of one revision's totals."""

    admitted: int = 0
    forced: int = 0
    settled: int = 0
    first_sights: int = 0
    settled_events: dict[str, int] = field(default_factory=dict)
    similarity_n: int = 0
    similarity_sum: float = 0.0
    baseline_n: int = 0
    baseline_sum: float = 0.0
    first_admitted_at: float | None = None
    last_admitted_at: float | None = None

    def replace(self, known: Total | None, new: Total) -> None:
        """Count a total in the place of the one that was known by its key."""
        self.admitted += new.admitted - (known.admitted if known else 0)
        self.forced += new.forced - (known.forced if known else 0)
        self.settled += new.settled - (known.settled if known else 0)
        self.first_sights += new.first_sights - (known.first_sights if known else 0)
        self.similarity_n += new.similarity_n - (known.similarity_n if known else 0)
        self.similarity_sum += new.similarity_sum - (known.similarity_sum if known else 0.0)
        self.baseline_n += new.baseline_n - (known.baseline_n if known else 0)
        self.baseline_sum += new.baseline_sum - (known.baseline_sum if known else 0.0)
        for name, count in new.settled_events.items():
            before = known.settled_events.get(name, 0) if known else 0
            self.settled_events[name] = self.settled_events.get(name, 0) + count - before
        first, last = new.first_admitted_at, new.last_admitted_at
        if first is not None and new.admitted:
            self.first_admitted_at = first if self.first_admitted_at is None else min(self.first_admitted_at, first)
        if last is not None and new.admitted:
            self.last_admitted_at = last if self.last_admitted_at is None else max(self.last_admitted_at, last)
