"""Two controllers over one store: one leads, the other takes over, and only the newest leader's writes land."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager

import pytest

from rollout.accounts.sql import SqlAccountStore
from rollout.errors import EventLogUnavailable, LogConflict, RolloutError
from rollout.event_log.base import Kind
from rollout.event_log.sql import SqlEventLog
from rollout.status import Phase, Stage
from serving.accounting import UsageRow
from serving.keys import KeyRecord, hash_secret
from serving.outcomes import UsageReport
from serving.traffic import Role
from tests.integration.controllers import MODEL, Gateway, RunningController, ask, until
from tests.ports import free_ports

pytestmark = pytest.mark.integration

LEASE_S = 1.5


@asynccontextmanager
async def controllers(url: str, *clocks: Callable[[], float]) -> AsyncIterator[tuple[RunningController, ...]]:
    """Controllers that share a store, started one after the other; the first one leads."""
    found = [
        RunningController(url, f"c{n}", port, lease_s=LEASE_S, clock=clock)
        for n, (port, clock) in enumerate(zip(free_ports(len(clocks)), clocks, strict=True))
    ]
    try:
        for running in found:
            running.start()
            await until(lambda: found[0].controller.leads, "the first one leads")
        yield tuple(found)
    finally:
        for running in found:
            await running.stop()


@asynccontextmanager
async def gateway(*ports: int) -> AsyncIterator[Gateway]:
    made = Gateway(list(ports))
    try:
        yield made
    finally:
        await made.stop()


async def with_canary(running: RunningController, follower: Gateway, version: str = "1.1.0") -> None:
    """A stable version, and another one at its first step."""
    await running.deploy("1.0.0")
    await until(lambda: running.controller.status(MODEL).stable is not None, "1.0.0 is stable")
    await running.deploy(version)
    await until(lambda: stage(running) is Stage.STEPPING, "the canary has traffic")
    await until(lambda: weight(follower) == 10, "the gateway gives it traffic")


def stage(running: RunningController) -> Stage | None:
    rollout = running.controller.status(MODEL).rollout
    return None if rollout is None else rollout.stage


def weight(follower: Gateway) -> int:
    traffic = follower.traffic()
    canary = traffic.by_role(Role.CANARY) if traffic is not None else None
    return 0 if canary is None else canary.weight


async def test_the_other_goes_on_where_a_stopped_leader_stood(store):
    async with (
        controllers(store, time.time, time.time) as (first, second),
        gateway(first.port, second.port) as follower,
    ):
        await with_canary(first, follower)
        assert not second.controller.leads
        before, fence = first.controller.status(MODEL), follower.table.fence
        await first.stop()
        await until(lambda: second.controller.leads, "the other leads")
        assert second.controller.status(MODEL) == before
        await until(lambda: follower.table.fence > fence, "the gateway follows the newer fence")
        await follower.happen(20)
        await until(lambda: stage(second) is Stage.WITHDRAWN, "the new leader takes the canary back")
        await until(lambda: weight(follower) == 0, "the gateway follows")
    assert follower.refused == []


async def test_a_leader_that_was_cut_off_from_the_store_writes_nothing_when_it_is_back(store, monkeypatch):
    async with controllers(store, time.time, time.time) as (first, second), gateway(second.port) as follower:
        await first.deploy("1.0.0")

        def cut_off(*_args, **_kwargs):
            raise EventLogUnavailable("cut off")

        with monkeypatch.context() as patch:
            patch.setattr(first.database, "run", cut_off)
            with pytest.raises(EventLogUnavailable):
                await first.deploy("1.1.0")
            await until(lambda: second.controller.leads, "the other leads")
            assert first.controller.leads  # so it believes
        with pytest.raises((LogConflict, EventLogUnavailable)):
            await first.deploy("1.2.0")
        await until(first.leading.done, "the first one gives up")
        error = first.leading.exception()
        assert isinstance(error, ExceptionGroup)
        assert error.subgroup(LogConflict) is not None
        await second.deploy("1.3.0")
        await until(lambda: follower.table is not None, "a table came")
        entries = [e for e in second.log.read() if e.kind is Kind.COMMAND]
        reasons = [e.payload["decision"]["reason"] for e in entries]
        # "superseding chat@1.0.0" follows where the new leader has not seen that one to its end yet.
        assert [r.split()[1].rstrip(",") for r in reasons] == ["chat@1.0.0", "chat@1.3.0"], reasons
        assert entries[0].fence < entries[-1].fence


async def test_clocks_that_disagree_by_hours_move_nothing(store):
    ahead, behind = (lambda: time.time() + 7200), (lambda: time.time() - 7200)
    async with controllers(store, behind, ahead) as (first, second), gateway(first.port, second.port) as follower:
        await with_canary(first, follower)
        await asyncio.sleep(2 * LEASE_S)
        assert first.controller.leads
        assert not second.controller.leads
        await first.stop()
        await until(lambda: second.controller.leads, "the other leads")
        await until(lambda: follower.table.fence == 2, "the gateway follows")
        assert weight(follower) == 10


async def test_two_that_fight_for_the_leadership_never_both_write(store):
    """Each takes the lease from the other whenever it can; whoever writes holds the newest token at that moment."""
    logs = [SqlEventLog(store) for _ in range(2)]
    written: list[int] = []

    def fight(log: SqlEventLog, holder: str) -> None:
        from rollout.event_log.base import NewEntry

        for n in range(40):
            fence = log.acquire(holder, n, 0.0)
            if fence is None:
                continue
            try:
                for _ in range(3):
                    entry = NewEntry(model=MODEL, at=n, kind=Kind.DECISION, actor=holder, payload={"by": holder})
                    written.extend(log.append([entry], fence))
            except LogConflict:
                pass

    await asyncio.gather(*(asyncio.to_thread(fight, log, f"c{n}") for n, log in enumerate(logs)))
    entries = list(logs[0].read())
    assert sorted(written) == [e.id for e in entries]
    fences = [e.fence for e in entries]
    assert fences == sorted(fences)
    assert all(len({e.actor for e in entries if e.fence == fence}) == 1 for fence in set(fences))
    for log in logs:
        log.close()


async def test_a_key_revoked_at_one_controller_is_void_at_the_gateways_of_the_other_within_a_second(store):
    key = KeyRecord(id="a" * 12, secret_sha256=hash_secret("x"), name="app", created_at=1.0)
    async with controllers(store, time.time, time.time) as (first, second), gateway(first.port) as follower:
        await second.controller.accounting.put_key(key)
        await until(lambda: follower.keys is not None and key.id in follower.keys, "the key is known")
        began = time.monotonic()
        await second.controller.accounting.put_key(key.model_copy(update={"revoked_at": 2.0}))
        await until(lambda: key.id not in follower.keys, "the key is void")
        took_s = time.monotonic() - began
        print(f"revoked elsewhere within {took_s:.2f} s")
        assert took_s < 5.0  # half a second to be seen; the rest is for a busy machine
        again = first.controller.accounting.keys()
        assert [k.revoked_at for k in again] == [2.0]
        assert first.controller.accounting.keys() is again


async def test_usage_is_booked_and_only_then_accepted(store):
    row = UsageRow(gateway="g1", boot="b1", hour=3600, key="k", model=MODEL, version="1.0.0", requests=5)
    async with controllers(store, time.time) as (first,), gateway(first.port) as follower:
        await until(lambda: follower.table is not None, "connected")
        for number in (1, 2, 2):
            await follower.send(UsageReport(number=number, rows=(row,)))
        await until(lambda: follower.usage_accepted == {1, 2}, "both reports are accepted")
        accounts = SqlAccountStore(first.database)
        assert [s.requests for s in accounts.usage(since=0, until=7200)] == [5]


async def test_while_postgresql_is_away_the_controller_holds_and_then_goes_on(own_postgres):
    url = own_postgres.new_database()
    async with controllers(url, time.time) as (first,), gateway(first.port) as follower:
        await with_canary(first, follower)
        own_postgres.kill()
        await follower.happen(30)
        await until(lambda: first.controller.store_message, "the controller holds")
        beats = follower.heartbeats
        await asyncio.sleep(1.0)
        # Nothing was decided, nothing acknowledged, traffic goes on by the last table, and its lease runs out.
        assert (stage(first), weight(follower), follower.accepted) == (Stage.STEPPING, 10, 0)
        assert follower.heartbeats == beats
        with pytest.raises(RolloutError) as refused:
            await first.deploy("1.2.0")
        assert refused.value.retryable
        own_postgres.start()
        await until(lambda: stage(first) is Stage.WITHDRAWN, "the canary is taken back")
        await until(lambda: follower.accepted == 30, "the events are in the log")
        await until(lambda: weight(follower) == 0, "the gateway follows")
        assert first.controller.leads
        assert first.controller.store_message == ""
        events = [e.payload["events"] for e in first.log.read(kinds=[Kind.EVIDENCE]) if "events" in e.payload]
        assert [event["sequence"] for part in events for event in part] == list(range(1, 31))
        await until(lambda: follower.heartbeats > beats, "gateways hear of a leader again")


async def test_postgresql_that_restarts_again_and_again_costs_no_decision_and_doubles_none(own_postgres):
    async with controllers(own_postgres.new_database(), time.time) as (first,), gateway(first.port) as follower:
        await with_canary(first, follower)
        asked = [f"2.{n}.0" for n in range(12)]
        stop = asyncio.Event()

        async def restart() -> None:
            while not stop.is_set():
                await asyncio.to_thread(own_postgres.stop)
                await asyncio.to_thread(own_postgres.start)
                await asyncio.sleep(0.4)

        restarting = asyncio.create_task(restart())
        for version in asked:
            while True:  # as a person would: try again until the status shows it
                try:
                    await first.deploy(version)
                except RolloutError:
                    await asyncio.sleep(0.1)
                if first.controller.status(MODEL).rollout.target.version == version:
                    break
        stop.set()
        await restarting
        await until(lambda: not first.controller.store_message, "the store is back")
        commands = [e.payload["decision"] for e in first.log.read(kinds=[Kind.COMMAND])]
        started = [a["target"]["revision"]["version"] for d in commands for a in d["actions"] if a["type"] == "start"]
        assert started == ["1.0.0", "1.1.0", *asked]


# -- processes ----------------------------------------------------------------------------------------------------


@pytest.fixture
def processes() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts controllers as processes, and ends them."""
    with ExitStack() as stack:

        def start(url: str, holder: str, port: int, log) -> subprocess.Popen[bytes]:
            command = [sys.executable, "-m", "tests.integration.controllers", url, holder, str(port), str(LEASE_S)]
            process = subprocess.Popen(command, stderr=log.open("wb"), env=dict(os.environ))
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process

        yield start


