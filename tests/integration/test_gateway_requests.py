"""Requests through the gateway: OpenAI's protocol, retries, deaths, aborts."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path

import httpx
import openai
import pytest
import uvloop

from serving.gateway.request_ids import read
from serving.outcomes import Cause, Signal
from serving.traffic import Role
from tests.integration.gateway_fakes import CANARY_DIGEST, STABLE_DIGEST, rig, session_on, table, until

pytestmark = pytest.mark.integration

CHAT = {"model": "chat", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(scope="module")
def event_loop_policy():
    return uvloop.EventLoopPolicy()


def chat(**more: object) -> dict[str, object]:
    return {**CHAT, **more}


async def test_openai_sdk_streaming_and_not(tmp_path: Path) -> None:
    async with rig(tmp_path, first=table(1, None)) as r:
        client = openai.AsyncOpenAI(base_url=r.url + "/v1", api_key="secret-key", max_retries=0)
        raw = await client.chat.completions.with_raw_response.create(model="chat", messages=CHAT["messages"])
        assert raw.parse().choices[0].message.content == "hello "
        assert raw.headers["x-tidegate-version"] == "1.0.0"
        assert raw.headers["x-tidegate-role"] == "stable"
        facts = read((tmp_path / "gateway" / "secret").read_bytes(), raw.headers["x-request-id"])
        assert facts is not None
        assert (facts.kind, facts.model, facts.version, tuple(facts.generation)) == ("f", "chat", "1.0.0", (1, 1))
        stream = await client.chat.completions.create(model="chat", messages=CHAT["messages"], stream=True)
        text = "".join([c.choices[0].delta.content or "" async for c in stream])
        assert text == "".join(f"hello -{i} " for i in range(5))
        assert [m.id async for m in client.models.list()] == ["chat"]
        with pytest.raises(openai.NotFoundError) as missing:
            await client.chat.completions.create(model="nope", messages=CHAT["messages"])
        assert missing.value.code == "model_not_found"
        _, headers, _ = r.stable.requests[0]
        assert "authorization" not in headers  # the client's key is not the engine's business
        await client.close()


async def test_malformed_requests_get_openai_errors(tmp_path: Path) -> None:
    async with rig(tmp_path, first=table(1, None), max_body_bytes=1000) as r, httpx.AsyncClient(base_url=r.url) as http:
        path = "/v1/chat/completions"
        cases = [
            (await http.post(path, content=b"{nope"), 400, "invalid_json"),
            (await http.post(path, content=b"[1]"), 400, "invalid_json"),
            (await http.post(path, content=b'{"model": "chat", "temperature": NaN}'), 400, "invalid_json"),
            (await http.post(path, content=b'{"a":' * 150 + b"1" + b"}" * 150), 400, "invalid_request"),
            (await http.post(path, content=b'{"model": "\xff"}'), 400, "invalid_json"),
            (await http.post(path, json={"messages": []}), 400, "invalid_request"),
            (await http.post(path, json={"model": "nope"}), 404, "model_not_found"),
            (await http.post(path, json={"model": "chat@9.9.9"}), 404, "model_not_found"),
            (await http.post(path, json={"model": "chat@"}), 404, "model_not_found"),
            (await http.get("/v1/models/chat@"), 404, "model_not_found"),
            (await http.post(path, content=b"x" * 1001), 413, "request_too_large"),
            (
                await http.post(path, json=CHAT, headers={"content-encoding": "gzip"}),
                415,
                "unsupported_content_encoding",
            ),
            (await http.post(path, json=CHAT, headers={"x-request-timeout": "soon"}), 400, "invalid_request"),
            (await http.get(path), 405, "method_not_supported"),
            (await http.get("/v1/nothing"), 404, "unknown_url"),
            (await http.post("/other", json=CHAT), 404, "unknown_url"),
        ]
        for answer, status, code in cases:
            assert answer.status_code == status, answer.text
            error = answer.json()["error"]
            assert set(error) == {"message", "type", "param", "code"}
            assert error["code"] == code
            assert answer.headers["x-request-id"].startswith("req_")

        async def endless():
            for _ in range(50):
                yield b"x" * 100

        assert (await http.post(path, content=endless())).status_code == 413
        assert r.stable.requests == []
        metrics = (await http.get(r.admin_url + "/metrics")).text
        assert 'tidegate_rejections_total{model="",reason="model_not_found"} 2.0' in metrics
        assert "nope" not in metrics


async def test_pinned_version_passes_the_bare_name_and_gives_no_evidence(tmp_path: Path) -> None:
    async with rig(tmp_path, first=table(1, 10)) as r, httpx.AsyncClient(base_url=r.url) as http:
        answer = await http.post("/v1/chat/completions?x=1", json=chat(model="chat@1.1.0", seed=3))
        assert answer.headers["x-tidegate-role"] == "canary"
        target, _, body = r.canary.requests[0]
        assert target == "/v1/chat/completions?x=1"
        assert body == chat(seed=3)
        r.canary.do = lambda body: {"status": 503}
        assert (await http.post("/v1/chat/completions", json=chat(model="chat@1.1.0"))).status_code == 503
        await r.settled()
        total = r.controller.totals[("chat", "r1", CANARY_DIGEST, 10)]
        assert (total.admitted, total.forced, total.settled) == (0, 2, 0)
        assert r.controller.events == []
        assert r.stable.requests == []


@pytest.mark.parametrize(
    ("fake", "cause"),
    [
        ({"status": 500}, Cause.VERSION),
        ({"do": "die"}, Cause.VERSION),
        ({"do": "die-after-head"}, Cause.VERSION),
        ({"do": "die", "gone": True}, Cause.ENDPOINT_LOST),
        ({"do": "die-after-head", "gone": True}, Cause.ENDPOINT_LOST),
        (None, Cause.ENDPOINT_LOST),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_failed_canary_is_rescued_and_counted_once(
    tmp_path: Path, fake: dict[str, object] | None, cause: Cause, stream: bool
) -> None:
    async with rig(tmp_path, first=table(1, 50)) as r, httpx.AsyncClient(base_url=r.url) as http:
        if fake is None:
            await r.canary.stop()  # connection refused
        else:
            r.canary.do = lambda body: fake
        session = session_on(Role.CANARY, 50)
        answer = await http.post("/v1/chat/completions", json=chat(stream=stream), headers={"x-session-id": session})
        assert answer.status_code == 200
        assert "hello" in answer.text
        assert answer.headers["x-tidegate-role"] == "stable"
        facts = read((tmp_path / "gateway" / "secret").read_bytes(), answer.headers["x-request-id"])
        assert facts is not None
        assert facts.kind == "r"
        await r.settled()
        (event,) = r.controller.events
        assert (event.signal, event.cause, event.arm, event.weight) == (Signal.ERROR, cause, Role.CANARY, 50)
        assert event.session is not None
        canary = r.controller.totals[("chat", "r1", CANARY_DIGEST, 50)]
        assert (canary.admitted, canary.settled, canary.retried_on_stable) == (1, 1, 1)
        assert canary.settled_events == {"error": 1}
        assert ("chat", "r1", STABLE_DIGEST, 50) not in r.controller.totals  # the retry counts for nobody
        metrics = (await http.get(r.admin_url + "/metrics")).text
        assert f'tidegate_retries_total{{cause="{cause.value}",model="chat",version="1.1.0"}} 1.0' in metrics
        assert 'tidegate_requests_total{model="chat",outcome="retried",version="1.1.0"} 1.0' in metrics


async def test_canary_4xx_and_timeout_are_not_retried(tmp_path: Path) -> None:
    async with rig(tmp_path, first=table(1, 50)) as r, httpx.AsyncClient(base_url=r.url) as http:
        headers = {"x-session-id": session_on(Role.CANARY, 50)}
        r.canary.do = lambda body: {"status": 400}
        answer = await http.post("/v1/chat/completions", json=CHAT, headers=headers)
        assert answer.status_code == 400
        r.canary.do = lambda body: {"do": "hang"}
        answer = await http.post("/v1/chat/completions", json=CHAT, headers={**headers, "x-request-timeout": "0.2"})
        assert answer.status_code == 504
        assert answer.json()["error"]["code"] == "timeout"
        assert r.stable.requests == []
        await r.settled()
        assert [(e.signal, e.cause) for e in r.controller.events] == [
            (Signal.ENGINE_4XX, Cause.VERSION), (Signal.ERROR, Cause.TIMEOUT)]  # fmt: skip
        await until(lambda: r.canary.aborted == 1)


async def test_retries_have_a_budget(tmp_path: Path) -> None:
    async with rig(tmp_path, first=table(1, 50)) as r, httpx.AsyncClient(base_url=r.url) as http:
        headers = {"x-session-id": session_on(Role.CANARY, 50)}
        r.canary.do = lambda body: {"status": 503}
        r.stable.do = lambda body: {"before_s": 0.3}
        answers = await asyncio.gather(
            *(http.post("/v1/chat/completions", json=CHAT, headers=headers) for _ in range(12))
        )
        assert Counter(a.status_code for a in answers) == {200: 3, 503: 9}
        assert all("error" in a.json() for a in answers if a.status_code == 503)


async def test_stream_that_dies_in_the_middle_ends_with_an_error_event(tmp_path: Path) -> None:
    async with rig(tmp_path, first=table(1, 50)) as r, httpx.AsyncClient(base_url=r.url) as http:
        for role, engine in ((Role.CANARY, r.canary), (Role.STABLE, r.stable)):
            engine.do = lambda body, gone=role is Role.CANARY: {
                "do": "die-mid", "chunks": 10, "delay_s": 0.002, "gone": gone
            }  # fmt: skip
            answer = await http.post(
                "/v1/chat/completions", json=chat(stream=True), headers={"x-session-id": session_on(role, 50)}
            )
            events = [e for e in answer.text.split("\n\n") if e]
            assert len(events) == 6
            assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "engine_connection_lost"
        await r.settled()
        assert [e.arm for e in r.controller.events] == [Role.CANARY, Role.STABLE]
        assert [(e.signal, e.cause) for e in r.controller.events] == [
            (Signal.ERROR, Cause.ENDPOINT_LOST), (Signal.ERROR, Cause.VERSION)
        ]  # fmt: skip
        client = openai.AsyncOpenAI(base_url=r.url + "/v1", api_key="k", max_retries=0)
        with pytest.raises(openai.APIError, match="lost"):
            async for _ in await client.chat.completions.create(
                model="chat", messages=[{"role": "user", "content": "other"}], stream=True
            ):
                pass
        await client.close()


async def test_stream_without_done_is_an_error_of_the_version(tmp_path: Path) -> None:
    async with rig(tmp_path, first=table(1, 50)) as r, httpx.AsyncClient(base_url=r.url) as http:
        r.canary.do = lambda body: {"do": "no-done"}
        headers = {"x-session-id": session_on(Role.CANARY, 50)}
        answer = await http.post("/v1/chat/completions", json=chat(stream=True), headers=headers)
        assert '"stream_cut"' in answer.text
        await r.settled()
        assert [(e.signal, e.cause) for e in r.controller.events] == [(Signal.ERROR, Cause.VERSION)]


async def test_client_abort_cancels_the_generation(tmp_path: Path) -> None:
    async with rig(tmp_path, first=table(1, 50)) as r, httpx.AsyncClient(base_url=r.url) as http:
        headers = {"x-session-id": session_on(Role.CANARY, 50)}
        r.canary.do = lambda body: {"chunks": 1000, "delay_s": 0.01}
        async with http.stream("POST", "/v1/chat/completions", json=chat(stream=True), headers=headers) as answer:
            async for _ in answer.aiter_bytes():
                break
        await until(lambda: r.canary.aborted == 1, within_s=1.0)
        r.canary.do = lambda body: {"do": "hang"}
        with pytest.raises(httpx.ReadTimeout):
            await http.post("/v1/chat/completions", json=CHAT, headers=headers, timeout=0.2)
        await until(lambda: r.canary.aborted == 2, within_s=1.0)
        await r.settled()
        assert [e.signal for e in r.controller.events] == [Signal.CLIENT_ABORT] * 2
        assert r.controller.in_flight[CANARY_DIGEST] == 0


async def test_texts_are_judged_on_both_arms(tmp_path: Path) -> None:
    async with rig(tmp_path, first=table(1, 50)) as r, httpx.AsyncClient(base_url=r.url) as http:
        expected = []
        for role, engine in ((Role.CANARY, r.canary), (Role.STABLE, r.stable)):
            for stream in (False, True):
                for fake, signal in (
                    ({"text": "no more no more " * 20, "piece": "no more no more " * 8}, Signal.REPETITION),
                    ({"text": "", "piece": ""}, Signal.EMPTY),
                    ({"finish": "length"}, Signal.LENGTH_STOP),
                ):
                    engine.do = lambda body, fake=fake: fake
                    headers = {"x-session-id": session_on(role, 50)}
                    answer = await http.post("/v1/chat/completions", json=chat(stream=stream), headers=headers)
                    assert answer.status_code == 200
                    expected.append((role, signal))
                    await r.settled()
        assert [(e.arm, e.signal) for e in r.controller.events] == expected
        assert [e.request_index for e in r.controller.events] == [1, 2, 3, 4, 5, 6] * 2


async def test_prompt_that_kills_engines_is_refused(tmp_path: Path) -> None:
    async with rig(tmp_path, first=table(1, 50)) as r, httpx.AsyncClient(base_url=r.url) as http:
        r.canary.do = r.stable.do = lambda body: {"do": "die", "gone": True} if body.get("mark") == "killer" else {}
        headers = {"x-session-id": session_on(Role.CANARY, 50)}
        answer = await http.post("/v1/chat/completions", json=chat(mark="killer"), headers=headers)
        assert answer.status_code == 502  # the canary died of it, then stable
        await r.canary.start(r.canary.port)
        await r.stable.start(r.stable.port)
        answer = await http.post("/v1/chat/completions", json=chat(mark="killer"), headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "prompt_refused")
        assert (await http.post("/v1/chat/completions", json=CHAT, headers=headers)).status_code == 200


async def test_stale_connection_is_retried_silently(tmp_path: Path) -> None:
    async with rig(tmp_path, first=table(1, 50)) as r, httpx.AsyncClient(base_url=r.url) as http:
        headers = {"x-session-id": session_on(Role.CANARY, 50)}
        for stream in (False, True, False):
            await http.post("/v1/chat/completions", json=chat(stream=stream), headers=headers)
        seen = r.canary.connections
        assert seen == 1  # kept alive
        r.canary.do = lambda body: {"do": "die"} if r.canary.connections == seen else {}
        answer = await http.post("/v1/chat/completions", json=CHAT, headers=headers)
        assert (answer.status_code, answer.headers["x-tidegate-role"]) == (200, "canary")
        await r.settled()
        assert r.controller.events == []


async def test_no_endpoint_answers_503_and_recovers(tmp_path: Path) -> None:
    async with rig(tmp_path, first=table(1, None)) as r, httpx.AsyncClient(base_url=r.url) as http:
        endpoints = {"stable-app": [r.stable.url]}
        r.source.set({})
        answer = await http.post("/v1/chat/completions", json=CHAT)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert answer.json()["error"]["code"] == "model_not_ready"
        ready = await http.get(r.admin_url + "/readyz")
        assert ready.status_code == 503
        assert "ready endpoint" in ready.json()["missing"][0]
        r.source.set(endpoints)
        assert (await http.post("/v1/chat/completions", json=CHAT)).status_code == 200
        assert (await http.get(r.admin_url + "/readyz")).json()["ready"] is True


async def test_stable_refusing_connections_is_tried_at_another_endpoint(tmp_path: Path) -> None:
    async with rig(tmp_path, first=table(1, None)) as r, httpx.AsyncClient(base_url=r.url) as http:
        r.source.set({"stable-app": ["http://127.0.0.1:9", r.stable.url]})
        for _ in range(4):
            assert (await http.post("/v1/chat/completions", json=CHAT)).status_code == 200
        assert r.source.suspected == ["http://127.0.0.1:9"]  # ejected after the first


async def test_unread_answer_does_not_grow_memory(tmp_path: Path) -> None:
    """A client that reads nothing stops its engine: only buffers of sockets fill up."""
    async with rig(tmp_path, first=table(1, None)) as r:
        r.stable.do = lambda body: {"chunks": 4000, "piece": "x" * 10_000}
        body = json.dumps(chat(stream=True)).encode()
        _reader, writer = await asyncio.open_connection("127.0.0.1", r.gateway.port, limit=1024)
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        before = -1
        while (sent := r.stable.sent_bytes) != before or not sent:  # until it stands still, however slow the machine
            before = sent
            await asyncio.sleep(0.3)
        assert before < 16_000_000  # far from the 40 MB of the answer
        (connection,) = [c for c in r.gateway.client._all if c.busy]
        assert sum(map(len, connection._chunks)) < 512 * 1024
        writer.transport.abort()
        await until(lambda: r.stable.aborted == 1)


async def test_responses_never_mix_under_random_kills(tmp_path: Path) -> None:
    import random

    rng = random.Random(7)
    async with rig(tmp_path, first=table(1, 30)) as r:
        r.stable.do = r.canary.do = lambda body: {"chunks": 8, "delay_s": 0.02}
        limits = httpx.Limits(max_connections=200)
        results: Counter[str] = Counter()

        async def one(http: httpx.AsyncClient, mark: str) -> None:
            stream = rng.random() < 0.7
            try:
                answer = await http.post("/v1/chat/completions", json=chat(stream=stream, mark=mark), timeout=20)
            except httpx.HTTPError:
                results["cut"] += 1
                return
            if answer.status_code != 200:
                results[str(answer.status_code)] += 1
                return
            if stream:
                events = [json.loads(e[6:]) for e in answer.text.split("\n\n") if e and e != "data: [DONE]"]
                texts = [e["choices"][0]["delta"]["content"] for e in events if "choices" in e]
                assert texts == [f"hello {mark}-{i} " for i in range(len(texts))]
                assert len(texts) == 8 or "error" in events[-1]
                results["stream"] += 1
            else:
                assert answer.json()["choices"][0]["message"]["content"] == f"hello {mark}"
                results["unary"] += 1

        async def killer() -> None:
            while True:
                await asyncio.sleep(0.03)
                for engine in (r.stable, r.canary):
                    if engine.busy and rng.random() < 0.7:
                        engine.kill({rng.choice(sorted(engine.busy, key=id))})

        async with httpx.AsyncClient(base_url=r.url, limits=limits) as http:
            task = asyncio.create_task(killer())
            await asyncio.gather(*(one(http, f"m{i}") for i in range(240)))
            task.cancel()
        assert results["stream"] + results["unary"] > 180, results
        await r.settled()
        assert all(n == 0 for n in r.gateway.recorder.in_flight.values())
        assert all(e.outstanding == 0 for a in ("stable-app", "canary-app") for e in r.gateway.book.of(a))


async def test_metrics_after_a_stream(tmp_path: Path) -> None:
    async with rig(tmp_path, first=table(1, None)) as r, httpx.AsyncClient(base_url=r.url) as http:
        await http.post("/v1/chat/completions", json=chat(stream=True))
        await http.post("/v1/chat/completions", json=CHAT)
        await r.settled()
        text = (await http.get(r.admin_url + "/metrics")).text
        labels = 'gen_ai_operation_name="chat",gen_ai_provider_name="tidegate"'
        for line in (
            'tidegate_requests_total{model="chat",outcome="ok",version="1.0.0"} 2.0',
            f'gen_ai_server_time_to_first_token_seconds_count{{{labels},model="chat",version="1.0.0"}} 1.0',
            f'gen_ai_server_time_per_output_token_seconds_count{{{labels},model="chat",version="1.0.0"}} 1.0',
            f'gen_ai_server_request_duration_seconds_count{{error_type="",{labels},model="chat",version="1.0.0"}} 2.0',
            'tidegate_tokens_total{direction="output",model="chat",version="1.0.0"} 5.0',
            'tidegate_streams_in_flight{model="chat",version="1.0.0"} 0.0',
            f'tidegate_revision_info{{model="chat",revision="{"a" * 12}",role="stable",version="1.0.0"}} 1.0',
        ):
            assert line in text, (line, text)


async def test_admin_port_and_headers(tmp_path: Path) -> None:
    async with rig(tmp_path, first=table(1, None)) as r, httpx.AsyncClient(base_url=r.url) as http:
        assert (await http.get("/healthz")).json() == {"status": "ok"}
        assert (await http.get(r.admin_url + "/healthz")).status_code == 200
        assert (await http.get(r.admin_url + "/nothing")).status_code == 404
        assert (await http.get("/v1/models/chat")).json()["id"] == "chat"
        answer = await http.post(
            "/v1/chat/completions", json=CHAT,
            headers={"x-request-id": "mine", "connection": "keep-alive, x-secret", "x-secret": "1", "traceparent": "t"},
        )  # fmt: skip
        assert answer.headers["x-client-request-id"] == "mine"
        assert answer.headers["x-request-id"] != "mine"
        _, headers, _ = r.stable.requests[0]
        assert "x-secret" not in headers
        assert headers["traceparent"] == "t"
        assert headers["x-client-request-id"] == "mine"
        assert len(headers["x-request-id"]) == 18
