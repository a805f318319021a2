"""Count admissions and their outcomes exactly, in whatever order they end. Pure; times are arguments.

Evidence units of a model are numbered 1, 2, 3, ... as they are admitted, over both arms. The watermark
`settled_through` is the highest number such that every unit up to it has its outcome; `Total.settled` and
`settled_events` count only units at or below it. So a version whose failures report late gains nothing by it
(analysis.md, section 2). Forced requests carry no evidence: they have no number and hold nothing up.

A mirrored pair is one unit of two revisions: it has one number, and is counted on both under weight 50 once its two
answers are known. One that was given up is forced on both, and holds nothing up either.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Final

from serving.mirroring import PAIRED_WEIGHT
from serving.outcomes import Total
from serving.traffic import Role

RETIRED_KEPT_S: Final = 60.0
"""How long totals of an ended rollout are kept after their last change, so that they surely were sent."""

Key = tuple[str, str, str, int]


@dataclass(slots=True)
class Count:
    """The running counts behind one `Total`."""

    model: str
    rollout: str
    digest: str
    role: Role
    weight: int
    admitted: int = 0
    forced: int = 0
    first_sights: int = 0
    settled: int = 0
    settled_events: dict[str, int] = field(default_factory=dict)
    retried_on_stable: int = 0
    in_flight: int = 0
    similarity_n: int = 0
    similarity_sum: float = 0.0
    baseline_n: int = 0
    baseline_sum: float = 0.0
    first_admitted_at: float | None = None
    last_admitted_at: float | None = None
    dirty: bool = True
    changed_at: float = 0.0

    def total(self) -> Total:
        """The message that tells it."""
        return Total(
            model=self.model,
            rollout=self.rollout,
            digest=self.digest,
            role=self.role,
            weight=self.weight,
            admitted=self.admitted,
            forced=self.forced,
            first_sights=self.first_sights,
            settled=self.settled,
            settled_events=dict(self.settled_events),
            retried_on_stable=self.retried_on_stable,
            in_flight=self.in_flight,
            similarity_n=self.similarity_n,
            similarity_sum=self.similarity_sum,
            baseline_n=self.baseline_n,
            baseline_sum=self.baseline_sum,
            first_admitted_at=self.first_admitted_at,
            last_admitted_at=self.last_admitted_at,
        )


class Ticket:
    """One admitted request. `number` is its place among the model's evidence units, 0 for a forced one."""

    __slots__ = ("count", "number", "settled")

    def __init__(self, count: Count, number: int) -> None:
        self.count = count
        self.number = number
        self.settled = False


@dataclass(slots=True)
class PairTicket:
    """One mirrored pair. `number` is its place among the model's evidence units."""

    stable: Count
    canary: Count
    number: int
    admitted_at: float
    settled: bool = False


_Outcome = tuple[tuple[Count, tuple[str, ...]], ...]
"""The counts that a unit belongs to (none for a pair that was given up), with its events."""


@dataclass(slots=True)
class _Watermark:
    admitted: int = 0
    through: int = 0
    waiting: dict[int, _Outcome] = field(default_factory=dict)
    """Units that have their outcome while an earlier one has none. Bounded: every unit ends by its deadline."""


