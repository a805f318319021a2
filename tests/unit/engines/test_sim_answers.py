"""What a simulated engine makes of a request: tools, forms, probabilities, echoes, and what it refuses."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.engines.sim_answers import Choice, make_choice
from serving.engines.sim_openai import answer, stream_events
from serving.engines.sim_requests import CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES, Ask, BadRequest, read_ask
from serving.engines.sim_schema import UnsupportedSchema, json_tokens, make_value
from serving.engines.sim_spec import SimSpec

SPEC = SimSpec(tokens=8)
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "unit": {"enum": ["C", "F"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}}
BOTH = [WEATHER, CLOCK]
NAMED = {"type": "function", "function": {"name": "get_time"}}
HELLO = {"role": "user", "content": "hello"}


def read(route: str = CHAT, **fields: Any) -> Ask:
    return read_ask(route, json.dumps({"model": "chat", **fields}).encode(), "chat")


def chat(text: str = "hello [[mark:7]]", **fields: Any) -> Ask:
    return read(messages=[{"role": "user", "content": text}], **fields)


def choose(ask: Ask) -> Choice:
    return make_choice(ask, ask.prompts[0], SPEC, random.Random(1))


@pytest.mark.parametrize(
    ("case", "text", "fields", "called", "finish"),
    [
        ("a question that names no tool", "hello", {}, [], "stop"),
        ("a question that names one", "use get_time", {}, ["get_time"], "tool_calls"),
        ("a question that names both", "get_weather, get_time", {}, ["get_weather", "get_time"], "tool_calls"),
        ("one at a time", "get_weather, get_time", {"parallel_tool_calls": False}, ["get_weather"], "tool_calls"),
        ("none wanted", "use get_time", {"tool_choice": "none"}, [], "stop"),
        ("one required, none named", "hello", {"tool_choice": "required"}, ["get_weather"], "tool_calls"),
        ("one required, the second named", "get_time", {"tool_choice": "required"}, ["get_time"], "tool_calls"),
        ("the request names it", "hello", {"tool_choice": NAMED}, ["get_time"], "stop"),
    ],
)
def test_tools_are_called(case: str, text: str, fields: dict[str, Any], called: list[str], finish: str) -> None:
    choice = choose(chat(text, tools=BOTH, **fields))
    assert [c.name for c in choice.calls] == called, case
    assert choice.finish_reason == finish


def test_arguments_fit_their_tool_and_carry_the_mark() -> None:
    call = choose(chat("get_weather [[mark:7]]", tools=BOTH)).calls[0]
    arguments = json.loads(call.arguments)
    jsonschema.validate(arguments, WEATHER["function"]["parameters"])  # type: ignore[index]
    assert arguments["city"] == "[[mark:7]]"


def test_after_a_tool_has_answered_words_come() -> None:
    called = {"id": "call_1", "type": "function", "function": {"name": "get_time", "arguments": "{}"}}
    history = [
        {"role": "user", "content": "get_time"},
        {"role": "assistant", "content": None, "tool_calls": [called]},
        {"role": "tool", "content": "noon", "tool_call_id": "call_1"},
    ]
    choice = choose(read(messages=history, tools=BOTH))
    assert (choice.calls, choice.finish_reason) == ((), "stop")


def test_calls_that_are_cut_end_with_length() -> None:
    choice = choose(chat("get_weather, get_time", tools=BOTH, max_tokens=3))
    assert (len(choice.calls), choice.count, choice.finish_reason) == (1, 3, "length")


def chunks(ask: Ask) -> list[dict[str, Any]]:
    events = b"".join(e for step in stream_events(ask, [choose(ask)], "id", "chat", 1) for e in step)
    datas = [line[6:] for line in events.decode().splitlines() if line.startswith("data: ")]
    return [json.loads(d) for d in datas if d != "[DONE]"]


@pytest.mark.parametrize("count", [1, 3, 20])
def test_streamed_calls_join_to_the_whole(count: int) -> None:
    ask = chat("get_weather, get_time", tools=BOTH, stream=True, max_tokens=count)
    whole = answer(ask, [choose(ask)], "id", "chat", 1)["choices"][0]["message"]["tool_calls"]
    joined: dict[int, dict[str, str]] = {}
    for chunk in chunks(ask):
        for delta in chunk["choices"][0]["delta"].get("tool_calls") or ():
            call = joined.setdefault(delta["index"], {"id": "", "name": "", "arguments": ""})
            call["id"] += delta.get("id", "")
            call["name"] += delta["function"].get("name", "")
            call["arguments"] += delta["function"]["arguments"]
    assert [joined[i] for i in sorted(joined)] == [{"id": c["id"], **c["function"]} for c in whole]


FORM = {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]}


@pytest.mark.parametrize(
    ("route", "fields"),
    [
        (CHAT, {"messages": [HELLO], "response_format": {"type": "json_object"}}),
        (
            CHAT,
            {
                "messages": [HELLO],
                "response_format": {"type": "json_schema", "json_schema": {"name": "f", "schema": FORM}},
            },
        ),
        (RESPONSES, {"input": "hello", "text": {"format": {"type": "json_object"}}}),
        (RESPONSES, {"input": "hello", "text": {"format": {"type": "json_schema", "name": "f", "schema": FORM}}}),
    ],
)
def test_forms_are_kept(route: str, fields: dict[str, Any]) -> None:
    choice = choose(read(route, **fields))
    assert isinstance(json.loads(choice.text), dict)
    assert choice.finish_reason == "stop"
    if "schema" in json.dumps(fields):
        jsonschema.validate(json.loads(choice.text), FORM)


@pytest.mark.parametrize("top", [None, 0, 3, 20])
def test_probabilities_of_a_chat(top: int | None) -> None:
    ask = chat(logprobs=True, **({} if top is None else {"top_logprobs": top}))
    rows = answer(ask, [choose(ask)], "id", "chat", 1)["choices"][0]["logprobs"]["content"]
    assert "".join(r["token"] for r in rows) == choose(ask).text
    for row in rows:
        assert bytes(row["bytes"]).decode() == row["token"]
        likely = [o["logprob"] for o in row["top_logprobs"]]
        assert len(likely) == (top or 0) == len({o["token"] for o in row["top_logprobs"]})
        assert likely == sorted(likely, reverse=True)
        assert row["logprob"] <= 0


def test_streamed_probabilities_join_to_the_whole() -> None:
    ask = chat(logprobs=True, top_logprobs=2, stream=True)
    whole = answer(ask, [choose(ask)], "id", "chat", 1)["choices"][0]["logprobs"]["content"]
    given_ = [c["choices"][0]["logprobs"] for c in chunks(ask)]
    assert [row for part in given_ if part for row in part["content"]] == whole


@pytest.mark.parametrize("echo", [False, True])
def test_a_completion_tells_offsets_and_echoes(echo: bool) -> None:
    ask = read(COMPLETIONS, prompt="Once upon", max_tokens=4, echo=echo, logprobs=2, stream=True)
    choice = answer(ask, [choose(ask)], "id", "chat", 1)
    text, told = choice["choices"][0]["text"], choice["choices"][0]["logprobs"]
    assert text.startswith("Once upon") is echo
    assert choice["usage"]["completion_tokens"] == 4
    pairs = zip(told["text_offset"], told["tokens"], strict=True)
    assert all(text[offset:].startswith(token) for offset, token in pairs)
    assert (told["token_logprobs"][0] is None) is echo
    assert "".join(c["choices"][0]["text"] for c in chunks(ask)) == text


@pytest.mark.parametrize(
    ("route", "fields", "param"),
    [
        (CHAT, {}, "messages"),
        (CHAT, {"messages": []}, "messages"),
        (CHAT, {"messages": [{"role": "stranger", "content": "x"}]}, "messages"),
        (CHAT, {"messages": [{"role": "user"}]}, "messages"),
        (CHAT, {"messages": [{"role": "user", "content": []}]}, "messages"),
        (
            CHAT,
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
            "messages",
        ),
        (CHAT, {"messages": [HELLO], "max_tokens": 0}, "max_tokens"),
        (CHAT, {"messages": [HELLO], "max_tokens": "5"}, "max_tokens"),
        (CHAT, {"messages": [HELLO], "temperature": 2.1}, "temperature"),
        (CHAT, {"messages": [HELLO], "n": 129}, "n"),
        (CHAT, {"messages": [HELLO], "stream": "yes"}, "stream"),
        (CHAT, {"messages": [HELLO], "top_logprobs": 3}, "top_logprobs"),
        (CHAT, {"messages": [HELLO], "logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        (CHAT, {"messages": [HELLO], "tool_choice": "required"}, "tool_choice"),
        (CHAT, {"messages": [HELLO], "tools": BOTH, "tool_choice": {"type": "function", "function": {"name": "x"}}},
         "tool_choice"),
        (CHAT, {"messages": [HELLO], "tools": [{"type": "function", "function": {"name": "no spaces"}}]}, "tools"),
        (CHAT, {"messages": [HELLO], "response_format": {"type": "xml"}}, "response_format"),
        (COMPLETIONS, {"prompt": []}, "prompt"),
        (COMPLETIONS, {"prompt": [1, "mixed"]}, "prompt"),
        (EMBEDDINGS, {"input": "x", "dimensions": 65}, "dimensions"),
        (EMBEDDINGS, {"input": "x", "encoding_format": "hex"}, "encoding_format"),
        (RESPONSES, {"input": [{"role": "user"}]}, "input"),
    ],
)  # fmt: skip
def test_what_openai_refuses_is_refused(route: str, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        read(route, **fields)
    assert (caught.value.status, caught.value.param) == (400, param)


def test_a_refusal_never_quotes_the_prompt() -> None:
    with pytest.raises(BadRequest) as caught:
        read(messages=[{"role": "user", "content": ["secret"]}])
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"type": "string", "pattern": "a+"}, "'pattern'"),
        ({"type": "text"}, "no JSON type"),
        ({"$ref": "#/$defs/none"}, "leads nowhere"),
        ({"$ref": "#"}, "itself"),
        ({"$ref": "https://example.com/x"}, "leads out"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "no integer"),
        ({"type": "array", "items": {"const": 1}, "minItems": 2, "uniqueItems": True}, "different items"),
        ({"type": "object", "required": ["a"], "additionalProperties": False}, "may not have"),
        ({"enum": []}, "`enum`"),
        (False, "neither"),
    ],
)
def test_what_cannot_be_made_is_refused(schema: Any, says: str) -> None:
    with pytest.raises(UnsupportedSchema, match=says):
        make_value(schema, random.Random(1))
    if isinstance(schema, dict) and schema.get("type") != "object":
        wanted = {"type": "json_schema", "json_schema": {"name": "f", "schema": schema}}
        with pytest.raises(BadRequest) as caught:
            choose(chat(response_format=wanted))
        assert caught.value.param == "response_format"


def test_forms_that_refer_to_themselves_end() -> None:
    tree = {"type": "object", "properties": {"kids": {"type": "array", "items": {"$ref": "#/$defs/tree"}}}}
    schema = {"$ref": "#/$defs/tree", "$defs": {"tree": tree}}
    jsonschema.validate(make_value(schema, random.Random(1)), schema)


def _numbers(kind: str) -> st.SearchStrategy[dict[str, Any]]:
    def bounded(low: int, more: int, words: tuple[str, ...], step: int) -> dict[str, Any]:
        bounds = {"minimum": low, "exclusiveMinimum": low, "maximum": low + more, "exclusiveMaximum": low + more}
        return {"type": kind, **{w: bounds[w] for w in words}, **({"multipleOf": step} if step > 1 else {})}

    low = st.sampled_from(["minimum", "exclusiveMinimum", ""])
    high = st.sampled_from(["maximum", "exclusiveMaximum", ""])
    words = st.tuples(low, high).map(lambda pair: tuple(w for w in pair if w))
    return st.builds(bounded, st.integers(-50, 50), st.integers(12, 30), words, st.integers(1, 5))


def _strings() -> st.SearchStrategy[dict[str, Any]]:
    def bounded(low: int, more: int) -> dict[str, Any]:
        return {"type": "string", "minLength": low, "maxLength": low + more}

    return st.builds(bounded, st.integers(0, 30), st.integers(0, 30))


def _larger(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    def obj(properties: dict[str, Any], closed: bool) -> dict[str, Any]:
        required = sorted(properties)[::2]
        return {
            "type": "object", "properties": properties, "required": required, "additionalProperties": not closed,
        }  # fmt: skip

    def array(items: dict[str, Any], low: int, more: int) -> dict[str, Any]:
        return {"type": "array", "items": items, "minItems": low, "maxItems": low + more}

    return (
        st.builds(obj, st.dictionaries(st.text(max_size=5), inner, max_size=4), st.booleans())
        | st.builds(array, inner, st.integers(0, 3), st.integers(0, 3))
        | st.builds(lambda parts: {"anyOf": parts}, st.lists(inner, min_size=1, max_size=3))
    )


SCHEMAS = st.recursive(
    _numbers("integer")
    | _numbers("number")
    | _strings()
    | st.builds(lambda values: {"enum": values}, st.lists(st.integers() | st.text(), min_size=1))
    | st.sampled_from([{}, {"type": "boolean"}, {"type": "null"}, {"type": ["string", "null"]}, {"const": 5}]),
    _larger,
    max_leaves=8,
)


@given(SCHEMAS, st.integers(), st.sampled_from(["", "[[mark:x]]"]))
def test_a_value_is_one_that_its_schema_allows(schema: dict[str, Any], seed: int, mark: str) -> None:
    value = make_value(schema, random.Random(seed), mark)
    jsonschema.validate(value, schema)
    assert json.loads("".join(json_tokens(value))) == value
