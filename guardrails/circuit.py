"""A circuit breaker: leave a service alone that keeps failing, and try it now and then. Pure; the time is an argument.

    closed     -- `failures_to_open` failures in a row --> open
    open       -- after `open_s` -----------------------> half open
    half open  -- one call is let through: success --> closed, failure --> open for twice as long, up to `MAX_OPEN_S`

After Nygard, *Release It!* (2007).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

MAX_OPEN_S = 300.0


class State(enum.StrEnum):
    """What the breaker does with calls."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(slots=True)
class Circuit:
    """The state of one service."""

    failures_to_open: int
    open_s: float
    failures: int = 0
    state: State = State.CLOSED
    until: float = 0.0
    """When an open circuit lets one call through."""
    openings: int = 0
    """How often in a row it opened."""

    def admits(self, now: float) -> bool:
        """Whether a call may be made now. In the half-open state only one may, until its outcome is reported.

        >>> circuit = Circuit(failures_to_open=1, open_s=10)
        >>> circuit.failed(now=0.0)
        >>> circuit.admits(now=5.0), circuit.admits(now=10.0), circuit.admits(now=10.0)
        (False, True, False)
        """
        if self.state is State.CLOSED:
            return True
        if now < self.until:
            return False
        # The probe's own time is bounded by `open_s` too: one whose outcome is never reported doesn't shut it for ever.
        self.state = State.HALF_OPEN
        self.until = now + self.open_s
        return True

    def succeeded(self) -> None:
        """A call was answered."""
        self.failures = self.openings = 0
        self.state = State.CLOSED

    def failed(self, now: float) -> None:
        """A call failed."""
        self.failures += 1
        if self.state is State.HALF_OPEN or (self.state is State.CLOSED and self.failures >= self.failures_to_open):
            self.until = now + min(MAX_OPEN_S, self.open_s * 2 ** min(self.openings, 16))
            self.openings += 1
            self.state = State.OPEN

    def wait_s(self, now: float) -> float:
        """Seconds until a call may be made."""
        return 0.0 if self.state is State.CLOSED else max(0.0, self.until - now)
