"""Read what an engine answered, after the fact: server-sent events and whole bodies. Pure.

Nothing here runs while tokens pass. The gateway keeps references to the chunks, and reads them once the answer is
complete. The parser is tolerant: an event that isn't JSON is skipped, unknown fields are ignored.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import orjson

from serving.openai_protocol import Operation

if TYPE_CHECKING:
    from mypy_extensions import i64  # an int like any other, which compiled code keeps in a register

DONE: Final = b"[DONE]"
MOST_TOKENS: Final = 2**31 - 1
"""An engine that tells more of one request, or less than none, is not believed: its tokens are then unknown. Limits
would hold its key up for months, sums would be spoilt for ever, and the request log has no room for such numbers."""
_MARK_WITHIN_BYTES: Final = 64
"""Of the end of a stream in which the mark is looked for."""
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
_MORE_TEXT: Final = re.compile(rb'"(?:content|text)": ?"').search

_MOST_TEXT_BYTES: Final = 256
"""Of an event's text that is looked through byte by byte; longer ones are few, and left to the parser."""

_MOST_INTERRUPTIONS: Final = 8
"""Of a run of like events by other ones; a stream with more has few that are alike."""


class Sample:
    """An event of a chat stream that others are like, but for their text: engines send hundreds of such."""

    __slots__ = ("_between", "prefix", "suffix")

    def __init__(self, prefix: bytes, suffix: bytes) -> None:
        self.prefix = prefix
        """What stands before the text."""
        self.suffix = suffix
        """What stands behind it, to the end of the event."""
        self._between = suffix + prefix

    def like(self, data: bytes, at: int, texts: list[bytes] | None = None) -> int:
        """Go over the events from `at` on that are like this one, as long as their texts are short.

        >>> Sample(b'{"content":"', b'"}').like(b'{"content":"Hi"}{"content":"!"}{}', 0, texts := [])
        31
        >>> texts
        [b'Hi', b'!']

        Returns:
            Where the first other one begins.
        """
        prefix, suffix, between = self.prefix, self.suffix, self._between
        other: i64 = at
        start: i64 = other + len(prefix)
        if data[at:start] != prefix:
            return at
        size: i64 = len(data)
        step: i64 = len(between)
        while True:
            end: i64 = start
            stop: i64 = min(size, start + _MOST_TEXT_BYTES)
            while end < stop:
                byte: i64 = data[end]
                if byte == 34 or byte < 32:  # the quote that ends it, or what no JSON string holds
                    break
                end += 2 if byte == 92 else 1  # a backslash, and what it escapes
            if end >= stop:
                return other
            another = end + step <= size and data[end : end + step] == between
            if not another and data[end : end + len(suffix)] != suffix:
                return other
            if texts is not None:
                texts.append(data[start:end])
            if not another:
                return end + len(suffix)
            start = end + step
            other = start - len(prefix)


def sample_of(event: bytes) -> Sample | None:
    """Take an event, with the empty line that ends it, for a sample; None when it isn't one with a short text.

    Nor is one with a second text, of another choice for instance: a run would be read as if that had been said once.
    """
    found = _CONTENT(event) if event[:5] == b"data:" and event[-2:] == b"\n\n" else None
    if found is None:
        return None
    at: i64 = found.end()
    stop: i64 = min(len(event), at + _MOST_TEXT_BYTES)
    end: i64 = at
    while end < stop:
        byte: i64 = event[end]
        if byte == 34:
            suffix = event[end:]
            return None if _MORE_TEXT(suffix) is not None else Sample(event[:at], suffix)
        end += 2 if byte == 92 else 1
    return None


