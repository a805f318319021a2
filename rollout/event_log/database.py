"""One database for all that the controller keeps: connections, time-outs, what is tried again, migrations.

SQLite (write-ahead log) by default, PostgreSQL for more than one controller. Work is handed over as a function of a
connection and runs in one transaction. When that fails for a passing reason (a lost connection, a restarted server, a
deadlock, a locked database) it runs again, from its beginning, until the caller's patience ends: so it must be
idempotent, the loss of a commit's reply included.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from alembic import command as alembic
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from rollout.errors import EventLogUnavailable, UnusableStore

log = logging.getLogger(__name__)

T = TypeVar("T")

PATIENCE_S = 5.0
"""How long work is tried again, unless the caller says otherwise."""

SQLITE_BUSY_S = 1.0
"""How long one statement waits for SQLite's write lock. Our own transactions hold it for milliseconds."""

POSTGRES_DEFAULTS = {
    "connect_timeout": "3",
    "tcp_user_timeout": "5000",
    "application_name": "tidegate",
    # A controller that is stopped or cut off in the middle of a transaction holds the lease's row: not for long.
    "options": "-c statement_timeout=5000 -c lock_timeout=3000 -c idle_in_transaction_session_timeout=10000",
}
"""libpq's parameters, times in s, ms and ms. What the URL says comes first."""

_MIGRATION_LOCK = 0x7469_6465
"""PostgreSQL's advisory lock that controllers take before they migrate, so that two don't at once."""


class Database:
    """Connections to one store.

    Raises:
        UnusableStore: the URL is none of a store that we know, or a newer Tidegate has written it.
        EventLogUnavailable: it can't be reached.
    """

    def __init__(self, url: str) -> None:
        self.url = store_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self._engine = _sqlite_engine(self.url) if self.is_sqlite else _postgres_engine(self.url)
        self.run(migrate, patience_s=30.0)

    def run(
        self,
        work: Callable[[sa.Connection], T],
        *,
        reads_only: bool = False,
        durable: bool = False,
        patience_s: float = PATIENCE_S,
    ) -> T:
        """Do idempotent work in one transaction, again while it fails for a passing reason.

        Args:
            work: is given a connection with the transaction begun.
            reads_only: it writes nothing, so that on SQLite it need not wait for writers.
            durable: must survive a power cut also on SQLite, where other commits may be lost by one (not by a crash).
            patience_s: how long to try.

        Raises:
            EventLogUnavailable: patience is over.

        """
        attempts = Retrying(
            retry=retry_if_exception(_passes),
            stop=stop_after_delay(patience_s),
            wait=wait_random_exponential(multiplier=0.02, max=0.5),
            reraise=True,
        )
        try:
            done: T = attempts(self._once, work, reads_only, durable)
        except (sa.exc.SQLAlchemyError, OSError) as error:
            if not _passes(error):
                raise
            cause = getattr(error, "orig", None) or error
            told = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
            shown = self.url.render_as_string(hide_password=True)
            raise EventLogUnavailable(
                f"the store {shown} did not do it within {patience_s:g} s ({told}); it is tried again"
            ) from error
        return done

    def _once(self, work: Callable[[sa.Connection], T], reads_only: bool, durable: bool) -> T:
        with self._engine.connect() as bare:
            connection = bare.execution_options(tidegate_reads_only=reads_only)
            flush = durable and self.is_sqlite
            if flush:
                _sqlite_synchronous(connection, "FULL")
            try:
                with connection.begin():
                    return work(connection)
            finally:
                if flush and not connection.invalidated:
                    _sqlite_synchronous(connection, "NORMAL")

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()


def store_url(url: str) -> sa.URL:
    """Read a store's URL: `sqlite:///path`, `postgresql://...` or `postgresql+psycopg://...`.

    Raises:
        UnusableStore: it is none of these.

    """
    ways = "use sqlite:///path/to/state.db or postgresql://user:password@host/database"
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError:
        raise UnusableStore(f"the store's URL can't be read as one; {ways}") from None
    backend = parsed.get_backend_name()
    if backend == "sqlite":
        if parsed.database in (None, "", ":memory:"):
            raise UnusableStore(f"a store in memory is forgotten with its process; {ways}")
        return parsed.set(drivername="sqlite")
    if backend in ("postgresql", "postgres"):
        return parsed.set(drivername="postgresql+psycopg")
    raise UnusableStore(f"no store is made of {backend!r}; {ways}")


def _passes(error: BaseException) -> bool:
    """Whether an error may go away by itself: what the server or the way to it did, not what was asked."""
    if isinstance(error, sa.exc.DBAPIError) and error.connection_invalidated:
        return True
    passing = (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.InternalError, sa.exc.TimeoutError, OSError)
    return isinstance(error, passing)


def _postgres_engine(url: sa.URL) -> sa.Engine:
    arguments = {k: v for k, v in POSTGRES_DEFAULTS.items() if k not in url.query}
    return sa.create_engine(
        url, connect_args=arguments, pool_size=5, max_overflow=5, pool_timeout=5, hide_parameters=True
    )


def _sqlite_engine(url: sa.URL) -> sa.Engine:
    """An engine in write-ahead mode, so that readers never wait; writers take the write lock when they begin.

    With the driver's own deferred BEGIN, the fence would be read before the lock is held, and two writers could both
    find theirs to be the newest.
    """
    try:
        Path(str(url.database)).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise UnusableStore(f"the folder of {url.database} can't be made ({error.strerror}); name another") from error
    engine = sa.create_engine(url, hide_parameters=True)

    def on_connect(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
        connection.isolation_level = None  # sqlite3's own attribute
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout={int(SQLITE_BUSY_S * 1000)}")
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=NORMAL")  # survives kill -9; a power cut may cost the last commits
        cursor.close()

    def on_begin(connection: sa.Connection) -> None:
        reads_only = connection.get_execution_options().get("tidegate_reads_only", False)
        connection.exec_driver_sql("BEGIN" if reads_only else "BEGIN IMMEDIATE")

    sa.event.listen(engine, "connect", on_connect)
    sa.event.listen(engine, "begin", on_begin)
    return engine


def _sqlite_synchronous(connection: sa.Connection, mode: str) -> None:
    """Set when commits reach the disk. Only outside a transaction, so below SQLAlchemy, which would begin one."""
    raw: Any = connection.connection.dbapi_connection
    raw.execute(f"PRAGMA synchronous={mode}")


def migrate(connection: sa.Connection) -> None:
    """Bring the schema up to date; one controller at a time.

    Raises:
        UnusableStore: a newer Tidegate has migrated it further than this one knows.

    """
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("SET LOCAL statement_timeout = 0"))
        connection.execute(sa.text("SET LOCAL lock_timeout = 0"))
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
    config = Config()
    config.set_main_option("script_location", str(resources.files("rollout.event_log") / "migrations"))
    config.attributes["connection"] = connection
    try:
        alembic.upgrade(config, "head")
    except CommandError as error:
        raise UnusableStore(
            f"the store's schema is none that this Tidegate knows ({error}); a newer one has written it: install that"
        ) from error
