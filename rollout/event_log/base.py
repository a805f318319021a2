"""The port to the event log: append-only, fenced. The log is the truth; status is a fold over it.

Every entry is written under a fencing token. A writer whose token is not the newest any more gets `LogConflict` and
must stop acting: two controllers may both believe that they lead, but only one of them can write.

No clock is compared with another. A lease ends when somebody who waits for it has seen it unchanged for as long as it
runs, on his own clock, which is how Kubernetes' client-go elects its leaders: a clock that is wrong or jumps, at either
controller or at the database, moves the leadership at worst, and never lets two of them write.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Protocol

from serving.specs import Frozen


class Kind(enum.StrEnum):
    """What an entry records."""

    COMMAND = "command"
    """An operator's command with the decision that carries it out."""
    DECISION = "decision"
    """A decision of the controller with all that it saw."""
    EVIDENCE = "evidence"
    """An increment of evidence from one gateway."""


class NewEntry(Frozen):
    """An entry to be written. `payload` is JSON; `at` is in seconds since the epoch."""

    model: str
    at: float
    kind: Kind
    actor: str
    rollout: str = ""
    """Evidence: of which rollout. Empty for the others."""
    payload: dict[str, Any]


class Entry(NewEntry):
    """An entry as written; `id` grows with the order of writing."""

    id: int
    fence: int


class EventLog(Protocol):
    """Appends and reads entries; hands out leadership. Every method may raise `EventLogUnavailable`."""

    def acquire(self, holder: str, now: float, ttl_s: float) -> int | None:
        """Take the leadership: a new fencing token, or None while somebody else's lease may run.

        The present holder gets a new token at once, so that a restarted controller does not wait for itself. Anybody
        else gets one once the lease was given back, or was not renewed for `ttl_s` of his own waiting.

        Args:
            holder: who asks; the same one after a restart.
            now: the asking process's clock in seconds, a monotonic one: only differences count.
            ttl_s: how long a lease must stay unrenewed until it is over, in seconds.

        """
        ...

    def renew(self, holder: str, fence: int) -> bool:
        """Keep the lease; False when it was lost. All writes that were under way before are done or undone."""
        ...

    def release(self, holder: str, fence: int) -> None:
        """Give the lease back, so that the next controller does not wait; nothing happens when it was lost."""
        ...

    def append(self, entries: Sequence[NewEntry], fence: int) -> tuple[int, ...]:
        """Write entries, all or none, each once, and return their ids.

        Raises:
            LogConflict: `fence` is not the newest token, or was not handed out by this object.
            EventLogUnavailable: the entries may be in the log or not; `renew`, then `read` tells.

        """
        ...

    def read(
        self,
        *,
        model: str | None = None,
        after: int = 0,
        kinds: Sequence[Kind] | None = None,
        rollouts: Collection[str] | None = None,
    ) -> Iterable[Entry]:
        """Entries in the order of writing, those with an id above `after`; with `rollouts`, only their evidence."""
        ...

    def compact(self, before: float, *, keep: Collection[str], fence: int) -> int:
        """Drop the evidence of every rollout that got none since `before`; returns how many entries went.

        Commands and decisions, with all that they saw, stay for ever: history, explain and replay need no more.

        Args:
            before: seconds since the epoch, as `NewEntry.at`.
            keep: rollouts whose evidence stays whatever its age, the active ones among them.
            fence: the newest token.

        Raises:
            LogConflict: `fence` is not the newest token.

        """
        ...

    def close(self) -> None:
        """Release what is held open."""
        ...
