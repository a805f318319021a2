"""The official Python SDK, sync and async: every call shape that any engine behind the gateway must answer.

    TIDEGATE_TEST_URL=http://127.0.0.1:8000 pytest tests/sdk/test_python_basic.py

runs the same against a platform that is up, with whatever engine it has (`TIDEGATE_TEST_MODEL`, `TIDEGATE_TEST_KEY`).
"""

from __future__ import annotations

import inspect
import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import pytest_asyncio

from tests.sdk.conftest import Target

pytestmark = pytest.mark.integration
FORM = {
    "type": "object",
    "properties": {"tide": {"enum": ["high", "low"]}},
    "required": ["tide"],
    "additionalProperties": False,
}


async def done(value: Any) -> Any:
    """What a call of either client gives."""
    return await value if inspect.isawaitable(value) else value


async def each(stream: Any) -> list[Any]:
    """All events of a stream of either client."""
    if hasattr(stream, "__aiter__"):
        return [event async for event in stream]
    return list(stream)


class Face:
    """One of the two clients, and the model that it asks."""

    def __init__(self, client: openai.OpenAI | openai.AsyncOpenAI, target: Target) -> None:
        self.client: Any = client
        self.target = target

    def ask(self, mark: str = "m") -> list[dict[str, Any]]:
        return [{"role": "user", "content": f"Tell me of the tide, 潮汐 [[mark:{mark}]]"}]

    async def chat(self, **fields: Any) -> Any:
        given = {"model": self.target.model, "messages": self.ask(), "max_tokens": 8, **fields}
        return await done(self.client.chat.completions.create(**given))

    def expect(self, text: str | None, mark: str = "m") -> None:
        """The answer is one to the question that carried this mark."""
        assert text
        if self.target.simulated:
            assert text.startswith(f"[[mark:{mark}]]")


@pytest_asyncio.fixture(params=["sync", "async"])
async def face(request: pytest.FixtureRequest, target: Target) -> AsyncIterator[Face]:
    options: dict[str, Any] = {"base_url": target.url, "api_key": target.key, "max_retries": 0, "timeout": 120}
    if request.param == "sync":
        with openai.OpenAI(**options) as client:
            yield Face(client, target)
    else:
        async with openai.AsyncOpenAI(**options) as other:
            yield Face(other, target)


async def test_models_are_listed_and_found(face: Face) -> None:
    listed = await done(face.client.models.list())
    assert face.target.model in [m.id for m in listed.data]
    found = await done(face.client.models.retrieve(face.target.model))
    assert (found.id, found.object) == (face.target.model, "model")


async def test_a_chat_is_answered_with_usage(face: Face) -> None:
    answer = await face.chat()
    face.expect(answer.choices[0].message.content)
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.model == face.target.model
    assert 0 < answer.usage.completion_tokens <= 8
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
async def test_an_answer_is_cut_at_its_limit(face: Face, limit: str) -> None:
    given = {"max_tokens": openai.omit, limit: 3}
    answer = await face.chat(**given, extra_body={"ignore_eos": True})
    assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (3, "length")


@pytest.mark.parametrize("usage", [None, False, True])
async def test_a_chat_is_streamed(face: Face, usage: bool | None) -> None:
    options = {} if usage is None else {"stream_options": {"include_usage": usage}}
    chunks = await each(await face.chat(stream=True, **options))
    choices = [c for chunk in chunks for c in chunk.choices]
    face.expect("".join(c.delta.content or "" for c in choices))
    assert choices[0].delta.role == "assistant"
    assert [c.finish_reason for c in choices if c.finish_reason] in (["stop"], ["length"])
    counted = [chunk.usage for chunk in chunks if chunk.usage]
    if usage:
        assert (len(counted), chunks[-1].usage) == (1, counted[0])
        assert 0 < counted[0].completion_tokens <= 8
    else:
        assert counted == []


async def test_several_choices_are_given(face: Face) -> None:
    answer = await face.chat(n=2, temperature=1.0)
    assert [c.index for c in answer.choices] == [0, 1]
    for choice in answer.choices:
        face.expect(choice.message.content)
    streamed = await each(await face.chat(n=2, temperature=1.0, stream=True))
    assert {c.index for chunk in streamed for c in chunk.choices if c.finish_reason} == {0, 1}