class Ledger:
    """All counts of one gateway process since its start."""

    def __init__(self) -> None:
        self._counts: dict[Key, Count] = {}
        self._models: dict[str, _Watermark] = {}

    def admit(
        self,
        model: str,
        rollout: str,
        digest: str,
        role: Role,
        weight: int,
        *,
        evidence: bool,
        now: float,
        first_sight: bool = False,
    ) -> Ticket:
        """Count a request at its admission.

        Args:
            model: The registered model.
            rollout: The rollout in force, "" for none.
            digest: The revision that was picked.
            role: Its role.
            weight: The canary's weight in the table, percent; 100 for a watched request that had no other arm.
            evidence: Whether its outcome counts: chance picked the revision, or it is watched.
            now: Wall-clock seconds.
            first_sight: Whether chance has assigned its session (or the request, without one) for the first time.
        """
        count = self._count(model, rollout, digest, role, weight)
        count.in_flight += 1
        count.dirty = True
        count.changed_at = now
        if not evidence:
            count.forced += 1
            return Ticket(count, 0)
        count.admitted += 1
        count.first_sights += first_sight
        if count.first_admitted_at is None:
            count.first_admitted_at = now
        count.last_admitted_at = now
        return Ticket(count, self._number(model))

    def _count(self, model: str, rollout: str, digest: str, role: Role, weight: int) -> Count:
        key = (model, rollout, digest, weight)
        count = self._counts.get(key)
        if count is None:
            count = self._counts[key] = Count(model, rollout, digest, role, weight)
        count.role = role
        return count

    def _number(self, model: str) -> int:
        watermark = self._models.get(model)
        if watermark is None:
            watermark = self._models[model] = _Watermark()
        watermark.admitted += 1
        return watermark.admitted

    def settle(self, ticket: Ticket, events: Iterable[str], now: float) -> None:
        """Give a request its outcome: the names of its events, `signal` or `signal:level`. Only the first counts."""
        if ticket.settled:
            return
        ticket.settled = True
        count = ticket.count
        count.in_flight -= 1
        count.dirty = True
        count.changed_at = now
        if not ticket.number:
            return
        self._settle(count.model, ticket.number, ((count, tuple(events)),), now)

    def _settle(self, model: str, number: int, outcome: _Outcome, now: float) -> None:
        watermark = self._models[model]
        watermark.waiting[number] = outcome
        while (entry := watermark.waiting.pop(watermark.through + 1, None)) is not None:
            watermark.through += 1
            for settled, names in entry:
                settled.settled += 1
                settled.dirty = True
                settled.changed_at = now
                for name in names:
                    settled.settled_events[name] = settled.settled_events.get(name, 0) + 1

    def admit_pair(self, model: str, rollout: str, stable: str, canary: str, now: float) -> PairTicket:
        """Give a mirrored pair its number, at its admission.

        Args:
            model: The registered model.
            rollout: The rollout in force.
            stable: The digest of stable's revision.
            canary: The digest of the canary's.
            now: Wall-clock seconds.
        """
        ticket = PairTicket(
            self._count(model, rollout, stable, Role.STABLE, PAIRED_WEIGHT),
            self._count(model, rollout, canary, Role.CANARY, PAIRED_WEIGHT),
            self._number(model),
            now,
        )
        for count in (ticket.stable, ticket.canary):
            count.in_flight += 1
            count.dirty = True
            count.changed_at = now
        return ticket

    def settle_pair(self, ticket: PairTicket, events: tuple[Iterable[str], Iterable[str]] | None, now: float) -> None:
        """Give a pair its outcome. Only the first counts.

        Args:
            ticket: The pair.
            events: Of stable's answer and of the canary's, those that both show included; None when the pair was given
                up, so that it is nobody's evidence.
            now: Wall-clock seconds.
        """
        if ticket.settled:
            return
        ticket.settled = True
        for count in (ticket.stable, ticket.canary):
            count.in_flight -= 1
            count.dirty = True
            count.changed_at = now
            if events is None:
                count.forced += 1
                continue
            count.admitted += 1
            at, first, last = ticket.admitted_at, count.first_admitted_at, count.last_admitted_at
            count.first_admitted_at = at if first is None else min(first, at)
            count.last_admitted_at = at if last is None else max(last, at)
        outcome: _Outcome = ()
        if events is not None:
            outcome = ((ticket.stable, tuple(events[0])), (ticket.canary, tuple(events[1])))
        self._settle(ticket.stable.model, ticket.number, outcome, now)

    def compared(self, ticket: PairTicket, similarity: float) -> None:
        """Add how alike the canary's answer is to stable's, in [0, 1]."""
        ticket.canary.similarity_n += 1
        ticket.canary.similarity_sum += similarity
        ticket.canary.dirty = True

    def compared_again(self, model: str, rollout: str, stable: str, similarity: float, now: float) -> None:
        """Add how alike a second answer of stable's is to its first, in [0, 1]; `stable` is its digest."""
        count = self._count(model, rollout, stable, Role.STABLE, PAIRED_WEIGHT)
        count.baseline_n += 1
        count.baseline_sum += similarity
        count.dirty = True
        count.changed_at = now

    def retried(self, ticket: Ticket) -> None:
        """Count that stable answered in the canary's place. The retry counts for nobody's evidence."""
        ticket.count.retried_on_stable += 1
        ticket.count.dirty = True

    def settled_through(self) -> dict[str, int]:
        """The watermark of each model."""
        return {model: mark.through for model, mark in self._models.items()}

    def changed(self, *, everything: bool = False) -> tuple[Total, ...]:
        """The totals that changed since the last call, or all of them."""
        changed = [c for c in self._counts.values() if c.dirty or everything]
        for count in changed:
            count.dirty = False
        return tuple(c.total() for c in changed)

    def prune(self, live: Collection[tuple[str, str]], now: float) -> None:
        """Forget totals of rollouts that no table names any more, once they are settled, sent and a minute old.

        Args:
            live: (model, rollout) of the table in force; the rollout "" lives as long as its model.
            now: Wall-clock seconds.
        """
        for key, c in list(self._counts.items()):
            done = not c.dirty and c.in_flight == 0 and c.settled == c.admitted
            if done and (c.model, c.rollout) not in live and now - c.changed_at > RETIRED_KEPT_S:
                del self._counts[key]

    def __len__(self) -> int:
        return len(self._counts)
