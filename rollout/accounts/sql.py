"""Keys, quotas and usage in the same database as the event log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import orjson
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from rollout.accounts.base import DAY_S, UsageSum, greatest
from rollout.event_log.database import Database
from rollout.event_log.schema import API_KEYS, COUNTERS, QUOTAS, USAGE_DAYS, USAGE_HOURS
from serving.accounting import UsageRow
from serving.keys import KeyRecord, Quota
from serving.specs import Frozen

T = TypeVar("T", bound=Frozen)

BATCH = 500
"""Rows of one statement: PostgreSQL takes 65,535 parameters, SQLite 32,766."""

_COUNTS = ("requests", "input_tokens", "output_tokens", "unmetered")
_KEYS = "keys"
_FOLDED = "usage-folded"
_ONE_MORE = sa.update(COUNTERS).where(COUNTERS.c.name == _KEYS).values(number=COUNTERS.c.number + 1)
"""Comes first wherever keys or quotas change: the counter is the lock that makes one caller follow the other."""


class SqlAccountStore:
    """Keys and quotas as documents, each in its table; usage by the hour in `usage_hours`, then in `usage_days`.

    Args:
        database: a URL as in `database.store_url`, or connections that others share.

    """

    def __init__(self, database: str | Database) -> None:
        self._database = Database(database) if isinstance(database, str) else database

    # -- keys ---------------------------------------------------------------------------------------------------

    def put_key(self, record: KeyRecord) -> None:
        """See `AccountStore.put_key`."""
        row = {"id": record.id, "created_at": record.created_at, "record": record.model_dump_json()}

        def put(connection: sa.Connection) -> None:
            connection.execute(_ONE_MORE)
            insert = self._insert(API_KEYS).values(row)
            change = {"created_at": insert.excluded.created_at, "record": insert.excluded.record}
            connection.execute(insert.on_conflict_do_update(index_elements=["id"], set_=change))

        self._database.run(put, durable=True)  # a revocation that a power cut undoes would be none

    def keys(self) -> tuple[KeyRecord, ...]:
        """See `AccountStore.keys`."""
        query = sa.select(API_KEYS.c.record).order_by(API_KEYS.c.created_at, API_KEYS.c.id)
        rows = self._database.run(lambda c: c.execute(query).scalars().all(), reads_only=True)
        return tuple(_stored(KeyRecord, text) for text in rows)

    def keys_version(self) -> int:
        """See `AccountStore.keys_version`."""
        return self._database.run(lambda c: _counter(c, _KEYS), reads_only=True)

    # -- quotas -------------------------------------------------------------------------------------------------

    def put_quota(self, quota: Quota) -> None:
        """See `AccountStore.put_quota`."""
        row = {"namespace": quota.namespace, "record": quota.model_dump_json()}

        def put(connection: sa.Connection) -> None:
            connection.execute(_ONE_MORE)
            insert = self._insert(QUOTAS).values(row)
            change = {"record": insert.excluded.record}
            connection.execute(insert.on_conflict_do_update(index_elements=["namespace"], set_=change))

        self._database.run(put, durable=True)

    def drop_quota(self, namespace: str) -> None:
        """See `AccountStore.drop_quota`."""

        def drop(connection: sa.Connection) -> None:
            connection.execute(_ONE_MORE)
            connection.execute(sa.delete(QUOTAS).where(QUOTAS.c.namespace == namespace))

        self._database.run(drop, durable=True)

    def quotas(self) -> tuple[Quota, ...]:
        """See `AccountStore.quotas`."""
        rows = self._database.run(lambda c: c.execute(sa.select(QUOTAS.c.record)).scalars().all(), reads_only=True)
        return tuple(sorted((_stored(Quota, text) for text in rows), key=lambda q: q.namespace))

    # -- usage --------------------------------------------------------------------------------------------------

    def add_usage(self, rows: Sequence[UsageRow]) -> None:
        """See `AccountStore.add_usage`."""
        places: dict[tuple[Any, ...], UsageRow] = {}
        for row in rows:
            place = (row.hour, row.key, row.model, row.version, row.gateway, row.boot)
            places[place] = greatest(places[place], row) if place in places else row
        # In one order, so that two writers never wait for each other crosswise.
        ordered = [places[place] for place in sorted(places)]
        for first in range(0, len(ordered), BATCH):
            self._add(ordered[first : first + BATCH])

    def _add(self, rows: list[UsageRow]) -> None:
        insert = self._insert(USAGE_HOURS)
        columns = USAGE_HOURS.c
        change = {name: self._greater(columns[name], insert.excluded[name]) for name in _COUNTS}
        keep = insert.on_conflict_do_update(index_elements=list(USAGE_HOURS.primary_key), set_=change)

        def add(connection: sa.Connection) -> None:
            folded = _counter(connection, _FOLDED, lock=True)
            values = [row.model_dump() for row in rows if row.hour >= folded]
            if values:
                connection.execute(keep.values(values))

        self._database.run(add)

    def usage(
        self, *, since: float, until: float, key: str | None = None, model: str | None = None
    ) -> tuple[UsageSum, ...]:
        """See `AccountStore.usage`."""
        parts = [
            _part(table, time, since, until, key, model)
            for table, time in ((USAGE_HOURS, USAGE_HOURS.c.hour), (USAGE_DAYS, USAGE_DAYS.c.day))
        ]
        both = sa.union_all(*parts).subquery()
        place = [both.c.key, both.c.model, both.c.version]
        query = sa.select(*place, *(sa.func.sum(both.c[name]).label(name) for name in _COUNTS)).group_by(*place)
        rows = self._database.run(lambda c: c.execute(query).all(), reads_only=True)
        sums = [
            UsageSum(key=r.key, model=r.model, version=r.version, **{n: int(r._mapping[n]) for n in _COUNTS})
            for r in rows
        ]
        return tuple(sorted(sums, key=lambda s: (s.key, s.model, s.version)))

    def fold_usage(self, before: float) -> int:
        """See `AccountStore.fold_usage`. One day in one transaction."""
        until = int(before) // DAY_S * DAY_S
        gone = 0
        while (day := self._oldest_day()) is not None and day < until:
            gone += self._fold(day)
        self._database.run(lambda c: _raise_counter(c, _FOLDED, until))
        return gone

    def _oldest_day(self) -> int | None:
        query = sa.select(sa.func.min(USAGE_HOURS.c.hour))
        hour = self._database.run(lambda c: c.execute(query).scalar(), reads_only=True)
        return None if hour is None else int(hour) // DAY_S * DAY_S

    def _fold(self, day: int) -> int:
        columns = USAGE_HOURS.c
        place = [columns.key, columns.model, columns.version]
        of_day = (columns.hour >= day, columns.hour < day + DAY_S)
        sums = [sa.cast(sa.func.sum(columns[name]), sa.BigInteger) for name in _COUNTS]
        summed = sa.select(sa.literal(day, sa.BigInteger), *place, *sums).where(*of_day).group_by(*place)
        insert = self._insert(USAGE_DAYS).from_select(["day", "key", "model", "version", *_COUNTS], summed)
        change = {name: USAGE_DAYS.c[name] + insert.excluded[name] for name in _COUNTS}
        add = insert.on_conflict_do_update(index_elements=list(USAGE_DAYS.primary_key), set_=change)

        def fold(connection: sa.Connection) -> int:
            # From here on nobody adds to this day: `_add` waits for the counter and then finds the day folded.
            _raise_counter(connection, _FOLDED, day + DAY_S)
            connection.execute(add)
            return connection.execute(sa.delete(USAGE_HOURS).where(*of_day)).rowcount

        return self._database.run(fold)

    def close(self) -> None:
        """Close every connection."""
        self._database.close()

    # -- what differs between the databases -----------------------------------------------------------------------

    def _insert(self, table: sa.Table) -> Any:  # noqa: ANN401 - two classes with the same methods
        return sqlite.insert(table) if self._database.is_sqlite else postgresql.insert(table)

    def _greater(self, a: sa.ColumnElement[int], b: sa.ColumnElement[int]) -> sa.ColumnElement[int]:
        return sa.func.max(a, b) if self._database.is_sqlite else sa.func.greatest(a, b)


def _part(
    table: sa.Table, time: sa.Column[int], since: float, until: float, key: str | None, model: str | None
) -> sa.Select[Any]:
    columns = table.c
    query = sa.select(columns.key, columns.model, columns.version, *(columns[name] for name in _COUNTS))
    query = query.where(time >= since, time < until)
    if key is not None:
        query = query.where(columns.key == key)
    return query if model is None else query.where(columns.model == model)


def _counter(connection: sa.Connection, name: str, *, lock: bool = False) -> int:
    query = sa.select(COUNTERS.c.number).where(COUNTERS.c.name == name)
    return int(connection.execute(query.with_for_update(read=True) if lock else query).scalar_one())


def _raise_counter(connection: sa.Connection, name: str, number: int) -> None:
    lower = (COUNTERS.c.name == name, COUNTERS.c.number < number)
    connection.execute(sa.update(COUNTERS).where(*lower).values(number=number))


def _stored(kind: type[T], text: str) -> T:
    """A stored record, read tolerantly: what a newer Tidegate wrote into it is left out."""
    stored = orjson.loads(text)
    return kind.model_validate({k: v for k, v in stored.items() if k in kind.model_fields})
