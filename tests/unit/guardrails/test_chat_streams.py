# ruff: noqa: E501 - tables of texts
from __future__ import annotations

import asyncio
import copy
import json

import pytest

from guardrails.chat_streams import ChatStep, ChatStreamGuard, hold_texts
from guardrails.checks.base import Context, Part
from guardrails.enforcement import activate
from guardrails.model_checks.memory import MemoryModelChecks
from guardrails.pipeline import Guardrails
from guardrails.policies.shipped import Shipped, shipped_policy
from guardrails.policy import parse_policy
from guardrails.responses_streams import ResponsesStreamGuard
from guardrails.streaming import StreamGuard
from guardrails.verdicts import Direction

POLICY = """
schema: 1
name: test
hold_back: sentence
checks:
  - {name: pii, direction: output, action: redact}
  - {name: words, check: banned-words, direction: output, action: block, options: {words: [damnation, 傻逼]}}
"""
MODEL = """
  - {name: judge, check: http, direction: output, action: block, on_error: fail_closed, options: {url: "http://g:1", model: m}}
"""


def maker(policy: str):
    active = activate(parse_policy(policy))
    return lambda part: StreamGuard(active.policy, active.output, Context(Direction.OUTPUT, part=part))


def chat(policy: str = POLICY) -> ChatStreamGuard:
    return ChatStreamGuard(maker(policy))


def chunk(index: int = 0, finish: str | None = None, **delta) -> dict:
    return {
        "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "chat",
        "choices": [{"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}],
    }  # fmt: skip


def run(engine: ChatStreamGuard, chunks: list[dict]) -> tuple[list[dict], list[ChatStep]]:
    before = copy.deepcopy(chunks)
    steps = [engine.feed(part, 0.0) for part in chunks] + [engine.finish(0.0)]
    assert chunks == before, "what comes in is not changed"
    return [sent for step in steps for sent in step.objects], steps


def text_of(sent: list[dict], key: str = "content", index: int = 0) -> str:
    deltas = [c["delta"] for o in sent for c in o.get("choices", ()) if c["index"] == index]
    return "".join(delta.get(key) or "" for delta in deltas)


def reasons(sent: list[dict]) -> dict[int, str]:
    return {c["index"]: c["finish_reason"] for o in sent for c in o.get("choices", ()) if c.get("finish_reason")}


def said(text: str, index: int = 0, size: int = 3) -> list[dict]:
    return [chunk(index, content=text[at : at + size]) for at in range(0, len(text), size)]


def test_a_clean_answer_arrives_whole_and_in_its_shape() -> None:
    text = "The tide turns. 潮水涨落。Twice a day."
    usage = {**chunk(), "choices": [], "usage": {"total_tokens": 9}}
    sent, _ = run(chat(), [chunk(role="assistant", content=""), *said(text), chunk(finish="stop"), usage])
    assert text_of(sent) == text
    assert reasons(sent) == {0: "stop"}
    assert sent[0]["choices"][0]["delta"] == {"role": "assistant"}
    assert sent[-1] == usage
    assert all(o["id"] == "chatcmpl-1" and o["model"] == "chat" for o in sent)


def test_a_blocked_choice_ends_with_content_filter_and_generation_is_cancelled() -> None:
    sent, steps = run(chat(), [*said("All is well. What damnation. And then more."), chunk(finish="stop")])
    assert text_of(sent) == "All is well. "
    assert reasons(sent) == {0: "content_filter"}
    assert any(step.cancel for step in steps)
    assert "damnation" not in json.dumps(sent)


def test_choices_are_judged_each_for_itself() -> None:
    parts = [
        p
        for pair in zip(said("你好。傻逼。还有。", 0, 2), said("Good day. So it is.", 1, 5), strict=False)
        for p in pair
    ]
    sent, steps = run(chat(), [*parts, *said(" Bye.", 1), chunk(0, "stop"), chunk(1, "length")])
    assert text_of(sent, index=0) == "你好。"
    assert text_of(sent, index=1).startswith("Good day. So it is.")
    assert reasons(sent) == {0: "content_filter", 1: "length"}
    assert not any(step.cancel for step in steps[:-3]), "the other choice still runs"


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "refusal", "something_new"])
def test_every_text_in_a_delta_is_checked(key: str) -> None:
    sent, _ = run(chat(), [chunk(**{key: "call 138001"}), chunk(**{key: "38000 now"}), chunk(finish="stop")])
    assert text_of(sent, key) == "call *******8000 now"


