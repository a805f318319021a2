"""Keys on their way to gateways and usage on its way to the store, when the store is slow, away or refuses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from rollout import accounting
from rollout.accounting import MAX_REPORTS, Accounting
from rollout.accounts.memory import MemoryAccountStore
from rollout.errors import EventLogUnavailable
from serving.accounting import UsageRow
from serving.keys import KeyRecord, hash_secret
from serving.outcomes import UsageReport


class Router:
    """Remembers what gateways were told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, ...]] = []

    async def set_keys(self, records, quotas=()) -> None:
        self.told.append(tuple(r.id for r in records))


class Store(MemoryAccountStore):
    """Can be away, and refuses rows of one model."""

    away = False
    calls = 0

    def add_usage(self, rows) -> None:
        self.calls += 1
        if self.away:
            raise EventLogUnavailable("away")
        if any(row.model == "poison" for row in rows):
            raise ValueError("refused")
        super().add_usage(rows)

    def keys_version(self) -> int:
        if self.away:
            raise EventLogUnavailable("away")
        return super().keys_version()


def key(number: int, **changes) -> KeyRecord:
    fields = {"id": f"{number:012d}", "secret_sha256": hash_secret("x"), "name": "app", "created_at": float(number)}
    return KeyRecord(**fields | changes)


def report(number: int, model: str = "chat") -> UsageReport:
    row = UsageRow(gateway="g", boot="b", hour=0, key=f"k{number}", model=model, version="1.0.0", requests=1)
    return UsageReport(number=number, rows=(row,))


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def router() -> Router:
    return Router()


@pytest.fixture
def keeper(store, router, monkeypatch) -> Accounting:
    monkeypatch.setattr(accounting, "LOOK_S", 0.01)
    monkeypatch.setattr(accounting, "AWAY_S", 0.01)
    return Accounting(store, router, lambda: 100.0)


@asynccontextmanager
async def running(*work) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(w) for w in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until(condition) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("never")


async def test_gateways_are_told_of_keys_that_may_be_used_and_only_when_one_changed(keeper, store, router):
    await keeper.put_key(key(1))
    await keeper.put_key(key(2, expires_at=99.0))
    await keeper.put_key(key(3, revoked_at=5.0))
    await keeper.refresh()
    assert router.told == [(key(1).id,)] * 3
    assert keeper.keys() == (key(1), key(2, expires_at=99.0), key(3, revoked_at=5.0))
    assert keeper.keys() is keeper.keys()


async def test_a_new_leader_tells_the_keys_though_none_has_changed(keeper, store, router):
    store.put_key(key(1))
    keeper.load()
    async with running(keeper.follow_keys()):
        await until(lambda: router.told == [(key(1).id,)])


async def test_a_change_by_another_process_is_seen_also_after_the_store_was_away(keeper, store, router):
    async with running(keeper.follow_keys()):
        await until(lambda: router.told)
        store.away = True
        store.put_key(key(1))
        await asyncio.sleep(0.05)
        assert router.told == [()]
        store.away = False
        await until(lambda: router.told[-1] == (key(1).id,))


async def test_reports_that_wait_are_booked_together_and_accepted_after_it(keeper, store):
    accepted: list[int] = []

    async def accept(number: int) -> None:
        assert sum(s.requests for s in store.usage(since=0, until=1)) == 50
        accepted.append(number)

    for n in range(50):
        keeper.on_usage(report(n + 1), lambda n=n: accept(n))
    async with running(keeper.book_usage()):
        await until(lambda: len(accepted) == 50)
    assert store.calls == 1


async def test_what_can_not_be_booked_now_is_not_accepted(keeper, store):
    accepted: list[int] = []

    async def accept() -> None:
        accepted.append(1)

    store.away = True
    async with running(keeper.book_usage()):
        keeper.on_usage(report(1), accept)
        await until(lambda: store.calls)
        store.away = False
        await asyncio.sleep(0.05)
        assert accepted == []
        keeper.on_usage(report(1), accept)
        await until(lambda: accepted == [1])


async def test_a_report_that_the_store_refuses_holds_up_no_other(keeper, store):
    accepted: list[int] = []

    async def accept(number: int) -> None:
        accepted.append(number)

    for n in range(1, 6):
        keeper.on_usage(report(n, "poison" if n == 3 else "chat"), lambda n=n: accept(n))
    async with running(keeper.book_usage()):
        await until(lambda: accepted == [1, 2, 4, 5])


async def test_no_more_reports_wait_than_allowed(keeper, store):
    async def accept() -> None:
        """Nobody counts."""

    for n in range(MAX_REPORTS + 10):
        keeper.on_usage(report(n + 1), accept)
    assert keeper._reports.qsize() == MAX_REPORTS
