"""What every receiver of notifications must do, and what the webhook must beyond: sign, refuse to be led elsewhere."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.notifications.base import Cursors, Happening, NotDelivered, Notification, Notifier, Position
from rollout.notifications.memory import MemoryCursors, MemoryNotifier
from rollout.notifications.sql import SqlCursors
from rollout.notifications.webhook import WebhookNotifier, parse_secret, sign, write_body
from tests.webhook_receiver import Receiver

SECRET = bytes(range(32))
NOW = 1_700_000_000.7


def notification(number: int = 1, **data: object) -> Notification:
    return Notification(
        id=f"evt_{number}",
        position=Position(entry=number),
        type=Happening.PROMOTED,
        at=1_699_999_999.25,
        data={"model": "chat", "version": "1.0.1", "reason": "已提升", **data},
    )


@dataclass
class Case:
    """A receiver, and how to see from outside what it has."""

    notifier: Notifier
    fail: object
    receiver: Receiver | None = None
    memory: MemoryNotifier | None = None
    ids: list[str] = field(default_factory=list)

    def arrived(self) -> list[str]:
        """Ids in the order of their first arrival, as a receiver that drops doubles has them."""
        if self.memory is not None:
            return [n.id for n in self.memory.received]
        assert self.receiver is not None
        return list(dict.fromkeys(r.id for r in self.receiver.accepted))

    def break_once(self) -> None:
        if self.memory is not None:
            self.memory.fail_next = 1
        else:
            assert self.receiver is not None
            self.receiver.answers = [503]


@pytest.fixture(params=["memory", "webhook"])
async def case(request: pytest.FixtureRequest) -> AsyncIterator[Case]:
    if request.param == "memory":
        memory = MemoryNotifier()
        yield Case(memory, None, memory=memory)
        return
    async with Receiver(SECRET) as receiver:
        notifier = WebhookNotifier(name="pager", url=receiver.url, secret=SECRET, clock=lambda: NOW)
        yield Case(notifier, None, receiver=receiver)
        await notifier.close()


async def test_what_is_told_arrives_in_order(case: Case) -> None:
    for number in (1, 2, 3):
        await case.notifier.deliver(notification(number))
    assert case.arrived() == ["evt_1", "evt_2", "evt_3"]


async def test_a_double_can_be_told_by_its_id(case: Case) -> None:
    for _ in range(3):
        await case.notifier.deliver(notification())
    assert case.arrived() == ["evt_1"]


async def test_a_failure_is_raised_and_another_attempt_helps(case: Case) -> None:
    case.break_once()
    with pytest.raises(NotDelivered) as told:
        await case.notifier.deliver(notification())
    assert told.value.retryable
    assert case.arrived() == []
    await case.notifier.deliver(notification())
    assert case.arrived() == ["evt_1"]


async def test_it_has_a_name_and_wants_everything_unless_told_otherwise(case: Case) -> None:
    assert case.notifier.name
    assert set(case.notifier.wanted) == set(Happening)


# ------------------------------------------------------------------------------------------------- the webhook alone


async def test_the_body_says_what_happened_and_the_signature_is_the_receivers() -> None:
    async with Receiver(SECRET) as receiver:
        notifier = WebhookNotifier(name="pager", url=receiver.url, secret=SECRET, clock=lambda: NOW)
        await notifier.deliver(notification())
        await notifier.close()
    got = receiver.accepted[0]
    assert json.loads(got.body) == {
        "type": "rollout.promoted",
        "timestamp": "2023-11-14T22:13:19.250000+00:00",
        "data": {"model": "chat", "version": "1.0.1", "reason": "已提升"},
    }
    assert (got.headers["webhook-timestamp"], got.headers["content-type"]) == ("1700000000", "application/json")


async def test_a_receiver_with_another_secret_refuses_the_signature() -> None:
    async with Receiver(bytes(32)) as receiver:
        notifier = WebhookNotifier(name="pager", url=receiver.url, secret=SECRET, clock=lambda: NOW)
        with pytest.raises(NotDelivered, match="401"):
            await notifier.deliver(notification())
        await notifier.close()


def test_the_signature_is_that_of_the_standards_own_example() -> None:
    """The example of the Standard Webhooks specification's reference libraries."""
    secret = parse_secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    body = b'{"test": 2432232314}'
    found = sign(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
    assert found == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@given(st.binary(min_size=24, max_size=64), st.text(alphabet="abc_-019", min_size=1), st.integers(0, 2**33))
def test_every_signature_can_be_checked(secret: bytes, message_id: str, timestamp_s: int) -> None:
    body = write_body(notification())
    version, _, given_ = sign(secret, message_id, timestamp_s, body).partition(",")
    expected = hmac.new(secret, f"{message_id}.{timestamp_s}.".encode() + body, hashlib.sha256).digest()
    assert (version, base64.b64decode(given_)) == ("v1", expected)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_is_not_followed(status: int) -> None:
    async with Receiver(SECRET) as elsewhere, Receiver(SECRET) as receiver:
        receiver.answers = [status]
        receiver.location = elsewhere.url
        notifier = WebhookNotifier(name="pager", url=receiver.url, secret=SECRET, clock=lambda: NOW)
        with pytest.raises(NotDelivered, match="redirects are not followed"):
            await notifier.deliver(notification())
        await notifier.close()
    assert elsewhere.requests == []


@pytest.mark.parametrize(("status", "retryable"), [(400, True), (404, True), (410, False), (429, True), (500, True)])
async def test_every_answer_but_2xx_is_a_failure(status: int, retryable: bool) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(status))
    notifier = WebhookNotifier(
        name="pager", url="http://pager.test", secret=SECRET, clock=lambda: NOW, transport=transport
    )
    with pytest.raises(NotDelivered, match=str(status)) as told:
        await notifier.deliver(notification())
    assert told.value.retryable is retryable


