"""Evidence events on their way to the controller: numbered, in order, kept until accepted. Pure."""

from __future__ import annotations

from collections import deque

from serving.outcomes import Event

CAPACITY = 20_000
"""Events kept while the controller is away. Its lease ends the canary's traffic long before."""


class Outbox:
    """A bounded queue with three places: accepted (forgotten), sent, not yet sent."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._events: deque[Event] = deque()
        self._sent_through = 0
        self._last = 0
        self.dropped = 0
        """Events lost because the box was full: the oldest go first."""

    def next_sequence(self) -> int:
        """The number that the next event must carry."""
        return self._last + 1

    def append(self, event: Event) -> None:
        """Take an event numbered by `next_sequence`."""
        assert event.sequence == self._last + 1
        self._last = event.sequence
        self._events.append(event)
        if len(self._events) > self._capacity:
            self._events.popleft()
            self.dropped += 1

    def unsent(self, most: int = 500) -> tuple[Event, ...]:
        """The oldest events not sent on this connection yet."""
        first = self._events[0].sequence if self._events else self._last + 1
        skip = max(0, self._sent_through + 1 - first)
        return tuple(self._events[i] for i in range(skip, min(len(self._events), skip + most)))

    def sent(self, through: int) -> None:
        """Note that events up to this number were sent."""
        self._sent_through = max(self._sent_through, through)

    def accepted(self, through: int) -> None:
        """Forget events up to this number: the controller has them in its log."""
        while self._events and self._events[0].sequence <= through:
            self._events.popleft()
        self._sent_through = max(self._sent_through, min(through, self._last))

    def reconnected(self) -> None:
        """A new connection: whatever was not accepted is sent again."""
        self._sent_through = 0

    def __len__(self) -> int:
        return len(self._events)
