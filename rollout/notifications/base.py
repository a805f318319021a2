"""The port to whoever wants to be told what rollouts do: a pager, a chat room, a deployment log."""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Protocol

from pydantic import Field, StringConstraints

from rollout.errors import RolloutError
from serving.specs import Frozen


class Happening(enum.StrEnum):
    """What people are told of. The names are those of the webhooks' `type`."""

    STARTED = "rollout.started"
    STEP = "rollout.step"
    """The canary went on a step: more weight, the soak, a preview, mirrored requests."""
    PAUSED = "rollout.paused"
    """By an operator, or since the evidence did not suffice in time."""
    RESUMED = "rollout.resumed"
    ROLLED_BACK = "rollout.rolled-back"
    """Taken back on evidence, on a failure, or by an operator."""
    ABORTED = "rollout.aborted"
    """Ended by an operator without a word against the version."""
    SUPERSEDED = "rollout.superseded"
    """Ended since another version is rolled out in its place."""
    PROMOTED = "rollout.promoted"
    DEGRADED = "rollout.degraded"
    """Something is wrong and there is no way back by itself: somebody must look."""


class Position(Frozen):
    """Where in the event log something was told: the entry's id, and which of the things that the entry tells."""

    entry: Annotated[int, Field(ge=0)] = 0
    index: Annotated[int, Field(ge=0)] = 0

    def after(self, other: Position) -> bool:
        """Whether this comes later than `other`."""
        return (self.entry, self.index) > (other.entry, other.index)


class Notification(Frozen):
    """One thing that happened. It holds no secret and no text of a prompt or an answer.

    The same happening has the same `id` however often it is told, so that a receiver can drop doubles.
    """

    id: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    position: Position
    type: Happening
    at: float
    """Seconds since the epoch."""
    data: Mapping[str, Any]


class NotDelivered(RolloutError):
    """A notification did not arrive. `retryable` tells whether trying again may help."""

    def __init__(self, message: str, *, retryable: bool = True) -> None:
        super().__init__(message)
        self.retryable = retryable


class Notifier(Protocol):
    """One receiver."""

    @property
    def name(self) -> str:
        """Names it in logs, and in what is kept about how far it has been told."""
        ...

    @property
    def wanted(self) -> Collection[Happening]:
        """What it wants to be told of."""
        ...

    async def deliver(self, notification: Notification) -> None:
        """Tell it once. Telling it again is harmless: the id is the same.

        Raises:
            NotDelivered: it did not say that it has it.

        """
        ...

    async def close(self) -> None:
        """Release what is held open."""
        ...


class Cursors(Protocol):
    """Remembers across restarts how far each receiver has been told. Blocking; small."""

    def load(self) -> Mapping[str, Position]:
        """By receiver's name; one that is missing has never been told anything."""
        ...

    def save(self, cursors: Mapping[str, Position]) -> None:
        """Keep them; after this returns they survive a crash."""
        ...
