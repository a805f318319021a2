"""Replay: the recorded decisions through today's `decide`. Pure. The same log gives the same decisions, or it shows.

A decision was recorded with what it saw, and the status before it is the fold of what came before, so nothing
else is needed.
"""

from __future__ import annotations

from collections.abc import Iterable

from rollout.decide import HOUSEKEEPING, decide, housekeeping
from rollout.decision import Decision
from rollout.event_log.base import Entry, Kind
from rollout.observation import Observation
from rollout.status import ModelStatus, apply
from serving.specs import Frozen


class Replayed(Frozen):
    """One recorded decision beside what would be decided today on the same observation."""

    id: int
    at: float
    same: bool
    recorded: Decision
    today: Decision | None


def replay(entries: Iterable[Entry]) -> tuple[Replayed, ...]:
    """Decide again, entry by entry, for the log of one model.

    Commands are not decided again (a person took them); they are folded.
    """
    status: ModelStatus | None = None
    found: list[Replayed] = []
    for entry in entries:
        if entry.kind is Kind.EVIDENCE:
            continue
        status = status or ModelStatus(model=entry.model)
        recorded = Decision.model_validate(entry.payload["decision"])
        if entry.kind is Kind.DECISION:
            seen = Observation.model_validate(entry.payload["observation"])
            today = _today(status, seen, entry.at, recorded)
            same = today is not None and (today.cause, today.actions) == (recorded.cause, recorded.actions)
            found.append(Replayed(id=entry.id, at=entry.at, same=same, recorded=recorded, today=today))
        status = apply(status, recorded.actions, at=entry.at, reason=recorded.reason, actor=entry.actor)
    return tuple(found)


def _today(status: ModelStatus, seen: Observation, at: float, recorded: Decision) -> Decision | None:
    """What would be decided: by `decide` for the rollout, by `housekeeping` for what goes on beside it."""
    if recorded.cause in HOUSEKEEPING:
        return housekeeping(status, seen, at)
    if status.rollout is None:
        return None
    return decide(status.rollout.spec, status, seen, at)
