"""What every store of keys and usage must do: keys replaced by id, usage counted once whatever arrives how often."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from rollout.accounts.base import DAY_S, AccountStore
from rollout.accounts.memory import MemoryAccountStore
from rollout.accounts.sql import SqlAccountStore
from rollout.event_log.database import Database
from rollout.event_log.schema import API_KEYS
from serving.accounting import HOUR_S, UsageRow
from serving.keys import ControlRole, KeyRecord, Priority, Quota, Scope, hash_secret


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def accounts(request, tmp_path) -> Iterator[AccountStore]:
    match request.param:
        case "memory":
            made: AccountStore = MemoryAccountStore()
        case "sqlite":
            made = SqlAccountStore(f"sqlite:///{tmp_path / 'state.db'}")
        case _:
            made = SqlAccountStore(request.getfixturevalue("postgres").new_database())
    yield made
    made.close()


def key(number: int, **changes) -> KeyRecord:
    fields = {
        "id": f"{number:012d}",
        "secret_sha256": hash_secret(str(number)),
        "name": f"应用 {number}",
        "created_at": 1000.0 + number,
    }
    return KeyRecord(**fields | changes)


def row(hour: int, *, key: str = "k1", gateway: str = "g1", boot: str = "b1", version: str = "1.0.0", **counts):
    return UsageRow(
        gateway=gateway, boot=boot, hour=hour * HOUR_S, key=key, model="chat", version=version, **counts
    )  # fmt: skip


def total(accounts: AccountStore, since: float = 0.0, until: float = 1e12, **narrowed) -> int:
    return sum(s.requests for s in accounts.usage(since=since, until=until, **narrowed))


# -- keys ---------------------------------------------------------------------------------------------------------


def test_keys_come_back_as_put_oldest_first(accounts):
    full = key(
        2,
        scopes=frozenset({Scope.INFERENCE, Scope.PIN_VERSION}),
        models=("chat", "code"),
        roles=frozenset({ControlRole.ADMIN}),
        priority=Priority.BATCH,
        requests_per_minute=60,
        tokens_per_minute=1000,
        concurrency=4,
        expires_at=2000.5,
    )
    accounts.put_key(key(3))
    accounts.put_key(full)
    accounts.put_key(key(1, created_at=5000.0))
    assert accounts.keys() == (full, key(3), key(1, created_at=5000.0))


def test_a_key_is_replaced_by_its_id_and_revoked_ones_stay(accounts):
    accounts.put_key(key(1))
    accounts.put_key(key(1, revoked_at=3000.0))
    assert accounts.keys() == (key(1, revoked_at=3000.0),)


def test_every_change_of_a_key_is_seen_by_its_version(accounts):
    versions = [accounts.keys_version()]
    for record in (key(1), key(2), key(1, revoked_at=1.0)):
        accounts.put_key(record)
        versions.append(accounts.keys_version())
    assert versions == sorted(set(versions))
    assert accounts.keys_version() == versions[-1]


def test_a_namespace_has_one_quota_and_every_change_of_it_is_a_change_of_the_keys(accounts):
    versions = [accounts.keys_version()]
    shop, bank = (Quota(namespace=n, set_at=1.5, requests_per_minute=6) for n in ("shop", "bank"))
    raised = shop.model_copy(update={"requests_per_minute": None, "concurrency": 9, "tokens_per_minute": 10**12})
    for change in (
        lambda: accounts.put_quota(shop),
        lambda: accounts.put_quota(bank),
        lambda: accounts.put_quota(raised),
        lambda: accounts.drop_quota("bank"),
    ):
        change()
        versions.append(accounts.keys_version())
    assert accounts.quotas() == (raised,)
    assert versions == sorted(set(versions))
    accounts.drop_quota("bank")
    assert accounts.quotas() == (raised,)


def test_no_key_is_lost_among_callers_that_race(store):
    opened = [SqlAccountStore(store) for _ in range(2)]

    def put(accounts: AccountStore, first: int) -> None:
        for i in range(20):
            accounts.put_key(key(first + i))
            accounts.put_key(key(999))

    threads = [threading.Thread(target=put, args=(a, n * 100)) for n, a in enumerate(opened)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened[0].keys()) == 41
    assert opened[1].keys_version() == 80
    for accounts in opened:
        accounts.close()


def test_a_key_that_a_newer_version_wrote_is_read_without_what_is_new(store):
    accounts = SqlAccountStore(store)
    accounts.put_key(key(1))
    opened = Database(store)
    with opened._engine.begin() as connection:
        newer = sa.func.replace(API_KEYS.c.record, '"name"', '"colour":1,"name"')
        connection.execute(sa.update(API_KEYS).values(record=newer))
    opened.close()
    assert accounts.keys() == (key(1),)
    accounts.close()


# -- usage --------------------------------------------------------------------------------------------------------


def test_usage_is_summed_by_key_model_and_version(accounts):
    accounts.add_usage([row(1, requests=2, input_tokens=10, output_tokens=5), row(2, requests=1, unmetered=1)])
    accounts.add_usage([row(1, gateway="g2", requests=4, input_tokens=7), row(1, key="", requests=3)])
    first, second = accounts.usage(since=0, until=10 * HOUR_S)
    assert (first.key, first.requests) == ("", 3)
    assert second.model_dump() == {
        "key": "k1", "model": "chat", "version": "1.0.0",
        "requests": 7, "input_tokens": 17, "output_tokens": 5, "unmetered": 1,
    }  # fmt: skip


def test_usage_can_be_narrowed(accounts):
    accounts.add_usage([row(h, requests=1, version=f"{h}.0.0") for h in range(10)])
    accounts.add_usage([row(1, key="k2", requests=5)])
    assert total(accounts, since=2 * HOUR_S, until=5 * HOUR_S) == 3
    assert total(accounts, key="k2") == 5
    assert total(accounts, model="code") == 0
    assert [s.version for s in accounts.usage(since=0, until=2 * HOUR_S, key="k1")] == ["0.0.0", "1.0.0"]


def test_a_report_counts_once_however_often_late_and_doubled(accounts):
    reports = [[row(1, requests=n, output_tokens=10 * n), row(2, requests=n)] for n in range(1, 20)]
    chance = random.Random(7)
    told = [chance.choice(reports) for _ in range(60)] + reports
    chance.shuffle(told)
    for rows in told:
        accounts.add_usage([*rows, *rows])
    assert total(accounts) == 38
    assert accounts.usage(since=0, until=2 * HOUR_S)[0].output_tokens == 190


def test_a_restarted_gateway_counts_beside_what_it_counted_before(accounts):
    accounts.add_usage([row(1, boot="b1", requests=10)])
    accounts.add_usage([row(1, boot="b2", requests=1)])
    accounts.add_usage([row(1, boot="b1", requests=10)])
    assert total(accounts) == 11


def test_many_rows_at_once_are_all_booked(accounts):
    accounts.add_usage([row(h, key=f"k{n}", requests=1) for h in range(10) for n in range(200)])
    assert total(accounts) == 2000
    accounts.add_usage([])
    assert total(accounts) == 2000


def test_folding_old_hours_changes_no_sum(accounts):
    chance = random.Random(3)
    rows = [
        row(h, key=f"k{n}", gateway=f"g{n % 2}", requests=chance.randrange(10), input_tokens=2**40)
        for h in range(0, 24 * 5, 5)
        for n in range(3)
    ]
    accounts.add_usage(rows)
    before = accounts.usage(since=0, until=5 * DAY_S)
    gone = accounts.fold_usage(before=3.5 * DAY_S)
    assert gone == sum(r.hour < 3 * DAY_S for r in rows)
    assert accounts.usage(since=0, until=5 * DAY_S) == before
    assert accounts.fold_usage(before=3.5 * DAY_S) == 0
    assert accounts.fold_usage(before=2 * DAY_S) == 0
    assert accounts.usage(since=0, until=5 * DAY_S) == before


def test_a_folded_day_counts_as_a_whole_when_it_begins_in_the_time_asked_for(accounts):
    accounts.add_usage([row(h, requests=1) for h in range(48)])
    accounts.fold_usage(before=DAY_S)
    assert total(accounts, since=0, until=1) == 24
    assert total(accounts, since=1, until=DAY_S) == 0
    assert total(accounts, since=DAY_S, until=DAY_S + 1) == 1


def test_a_report_of_a_folded_hour_is_not_counted_again(accounts):
    accounts.add_usage([row(1, requests=5), row(30, requests=1)])
    accounts.fold_usage(before=DAY_S)
    accounts.add_usage([row(1, requests=5), row(30, requests=2)])
    assert total(accounts) == 7


def test_what_is_added_while_days_are_folded_is_counted_once(store):
    """Rows grow in one place while the day is folded: each is in the day or refused, none is in both."""
    writer, folder = SqlAccountStore(store), SqlAccountStore(store)
    booked: Counter[int] = Counter()
    begun = threading.Event()

    def write() -> None:
        for n in range(1, 40):
            writer.add_usage([row(h, requests=n) for h in range(0, 96, 8)])
            booked["n"] = n
            begun.set()

    thread = threading.Thread(target=write)
    thread.start()
    begun.wait(10)
    for day in range(1, 4):
        folder.fold_usage(before=day * DAY_S)
    thread.join()
    per_hour = [total(folder, since=d * DAY_S, until=(d + 1) * DAY_S) for d in range(4)]
    assert all(3 <= found <= 3 * 39 and found % 3 == 0 for found in per_hour)
    assert per_hour[3] == 3 * booked["n"]
    writer.close()
    folder.close()
