"""Read what an engine answered, after the fact: server-sent events and whole bodies. Pure.

Nothing here runs while tokens pass. The gateway keeps references to the chunks, and reads them once the answer is
complete. The parser is tolerant: an event that isn't JSON is skipped, unknown fields are ignored.
"""

from __future__ import annotations

import re
from typing import Any, Final

import orjson

from serving.openai_protocol import Operation

DONE: Final = b"[DONE]"
MOST_TOKENS: Final = 2**31 - 1
"""An engine that tells more of one request, or less than none, is not believed: its tokens are then unknown. Limits
would hold its key up for months, sums would be spoilt for ever, and the request log has no room for such numbers."""
ERROR_PREFIXES: Final = (b'data: {"error"', b'data:{"error"', b"event: error")


_CHAT: Final = Operation.CHAT
_RESPONSES: Final = Operation.RESPONSES


class Answer:
    """What was found in an answer. `texts` and `finish_reasons` have one entry per choice."""

    __slots__ = ("ended", "error_code", "events", "finish_reasons", "has_content", "input_tokens", "output_tokens",
                 "refused", "texts")  # fmt: skip

    def __init__(self, ended: bool = False) -> None:
        self.texts: tuple[str, ...] = ()
        self.finish_reasons: tuple[str, ...] = ()
        self.has_content = False
        """Some text, tool call, refusal or reasoning was there."""
        self.input_tokens: int | None = None
        self.output_tokens: int | None = None
        self.refused = False
        """The engine says itself that this is a refusal."""
        self.events = 0
        """Server-sent events with data, without the final mark."""
        self.ended = ended
        """The stream said itself that it was complete."""
        self.error_code: str | None = None
        """An error that the engine reported inside the answer."""

    @property
    def length_stop(self) -> bool:
        """Whether a choice ended because it reached its length limit."""
        return "length" in self.finish_reasons


