"""The official Python SDK against a gateway process and simulated engines: tools, errors, aborts, crowds, headers."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import struct
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio
from pydantic import BaseModel

from benchmarks.processes import Processes, free_port, furnish
from serving.gateway.config import GatewayConfig
from tests.sdk.conftest import Simulated, _table

pytestmark = pytest.mark.integration
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "unit": {"enum": ["C", "F"]}},
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}
CLOCK: Any = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object"}}}


def ask(mark: str = "m", text: str = "Tell me of the tide, 潮汐") -> Any:
    return [{"role": "user", "content": f"{text} [[mark:{mark}]]"}]


def sdk(simulated: Simulated, key: str = "everything", **options: Any) -> openai.AsyncOpenAI:
    given = {"base_url": simulated.url, "api_key": simulated.keys.get(key, key), "max_retries": 0, "timeout": 60}
    return openai.AsyncOpenAI(**{**given, **options})


@pytest_asyncio.fixture
async def client(simulated: Simulated) -> AsyncIterator[openai.AsyncOpenAI]:
    async with sdk(simulated) as made:
        yield made


async def running(simulated: Simulated, model: str) -> int:
    """Requests that the model's engine works on."""
    async with httpx.AsyncClient(timeout=10) as http:
        text = (await http.get(simulated.engines[model].url + "/metrics")).text
    return int(next(line.split()[-1] for line in text.splitlines() if line.startswith("vllm:num_requests_running")))


async def wait_for(simulated: Simulated, model: str, count: int, within_s: float = 20) -> None:
    deadline = time.monotonic() + within_s
    while (now := await running(simulated, model)) != count:
        assert time.monotonic() < deadline, f"{model} still works on {now} requests"
        await asyncio.sleep(0.02)


# Tools and forms


async def test_a_tool_is_called_and_its_answer_taken(client: openai.AsyncOpenAI) -> None:
    first = await client.chat.completions.create(
        model="chat", messages=ask(text="get_weather please"), tools=[WEATHER, CLOCK], tool_choice="auto"
    )
    assert (first.choices[0].finish_reason, first.choices[0].message.content) == ("tool_calls", None)
    assert first.choices[0].message.tool_calls is not None
    (call,) = first.choices[0].message.tool_calls
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)["city"]) == ("get_weather", "[[mark:m]]")
    answer: Any = {"role": "tool", "tool_call_id": call.id, "content": "rain"}
    turns = [*ask(text="get_weather please"), first.choices[0].message.model_dump(exclude_none=True), answer]
    second = await client.chat.completions.create(model="chat", messages=turns, tools=[WEATHER, CLOCK])
    assert (second.choices[0].finish_reason, second.choices[0].message.tool_calls) == ("stop", None)


@pytest.mark.parametrize(
    ("choice", "called", "finish"),
    [
        ("none", [], "stop"),
        ("required", ["get_weather"], "tool_calls"),
        ({"type": "function", "function": {"name": "get_time"}}, ["get_time"], "stop"),
    ],
)
async def test_the_choice_of_tools_is_kept(client: openai.AsyncOpenAI, choice: Any, called: list[str], finish: str) -> (
    None
):  # fmt: skip
    answer = await client.chat.completions.create(
        model="chat", messages=ask(), tools=[WEATHER, CLOCK], tool_choice=choice
    )
    calls = answer.choices[0].message.tool_calls or []
    assert [c.function.name for c in calls if c.type == "function"] == called
    assert answer.choices[0].finish_reason == finish


async def test_arguments_of_two_calls_are_streamed(client: openai.AsyncOpenAI) -> None:
    seen: list[str] = []
    async with client.chat.completions.stream(
        model="chat", messages=ask(text="get_weather and get_time"), tools=[WEATHER, CLOCK]
    ) as stream:
        async for event in stream:
            seen += [event.arguments_delta] if event.type == "tool_calls.function.arguments.delta" else []
        whole = await stream.get_final_completion()
    calls = whole.choices[0].message.tool_calls or []
    assert [c.function.name for c in calls] == ["get_weather", "get_time"]
    assert "".join(seen) == "".join(c.function.arguments for c in calls)
    assert json.loads(calls[0].function.arguments)["city"] == "[[mark:m]]"
    assert len(seen) > 10


