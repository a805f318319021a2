"""The port to API keys, quotas and usage: who may ask, how much, and who asked for how much.

Usage is kept by the hour for `KEPT_S`, then folded into days (UTC). Sums stay exact; only the resolution gets coarser.
A report that comes for an hour which is folded already is not counted: it could not be told from one that was.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from serving.accounting import UsageRow
from serving.keys import KeyRecord, Quota
from serving.specs import Frozen

DAY_S = 86_400
KEPT_S = 35 * DAY_S
"""How long usage is kept by the hour: a month's bill can be looked into until the next one is out."""


class UsageSum(Frozen):
    """What one key used of one version of a model in the time asked for."""

    key: str
    model: str
    version: str
    requests: int
    input_tokens: int
    output_tokens: int
    unmetered: int


class AccountStore(Protocol):
    """Keeps keys, quotas and usage. Every method may raise `EventLogUnavailable`; all may be tried again."""

    def put_key(self, record: KeyRecord) -> None:
        """Insert a key, or replace the one with its id."""
        ...

    def keys(self) -> tuple[KeyRecord, ...]:
        """Every key, revoked and expired ones too, oldest first."""
        ...

    def keys_version(self) -> int:
        """A number that grows with every change of a key or a quota, by whomever: cheap to ask again and again."""
        ...

    def put_quota(self, quota: Quota) -> None:
        """Insert a namespace's quota, or replace the one it has."""
        ...

    def drop_quota(self, namespace: str) -> None:
        """Let a namespace have no quota any more; nothing happens when it has none."""
        ...

    def quotas(self) -> tuple[Quota, ...]:
        """Every quota, by namespace."""
        ...

    def add_usage(self, rows: Sequence[UsageRow]) -> None:
        """Book rows, keeping the greatest of each place, so that twice, late or out of order count once."""
        ...

    def usage(
        self, *, since: float, until: float, key: str | None = None, model: str | None = None
    ) -> tuple[UsageSum, ...]:
        """Sums by key, model and version, in that order, over the hours that begin in [since, until).

        Days that are folded count as a whole when they begin there. Times are in seconds since the epoch.
        """
        ...

    def fold_usage(self, before: float) -> int:
        """Fold the hours of whole days (UTC) that end at or before this time into days; returns how many rows went."""
        ...

    def close(self) -> None:
        """Release what is held open."""
        ...


def greatest(a: UsageRow, b: UsageRow) -> UsageRow:
    """The greater of two rows of one place, count by count: they are cumulative, so each only ever grows."""
    counts = ("requests", "input_tokens", "output_tokens", "unmetered")
    return a.model_copy(update={name: max(getattr(a, name), getattr(b, name)) for name in counts})
