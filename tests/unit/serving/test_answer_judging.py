"""What is read off an answer, in every shape in which engines send it: signals and scores."""

from __future__ import annotations

import json
from typing import Any

import pytest

from serving.answer_form import logprobs_in, wants_json, wants_logprobs
from serving.gateway.judging import ANSWER_SCORES, read_transcript, scores_in, signals_in
from serving.gateway.transcript import Transcript
from serving.openai_protocol import Operation
from serving.outcomes import Signal

CHAT, COMPLETIONS, RESPONSES = Operation.CHAT, Operation.COMPLETIONS, Operation.RESPONSES
ASKED = {"messages": [{"role": "user", "content": "What is the capital of France?"}]}
JSON = {**ASKED, "response_format": {"type": "json_schema", "json_schema": {}}}


def chat(content: str | None, finish: str = "stop", **message: Any) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": content, **message}, "finish_reason": finish}
    return json.dumps({"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 7}}).encode()


def whole(body: bytes) -> Transcript:
    found = Transcript()
    found.add(body)
    return found


def stream(*events: object) -> Transcript:
    found = Transcript(event_stream=True)
    for event in (*events, "[DONE]"):
        found.add(b"data: " + (event if isinstance(event, str) else json.dumps(event)).encode() + b"\n\n")
    return found


def judged(transcript: Transcript, fields: dict[str, Any], operation: Operation = CHAT) -> tuple[Signal, ...]:
    answer = read_transcript(operation, transcript)
    return signals_in(operation, transcript, answer, texts=True, fields=fields)


@pytest.mark.parametrize(
    ("body", "fields", "found"),
    [
        (chat("Paris."), ASKED, ()),
        (chat("I'm sorry, but I can't help with that."), ASKED, (Signal.REFUSAL,)),
        (chat(None, refusal="No."), ASKED, (Signal.REFUSAL,)),
        (chat("巴黎是法国的首都，也是最大的城市。"), ASKED, (Signal.LANGUAGE_MISMATCH,)),
        (chat('{"capital": "Paris"}'), JSON, ()),
        (chat('Here it is: {"capital": "Paris"}'), JSON, (Signal.INVALID_JSON,)),
        (chat('```json\n{"capital": "Paris"}\n```'), JSON, (Signal.INVALID_JSON,)),
        (chat('{"capital": "Par', "length"), JSON, (Signal.LENGTH_STOP,)),
        (chat("I can't help with that."), JSON, (Signal.REFUSAL,)),
        (chat(None, "tool_calls", tool_calls=[{"id": "1"}]), JSON, ()),
        (chat("  "), JSON, (Signal.EMPTY,)),
        (chat("巴黎是法国的首都，也是最大的城市。"), {}, ()),
    ],
)
def test_signals(body: bytes, fields: dict[str, Any], found: tuple[Signal, ...]) -> None:
    assert judged(whole(body), fields) == found


def test_a_refusal_that_an_engine_names_is_seen_in_a_stream_and_in_responses() -> None:
    delta = {"choices": [{"index": 0, "delta": {"refusal": "No."}}]}
    assert Signal.REFUSAL in judged(stream(delta), ASKED)
    item = {"type": "message", "content": [{"type": "refusal", "refusal": "No."}]}
    assert judged(whole(json.dumps({"output": [item]}).encode()), ASKED, RESPONSES) == (Signal.REFUSAL,)
    events = stream({"type": "response.refusal.delta", "delta": "No."}, {"type": "response.completed"})
    assert judged(events, ASKED, RESPONSES) == (Signal.REFUSAL,)


def test_who_asks_for_json_or_probabilities() -> None:
    assert wants_json({"text": {"format": {"type": "json_schema"}}})
    assert not any(map(wants_json, ({}, {"response_format": None}, {"response_format": "x"}, {"text": 1})))
    assert wants_logprobs(RESPONSES, {"include": ["message.output_text.logprobs"]})
    for operation, fields in ((CHAT, {"logprobs": 1}), (COMPLETIONS, {"logprobs": False}), (RESPONSES, {"include": 1}),
                              (Operation.EMBEDDINGS, {"logprobs": True})):  # fmt: skip
        assert not wants_logprobs(operation, fields)


TOKENS = {"content": [{"token": "a", "logprob": -1.0}, {"token": "b", "logprob": -3.0}]}


@pytest.mark.parametrize(
    ("transcript", "operation", "fields"),
    [
        (whole(json.dumps({"choices": [{"message": {"content": "ab"}, "finish_reason": "stop", "logprobs": TOKENS}]})
               .encode()), CHAT, {"logprobs": True}),
        (stream(*({"choices": [{"delta": {"content": t["token"]}, "logprobs": {"content": [t]}}]}
                  for t in TOKENS["content"])), CHAT, {"logprobs": True}),
        (whole(json.dumps({"choices": [{"text": "ab", "logprobs": {"token_logprobs": [None, -1.0, -3.0]}}]}).encode()),
         COMPLETIONS, {"logprobs": 1}),
        (whole(json.dumps({"output": [{"type": "message", "content": [{"text": "ab", "logprobs": TOKENS["content"]}]}]})
               .encode()), RESPONSES, {"include": ["message.output_text.logprobs"]}),
        (stream({"type": "response.output_text.delta", "delta": "ab", "logprobs": TOKENS["content"]}), RESPONSES,
         {"include": ["message.output_text.logprobs"]}),
    ],
)  # fmt: skip
def test_likelihood_is_read_in_every_shape(
    transcript: Transcript, operation: Operation, fields: dict[str, Any]
) -> None:
    answer = read_transcript(operation, transcript)
    assert scores_in(operation, transcript, answer, fields, ("nll", "nll-max")) == {"nll": 2.0, "nll-max": 3.0}
    assert scores_in(operation, transcript, answer, {}, ("nll",)) == {}
    assert scores_in(operation, transcript, answer, fields, ("nll",)) == {"nll": 2.0}


def test_only_watched_scores_are_made_and_length_is_told_both_ways() -> None:
    transcript = whole(chat("Paris."))
    answer = read_transcript(CHAT, transcript)
    assert scores_in(CHAT, transcript, answer, ASKED, ()) == {}
    assert scores_in(CHAT, transcript, answer, ASKED, ANSWER_SCORES) == {"length": 7.0, "brevity": -7.0}
    assert logprobs_in(b"no json", event_stream=False) == ()
    assert logprobs_in(b'{"choices": [1, {"logprobs": {"content": [2, {"logprob": "x"}]}}]}', event_stream=False) == ()
