"""Take personal data and secrets out of what is to be written. Pure.

The rules are the guardrails' own for personal data and keys. Every string of a prompt's body goes through them, names
of fields too; what says who asked is left out altogether, and so are images and sound, which no rule can read.
"""

from __future__ import annotations

import re
from typing import Any

import orjson

from guardrails.checks.base import Context
from guardrails.enforcement import ActivePolicy, activate
from guardrails.policy import parse_policy
from guardrails.redaction import settled
from guardrails.verdicts import Direction

RULES = """\
schema: 1
name: request-log
checks:
  - {name: pii, direction: both, action: redact, thresholds: 0.1}
  - {name: secrets, direction: both, action: redact, thresholds: 0.1}
"""
"""Far below the guardrails' own thresholds: a number too many that is masked harms no log."""
WHO_ASKED = frozenset({"user", "safety_identifier", "prompt_cache_key", "metadata"})
"""Fields of a body that name a person or belong to the client's own books."""
LEFT_OUT = "[left out]"
_UNREADABLE = frozenset({
    "image_url", "input_audio", "input_image", "input_file", "file", "audio", "file_data", "file_url",
    "video_url", "audio_url", "image", "image_embeds", "audio_embeds", "prompt_embeds",
})  # fmt: skip
"""Given as an object or as a string: an address of a picture may hold a signature that opens it."""
_PLAIN_WORD = re.compile("[a-z_-]{0,40}").fullmatch
"""Small letters alone are neither a number nor a key: names of fields, roles."""
_LONGEST_WORD = 2000
"""A longer string without any space is data, not text."""


class Redactor:
    """The rules, made once."""

    def __init__(self) -> None:
        self._active: ActivePolicy = activate(parse_policy(RULES))

    def text(self, text: str) -> str:
        """A text without what the rules find in it."""
        if _PLAIN_WORD(text):
            return text
        if len(text) > _LONGEST_WORD and " " not in text[:_LONGEST_WORD] and text[:_LONGEST_WORD].isascii():
            return LEFT_OUT
        return settled(text, "", self._active.output, Context(Direction.OUTPUT))

    def body(self, body: Any) -> Any:  # noqa: ANN401 - JSON of any shape
        """A request's body in which every string was redacted."""
        if isinstance(body, dict):
            return {self.text(k): self._inner(k, v) for k, v in body.items() if k not in WHO_ASKED}
        return self._inner("", body)

    def call(self, name: str, arguments: str) -> dict[str, str]:
        """A tool call of an answer. Arguments are JSON mostly, whose strings are looked at without its escapes."""
        try:
            value = orjson.loads(arguments)
        except ValueError:  # cut, or no JSON at all
            return {"name": self.text(name), "arguments": self.text(arguments)}
        try:
            told = orjson.dumps(self._inner("", value)).decode()
        except (TypeError, RecursionError):  # nested deeper than orjson writes, though it reads it
            told = LEFT_OUT
        return {"name": self.text(name), "arguments": told}

    def _inner(self, key: str, value: Any) -> Any:  # noqa: ANN401
        if key in _UNREADABLE and isinstance(value, dict | list | str):
            return LEFT_OUT
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {self.text(str(k)): self._inner(str(k), v) for k, v in value.items()}
        if isinstance(value, list):
            return [self._inner("", part) for part in value]
        return value
