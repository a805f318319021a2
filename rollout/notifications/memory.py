"""A receiver and a memory of cursors without network and disk: for tests, dry runs and demos."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from rollout.notifications.base import Happening, NotDelivered, Notification, Position


class MemoryNotifier:
    """Keeps what it is told, doubles dropped. `fail_next` makes that many deliveries fail."""

    def __init__(self, name: str = "memory", wanted: Collection[Happening] = tuple(Happening)) -> None:
        self.name = name
        self.wanted = frozenset(wanted)
        self.attempts: list[str] = []
        """Ids in the order in which they were tried, doubles and failures included."""
        self.fail_next = 0
        self._received: dict[str, Notification] = {}

    @property
    def received(self) -> tuple[Notification, ...]:
        """What arrived, in order, each once."""
        return tuple(self._received.values())

    async def deliver(self, notification: Notification) -> None:
        """See `Notifier.deliver`."""
        self.attempts.append(notification.id)
        if self.fail_next > 0:
            self.fail_next -= 1
            raise NotDelivered(f"{self.name} was told to fail")
        self._received.setdefault(notification.id, notification)

    async def close(self) -> None:
        """Nothing is held open."""


class MemoryCursors:
    """Cursors that last as long as the object."""

    def __init__(self, cursors: Mapping[str, Position] | None = None) -> None:
        self._cursors = dict(cursors or {})

    def load(self) -> Mapping[str, Position]:
        """See `Cursors.load`."""
        return dict(self._cursors)

    def save(self, cursors: Mapping[str, Position]) -> None:
        """See `Cursors.save`."""
        self._cursors = dict(cursors)