async def leads(port: int) -> bool:
    try:
        return bool((await ask(port))["leads"])
    except (OSError, TimeoutError):
        return False


async def wait_for_leader(port: int, what: str) -> None:
    for _ in range(600):
        if await leads(port):
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"never: {what}")


async def deploy_first(port: int) -> None:
    """Have a process deploy 1.0.0, and wait until it is stable."""
    assert "error" not in await ask(port, deploy="1.0.0")
    for _ in range(600):
        if (await ask(port))["statuses"][MODEL]["stable"] is not None:
            return
        await asyncio.sleep(0.1)
    raise AssertionError("1.0.0 never became stable")


async def test_a_killed_leader_is_followed_by_the_other_process(store, processes, tmp_path):
    ports = free_ports(2)
    first = processes(store, "c1", ports[0], tmp_path / "first.log")
    await wait_for_leader(ports[0], "the first process leads")
    processes(store, "c2", ports[1], tmp_path / "second.log")
    async with gateway(*ports) as follower:
        await deploy_first(ports[0])
        await ask(ports[0], deploy="1.1.0")
        await until(lambda: weight(follower) == 10, "the canary has traffic")
        fence = follower.table.fence
        first.send_signal(signal.SIGKILL)
        began = time.monotonic()
        await wait_for_leader(ports[1], "the second process leads")
        print(f"leadership moved {time.monotonic() - began:.1f} s after kill -9 (lease {LEASE_S} s)")
        await until(lambda: follower.table.fence > fence, "the gateway follows the newer fence")
        assert weight(follower) == 10
        await follower.happen(20)
        await until(lambda: weight(follower) == 0, "the new leader takes the canary back")
        status = (await ask(ports[1]))["statuses"][MODEL]
        assert (status["phase"], status["rollout"]["stage"]) == (Phase.DEGRADED, Stage.WITHDRAWN)


async def test_a_stopped_process_that_wakes_up_finds_itself_replaced(store, processes, tmp_path):
    """SIGSTOP: the leader notices nothing, and when it goes on, its writes don't land and it gives up."""
    ports = free_ports(2)
    first = processes(store, "c1", ports[0], tmp_path / "first.log")
    await wait_for_leader(ports[0], "the first process leads")
    assert "error" not in await ask(ports[0], deploy="1.0.0")
    processes(store, "c2", ports[1], tmp_path / "second.log")
    await asyncio.sleep(2.0)
    first.send_signal(signal.SIGSTOP)
    try:
        await wait_for_leader(ports[1], "the second process leads")
        assert "error" not in await ask(ports[1], deploy="1.1.0")
    finally:
        first.send_signal(signal.SIGCONT)
    assert await asyncio.to_thread(first.wait, 30) != 0
    log = SqlEventLog(store)
    fences = [e.fence for e in log.read()]
    assert fences == sorted(fences)
    versions = [
        a["target"]["revision"]["version"]
        for e in log.read(kinds=[Kind.COMMAND])
        for a in e.payload["decision"]["actions"]
        if a["type"] == "start"
    ]
    assert versions == ["1.0.0", "1.1.0"]
    log.close()