async def test_the_responses_api_calls_functions(client: openai.AsyncOpenAI) -> None:
    tool: Any = {"type": "function", "strict": True, **{k: WEATHER["function"][k] for k in ("name", "parameters")}}
    given: dict[str, Any] = {"model": "chat", "input": "get_weather [[mark:f]]", "tools": [tool]}
    whole = await client.responses.create(**given)
    (item,) = whole.output
    assert item.type == "function_call"
    assert json.loads(item.arguments)["city"] == "[[mark:f]]"
    deltas, done = "", ""
    async for event in await client.responses.create(**given, stream=True):
        deltas += event.delta if event.type == "response.function_call_arguments.delta" else ""
        done += event.arguments if event.type == "response.function_call_arguments.done" else ""
    assert json.loads(deltas) == json.loads(done)


class Tide(BaseModel):
    place: str
    level: float
    rising: bool


async def test_answers_become_the_models_of_a_program(client: openai.AsyncOpenAI) -> None:
    parsed = await client.chat.completions.parse(model="chat", messages=ask("p"), response_format=Tide)
    assert parsed.choices[0].message.parsed is not None
    assert parsed.choices[0].message.parsed.place == "[[mark:p]]"
    response = await client.responses.parse(model="chat", input="tide [[mark:q]]", text_format=Tide)
    assert response.output_parsed is not None
    assert response.output_parsed.place == "[[mark:q]]"
    loose = await client.chat.completions.create(model="chat", messages=ask(), response_format={"type": "json_object"})
    assert isinstance(json.loads(loose.choices[0].message.content or ""), dict)


async def test_embeddings_as_numbers_and_as_base64(client: openai.AsyncOpenAI) -> None:
    texts = ["tide", "潮汐"]
    by_default = await client.embeddings.create(model="chat", input=texts)  # the SDK asks for base64 and decodes it
    numbers = await client.embeddings.create(model="chat", input=texts, encoding_format="float")
    packed = await client.embeddings.create(model="chat", input=texts, encoding_format="base64")
    short = await client.embeddings.create(model="chat", input="tide", dimensions=8)
    for i in range(2):
        assert numbers.data[i].embedding == pytest.approx(by_default.data[i].embedding, abs=1e-6)
        raw = base64.b64decode(str(packed.data[i].embedding))
        assert list(struct.unpack(f"<{len(raw) // 4}f", raw)) == pytest.approx(numbers.data[i].embedding, abs=1e-6)
    assert len(short.data[0].embedding) == 8
    assert numbers.usage.total_tokens > 0


# Errors


async def chat(client: openai.AsyncOpenAI, model: str = "chat", **fields: Any) -> Any:
    return await client.chat.completions.create(model=model, messages=ask(), **fields)


@pytest.mark.parametrize("key", ["nonsense", "tg-key000000001-guess", "expired"])
async def test_wrong_keys_are_told_so(simulated: Simulated, key: str) -> None:
    async with sdk(simulated, key) as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            await chat(client)
        assert (caught.value.status_code, caught.value.code) == (401, "invalid_api_key")
        with pytest.raises(openai.AuthenticationError):
            await client.models.list()


async def test_a_key_may_do_what_its_scopes_say(simulated: Simulated) -> None:
    async with sdk(simulated, "plain") as plain, sdk(simulated, "one model") as narrow, sdk(simulated) as all_of_it:
        with pytest.raises(openai.PermissionDeniedError) as caught:
            await chat(plain, "chat@1.0.0")
        assert (caught.value.status_code, caught.value.param) == (403, "model")
        assert (await chat(all_of_it, "chat@1.0.0")).model == "chat"
        with pytest.raises(openai.NotFoundError):
            await chat(all_of_it, "chat@9.9.9")
        with pytest.raises(openai.NotFoundError):
            await chat(narrow)
        assert [m.id async for m in narrow.models.list()] == ["other"]
        assert (await chat(narrow, "other")).choices[0].message.content


