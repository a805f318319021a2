"""What a smoke case asks and which answers pass it."""

from __future__ import annotations

import pytest

from rollout.smoke import fault, request_body
from rollout.strategy_specs import SmokeCase


def case(**expect):
    return SmokeCase.model_validate({"name": "a", "prompt": "法国的首都是哪里？", "expect": expect})


SHAPE = {"type": "object", "required": ["city"], "properties": {"city": {"type": "string"}}}


@pytest.mark.parametrize(
    ("expect", "answer", "told"),
    [
        ({"contains": "巴黎"}, "法国的首都是巴黎。", None),
        ({"contains": "Paris"}, "London", "does not contain 'Paris'"),
        ({"matches": r"^\d+$"}, "42", None),
        ({"matches": r"^\d+$"}, "forty-two", r"does not match '^\\d+$'"),
        ({"notMatches": "(?i)as an ai"}, "As an AI", "matches '(?i)as an ai'"),
        ({"notMatches": "(?i)as an ai"}, "Sure.", None),
        ({"contains": "a", "notMatches": "b"}, "ab", "matches 'b'"),
        ({"json": True}, '{"a": 1}', None),
        ({"json": True}, '```json\n{"a": 1}\n```', None),
        ({"json": True}, "Here you are: {}", "is not JSON"),
        ({"json": True}, "[" * 100_000, "is JSON nested too deeply"),
        ({"json": SHAPE}, '{"city": "Paris"}', None),
        ({"json": SHAPE}, '{"city": 3}', "is JSON, but city breaks the schema's 'type'"),
        ({"json": SHAPE}, "{}", "is JSON, but its root breaks the schema's 'required'"),
    ],
)
def test_an_answer_is_judged_without_being_quoted(expect, answer, told):
    assert fault(case(**expect), answer) == told


def test_a_prompt_is_short_for_one_message():
    body = request_body(case(contains="x"), "chat@1.3.0")
    assert body["messages"] == [{"role": "user", "content": "法国的首都是哪里？"}]
    assert (body["model"], body["temperature"], body["stream"]) == ("chat@1.3.0", 0, False)


def test_messages_are_sent_as_they_are():
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    made = SmokeCase.model_validate({"name": "a", "messages": messages, "expect": {"contains": "x"}, "maxTokens": 5})
    body = request_body(made, "chat@1.3.0")
    assert (body["messages"], body["max_tokens"]) == (messages, 5)
