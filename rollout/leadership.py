"""The right to write the event log, and what is known of whether it can be written. Shell.

From the first write on that could not be done for certain, nothing more is written until `read_on` has told what the
log holds: the reply may be lost and the write be there.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from rollout.errors import EventLogUnavailable, LogConflict, RolloutError
from rollout.event_log.base import Entry, EventLog, NewEntry

log = logging.getLogger(__name__)

LEASE_S = 10.0
"""How long a controller that is gone keeps the others waiting, at least."""
HEARTBEAT_S = 2.0
"""How often the lease is renewed and gateways hear that there is a leader; more often where the lease is short."""
AWAY_S = 0.5
"""How often a log that can't be reached is tried."""


class Leadership:
    """One controller's lease and its writes under it."""

    def __init__(self, event_log: EventLog, holder: str, clock: Callable[[], float], lease_s: float = LEASE_S) -> None:
        self._log = event_log
        self._lease_s = lease_s
        self.renew_s = min(HEARTBEAT_S, lease_s / 5)
        """How often it must be renewed."""
        self._holder = holder
        self._clock = clock
        self._asked_at = float("-inf")
        self._taken: int | None = None
        self._lost: LogConflict | None = None
        self.fence: int | None = None
        """The newest token, while this controller leads."""
        self.away = ""
        """Why the log can't be written; empty while it can."""

    def take(self) -> int | None:
        """Ask for the leadership: a token, not in force before `fence` is set to it; None while another one leads.

        Raises:
            EventLogUnavailable: the log can't be reached.

        """
        self._taken = self._log.acquire(self._holder, time.monotonic(), self._lease_s)
        return self._taken

    def kept_while(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        """The entries, the lease being renewed while they are read: a long log must not cost the leadership.

        Raises:
            EventLogUnavailable: the log can't be reached.
            LogConflict: the lease was lost.

        """
        renewed_at = time.monotonic()
        for entry in entries:
            yield entry
            if time.monotonic() - renewed_at > self.renew_s:
                renewed_at = time.monotonic()
                if self._taken is not None and not self._log.renew(self._holder, self._taken):
                    raise LogConflict("the lease was lost while the log was read; another controller leads")

    def append(self, entries: Sequence[NewEntry]) -> int:
        """Write; returns the last entry's id.

        Raises:
            EventLogUnavailable: they may be in the log or not, which `read_on` tells.
            LogConflict: another controller leads.

        """
        if self.fence is None:
            raise EventLogUnavailable("this controller does not lead (yet), so it writes nothing")
        if self.away:
            raise EventLogUnavailable(f"the event log is away; nothing can be decided until it is back: {self.away}")
        try:
            return self._log.append(entries, self.fence)[-1]
        except EventLogUnavailable as error:
            self.hold(error)
            raise
        except LogConflict as conflict:
            self._lost = conflict
            raise

    def hold(self, error: EventLogUnavailable) -> None:
        """Write nothing more until `read_on` has succeeded."""
        if not self.away:
            log.warning("holding: %s", error)
        self.away = str(error)

    async def renew(self) -> bool:
        """Keep the lease; False when the log can't be reached.

        Raises:
            LogConflict: the lease was lost.

        """
        assert self.fence is not None
        try:
            held = await asyncio.to_thread(self._log.renew, self._holder, self.fence)
        except EventLogUnavailable as error:
            self.hold(error)
            return False
        if self._lost is None and not held:
            self._lost = LogConflict("the lease was lost; another controller leads")
        if self._lost is not None:
            raise self._lost
        return True

    async def read_on(self, after: int) -> list[Entry] | None:
        """After `away`: what the log holds beyond an entry; None while it can't be reached or was asked just now.

        The lease is renewed first: that ends only when no write of ours is under way any more.

        Raises:
            LogConflict: the lease was lost meanwhile.

        """
        if 0 <= self._clock() - self._asked_at < AWAY_S:
            return None
        self._asked_at = self._clock()
        try:
            if not await self.renew():
                return None
            found = await asyncio.to_thread(lambda: list(self._log.read(after=after)))
        except EventLogUnavailable:
            return None
        self.away = ""
        return found

    async def give_back(self) -> None:
        """Let the next controller lead without waiting."""
        fence, self.fence = self.fence, None
        if fence is None or self._lost is not None:
            return
        try:
            await asyncio.to_thread(self._log.release, self._holder, fence)
        except RolloutError as error:
            log.info("the lease was not given back, so the next controller waits for its end: %s", error)
