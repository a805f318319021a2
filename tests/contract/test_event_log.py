"""What every event log must do: order, fences, leases, all-or-nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from rollout.errors import LogConflict
from rollout.event_log.base import EventLog, Kind, NewEntry
from rollout.event_log.memory import MemoryEventLog
from rollout.event_log.sql import SqlEventLog


@pytest.fixture(params=["memory", "sqlite"])
def log(request, tmp_path) -> Iterator[EventLog]:
    made = MemoryEventLog() if request.param == "memory" else SqlEventLog(f"sqlite:///{tmp_path / 'state.db'}")
    yield made
    made.close()


def entry(model="chat", kind=Kind.DECISION, **payload) -> NewEntry:
    return NewEntry(model=model, at=12.5, kind=kind, actor="ada", payload=payload or {"text": "你好", "n": 0.1})


def test_entries_come_back_as_written_and_in_order(log):
    fence = log.acquire("a", now=0, ttl_s=10)
    ids = log.append([entry(), entry(model="code", kind=Kind.EVIDENCE)], fence)
    ids += log.append([entry(x=1)], fence)
    assert list(ids) == sorted(set(ids))
    got = list(log.read())
    assert [e.id for e in got] == list(ids)
    assert got[0].payload == {"text": "你好", "n": 0.1}
    assert (got[0].at, got[0].actor, got[0].fence) == (12.5, "ada", fence)


def test_reading_can_be_narrowed(log):
    fence = log.acquire("a", now=0, ttl_s=10)
    first, second, third = log.append([entry(), entry(kind=Kind.EVIDENCE), entry(model="code")], fence)
    assert [e.id for e in log.read(model="chat")] == [first, second]
    assert [e.id for e in log.read(after=first)] == [second, third]
    assert [e.id for e in log.read(kinds=[Kind.EVIDENCE])] == [second]


def test_only_the_newest_fence_may_write(log):
    old = log.acquire("a", now=0, ttl_s=10)
    new = log.acquire("b", now=11, ttl_s=10)
    assert new > old
    with pytest.raises(LogConflict):
        log.append([entry()], old)
    log.append([entry()], new)
    assert len(list(log.read())) == 1


def test_a_lease_is_respected_renewed_and_lost(log):
    fence = log.acquire("a", now=0, ttl_s=10)
    assert log.acquire("b", now=9, ttl_s=10) is None
    assert log.renew("a", fence, now=9, ttl_s=10)
    assert log.acquire("b", now=18, ttl_s=10) is None
    taken = log.acquire("b", now=20, ttl_s=10)
    assert taken is not None
    assert not log.renew("a", fence, now=20, ttl_s=10)


def test_a_restarted_holder_does_not_wait_for_itself(log):
    first = log.acquire("a", now=0, ttl_s=10)
    again = log.acquire("a", now=1, ttl_s=10)
    assert again is not None
    assert again > first
    assert not log.renew("a", first, now=1, ttl_s=10)


def test_nothing_is_written_when_a_part_cannot_be(log):
    fence = log.acquire("a", now=0, ttl_s=10)
    with pytest.raises(LogConflict):
        log.append([entry(), entry()], fence + 1)
    assert list(log.read()) == []


def test_sqlite_survives_writers_that_race(tmp_path):
    url = f"sqlite:///{tmp_path / 'state.db'}"
    first, second = SqlEventLog(url), SqlEventLog(url)
    refused: list[str] = []

    def contend(log: SqlEventLog, holder: str) -> None:
        for i in range(30):
            fence = log.acquire(holder, now=float(i), ttl_s=0.0)
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
