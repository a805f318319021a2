"""The port to a metrics store: cumulative counters of two revisions, read at one moment.

For engines that stand behind somebody else's gateway, where nobody tells Tidegate each event. What a reading means as
evidence is rollout's affair; here it is only read, and whatever is not exactly two pairs of counters is an error.

    ProviderError
    ├── StoreUnavailable   (retryable)  unreachable, timed out, overloaded, or answered with a 5xx
    ├── QueryRefused                    the store says that the query or the credentials are wrong
    ├── NoData                          the query found nothing, or no number
    ├── SeveralSeries                   the query found more than one series where one is needed
    └── BadAnswer                       what came back is not what the store's API promises, or is too large
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class ProviderError(Exception):
    """A signal could not be read. The message is for people, and names the query."""

    retryable = False


class StoreUnavailable(ProviderError):
    """The store did not answer; asking again may help."""

    retryable = True


class QueryRefused(ProviderError):
    """The store refused the query or the credentials."""


class NoData(ProviderError):
    """The query found nothing, or something that is no number."""


class SeveralSeries(ProviderError):
    """The query found several series; which one is meant can't be guessed."""


class BadAnswer(ProviderError):
    """The answer is not of the API's form."""


@dataclass(frozen=True, slots=True)
class RevisionQuery:
    """The queries of one revision's two counters, in the store's language."""

    events: str
    """How many requests went wrong, ever growing."""
    total: str
    """How many requests there were, ever growing."""


@dataclass(frozen=True, slots=True)
class SignalQuery:
    """What to read for one signal."""

    canary: RevisionQuery
    stable: RevisionQuery | None = None
    """None while there is nothing to compare with."""


@dataclass(frozen=True, slots=True)
class Counters:
    """Cumulative counters of one revision. A reset shows as a lower value than before."""

    events: int
    total: int


@dataclass(frozen=True, slots=True)
class Measured:
    """Both revisions' counters at one moment of the store's clock (seconds since the epoch)."""

    at: float
    canary: Counters
    stable: Counters | None = None


class SignalProvider(Protocol):
    """A metrics store."""

    async def read(self, query: SignalQuery) -> Measured:
        """Read both revisions' counters.

        Raises:
            ProviderError: one of this module's tree; never anything else for whatever the store does.

        """
        ...

    async def close(self) -> None:
        """Release what is held. Idempotent."""
        ...
