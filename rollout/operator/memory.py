"""What the operator remembers of one resource between two looks. Losing it repeats a look, never an act."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from rollout.operator.documents import Handled
from rollout.operator.resource import Resource
from rollout.operator.telling import Problem

FIRST_RETRY_S = 5.0
LAST_RETRY_S = 300.0


@dataclass
class Tried:
    """A wish that could not be carried out, and when it is worth trying again."""

    wish: str
    problem: Problem
    retry_at: float | None
    """None: not before the set of condemned revisions is another one."""
    condemned: frozenset[str] = frozenset()
    times: int = 1

    def over(self, now: float, condemned: Iterable[str]) -> bool:
        """Whether it is to be tried again."""
        if self.retry_at is not None:
            return now >= self.retry_at
        return frozenset(condemned) != self.condemned


@dataclass
class Memory:
    """Of one resource."""

    handled: dict[str, Handled] = field(default_factory=dict)
    """By verb: what was handled since the status was written last."""
    satisfied: str | None = None
    """A wish that needs no deployment."""
    tried: Tried | None = None
    written_at: float = float("-inf")
    failures: int = 0
    """How often in a row the cluster did not do what was asked."""

    def failed(self, wish: str, problem: Problem, now: float) -> None:
        """Note that a wish could not be carried out; ever longer pauses between the attempts."""
        before = self.tried.times if self.tried is not None and self.tried.wish == wish else 0
        pause_s = min(LAST_RETRY_S, FIRST_RETRY_S * 2.0**before)
        self.tried = Tried(wish, problem, now + pause_s, times=before + 1)

    def laid_over(self, resource: Resource) -> Resource:
        """The resource with what was handled since its status was written."""
        if not self.handled and self.satisfied is None:
            return resource
        commands = {c.verb: c for c in resource.status.commands} | self.handled
        change: dict[str, object] = {"commands": tuple(commands.values())}
        if self.satisfied is not None:
            change["handled_wish"] = self.satisfied
        return replace(resource, status=resource.status.model_copy(update=change))