def test_arguments_of_tools_are_checked_and_stay_json() -> None:
    def call(arguments: str, **head) -> dict:
        return chunk(
            tool_calls=[{"index": 0, **head, "function": {**head.get("function", {}), "arguments": arguments}}]
        )

    first = chunk(
        tool_calls=[{"index": 0, "id": "c1", "type": "function", "function": {"name": "send", "arguments": ""}}]
    )
    sent, _ = run(chat(), [first, call('{"to": "john@exa'), call('mple.com", "n": 1}'), chunk(finish="tool_calls")])
    calls = [c for o in sent for c in o["choices"][0]["delta"].get("tool_calls", ())]
    assert calls[0]["function"]["name"] == "send"
    assert json.loads("".join(c["function"]["arguments"] for c in calls)) == {"to": "j***@e******.com", "n": 1}
    assert reasons(sent) == {0: "tool_calls"}


def test_two_calls_of_tools_are_two_texts() -> None:
    def call(index: int, arguments: str) -> dict:
        return chunk(tool_calls=[{"index": index, "function": {"arguments": arguments}}])

    sent, _ = run(chat(), [call(0, '"138001'), call(1, '"38000"'), call(0, '1"'), chunk(finish="tool_calls")])
    found = {0: "", 1: ""}
    for o in sent:
        for c in o["choices"][0]["delta"].get("tool_calls", ()):
            found[c["index"]] += c["function"]["arguments"]
    assert found == {0: '"1380011"', 1: '"38000"'}


@pytest.mark.parametrize(("text", "kept"), [("The sea is calm", True), ("call 13800138000", False)])
def test_log_probabilities_come_last_and_only_with_an_unchanged_text(text: str, kept: bool) -> None:
    parts = said(text)
    for part in parts:
        part["choices"][0]["logprobs"] = {"content": [{"token": part["choices"][0]["delta"]["content"], "logprob": -1}]}
    sent, _ = run(chat(), [*parts, chunk(finish="stop")])
    found = [o["choices"][0].get("logprobs") for o in sent if o["choices"][0].get("logprobs")]
    assert len(found) == (1 if kept else 0)
    if kept:
        assert "".join(t["token"] for t in found[0]["content"]) == text
    else:
        assert "138001" not in json.dumps(sent)


def test_an_answer_that_breaks_off_lets_go_what_was_checked() -> None:
    sent, _ = run(chat(), said("All is well. And th"))
    assert text_of(sent) == "All is well. And th"
    assert reasons(sent) == {}


def test_a_check_that_can_t_run_ends_the_stream_with_an_error_object() -> None:
    engine = chat(POLICY + MODEL)
    steps = [engine.feed(part, 0.0) for part in said("One. Two. Three")]
    (work, *_) = [w for step in steps for w in step.work]
    step = engine.resolve(work, "CheckUnavailable", 0.0)
    assert step.failed
    assert step.objects[-1]["error"]["code"] == "guardrail_unavailable"
    assert "content_filter" not in json.dumps(step.objects)
    assert engine.feed(chunk(content="more"), 0.0).objects == ()
    assert engine.finished


def test_usage_waits_for_the_verdict_before_it() -> None:
    engine = chat(POLICY + MODEL)
    usage = {**chunk(), "choices": [], "usage": {"total_tokens": 3}}
    steps = [engine.feed(part, 0.0) for part in [*said("One"), chunk(finish="stop"), usage]] + [engine.finish(0.0)]
    assert [o for step in steps for o in step.objects] == []
    (work,) = [w for step in steps for w in step.work]
    sent = list(engine.resolve(work, [], 0.0).objects)
    assert text_of(sent) == "One"
    assert reasons(sent) == {0: "stop"}
    assert sent[-1] == usage


def test_observing_passes_chunks_on_as_they_came() -> None:
    active = activate(shipped_policy(Shipped.JUDGE))
    engine = ChatStreamGuard(
        lambda part: StreamGuard(active.policy, active.output, Context(Direction.OUTPUT, part=part)), observes_only=True
    )
    chunks = [chunk(role="assistant", content=""), *said("call 13800138000"), chunk(finish="stop")]
    sent, steps = run(engine, chunks)
    assert sent == chunks
    assert "pii" in {located.finding.check for step in steps for located in step.findings}


def test_an_empty_answer_is_checked_too() -> None:
    engine = chat("schema: 1\nname: a\nchecks: [{name: empty, action: block, mode: buffer_full}]")
    sent, _ = run(engine, [chunk(role="assistant"), chunk(finish="stop")])
    assert reasons(sent) == {0: "content_filter"}


