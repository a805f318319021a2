"""The tool calls of an answer: which function a model wanted called, and with what. Pure.

A stream brings a call in pieces: its name with the first, its arguments bit by bit. Chat has them below each choice,
and the older `function_call` beside them; responses have them as items of the output.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import orjson

from serving.openai_protocol import Operation
from serving.streaming import DONE, sse_payloads

MOST_CALLS = 64
"""Of one answer."""
_MARKS = (b"tool_call", b"function_call", b"mcp_call")
_FINAL = ("response.completed", "response.incomplete", "response.failed")
_ITEMS = ("function_call", "custom_tool_call", "mcp_call")


class ToolCall(NamedTuple):
    """What a model wanted called. `arguments` is text as the model wrote it: JSON, where it kept to it."""

    name: str
    arguments: str


class _Call:
    def __init__(self) -> None:
        self.name: list[str] = []
        self.arguments: list[str] = []

    def whole(self) -> ToolCall:
        return ToolCall("".join(self.name), "".join(self.arguments))


def tool_calls_in(operation: Operation, data: bytes, *, event_stream: bool) -> list[ToolCall]:
    """The tool calls of an answer, in order.

    Args:
        operation: what was asked for.
        data: the answer as it came, whole or from its beginning to where it was cut.
        event_stream: whether it came as server-sent events.
    """
    if not any(mark in data for mark in _MARKS):
        return []
    payloads = [p for p in sse_payloads(data) if p != DONE] if event_stream else [data]
    parts = [part for part in map(_parsed, payloads) if part is not None]
    found = _of_responses(parts) if operation is Operation.RESPONSES else _of_choices(parts)
    return found[:MOST_CALLS]


def _parsed(payload: bytes) -> dict[str, Any] | None:
    try:
        value = orjson.loads(payload)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _of_choices(parts: Iterable[dict[str, Any]]) -> list[ToolCall]:
    calls: dict[tuple[int, int], _Call] = {}
    for choice in (c for part in parts for c in _objects(part.get("choices"))):
        message = choice.get("delta") if "delta" in choice else choice.get("message")
        if not isinstance(message, dict):
            continue
        of = _number(choice.get("index"))
        for place, call in enumerate(_objects(message.get("tool_calls"))):
            at = _number(call["index"]) if "index" in call else place
            for kind in ("function", "custom"):
                _add(calls.setdefault((of, at), _Call()), call.get(kind))
        if isinstance(message.get("function_call"), dict):
            _add(calls.setdefault((of, -1), _Call()), message["function_call"])
    return [calls[key].whole() for key in sorted(calls)]


def _of_responses(parts: Iterable[dict[str, Any]]) -> list[ToolCall]:
    calls: dict[int, _Call] = {}
    for part in parts:
        whole = part.get("response") if part.get("type") in _FINAL else part if "output" in part else None
        if isinstance(whole, dict) and "output" in whole:
            return [_item(item) for item in _objects(whole["output"]) if item.get("type") in _ITEMS]
        item, at = part.get("item"), _number(part.get("output_index"))
        if isinstance(item, dict) and item.get("type") in _ITEMS:
            calls[at] = _Call()
            _add(calls[at], item)
        elif at in calls and isinstance(part.get("delta"), str):
            calls[at].arguments.append(part["delta"])
    return [calls[at].whole() for at in sorted(calls)]


def _item(item: dict[str, Any]) -> ToolCall:
    call = _Call()
    _add(call, item)
    return call.whole()


def _add(call: _Call, piece: object) -> None:
    if not isinstance(piece, dict):
        return
    if isinstance(piece.get("name"), str):
        call.name.append(piece["name"])
    for key in ("arguments", "input"):
        if isinstance(piece.get(key), str):
            call.arguments.append(piece[key])


def _objects(value: object) -> list[dict[str, Any]]:
    return [v for v in value if isinstance(v, dict)] if isinstance(value, list) else []


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0
