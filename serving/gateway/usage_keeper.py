"""Gets usage to the controller's store and keeps what is not there yet on disk."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from serving.accounting import UsageRow
from serving.gateway.logs import log
from serving.gateway.usage import UsageBook
from serving.gateway.usage_files import EarlierUsage, UsageFiles, UsageUnreadable
from serving.outcomes import UsageReport

EVERY_S = 1.0
"""How often changes are written and told; so kill -9 loses about so much."""

MOST_OF_THE_TIME = 0.05
"""Writing takes no more than this share of the time, however much there is to write."""

MOST_ROWS_A_REPORT = 500
RESEND_S = 30.0
"""A report that was neither accepted nor lost with its connection is sent again after so long."""

RESCAN_S = 600.0
"""How often files of gateways that are gone are looked for."""


@dataclass(frozen=True, slots=True)
class _Sent:
    number: int
    at: float
    own: tuple[UsageRow, ...]
    earlier: tuple[UsageRow, ...]


class UsageKeeper:
    """The way of usage out of this process. One per gateway; not thread-safe, but its blocking work is in threads."""

    def __init__(
        self,
        book: UsageBook,
        files: UsageFiles,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.book = book
        self._files = files
        self._monotonic = monotonic
        self._wall = wall
        self._saved_changes = 0
        self._complained = False
        self._number = 0
        self._sent: _Sent | None = None
        self._scanned_at: float | None = None
        self._paths: deque[Path] = deque()
        self._earlier: EarlierUsage | None = None
        self._untold: deque[UsageRow] = deque()
        self._now = asyncio.Event()

    # Disk

    async def run(self) -> None:
        """Write what is open once a second, until cancelled."""
        while True:
            started = self._monotonic()
            await self.save()
            took_s = self._monotonic() - started
            self.book.forget_past(self._wall())
            await asyncio.sleep(max(EVERY_S, took_s / MOST_OF_THE_TIME))

    async def save(self) -> None:
        """Write what is open now, if it differs from what was written last."""
        changes = self.book.changes
        if changes == self._saved_changes:
            return
        try:
            await asyncio.to_thread(self._files.save, self.book.snapshot())
        except OSError as e:
            if not self._complained:  # once, not every second
                self._complained = True
                way_out = "make room or fix the permissions; until then a crash loses what was not accepted"
                log(
                    logging.ERROR, "usage-not-saved", path=str(self._files.path), reason=e.strerror, way_out=way_out
                )  # fmt: skip
            return
        self._saved_changes = changes
        self._complained = False

    # Controller

    def reconnected(self) -> None:
        """A new connection: what was sent and not accepted is told again."""
        if self._sent is not None:
            self._untold.extendleft(reversed(self._sent.earlier))
            self._sent = None

    def accepted(self, number: int) -> None:
        """The report of this number is in the store."""
        if self._sent is None or number != self._sent.number:
            return  # an answer to a report that was given up: its rows are told again, which adds nothing
        self.book.accepted(self._sent.own)
        self._sent = None
        if self._untold or self.book.open_count > MOST_ROWS_A_REPORT:
            self._now.set()

    async def next_report(self) -> UsageReport | None:
        """What to tell the controller now, or None: nothing, or it has not answered yet."""
        now = self._monotonic()
        if self._sent is not None:
            if now - self._sent.at < RESEND_S:
                return None
            self.reconnected()
        await self._turn_to_earlier(now)
        own = self.book.open_rows(MOST_ROWS_A_REPORT)
        earlier = tuple(self._untold.popleft() for _ in range(min(len(self._untold), MOST_ROWS_A_REPORT)))
        if not own and not earlier:
            return None
        self._number += 1
        self._sent = _Sent(self._number, now, own, earlier)
        return UsageReport(number=self._number, rows=own + earlier)

    async def pause(self) -> None:
        """Wait a second, or until there is more to tell at once."""
        try:
            async with asyncio.timeout(EVERY_S):
                await self._now.wait()
        except TimeoutError:
            pass
        self._now.clear()

    def hurry(self) -> None:
        """Tell what there is at once: the gateway is about to stop."""
        self._now.set()

    async def _turn_to_earlier(self, now: float) -> None:
        """Have the rows of the next earlier start at hand when those of the one before are in the store."""
        if self._untold:
            return
        try:
            if self._earlier is not None:
                await asyncio.to_thread(self._files.forget, self._earlier)
                self._earlier = None
            if not self._paths and (self._scanned_at is None or now - self._scanned_at > RESCAN_S):
                self._scanned_at = now
                self._paths.extend(await asyncio.to_thread(self._files.earlier, self._wall()))
            if self._paths:
                self._earlier = await asyncio.to_thread(self._files.read, self._paths[0])
                self._paths.popleft()
                self._untold.extend(self._earlier.rows)
                self._now.set()
        except (UsageUnreadable, OSError) as e:  # what is left stays on disk, for the next look
            log(logging.ERROR, "usage-file-unreadable", reason=str(e))
            if self._earlier is None and self._paths:
                self._paths.popleft()
