"""Tells receivers what rollouts do, from the event log: at least once, in order, each receiver at its own pace.

The log is the queue. Nothing is lost by a crash, since what was decided is in the log before anybody is told, and how
far each receiver has been told is kept apart; what was told but not yet noted is told again under the same id. A
receiver that does not answer holds up nobody but itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from tenacity import AsyncRetrying, RetryCallState, wait_random_exponential

from rollout.announcements import announce
from rollout.errors import EventLogUnavailable
from rollout.event_log.base import Entry, EventLog, Kind
from rollout.notifications.base import Cursors, NotDelivered, Notification, Notifier, Position
from rollout.status import ModelStatus

log = logging.getLogger(__name__)

T = TypeVar("T")

GIVE_UP_S = 24 * 3600.0
"""A notification is tried for this long. Who comes back later reads the history: old news as if new would mislead."""
LONGEST_PAUSE_S = 300.0
KEPT = 10_000
"""Notifications that wait at most; the oldest go first. About 10 MB."""
LOOK_S = 1.0
"""How often it is asked whether this controller leads."""


class Announcer:
    """One reader of the log, one task per receiver.

    Args:
        event_log: what happened; read in a thread.
        notifiers: the receivers; their names must differ.
        cursors: how far each has been told.
        leads: whether this controller leads; only the leader tells.
        clock: seconds since the epoch.
        sleep: for the pauses between attempts; tests pass their own.

    """

    def __init__(
        self,
        *,
        event_log: EventLog,
        notifiers: Sequence[Notifier],
        cursors: Cursors,
        leads: Callable[[], bool],
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._log = event_log
        self._notifiers = tuple(notifiers)
        self._store = cursors
        self._leads = leads
        self._clock = clock
        self._sleep = sleep
        self._statuses: dict[str, ModelStatus] = {}
        self._read_through = 0
        self._cursors: dict[str, Position] = {}
        self._waiting: deque[Notification] = deque(maxlen=KEPT)
        self._failures: dict[str, str] = {}
        self._something_new = asyncio.Event()
        self._more = asyncio.Condition()
        self._saving = asyncio.Lock()

    def wake(self, _: ModelStatus | None = None) -> None:
        """Something was written to the log: a listener for `Controller.subscribe`."""
        self._something_new.set()

    @property
    def state(self) -> list[dict[str, Any]]:
        """How each receiver does, for `/api/v1/status`."""
        return [
            {
                "name": n.name,
                "told_through": self._cursors[n.name].entry if n.name in self._cursors else None,
                "problem": self._failures.get(n.name, ""),
            }
            for n in self._notifiers
        ]

    async def run(self) -> None:
        """Read and tell, for ever. Without receivers there is nothing to do, and it waits to be cancelled."""
        if not self._notifiers:
            await asyncio.Event().wait()
        while not self._leads():  # noqa: ASYNC110 - leadership lies in the store; nothing here could be awaited
            await asyncio.sleep(LOOK_S)
        try:
            await self._begin()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._read_for_ever())
                for notifier in self._notifiers:
                    tasks.create_task(self._tell_for_ever(notifier))
        finally:
            for notifier in self._notifiers:
                await notifier.close()

    # -- reading ------------------------------------------------------------------------------------------------

    async def _begin(self) -> None:
        """Fold the log up to now and find each receiver's place in it."""
        told = await self._at_last(self._load_cursors)
        found = list(self._fold(await self._at_last(self._entries)))
        newest = Position(entry=self._read_through, index=KEPT)
        for notifier in self._notifiers:
            cursor = told.get(notifier.name, newest)  # a new receiver is told what happens from now on
            self._cursors[notifier.name] = newest if cursor.after(newest) else cursor  # that log was replaced
        oldest = self._clock() - GIVE_UP_S
        self._waiting.extend(n for n in found if n.at >= oldest and self._somebody_lacks(n))
        await self._at_last(lambda: self._store.save(dict(self._cursors)))

    async def _at_last(self, asks: Callable[[], T]) -> T:
        """Ask the store until it answers: whoever ended here would tell nobody anything for as long as it leads."""
        told = False
        while True:
            try:
                return await asyncio.to_thread(asks)
            except (OSError, EventLogUnavailable) as error:
                if not told:
                    log.warning("notifications wait for the store: %s", error)
                told = True
            await self._sleep(LOOK_S)

    def _load_cursors(self) -> Mapping[str, Position]:
        try:
            return self._store.load()
        except ValueError as error:
            # Better a double that receivers can drop than silence.
            log.warning("it can't be read how far receivers have been told (%s); telling the last day again", error)
            return {n.name: Position() for n in self._notifiers}

    def _somebody_lacks(self, notification: Notification) -> bool:
        return any(notification.position.after(cursor) for cursor in self._cursors.values())

    async def _read_for_ever(self) -> None:
        while True:
            await self._something_new.wait()
            self._something_new.clear()
            try:
                found = await self._read()
            except Exception as error:  # whatever the store is out of: it comes back, and nothing was skipped
                log.warning("the event log can't be read for notifications: %s", type(error).__name__)
                self._something_new.set()
                await asyncio.sleep(LOOK_S)
                continue
            if found:
                lost = len(self._waiting) + len(found) - KEPT
                if lost > 0:
                    log.error("%d notifications were dropped: a receiver is %d behind", lost, KEPT)
                self._waiting.extend(found)
                async with self._more:
                    self._more.notify_all()

    async def _read(self) -> list[Notification]:
        entries = await asyncio.to_thread(self._entries)
        return list(self._fold(entries))

    def _entries(self) -> list[Entry]:
        return list(self._log.read(after=self._read_through, kinds=(Kind.COMMAND, Kind.DECISION)))

    def _fold(self, entries: Iterable[Entry]) -> Iterable[Notification]:
        for entry in entries:
            status = self._statuses.get(entry.model) or ModelStatus(model=entry.model)
            self._statuses[entry.model], found = announce(status, entry)
            self._read_through = max(self._read_through, entry.id)
            yield from found

    # -- telling ------------------------------------------------------------------------------------------------

    async def _tell_for_ever(self, notifier: Notifier) -> None:
        while True:
            notification = self._next_for(notifier)
            if notification is None:
                async with self._more:
                    await self._more.wait_for(lambda: self._next_for(notifier) is not None)
                continue
            if notification.type in notifier.wanted:
                await self._tell(notifier, notification)
            self._cursors[notifier.name] = notification.position
            self._forget_told()
            await self._save()

    def _next_for(self, notifier: Notifier) -> Notification | None:
        cursor = self._cursors[notifier.name]
        return next((n for n in self._waiting if n.position.after(cursor)), None)

    def _forget_told(self) -> None:
        while self._waiting and not self._somebody_lacks(self._waiting[0]):
            self._waiting.popleft()

    async def _save(self) -> None:
        try:
            async with self._saving:
                await asyncio.to_thread(self._store.save, dict(self._cursors))
        except (OSError, EventLogUnavailable) as error:  # then it is told again after a restart
            log.warning("how far receivers have been told can't be kept: %s", error)

    async def _tell(self, notifier: Notifier, notification: Notification) -> None:
        def failed(state: RetryCallState) -> None:
            error = state.outcome.exception() if state.outcome is not None else None
            if notifier.name not in self._failures:
                log.warning("%s; trying again for up to a day", error)
            self._failures[notifier.name] = str(error)

        attempts = AsyncRetrying(
            wait=wait_random_exponential(multiplier=1.0, max=LONGEST_PAUSE_S),
            stop=lambda _: self._clock() - notification.at > GIVE_UP_S,
            retry=lambda s: s.outcome is not None and _worth_another_attempt(s.outcome.exception()),
            before_sleep=failed,
            sleep=self._sleep,
            reraise=True,
        )
        try:
            await attempts(notifier.deliver, notification)
        except NotDelivered as error:
            self._failures[notifier.name] = str(error)
            log.warning("%s; %s of %s is given up", error, notification.type, notification.data["model"])
        else:
            if self._failures.pop(notifier.name, ""):
                log.info("%s answers again", notifier.name)


def _worth_another_attempt(error: BaseException | None) -> bool:
    return isinstance(error, NotDelivered) and error.retryable
