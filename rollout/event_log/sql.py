"""The event log in SQL: SQLite (write-ahead log) by default, PostgreSQL for more than one controller. One schema.

How a write lands once, and only a leader's. Every transaction that writes first locks the lease's row (on SQLite: the
database), so writes and changes of the leadership follow each other: what was checked stays true until the commit,
ids are given in the order of commits, and whoever holds the lock knows that nothing is under way any more. Each entry
carries (fence, number), unique together. When the reply to a commit is lost, the write is done again with the same
numbers, finds them taken, and returns the ids that are there.
"""

from __future__ import annotations

import heapq
import json
import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from operator import attrgetter
from typing import Any

import orjson
import sqlalchemy as sa

from rollout.errors import LogConflict
from rollout.event_log.base import Entry, Kind, NewEntry
from rollout.event_log.database import PATIENCE_S, Database
from rollout.event_log.schema import EVENTS, LEASE

PAGE = 2000
"""Entries read in one transaction: none stays open however slowly the reader reads."""

BATCH = 1000
"""Entries dropped in one transaction: a write of the leader waits for no more than that."""

APPEND_PATIENCE_S = 0.5
"""How long an append is tried again. Short: the controller's loop waits for it, and knows how to hold."""

_THE_LEASE = LEASE.c.name == "controller"


