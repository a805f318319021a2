"""All that the controller holds in memory, as a fold over the event log. Pure.

Whoever folds the same log stands at the same place: the running controller entry by entry, a restarted one all at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from rollout.actions import Promote, Start, SwitchBack, Trigger, Withdraw
from rollout.analysis.ledger import EvidenceIncrement, Ledger
from rollout.asks import Asked, noted
from rollout.commands import Command
from rollout.decide import Decision
from rollout.event_log.base import Entry, Kind
from rollout.status import ModelStatus, RolloutState, apply

FORGET_S = 3600.0
"""How long the evidence of a finished rollout is kept in memory: its last reports are still on their way, and people
look at it. Its final decision keeps what was seen for ever."""

MAX_STARTS = 10_000
"""Starts of gateways whose accepted events are remembered; ledgers know by themselves what they have booked."""


def is_live(rollout: RolloutState | None) -> bool:
    """Whether evidence of a rollout is still judged."""
    return rollout is not None and (rollout.active or rollout.watched)


class Fold:
    """Statuses, ledgers and counters after all entries up to `last_id`."""

    def __init__(self) -> None:
        self.last_id = 0
        self.statuses: dict[str, ModelStatus] = {}
        self.ledgers: dict[str, Ledger] = {}
        self.live: set[str] = set()
        """Models with a rollout that is still judged."""
        self.last_seen: dict[str, Mapping[str, Any]] = {}
        """By model: what was seen when its rollout ended, as it stands in the log."""
        self.accepted: dict[tuple[str, str], int] = {}
        """By gateway and its start: events up to this number are booked."""
        self.asked: dict[str, Asked] = {}
        """By model: the wishes of its custom resource that were carried out."""
        self.rollbacks: Counter[tuple[str, str]] = Counter()
        """By model and trigger, since the log began."""
        self.taken_back: dict[str, Trigger] = {}
        """By model: why its last rollout was taken back, until the next one begins."""

    def entry(self, entry: Entry) -> None:
        """Fold one entry, whatever it is."""
        self.last_id = max(self.last_id, entry.id)
        if entry.kind is Kind.EVIDENCE:
            self.evidence(entry.model, EvidenceIncrement.model_validate(entry.payload))
        else:
            decision = Decision.model_validate(entry.payload["decision"])
            seen, said = entry.payload.get("observation"), entry.payload.get("command")
            command = Command.model_validate(said) if said else None
            self.decision(entry.model, decision, at=entry.at, actor=entry.actor, seen=seen, command=command)

    def decision(
        self,
        model: str,
        decision: Decision,
        *,
        at: float,
        actor: str,
        seen: Mapping[str, Any] | None = None,
        command: Command | None = None,
    ) -> None:
        """Fold a decision, a command's or the controller's own."""
        status = self.statuses.get(model) or ModelStatus(model=model)
        status = apply(status, decision.actions, at=at, reason=decision.reason, actor=actor)
        self.statuses[model] = status
        self.asked[model] = noted(self.asked.get(model, Asked()), decision, command)
        for action in decision.actions:
            if isinstance(action, Withdraw | SwitchBack):
                self.rollbacks[(model, action.trigger.value)] += 1
                self.taken_back[model] = action.trigger
            if isinstance(action, Withdraw | SwitchBack | Promote) and seen is not None:
                self.last_seen[model] = seen
            if isinstance(action, Start):
                stable = status.stable.digest if status.stable is not None else None
                self.ledgers[model] = Ledger(action.rollout, action.spec, canary=action.target.digest, stable=stable)
                self.last_seen.pop(model, None)
                self.taken_back.pop(model, None)
        (self.live.add if is_live(status.rollout) else self.live.discard)(model)
        if status.rollout is not None and model in self.ledgers:
            self.ledgers[model].weight = status.rollout.weight

    def evidence(self, model: str, increment: EvidenceIncrement) -> bool:
        """Fold an increment of evidence; False when it was of another rollout or held nothing new."""
        if increment.events:
            self.accept(increment.gateway, increment.boot, increment.events[-1].sequence)
        ledger = self.ledgers.get(model)
        return ledger is not None and ledger.add(increment)

    def accept(self, gateway: str, boot: str, through: int) -> int:
        """Note that a gateway's events up to a number are booked; returns the highest such number."""
        key = (gateway, boot)
        safe = max(self.accepted.pop(key, 0), through)
        self.accepted[key] = safe
        if len(self.accepted) > MAX_STARTS:
            del self.accepted[next(iter(self.accepted))]
        return safe

    def remembered(self, now: float) -> Iterable[str]:
        """Rollouts whose evidence is worth reading from the log: those still judged, and those that ended just now."""
        for status in self.statuses.values():
            rollout = status.rollout
            if rollout is not None and not self._forgettable(rollout, now):
                yield rollout.id

    def forget(self, now: float) -> None:
        """Let go of the evidence of rollouts that ended long ago."""
        for model in [m for m in self.ledgers if m not in self.live]:
            rollout = self.statuses[model].rollout
            if rollout is None or self._forgettable(rollout, now):
                del self.ledgers[model]

    @staticmethod
    def _forgettable(rollout: RolloutState, now: float) -> bool:
        ended = rollout.finished_at
        return not is_live(rollout) and ended is not None and now - ended > FORGET_S


class Unlogged:
    """Counters that are folded and not in the log yet. The newest report holds all, so only that is written."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[str, str, str, str], EvidenceIncrement] = {}

    def add(self, model: str, increment: EvidenceIncrement) -> None:
        """Take a report in place of the last one; `at` stays that of the first one that waits."""
        key = (model, increment.rollout, increment.gateway, increment.boot)
        first = self._waiting.get(key)
        self._waiting[key] = increment if first is None else _newest(first, increment)

    def of(self, model: str) -> list[tuple[str, EvidenceIncrement]]:
        """All of one model."""
        return [(key[0], increment) for key, increment in self._waiting.items() if key[0] == model]

    def due(self, latest: float, most: int) -> list[tuple[str, EvidenceIncrement]]:
        """The first few that have waited since `latest` or longer."""
        found = ((key[0], increment) for key, increment in self._waiting.items() if increment.at <= latest)
        return list(islice(found, most))

    def logged(self, increments: Iterable[tuple[str, EvidenceIncrement]]) -> None:
        """These are in the log now."""
        for model, increment in increments:
            self._waiting.pop((model, increment.rollout, increment.gateway, increment.boot), None)


def _newest(first: EvidenceIncrement, newer: EvidenceIncrement) -> EvidenceIncrement:
    """What must be logged of two reports: the newer counters, and those of the older that it does not tell anew."""
    told = {(t.digest, t.weight) for t in newer.totals}
    kept = tuple(t for t in first.totals if (t.digest, t.weight) not in told)
    settled = max(first.settled_through, newer.settled_through)
    return newer.model_copy(update={"at": first.at, "totals": (*kept, *newer.totals), "settled_through": settled})