def test_completions_have_their_own_shape() -> None:
    def part(text: str, finish: str | None = None) -> dict:
        return {"id": "cmpl-1", "choices": [{"index": 0, "text": text, "logprobs": None, "finish_reason": finish}]}

    sent, _ = run(chat(), [part("Fine. What dam"), part("nation. More"), part("", "stop")])
    assert "".join(o["choices"][0]["text"] for o in sent) == "Fine. "
    assert sent[-1]["choices"][0] == {"index": 0, "text": "", "logprobs": None, "finish_reason": "content_filter"}


def test_texts_of_whole_answers_are_found_and_can_be_put_back() -> None:
    answers = [
        {"choices": [{"index": 1, "message": {"role": "assistant", "content": "a", "reasoning_content": "b",
            "tool_calls": [{"function": {"name": "f", "arguments": "c"}}]}}]},
        {"choices": [{"index": 0, "text": "a"}]},
        {"output": [{"type": "reasoning", "summary": [{"text": "a"}]}, {"type": "message", "content": [{"text": "b"}, {"refusal": "c"}]},
            {"type": "function_call", "arguments": "d"}]},
    ]  # fmt: skip
    found = []
    for answer in answers:
        for slot in hold_texts(answer):
            found.append((slot.choice, slot.part, slot.text))
            slot.put("X")
        assert {slot.text for slot in hold_texts(answer)} == {"X"}
    assert found == [
        (1, Part.CONTENT, "a"), (1, Part.REASONING, "b"), (1, Part.ARGUMENTS, "c"), (0, Part.CONTENT, "a"),
        (0, Part.REASONING, "a"), (1, Part.CONTENT, "b"), (1, Part.REFUSAL, "c"), (2, Part.ARGUMENTS, "d"),
    ]  # fmt: skip


PHONE = "call 13800138000 now"


@pytest.mark.parametrize("answer", [
    {"output": [{"type": "custom_tool_call", "input": PHONE}]},
    {"output": [{"type": "code_interpreter_call", "code": PHONE}]},
    {"output": [{"type": "mcp_call", "arguments": "", "output": PHONE}]},
    {"output": [{"type": "message", "content": [{"text": "a"}]}], "output_messages": [{"message": PHONE, "tokens": [1]}]},
    {"choices": [{"index": 0, "message": {"tool_calls": [{"type": "custom", "custom": {"name": "f", "input": PHONE}}]}}]},
    {"choices": [{"index": 0, "message": {"content": [{"type": "text", "text": PHONE}]}}]},
])  # fmt: skip
def test_no_text_of_a_whole_answer_gets_past_the_checks(answer: dict) -> None:
    result = asyncio.run(Guardrails(activate(parse_policy(POLICY)), MemoryModelChecks({})).check_answer(answer))
    assert "13800138000" not in json.dumps(result.answer)


@pytest.mark.parametrize("delta", [
    {"content": [{"type": "text", "text": PHONE}]},
    {"tool_calls": [{"index": 0, "id": "c1", "type": "custom", "custom": {"name": "f", "input": PHONE}}]},
])  # fmt: skip
def test_unusual_deltas_are_checked_too(delta: dict) -> None:
    sent, _ = run(chat(), [chunk(**delta), chunk(finish="stop")])
    assert "13800138000" not in json.dumps(sent)
    assert json.dumps(sent).count("call *******8000 now") == 1


# --- responses -------------------------------------------------------------------------------------------------------


def responses(text: str, size: int = 4) -> list[dict]:
    place = {"item_id": "m1", "output_index": 0, "content_index": 0}
    part = {"type": "output_text", "text": text, "annotations": []}
    item = {"id": "m1", "type": "message", "role": "assistant", "content": [part]}
    whole = {"id": "r1", "status": "completed", "output": [item]}
    events = [
        {"type": "response.created", "response": {"id": "r1", "status": "in_progress", "output": []}},
        {"type": "response.output_item.added", "output_index": 0, "item": {**item, "content": []}},
        {"type": "response.content_part.added", **place, "part": {**part, "text": ""}},
        *(
            {"type": "response.output_text.delta", **place, "delta": text[at : at + size], "logprobs": []}
            for at in range(0, len(text), size)
        ),
        {"type": "response.output_text.done", **place, "text": text},
        {"type": "response.content_part.done", **place, "part": part},
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": whole},
    ]
    return [{**event, "sequence_number": number} for number, event in enumerate(events)]


def sent_by(engine: ResponsesStreamGuard, events: list[dict]) -> list[dict]:
    return [sent for step in (*(engine.feed(e, 0.0) for e in events), engine.finish(0.0)) for sent in step.objects]


