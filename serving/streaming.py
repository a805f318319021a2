"""Read what an engine answered, after the fact: server-sent events and whole bodies. Pure.

Nothing here runs while tokens pass. The gateway keeps references to the chunks, and reads them once the answer is
complete. The parser is tolerant: an event that isn't JSON is skipped, unknown fields are ignored.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pydantic_core import from_json

from serving.openai_protocol import Operation

DONE = b"[DONE]"
ERROR_PREFIXES = (b'data: {"error"', b'data:{"error"', b"event: error")


@dataclass(slots=True)
class Answer:
    """What was found in an answer. `texts` and `finish_reasons` have one entry per choice."""

    texts: tuple[str, ...] = ()
    finish_reasons: tuple[str, ...] = ()
    has_content: bool = False
    """Some text, tool call, refusal or reasoning was there."""
    input_tokens: int | None = None
    output_tokens: int | None = None
    events: int = 0
    """Server-sent events with data, without the final mark."""
    ended: bool = False
    """The stream said itself that it was complete."""
    error_code: str | None = None
    """An error that the engine reported inside the answer."""

    @property
    def length_stop(self) -> bool:
        """Whether a choice ended because it reached its length limit."""
        return "length" in self.finish_reasons


@dataclass(slots=True)
class _Choices:
    texts: dict[int, list[str]] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    other_content: bool = False

    def into(self, answer: Answer) -> None:
        indices = sorted(self.texts.keys() | self.reasons.keys())
        answer.texts = tuple("".join(self.texts.get(i, ())) for i in indices)
        answer.finish_reasons = tuple(self.reasons.get(i, "") for i in indices)
        answer.has_content = self.other_content or any(t.strip() for t in answer.texts)


def sse_payloads(data: bytes) -> list[bytes]:
    """The `data` of each event, in order. Lines of one event are joined by a newline, as the standard says.

    >>> sse_payloads(b"data: a" + bytes([10, 10]) + b"data: b")
    [b'a', b'b']
    """
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    payloads: list[bytes] = []
    for event in data.split(b"\n\n"):
        if event.startswith(b"data:") and b"\n" not in event:
            payloads.append(event[5:].strip())
            continue
        lines = [line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:")]
        if lines:
            payloads.append(b"\n".join(lines))
    return payloads


def _decode(payloads: list[bytes]) -> list[Any]:
    try:  # one call for all of them is several times faster than one for each
        decoded = from_json(b"[" + b",".join(payloads) + b"]")
    except ValueError:
        return [value for value in map(_decode_one, payloads) if value is not None]
    return list(decoded)


def _decode_one(payload: bytes) -> Any:  # noqa: ANN401 - any JSON value
    try:
        return from_json(payload)
    except ValueError:
        return None


def says_done(operation: Operation, tail: bytes) -> bool:
    """Whether the end of a stream says that it is complete, from its last bytes.

    Chat and completions end with `[DONE]`, responses with a final event; what others do isn't known, so they are
    complete when HTTP says so.
    """
    if operation in (Operation.CHAT, Operation.COMPLETIONS):
        return DONE in tail[-64:]
    if operation is Operation.RESPONSES:
        return DONE in tail[-64:] or any(
            mark in tail for mark in (b"response.completed", b"response.incomplete", b"response.failed")
        )
    return True


def is_error_event(chunk: bytes) -> bool:
    """Whether a stream begins with an error instead of an answer."""
    return chunk.lstrip()[:16].startswith(ERROR_PREFIXES)


def read_stream(operation: Operation, data: bytes) -> Answer:
    """Read a finished event stream, complete or from its beginning to where it was cut."""
    payloads = sse_payloads(data)
    answer = Answer()
    if payloads and payloads[-1] == DONE:
        answer.ended = True
        payloads.pop()
    answer.events = len(payloads)
    choices = _Choices()
    for chunk in _decode(payloads):
        if not isinstance(chunk, dict):
            continue
        error = chunk.get("error")
        if error:
            answer.error_code = _error_code(error)
        elif operation is Operation.RESPONSES:
            _responses_event(chunk, answer, choices)
        else:
            _choices_chunk(chunk, "delta", answer, choices)
    choices.into(answer)
    return answer


def read_body(operation: Operation, data: bytes) -> Answer:
    """Read a whole, not streamed answer."""
    answer = Answer(ended=True)
    choices = _Choices()
    body = _decode_one(data)
    if not isinstance(body, dict):
        answer.ended = False
        return answer
    if operation is Operation.RESPONSES:
        _response_object(body, answer, choices)
        _response_items(body, choices)
    else:
        _choices_chunk(body, "message", answer, choices)
    choices.into(answer)
    return answer


def _error_code(error: object) -> str:
    if isinstance(error, dict):
        return str(error.get("code") or error.get("type") or "error")
    return "error"


def _choices_chunk(chunk: dict[str, Any], part: str, answer: Answer, choices: _Choices) -> None:
    usage = chunk.get("usage")
    if isinstance(usage, dict):
        _usage(usage, "prompt_tokens", "completion_tokens", answer)
    for choice in chunk.get("choices") or ():
        if not isinstance(choice, dict):
            continue
        index = choice.get("index", 0)
        message = choice.get(part)
        if isinstance(message, dict):
            text = message.get("content")
            # Most deltas hold nothing but text: only the others are looked at more closely.
            if len(message) > 1 or not text:
                choices.other_content |= _other_content(message)
        else:
            text = choice.get("text")
        if isinstance(text, str):
            choices.texts.setdefault(index, []).append(text)
        reason = choice.get("finish_reason")
        if isinstance(reason, str):
            choices.reasons[index] = reason


def _other_content(message: dict[str, Any]) -> bool:
    return any(message.get(name) for name in ("tool_calls", "refusal", "reasoning_content", "reasoning"))


def _responses_event(event: dict[str, Any], answer: Answer, choices: _Choices) -> None:
    kind = event.get("type")
    if kind == "response.output_text.delta":
        delta = event.get("delta")
        if isinstance(delta, str):
            choices.texts.setdefault(int(event.get("output_index") or 0), []).append(delta)
    elif isinstance(kind, str) and kind.endswith(".delta"):
        choices.other_content = True
    elif kind == "error":
        answer.error_code = _error_code(event)
    elif kind in ("response.completed", "response.incomplete", "response.failed"):
        answer.ended = True
        response = event.get("response")
        if isinstance(response, dict):
            _response_object(response, answer, choices)
        if kind == "response.failed" and answer.error_code is None:
            answer.error_code = "failed"


def _response_object(response: dict[str, Any], answer: Answer, choices: _Choices) -> None:
    usage = response.get("usage")
    if isinstance(usage, dict):
        _usage(usage, "input_tokens", "output_tokens", answer)
    details = response.get("incomplete_details")
    if isinstance(details, dict) and details.get("reason") == "max_output_tokens":
        choices.reasons[0] = "length"
    if response.get("error"):
        answer.error_code = _error_code(response["error"])


def _response_items(response: dict[str, Any], choices: _Choices) -> None:
    for index, item in enumerate(response.get("output") or ()):
        if not isinstance(item, dict):
            continue
        if item.get("type") != "message":
            choices.other_content = True
            continue
        for part in item.get("content") or ():
            if isinstance(part, dict) and isinstance(part.get("text"), str):
                choices.texts.setdefault(index, []).append(part["text"])


def _usage(usage: dict[str, Any], inputs: str, outputs: str, answer: Answer) -> None:
    given, made = usage.get(inputs), usage.get(outputs)
    if isinstance(given, int):
        answer.input_tokens = given
    if isinstance(made, int):
        answer.output_tokens = made
