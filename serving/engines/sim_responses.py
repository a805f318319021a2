"""The Responses API as a simulated engine writes it, whole and in events. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from serving.engines.sim_answers import Choice, ToolCall
from serving.engines.sim_requests import Ask, Json

Event = Callable[..., bytes]


def response_answer(ask: Ask, choice: Choice, request_id: str, model: str, now_s: int) -> Json:
    """The whole response."""
    cut = choice.finish_reason == "length"
    return {
        **_response(request_id, model, now_s, "incomplete" if cut else "completed"),
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "output": _output(choice, request_id),
        "usage": {
            "input_tokens": ask.prompt_tokens,
            "input_tokens_details": {"cached_tokens": ask.cached_tokens or 0},
            "output_tokens": choice.count,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": ask.prompt_tokens + choice.count,
        },
    }


def _response(request_id: str, model: str, now_s: int, status: str) -> Json:
    return {
        "id": request_id,
        "object": "response",
        "created_at": now_s,
        "model": model,
        "status": status,
        "incomplete_details": None,
        "error": None,
        "instructions": None,
        "metadata": {},
        "output": [],
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "usage": None,
    }


def _output(choice: Choice, request_id: str) -> list[Json]:
    if choice.calls:
        return [_call_item(call, "completed", call.arguments) for call in choice.calls]
    return [_message_item(request_id, "completed", [_text_part(choice.text)])]


def _text_part(text: str) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _message_item(request_id: str, status: str, parts: list[Json]) -> Json:
    return {"type": "message", "id": f"msg_{request_id}", "role": "assistant", "status": status, "content": parts}


def _call_item(call: ToolCall, status: str, arguments: str) -> Json:
    return {
        "type": "function_call",
        "id": f"fc_{call.id}",
        "call_id": call.id,
        "name": call.name,
        "arguments": arguments,
        "status": status,
    }


def response_events(ask: Ask, choice: Choice, request_id: str, model: str, now_s: int) -> Iterator[list[bytes]]:
    """The events of a streamed response: one list per token step, then the end."""
    number = -1

    def event(kind: str, **fields: Any) -> bytes:  # noqa: ANN401 - JSON
        nonlocal number
        number += 1
        data = json.dumps({"type": kind, "sequence_number": number, **fields}, separators=(",", ":"))
        return f"event: {kind}\ndata: {data}\n\n".encode()

    begun = _response(request_id, model, now_s, "in_progress")
    opening = [event("response.created", response=begun), event("response.in_progress", response=begun)]
    steps = _call_events(choice, event) if choice.calls else _text_events(choice, request_id, event)
    for step in steps:
        yield [*opening, *step]
        opening = []
    whole = response_answer(ask, choice, request_id, model, now_s)
    yield [*opening, event(f"response.{whole['status']}", response=whole)]


def _text_events(choice: Choice, request_id: str, event: Event) -> Iterator[list[bytes]]:
    at = {"item_id": f"msg_{request_id}", "output_index": 0, "content_index": 0}
    pending = [
        event("response.output_item.added", output_index=0, item=_message_item(request_id, "in_progress", [])),
        event("response.content_part.added", part=_text_part(""), **at),
    ]
    tokens = choice.tokens or ("",)
    for place, token in enumerate(tokens):
        pending.append(event("response.output_text.delta", delta=token, logprobs=[], **at))
        if place == len(tokens) - 1:
            item = _message_item(request_id, "completed", [_text_part(choice.text)])
            pending += [
                event("response.output_text.done", text=choice.text, logprobs=[], **at),
                event("response.content_part.done", part=_text_part(choice.text), **at),
                event("response.output_item.done", output_index=0, item=item),
            ]
        yield pending
        pending = []


def _call_events(choice: Choice, event: Event) -> Iterator[list[bytes]]:
    for number, call in enumerate(choice.calls):
        at = {"item_id": f"fc_{call.id}", "output_index": number}
        for place, token in enumerate(call.tokens):
            out = []
            if place == 0:
                item = _call_item(call, "in_progress", "")
                out.append(event("response.output_item.added", output_index=number, item=item))
            out.append(event("response.function_call_arguments.delta", delta=token, **at))
            if place == len(call.tokens) - 1:
                done = _call_item(call, "completed", call.arguments)
                out += [
                    event("response.function_call_arguments.done", arguments=call.arguments, name=call.name, **at),
                    event("response.output_item.done", output_index=number, item=done),
                ]
            yield out
