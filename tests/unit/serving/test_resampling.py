"""Which requests are asked again for their semantic entropy, and with what body."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from serving.openai_protocol import Operation
from serving.resampling import InvalidResampling, ResampleSettings, sampling_body

CHAT: dict[str, Any] = {"model": "chat", "messages": [{"role": "user", "content": "Who was first on the moon?"}]}
SETTINGS = ResampleSettings()


def body(fields: dict[str, Any], operation: Operation = Operation.CHAT) -> dict[str, Any] | None:
    found = sampling_body(operation, fields, SETTINGS)
    return None if found is None else orjson.loads(found)


def test_what_is_asked_again_is_the_same_question_several_times_and_short() -> None:
    asked = {**CHAT, "stream": True, "stream_options": {"include_usage": True}, "logprobs": True, "top_logprobs": 3,
             "seed": 7, "store": True, "max_completion_tokens": 2000, "temperature": 0, "top_p": 0.9}  # fmt: skip
    assert body(asked) == {**CHAT, "top_p": 0.9, "n": 4, "max_tokens": 128, "temperature": 0.7}
    assert body({**CHAT, "max_tokens": 20, "temperature": 0.8}) == {
        **CHAT, "n": 4, "max_tokens": 20, "temperature": 0.8,
    }  # fmt: skip
    assert asked["stream"] is True, "the client's own body is not changed"
    assert body({"model": "m", "prompt": "Once"}, Operation.COMPLETIONS) == {
        "model": "m", "prompt": "Once", "n": 4, "max_tokens": 128, "temperature": 0.7,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("more", "operation"),
    [
        ({"tools": [{"type": "function"}]}, Operation.CHAT),
        ({"n": 3}, Operation.CHAT),
        ({"response_format": {"type": "json_object"}}, Operation.CHAT),
        ({"web_search_options": {"user_location": None}}, Operation.CHAT),
        ({"kv_transfer_params": {"x": 1}}, Operation.CHAT),
        ({"prompt": ["one", "two"]}, Operation.COMPLETIONS),
        ({"input": "hi"}, Operation.RESPONSES),
        ({"input": "hi"}, Operation.EMBEDDINGS),
    ],
)
def test_what_would_be_another_question_or_have_effects_is_not_asked_again(
    more: dict[str, Any], operation: Operation
) -> None:
    assert body({**CHAT, **more}, operation) is None


@pytest.mark.parametrize(
    "wrong", [{"rate": 1.5}, {"samples": 0}, {"samples": 9}, {"most_in_flight": -1}, {"timeout_s": 0}]
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidResampling, match=next(iter(wrong))):
        ResampleSettings(**wrong)
