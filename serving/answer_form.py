"""What a request asks of its answer's form, and what an answer tells beside its text. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from serving.openai_protocol import Operation
from serving.streaming import DONE, sse_payloads

_JSON_FORMATS = ("json_object", "json_schema")


def wants_json(fields: Mapping[str, Any]) -> bool:
    """Whether a request asks for JSON: `response_format` of chat and completions, `text.format` of responses.

    >>> wants_json({"response_format": {"type": "json_object"}}), wants_json({"text": {"format": {"type": "text"}}})
    (True, False)
    """
    text = fields.get("text")
    for form in (fields.get("response_format"), text.get("format") if isinstance(text, dict) else None):
        if isinstance(form, dict) and form.get("type") in _JSON_FORMATS:
            return True
    return False


def is_json(text: str) -> bool:
    """Whether a text is one JSON value and nothing else.

    >>> is_json(' {"a": 1} '), is_json('Here it is: {"a": 1}')
    (True, False)
    """
    try:
        orjson.loads(text)
    except ValueError:
        return False
    return True


def wants_logprobs(operation: Operation, fields: Mapping[str, Any]) -> bool:
    """Whether a request asks for its tokens' log-probabilities.

    >>> wants_logprobs(Operation.CHAT, {"logprobs": True}), wants_logprobs(Operation.COMPLETIONS, {"logprobs": 0})
    (True, True)
    """
    match operation:
        case Operation.CHAT:
            return fields.get("logprobs") is True
        case Operation.COMPLETIONS:
            return isinstance(fields.get("logprobs"), int) and fields.get("logprobs") is not False
        case Operation.RESPONSES:
            include = fields.get("include")
            return isinstance(include, list) and "message.output_text.logprobs" in include
        case _:
            return False


def logprobs_in(data: bytes, *, event_stream: bool) -> tuple[float, ...]:
    """The log-probabilities of all tokens of an answer, in order; of several choices one after the other's pieces.

    Args:
        data: The body, or the whole event stream.
        event_stream: Which of the two.
    """
    payloads = [p for p in sse_payloads(data) if p != DONE] if event_stream else [data]
    found: list[float] = []
    for payload in payloads:
        try:
            part = orjson.loads(payload)
        except ValueError:
            continue
        if isinstance(part, dict):
            found += [float(v) for v in _logprobs(part) if isinstance(v, int | float) and not isinstance(v, bool)]
    return tuple(found)


def _logprobs(part: dict[str, Any]) -> Iterator[Any]:
    for choice in _list(part.get("choices")):
        given = choice.get("logprobs") if isinstance(choice, dict) else None
        if isinstance(given, dict):
            yield from (token.get("logprob") for token in _list(given.get("content")) if isinstance(token, dict))
            yield from _list(given.get("token_logprobs"))
    if part.get("type") == "response.output_text.delta":
        yield from (token.get("logprob") for token in _list(part.get("logprobs")) if isinstance(token, dict))
    for item in _list(part.get("output")):
        for content in _list(item.get("content") if isinstance(item, dict) else None):
            tokens = _list(content.get("logprobs") if isinstance(content, dict) else None)
            yield from (token.get("logprob") for token in tokens if isinstance(token, dict))


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