def test_a_clean_response_arrives_whole() -> None:
    events = responses("The tide turns. 潮水涨落。")
    sent = sent_by(ResponsesStreamGuard(maker(POLICY)), events)
    assert "".join(e["delta"] for e in sent if "delta" in e) == "The tide turns. 潮水涨落。"
    assert sent[-4:] == [
        {**e, "sequence_number": s["sequence_number"]} for e, s in zip(events[-4:], sent[-4:], strict=True)
    ]
    assert [e["sequence_number"] for e in sent] == list(range(len(sent)))


def test_what_a_response_says_again_is_redacted_too() -> None:
    sent = sent_by(ResponsesStreamGuard(maker(POLICY)), responses("call 13800138000 now"))
    assert "13800138000" not in json.dumps(sent)
    assert json.dumps(sent).count("call *******8000 now") == 5, "the delta, and four that say it again"


def test_a_blocked_response_ends_incomplete() -> None:
    engine = ResponsesStreamGuard(maker(POLICY))
    sent = sent_by(engine, responses("All is well. What damnation. And more."))
    assert "".join(e["delta"] for e in sent if "delta" in e) == "All is well. "
    assert sent[-1]["type"] == "response.incomplete"
    assert sent[-1]["response"]["incomplete_details"] == {"reason": "content_filter"}
    assert "damnation" not in json.dumps(sent)
    assert engine.finished


def test_a_response_waits_for_its_verdict_and_fails_closed() -> None:
    engine = ResponsesStreamGuard(maker(POLICY + MODEL))
    steps = [engine.feed(event, 0.0) for event in responses("One")] + [engine.finish(0.0)]
    assert [o["type"] for step in steps for o in step.objects][-1] == "response.content_part.added"
    (work,) = [w for step in steps for w in step.work]
    step = engine.resolve(work, "CheckTimedOut", 0.0)
    assert step.failed
    assert step.objects[-1]["type"] == "error"


PLACE = {"item_id": "m1", "output_index": 0, "content_index": 0}
ITEM = {"id": "m1", "type": "message", "content": [{"type": "output_text", "text": PHONE}]}
CALL = {"id": "f1", "type": "function_call", "name": "f", "arguments": PHONE}
CREATED = {"type": "response.created", "response": {"id": "r1", "status": "in_progress", "output": []}}


def completed(*items: dict, **more: object) -> dict:
    return {
        "type": "response.completed",
        "response": {"id": "r1", "status": "completed", "output": list(items), **more},
    }


@pytest.mark.parametrize("events", [
    [{"type": "response.output_text.done", **PLACE, "text": PHONE}, completed()],
    [{"type": "response.content_part.done", **PLACE, "part": ITEM["content"][0]}, completed()],
    [{"type": "response.output_item.added", "output_index": 0, "item": ITEM}, completed(ITEM)],
    [{"type": "response.output_item.added", "output_index": 0, "item": CALL}, completed(CALL)],
    [{"type": "response.output_item.done", "output_index": 0, "item": CALL}, completed(CALL)],
    [*responses("Fine.")[:-1], completed(*responses("Fine.")[-1]["response"]["output"], CALL)],
    [completed(ITEM, {"type": "reasoning", "content": [{"type": "reasoning_text", "text": PHONE}]})],
    [{"type": "response.output_text.delta", **PLACE, "output_index": 7, "delta": PHONE}, completed(ITEM)],
    [completed(output_messages=[{"message": PHONE}])],
])  # fmt: skip
def test_what_never_came_as_deltas_is_checked_where_it_is_said(events: list[dict]) -> None:
    engine = ResponsesStreamGuard(maker(POLICY))
    sent = sent_by(engine, [CREATED, *events])
    assert "13800138000" not in json.dumps(sent)
    assert sent[-1]["type"] == "response.completed"
    assert engine.finished


def test_what_a_tool_said_is_not_taken_for_what_it_was_told() -> None:
    item = {"type": "mcp_call", "name": "f", "arguments": "", "output": PHONE}
    sent = sent_by(ResponsesStreamGuard(maker(POLICY)), [CREATED, completed(item)])
    (told,) = sent[-1]["response"]["output"]
    assert told == {**item, "output": "call *******8000 now"}


def test_a_block_in_what_never_came_as_deltas_ends_the_response() -> None:
    item = {"id": "m1", "type": "message", "content": [{"type": "output_text", "text": "What damnation."}]}
    engine = ResponsesStreamGuard(maker(POLICY))
    sent = sent_by(engine, [CREATED, completed(item, output_messages=["damnation"])])
    assert "damnation" not in json.dumps(sent)
    assert sent[-1]["type"] == "response.incomplete"
