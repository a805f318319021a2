"""Keys, limits and queue together, as the pipeline sees them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from serving.admission import Reason, Rejection
from serving.gateway.gatekeeper import QueueingGatekeeper, QueuePermit
from serving.gateway.key_keeper import KeyKeeper
from serving.gateway.keyring import Keyring
from serving.gateway.seams import ANYBODY, Caller
from serving.gateway.usage import UsageBook
from serving.keys import KeyRecord, Priority, Quota, hash_secret, write_key
from serving.knobs import QueueSettings
from serving.openai_protocol import rejection_reply
from serving.outcomes import KeysPush

NOW = 1_700_000_000.0
A, B, C = "a" * 12, "b" * 12, "c" * 12


def record(key_id: str, **rest: Any) -> KeyRecord:
    return KeyRecord(id=key_id, secret_sha256=hash_secret("s"), name=key_id[0], created_at=NOW, **rest)


class House:
    """A gatekeeper with clocks that stand until they are moved."""

    def __init__(self, *records: KeyRecord, auth: bool = True, **settings: Any) -> None:
        self.now = 1000.0
        self.usage = UsageBook("g", "b")
        self.keyring = Keyring(os.urandom(32)) if auth else None
        self.gatekeeper = QueueingGatekeeper(
            self.keyring, self.usage, QueueSettings(**settings), monotonic=lambda: self.now, wall=lambda: NOW
        )  # fmt: skip
        self.gatekeeper.replace_keys(records, NOW)

    def caller(self, key_id: str) -> Caller:
        headers = [(b"authorization", b"Bearer " + write_key(key_id, "s").encode())]
        caller = self.gatekeeper.authenticate(headers, NOW)
        assert isinstance(caller, Caller)
        return caller

    async def ask(
        self, key_id: str = A, *, model: str = "chat", cost: int = 100, deadline_s: float = 600
    ) -> QueuePermit | Rejection:
        caller = self.caller(key_id) if self.keyring is not None else ANYBODY
        return await self.gatekeeper.enter(caller, model, cost, self.now + deadline_s, self.now)

    async def enter(self, key_id: str = A, **rest: Any) -> QueuePermit:
        permit = await self.ask(key_id, **rest)
        assert isinstance(permit, QueuePermit)
        return permit

    async def refused(self, key_id: str = A, **rest: Any) -> Rejection:
        rejection = await self.ask(key_id, **rest)
        assert isinstance(rejection, Rejection)
        return rejection

    async def waiting(self, key_id: str = A, **rest: Any) -> asyncio.Task[QueuePermit | Rejection]:
        task = asyncio.create_task(self.ask(key_id, **rest))
        await asyncio.sleep(0)  # it runs until it waits
        assert not task.done()
        return task

    @property
    def depth(self) -> int:
        return sum(self.gatekeeper.queue_depths().values())


def test_while_there_is_room_entering_suspends_nobody() -> None:
    house = House(record(A, requests_per_minute=10))
    entering = house.ask()
    with pytest.raises(StopIteration) as done:
        entering.send(None)  # a coroutine that waits for nothing ends at its first step
    assert isinstance(done.value.value, QueuePermit)


async def test_usage_is_counted_by_key_model_and_version() -> None:
    house = House(record(A), record(B))
    (await house.enter(A)).settle("1.0.0", 7, 5)
    (await house.enter(A)).settle("1.0.0", 3, None)
    (await house.enter(B)).settle("1.1.0", None, None)
    (await house.enter(B)).settle("", None, None)  # no engine was asked
    told = {
        (r.key, r.model, r.version): (r.requests, r.input_tokens, r.output_tokens, r.unmetered)
        for r in house.usage.open_rows()
    }
    assert told == {(A, "chat", "1.0.0"): (2, 10, 5, 0), (B, "chat", "1.1.0"): (1, 0, 0, 1)}


async def test_a_permit_settles_once() -> None:
    house = House(record(A, concurrency=2))
    permit = await house.enter()
    permit.settle("1.0.0", 1, 1)
    permit.settle("1.0.0", 1, 1)
    assert [r.requests for r in house.usage.open_rows()] == [1]
    assert isinstance(await house.ask(), QueuePermit)
    assert isinstance(await house.ask(), QueuePermit)
    assert isinstance(await house.ask(), Rejection)


# the key's limits, the second request -> reason, status, error type, headers that must be there
LIMITED = {
    "requests": (
        {"requests_per_minute": 1}, {}, Reason.RATE_LIMITED, "requests",
        {b"retry-after": b"60", b"retry-after-ms": b"60000", b"x-ratelimit-limit-requests": b"1",
         b"x-ratelimit-remaining-requests": b"0", b"x-ratelimit-reset-requests": b"1m0s"},
    ),
    "tokens": (
        {"tokens_per_minute": 120}, {}, Reason.TOKEN_RATE_LIMITED, "tokens",
        {b"retry-after": b"40", b"x-ratelimit-remaining-tokens": b"20", b"x-ratelimit-reset-tokens": b"50s"},
    ),
    "tokens that never fit": (
        {"tokens_per_minute": 120}, {"cost": 121}, Reason.TOKEN_RATE_LIMITED, "tokens", {b"x-should-retry": b"false"},
    ),
    "concurrency": ({"concurrency": 1}, {}, Reason.CONCURRENCY_LIMITED, "requests", {b"retry-after": b"1"}),
}  # fmt: skip


@pytest.mark.parametrize(("limits", "second", "reason", "kind", "headers"), LIMITED.values(), ids=LIMITED)
async def test_a_limited_key_is_told_as_openai_tells_it(limits, second, reason, kind, headers) -> None:
    house = House(record(A, **limits))
    await house.enter()
    rejection = await house.refused(**second)
    reply = rejection_reply(rejection)
    assert (rejection.reason, reply.status) == (reason, 429)
    error = json.loads(reply.body)["error"]
    assert (error["type"], error["code"], error["param"]) == (kind, "rate_limit_exceeded", None)
    assert headers.items() <= dict(reply.headers).items()


async def test_answers_tell_what_is_left() -> None:
    house = House(record(A, requests_per_minute=60), record(B))
    assert dict((await house.enter()).headers())[b"x-ratelimit-remaining-requests"] == b"59"
    assert (await house.enter(B)).headers() == []


async def test_tokens_are_trued_up_by_what_the_answer_took() -> None:
    house = House(record(A, tokens_per_minute=1000))
    permit = await house.enter(cost=900)
    permit.settle("1.0.0", 50, 50)
    assert dict((await house.enter(cost=0)).headers())[b"x-ratelimit-remaining-tokens"] == b"900"


# (the key's namespace, its models, the model, its namespace) -> whether it may ask
ASKED = {
    "a key of all models, outside a cluster": ("default", (), "chat", "", True),
    "a key of another namespace, outside a cluster": ("shop", (), "chat", "", True),
    "outside a cluster, a model that it does not name": ("shop", ("other",), "chat", "", False),
    "its own namespace": ("shop", (), "chat", "shop", True),
    "another namespace": ("shop", (), "chat", "bank", False),
    "another namespace, the model named": ("shop", ("chat",), "chat", "bank", False),
    "its own namespace, another model named": ("shop", ("other",), "chat", "shop", False),
    "default is a namespace as any other": ("default", (), "chat", "shop", False),
    "a key of all namespaces": ("*", (), "chat", "bank", True),
    "a key of all namespaces, another model named": ("*", ("other",), "chat", "bank", False),
}


@pytest.mark.parametrize(("namespace", "models", "model", "home", "may"), ASKED.values(), ids=ASKED)
def test_which_models_a_key_may_ask(namespace: str, models: tuple[str, ...], model: str, home: str, may: bool) -> None:
    house = House(record(A, namespace=namespace, models=models))
    assert house.caller(A).may_ask(model, home) is may


async def test_a_key_revoked_while_its_body_was_read_is_refused() -> None:
    house = House(record(A))
    caller = house.caller(A)
    house.gatekeeper.replace_keys([], NOW)
    rejection = await house.gatekeeper.enter(caller, "chat", 1, house.now + 60, house.now)
    assert isinstance(rejection, Rejection)
    assert rejection.reason is Reason.INVALID_API_KEY


async def test_without_keys_everybody_enters_and_is_counted_under_no_key() -> None:
    house = House(auth=False)
    permit = await house.enter()
    assert permit.headers() == []
    permit.settle("1.0.0", 1, 2)
    assert [(r.key, r.input_tokens, r.output_tokens) for r in house.usage.open_rows()] == [("", 1, 2)]
    assert ANYBODY.may_ask("chat", "shop")


class TestQueue:
    async def test_who_waits_starts_when_a_place_is_free(self) -> None:
        house = House(record(A), endpoint_concurrency=1)
        first = await house.enter()
        second, third = await house.waiting(), await house.waiting()
        first.settle("1.0.0", 1, 1)
        permit = await second
        assert isinstance(permit, QueuePermit)
        assert not third.done()
        permit.settle("1.0.0", 1, 1)
        assert isinstance(await third, QueuePermit)

    async def test_a_second_endpoint_doubles_the_room(self) -> None:
        house = House(record(A), endpoint_concurrency=1)
        await house.enter()
        second = await house.waiting()
        house.gatekeeper.set_endpoints({"chat": 2})
        assert isinstance(await second, QueuePermit)

    async def test_models_do_not_wait_for_each_other(self) -> None:
        house = House(record(A), endpoint_concurrency=1)
        await house.enter(model="chat")
        await house.enter(model="code")

    async def test_priority_and_fairness_decide_who_is_next(self) -> None:
        house = House(
            record(A, priority=Priority.BATCH),
            record(B),
            record(C, priority=Priority.INTERACTIVE),
            endpoint_concurrency=1,
        )
        permit = await house.enter()
        tasks = {name: await house.waiting(key) for name, key in [("b1", A), ("s1", B), ("s2", B), ("i1", C)]}
        order = []
        while tasks:
            permit.settle("1.0.0", 1, 1)
            done, _ = await asyncio.wait(tasks.values(), return_when=asyncio.FIRST_COMPLETED)
            (name,) = [n for n, t in tasks.items() if t in done]
            order.append(name)
            result = tasks.pop(name).result()
            assert isinstance(result, QueuePermit)
            permit = result
        assert order == ["i1", "s1", "s2", "b1"]

    async def test_a_client_that_goes_away_leaves_the_queue_and_its_limits(self) -> None:
        house = House(record(A, concurrency=2, requests_per_minute=2, tokens_per_minute=200), endpoint_concurrency=1)
        first = await house.enter()
        second = await house.waiting()
        second.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await second
        assert house.depth == 0
        third = await house.waiting()  # all three limits have room again
        first.settle("1.0.0", 50, 50)
        assert isinstance(await third, QueuePermit)

    async def test_a_client_that_goes_away_when_its_turn_has_just_come_passes_it_on(self) -> None:
        house = House(record(A), endpoint_concurrency=1)
        first = await house.enter()
        second, third = await house.waiting(), await house.waiting()
        first.settle("1.0.0", 1, 1)  # second's turn, which it has not noticed yet
        second.cancel()
        assert isinstance(await third, QueuePermit)

    async def test_one_whose_time_is_up_is_told_so_and_charged_nothing(self) -> None:
        house = House(record(A, requests_per_minute=2), endpoint_concurrency=1, wait_s=0.02)
        await house.enter()
        rejection = await house.refused()
        reply = rejection_reply(rejection)
        assert (rejection.reason, reply.status) == (Reason.DEADLINE_UNREACHABLE, 503)
        assert b"retry-after" in dict(reply.headers)
        assert (await house.refused()).reason is Reason.DEADLINE_UNREACHABLE  # not rate limited

    async def test_a_deadline_out_of_reach_is_refused_at_once(self) -> None:
        house = House(record(A), endpoint_concurrency=1)
        slow = await house.enter()
        house.now += 100
        slow.settle("1.0.0", 1, 1)
        await house.enter()
        assert (await house.refused(deadline_s=50)).reason is Reason.DEADLINE_UNREACHABLE

    async def test_a_full_queue_says_when_to_come_back(self) -> None:
        house = House(record(A, priority=Priority.INTERACTIVE), endpoint_concurrency=1, most_waiting=1)
        await house.enter()
        await house.waiting()
        rejection = await house.refused()
        assert (rejection.reason, rejection_reply(rejection).status) == (Reason.QUEUE_FULL, 503)
        assert rejection.retry_after_s is not None

    async def test_batch_is_shed_for_interactive(self) -> None:
        house = House(
            record(A, priority=Priority.BATCH),
            record(C, priority=Priority.INTERACTIVE),
            endpoint_concurrency=1,
            most_waiting=1,
        )
        await house.enter()
        batch = await house.waiting(A)
        interactive = await house.waiting(C)
        shed = await batch
        assert isinstance(shed, Rejection)
        assert shed.reason is Reason.OVERLOADED
        assert not interactive.done()

    async def test_who_waits_with_a_key_that_is_revoked_is_turned_away(self) -> None:
        house = House(record(A), record(B), endpoint_concurrency=1)
        first = await house.enter(B)
        revoked, other = await house.waiting(A), await house.waiting(B)
        house.gatekeeper.replace_keys([record(B)], NOW)
        rejection = await revoked
        assert isinstance(rejection, Rejection)
        assert rejection.reason is Reason.INVALID_API_KEY
        first.settle("1.0.0", 1, 1)
        assert isinstance(await other, QueuePermit)

    async def test_mirrored_requests_are_dropped_first_and_counted_for_nobody(self) -> None:
        house = House(record(A), endpoint_concurrency=4)
        permits = [house.gatekeeper.enter_mirrored("chat", 10) for _ in range(3)]
        assert [p is not None for p in permits] == [True, True, False]
        for permit in permits:
            if permit is not None:
                permit.settle("1.1.0", 5, 5)
        assert house.usage.open_rows() == ()
        assert house.gatekeeper.enter_mirrored("chat", 10) is not None


async def test_changed_limits_hold_from_the_push_on() -> None:
    house = House(record(A, requests_per_minute=1))
    await house.enter()
    await house.refused()
    house.gatekeeper.replace_keys([record(A, requests_per_minute=3)], NOW)
    await house.enter()
    await house.enter()
    await house.refused()
    house.gatekeeper.replace_keys([record(A)], NOW)
    await house.enter()


# the namespace's quota, the cost of a second request -> reason, error type, how its message begins
OVER_QUOTA = {
    "requests": (
        {"requests_per_minute": 1}, 100, Reason.NAMESPACE_RATE_LIMITED, "requests",
        "Rate limit reached in namespace shop on requests per min (RPM): Limit 1, Used 1, Requested 1.",
    ),
    "tokens": (
        {"tokens_per_minute": 120}, 100, Reason.NAMESPACE_TOKEN_RATE_LIMITED, "tokens",
        "Rate limit reached in namespace shop on tokens per min (TPM): Limit 120, Used 100, Requested 100.",
    ),
    "tokens that never fit": (
        {"tokens_per_minute": 120}, 121, Reason.NAMESPACE_TOKEN_RATE_LIMITED, "tokens",
        "Request too large in namespace shop on tokens per min (TPM): Limit 120,",
    ),
    "concurrency": (
        {"concurrency": 1}, 100, Reason.NAMESPACE_CONCURRENCY_LIMITED, "requests",
        "The keys of namespace shop have 1 requests under way; their limit is 1.",
    ),
}  # fmt: skip


class TestQuotas:
    """What all keys of a namespace use together: A and B are the shop's, C is not."""

    def house(self, *, quota: dict[str, Any] | None = None, **limits: Any) -> House:
        house = House()
        self.push(house, quota, **limits)
        return house

    def push(self, house: House, quota: dict[str, Any] | None, **limits: Any) -> None:
        keys = [record(A, namespace="shop", **limits), record(B, namespace="shop"), record(C, namespace="bank")]
        quotas = [Quota(namespace="shop", set_at=NOW, **quota)] if quota is not None else []
        house.gatekeeper.replace_keys(keys, NOW, quotas)

    @pytest.mark.parametrize(("quota", "cost", "reason", "kind", "told"), OVER_QUOTA.values(), ids=OVER_QUOTA)
    async def test_what_one_key_uses_another_of_its_namespace_lacks(self, quota, cost, reason, kind, told) -> None:
        house = self.house(quota=quota)
        await house.enter(A)
        rejection = await house.refused(B, cost=cost)
        reply = rejection_reply(rejection)
        assert (rejection.reason, reply.status) == (reason, 429)
        error = json.loads(reply.body)["error"]
        assert (error["type"], error["code"]) == (kind, "rate_limit_exceeded")
        assert error["message"].startswith(told)
        await house.enter(C, cost=cost)  # of a namespace without a quota

    async def test_who_is_refused_by_one_takes_nothing_of_the_other(self) -> None:
        house = self.house(quota={"requests_per_minute": 2}, requests_per_minute=10, concurrency=1)
        first = await house.enter(A)
        assert (await house.refused(A)).reason is Reason.CONCURRENCY_LIMITED  # of the shop's two, one is left
        await house.enter(B)
        first.settle("1.0.0", 1, 1)
        assert (await house.refused(A)).reason is Reason.NAMESPACE_RATE_LIMITED
        self.push(house, None, requests_per_minute=10)
        assert dict((await house.enter(A)).headers())[b"x-ratelimit-remaining-requests"] == b"8"

    async def test_answers_tell_whichever_has_less_left(self) -> None:
        house = self.house(quota={"requests_per_minute": 100, "tokens_per_minute": 1000}, requests_per_minute=50)
        told = dict((await house.enter(A)).headers())
        assert (told[b"x-ratelimit-limit-requests"], told[b"x-ratelimit-remaining-requests"]) == (b"50", b"49")
        assert told[b"x-ratelimit-remaining-tokens"] == b"900"  # the key itself has no such limit
        for _ in range(60):
            (await house.enter(B)).settle("1.0.0", 1, 1)
        told = dict((await house.enter(A)).headers())
        assert (told[b"x-ratelimit-limit-requests"], told[b"x-ratelimit-remaining-requests"]) == (b"100", b"38")

    async def test_one_set_while_requests_are_under_way_counts_them_and_one_taken_away_frees_all(self) -> None:
        house = self.house()
        under_way = [await house.enter(A), await house.enter(B)]
        self.push(house, {"concurrency": 2})
        assert (await house.refused(B)).reason is Reason.NAMESPACE_CONCURRENCY_LIMITED
        under_way.pop().settle("1.0.0", 1, 1)
        await house.enter(B)
        self.push(house, None)
        await house.enter(B)
        assert house.gatekeeper.quota_use() == {}

    async def test_what_was_not_served_is_given_back(self) -> None:
        house = self.house(quota={"tokens_per_minute": 1000, "requests_per_minute": 10})
        (await house.enter(A, cost=900)).settle("", None, None)
        (await house.enter(A, cost=900)).settle("1.0.0", 50, 50)
        assert house.gatekeeper.quota_use() == {("shop", "requests"): (10, 1), ("shop", "tokens"): (1000, 100)}

    async def test_a_namespace_whose_keys_are_gone_is_forgotten_when_its_requests_are_over(self) -> None:
        house = self.house(quota={"concurrency": 1})
        permit = await house.enter(A)
        quota = Quota(namespace="shop", set_at=NOW, concurrency=1)
        house.gatekeeper.replace_keys([], NOW, [quota])
        assert house.gatekeeper.quota_use() == {("shop", "concurrency"): (1, 1)}
        permit.settle("1.0.0", 1, 1)
        house.gatekeeper.replace_keys([], NOW, [quota])
        assert house.gatekeeper.quota_use() == {}

    async def test_a_gateway_takes_its_share_of_it(self) -> None:
        house = self.house(quota={"concurrency": 4})
        house.gatekeeper.set_limit_share(0.5)
        await house.enter(A)
        await house.enter(B)
        assert (await house.refused(A)).reason is Reason.NAMESPACE_CONCURRENCY_LIMITED


