"""Frames survive any cutting, lines hold no more than may be told, and redaction reaches every string."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.openai_protocol import Operation
from serving.request_log.frames import MOST_BYTES, BrokenFrame, Frame, Unpacker, pack
from serving.request_log.lines import LineMaker, logprobs_in
from serving.request_log.redacting import LEFT_OUT, Redactor
from serving.request_log.tool_calls import tool_calls_in

MAIL = "jane.roe.planted@example.com"
MAKER = LineMaker(b"s" * 32)
REDACTOR = Redactor()


def line(facts: dict[str, Any], prompt: bytes = b"", answer: bytes = b"") -> dict[str, Any]:
    base = {"kind": "request", "operation": "chat", "event_stream": False, "at": 1.0}
    return json.loads(MAKER.line(Frame({**base, **facts}, prompt, answer)))


@given(st.lists(st.tuples(st.binary(max_size=50), st.binary(max_size=50)), max_size=6), st.integers(1, 40))
def test_frames_come_out_as_they_went_in_however_they_are_cut(pairs: list[tuple[bytes, bytes]], cut: int) -> None:
    sent = [Frame({"n": i}, prompt, answer) for i, (prompt, answer) in enumerate(pairs)]
    data = b"".join(pack(*frame) for frame in sent)
    unpacker = Unpacker()
    assert [f for i in range(0, len(data), cut) for f in unpacker.feed(data[i : i + cut])] == sent


@pytest.mark.parametrize("data", [b"\xff" * 12, pack({}).replace(b"{}", b"{!")])
def test_what_is_no_frame_is_refused(data: bytes) -> None:
    with pytest.raises(BrokenFrame):
        Unpacker().feed(data)
    assert MOST_BYTES < 2**32


def test_names_become_marks_and_no_text_is_told_unless_it_may_be() -> None:
    prompt = json.dumps({"messages": [{"role": "user", "content": f"mail {MAIL}"}], "user": MAIL}).encode()
    answer = json.dumps({"choices": [{"message": {"content": MAIL}, "finish_reason": "stop"}]}).encode()
    silent = line({"user": MAIL, "session": MAIL, "may_tell": False}, prompt, answer)
    assert {"prompt", "answers", "may_tell"} & silent.keys() == set()
    told = line({"user": MAIL, "session": MAIL, "may_tell": True}, prompt, answer)
    assert told["user"] == silent["user"]
    assert MAIL not in json.dumps([silent, told])
    assert told["prompt"]["messages"][0]["content"].startswith("mail j")
    assert "user" not in told["prompt"]


@pytest.mark.parametrize("prompt", [b"{", b"[1, 2", b"\xff", b"null"])
def test_a_prompt_that_can_not_be_read_costs_only_its_text(prompt: bytes) -> None:
    assert line({"may_tell": True}, prompt, b"{garbage")["prompt"] is None


CHAT = {"choices": [{"index": 0, "logprobs": {"content": [{"token": "a", "logprob": -0.5}]}},
                    {"index": 1, "logprobs": {"content": [{"token": "z", "logprob": -9}]}}]}  # fmt: skip
COMPLETION = {"choices": [{"logprobs": {"tokens": ["a", "b"], "token_logprobs": [None, -1.25]}}]}


@pytest.mark.parametrize(
    ("data", "streamed", "expected"),
    [
        (json.dumps(CHAT).encode(), False, [-0.5]),
        (json.dumps(COMPLETION).encode(), False, [-1.25]),
        (b"data: " + json.dumps(CHAT).encode() + b"\n\ndata: [DONE]\n\n", True, [-0.5]),
        (b'{"choices": "none"}', False, []),
        (b'{"logprobs": {', False, []),
        (b'data: {"choices": [{"logprobs": {"content": "x"}}]}\n\n', True, []),
        (b'{"choices": [{"logprobs": {"token_logprobs": 5}}]}', False, []),
    ],
)
def test_token_probabilities_are_numbers_without_their_tokens(
    data: bytes, streamed: bool, expected: list[float]
) -> None:
    assert logprobs_in(data, streamed=streamed) == expected


JSON = st.recursive(
    st.sampled_from(["hello", MAIL, f"see {MAIL}", 1, None, True]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", MAIL]), inner, max_size=3),
    max_leaves=12,
)


@given(JSON)
def test_no_string_of_a_body_is_forgotten(body: Any) -> None:
    assert MAIL not in json.dumps(REDACTOR.body({"messages": body}))


def test_what_no_rule_can_read_is_left_out() -> None:
    body = {"messages": [{"content": [{"type": "image_url", "image_url": {"url": "https://x.test/a.png"}}]}],
            "blob": "QUJD" * 1000, "temperature": 0.5}  # fmt: skip
    redacted = REDACTOR.body(body)
    assert redacted["messages"][0]["content"][0]["image_url"] == LEFT_OUT
    assert redacted["blob"] == LEFT_OUT
    assert redacted["temperature"] == 0.5


def test_a_number_that_guardrails_would_let_pass_as_an_orders_is_masked_in_a_log() -> None:
    assert "4111 1111 1111 1111" not in REDACTOR.text("order number 4111 1111 1111 1111")


@pytest.mark.parametrize("part", [
    {"type": "input_image", "image_url": "https://store.example/face.png?signature=c2VjcmV0"},
    {"type": "input_image", "image_url": "data:image/png;base64,iVBORw0KGgo="},
    {"type": "input_file", "file_data": "JVBERi0xLjQ=", "file_url": "https://store.example/cv.pdf?signature=c2VjcmV0"},
    {"type": "input_audio", "audio": "UklGRg=="},
])  # fmt: skip
def test_images_and_files_are_left_out_however_they_are_given(part: dict[str, str]) -> None:
    told = REDACTOR.body({"input": [{"role": "user", "content": [part]}]})
    kept = told["input"][0]["content"][0]
    assert kept == {name: value if name == "type" else LEFT_OUT for name, value in part.items()}


CALL = {"type": "function_call", "name": "send", "arguments": json.dumps({"to": MAIL, "n": 1})}
ADDED = {"type": "response.output_item.added", "output_index": 1, "item": {**CALL, "arguments": ""}}
DONE_ITEM = {"type": "response.output_item.done", "output_index": 1, "item": CALL}
PIECES = [
    {"type": "response.function_call_arguments.delta", "output_index": 1, "delta": CALL["arguments"][i : i + 9]}
    for i in range(0, len(CALL["arguments"]), 9)
]
OTHERS = [
    {"type": "response.created", "response": {"output": []}},
    {"type": "response.output_text.delta", "delta": "hi"},
]


@pytest.mark.parametrize(
    ("operation", "parts"),
    [
        ("chat", [{"choices": [{"message": {"function_call": CALL}}]}]),
        ("chat", [{"choices": [{"delta": {"function_call": {"name": "send", "arguments": a}}}]} for a in ("", )]
         + [{"choices": [{"delta": {"function_call": {"arguments": a}}}]} for a in CALL["arguments"]]),
        ("responses", [{"output": [{"type": "message", "content": []}, CALL]}]),
        ("responses", [*OTHERS, ADDED, *PIECES]),
        ("responses", [*OTHERS, ADDED, *PIECES, DONE_ITEM]),
        ("responses", [*OTHERS, ADDED, *PIECES, {"type": "response.completed", "response": {"output": [CALL]}}]),
        ("responses", [ADDED, {**ADDED, "output_index": "x", "item": {"name": 5}}, *PIECES]),
        ("chat", [{"choices": [{"message": {"tool_calls": [{"function": CALL}, None, {"function": 5}]}}, 7]}]),
    ],
)  # fmt: skip
def test_tool_calls_are_told_redacted_however_they_came(operation: str, parts: list[Any]) -> None:
    streamed = len(parts) > 1
    events = b"".join(b"data: " + json.dumps(part).encode() + b"\n\n" for part in parts)
    data = events + b"data: [DONE]\n\n" if streamed else json.dumps(parts[0]).encode()
    facts = {"operation": operation, "event_stream": streamed}
    told = line({**facts, "may_tell": True}, b"", data)["tool_calls"]
    assert [call["name"] for call in told] == ["send", *[""] * (len(told) - 1)]
    assert json.loads(told[0]["arguments"])["n"] == 1
    assert MAIL not in json.dumps(told)
    assert "tool_calls" not in line({**facts, "may_tell": False}, b"", data)


@pytest.mark.parametrize("depth", [254, 300, 900, 5000])
def test_arguments_that_are_nested_endlessly_cost_only_themselves(depth: int) -> None:
    call = {"name": "send", "arguments": "[" * depth + "]" * depth}
    data = json.dumps({"choices": [{"message": {"tool_calls": [{"function": call}]}}]}).encode()
    assert line({"may_tell": True}, b"", data)["tool_calls"][0]["name"] == "send"


@given(st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["choices", "delta", "message", "tool_calls", "function", "index", "name", "arguments", "output", "item",
         "type", "output_index", "response", "function_call"]), inner, max_size=4), max_leaves=12,
))  # fmt: skip
def test_nothing_that_an_engine_says_makes_reading_its_tool_calls_fail(value: Any) -> None:
    data = json.dumps({"tool_call": 1, "x": value, **(value if isinstance(value, dict) else {})}).encode()
    for operation in (Operation.CHAT, Operation.RESPONSES):
        tool_calls_in(operation, data, event_stream=False)
        tool_calls_in(operation, b"data: " + data + b"\n\n", event_stream=True)
