"""Keys and quotas on their way to the gateways, usage on its way to the store. Shell: tasks of the leading controller.

Nothing here holds up a decision. The store is asked in threads, by one task for keys and one for usage; what can't be
booked now is not acknowledged, and gateways send it again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from rollout.accounts.base import KEPT_S, AccountStore
from rollout.errors import EventLogUnavailable
from rollout.traffic_routers.gateway import GatewayRouter
from serving.keys import KeyRecord, Quota
from serving.outcomes import UsageReport

log = logging.getLogger(__name__)

LOOK_S = 0.5
"""How often it is looked whether another process has changed a key: a revocation is everywhere within a second."""

MAX_REPORTS = 256
"""Usage reports that wait. What comes when there are as many is not taken, and comes again."""

AT_ONCE_ROWS = 5000
"""Rows that are booked together."""

AWAY_S = 1.0
"""Pause after the store could not be reached."""

Report = tuple[UsageReport, Callable[[], Awaitable[None]]]


class Accounting:
    """Keeps the gateways' keys and the store's usage up to date, while this controller leads."""

    def __init__(self, accounts: AccountStore, router: GatewayRouter, clock: Callable[[], float]) -> None:
        self._accounts = accounts
        self._router = router
        self._clock = clock
        self._version = -1
        self._keys: tuple[KeyRecord, ...] = ()
        self._quotas: tuple[Quota, ...] = ()
        self._loading = asyncio.Lock()
        self._reports: asyncio.Queue[Report] = asyncio.Queue(MAX_REPORTS)

    # -- keys -----------------------------------------------------------------------------------------------------

    def keys(self) -> tuple[KeyRecord, ...]:
        """Every key, as last read; the same object until one changes."""
        return self._keys

    def quotas(self) -> tuple[Quota, ...]:
        """Every quota of a namespace, as last read."""
        return self._quotas

    def load(self) -> None:
        """Read keys and quotas when they have changed. Blocks; for a thread, or before anything runs."""
        version = self._accounts.keys_version()
        if version != self._version:
            keys, quotas = self._accounts.keys(), self._accounts.quotas()
            self._keys, self._quotas, self._version = keys, quotas, version

    async def put_key(self, record: KeyRecord) -> None:
        """Keep a key, or the new state of one; when this returns, the gateways that can be reached were told.

        Raises:
            EventLogUnavailable: it may be kept or not; putting it again does no harm.

        """
        await asyncio.to_thread(self._accounts.put_key, record)
        await self.refresh()

    async def put_quota(self, quota: Quota) -> None:
        """Keep a namespace's quota; when this returns, the gateways that can be reached were told.

        Raises:
            EventLogUnavailable: it may be kept or not; putting it again does no harm.

        """
        await asyncio.to_thread(self._accounts.put_quota, quota)
        await self.refresh()

    async def drop_quota(self, namespace: str) -> None:
        """Let a namespace have no quota any more; otherwise as `put_quota`."""
        await asyncio.to_thread(self._accounts.drop_quota, namespace)
        await self.refresh()

    async def refresh(self, *, push: bool = False) -> None:
        """Read keys and quotas, and tell the gateways when one has changed, or in any case with `push`."""
        async with self._loading:
            before = self._version
            await asyncio.to_thread(self.load)
            if push or self._version != before:
                now = self._clock()
                await self._router.set_keys([k for k in self._keys if k.valid(now)], self._quotas)

    async def follow_keys(self) -> None:
        """Tell the gateways of every change of a key, whichever process made it. For ever."""
        away = False
        push = True
        while True:
            try:
                await self.refresh(push=push)
                push = away = False
            except EventLogUnavailable as error:
                if not away:
                    log.warning("the keys can't be read, so gateways go by those they have: %s", error)
                away = True
            await asyncio.sleep(AWAY_S if away else LOOK_S)

    # -- usage ----------------------------------------------------------------------------------------------------

    def on_usage(self, report: UsageReport, accepted: Callable[[], Awaitable[None]]) -> None:
        """Queue a report; see `traffic_routers.gateway.Sink`."""
        try:
            self._reports.put_nowait((report, accepted))
        except asyncio.QueueFull:
            log.warning("%d usage reports wait already, so one is left to come again", MAX_REPORTS)

    async def book_usage(self) -> None:
        """Book what is queued, many reports in one go. For ever."""
        while True:
            reports = [await self._reports.get()]
            rows = len(reports[0][0].rows)
            while rows < AT_ONCE_ROWS and not self._reports.empty():
                reports.append(self._reports.get_nowait())
                rows += len(reports[-1][0].rows)
            if not await self._book(reports) and len(reports) > 1:
                for report in reports:  # one of them may be what the store refuses; the others must not wait for it
                    await self._book([report])

    async def _book(self, reports: list[Report]) -> bool:
        rows = [row for report, _ in reports for row in report.rows]
        try:
            await asyncio.to_thread(self._accounts.add_usage, rows)
        except EventLogUnavailable as error:
            log.warning("usage can't be booked now and will come again: %s", error)
            await asyncio.sleep(AWAY_S)
            return True
        except Exception:
            log.exception("%d usage rows can't be booked", len(rows))
            return False
        for _, accepted in reports:
            await accepted()
        return True

    def fold_old_usage(self, now: float) -> int:
        """Fold hours that are old enough into days; returns how many rows went. Blocks; for a thread."""
        return self._accounts.fold_usage(now - KEPT_S)