async def test_a_share_of_the_limits_can_be_set() -> None:
    house = House(record(A, concurrency=4))
    await house.enter()
    house.gatekeeper.set_limit_share(0.5)
    await house.enter()
    assert (await house.refused()).reason is Reason.CONCURRENCY_LIMITED


class TestKeyKeeper:
    def keeper(self, house: House, path: Path) -> KeyKeeper:
        assert house.keyring is not None
        return KeyKeeper(house.gatekeeper, house.keyring, path, wall=lambda: NOW)

    async def test_keys_are_obeyed_at_once_and_after_a_restart_without_controller(self, tmp_path: Path) -> None:
        path = tmp_path / "keys.json"
        quota = Quota(namespace="default", set_at=NOW, concurrency=1)
        await self.keeper(House(), path).pushed(KeysPush(keys=(record(A),), quotas=(quota,)))
        restarted = House()
        self.keeper(restarted, path).load()
        await restarted.enter(A)
        assert (await restarted.refused(A)).reason is Reason.NAMESPACE_CONCURRENCY_LIMITED

    async def test_a_disk_that_refuses_does_not_keep_keys_from_being_obeyed(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        house = House()
        await self.keeper(house, tmp_path / "file" / "keys.json").pushed(KeysPush(keys=(record(A),)))
        assert house.caller(A).key_id == A

    async def test_a_spoilt_file_leaves_the_gateway_without_keys(self, tmp_path: Path) -> None:
        path = tmp_path / "keys.json"
        path.write_text("nonsense")
        house = House()
        house.keyring = Keyring(os.urandom(32))
        KeyKeeper(house.gatekeeper, house.keyring, path).load()
        assert not house.keyring.usable(NOW)