async def test_an_answer_ends_before_a_stop_string(face: Face) -> None:
    whole = (await face.chat(temperature=0, max_tokens=8)).choices[0].message.content
    stop = whole.split()[-1]
    answer = await face.chat(temperature=0, max_tokens=8, stop=[stop, "!never!"])
    assert stop not in (answer.choices[0].message.content or "") or not face.target.simulated
    assert answer.choices[0].finish_reason in ("stop", "length")


async def test_probabilities_of_tokens_are_told(face: Face) -> None:
    answer = await face.chat(logprobs=True, top_logprobs=3)
    rows = answer.choices[0].logprobs.content
    assert len(rows) == answer.usage.completion_tokens
    assert all(row.logprob <= 0 and len(row.top_logprobs) >= 3 for row in rows)
    chunks = await each(await face.chat(logprobs=True, top_logprobs=1, stream=True))
    streamed = [r for k in chunks for c in k.choices if c.logprobs and c.logprobs.content for r in c.logprobs.content]
    assert 0 < len(streamed) <= 8


async def test_a_form_is_kept(face: Face) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "tide", "schema": FORM, "strict": True}}
    answer = await face.chat(response_format=wanted, max_tokens=64)
    assert json.loads(answer.choices[0].message.content)["tide"] in ("high", "low")


async def test_content_may_come_in_parts(face: Face) -> None:
    parts = [{"type": "text", "text": "Tell me"}, {"type": "text", "text": "of the tide [[mark:parts]]"}]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}]
    answer = await face.chat(messages=messages)
    face.expect(answer.choices[0].message.content, "parts")


async def test_texts_are_continued(face: Face) -> None:
    create = face.client.completions.create
    given = {"model": face.target.model, "prompt": "Once upon a tide [[mark:c]]", "max_tokens": 5}
    plain = await done(create(**given))
    face.expect(plain.choices[0].text, "c")
    assert plain.usage.completion_tokens <= 5
    echoed = await done(create(**given, echo=True))
    assert echoed.choices[0].text.startswith(given["prompt"])
    pieces = await each(await done(create(**given, stream=True)))
    face.expect("".join(c.text for piece in pieces for c in piece.choices), "c")
    told = await done(create(**given, logprobs=2))
    assert len(told.choices[0].logprobs.tokens) == told.usage.completion_tokens


async def test_several_prompts_get_an_answer_each(face: Face) -> None:
    prompts = [f"Once [[mark:{i}]]" for i in range(3)]
    answer = await done(
        face.client.completions.create(model=face.target.model, prompt=prompts, max_tokens=4, n=2, temperature=1.0)
    )
    assert [c.index for c in answer.choices] == list(range(6))
    for choice in answer.choices:
        face.expect(choice.text, str(choice.index // 2))


async def test_the_responses_api_answers(face: Face) -> None:
    given = {"model": face.target.model, "input": "Tell me of the tide [[mark:r]]", "max_output_tokens": 16}
    whole = await done(face.client.responses.create(**given))
    face.expect(whole.output_text, "r")
    assert whole.status in ("completed", "incomplete")
    assert 0 < whole.usage.output_tokens <= 16
    events = await each(await done(face.client.responses.create(**given, stream=True)))
    face.expect("".join(e.delta for e in events if e.type == "response.output_text.delta"), "r")
    assert events[0].type == "response.created"
    assert events[-1].type in ("response.completed", "response.incomplete")
    assert [e.sequence_number for e in events] == list(range(len(events)))


async def test_an_unknown_model_is_not_found(face: Face) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await face.chat(model="nobody")
    assert (caught.value.code, caught.value.status_code) == ("model_not_found", 404)
    with pytest.raises(openai.NotFoundError):
        await done(face.client.models.retrieve("nobody"))


@pytest.mark.parametrize(
    "wrong", [{"messages": []}, {"temperature": 9}, {"max_tokens": -1}, {"messages": [{"role": "user", "content": 5}]}]
)
async def test_a_bad_request_is_told_so(face: Face, wrong: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await face.chat(**wrong)
    assert caught.value.response.json()["error"]["message"]


async def test_headers_say_what_there_is_to_know(face: Face) -> None:
    create = face.client.chat.completions.with_raw_response.create
    raw = await done(create(model=face.target.model, messages=face.ask(), max_tokens=4))
    assert raw.headers["content-type"].startswith("application/json")
    assert raw.headers["x-request-id"] == raw.request_id
    again = await done(create(model=face.target.model, messages=face.ask(), max_tokens=4))
    assert again.request_id != raw.request_id
    parsed = await done(raw.parse())
    assert parsed._request_id == raw.request_id
