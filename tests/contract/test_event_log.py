"""What every event log must do: order, fences, leases, all-or-nothing, each write once; and what only databases can do
wrong."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import psycopg
import pytest
import sqlalchemy as sa
from alembic import command as alembic
from alembic.config import Config

from rollout.errors import EventLogUnavailable, LogConflict, UnusableStore
from rollout.event_log import database
from rollout.event_log.base import EventLog, Kind, NewEntry
from rollout.event_log.database import Database, store_url
from rollout.event_log.memory import MemoryEventLog
from rollout.event_log.schema import METADATA
from rollout.event_log.sql import SqlEventLog


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def log(request, tmp_path) -> Iterator[EventLog]:
    match request.param:
        case "memory":
            made: EventLog = MemoryEventLog()
        case "sqlite":
            made = SqlEventLog(f"sqlite:///{tmp_path / 'state.db'}")
        case _:
            made = SqlEventLog(request.getfixturevalue("postgres").new_database())
    yield made
    made.close()


def entry(model="chat", kind=Kind.DECISION, at=12.5, rollout="", **payload) -> NewEntry:
    payload = payload or {"text": "你好", "n": 0.1}
    return NewEntry(model=model, at=at, kind=kind, actor="ada", rollout=rollout, payload=payload)


def evidence(rollout: str, at: float = 12.5, model="chat") -> NewEntry:
    return entry(model=model, kind=Kind.EVIDENCE, at=at, rollout=rollout)


def take(log: EventLog, holder: str, now: float = 0.0, ttl_s: float = 10.0) -> int:
    fence = log.acquire(holder, now=now, ttl_s=ttl_s)
    assert fence is not None
    return fence


# -- entries ------------------------------------------------------------------------------------------------------


def test_entries_come_back_as_written_and_in_order(log):
    fence = take(log, "a")
    ids = log.append([entry(), evidence("r1")], fence)
    ids += log.append([entry(x=1)], fence)
    assert list(ids) == sorted(set(ids))
    got = list(log.read())
    assert [e.id for e in got] == list(ids)
    assert got[0].payload == {"text": "你好", "n": 0.1}
    assert (got[0].at, got[0].actor, got[0].fence, got[1].rollout) == (12.5, "ada", fence, "r1")


def test_reading_can_be_narrowed(log):
    fence = take(log, "a")
    first, second, third, fourth = log.append(
        [entry(), evidence("r1"), entry(model="code", kind=Kind.COMMAND), evidence("r2", model="code")], fence
    )
    assert [e.id for e in log.read(model="chat")] == [first, second]
    assert [e.id for e in log.read(after=first)] == [second, third, fourth]
    assert [e.id for e in log.read(kinds=[Kind.EVIDENCE])] == [second, fourth]
    assert [e.id for e in log.read(kinds=[Kind.COMMAND, Kind.DECISION])] == [first, third]
    assert [e.id for e in log.read(model="code", kinds=[Kind.EVIDENCE, Kind.COMMAND])] == [third, fourth]
    assert [e.id for e in log.read(rollouts=["r2", "unknown", ""])] == [fourth]
    assert list(log.read(rollouts=[])) == []


def test_a_long_log_is_read_whole_and_in_order(log):
    fence = take(log, "a")
    kinds = [Kind.EVIDENCE, Kind.DECISION, Kind.EVIDENCE, Kind.COMMAND]
    ids = log.append([entry(kind=kinds[i % 4], rollout="r", n=i) for i in range(4999)], fence)
    assert [e.id for e in log.read()] == list(ids)
    assert [e.payload["n"] for e in log.read(kinds=[Kind.COMMAND, Kind.DECISION])] == list(range(1, 4999, 2))
    assert [e.payload["n"] for e in log.read(rollouts=["r"])] == list(range(0, 4999, 2))


def test_an_entry_written_while_the_log_is_read_is_read_or_comes_next_time(log):
    fence = take(log, "a")
    ids = list(log.append([entry(n=i) for i in range(2500)], fence))
    reading = iter(log.read())
    got = [next(reading).id]
    ids += log.append([entry(n=2500)], fence)
    got += [e.id for e in reading]
    got += [e.id for e in log.read(after=got[-1])]
    assert got == ids


def test_nothing_is_written_when_nothing_is_given(log):
    assert log.append([], take(log, "a")) == ()


# -- leadership ---------------------------------------------------------------------------------------------------


def test_only_the_newest_fence_may_write(log):
    old = take(log, "a")
    log.acquire("b", now=0, ttl_s=10)
    new = take(log, "b", now=10)
    assert new > old
    with pytest.raises(LogConflict):
        log.append([entry()], old)
    log.append([entry()], new)
    assert len(list(log.read())) == 1


def test_a_lease_that_is_renewed_is_never_over(log):
    fence = take(log, "a")
    for now in range(0, 100, 9):
        assert log.acquire("b", now=now, ttl_s=10) is None
        assert log.renew("a", fence)


def test_a_lease_is_over_when_somebody_waited_for_it_in_vain(log):
    fence = take(log, "a")
    assert log.acquire("b", now=100, ttl_s=10) is None
    assert log.acquire("b", now=109, ttl_s=10) is None
    assert log.acquire("b", now=110, ttl_s=10) == fence + 1
    assert not log.renew("a", fence)


@pytest.mark.parametrize("skew_s", [-1e6, -20.0, 20.0, 1e6])
def test_clocks_need_not_agree(log, skew_s):
    """The follower's clock says something else than the leader's; what counts is how long it waited itself."""
    fence = take(log, "a", now=1000)
    assert log.acquire("b", now=1000 + skew_s, ttl_s=10) is None
    assert log.renew("a", fence)
    assert log.acquire("b", now=1015 + skew_s, ttl_s=10) is None
    assert log.acquire("b", now=1025 + skew_s, ttl_s=10) is not None


def test_a_clock_that_jumps_back_only_makes_its_owner_wait_anew(log):
    take(log, "a")
    assert log.acquire("b", now=100, ttl_s=10) is None
    assert log.acquire("b", now=5, ttl_s=10) is None
    assert log.acquire("b", now=14, ttl_s=10) is None
    assert log.acquire("b", now=15, ttl_s=10) is not None


def test_a_restarted_holder_does_not_wait_for_itself(log):
    first = take(log, "a")
    again = take(log, "a", now=1)
    assert again > first
    assert not log.renew("a", first)


def test_a_lease_that_is_given_back_is_free_at_once(log):
    fence = take(log, "a")
    log.release("a", fence)
    assert not log.renew("a", fence)
    assert take(log, "b") > fence


def test_only_the_holder_gives_a_lease_back(log):
    first = take(log, "a")
    second = take(log, "a")
    log.release("a", first)
    log.release("b", second)
    assert log.renew("a", second)


def test_nothing_is_written_when_a_part_cannot_be(log):
    fence = take(log, "a")
    with pytest.raises(LogConflict):
        log.append([entry(), entry()], fence + 1)
    assert list(log.read()) == []


# -- keeping it small ---------------------------------------------------------------------------------------------


def test_old_evidence_of_finished_rollouts_is_dropped_and_nothing_else(log):
    fence = take(log, "a")
    kept = log.append(
        [entry(at=1, n=1), entry(kind=Kind.COMMAND, at=1, n=2), evidence("active", at=1), evidence("fresh", at=1)],
        fence,
    )
    log.append([evidence("old", at=1)] * 2500, fence)
    kept += log.append([evidence("fresh", at=50), evidence("active", at=2)], fence)
    assert log.compact(10.0, keep=["active"], fence=fence) == 2500
    assert [e.id for e in log.read()] == list(kept)
    assert log.compact(10.0, keep=["active"], fence=fence) == 0


def test_ids_go_on_growing_after_the_newest_entries_were_dropped(log):
    fence = take(log, "a")
    (decision,) = log.append([entry()], fence)
    dropped = log.append([evidence("old", at=1), evidence("old", at=1)], fence)
    log.compact(10.0, keep=[], fence=fence)
    (after,) = log.append([entry()], fence)
    assert after > dropped[-1]
    assert [e.id for e in log.read(after=decision)] == [after]


def test_only_the_leader_compacts(log):
    old = take(log, "a")
    log.append([evidence("old", at=1)], old)
    log.release("a", old)
    take(log, "b")
    with pytest.raises(LogConflict):
        log.compact(10.0, keep=[], fence=old)
    assert len(list(log.read())) == 1


# -- databases ----------------------------------------------------------------------------------------------------


def test_writers_that_race_never_both_write(store):
    first, second = SqlEventLog(store), SqlEventLog(store)
    refused: list[str] = []

    def contend(log: SqlEventLog, holder: str) -> None:
        for i in range(30):
            fence = log.acquire(holder, now=float(i), ttl_s=0.0) or log.acquire(holder, now=float(i), ttl_s=0.0)
            try:
                log.append([entry(writer=holder, fence=fence)], fence or 0)
            except LogConflict:
                refused.append(holder)

    threads = [threading.Thread(target=contend, args=a) for a in ((first, "a"), (second, "b"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kept = list(first.read())
    assert len(kept) + len(refused) == 60
    fences = [e.fence for e in kept]
    assert fences == sorted(fences)
    assert all(e.payload["fence"] == e.fence for e in kept)
    first.close()
    second.close()


def test_a_token_is_good_only_where_it_was_handed_out(store):
    """Numbers that make a write land once are counted by its writer, so there must be one."""
    first, second = SqlEventLog(store), SqlEventLog(store)
    fence = take(first, "a")
    with pytest.raises(LogConflict):
        second.append([entry()], fence)
    first.close()
    second.close()


class LosesReplies:
    """Makes the first commits of a log happen, and their replies get lost."""

    def __init__(self, log: SqlEventLog, times: int) -> None:
        self.left = times
        real = log._database._once

        def once(work, reads_only, durable):
            done = real(work, reads_only, durable)
            if self.left > 0 and not reads_only:
                self.left -= 1
                raise sa.exc.OperationalError("COMMIT", None, Exception("server closed the connection unexpectedly"))
            return done

        log._database._once = once


@pytest.mark.parametrize("lost", [1, 2])
def test_a_write_whose_reply_was_lost_lands_once(store, lost):
    log = SqlEventLog(store)
    fence = take(log, "a")
    (before,) = log.append([entry(n=0)], fence)
    LosesReplies(log, times=lost)
    ids = log.append([entry(n=1), entry(n=2)], fence)
    log.append([entry(n=3)], fence)
    assert [e.payload["n"] for e in log.read()] == [0, 1, 2, 3]
    assert [e.id for e in log.read(after=before)][:2] == list(ids)
    log.close()


def test_what_landed_behind_a_lost_connection_is_found_by_reading_on(store):
    log = SqlEventLog(store)
    fence = take(log, "a")
    (before,) = log.append([entry(n=0)], fence)
    lossy = LosesReplies(log, times=10_000)
    with pytest.raises(EventLogUnavailable):
        log.append([entry(n=1)], fence)
    lossy.left = 0
    assert log.renew("a", fence)
    assert [e.payload["n"] for e in log.read(after=before)] == [1]
    log.append([entry(n=2)], fence)
    assert [e.payload["n"] for e in log.read()] == [0, 1, 2]
    log.close()


def test_two_that_open_one_store_at_once_migrate_it_once(store):
    logs: list[SqlEventLog] = []
    failed: list[Exception] = []

    def open_it() -> None:
        try:
            logs.append(SqlEventLog(store))
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    fence = take(logs[0], "a")
    logs[0].append([entry()], fence)
    assert [len(list(log.read())) for log in logs] == [1, 1, 1, 1]
    for log in logs:
        log.close()


def config(connection: sa.Connection) -> Config:
    made = Config()
    made.set_main_option("script_location", "rollout/event_log/migrations")
    made.attributes["connection"] = connection
    return made


def test_migrations_end_at_the_schema_that_the_code_has(store):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    opened = Database(store)
    with opened._engine.connect() as connection:
        found = compare_metadata(MigrationContext.configure(connection), METADATA)
    opened.close()
    assert found == []


def test_a_store_of_the_first_schema_is_taken_over(store, monkeypatch):
    monkeypatch.setattr(database, "migrate", lambda connection: alembic.upgrade(config(connection), "0001"))
    old = Database(store)
    with old._engine.begin() as connection:
        connection.execute(sa.text("INSERT INTO lease (name, holder, fence, expires_at) VALUES ('controller','a',7,0)"))
        for kind, payload in (("command", "{}"), ("evidence", '{"rollout":"r1","gateway":"g"}')):
            connection.execute(
                sa.text(
                    "INSERT INTO events (model, at, kind, actor, fence, payload) VALUES ('chat', 1, :k, 'ada', 7, :p)"
                ),
                {"k": kind, "p": payload},
            )
    old.close()
    monkeypatch.undo()
    log = SqlEventLog(store)
    assert [(e.kind, e.rollout, e.fence) for e in log.read()] == [(Kind.COMMAND, "", 7), (Kind.EVIDENCE, "r1", 7)]
    assert take(log, "a") == 8
    log.append([entry()], 8)
    log.close()


def test_a_store_that_a_newer_version_has_written_is_refused(store):
    opened = Database(store)
    with opened._engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    opened.close()
    with pytest.raises(UnusableStore, match="newer"):
        Database(store)


def test_migrations_can_be_undone(store):
    opened = Database(store)
    with opened._engine.begin() as connection:
        alembic.downgrade(config(connection), "0001")
    with opened._engine.begin() as connection:
        alembic.upgrade(config(connection), "head")
    opened.close()
    log = SqlEventLog(store)
    log.append([entry()], take(log, "a"))
    log.close()


@pytest.mark.parametrize(
    ("url", "driver"),
    [
        ("sqlite:////var/lib/tidegate/state.db", "sqlite"),
        ("postgresql://u:p@db/tidegate", "postgresql+psycopg"),
        ("postgresql+psycopg://u:p@db:5433/tidegate?sslmode=require", "postgresql+psycopg"),
    ],
)
def test_urls_of_both_databases_are_known(url, driver):
    assert store_url(url).drivername == driver


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "mysql://u:geheim@db/x", "state.db", ""])
def test_other_urls_are_refused_without_telling_a_password(url):
    with pytest.raises(UnusableStore, match="sqlite:///path") as refused:
        store_url(url)
    assert "geheim" not in str(refused.value)


def test_a_postgresql_that_restarts_costs_a_wait(own_postgres):
    log = SqlEventLog(own_postgres.new_database())
    fence = take(log, "a")
    log.append([entry(n=0)], fence)
    own_postgres.stop()
    own_postgres.start()
    log.append([entry(n=1)], fence)  # over a connection that is dead, which is noticed, and a new one
    own_postgres.kill()
    with pytest.raises(EventLogUnavailable, match="Connection refused"):
        log.append([entry(n=2)], fence)
    own_postgres.start()
    assert log.renew("a", fence)
    log.append([entry(n=3)], fence)
    assert [e.payload["n"] for e in log.read()] == [0, 1, 3]
    log.close()


def test_a_controller_that_hangs_in_a_transaction_is_cut_off(postgres):
    """It holds the lease's row: PostgreSQL ends its session, and the next one gets the lease."""
    url = postgres.new_database() + "?options=-c%20idle_in_transaction_session_timeout%3D300"
    hanging, other = SqlEventLog(url), SqlEventLog(url)
    take(hanging, "a")
    connection = hanging._database._engine.connect()
    connection.execute(sa.text("SELECT * FROM lease FOR UPDATE"))
    other.acquire("b", now=0, ttl_s=0)
    assert other.acquire("b", now=1, ttl_s=0) is not None
    connection.invalidate()
    hanging.close()
    other.close()


def test_a_locked_sqlite_is_waited_for_and_then_reported(tmp_path):
    url = f"sqlite:///{tmp_path / 'state.db'}"
    log, other = SqlEventLog(url), SqlEventLog(url)
    fence = take(log, "a")
    with other._database._engine.connect() as blocking, blocking.begin():
        with pytest.raises(EventLogUnavailable, match="locked"):
            log.append([entry(n=1)], fence)
        assert list(log.read()) == []  # readers don't wait for writers
    log.append([entry(n=2)], fence)
    assert [e.payload["n"] for e in log.read()] == [2]
    log.close()
    other.close()


def test_messages_tell_no_password(postgres):
    url = postgres.new_database().replace("tidegate@", "tidegate:geheim@")
    log = SqlEventLog(url)
    name = url.rsplit("/", 1)[1]
    with psycopg.connect(postgres.dsn("postgres"), autocommit=True) as admin:
        admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
    with pytest.raises(EventLogUnavailable) as told:
        log.renew("a", 1)
    assert "geheim" not in str(told.value)
    assert "***" in str(told.value)
    log.close()
