"""OpenAI's answers as a simulated engine writes them: chat and plain completions, whole and in events. Pure."""

from __future__ import annotations

import binascii
import json
import struct
from collections.abc import Iterator, Sequence
from itertools import accumulate, islice
from typing import Any

from serving.engines.sim_answers import Choice, TokenChance, ToolCall
from serving.engines.sim_requests import CHAT, RESPONSES, Ask, Json
from serving.engines.sim_responses import response_answer, response_events


def usage(ask: Ask, choices: Sequence[Choice]) -> Json:
    """OpenAI's `usage` object, with the cached tokens where there is a cache."""
    out = sum(c.count for c in choices)
    cached = {} if ask.cached_tokens is None else {"prompt_tokens_details": {"cached_tokens": ask.cached_tokens}}
    total = ask.prompt_tokens + out
    return {"prompt_tokens": ask.prompt_tokens, "completion_tokens": out, "total_tokens": total, **cached}


def answer(
    ask: Ask, choices: Sequence[Choice], request_id: str, model: str, now_s: int, fingerprint: str = "sim"
) -> Json:
    """The whole answer of a request that does not stream; `fingerprint` says which engine gave it."""
    if ask.route == RESPONSES:
        return response_answer(ask, choices[0], request_id, model, now_s)
    chat = ask.route == CHAT
    return {
        "id": request_id,
        "object": "chat.completion" if chat else "text_completion",
        "created": now_s,
        "model": model,
        "system_fingerprint": fingerprint,
        "choices": [
            {
                "index": index,
                **({"message": _message(c)} if chat else {"text": c.text}),
                "logprobs": _chat_logprobs(c.chances) if chat else _completion_logprobs(c, 0, len(c.tokens)),
                "finish_reason": c.finish_reason,
            }
            for index, c in enumerate(choices)
        ],
        "usage": usage(ask, choices),
    }


def _message(choice: Choice) -> Json:
    if choice.calls:
        calls = [
            {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
            for c in choice.calls
        ]
        return {"role": "assistant", "content": None, "refusal": None, "tool_calls": calls}
    return {"role": "assistant", "content": choice.text, "refusal": None}


def _chat_logprobs(chances: Sequence[TokenChance] | None) -> Json | None:
    if chances is None:
        return None

    def entry(token: str, logprob: float) -> Json:
        return {"token": token, "logprob": logprob, "bytes": list(token.encode())}

    rows = [{**entry(c.token, c.logprob), "top_logprobs": [entry(*o) for o in c.others]} for c in chances]
    return {"content": rows, "refusal": None}


def _completion_logprobs(choice: Choice, start: int, end: int) -> Json | None:
    """The probabilities of tokens `start` to `end` as plain completions tell them; the first ones tell of the echo."""
    if choice.chances is None:
        return None
    offsets = list(accumulate(map(len, choice.tokens), initial=len(choice.echo)))
    echoed = [choice.echo] if choice.echo and start == 0 else []
    chances = choice.chances[start:end]
    return {
        "tokens": [*echoed, *(c.token for c in chances)],
        "token_logprobs": [*(None for _ in echoed), *(c.logprob for c in chances)],
        "top_logprobs": [*(None for _ in echoed), *(dict(c.others) for c in chances)],
        "text_offset": [*(0 for _ in echoed), *offsets[start:end]],
    }


def stream_events(
    ask: Ask, choices: Sequence[Choice], request_id: str, model: str, now_s: int, fingerprint: str = "sim"
) -> Iterator[list[bytes]]:
    """The events of a stream: one list per token step, the first with what is sent at once, the last with the end."""
    if ask.route == RESPONSES:
        yield from response_events(ask, choices[0], request_id, model, now_s)
        return
    chat = ask.route == CHAT
    head = {
        "id": request_id,
        "object": "chat.completion.chunk" if chat else "text_completion",
        "created": now_s,
        "model": model,
        "system_fingerprint": fingerprint,
    }
    pieces = [_chat_pieces(c) if chat else _completion_pieces(c) for c in choices]
    for step in range(max(c.count for c in choices) or 1):
        out: list[bytes] = []
        if chat and step == 0:
            out += [sse({**head, "choices": [_opening(i, c)]}) for i, c in enumerate(choices)]
        for index, (choice, coming) in enumerate(zip(choices, pieces, strict=True)):
            for piece in islice(coming, 1):
                out.append(sse({**head, "choices": [{"index": index, **piece, "finish_reason": None}]}))
            if step == max(choice.count - 1, 0):
                end: Json = {"delta": {}} if chat else {"text": ""}
                last = {"index": index, **end, "logprobs": None, "finish_reason": choice.finish_reason}
                out.append(sse({**head, "choices": [last]}))
        yield out
    end_events = [sse({**head, "choices": [], "usage": usage(ask, choices)})] if ask.include_usage else []
    yield [*end_events, b"data: [DONE]\n\n"]


def _opening(index: int, choice: Choice) -> Json:
    delta = {"role": "assistant", "content": None if choice.calls else ""}
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}


def _chat_pieces(choice: Choice) -> Iterator[Json]:
    """What each token adds to a chat's choice; a call's first says its name too."""
    for number, place, token in choice.steps():
        if number is None:
            chances = choice.chances[place : place + 1] if choice.chances is not None else None
            yield {"delta": {"content": token}, "logprobs": _chat_logprobs(chances)}
        else:
            yield {"delta": {"tool_calls": [_call_delta(number, place, token, choice.calls[number])]}, "logprobs": None}


def _call_delta(number: int, place: int, token: str, call: ToolCall) -> Json:
    if place:
        return {"index": number, "function": {"arguments": token}}
    return {"index": number, "id": call.id, "type": "function", "function": {"name": call.name, "arguments": token}}


def _completion_pieces(choice: Choice) -> Iterator[Json]:
    if choice.echo and not choice.tokens:
        yield {"text": choice.echo, "logprobs": None}
    for place, token in enumerate(choice.tokens):
        text = token if place else choice.echo + token
        yield {"text": text, "logprobs": _completion_logprobs(choice, place, place + 1)}


def encode_embedding(vector: Sequence[float], base64: bool) -> list[float] | str:
    """A vector as OpenAI sends it: a list, or little-endian 32-bit floats in base64."""
    if not base64:
        return list(vector)
    return binascii.b2a_base64(struct.pack(f"<{len(vector)}f", *vector), newline=False).decode()


def error_body(message: str, kind: str, status: int, param: str | None = None) -> Json:
    """OpenAI's error object, as vLLM fills it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}


def sse(data: Any, event: str = "") -> bytes:  # noqa: ANN401 - JSON
    """One server-sent event."""
    name = f"event: {event}\n" if event else ""
    return f"{name}data: {json.dumps(data, separators=(',', ':'))}\n\n".encode()
