"""From a finished request to the line that is written of it. Pure.

A line is an object with `kind`: `request` or `feedback`. Users and sessions are in it as keyed hashes, so that one
user's requests can be found and erased without a name on the disk. Of token log-probabilities only the numbers are
kept: the tokens beside them would be the text, in pieces that no rule recognises.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from serving.openai_protocol import Operation
from serving.request_log.frames import Frame
from serving.request_log.marks import mark_of
from serving.request_log.redacting import Redactor
from serving.request_log.tool_calls import tool_calls_in
from serving.streaming import read_body, read_stream, sse_payloads

VERSION = 1
LONGEST_PROMPT_BYTES = 1024 * 1024
"""The text of a longer prompt is left out."""
MOST_LOGPROBS = 4096
"""Of one answer."""


class LineMaker:
    """Makes the lines of one gateway.

    Args:
        secret: keys the hashes of users and sessions: the gateways' own.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._redactor = Redactor()

    def line(self, frame: Frame) -> bytes:
        """One line, with its end. Never raises over what a client or an engine sent."""
        facts = frame.facts
        for name in ("user", "session"):
            if facts.get(name):
                facts[name] = mark_of(self._secret, str(facts[name]))
        facts["v"] = VERSION
        may_tell = bool(facts.pop("may_tell", False))
        if facts["kind"] == "feedback":
            comment = facts.pop("comment", "")
            if may_tell and comment:
                facts["comment"] = self._redactor.text(str(comment))
        else:
            self._add_answer(facts, frame.answer, may_tell=may_tell)
            if may_tell and frame.prompt:
                facts["prompt"] = self._prompt(frame.prompt)
        return orjson.dumps(facts) + b"\n"

    def _prompt(self, body: bytes) -> Any:  # noqa: ANN401 - JSON of any shape
        if len(body) > LONGEST_PROMPT_BYTES:
            return None
        try:
            return self._redactor.body(orjson.loads(body))
        except ValueError:
            return None

    def _add_answer(self, facts: dict[str, Any], data: bytes, *, may_tell: bool) -> None:
        if not data:
            return
        operation = Operation(facts["operation"])
        streamed = bool(facts.get("event_stream"))
        if may_tell:
            answer = read_stream(operation, data) if streamed else read_body(operation, data)
            facts["answers"] = [self._redactor.text(text) for text in answer.texts]
            calls = tool_calls_in(operation, data, event_stream=streamed)
            if calls:
                facts["tool_calls"] = [self._redactor.call(call.name, call.arguments) for call in calls]
        numbers = logprobs_in(data, streamed=streamed)
        if numbers:
            facts["logprobs"] = numbers


def logprobs_in(data: bytes, *, streamed: bool) -> list[float]:
    """The log-probability of each token of the first choice, in order; empty when the answer has none."""
    if b'"logprobs"' not in data:
        return []
    found: list[float] = []
    for payload in sse_payloads(data) if streamed else [data]:
        try:
            chunk = orjson.loads(payload)
        except ValueError:
            continue
        choices = chunk.get("choices") if isinstance(chunk, dict) else None
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict) and choice.get("index", 0) == 0:
                found += _numbers(choice.get("logprobs"))
        if len(found) >= MOST_LOGPROBS:
            break
    return [round(value, 5) for value in found[:MOST_LOGPROBS]]


def _numbers(logprobs: object) -> list[float]:
    """Chat has objects under `content`, completions a list `token_logprobs` (its first may be null)."""
    if not isinstance(logprobs, Mapping):
        return []
    content = logprobs.get("content")
    if isinstance(content, list):
        values = [part.get("logprob") for part in content if isinstance(part, Mapping)]
    else:
        listed = logprobs.get("token_logprobs")
        values = listed if isinstance(listed, list) else []
    return [float(value) for value in values if isinstance(value, int | float)]
