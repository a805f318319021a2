"""Keys, quotas and usage in memory: for tests, dry runs and demos."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from rollout.accounts.base import DAY_S, UsageSum, greatest
from serving.accounting import UsageRow
from serving.keys import KeyRecord, Quota

_Place = tuple[int, str, str, str, str, str]
_Counts = tuple[int, int, int, int]


class MemoryAccountStore:
    """Keeps all in dictionaries; passes the same contract suite as the SQL adapter."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._keys: dict[str, KeyRecord] = {}
        self._quotas: dict[str, Quota] = {}
        self._version = 0
        self._hours: dict[_Place, UsageRow] = {}
        self._days: dict[tuple[int, str, str, str], _Counts] = {}
        self._folded_until = 0

    def put_key(self, record: KeyRecord) -> None:
        """See `AccountStore.put_key`."""
        with self._lock:
            self._keys[record.id] = record
            self._version += 1

    def keys(self) -> tuple[KeyRecord, ...]:
        """See `AccountStore.keys`."""
        with self._lock:
            return tuple(sorted(self._keys.values(), key=lambda k: (k.created_at, k.id)))

    def keys_version(self) -> int:
        """See `AccountStore.keys_version`."""
        return self._version

    def put_quota(self, quota: Quota) -> None:
        """See `AccountStore.put_quota`."""
        with self._lock:
            self._quotas[quota.namespace] = quota
            self._version += 1

    def drop_quota(self, namespace: str) -> None:
        """See `AccountStore.drop_quota`."""
        with self._lock:
            if self._quotas.pop(namespace, None) is not None:
                self._version += 1

    def quotas(self) -> tuple[Quota, ...]:
        """See `AccountStore.quotas`."""
        with self._lock:
            return tuple(self._quotas[name] for name in sorted(self._quotas))

    def add_usage(self, rows: Sequence[UsageRow]) -> None:
        """See `AccountStore.add_usage`."""
        with self._lock:
            for row in rows:
                if row.hour >= self._folded_until:
                    place = (row.hour, row.key, row.model, row.version, row.gateway, row.boot)
                    known = self._hours.get(place)
                    self._hours[place] = row if known is None else greatest(known, row)

    def usage(
        self, *, since: float, until: float, key: str | None = None, model: str | None = None
    ) -> tuple[UsageSum, ...]:
        """See `AccountStore.usage`."""
        with self._lock:
            found = list(self._days.items())
            found += [((r.hour, r.key, r.model, r.version), _counts(r)) for r in self._hours.values()]
        sums: dict[tuple[str, str, str], _Counts] = {}
        for (at, of_key, of_model, version), counts in found:
            if since <= at < until and key in (None, of_key) and model in (None, of_model):
                place = (of_key, of_model, version)
                sums[place] = _added(sums.get(place, (0, 0, 0, 0)), counts)
        return tuple(_sum(place, counts) for place, counts in sorted(sums.items()))

    def fold_usage(self, before: float) -> int:
        """See `AccountStore.fold_usage`."""
        with self._lock:
            until = int(before) // DAY_S * DAY_S
            old = [place for place in self._hours if place[0] < until]
            for place in old:
                hour, key, model, version = place[:4]
                day = (hour // DAY_S * DAY_S, key, model, version)
                self._days[day] = _added(self._days.get(day, (0, 0, 0, 0)), _counts(self._hours.pop(place)))
            self._folded_until = max(self._folded_until, until)
            return len(old)

    def close(self) -> None:
        """Nothing is held open."""


def _counts(row: UsageRow) -> _Counts:
    return (row.requests, row.input_tokens, row.output_tokens, row.unmetered)


def _added(a: _Counts, b: _Counts) -> _Counts:
    requests, input_tokens, output_tokens, unmetered = (x + y for x, y in zip(a, b, strict=True))
    return (requests, input_tokens, output_tokens, unmetered)


def _sum(place: tuple[str, str, str], counts: _Counts) -> UsageSum:
    key, model, version = place
    requests, input_tokens, output_tokens, unmetered = counts
    return UsageSum(
        key=key,
        model=model,
        version=version,
        requests=requests,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        unmetered=unmetered,
    )
