"""The simulated engine on a real port, through the official SDK."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx
import openai
import pytest
import pytest_asyncio

from serving.engines import simulated
from serving.engines.base import EngineProcess
from serving.specs import EngineKind, RevisionSpec

pytestmark = pytest.mark.integration
ASK = [{"role": "user", "content": "Say something [[mark:seven]]"}]
Start = Callable[[str], Awaitable[EngineProcess]]


def spec(uri: str, **engine_args: str) -> RevisionSpec:
    return RevisionSpec(
        model="chat",
        version="1.0.0",
        manifest_sha256="0" * 64,
        engine=EngineKind.SIMULATED,
        source=uri,
        engine_args=engine_args,
    )


@pytest_asyncio.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    engines: list[EngineProcess] = []

    async def one(uri: str, **engine_args: str) -> EngineProcess:
        revision = spec(uri, **engine_args)
        engine = EngineProcess(
            "sim", lambda at: simulated.command(revision, at), host="127.0.0.1", log_file=tmp_path / "log"
        )
        engines.append(engine)
        await engine.start()
        await engine.wait_ready(20)
        return engine

    yield one
    for engine in engines:
        await engine.stop(0)


def sdk(engine: EngineProcess) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=engine.url + "/v1", api_key="none", max_retries=0)


async def test_it_starts_at_once(start: Start) -> None:
    began = time.monotonic()
    await start("sim:")
    assert time.monotonic() - began < 5  # 0.5 s on an idle machine


async def test_every_route_through_the_sdk(start: Start) -> None:
    engine = await start("sim:?ttft_ms=1&itl_ms=0&tokens=12")
    client = sdk(engine)
    assert [m.id for m in (await client.models.list()).data] == ["chat"]

    chat = await client.chat.completions.create(model="chat", messages=ASK, n=2)
    assert [c.finish_reason for c in chat.choices] == ["stop", "stop"]
    assert chat.choices[0].message.content is not None
    assert chat.choices[0].message.content.startswith("[[mark:seven]]")
    assert chat.usage is not None
    assert (chat.usage.prompt_tokens, chat.usage.completion_tokens) == (3, 24)

    text, finish, counted = "", None, None
    async for chunk in await client.chat.completions.create(
        model="chat", messages=ASK, stream=True, max_tokens=5, stream_options={"include_usage": True}
    ):
        counted = chunk.usage or counted
        for choice in chunk.choices:
            text += choice.delta.content or ""
            finish = choice.finish_reason or finish
    assert (len(text.split()), finish) == (5, "length")
    assert counted is not None
    assert counted.completion_tokens == 5

    completion = await client.completions.create(model="chat", prompt=["a", "b"], max_tokens=3)
    assert [len(c.text.split()) for c in completion.choices] == [3, 3]
    pieces = [c.choices[0].text async for c in await client.completions.create(model="chat", prompt="x", stream=True)]
    assert len("".join(pieces).split()) == 12

    embedded = await client.embeddings.create(model="chat", input=["a", "b"])
    assert [len(item.embedding) for item in embedded.data] == [64, 64]
    assert embedded.usage.total_tokens == 2

    response = await client.responses.create(model="chat", input="hello [[mark:r]]")
    assert response.output_text.startswith("[[mark:r]]")
    assert response.usage is not None
    assert response.usage.output_tokens == 12
    events = [e.type async for e in await client.responses.create(model="chat", input="hello", stream=True)]
    assert events[0] == "response.created"
    assert events[-1] == "response.completed"
    assert events.count("response.output_text.delta") == 12


async def test_stop_strings(start: Start) -> None:
    client = sdk(await start("sim:?ttft_ms=0&itl_ms=0"))
    whole = await client.chat.completions.create(model="chat", messages=ASK, stop=["."])
    assert whole.choices[0].finish_reason == "stop"
    assert "." not in (whole.choices[0].message.content or "")


async def test_pace(start: Start) -> None:
    client = sdk(await start("sim:?ttft_ms=200&itl_ms=10&tokens=21"))
    began = time.monotonic()
    stream = await client.chat.completions.create(model="chat", messages=ASK, stream=True)
    times = [time.monotonic() - began async for chunk in stream if chunk.choices and chunk.choices[0].delta.content]
    assert 0.2 <= times[0] < 1.5
    assert 0.1 <= times[-1] - times[0] < 1.5


async def test_faults_before_the_first_byte(start: Start) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        await sdk(await start("sim:?error_rate=1")).chat.completions.create(model="chat", messages=ASK, stream=True)
    assert caught.value.status_code == 503
    with pytest.raises(openai.BadRequestError):
        await sdk(await start("sim:?client_error_rate=1")).chat.completions.create(model="chat", messages=ASK)
    slow = sdk(await start("sim:?stall_rate=1")).with_options(timeout=0.3)
    with pytest.raises(openai.APITimeoutError):
        await slow.chat.completions.create(model="chat", messages=ASK)


async def test_cut_streams_and_answers(start: Start) -> None:
    engine = await start("sim:?truncate_rate=1&ttft_ms=0&itl_ms=0&tokens=10")
    async with httpx.AsyncClient(base_url=engine.url) as client:
        got = b""
        with pytest.raises(httpx.RemoteProtocolError):  # noqa: PT012
            async with client.stream("POST", "/v1/chat/completions", json={"messages": ASK, "stream": True}) as answer:
                async for piece in answer.aiter_bytes():
                    got += piece
        assert 0 < got.count(b'"content":" ') < 10
        assert b"[DONE]" not in got
        with pytest.raises(httpx.RemoteProtocolError):
            await client.post("/v1/chat/completions", json={"messages": ASK})


async def test_manners_and_length(start: Start) -> None:
    client = sdk(await start("sim:?ttft_ms=0&itl_ms=0&tokens=40&pii_rate=1&length_rate=1"))
    answer = await client.chat.completions.create(model="chat", messages=ASK)
    assert "@example.com" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "length"


async def test_the_same_seed_gives_the_same_run(start: Start) -> None:
    async def run() -> list[object]:
        client = sdk(await start("sim:?ttft_ms=0&itl_ms=0&tokens=8&error_rate=0.5&seed=3"))
        seen: list[object] = []
        for _ in range(8):
            try:
                seen.append(
                    (await client.chat.completions.create(model="chat", messages=ASK)).choices[0].message.content
                )
            except openai.InternalServerError:
                seen.append(503)
        return seen

    first, second = await run(), await run()
    assert first == second
    assert 503 in first
    assert any(isinstance(s, str) for s in first)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/chat/completions", "not json", 400),
        ("/v1/chat/completions", "[]", 400),
        ("/v1/chat/completions", "{}", 400),
        ("/v1/chat/completions", '{"messages": [{"role": "user"}], "max_tokens": 0.5}', 400),
        ("/v1/chat/completions", '{"model": "other", "messages": [{"role": "user", "content": "x"}]}', 404),
        ("/v1/completions", '{"prompt": {}}', 400),
        ("/v1/embeddings", '{"input": 5}', 400),
        ("/v1/nowhere", "{}", 404),
    ],
)
async def test_bad_requests(start: Start, path: str, body: str, status: int) -> None:
    engine = await start("sim:")
    async with httpx.AsyncClient(base_url=engine.url) as client:
        answer = await client.post(path, content=body)
        assert answer.status_code == status
        assert json.loads(answer.content)["error"]["code"] == status
        assert (await client.get("/health")).status_code == 200


async def test_context_length(start: Start) -> None:
    client = sdk(await start("sim:", max_model_len="20"))
    with pytest.raises(openai.BadRequestError, match="maximum context length is 20"):
        await client.chat.completions.create(model="chat", messages=ASK, max_tokens=30)


async def test_sigterm_lets_streams_finish(start: Start) -> None:
    engine = await start("sim:?ttft_ms=10&itl_ms=20&tokens=30")
    stream = await sdk(engine).chat.completions.create(model="chat", messages=ASK, stream=True)
    stopping: asyncio.Task[None] | None = None
    finish = None
    async for chunk in stream:
        stopping = stopping or asyncio.create_task(engine.stop(10))
        finish = chunk.choices[0].finish_reason or finish
    assert finish == "stop"
    assert stopping is not None
    await stopping
    assert engine.exit_code == 0


async def test_metrics(start: Start) -> None:
    engine = await start("sim:?ttft_ms=0&itl_ms=0&tokens=8")
    await sdk(engine).chat.completions.create(model="chat", messages=ASK)
    async with httpx.AsyncClient(base_url=engine.url) as client:
        assert 'vllm:generation_tokens_total{model_name="chat"} 8' in (await client.get("/metrics")).text


async def test_a_prompt_that_was_read_before_comes_from_the_cache(start: Start) -> None:
    engine = await start("sim:?ttft_ms=1&itl_ms=0&tokens=4&prefill_us_per_token=2000&cache_blocks=64")
    client = sdk(engine)
    system = " ".join(f"word{i}" for i in range(320))

    async def ask(question: str) -> tuple[float, int | None]:
        messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
        began = time.monotonic()
        answer = await client.chat.completions.create(model="chat", messages=messages)  # type: ignore[arg-type]
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        return time.monotonic() - began, answer.usage.prompt_tokens_details.cached_tokens

    cold_s, cold = await ask("and now?")
    warm_s, warm = await ask("and then?")
    assert (cold, warm) == (0, 320)
    assert cold_s >= 0.64 > warm_s or warm_s < cold_s / 2
    response = await client.responses.create(model="chat", input="x")
    assert response.usage is not None
    assert response.usage.input_tokens_details.cached_tokens == 0
    async with httpx.AsyncClient(base_url=engine.url) as http:
        assert 'vllm:prefix_cache_hits_total{model_name="chat"} 320' in (await http.get("/metrics")).text


async def test_prompts_are_read_one_after_the_other_and_a_client_that_leaves_makes_room(start: Start) -> None:
    client = sdk(await start("sim:?ttft_ms=0&itl_ms=0&tokens=1&prefill_us_per_token=3000"))
    prompt = "word " * 100
    began = time.monotonic()
    first = asyncio.create_task(client.completions.create(model="chat", prompt=prompt))
    leaves = asyncio.create_task(client.completions.create(model="chat", prompt=prompt))
    await asyncio.sleep(0.05)
    leaves.cancel()
    third = asyncio.create_task(client.completions.create(model="chat", prompt=prompt))
    answers = await asyncio.gather(first, third)
    assert 0.6 <= time.monotonic() - began < 5
    assert all(a.usage is not None and a.usage.prompt_tokens_details is None for a in answers)