async def test_nobody_there_is_a_failure_that_shows_neither_url_nor_secret() -> None:
    url = "http://127.0.0.1:1/hook?token=hidden"
    notifier = WebhookNotifier(name="pager", url=url, secret=SECRET, clock=lambda: NOW)
    with pytest.raises(NotDelivered) as told:
        await asyncio.wait_for(notifier.deliver(notification()), 30)
    assert "hidden" not in str(told.value)
    assert told.value.retryable
    await notifier.close()


@pytest.mark.parametrize(
    "text",
    ["", "whsec_", "whsec_c2hvcnQ=", "hunter2", "whsec_" + base64.b64encode(bytes(65)).decode(), "whsec_%%%%"],
    ids=["empty", "a prefix alone", "too short", "a password", "too long", "not base64"],
)
def test_a_secret_of_another_form_is_refused_without_showing_it(text: str) -> None:
    with pytest.raises(ValueError, match="24 to 64 bytes") as told:
        parse_secret(text)
    assert not text.removeprefix("whsec_") or text.removeprefix("whsec_") not in str(told.value)


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def cursors(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cursors]:
    if request.param == "memory":
        yield MemoryCursors()
        return
    sqlite = f"sqlite:///{tmp_path / 'state.db'}"
    made = SqlCursors(sqlite if request.param == "sqlite" else request.getfixturevalue("postgres").new_database())
    yield made
    made.close()


def test_cursors_are_kept_by_receiver_and_may_go_back(cursors: Cursors) -> None:
    assert cursors.load() == {}
    cursors.save({})
    far = {"pager": Position(entry=2**40, index=3), "聊天": Position(entry=1)}
    cursors.save(far)
    assert cursors.load() == far
    back = {"pager": Position(entry=5)}  # the log was replaced by a shorter one
    cursors.save(back)
    cursors.save(back)
    assert cursors.load()["pager"] == Position(entry=5)
