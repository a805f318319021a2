"""A whole answer out of the events of its stream, with every text in it. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from guardrails.chat_streams import Json, Place, split_texts

_FINAL = ("response.completed", "response.incomplete", "response.failed")


def answer_of_events(events: Iterable[Any]) -> Json:
    """What the events of a stream said, in the shape of an answer that was not streamed.

    Args:
        events: parsed events of chat, completions or responses; what is none is passed over.

    >>> answer_of_events([{"choices": [{"index": 0, "delta": {"content": c}}]} for c in "hi"])
    {'choices': [{'index': 0, 'message': {'content': 'hi'}}]}
    """
    texts: dict[int, dict[Place, list[str]]] = {}
    for event in events:
        if not isinstance(event, dict):
            continue
        if event.get("type") in _FINAL and isinstance(event.get("response"), dict):
            return dict(event["response"])
        if isinstance(event.get("delta"), str):  # of responses, needed where the final event never came
            held = texts.setdefault(int(event.get("output_index") or 0), {})
            held.setdefault(("content",), []).append(event["delta"])
        choices = event.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict):
                held = texts.setdefault(choice.get("index", 0), {})
                for place, text in split_texts(choice)[1]:
                    held.setdefault(place, []).append(text)
    return {"choices": [_choice(index, held) for index, held in texts.items()]}


def _choice(index: int, held: dict[Place, list[str]]) -> Json:
    message: Json = {}
    calls: list[Json] = []
    for place, pieces in held.items():
        text = "".join(pieces)
        if place == ("text",):
            return {"index": index, "text": text}
        if place[0] == "tool_calls":
            calls.append({"function": {"arguments": text}})
        elif place[0] == "function_call":
            message["function_call"] = {"arguments": text}
        else:
            message[place[0]] = text
    return {"index": index, "message": {**message, **({"tool_calls": calls} if calls else {})}}