class SqlEventLog:
    """Entries in a table `events`, the leadership in a table `lease`, both changed in one transaction.

    Args:
        database: a URL as in `database.store_url`, or connections that others share.

    """

    def __init__(self, database: str | Database) -> None:
        self._database = Database(database) if isinstance(database, str) else database
        self._writing = threading.Lock()
        self._fence = 0
        self._number = 0
        self._seen: dict[str, tuple[tuple[int, int], float]] = {}
        """By who waits: the lease (fence, renewals) as it was last found changed, and when."""

    # -- leadership ---------------------------------------------------------------------------------------------

    def acquire(self, holder: str, now: float, ttl_s: float) -> int | None:
        """See `EventLog.acquire`."""

        def take(connection: sa.Connection) -> int | None:
            row = connection.execute(sa.select(LEASE).where(_THE_LEASE).with_for_update()).one()
            if row.holder not in ("", holder) and not self._waited(holder, (row.fence, row.renewals), now, ttl_s):
                return None
            change = {"holder": holder, "fence": row.fence + 1}
            connection.execute(sa.update(LEASE).where(_THE_LEASE).values(change))
            return int(row.fence) + 1

        # Durable: were a token forgotten by a power cut, the next leader would get one that gateways know already.
        fence = self._database.run(take, durable=True)
        if fence is not None:
            with self._writing:
                self._fence, self._number = fence, 0
        return fence

    def _waited(self, holder: str, lease: tuple[int, int], now: float, ttl_s: float) -> bool:
        since = self._seen.get(holder)
        if since is None or since[0] != lease or now < since[1]:
            self._seen[holder] = (lease, now)
            return False
        return now - since[1] >= ttl_s

    def renew(self, holder: str, fence: int) -> bool:
        """See `EventLog.renew`."""
        mine = sa.update(LEASE).where(_THE_LEASE, LEASE.c.holder == holder, LEASE.c.fence == fence)
        again = mine.values(renewals=LEASE.c.renewals + 1)
        return self._database.run(lambda connection: connection.execute(again).rowcount == 1)

    def release(self, holder: str, fence: int) -> None:
        """See `EventLog.release`."""
        mine = sa.update(LEASE).where(_THE_LEASE, LEASE.c.holder == holder, LEASE.c.fence == fence)
        self._database.run(lambda connection: connection.execute(mine.values(holder="")))

    def _check(self, connection: sa.Connection, fence: int, *, lazily: bool = False) -> None:
        """Lock the lease and see that it is ours. `lazily` lets PostgreSQL flush this commit a moment later."""
        held = sa.select(LEASE.c.fence).where(_THE_LEASE).with_for_update()
        if lazily and not self._database.is_sqlite:
            held = held.add_columns(sa.func.set_config("synchronous_commit", "off", True))
        newest = connection.execute(held).scalar_one()
        if newest != fence:
            raise LogConflict(f"fence {fence} is not the newest ({newest}); another controller leads")

    # -- writing ------------------------------------------------------------------------------------------------

    def append(self, entries: Sequence[NewEntry], fence: int) -> tuple[int, ...]:
        """See `EventLog.append`."""
        with self._writing:
            if fence != self._fence:
                raise LogConflict(f"fence {fence} is not the one that was acquired here ({self._fence})")
            first = self._number + 1
            # These numbers are spent whatever happens: what is written next is something else.
            self._number += len(entries)
            rows = [_row(entry, fence, first + i) for i, entry in enumerate(entries)]
            if not rows:
                return ()
            # What a database server that loses its power may forget: the last moment's evidence, as SQLite does, and
            # never a decision, since commits reach the disk in their order.
            lazily = all(entry.kind is Kind.EVIDENCE for entry in entries)
            return self._append(rows, fence, first, lazily=lazily)

    def _append(self, rows: list[dict[str, Any]], fence: int, first: int, *, lazily: bool) -> tuple[int, ...]:
        written = sa.insert(EVENTS).returning(EVENTS.c.id, sort_by_parameter_order=True)
        there = sa.select(EVENTS.c.id).where(EVENTS.c.fence == fence, EVENTS.c.number >= first).order_by(EVENTS.c.id)
        tried = False

        def write(connection: sa.Connection) -> tuple[int, ...]:
            nonlocal tried
            self._check(connection, fence, lazily=lazily)
            if tried and (ids := connection.execute(there).scalars().all()):
                return tuple(ids)  # the commit had happened; only its reply was lost
            tried = True
            return tuple(connection.execute(written, rows).scalars().all())

        return self._database.run(write, patience_s=APPEND_PATIENCE_S)

    # -- reading ------------------------------------------------------------------------------------------------

    def read(
        self,
        *,
        model: str | None = None,
        after: int = 0,
        kinds: Sequence[Kind] | None = None,
        rollouts: Collection[str] | None = None,
    ) -> Iterable[Entry]:
        """See `EventLog.read`. One index serves each stream, and streams are merged where there are several."""
        given = [] if model is None else [EVENTS.c.model == model]
        if rollouts is not None:
            if kinds is not None and Kind.EVIDENCE not in kinds:
                return
            for rollout in rollouts:
                yield from self._pages([*given, EVENTS.c.rollout == rollout, EVENTS.c.rollout != ""], after)
        elif model is None and kinds is None:
            yield from self._pages([], after)
        else:
            wanted = dict.fromkeys(kinds if kinds is not None else Kind)
            streams = (self._pages([*given, EVENTS.c.kind == kind.value], after) for kind in wanted)
            yield from heapq.merge(*streams, key=attrgetter("id"))

    def _pages(self, conditions: list[sa.ColumnElement[bool]], after: int) -> Iterator[Entry]:
        columns = [c for c in EVENTS.c if c.name != "number"]
        while True:
            page = sa.select(*columns).where(*conditions, EVENTS.c.id > after).order_by(EVENTS.c.id).limit(PAGE)
            rows = self._database.run(lambda c, page=page: c.execute(page).all(), reads_only=True)  # type: ignore[misc]
            for row in rows:
                yield _entry(row)
            if len(rows) < PAGE:
                return
            after = rows[-1].id

    # -- keeping it small ---------------------------------------------------------------------------------------

    def compact(self, before: float, *, keep: Collection[str], fence: int) -> int:
        """See `EventLog.compact`."""
        self._database.run(lambda connection: self._check(connection, fence))
        gone = 0
        for rollout in self._rollouts():
            if rollout not in keep and self._newest_at(rollout) < before:
                while dropped := self._drop(rollout, fence):
                    gone += dropped
        return gone

    def _rollouts(self) -> Iterator[str]:
        """Every rollout with evidence, hopping through the index from one to the next."""
        last = ""
        while True:
            query = sa.select(sa.func.min(EVENTS.c.rollout)).where(EVENTS.c.rollout > last)
            found = self._database.run(lambda c, query=query: c.execute(query).scalar(), reads_only=True)  # type: ignore[misc]
            if found is None:
                return
            yield found
            last = found

    def _newest_at(self, rollout: str) -> float:
        query = sa.select(EVENTS.c.at).where(EVENTS.c.rollout == rollout).order_by(EVENTS.c.id.desc()).limit(1)
        return float(self._database.run(lambda c: c.execute(query).scalar_one(), reads_only=True))

    def _drop(self, rollout: str, fence: int) -> int:
        some = sa.select(EVENTS.c.id).where(EVENTS.c.rollout == rollout).limit(BATCH)

        def drop(connection: sa.Connection) -> int:
            self._check(connection, fence)
            return connection.execute(sa.delete(EVENTS).where(EVENTS.c.id.in_(some))).rowcount

        return self._database.run(drop, patience_s=PATIENCE_S)

    def close(self) -> None:
        """Close every connection."""
        self._database.close()


def _row(entry: NewEntry, fence: int, number: int) -> dict[str, Any]:
    return {
        "model": entry.model,
        "at": entry.at,
        "kind": entry.kind.value,
        "actor": entry.actor,
        "fence": fence,
        "number": number,
        "rollout": entry.rollout if entry.kind is Kind.EVIDENCE else "",
        "payload": json.dumps(entry.payload, separators=(",", ":"), allow_nan=False),
    }


def _entry(row: sa.Row[Any]) -> Entry:
    return Entry(
        id=row.id,
        model=row.model,
        at=row.at,
        kind=Kind(row.kind),
        actor=row.actor,
        fence=row.fence,
        rollout=row.rollout,
        payload=orjson.loads(row.payload),
    )
