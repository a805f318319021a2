"""The event log in memory: for tests, dry runs and demos. Several controllers may share one instance."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from rollout.errors import LogConflict
from rollout.event_log.base import Entry, Kind, NewEntry


class MemoryEventLog:
    """Keeps entries in a list; passes the same contract suite as the SQL adapter."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self._last_id = 0
        self._holder = ""
        self._fence = 0
        self._renewals = 0
        self._seen: dict[str, tuple[tuple[int, int], float]] = {}
        """By who waits: the lease (fence, renewals) as it was last found changed, and when."""

    def acquire(self, holder: str, now: float, ttl_s: float) -> int | None:
        """See `EventLog.acquire`."""
        if self._holder not in ("", holder):
            lease = (self._fence, self._renewals)
            since = self._seen.get(holder)
            if since is None or since[0] != lease or now < since[1]:
                self._seen[holder] = (lease, now)
                return None
            if now - since[1] < ttl_s:
                return None
        self._holder = holder
        self._fence += 1
        return self._fence

    def renew(self, holder: str, fence: int) -> bool:
        """See `EventLog.renew`."""
        if (holder, fence) != (self._holder, self._fence):
            return False
        self._renewals += 1
        return True

    def release(self, holder: str, fence: int) -> None:
        """See `EventLog.release`."""
        if (holder, fence) == (self._holder, self._fence):
            self._holder = ""

    def append(self, entries: Sequence[NewEntry], fence: int) -> tuple[int, ...]:
        """See `EventLog.append`."""
        self._check(fence)
        first = self._last_id + 1
        self._last_id += len(entries)
        self._entries += [Entry(**e.model_dump(), id=first + i, fence=fence) for i, e in enumerate(entries)]
        return tuple(range(first, self._last_id + 1))

    def _check(self, fence: int) -> None:
        if fence != self._fence:
            raise LogConflict(f"fence {fence} is not the newest ({self._fence}); another controller leads")

    def read(
        self,
        *,
        model: str | None = None,
        after: int = 0,
        kinds: Sequence[Kind] | None = None,
        rollouts: Collection[str] | None = None,
    ) -> Iterable[Entry]:
        """See `EventLog.read`."""
        return [
            e
            for e in self._entries
            if e.id > after
            and (model is None or e.model == model)
            and (kinds is None or e.kind in kinds)
            and (rollouts is None or (e.kind is Kind.EVIDENCE and e.rollout in rollouts))
        ]

    def compact(self, before: float, *, keep: Collection[str], fence: int) -> int:
        """See `EventLog.compact`."""
        self._check(fence)
        fresh = {e.rollout for e in self._entries if e.kind is Kind.EVIDENCE and e.at >= before} | set(keep)
        kept = [e for e in self._entries if e.kind is not Kind.EVIDENCE or e.rollout in fresh]
        gone = len(self._entries) - len(kept)
        self._entries = kept
        return gone

    def close(self) -> None:
        """Nothing is held open."""
