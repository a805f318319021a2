"""OpenAI's requests and answers as a simulated engine reads and writes them. Pure: plain dictionaries in and out."""

from __future__ import annotations

import binascii
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serving.engines.sim_text import MARK, count_tokens

Json = dict[str, Any]
COMPLETION_DEFAULT_MAX_TOKENS = 16
"""OpenAI's and vLLM's default for /v1/completions."""


class BadRequest(ValueError):
    """A request that the engine refuses: status, and OpenAI's `param`."""

    def __init__(self, message: str, status: int = 400, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.param = param


@dataclass(frozen=True, slots=True)
class Ask:
    """What a request wants, whichever route it came by."""

    route: str
    prompts: tuple[str, ...]
    n: int
    max_tokens: int | None
    stops: tuple[str, ...]
    stream: bool
    include_usage: bool
    base64: bool = False
    """Whether embeddings are wanted as base64, which the SDK asks for by itself."""

    @property
    def mark(self) -> str:
        """The mark that the prompt carries, if any."""
        found = MARK.search(self.prompts[-1]) if self.prompts else None
        return found.group() if found else ""

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(map(count_tokens, self.prompts))


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer: its tokens and why it ended."""

    tokens: tuple[str, ...]
    finish_reason: str

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self.tokens)


def read_ask(route: str, body: bytes, served_model: str) -> Ask:
    """Read a request.

    Raises:
        BadRequest: it is malformed, or for another model.
    """
    try:
        data = json.loads(body)
    except ValueError as error:
        raise BadRequest("the body is not JSON") from error
    if not isinstance(data, dict):
        raise BadRequest("the body is not a JSON object")
    model = data.get("model")
    if model not in (None, served_model):
        raise BadRequest(f"The model `{model}` does not exist.", 404, "model")
    limit = data.get("max_completion_tokens") or data.get("max_tokens") or data.get("max_output_tokens")
    if route == "/v1/completions" and limit is None:
        limit = COMPLETION_DEFAULT_MAX_TOKENS
    n = data.get("n") or 1
    for name, value in (("max_tokens", limit), ("n", n)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise BadRequest(f"{name} must be at least 1, got {value}.", param=name)
    stop = data.get("stop") or ()
    options = data.get("stream_options") or {}
    return Ask(
        route=route,
        prompts=_prompts(route, data),
        n=n,
        max_tokens=limit,
        stops=(stop,) if isinstance(stop, str) else tuple(map(str, stop)),
        stream=bool(data.get("stream")),
        include_usage=bool(options.get("include_usage")) if isinstance(options, dict) else False,
        base64=data.get("encoding_format") == "base64",
    )


def _prompts(route: str, data: Mapping[str, Any]) -> tuple[str, ...]:
    match route:
        case "/v1/chat/completions":
            messages = data.get("messages")
            if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
                raise BadRequest("messages must be a list of at least one message", param="messages")
            return ("\n".join(_text(m.get("content")) for m in messages),)
        case "/v1/completions":
            prompt = data.get("prompt")
            if isinstance(prompt, str):
                return (prompt,)
            if isinstance(prompt, list) and prompt:
                return (_text(prompt),) if isinstance(prompt[0], int) else tuple(map(_text, prompt))
            raise BadRequest("prompt must be a string or a list", param="prompt")
        case _:
            given = data.get("input")
            if isinstance(given, str):
                return (given,)
            if isinstance(given, list) and given:
                if route == "/v1/responses":
                    return (
                        "\n".join(_text(item.get("content") if isinstance(item, dict) else item) for item in given),
                    )
                return (_text(given),) if isinstance(given[0], int) else tuple(map(_text, given))
            raise BadRequest("input must be a string or a list", param="input")


def _text(content: Any) -> str:  # noqa: ANN401 - JSON as the client sent it
    """The text of a message's content, of a list of parts, or of token ids."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return " ".join(_text(p.get("text") if isinstance(p, dict) else p) for p in content)
    return "" if content is None else str(content)


def usage(ask: Ask, choices: Sequence[Choice]) -> Json:
    """OpenAI's `usage` object."""
    out = sum(len(c.tokens) for c in choices)
    return {"prompt_tokens": ask.prompt_tokens, "completion_tokens": out, "total_tokens": ask.prompt_tokens + out}


def answer(ask: Ask, choices: Sequence[Choice], request_id: str, model: str, now_s: int) -> Json:
    """The whole answer of a request that does not stream."""
    if ask.route == "/v1/responses":
        return _response(ask, choices[0], request_id, model, now_s, "completed")
    chat = ask.route == "/v1/chat/completions"
    return {
        "id": request_id,
        "object": "chat.completion" if chat else "text_completion",
        "created": now_s,
        "model": model,
        "choices": [
            {
                "index": index,
                **({"message": {"role": "assistant", "content": c.text}} if chat else {"text": c.text}),
                "logprobs": None,
                "finish_reason": c.finish_reason,
            }
            for index, c in enumerate(choices)
        ],
        "usage": usage(ask, choices),
    }


def stream_events(
    ask: Ask, choices: Sequence[Choice], request_id: str, model: str, now_s: int
) -> Iterator[list[bytes]]:
    """The events of a stream: first those sent at once, then one list per token step, the last with the end."""
    if ask.route == "/v1/responses":
        yield from _response_events(ask, choices[0], request_id, model, now_s)
        return
    chat = ask.route == "/v1/chat/completions"
    head = {
        "id": request_id,
        "object": "chat.completion.chunk" if chat else "text_completion",
        "created": now_s,
        "model": model,
    }

    def event(index: int, text: str, finish: str | None) -> bytes:
        piece: Json = {"delta": {"content": text} if text or not finish else {}} if chat else {"text": text}
        return _sse({**head, "choices": [{"index": index, **piece, "logprobs": None, "finish_reason": finish}]})

    for step in range(max(len(c.tokens) for c in choices) or 1):
        out: list[bytes] = []
        if chat and step == 0:
            out += [
                _sse(
                    {
                        **head,
                        "choices": [
                            {
                                "index": i,
                                "delta": {"role": "assistant", "content": ""},
                                "logprobs": None,
                                "finish_reason": None,
                            }
                        ],
                    }
                )
                for i in range(len(choices))
            ]
        for index, choice in enumerate(choices):
            if step < len(choice.tokens):
                out.append(event(index, choice.tokens[step], None))
            if step == max(len(choice.tokens) - 1, 0):
                out.append(event(index, "", choice.finish_reason))
        yield out
    end = [_sse({**head, "choices": [], "usage": usage(ask, choices)})] if ask.include_usage else []
    yield [*end, b"data: [DONE]\n\n"]


def _response(ask: Ask, choice: Choice, request_id: str, model: str, now_s: int, status: str) -> Json:
    done = status == "completed"
    counted = usage(ask, [choice])
    item = _response_item(choice.text, request_id, status)
    return {
        "id": request_id,
        "object": "response",
        "created_at": now_s,
        "model": model,
        "status": "incomplete" if done and choice.finish_reason == "length" else status,
        "incomplete_details": {"reason": "max_output_tokens"} if done and choice.finish_reason == "length" else None,
        "error": None,
        "instructions": None,
        "metadata": {},
        "output": [item] if done else [],
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "usage": {
            "input_tokens": counted["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": counted["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": counted["total_tokens"],
        }
        if done
        else None,
    }


def _response_item(text: str, request_id: str, status: str) -> Json:
    parts = [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}] if status == "completed" else []
    return {"type": "message", "id": f"msg_{request_id}", "role": "assistant", "status": status, "content": parts}


def _response_events(ask: Ask, choice: Choice, request_id: str, model: str, now_s: int) -> Iterator[list[bytes]]:
    number = -1

    def event(kind: str, **fields: Any) -> bytes:  # noqa: ANN401 - JSON
        nonlocal number
        number += 1
        return _sse({"type": kind, "sequence_number": number, **fields}, kind)

    at = {"item_id": f"msg_{request_id}", "output_index": 0, "content_index": 0}
    begun = _response(ask, choice, request_id, model, now_s, "in_progress")
    empty = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    opening = [
        event("response.created", response=begun),
        event("response.in_progress", response=begun),
        event("response.output_item.added", output_index=0, item=_response_item("", request_id, "in_progress")),
        event("response.content_part.added", part=empty, **at),
    ]
    for step, token in enumerate(choice.tokens or ("",)):
        delta = event("response.output_text.delta", delta=token, logprobs=[], **at)
        yield [*opening, delta] if step == 0 else [delta]
    item = _response_item(choice.text, request_id, "completed")
    whole = _response(ask, choice, request_id, model, now_s, "completed")
    yield [
        event("response.output_text.done", text=choice.text, logprobs=[], **at),
        event("response.content_part.done", part=item["content"][0], **at),
        event("response.output_item.done", output_index=0, item=item),
        event(f"response.{whole['status']}", response=whole),
    ]


def encode_embedding(vector: Sequence[float], base64: bool) -> list[float] | str:
    """A vector as OpenAI sends it: a list, or little-endian 32-bit floats in base64."""
    if not base64:
        return list(vector)
    return binascii.b2a_base64(struct.pack(f"<{len(vector)}f", *vector), newline=False).decode()


def error_body(message: str, kind: str, status: int, param: str | None = None) -> Json:
    """OpenAI's error object, as vLLM fills it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}


def _sse(data: Json, event: str = "") -> bytes:
    name = f"event: {event}\n" if event else ""
    return f"{name}data: {json.dumps(data, separators=(',', ':'))}\n\n".encode()
