"""Keys, limits, queue and usage of a whole gateway, through the official SDK and over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from serving.accounting import UsageRow
from serving.gateway.config import GatewayConfig, InvalidConfig
from serving.gateway.traffic_state import save_table
from serving.keys import KeyRecord, Priority, Quota, Scope, hash_secret, write_key
from serving.knobs import QueueSettings
from serving.outcomes import KeysPush, UsageAccepted, UsageReport
from tests.integration.gateway_fakes import FakeController, FakeEngine, Rig, rig, table, until
from tests.ports import free_ports

pytestmark = pytest.mark.integration

A, B, C = "a" * 12, "b" * 12, "c" * 12
SECRET = "s" * 43
MESSAGES: Any = [{"role": "user", "content": "你好, hello"}]
PIN, SEE = Scope.PIN_VERSION, Scope.SEE_VERSION


def record(key_id: str, *more: Scope, **rest: Any) -> KeyRecord:
    return KeyRecord(
        id=key_id, secret_sha256=hash_secret(SECRET), name=key_id[0], created_at=0,
        scopes=frozenset({Scope.INFERENCE, *more}), **rest,
    )  # fmt: skip


class StoreController(FakeController):
    """Pushes keys, and keeps usage as the store does: the greatest row of each place."""

    def __init__(self, *keys: KeyRecord) -> None:
        super().__init__()
        self.keys = keys
        self.rows: dict[tuple[Any, ...], UsageRow] = {}
        self.reports = 0
        self.accepts_usage = True

    async def push_keys(self, *keys: KeyRecord) -> None:
        self.keys = keys
        await self.push_quotas()

    async def push_quotas(self, *quotas: Quota) -> None:
        for socket in list(self.sockets):
            await socket.send(KeysPush(keys=self.keys, quotas=quotas).model_dump_json())

    async def _heard(self, socket: Any, message: dict[str, Any]) -> None:
        await super()._heard(socket, message)
        if message["type"] == "hello":
            await socket.send(KeysPush(keys=self.keys).model_dump_json())
        elif message["type"] == "usage":
            report = UsageReport.model_validate(message)
            self.reports += 1
            for row in report.rows:
                place = (row.gateway, row.boot, row.hour, row.key, row.model, row.version)
                if place not in self.rows or row.requests > self.rows[place].requests:
                    self.rows[place] = row
            if self.accepts_usage:
                await socket.send(UsageAccepted(number=report.number).model_dump_json())

    def usage(self) -> dict[tuple[str, str], tuple[int, int, int, int]]:
        """By key and version: requests, tokens in, tokens out, unmetered."""
        sums: dict[tuple[str, str], list[int]] = {}
        for row in self.rows.values():
            total = sums.setdefault((row.key, row.version), [0, 0, 0, 0])
            for i, n in enumerate((row.requests, row.input_tokens, row.output_tokens, row.unmetered)):
                total[i] += n
        return {place: (a, b, c, d) for place, (a, b, c, d) in sums.items()}


def sdk(r: Rig, key_id: str = A, secret: str = SECRET, **rest: Any) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=r.url + "/v1", api_key=write_key(key_id, secret), max_retries=0, **rest)


async def chat(client: openai.AsyncOpenAI, model: str = "chat", **extra: Any) -> Any:
    return await client.chat.completions.create(model=model, messages=MESSAGES, extra_body=extra)


def guarded(home: Path, controller: StoreController, **config: Any) -> Any:
    return rig(home, first=table(1, 50), controller=controller, auth="keys", **config)


async def keyed(r: Rig) -> None:
    """Wait until the keys have arrived."""
    await until(lambda: r.gateway.protection.missing(time.time()) is None)


def depth(r: Rig) -> int:
    return sum(r.gateway.protection.gatekeeper.queue_depths().values())


async def test_only_holders_of_a_key_get_answers(tmp_path: Path) -> None:
    async with guarded(tmp_path, StoreController(record(A), record(B, expires_at=1.0))) as r:
        await keyed(r)
        assert (await chat(sdk(r))).choices[0].message.content.startswith("hello")
        for wrong, said in [
            (sdk(r, secret="guess"), f"tg-{A}-..."),
            (sdk(r, C), f"tg-{C}-..."),
            (sdk(r, B), "has expired"),
        ]:
            with pytest.raises(openai.AuthenticationError, match=said) as caught:
                await chat(wrong)
            assert caught.value.code == "invalid_api_key"
            assert SECRET not in str(caught.value)
        with pytest.raises(openai.AuthenticationError):
            await sdk(r, C).models.list()
        async with httpx.AsyncClient() as http:
            bare = await http.post(r.url + "/v1/chat/completions", json={"model": "chat"})
            assert (bare.status_code, bare.headers["www-authenticate"]) == (401, "Bearer")
            for name in ("api-key", "x-api-key"):
                listed = await http.get(r.url + "/v1/models", headers={name: write_key(A, SECRET)})
                assert listed.status_code == 200
            assert (await http.get(r.url + "/healthz")).status_code == 200
        assert len(r.stable.requests) + len(r.canary.requests) == 1


async def test_engines_never_see_a_key(tmp_path: Path) -> None:
    async with guarded(tmp_path, StoreController(record(A))) as r:
        await keyed(r)
        key = write_key(A, SECRET)
        async with httpx.AsyncClient() as http:
            for headers in ({"authorization": f"Bearer {key}"}, {"api-key": key}, {"x-api-key": key}):
                body = {"model": "chat", "messages": MESSAGES}
                await http.post(r.url + "/v1/chat/completions", json=body, headers=headers)
        seen = [headers for engine in (r.stable, r.canary) for _, headers, _ in engine.requests]
        assert len(seen) == 3
        assert not any(SECRET in value for headers in seen for value in headers.values())


async def test_a_key_is_revoked_everywhere_within_a_second(tmp_path: Path) -> None:
    controller = StoreController(record(A), record(B))
    async with guarded(tmp_path, controller) as r:
        await keyed(r)
        client = sdk(r)
        await chat(client)
        revoked_at = time.monotonic()
        await controller.push_keys(record(A, revoked_at=1.0), record(B))
        while True:
            try:
                await chat(client)  # on a connection that is open already
            except openai.AuthenticationError:
                break
            assert time.monotonic() - revoked_at < 1, "still accepted"
        await chat(sdk(r, B))


async def test_a_quota_holds_for_all_keys_of_its_namespace_within_a_second_and_ends_as_soon(tmp_path: Path) -> None:
    shop = [record(A, namespace="shop"), record(B, namespace="shop")]
    controller = StoreController(*shop, record(C, namespace="bank"))
    async with guarded(tmp_path, controller) as r:
        await keyed(r)
        one, other = sdk(r), sdk(r, B)
        await controller.push_quotas(Quota(namespace="shop", set_at=1.0, requests_per_minute=3))
        refused: openai.RateLimitError | None = None
        for attempt in range(100):  # some may be let in before the push is read
            try:
                await chat(one if attempt % 2 else other)
            except openai.RateLimitError as error:
                refused = error
                break
        assert refused is not None
        assert attempt >= 3
        assert (refused.type, refused.code) == ("requests", "rate_limit_exceeded")
        assert "in namespace shop" in refused.message
        assert refused.response.headers["x-ratelimit-limit-requests"] == "3"
        await chat(sdk(r, C))
        async with httpx.AsyncClient() as http:
            metrics = (await http.get(r.admin_url + "/metrics")).text
        assert 'tidegate_quota_limit{key_namespace="shop",limit="requests"} 3.0' in metrics
        assert 'tidegate_rejections_total{model="chat",reason="namespace_rate_limited"}' in metrics
        await controller.push_quotas()
        lifted_at = time.monotonic()
        while True:
            with contextlib.suppress(openai.RateLimitError):
                await chat(one)
                break
            assert time.monotonic() - lifted_at < 1, "still refused"


async def test_keys_of_the_last_run_hold_without_a_controller(tmp_path: Path) -> None:
    async with guarded(tmp_path, StoreController(record(A))) as r:
        await keyed(r)
        await until((tmp_path / "gateway" / "keys.json").exists)
    async with rig(tmp_path, control_url=None, auth="keys") as r:
        await chat(sdk(r))
        with pytest.raises(openai.AuthenticationError):
            await chat(sdk(r, B))


async def test_a_gateway_without_any_keys_says_that_it_is_not_ready(tmp_path: Path) -> None:
    async with rig(tmp_path, control_url=None, auth="keys") as r:
        with pytest.raises(openai.InternalServerError) as caught:
            await chat(sdk(r))
        assert (caught.value.status_code, caught.value.code) == (503, "keys_unavailable")
        async with httpx.AsyncClient() as http:
            readiness = await http.get(r.admin_url + "/readyz")
        assert readiness.status_code == 503
        assert any("no API keys" in reason for reason in readiness.json()["missing"])


async def test_models_and_versions_are_for_keys_that_may(tmp_path: Path) -> None:
    keys = [record(A), record(B, PIN, SEE), record(C, models=("other",))]
    async with guarded(tmp_path, StoreController(*keys)) as r:
        await keyed(r)
        with pytest.raises(openai.PermissionDeniedError):
            await chat(sdk(r, A), model="chat@1.1.0")
        with pytest.raises(openai.NotFoundError) as caught:
            await chat(sdk(r, C))
        assert caught.value.code == "model_not_found"
        pinned = await sdk(r, B).chat.completions.with_raw_response.create(model="chat@1.1.0", messages=MESSAGES)
        assert (pinned.headers["x-tidegate-version"], pinned.headers["x-tidegate-role"]) == ("1.1.0", "canary")
        assert [m.id async for m in sdk(r, A).models.list()] == ["chat"]
        assert [m.id async for m in sdk(r, C).models.list()] == []
        with pytest.raises(openai.NotFoundError):
            await sdk(r, C).models.retrieve("chat")
        blind = await sdk(r, A).chat.completions.with_raw_response.create(model="chat", messages=MESSAGES)
        assert "x-tidegate-version" not in blind.headers


async def test_a_key_knows_the_models_of_its_namespace_and_no_others(tmp_path: Path) -> None:
    keys = [record(A, namespace="shop"), record(B, PIN, namespace="bank"), record(C, PIN, namespace="*")]
    both = table(1, 50)
    shop = both.models[0].model_copy(update={"namespace": "shop"})
    bank = shop.model_copy(update={"model": "till", "namespace": "bank"})
    first = both.model_copy(update={"models": (shop, bank)})
    async with rig(tmp_path, first=first, controller=StoreController(*keys), auth="keys") as r:
        await keyed(r)
        names = {k: [m.id async for m in sdk(r, k).models.list()] for k in (A, B, C)}
        assert names == {A: ["chat"], B: ["till"], C: ["chat", "till"]}
        answered = await sdk(r, A).chat.completions.with_raw_response.create(model="chat", messages=MESSAGES)
        await chat(sdk(r, C), model="till@1.1.0")
        told = []
        for model in ("till", "ghost"):  # another's, and one that there is not
            for asked in (model, f"{model}@1.1.0"):
                for ask in (chat(sdk(r, A), model=asked), sdk(r, A).models.retrieve(asked)):
                    with pytest.raises(openai.NotFoundError) as caught:
                        await ask
                    assert caught.value.code == "model_not_found"
                    told.append(json.dumps(caught.value.body).replace(model, "X"))
        assert told[:4] == told[4:]
        async with httpx.AsyncClient() as http:
            vote = {"request_id": answered.headers["x-request-id"], "rating": "up"}
            headers = {"authorization": f"Bearer {write_key(A, SECRET)}"}
            assert (await http.post(r.url + "/v1/feedback", json=vote, headers=headers)).status_code == 200
            await r.apply(
                first.model_copy(update={"sequence": 2, "models": (bank.model_copy(update={"model": "chat"}),)})
            )
            refused = await http.post(r.url + "/v1/feedback", json=vote, headers=headers)
            assert (refused.status_code, refused.json()["error"]["code"]) == (404, "request_not_found")
        await chat(sdk(r, B))


async def test_limits_are_told_with_every_answer_and_enforced(tmp_path: Path) -> None:
    async with guarded(tmp_path, StoreController(record(A, requests_per_minute=2, tokens_per_minute=10_000))) as r:
        await keyed(r)
        create = sdk(r).chat.completions.with_raw_response.create
        first = await create(model="chat", messages=MESSAGES, max_tokens=50)
        assert first.headers["x-ratelimit-limit-requests"] == "2"
        assert first.headers["x-ratelimit-remaining-requests"] == "1"
        assert first.headers["x-ratelimit-limit-tokens"] == "10000"
        assert 9800 < int(first.headers["x-ratelimit-remaining-tokens"]) < 9950  # estimated: the prompt and 50
        second = await create(model="chat", messages=MESSAGES, max_tokens=50)
        assert int(second.headers["x-ratelimit-remaining-tokens"]) > 9800  # the first one's estimate came back
        with pytest.raises(openai.RateLimitError) as caught:
            await create(model="chat", messages=MESSAGES)
        headers = caught.value.response.headers
        assert (caught.value.code, caught.value.type) == ("rate_limit_exceeded", "requests")
        assert 1 <= int(headers["retry-after"]) <= 30
        assert headers["x-ratelimit-remaining-requests"] == "0"
        with pytest.raises(openai.RateLimitError):
            await create(model="chat", messages=MESSAGES, max_tokens=20_000)


async def test_the_sdk_comes_back_by_itself_when_it_was_told_to(tmp_path: Path) -> None:
    async with guarded(tmp_path, StoreController(record(A, requests_per_minute=120))) as r:
        await keyed(r)
        create = sdk(r).with_options(max_retries=5).chat.completions.create
        for _ in range(121):
            await create(model="chat", messages=MESSAGES)


async def test_tokens_that_no_wait_brings_are_not_asked_for_again(tmp_path: Path) -> None:
    async with guarded(tmp_path, StoreController(record(A, tokens_per_minute=100))) as r:
        await keyed(r)
        client = sdk(r).with_options(max_retries=5)
        with pytest.raises(openai.RateLimitError, match="too large") as caught:
            await client.chat.completions.create(model="chat", messages=MESSAGES, max_tokens=101)
        assert caught.value.type == "tokens"
        assert caught.value.response.request.headers["x-stainless-retry-count"] == "0"


async def test_concurrency_is_limited_per_key(tmp_path: Path) -> None:
    async with guarded(tmp_path, StoreController(record(A, concurrency=1), record(B))) as r:
        await keyed(r)
        slow = asyncio.create_task(chat(sdk(r), fake={"before_s": 0.5}))
        await until(lambda: len(r.stable.busy) + len(r.canary.busy) == 1)
        with pytest.raises(openai.RateLimitError, match="1 requests under way"):
            await chat(sdk(r))
        await chat(sdk(r, B))
        await slow
        await chat(sdk(r))


class Crowd:
    """Requests that wait behind one that holds the only place, and the order in which the engine gets them."""

    def __init__(self, r: Rig) -> None:
        self.r = r
        self.tasks: dict[str, asyncio.Task[Any]] = {}
        self.client = httpx.AsyncClient(timeout=30)

    async def hold(self, before_s: float = 1.0) -> None:
        await self._send(A, "first", before_s)
        await until(lambda: len(self.r.stable.busy) == 1)

    async def add(self, key_id: str, mark: str) -> None:
        before = depth(self.r)
        await self._send(key_id, mark)
        await until(lambda: depth(self.r) > before or self.tasks[mark].done())

    async def _send(self, key_id: str, mark: str, before_s: float = 0) -> None:
        self.tasks[mark] = asyncio.create_task(
            self.client.post(
                self.r.url + "/v1/chat/completions",
                json={"model": "chat", "messages": MESSAGES, "mark": mark, "fake": {"before_s": before_s}},
                headers={"authorization": f"Bearer {write_key(key_id, SECRET)}"},
            )
        )

    async def order(self) -> list[str]:
        answers = {mark: await task for mark, task in self.tasks.items()}
        for mark, answer in answers.items():  # each answer carries its own request's mark
            if answer.status_code == 200:
                assert answer.json()["choices"][0]["message"]["content"] == f"hello {mark}"
        await self.client.aclose()
        return [body["mark"] for _, _, body in self.r.stable.requests[1:]]

    def refused(self) -> dict[str, tuple[int, str]]:
        return {
            mark: (task.result().status_code, task.result().json()["error"]["code"])
            for mark, task in self.tasks.items()
            if task.done() and task.result().status_code != 200
        }


def one_place(**rest: Any) -> dict[str, Any]:
    """A gateway whose stable has one place, and no canary."""
    return {"first": table(1, None), "auth": "keys", "queue": QueueSettings(endpoint_concurrency=1, **rest)}


async def test_interactive_goes_before_standard_before_batch(tmp_path: Path) -> None:
    keys = [record(A), record(B, priority=Priority.BATCH), record(C, priority=Priority.INTERACTIVE)]
    async with rig(tmp_path, controller=StoreController(*keys), **one_place()) as r:
        await keyed(r)
        crowd = Crowd(r)
        await crowd.hold()
        for key_id, mark in [(B, "batch"), (A, "standard"), (C, "interactive")]:
            await crowd.add(key_id, mark)
        async with httpx.AsyncClient() as http:
            metrics = (await http.get(r.admin_url + "/metrics")).text
        assert 'tidegate_queue_depth{model="chat",priority="batch"} 1.0' in metrics
        assert await crowd.order() == ["interactive", "standard", "batch"]


async def test_keys_take_turns(tmp_path: Path) -> None:
    async with rig(tmp_path, controller=StoreController(record(A), record(B)), **one_place()) as r:
        await keyed(r)
        crowd = Crowd(r)
        await crowd.hold()
        for i in range(4):
            await crowd.add(A, f"a{i}")
        for i in range(2):
            await crowd.add(B, f"b{i}")
        assert await crowd.order() == ["a0", "b0", "a1", "b1", "a2", "a3"]


async def test_a_full_queue_answers_at_once(tmp_path: Path) -> None:
    keys = [record(A, priority=Priority.INTERACTIVE)]
    async with rig(tmp_path, controller=StoreController(*keys), **one_place(most_waiting=1)) as r:
        await keyed(r)
        crowd = Crowd(r)
        await crowd.hold()
        await crowd.add(A, "waits")
        with pytest.raises(openai.InternalServerError) as caught:
            await chat(sdk(r))
        assert (caught.value.status_code, caught.value.code) == (503, "overloaded")
        assert int(caught.value.response.headers["retry-after"]) >= 1
        assert await crowd.order() == ["waits"]
        async with httpx.AsyncClient() as http:
            metrics = (await http.get(r.admin_url + "/metrics")).text
        assert 'tidegate_rejections_total{model="chat",reason="queue_full"} 1.0' in metrics


async def test_a_client_that_goes_away_leaves_the_queue(tmp_path: Path) -> None:
    async with rig(tmp_path, controller=StoreController(record(A)), **one_place()) as r:
        await keyed(r)
        crowd = Crowd(r)
        await crowd.hold()
        await crowd.add(A, "stays")
        with pytest.raises(openai.APITimeoutError):
            await chat(sdk(r, timeout=0.2), mark="goes")
        await until(lambda: depth(r) == 1)
        assert await crowd.order() == ["stays"]


async def test_a_request_that_cannot_start_in_time_is_not_begun(tmp_path: Path) -> None:
    async with rig(tmp_path, controller=StoreController(record(A)), **one_place()) as r:
        await keyed(r)
        crowd = Crowd(r)
        await crowd.hold()
        began = time.monotonic()
        with pytest.raises(openai.InternalServerError) as caught:
            await sdk(r).chat.completions.create(
                model="chat", messages=MESSAGES, extra_headers={"x-request-timeout": "0.1"}
            )
        assert caught.value.code == "deadline_unreachable"
        assert time.monotonic() - began < 0.9  # before the one in front was through
        assert await crowd.order() == []


async def test_usage_is_exact_by_key_and_version(tmp_path: Path) -> None:
    controller = StoreController(record(A, PIN), record(B, PIN))
    async with guarded(tmp_path, controller) as r:
        await keyed(r)
        expected: Counter[tuple[str, str]] = Counter()
        for i in range(40):
            key_id, version = (A, B)[i % 2], ("1.0.0", "1.1.0")[i % 3 == 0]
            await chat(sdk(r, key_id), model=f"chat@{version}", fake={"tokens": 3})
            expected[key_id, version] += 1
            if i == 20:
                await controller.drop()  # the line breaks, and comes back
        await until(lambda: {k: v[0] for k, v in controller.usage().items()} == expected)
        for place, (requests, tokens_in, tokens_out, unmetered) in controller.usage().items():
            assert (tokens_in, tokens_out, unmetered) == (7 * requests, 3 * requests, 0), place
        await until(lambda: not any((tmp_path / "gateway" / "usage").iterdir()))  # accepted, so no longer kept


async def test_an_answer_that_its_client_left_is_counted_without_tokens(tmp_path: Path) -> None:
    controller = StoreController(record(A, PIN, tokens_per_minute=10_000))
    async with guarded(tmp_path, controller) as r:
        await keyed(r)
        with pytest.raises(openai.APITimeoutError):
            await sdk(r, timeout=0.3).chat.completions.create(
                model="chat@1.0.0", messages=MESSAGES, max_tokens=5000, extra_body={"fake": {"before_s": 5}}
            )
        await until(lambda: controller.usage() == {(A, "1.0.0"): (1, 0, 0, 1)})
        after = await sdk(r).chat.completions.with_raw_response.create(model="chat", messages=MESSAGES)
        assert int(after.headers["x-ratelimit-remaining-tokens"]) < 6000  # leaving early gives no tokens back


async def test_usage_survives_a_stop_without_controller(tmp_path: Path) -> None:
    controller = StoreController(record(A))
    async with guarded(tmp_path, controller) as r:
        await keyed(r)
        controller.accepts_usage = False
        for _ in range(3):
            await chat(sdk(r))
    assert len(list((tmp_path / "gateway" / "usage").iterdir())) == 1
    later = StoreController(record(A))
    async with guarded(tmp_path, later) as r:
        await keyed(r)
        await chat(sdk(r))
        await until(lambda: sum(v[0] for v in later.usage().values()) == 4)
        assert len({row.boot for row in later.rows.values()}) == 2


def start(command: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


async def test_kill_9_costs_about_a_second_of_usage(tmp_path: Path) -> None:
    engine = await FakeEngine().start()
    port, admin_port = free_ports(2)
    (tmp_path / "gateway").mkdir()
    save_table(tmp_path / "gateway" / "table.json", table(1, None))
    config = GatewayConfig(
        home=tmp_path, port=port, admin_port=admin_port, control_url=None, endpoints={"stable-app": (engine.url,)}
    )
    command = [sys.executable, "-m", "serving.gateway.main", "--config", config.to_json()]
    process = start(command)
    answered: list[float] = []
    try:
        async with httpx.AsyncClient(timeout=30) as http:
            started = time.monotonic()
            while time.monotonic() - started < 30:
                try:
                    if (await http.get(f"http://127.0.0.1:{admin_port}/readyz")).status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                await asyncio.sleep(0.05)
            began = time.monotonic()
            while time.monotonic() - began < 4.0:
                body = {"model": "chat", "messages": MESSAGES}
                answer = await http.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body)
                assert answer.status_code == 200
                answered.append(time.monotonic())
                await asyncio.sleep(0.01)
    finally:
        killed = time.monotonic()
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        await engine.stop()
    (file,) = (tmp_path / "gateway" / "usage").iterdir()
    kept = sum(values[4] for values in json.loads(file.read_text())["rows"])
    lost = len(answered) - kept
    oldest_lost_s = killed - answered[kept] if lost else 0.0
    print(f"answered {len(answered)}, lost {lost}, the oldest of them {oldest_lost_s:.2f} s before kill -9")
    assert 0 <= lost < len(answered)
    assert oldest_lost_s < 3.0, "the window is one second; the machine of the tests may be busy"

    later = StoreController()
    async with rig(tmp_path, first=table(2, None), controller=later):
        await until(lambda: sum(v[0] for v in later.usage().values()) == kept)


@pytest.mark.parametrize("field", ["host", "admin_host"])
def test_beyond_loopback_only_with_keys(tmp_path: Path, field: str) -> None:
    with pytest.raises(InvalidConfig, match="without API keys"):
        GatewayConfig(home=tmp_path, **{field: "0.0.0.0"})
    assert GatewayConfig(home=tmp_path, auth="keys", **{field: "0.0.0.0"})


def test_the_protection_of_a_configuration_survives_json(tmp_path: Path) -> None:
    config = GatewayConfig(
        home=tmp_path, auth="keys", limit_share=0.5, keys_max_age_s=60, queue=QueueSettings(endpoint_concurrency=None)
    )
    assert GatewayConfig.from_json(config.to_json()) == config
    wrong = json.loads(config.to_json()) | {"queue": {"most_waiting": -1}}
    with pytest.raises(InvalidConfig, match="most_waiting"):
        GatewayConfig.from_json(json.dumps(wrong))
    with pytest.raises(InvalidConfig, match="limit_share"):
        GatewayConfig(home=tmp_path, limit_share=0)