class _Choices:
    def __init__(self) -> None:
        self.texts: dict[int, list[str]] = {}
        self.reasons: dict[int, str] = {}
        self.other_content = False
        self.refused = False

    def into(self, answer: Answer) -> None:
        answer.refused = self.refused
        if len(self.texts) == 1 and self.reasons.keys() <= self.texts.keys():  # one choice: nearly always
            ((index, pieces),) = self.texts.items()
            text = "".join(pieces)
            answer.texts = (text,)
            answer.finish_reasons = (self.reasons.get(index, ""),)
            answer.has_content = self.other_content or (bool(text) and not text.isspace())
            return
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
        if event[:5] == b"data:" and b"\n" not in event:
            payloads.append(event[5:].strip())
            continue
        lines = [line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:")]
        if lines:
            payloads.append(b"\n".join(lines))
    return payloads


_CONTENT: Final = re.compile(rb'"content": ?"').search


def _chat_payloads(data: bytes) -> list[bytes]:
    """The `data` of each event of a chat stream, a long run of events that differ in their text alone joined to one.

    Engines send hundreds of events that are the same up to the text, byte for byte; copying and comparing bytes is many
    times faster than parsing each. The run is put together again from its texts and must be what was sent, and the
    texts together must be the inside of one JSON string; otherwise nothing is joined.

    >>> event = b'data: {"choices":[{"index":0,"delta":{"content":"%b"}}]}' + bytes([10, 10])
    >>> _chat_payloads(b"".join(event % letter for letter in (b"a", b"b", b"c")) + b"data: [DONE]")
    [b'{"choices":[{"index":0,"delta":{"content":"abc"}}]}', b'[DONE]']
    """
    lines = data.split(b"\n")
    prefix, suffix = _around_the_text(lines)
    at = data.find(prefix) if prefix else -1
    if at < 0 or (at > 0 and not data.endswith(b"\n\n", 0, at)):
        return sse_payloads(data)
    first, last = data.count(b"\n", 0, at), len(lines) - 1
    while last > first and not (lines[last].startswith(prefix) and lines[last].endswith(suffix)):
        last -= 1
    of_run, start = lines[first : last + 1 : 2], len(prefix)
    if min(map(len, of_run)) < start + len(suffix):  # compiled, such a slice of a shorter line fails (mypyc 2.4)
        return sse_payloads(data)
    texts = [line[start : len(line) - len(suffix)] for line in of_run]
    run = prefix + (suffix + b"\n\n" + prefix).join(texts) + suffix
    after, text = data[at + len(run) :], b"".join(texts)
    if not data.startswith(run, at) or (after and after[:2] != b"\n\n") or not _is_inside_of_string(text):
        return sse_payloads(data)
    return [*sse_payloads(data[:at]), (prefix + text + suffix)[5:].strip(), *sse_payloads(after)]


def _around_the_text(lines: list[bytes]) -> tuple[bytes, bytes]:
    """What stands before and after the text in an event that can serve as the sample; empty when there is none.

    The first event often is a special one: it says the role. An event whose text has a backslash won't do: the quote
    that ends its text could be an escaped one.
    """
    for sample in lines[2:8] if len(lines) > 6 else ():
        found = _CONTENT(sample) if sample[:5] == b"data:" else None
        close = sample.find(b'"', found.end()) if found is not None else -1
        if found is not None and close >= 0 and b"\\" not in sample[found.end() : close]:
            return sample[: found.end()], sample[close:]
    return b"", b""


def _is_inside_of_string(text: bytes) -> bool:
    try:
        return isinstance(orjson.loads(b'"%b"' % text), str)
    except ValueError:
        return False


def _decode(payloads: list[bytes]) -> list[Any]:
    try:  # one call for all of them is several times faster than one for each
        decoded = orjson.loads(b"[" + b",".join(payloads) + b"]")
    except ValueError:
        return [value for value in map(_decode_one, payloads) if value is not None]
    return list(decoded)


def _decode_one(payload: bytes) -> Any:  # noqa: ANN401 - any JSON value
    try:
        return orjson.loads(payload)
    except ValueError:
        return None


def says_done(operation: Operation, tail: bytes) -> bool:
    """Whether the end of a stream says that it is complete, from its last bytes.

    Chat and completions end with `[DONE]`, responses with a final event; what others do isn't known, so they are
    complete when HTTP says so.
    """
    if operation in (_CHAT, Operation.COMPLETIONS):
        return DONE in tail[-64:]
    if operation is _RESPONSES:
        return DONE in tail[-64:] or any(
            mark in tail for mark in (b"response.completed", b"response.incomplete", b"response.failed")
        )
    return True


def is_error_event(chunk: bytes) -> bool:
    """Whether a stream begins with an error instead of an answer."""
    return chunk.lstrip()[:16].startswith(ERROR_PREFIXES)


_MOST_HELD_BYTES: Final = 64 * 1024


class UsageFilter:
    """Takes the usage event out of a stream whose client did not ask for it: the gateway did, to count its tokens.

    It is the one event that has usage and no choices. Nothing else is touched; an event that comes in parts is held
    back until it is whole.
    """

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = b""

    def passes(self, data: bytes) -> bool:
        """Whether a piece can be passed on just as it is."""
        return not self._held and data[-2:] == b"\n\n" and b'"usage"' not in data

    def feed(self, data: bytes) -> bytes:
        """Take in a piece. Returns what may go to the client."""
        data = self._held + data
        end = max(data.rfind(b"\n\n") + 2, data.rfind(b"\r\n\r\n") + 4)
        if end < 4 or len(data) - end > _MOST_HELD_BYTES:  # none has ended yet, or these are no events
            end = 0 if len(data) <= _MOST_HELD_BYTES else len(data)
        self._held, data = data[end:], data[:end]
        if b'"usage"' not in data:
            return data
        events = _EVENTS(data)
        return b"".join(e for e in events if not (b'"usage"' in e and _is_usage(e)))

    def rest(self) -> bytes:
        """What is still held back, when nothing more will come."""
        held, self._held = self._held, b""
        return held


_EVENTS: Final = re.compile(rb".*?(?:\r\n\r\n|\n\n|\Z)", re.DOTALL).findall


def _is_usage(event: bytes) -> bool:
    payloads = sse_payloads(event)
    value = _decode_one(payloads[0]) if payloads else None
    return isinstance(value, dict) and value.get("choices") == [] and isinstance(value.get("usage"), dict)


def read_stream(operation: Operation, data: bytes) -> Answer:
    """Read a finished event stream, complete or from its beginning to where it was cut."""
    payloads = _chat_payloads(data) if operation is _CHAT else sse_payloads(data)
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
        elif operation is _RESPONSES:
            _responses_event(chunk, answer, choices)
        else:
            _choices_chunk(chunk, "delta", answer, choices)
    choices.into(answer)
    return answer


def read_body(operation: Operation, data: bytes) -> Answer:
    """Read a whole, not streamed answer."""
    answer = Answer(ended=True)
    body = _decode_one(data)
    if not isinstance(body, dict):
        answer.ended = False
        return answer
    if _plain_chat(body, answer):
        return answer
    choices = _Choices()
    if operation is _RESPONSES:
        _response_object(body, answer, choices)
        _response_items(body, choices)
    else:
        _choices_chunk(body, "message", answer, choices)
    choices.into(answer)
    return answer


def _plain_chat(body: dict[str, Any], answer: Answer) -> bool:
    """Read an answer of one choice with text and nothing special: nearly all are so. False for any other, unread."""
    choices = body.get("choices")
    if type(choices) is not list or len(choices) != 1 or body.get("error"):
        return False
    choice = choices[0]
    message = choice.get("message") if type(choice) is dict else None
    text = message.get("content") if type(message) is dict else None
    reason = choice.get("finish_reason") if text else None
    if not isinstance(message, dict) or type(text) is not str or type(reason) is not str:
        return False
    answer.texts, answer.finish_reasons = (text,), (reason,)
    answer.has_content = not text.isspace() or _other_content(message)
    answer.refused = bool(message.get("refusal"))
    usage = body.get("usage")
    if type(usage) is dict:
        _usage(usage, "prompt_tokens", "completion_tokens", answer)
    return True


def _error_code(error: object) -> str:
    if isinstance(error, dict):
        return str(error.get("code") or error.get("type") or "error")
    return "error"


def _choices_chunk(chunk: dict[str, Any], part: str, answer: Answer, choices: _Choices) -> None:
    usage = chunk.get("usage")
    if isinstance(usage, dict):
        _usage(usage, "prompt_tokens", "completion_tokens", answer)
    for choice in _listed(chunk.get("choices")):
        if not isinstance(choice, dict):
            continue
        index = _index(choice.get("index"))
        message = choice.get(part)
        if isinstance(message, dict):
            text = message.get("content")
            # Most deltas hold nothing but text: only the others are looked at more closely.
            if len(message) > 1 or not text:
                choices.other_content |= _other_content(message)
                choices.refused |= bool(message.get("refusal"))
        else:
            text = choice.get("text")
        if isinstance(text, str):
            choices.texts.setdefault(index, []).append(text)
        reason = choice.get("finish_reason")
        if isinstance(reason, str):
            choices.reasons[index] = reason


def _index(value: object) -> int:
    return value if type(value) is int else 0


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _other_content(message: dict[str, Any]) -> bool:
    return any(message.get(name) for name in ("tool_calls", "refusal", "reasoning_content", "reasoning"))


def _responses_event(event: dict[str, Any], answer: Answer, choices: _Choices) -> None:
    kind = event.get("type")
    if kind == "response.output_text.delta":
        delta = event.get("delta")
        if isinstance(delta, str):
            choices.texts.setdefault(_index(event.get("output_index")), []).append(delta)
    elif isinstance(kind, str) and kind.endswith(".delta"):
        choices.other_content = True
        choices.refused |= kind == "response.refusal.delta"
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
    for index, item in enumerate(_listed(response.get("output"))):
        if not isinstance(item, dict):
            continue
        if item.get("type") != "message":
            choices.other_content = True
            continue
        for part in _listed(item.get("content")):
            if isinstance(part, dict) and isinstance(part.get("text"), str):
                choices.texts.setdefault(index, []).append(part["text"])
            elif isinstance(part, dict) and part.get("type") == "refusal":
                choices.other_content = choices.refused = True


def _usage(usage: dict[str, Any], inputs: str, outputs: str, answer: Answer) -> None:
    given, made = usage.get(inputs), usage.get(outputs)
    if type(given) is int and 0 <= given <= MOST_TOKENS:
        answer.input_tokens = given
    if type(made) is int and 0 <= made <= MOST_TOKENS:
        answer.output_tokens = made
