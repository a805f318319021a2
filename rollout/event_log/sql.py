"""The event log in SQL: SQLite (WAL) by default, PostgreSQL for more than one controller. One schema."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command as alembic
from alembic.config import Config
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry

from rollout.errors import LogConflict
from rollout.event_log.base import Entry, Kind, NewEntry

METADATA = sa.MetaData()

# BIGINT, but SQLite numbers rows by itself only in a column that is spelled INTEGER.
ROW_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")

EVENTS = sa.Table(
    "events",
    METADATA,
    sa.Column("id", ROW_ID, primary_key=True, autoincrement=True),
    sa.Column("model", sa.String(63), nullable=False),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("actor", sa.String(255), nullable=False),
    sa.Column("fence", sa.BigInteger, nullable=False),
    sa.Column("payload", sa.Text, nullable=False),
    sa.Index("events_by_model", "model", "id"),
)

LEASE = sa.Table(
    "lease",
    METADATA,
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("holder", sa.String(255), nullable=False),
    sa.Column("fence", sa.BigInteger, nullable=False),
    sa.Column("expires_at", sa.Double, nullable=False),
)

_LEASE_NAME = "controller"
_BUSY_S = 10.0
"""How long a statement waits for SQLite's write lock before it gives up."""


class SqlEventLog:
    """Entries in a table `events`, the leadership in a table `lease`, both changed in one transaction."""

    def __init__(self, url: str) -> None:
        parsed = sa.make_url(url)
        if parsed.get_backend_name() == "sqlite" and parsed.database:
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        self._engine = sa.create_engine(url, pool_pre_ping=parsed.get_backend_name() != "sqlite")
        if parsed.get_backend_name() == "sqlite":
            _prepare_sqlite(self._engine)
        migrate(self._engine)

    def acquire(self, holder: str, now: float, ttl_s: float) -> int | None:
        """See `EventLog.acquire`."""
        with self._engine.begin() as connection:
            row = connection.execute(
                sa.select(LEASE).where(LEASE.c.name == _LEASE_NAME).with_for_update()
            ).one_or_none()
            if row is None:
                connection.execute(
                    sa.insert(LEASE).values(name=_LEASE_NAME, holder=holder, fence=1, expires_at=now + ttl_s)
                )
                return 1
            if row.holder != holder and now < row.expires_at:
                return None
            fence = int(row.fence) + 1
            connection.execute(
                sa.update(LEASE)
                .where(LEASE.c.name == _LEASE_NAME)
                .values(holder=holder, fence=fence, expires_at=now + ttl_s)
            )
            return fence

    def renew(self, holder: str, fence: int, now: float, ttl_s: float) -> bool:
        """See `EventLog.renew`."""
        with self._engine.begin() as connection:
            done = connection.execute(
                sa.update(LEASE)
                .where(LEASE.c.name == _LEASE_NAME, LEASE.c.holder == holder, LEASE.c.fence == fence)
                .values(expires_at=now + ttl_s)
            )
            return done.rowcount == 1

    def append(self, entries: Sequence[NewEntry], fence: int) -> tuple[int, ...]:
        """See `EventLog.append`."""
        with self._engine.begin() as connection:
            newest = connection.execute(
                sa.select(LEASE.c.fence).where(LEASE.c.name == _LEASE_NAME).with_for_update()
            ).scalar_one_or_none()
            if newest != fence:
                raise LogConflict(f"fence {fence} is not the newest ({newest}); another controller leads")
            return tuple(self._insert(connection, entry, fence) for entry in entries)

    @staticmethod
    def _insert(connection: sa.Connection, entry: NewEntry, fence: int) -> int:
        row: dict[str, Any] = {
            "model": entry.model,
            "at": entry.at,
            "kind": entry.kind.value,
            "actor": entry.actor,
            "fence": fence,
            "payload": json.dumps(entry.payload, separators=(",", ":"), allow_nan=False),
        }
        key = connection.execute(sa.insert(EVENTS).values(**row)).inserted_primary_key
        assert key is not None
        return int(key[0])

    def read(self, *, model: str | None = None, after: int = 0, kinds: Sequence[Kind] | None = None) -> Iterable[Entry]:
        """See `EventLog.read`."""
        query = sa.select(EVENTS).where(EVENTS.c.id > after).order_by(EVENTS.c.id)
        if model is not None:
            query = query.where(EVENTS.c.model == model)
        if kinds is not None:
            query = query.where(EVENTS.c.kind.in_([k.value for k in kinds]))
        with self._engine.connect() as connection:
            reading = connection.execution_options(tidegate_reads_only=True, yield_per=1000)
            for row in reading.execute(query):
                yield Entry(
                    id=row.id,
                    model=row.model,
                    at=row.at,
                    kind=Kind(row.kind),
                    actor=row.actor,
                    fence=row.fence,
                    payload=json.loads(row.payload),
                )

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()


def _prepare_sqlite(engine: sa.Engine) -> None:
    """WAL so that readers never wait, and transactions that take the write lock when they begin.

    With the driver's own deferred BEGIN, the fence would be read before the lock is held, and two writers could
    both find theirs to be the newest.
    """

    def on_connect(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
        connection.isolation_level = None  # sqlite3's own attribute
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=NORMAL")  # survives kill -9; a power cut may cost the last commits
        cursor.execute(f"PRAGMA busy_timeout={int(_BUSY_S * 1000)}")
        cursor.close()

    def on_begin(connection: sa.Connection) -> None:
        reads_only = connection.get_execution_options().get("tidegate_reads_only", False)
        connection.exec_driver_sql("BEGIN" if reads_only else "BEGIN IMMEDIATE")

    sa.event.listen(engine, "connect", on_connect)
    sa.event.listen(engine, "begin", on_begin)


def migrate(engine: sa.Engine) -> None:
    """Bring the schema up to date."""
    config = Config()
    config.set_main_option("script_location", str(resources.files("rollout.event_log") / "migrations"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        alembic.upgrade(config, "head")