def _chat_payloads(data: bytes) -> list[bytes]:
    """The `data` of each event of a chat stream, runs of events that differ in their text alone as one each.

    Engines send hundreds of events that are the same up to the text, byte for byte; comparing bytes is many times
    faster than parsing each. The texts of a run together must be the inside of one JSON string, else it is not joined.

    >>> event = b'data: {"choices":[{"index":0,"delta":{"content":"%b"}}]}' + bytes([10, 10])
    >>> _chat_payloads(b"".join(event % letter for letter in (b"a", b"b", b"c")) + b"data: [DONE]")
    [b'{"choices":[{"index":0,"delta":{"content":"abc"}}]}', b'[DONE]']
    """
    sample = _sample_of(data.split(b"\n", 9))
    at = data.find(sample.prefix) if sample is not None and b"\r" not in data else -1
    if sample is None or at < 0 or (at > 0 and not data.endswith(b"\n\n", 0, at)):
        return sse_payloads(data)
    payloads = sse_payloads(data[:at]) if at else []
    size, interruptions = len(data), 0
    while at < size:
        texts: list[bytes] = []
        at = sample.like(data, at, texts)
        payloads += _run_of(sample, texts)
        if at < size:
            interruptions += 1
            stop = data.find(b"\n\n", at) if interruptions < _MOST_INTERRUPTIONS else -1
            stop = size if stop < 0 else stop + 2
            payloads += sse_payloads(data[at:stop])
            at = stop
    return payloads


def _run_of(sample: Sample, texts: list[bytes]) -> list[bytes]:
    """The payloads of events that differ in their text: one, if their texts can be told as one string."""
    text = b"".join(texts)
    if len(texts) > 1 and _is_inside_of_string(text):
        texts = [text]
    return [(sample.prefix + text + sample.suffix)[5:].strip() for text in texts]


def _sample_of(lines: list[bytes]) -> Sample | None:
    """An event that may be like those behind it. The first often is a special one: it says the role."""
    for line in lines[2:8] if len(lines) > 6 else ():
        sample = sample_of(line + b"\n\n")
        if sample is not None:
            return sample
    return None


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
        return _ends_with_mark(tail)
    if operation is _RESPONSES:
        return _ends_with_mark(tail) or any(
            mark in tail for mark in (b"response.completed", b"response.incomplete", b"response.failed")
        )
    return True


def _ends_with_mark(tail: bytes) -> bool:
    """Whether an event of its own is `[DONE]`; an answer may speak of it in its last words, where no line begins."""
    before, found, _ = tail[-_MARK_WITHIN_BYTES:].rpartition(DONE)
    if not found:
        return False
    field = before.rstrip(b" ")
    if field == b"data:":  # a line begins here if the stream does, and not just what was cut off of it
        return len(tail) <= _MARK_WITHIN_BYTES
    return field.endswith((b"\ndata:", b"\rdata:"))


def is_error_event(chunk: bytes) -> bool:
    """Whether a stream begins with an error instead of an answer."""
    return chunk.lstrip()[:16].startswith(ERROR_PREFIXES)


_MOST_HELD_BYTES: Final = 64 * 1024
_MOST_SAMPLES: Final = 4
"""Events of a stream that are taken for a sample of what follows: the first is another one than those behind it."""


class UsageFilter:
    """Takes the usage event out of a stream whose client did not ask for it: the gateway did, to count its tokens.

    It is the one event that has usage and no choices. Nothing else is touched; an event that comes in parts is held
    back until it is whole.
    """

    __slots__ = ("_held", "_sample", "_samples")

    def __init__(self) -> None:
        self._held = b""
        self._sample: Sample | None = None
        """An event that was searched and has no usage."""
        self._samples = 0

    def passes(self, data: bytes) -> bool:
        """Whether a piece can be passed on just as it is.

        Events that are like an earlier one up to their text need not be searched.
        """
        if self._held or data[-2:] != b"\n\n":
            return False
        at = self._sample.like(data, 0) if self._sample is not None else 0
        if at == len(data):
            return True
        if b'"usage"' in (data[at:] if at else data):
            return False
        if not at and self._samples < _MOST_SAMPLES:
            self._samples += 1
            last = data.rfind(b"\n\n", 0, len(data) - 2)
            self._sample = sample_of(data[last + 2 :] if last >= 0 else data)
        return True

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