async def test_a_limited_client_comes_back_when_it_was_told_to(simulated: Simulated) -> None:
    async with sdk(simulated, "a hundred requests a minute", timeout=120) as client:
        create = client.chat.completions.with_raw_response.create
        first = await create(model="chat", messages=ask())
        assert first.headers["x-ratelimit-limit-requests"] == "100"
        await asyncio.gather(*(chat(client) for _ in range(99)))  # within seconds: one comes back every 0.6 s
        results = await asyncio.gather(*(chat(client) for _ in range(20)), return_exceptions=True)
        refused = next(r for r in results if isinstance(r, openai.RateLimitError))
        assert (refused.code, refused.type) == ("rate_limit_exceeded", "requests")
        assert int(refused.response.headers["retry-after"]) >= 1
        came: list[tuple[float, httpx.Response]] = []
        sent: list[float] = []

        async def note_sent(request: httpx.Request) -> None:
            sent.append(time.monotonic())

        async def note_answer(response: httpx.Response) -> None:
            came.append((time.monotonic(), response))

        hooks: Any = {"request": [note_sent], "response": [note_answer]}
        async with sdk(
            simulated, "a hundred requests a minute", max_retries=5, http_client=httpx.AsyncClient(event_hooks=hooks)
        ) as patient:
            await asyncio.gather(*(chat(client) for _ in range(5)), return_exceptions=True)
            await chat(patient)
        assert came[-1][1].status_code == 200
        for (at, response), again_at in zip(came[:-1], sent[1:], strict=True):
            assert response.status_code == 429
            assert again_at - at >= int(response.headers["retry-after-ms"]) / 1000 - 0.001


async def test_what_no_waiting_helps_is_not_tried_again(simulated: Simulated) -> None:
    async with sdk(simulated, "few tokens", max_retries=5) as client:
        with pytest.raises(openai.RateLimitError, match="too large") as caught:
            await chat(client, max_tokens=60)
        assert caught.value.response.request.headers["x-stainless-retry-count"] == "0"


async def test_one_at_a_time_means_one_at_a_time(simulated: Simulated) -> None:
    async with sdk(simulated, "one at a time") as client:
        stream = await chat(client, "long", stream=True)
        with pytest.raises(openai.RateLimitError, match="under way"):
            await chat(client)
        await stream.close()
        await wait_for(simulated, "long", 0)
        async with asyncio.timeout(20):
            while True:
                try:
                    await chat(client)
                    break
                except openai.RateLimitError:
                    await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("model", "kind", "status"),
    [
        ("failing", openai.InternalServerError, 503),
        ("fussy", openai.BadRequestError, 400),
        ("cut", openai.InternalServerError, 502),
        ("gone", openai.InternalServerError, 503),
    ],
)
async def test_what_goes_wrong_behind_the_gateway_is_an_error_of_the_sdk(
    client: openai.AsyncOpenAI, model: str, kind: type[openai.APIStatusError], status: int
) -> None:
    with pytest.raises(kind) as caught:
        await chat(client, model)
    assert caught.value.status_code == status
    assert caught.value.response.headers["x-request-id"]
    assert "mark" not in str(caught.value)  # no prompt in a message


async def test_a_stream_that_breaks_off_is_an_error_not_an_end(client: openai.AsyncOpenAI) -> None:
    got = ""
    with pytest.raises(openai.APIError, match=r"lost in the middle|before its end"):  # noqa: PT012
        async for chunk in await chat(client, "cut", stream=True):
            got += chunk.choices[0].delta.content or ""
    assert got.startswith("[[mark:m]]")


async def test_a_client_that_gives_up_gets_its_own_error(simulated: Simulated) -> None:
    async with sdk(simulated, timeout=0.3) as client:
        with pytest.raises(openai.APITimeoutError):
            await chat(client, "silent")
    await wait_for(simulated, "silent", 0)


async def test_a_request_ends_with_the_time_that_it_names(simulated: Simulated, client: openai.AsyncOpenAI) -> None:
    began = time.monotonic()
    with pytest.raises(openai.InternalServerError) as caught:
        await chat(client, "silent", extra_headers={"x-request-timeout": "0.5"})
    assert (caught.value.status_code, caught.value.code) == (504, "timeout")
    assert 0.5 <= time.monotonic() - began < 20
    await wait_for(simulated, "silent", 0)
    with pytest.raises(openai.APIError, match="in time"):
        async for _ in await chat(client, "long", stream=True, extra_headers={"x-request-timeout": "0.5"}):
            pass
    for wrong in ("soon", "-1", "nan"):
        with pytest.raises(openai.BadRequestError):
            await chat(client, extra_headers={"x-request-timeout": wrong})


