"""What gateways and the guardrails' service say to each other, as JSON; in mid-upgrade across a version.

What a neighbouring version says more is skipped, so a newer one adds only what may be: fields of the envelope and of a
text, places behind the four of a hit. Options of a check decide its verdict and are never skipped: those that are as
by default are not sent, and with one that is not known here a request is refused, so that a replica that knows it is
asked.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from guardrails.checks.base import Context, Part
from guardrails.checks.catalogue import BUILT_IN
from guardrails.enforcement import ActiveCheck
from guardrails.errors import NonsenseAnswer
from guardrails.model_checks.base import ModelText
from guardrails.policy import CheckRule
from guardrails.verdicts import Direction, Hit

MOST_TEXTS = 256
MOST_CHARACTERS = 1_000_000


class _Told(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Text(_Told):
    text: Annotated[str, Field(max_length=MOST_CHARACTERS)]
    context_characters: Annotated[int, Field(ge=0)]
    direction: Direction
    part: Part


class _Request(_Told):
    """Texts for one kind of check; each names one of the options that are listed once."""

    kind: str
    options: tuple[dict[str, Any], ...]
    texts: Annotated[tuple[tuple[int, _Text], ...], Field(max_length=MOST_TEXTS)]


_PLACES = 4
_Found = Annotated[
    tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)], Annotated[float, Field(ge=0, le=1)], str],
    BeforeValidator(lambda found: found[:_PLACES] if isinstance(found, list) else found),
]
_ANSWER: TypeAdapter[tuple[tuple[_Found, ...], ...]] = TypeAdapter(tuple[tuple[_Found, ...], ...])


def write_request(texts: Sequence[ModelText]) -> bytes:
    """A request for texts of one kind of check."""
    options: dict[str, int] = {}
    written: list[tuple[int, dict[str, Any]]] = []
    for text in texts:
        place = options.setdefault(text.active.options.model_dump_json(exclude_defaults=True), len(options))
        told = {
            "text": text.text.encode("utf-8", "replace").decode(),
            "context_characters": text.context_characters,
            "direction": text.context.direction.value,
            "part": text.context.part.value,
        }
        written.append((place, told))
    kind = texts[0].active.kind.name
    body = {"kind": kind, "options": [json.loads(option) for option in options], "texts": written}
    return json.dumps(body, ensure_ascii=False).encode()


def read_request(body: bytes) -> list[ModelText]:
    """The texts of a request, each with a check of its own options.

    Raises:
        ValueError: it is no request, or of a kind or with an option that is not known here.
    """
    try:
        request = _Request.model_validate_json(body)
        kind = BUILT_IN[request.kind]
        checks = [
            ActiveCheck(CheckRule(name=kind.name), kind, None, kind.options.model_validate(options))
            for options in request.options
        ]
        return [
            ModelText(checks[place], t.text, Context(t.direction, part=t.part), t.context_characters)
            for place, t in request.texts
        ]
    except (ValidationError, KeyError, IndexError) as error:
        raise ValueError(f"this is no request for a check ({type(error).__name__})") from None


def write_answer(found: Sequence[Sequence[Hit]]) -> bytes:
    """The hits of each text."""
    return json.dumps([[(hit.start, hit.end, hit.score, hit.reason) for hit in hits] for hits in found]).encode()


def read_answer(body: bytes, texts: Sequence[ModelText]) -> list[Sequence[Hit]]:
    """The hits of each text of a request.

    Raises:
        NonsenseAnswer: it is no answer, or one to other texts.
    """
    try:
        told = _ANSWER.validate_json(body)
    except ValidationError:
        raise NonsenseAnswer("the service answered something that is no verdict") from None
    if len(told) != len(texts):
        raise NonsenseAnswer(f"the service gave {len(told)} verdicts for {len(texts)} texts")
    for hits, text in zip(told, texts, strict=True):
        if any(not start <= end <= len(text.text) for start, end, _, _ in hits):
            raise NonsenseAnswer("the service found something outside of the text")
    return [tuple(Hit(start, end, score, reason) for start, end, score, reason in hits) for hits in told]
