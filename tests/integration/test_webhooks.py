"""Webhooks from the event log to a real receiver: nothing lost, doubles with one id, in order, each at its own pace."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import pytest

from rollout.announcer import GIVE_UP_S, Announcer
from rollout.errors import EventLogUnavailable
from rollout.event_log.base import EventLog
from rollout.event_log.sql import SqlEventLog
from rollout.notifications.base import Cursors, Happening, Notifier, Position
from rollout.notifications.memory import MemoryCursors, MemoryNotifier
from rollout.notifications.sql import SqlCursors
from rollout.notifications.webhook import WebhookNotifier
from tests.integration.control_rig import Rig, running, until
from tests.webhook_receiver import Receiver
from tidegate.errors import WrongUse
from tidegate.settings import Settings, WebhookSettings
from tidegate.webhooks import adopt_cursors, build_webhooks

pytestmark = pytest.mark.integration

SECRET = bytes(range(32))


async def at_once(_: float) -> None:
    await asyncio.sleep(0.001)


def announcer_of(
    rig: Rig,
    notifiers: Sequence[Notifier],
    cursors: Cursors,
    *,
    log: EventLog | None = None,
    leads: Callable[[], bool] = lambda: True,
    late_s: Sequence[float] = (0.0,),
    sleep: Callable[[float], Awaitable[None]] = at_once,
) -> Announcer:
    return Announcer(
        event_log=log or rig.log,
        notifiers=notifiers,
        cursors=cursors,
        leads=leads,
        clock=lambda: time.time() + late_s[0],
        sleep=sleep,
    )


@contextlib.asynccontextmanager
async def announcing(announcer: Announcer, rig: Rig) -> AsyncIterator[None]:
    stop = rig.controller.subscribe(announcer.wake)
    task = asyncio.create_task(announcer.run())
    try:
        await until(lambda: all(s["told_through"] is not None for s in announcer.state))
        yield
    finally:
        stop()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def hook(receiver: Receiver, name: str = "pager") -> WebhookNotifier:
    return WebhookNotifier(name=name, url=receiver.url, secret=SECRET, clock=time.time)


async def test_a_rollouts_story_is_told_in_order_and_signed() -> None:
    async with running() as rig, Receiver(SECRET) as receiver:
        await rig.serve_first()
        async with announcing(announcer_of(rig, [hook(receiver)], MemoryCursors()), rig):
            await rig.deploy("1.0.1")
            await until(lambda: rig.controller.status("chat").rollout.weight == 10)
            await rig.post("/api/v1/rollouts/chat/pause", {"reason": "午饭"})
            await rig.post("/api/v1/rollouts/chat/resume")
            await rig.post("/api/v1/rollouts/chat/rollback", {"reason": "it rhymes"})
            await until(lambda: len(receiver.accepted) == 5)
        told = [json.loads(r.body) for r in receiver.accepted]
        assert [t["type"] for t in told] == [
            "rollout.started",
            "rollout.step",
            "rollout.paused",
            "rollout.resumed",
            "rollout.rolled-back",
        ]
        assert {(t["data"]["model"], t["data"]["version"]) for t in told} == {("chat", "1.0.1")}
        assert told[1]["data"]["weight"] == 10
        assert "午饭" in told[2]["data"]["reason"]
        assert (told[4]["data"]["trigger"], told[4]["data"]["condemned"]) == ("operator", True)
        salt = rig.controller.status("chat").rollout.salt
        assert not [r for r in receiver.accepted if salt.encode() in r.body]


async def test_what_fails_is_tried_again_in_order_and_under_one_id() -> None:
    async with running() as rig, Receiver(SECRET) as receiver:
        await rig.serve_first()
        receiver.answers = [503, 500, 302, 429]
        async with announcing(announcer_of(rig, [hook(receiver)], MemoryCursors()), rig):
            await rig.deploy("1.0.1")
            await until(lambda: len(receiver.accepted) == 2)
        ids = [r.id for r in receiver.requests]
        assert ids[:5] == [ids[0]] * 5
        assert ids[5] != ids[0]
        assert {r.body for r in receiver.requests[:5]} == {receiver.requests[0].body}


async def test_a_dead_receiver_holds_up_nobody_else() -> None:
    async with running() as rig, Receiver(SECRET) as dead, Receiver(SECRET) as alive:
        await rig.serve_first()
        dead.hang = True
        announcer = announcer_of(rig, [hook(dead, "dead"), hook(alive, "alive")], MemoryCursors())
        async with announcing(announcer, rig):
            await rig.deploy("1.0.1")
            await until(lambda: len(alive.accepted) == 2)
            assert len(dead.requests) == 1


async def test_what_happened_while_nobody_told_is_told_after_a_restart(tmp_path: Path) -> None:
    async with running() as rig:
        await rig.serve_first()
        store = f"sqlite:///{tmp_path / 'state.db'}"
        cursors = SqlCursors(store)
        first = MemoryNotifier("pager")
        async with announcing(announcer_of(rig, [first], cursors), rig):
            await rig.deploy("1.0.1")
            await until(lambda: len(first.received) == 2)
            told = first.received[1].position
            await until(lambda: not told.after(cursors.load()["pager"]))  # else it is told again, as after a crash
        await rig.post("/api/v1/rollouts/chat/pause")  # nobody led; then another controller does, on another disk
        cursors.close()
        cursors = SqlCursors(store)
        second = MemoryNotifier("pager")
        async with announcing(announcer_of(rig, [second], cursors), rig):
            await until(lambda: len(second.received) == 1)
        assert [n.type for n in second.received] == [Happening.PAUSED]
        cursors.close()


async def test_a_crash_before_it_was_noted_doubles_the_last_one_under_its_id() -> None:
    class Forgetful(MemoryCursors):
        """A disk that takes the first note and no other: as if killed before each."""

        def __init__(self) -> None:
            super().__init__()
            self.kept = False

        def save(self, cursors: Mapping[str, Position]) -> None:
            if not self.kept:
                super().save(cursors)
            self.kept = True

    async with running() as rig:
        await rig.serve_first()
        cursors = Forgetful()
        first, second = MemoryNotifier("pager"), MemoryNotifier("pager")
        async with announcing(announcer_of(rig, [first], cursors), rig):
            await rig.deploy("1.0.1")
            await until(lambda: len(first.received) == 2)
        async with announcing(announcer_of(rig, [second], cursors), rig):
            await until(lambda: len(second.received) == 2)
        assert first.received == second.received


async def test_a_new_receiver_is_told_what_happens_from_now_on() -> None:
    async with running() as rig:
        await rig.serve_canary()
        notifier = MemoryNotifier()
        async with announcing(announcer_of(rig, [notifier], MemoryCursors()), rig):
            await rig.post("/api/v1/rollouts/chat/pause")
            await until(lambda: len(notifier.received) == 1)
        assert [n.type for n in notifier.received] == [Happening.PAUSED]


async def test_only_what_is_wanted_is_told_and_the_rest_is_not_told_later() -> None:
    async with running() as rig:
        await rig.serve_first()
        cursors = MemoryCursors()
        notifier = MemoryNotifier("pager", wanted=[Happening.ROLLED_BACK])
        async with announcing(announcer_of(rig, [notifier], cursors), rig):
            await rig.deploy("1.0.1")
            await until(lambda: rig.controller.status("chat").rollout.weight == 10)
            await rig.post("/api/v1/rollouts/chat/rollback")
            await until(lambda: len(notifier.received) == 1)
            told = notifier.received[0].position
            await until(lambda: not told.after(cursors.load()["pager"]))  # else it is told again, as after a crash
        everything = MemoryNotifier("pager")
        async with announcing(announcer_of(rig, [everything], cursors), rig):
            await asyncio.sleep(0.2)
        assert everything.attempts == []


async def test_a_follower_tells_nothing() -> None:
    async with running() as rig:
        await rig.serve_first()
        notifier, leads = MemoryNotifier(), [False]
        announcer = announcer_of(rig, [notifier], MemoryCursors({"memory": Position()}), leads=lambda: leads[0])
        task = asyncio.create_task(announcer.run())
        await asyncio.sleep(0.3)
        assert notifier.attempts == []
        leads[0] = True
        await until(lambda: [n.type for n in notifier.received] == [Happening.STARTED, Happening.PROMOTED])
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_after_a_day_a_notification_is_given_up_and_the_next_one_told() -> None:
    async with running() as rig:
        await rig.serve_first()
        notifier = MemoryNotifier()
        notifier.fail_next = 10**9
        late_s = [0.0]
        announcer = announcer_of(rig, [notifier], MemoryCursors(), late_s=late_s)
        async with announcing(announcer, rig):
            await rig.deploy("1.0.1")
            await until(lambda: len(notifier.attempts) > 5)
            assert announcer.state[0]["problem"]
            late_s[0] = GIVE_UP_S + 60
            await until(lambda: notifier.attempts[-1] != notifier.attempts[0])
            notifier.fail_next = 0
            await rig.post("/api/v1/rollouts/chat/pause")
            await until(lambda: any(n.type is Happening.PAUSED for n in notifier.received))
            await until(lambda: not announcer.state[0]["problem"])


async def test_a_log_that_was_replaced_by_another_one_is_told_from_its_end_on() -> None:
    async with running() as rig:
        await rig.serve_first()
        notifier = MemoryNotifier()
        cursors = MemoryCursors({"memory": Position(entry=10_000)})
        async with announcing(announcer_of(rig, [notifier], cursors), rig):
            await rig.deploy("1.0.1")
            await until(lambda: len(notifier.received) == 2)


async def test_the_log_in_sql_gives_the_same_notifications(tmp_path: Path) -> None:
    async with running() as rig:
        await rig.serve_canary()
        store = SqlEventLog(f"sqlite:///{tmp_path / 'state.db'}")
        fence = store.acquire("t", now=0.0, ttl_s=10.0)
        assert fence is not None
        for entry in rig.log.read():
            store.append([entry.model_copy()], fence)
        memory, sql = MemoryNotifier("a"), MemoryNotifier("a")
        for notifier, log in ((memory, rig.log), (sql, store)):
            async with announcing(announcer_of(rig, [notifier], MemoryCursors({"a": Position()}), log=log), rig):
                await until(lambda n=notifier: len(n.received) == 4)
        assert [n.type for n in memory.received] == [n.type for n in sql.received]
        store.close()


def test_what_an_older_version_kept_in_a_file_is_taken_over_once(tmp_path: Path) -> None:
    path, cursors = tmp_path / "webhooks.json", MemoryCursors()
    adopt_cursors(cursors, path)
    assert cursors.load() == {}
    path.write_text('{"pager": {"entry": 7, "index": 1}}')
    adopt_cursors(cursors, path)
    assert cursors.load() == {"pager": Position(entry=7, index=1)}
    path.write_text('{"pager": {"entry": 3, "index": 0}}')  # a volume with an older copy
    adopt_cursors(cursors, path)
    assert cursors.load() == {"pager": Position(entry=7, index=1)}
    path.write_text('{"pager": ')
    adopt_cursors(cursors, path)
    assert not path.exists()


async def test_after_unreadable_cursors_the_last_day_is_told_again() -> None:
    class Damaged(MemoryCursors):
        def load(self) -> Mapping[str, Position]:
            raise ValueError("no cursors")

    async with running() as rig:
        await rig.serve_first()
        notifier = MemoryNotifier()
        async with announcing(announcer_of(rig, [notifier], Damaged()), rig):
            await until(lambda: len(notifier.received) == 2)


async def test_a_store_that_is_away_when_the_leadership_is_taken_ends_no_notifications() -> None:
    class Away(MemoryCursors):
        """Does not answer the first call of each kind."""

        def __init__(self) -> None:
            super().__init__()
            self.asked: list[str] = []

        def _answer(self, what: str) -> None:
            self.asked.append(what)
            if self.asked.count(what) == 1:
                raise EventLogUnavailable("the store does not answer")

        def load(self) -> Mapping[str, Position]:
            self._answer("load")
            return super().load()

        def save(self, cursors: Mapping[str, Position]) -> None:
            self._answer("save")
            super().save(cursors)

    async with running() as rig:
        await rig.serve_first()
        notifier, cursors = MemoryNotifier("pager"), Away()
        async with announcing(announcer_of(rig, [notifier], cursors), rig):
            await rig.deploy("1.0.1")
            await until(lambda: len(notifier.received) == 2)
        assert cursors.load().keys() == {"pager"}


@pytest.mark.parametrize("content", [None, "hunter2"], ids=["missing", "no secret"])
async def test_a_webhooks_secret_file_is_checked_when_the_control_plane_starts(
    content: str | None, tmp_path: Path
) -> None:
    path = tmp_path / "secret"
    if content is not None:
        path.write_text(content)
    settings = Settings(webhooks=(WebhookSettings(name="pager", url="https://pager.example/x", secret_file=path),))
    with pytest.raises(WrongUse, match="webhook pager") as told:
        build_webhooks(settings, time.time)
    assert "hunter2" not in str(told.value)
