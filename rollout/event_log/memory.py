"""The event log in memory: for tests, dry runs and demos. Several controllers may share one instance."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rollout.errors import LogConflict
from rollout.event_log.base import Entry, Kind, NewEntry


class MemoryEventLog:
    """Keeps entries in a list; passes the same contract suite as the SQL adapter."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self._holder = ""
        self._fence = 0
        self._expires_at = float("-inf")

    def acquire(self, holder: str, now: float, ttl_s: float) -> int | None:
        """See `EventLog.acquire`."""
        if self._holder not in ("", holder) and now < self._expires_at:
            return None
        self._holder, self._expires_at = holder, now + ttl_s
        self._fence += 1
        return self._fence

    def renew(self, holder: str, fence: int, now: float, ttl_s: float) -> bool:
        """See `EventLog.renew`."""
        if (holder, fence) != (self._holder, self._fence):
            return False
        self._expires_at = now + ttl_s
        return True

    def append(self, entries: Sequence[NewEntry], fence: int) -> tuple[int, ...]:
        """See `EventLog.append`."""
        if fence != self._fence:
            raise LogConflict(f"fence {fence} is not the newest ({self._fence}); another controller leads")
        first = len(self._entries) + 1
        for offset, entry in enumerate(entries):
            self._entries.append(Entry(**entry.model_dump(), id=first + offset, fence=fence))
        return tuple(range(first, first + len(entries)))

    def read(self, *, model: str | None = None, after: int = 0, kinds: Sequence[Kind] | None = None) -> Iterable[Entry]:
        """See `EventLog.read`."""
        return [
            e
            for e in self._entries[after:]
            if (model is None or e.model == model) and (kinds is None or e.kind in kinds)
        ]

    def close(self) -> None:
        """Nothing is held open."""