async def test_a_body_above_the_limit_is_refused(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        await client.completions.create(model="chat", prompt="x" * 1_100_000)
    assert (caught.value.status_code, caught.value.code) == (413, "request_too_large")


async def test_a_gateway_that_dies_is_a_lost_connection(simulated: Simulated, tmp_path: Path) -> None:
    furnish(tmp_path, _table())
    endpoints = {"silent": (simulated.engines["silent"].url,), "long": (simulated.engines["long"].url,)}
    config = GatewayConfig(
        home=tmp_path, port=free_port(), admin_port=free_port(), control_url=None, endpoints=endpoints
    )
    with Processes(tmp_path) as processes:
        gateway = processes.gateway(config)
        async with openai.AsyncOpenAI(base_url=gateway.url + "/v1", api_key="none", max_retries=0) as client:
            waiting = asyncio.create_task(chat(client, "silent"))
            stream = await chat(client, "long", stream=True)
            await anext(stream)
            await wait_for(simulated, "silent", 1)
            gateway.kill()
            with pytest.raises(openai.APIConnectionError):
                await waiting
            with pytest.raises((openai.APIConnectionError, httpx.TransportError)):
                async for _ in stream:
                    pass
            with pytest.raises(openai.APIConnectionError):
                await chat(client, "long")
    await wait_for(simulated, "silent", 0)  # a dead gateway's engines stop working for it
    await wait_for(simulated, "long", 0)


# Streams that are left, crowds, headers


@pytest.mark.parametrize("face", ["chat", "completions", "responses"])
async def test_leaving_a_stream_stops_the_engine(simulated: Simulated, client: openai.AsyncOpenAI, face: str) -> None:
    stream: Any = await {
        "chat": lambda: chat(client, "long", stream=True),
        "completions": lambda: client.completions.create(model="long", prompt="x", max_tokens=1000, stream=True),
        "responses": lambda: client.responses.create(model="long", input="x", stream=True),
    }[face]()
    await anext(stream)
    assert await running(simulated, "long") == 1
    await stream.close()
    await wait_for(simulated, "long", 0)  # it would go on for more than a minute


async def test_everybody_in_a_crowd_gets_their_own_answer(simulated: Simulated) -> None:
    chance = random.Random(5)

    async def one(client: openai.AsyncOpenAI, mark: str, stream: bool) -> None:
        if not stream:
            answer = await client.chat.completions.create(model="chat", messages=ask(mark))
            text = answer.choices[0].message.content or ""
        else:
            text = ""
            async for chunk in await client.chat.completions.create(model="chat", messages=ask(mark), stream=True):
                text += chunk.choices[0].delta.content or ""
        assert text.startswith(f"[[mark:{mark}]]")
        assert text.count("[[mark:") == 1
        assert len(text.split()) == 12

    async with sdk(simulated) as client:
        gate = asyncio.Semaphore(50)

        async def through(i: int) -> None:
            async with gate:
                await one(client, f"crowd-{i}", chance.random() < 0.5)

        await asyncio.gather(*(through(i) for i in range(400)))


async def test_headers_depend_on_what_the_key_may_see(simulated: Simulated) -> None:
    async with sdk(simulated) as seeing, sdk(simulated, "plain") as blind:
        shown = await seeing.chat.completions.with_raw_response.create(
            model="chat", messages=ask(), extra_headers={"x-request-id": "mine", "x-client-request-id": "my-7"}
        )
        assert (shown.headers["x-tidegate-version"], shown.headers["x-tidegate-role"]) == ("1.0.0", "stable")
        assert shown.headers["x-request-id"] not in ("", "mine")  # signed by the gateway: feedback relies on it
        assert shown.headers["x-client-request-id"] in ("mine", "my-7")
        hidden = await blind.chat.completions.with_raw_response.create(model="chat", messages=ask())
        assert not [name for name in hidden.headers if name.startswith("x-tidegate")]
        assert hidden.headers["x-request-id"]
        async with seeing.chat.completions.with_streaming_response.create(
            model="chat", messages=ask(), stream=True
        ) as streamed:
            assert streamed.headers["content-type"].startswith("text/event-stream")
            assert streamed.headers["x-request-id"]
            lines = [line async for line in streamed.iter_lines()]
        assert lines[-1] == "data: [DONE]" or lines[-2:] == ["data: [DONE]", ""]
