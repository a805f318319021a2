"""What a gateway tells the drift watch of one request, and what the watch tells back. Pure; their contract.

Over a local stream socket, or over a cluster's network after an introduction (`serving.introduction`), frames of four
bytes (the length, big-endian) and JSON:

    gateway -> watch    a `Sighting`
    watch -> gateway    a `Scored`, for sightings that asked for one

A sighting holds the text that the watch embeds. It is in memory and on that socket only: nothing of it is written
anywhere, and neither side logs it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import orjson

from guardrails.checks.base import Part
from guardrails.prompts import prompt_of
from serving.errors import ServingError

MAX_TEXT_CHARACTERS = 2000
"""Characters of a text that travel: of a longer one the first half of them and the last half."""

MAX_FRAME_BYTES = 128 * 1024
"""Above what six texts of that length can take; a longer frame is no frame of ours."""

_LENGTH_BYTES = 4
_PLAIN = frozenset(("role", "content", "name"))
"""Of a message whose text is its content and nothing else."""


class BrokenFrame(ServingError):
    """What came over the socket is not what a gateway or a watch says; the connection is closed."""


class Sighting(NamedTuple):
    """One sampled request that has ended."""

    model: str
    request_id: str
    at: float
    """Wall-clock seconds of its admission."""
    tenant: str
    """Namespace of its key."""
    route: str
    """Operation: chat, completions, responses, embeddings."""
    prompt: str
    """What was asked, shortened: the last message of the user."""
    characters: int
    """Length of it before that."""
    answer: str = ""
    """What was answered; empty unless a score is wanted."""
    samples: tuple[str, ...] = ()
    """Further answers to the same request, for semantic entropy and nothing else: the request is told of apart."""
    rollout: str = ""
    """Whose evidence its score will be."""
    canary: bool = False
    weight_percent: int = 0
    token: int = 0
    """What `Scored` names it by; 0 when no score is wanted."""
    user: str = ""
    """The mark of who asked, where the request named somebody: a keyed hash, by which they can be erased."""


class Scored(NamedTuple):
    """The score of one answer; higher is worse."""

    token: int
    name: str
    """Of the signal, after `score/`."""
    score: float


_SIGHTING = frozenset(Sighting._fields)
_TEXTS = ("model", "request_id", "tenant", "route", "prompt", "answer", "rollout", "user")
_COUNTS = ("characters", "weight_percent", "token")
_NO_SIGHTING = "a frame that is no sighting; gateway and drift watch must be of one version"
_NO_TIME = 1e11
"""Seconds since the epoch that no request has: those of the year 5138."""


def shortened(text: str) -> str:
    """A text within the limit.

    >>> len(shortened("x" * 5000)), shortened("short")
    (2000, 'short')
    """
    half = MAX_TEXT_CHARACTERS // 2
    return text if len(text) <= MAX_TEXT_CHARACTERS else text[:half] + text[-half:]


def asked_text(fields: Mapping[str, Any]) -> str:
    """What a request asks: the content of its last message of the user, or of its prompt or input.

    A conversation is sent anew with each turn, and a system prompt with each request: counted whole, they would drown
    what is new.

    >>> asked_text({"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]})
    'Hi'
    """
    alone = _only_text(fields)
    if alone is not None:
        return alone
    texts = [t for t in prompt_of(dict(fields)).texts if t.role == "user" and t.part is Part.CONTENT]
    if not texts:
        return ""
    last = texts[-1].message
    return "\n".join(t.text for t in texts if t.message == last)


def _only_text(fields: Mapping[str, Any]) -> str | None:
    """The same where it is one plain string that nothing else in the request can follow; nearly always, and at once."""
    if "input" in fields or "suffix" in fields or "instructions" in fields:
        return None
    messages, prompt = fields.get("messages"), fields.get("prompt")
    if messages is None:
        return prompt if isinstance(prompt, str) else None
    last = messages[-1] if isinstance(messages, list) and messages and prompt is None else None
    if not isinstance(last, dict) or last.get("role") != "user" or not last.keys() <= _PLAIN:
        return None
    content = last.get("content")
    return content if isinstance(content, str) else None


def frame(said: Sighting | Scored) -> bytes:
    """One frame."""
    return framed(said._asdict())


def framed(said: Mapping[str, Any]) -> bytes:
    """Any JSON as one frame."""
    body = orjson.dumps(said)
    return len(body).to_bytes(_LENGTH_BYTES, "big") + body


def sighting_of(body: bytes) -> Sighting:
    """Read a sighting. Fields that a newer gateway may add are left out: on a cluster the two are updated apart.

    Raises:
        BrokenFrame: it is none.

    """
    try:
        fields = orjson.loads(body)
        fields["samples"] = tuple(fields["samples"])
        found = Sighting(**{name: value for name, value in fields.items() if name in _SIGHTING})
    except (ValueError, TypeError, KeyError):
        raise BrokenFrame(_NO_SIGHTING) from None
    if not _is_sound(found):
        raise BrokenFrame(_NO_SIGHTING)
    return found


def _is_sound(found: Sighting) -> bool:
    """Whether each field is of its kind: what is not would end the watch, and every gateway's line with it."""
    told: dict[str, Any] = found._asdict()  # compiled, reading an attribute of another kind than declared raises
    at: Any = told["at"]
    return (
        all(isinstance(told[name], str) for name in _TEXTS)
        and all(isinstance(text, str) for text in told["samples"])
        and all(isinstance(told[name], int) and told[name] >= 0 for name in _COUNTS)
        and isinstance(at, int | float)
        and 0.0 <= at < _NO_TIME
    )


def scored_of(body: bytes) -> Scored:
    """Read a score; fields that a newer watch may add are left out.

    Raises:
        BrokenFrame: it is none.

    """
    try:
        found = orjson.loads(body)
        return Scored(int(found["token"]), str(found["name"]), float(found["score"]))
    except (ValueError, TypeError, KeyError):
        raise BrokenFrame("a frame that is no score; gateway and drift watch must be of one version") from None


class Frames:
    """Cuts a stream into the bodies of its frames."""

    def __init__(self) -> None:
        self._rest = b""
        self.most_bytes = MAX_FRAME_BYTES
        """Of one frame."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take what was read; the bodies that are complete with it.

        Raises:
            BrokenFrame: a length beyond the limit.

        """
        buffer, place = self._rest + data, 0
        while len(buffer) - place >= _LENGTH_BYTES:
            start = place + _LENGTH_BYTES
            length = int.from_bytes(buffer[place:start], "big")
            if length > self.most_bytes:
                raise BrokenFrame(f"a frame of {length} bytes, at most {self.most_bytes} are allowed")
            if len(buffer) < start + length:
                break
            place = start + length
            yield buffer[start:place]
        self._rest = buffer[place:]
