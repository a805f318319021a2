"""The port to the event log: append-only, fenced. The log is the truth; status is a fold over it.

Every entry is written under a fencing token. A writer whose token is not the newest any more gets `LogConflict` and
must stop acting: two controllers may both believe that they lead, but only one of them can write.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
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
    payload: dict[str, Any]


class Entry(NewEntry):
    """An entry as written; `id` grows with the order of writing."""

    id: int
    fence: int


class EventLog(Protocol):
    """Appends and reads entries; hands out leadership."""

    def acquire(self, holder: str, now: float, ttl_s: float) -> int | None:
        """Take the leadership: a new fencing token, or None while somebody else's lease runs.

        The present holder gets a new token at once, so that a restarted controller does not wait for itself.
        """
        ...

    def renew(self, holder: str, fence: int, now: float, ttl_s: float) -> bool:
        """Extend the lease; False when it was lost."""
        ...

    def append(self, entries: Sequence[NewEntry], fence: int) -> tuple[int, ...]:
        """Write entries, all or none, and return their ids.

        Raises:
            LogConflict: `fence` is not the newest token.

        """
        ...

    def read(self, *, model: str | None = None, after: int = 0, kinds: Sequence[Kind] | None = None) -> Iterable[Entry]:
        """Entries in the order of writing, those with an id above `after`."""
        ...

    def close(self) -> None:
        """Release what is held open."""
        ...
