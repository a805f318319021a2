"""Count admissions and their outcomes exactly, in whatever order they end. Pure; times are arguments.

Evidence units of a model are numbered 1, 2, 3, ... as they are admitted, over both arms. The watermark
`settled_through` is the highest number such that every unit up to it has its outcome; `Total.settled` and
`settled_events` count only units at or below it. So a version whose failures report late gains nothing by it
(analysis.md, section 2). Forced requests carry no evidence: they have no number and hold nothing up.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from serving.outcomes import Total
from serving.traffic import Role

RETIRED_KEPT_S = 60.0
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
    settled: int = 0
    settled_events: dict[str, int] = field(default_factory=dict)
    retried_on_stable: int = 0
    in_flight: int = 0
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
            settled=self.settled,
            settled_events=dict(self.settled_events),
            retried_on_stable=self.retried_on_stable,
            in_flight=self.in_flight,
            first_admitted_at=self.first_admitted_at,
            last_admitted_at=self.last_admitted_at,
        )


@dataclass(slots=True)
class Ticket:
    """One admitted request. `number` is its place among the model's evidence units, 0 for a forced one."""

    count: Count
    number: int
    settled: bool = False


@dataclass(slots=True)
class _Watermark:
    admitted: int = 0
    through: int = 0
    waiting: dict[int, tuple[Count, tuple[str, ...]]] = field(default_factory=dict)
    """Units that have their outcome while an earlier one has none. Bounded: every unit ends by its deadline."""


class Ledger:
    """All counts of one gateway process since its start."""

    def __init__(self) -> None:
        self._counts: dict[Key, Count] = {}
        self._models: dict[str, _Watermark] = {}

    def admit(
        self, model: str, rollout: str, digest: str, role: Role, weight: int, *, evidence: bool, now: float
    ) -> Ticket:
        """Count a request at its admission.

        Args:
            model: The registered model.
            rollout: The rollout in force, "" for none.
            digest: The revision that was picked.
            role: Its role.
            weight: The canary's weight in the table, percent.
            evidence: Whether chance picked the revision.
            now: Wall-clock seconds.
        """
        key = (model, rollout, digest, weight)
        count = self._counts.get(key)
        if count is None:
            count = self._counts[key] = Count(model, rollout, digest, role, weight)
        count.role = role
        count.in_flight += 1
        count.dirty = True
        count.changed_at = now
        if not evidence:
            count.forced += 1
            return Ticket(count, 0)
        count.admitted += 1
        if count.first_admitted_at is None:
            count.first_admitted_at = now
        count.last_admitted_at = now
        watermark = self._models.get(model)
        if watermark is None:
            watermark = self._models[model] = _Watermark()
        watermark.admitted += 1
        return Ticket(count, watermark.admitted)

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
        watermark = self._models[count.model]
        watermark.waiting[ticket.number] = (count, tuple(events))
        while (entry := watermark.waiting.pop(watermark.through + 1, None)) is not None:
            watermark.through += 1
            settled, names = entry
            settled.settled += 1
            settled.dirty = True
            settled.changed_at = now
            for name in names:
                settled.settled_events[name] = settled.settled_events.get(name, 0) + 1

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
