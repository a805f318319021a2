"""The texts of a request, and the seams between them. Pure.

Chat (`messages`), completions (`prompt`), responses (`input`, `instructions`) and embeddings (`input`) are
understood. Documents that an engine is to answer from are looked at as what tools have found; definitions of tools
(names, descriptions, the words of their parameters) are the developer's. What isn't text (images, sound) is left alone:
no check here can read it. Token ids or embeddings instead of text are reported, since a prompt given that way would get
around every check.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from guardrails.checks.base import Part
from guardrails.verdicts import Edit, Finding

Json = dict[str, Any]
DOCUMENT_DEPTH = 8
SCHEMA_DEPTH = 16
_SCHEMA_WORDS = frozenset({"description", "title", "enum", "const", "default", "examples"})
SEAM_CHARACTERS = 200
"""How far on either side of a seam something may begin and end that is split over messages."""


@dataclass(frozen=True, slots=True)
class PromptText:
    """One text of a request: whose it is, in which message, and how to put another in its place."""

    message: int
    role: str
    part: Part
    text: str
    put: Callable[[str], None] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Prompt:
    """The texts of a request, in order, and whether some of it is there as token ids or embeddings only."""

    texts: tuple[PromptText, ...]
    has_token_ids: bool = False


def prompt_of(body: Json) -> Prompt:
    """The texts of a request's body. Putting another text changes the body given: hand in a copy."""
    texts = [*_messages(body.get("messages")), *_messages(body.get("previous_input_messages"))]
    tokens = body.get("prompt_embeds") is not None
    for key, role in (("prompt", "user"), ("input", "user"), ("instructions", "developer"), ("suffix", "user")):
        value = body.get(key)
        if isinstance(value, str):
            texts.append(_text(len(texts), role, Part.CONTENT, body, key))
        elif isinstance(value, list):
            strings = [
                _text(place, role, Part.CONTENT, value, place) for place, v in enumerate(value) if isinstance(v, str)
            ]
            texts += strings
            tokens = tokens or any(isinstance(part, int | list) and not isinstance(part, bool) for part in value)
            texts += _messages([part for part in value if isinstance(part, dict)])
    texts += _strings_in(len(texts), "tool", Part.TOOL_RESULT, body, "documents", DOCUMENT_DEPTH)
    for key in ("tools", "functions"):
        tools = body.get(key)
        for tool in tools if isinstance(tools, list) else ():
            texts += _tool(len(texts), tool)
    return Prompt(tuple(texts), tokens)


def _tool(place: int, tool: object) -> Iterator[PromptText]:
    """What a definition of a tool says to the model: chat has it one level below, responses and `functions` do not."""
    if not isinstance(tool, dict):
        return
    for holder in (tool, tool.get("function"), tool.get("custom")):
        if isinstance(holder, dict):
            for key in ("name", "description"):
                if isinstance(holder.get(key), str):
                    yield _text(place, "developer", Part.CONTENT, holder, key)
            yield from _schema(place, holder.get("parameters"), SCHEMA_DEPTH)


def _schema(place: int, schema: object, depth: int) -> Iterator[PromptText]:
    """The words of a JSON schema that people write for models to read."""
    for key, value in schema.items() if isinstance(schema, dict) and depth else ():
        if key in _SCHEMA_WORDS:
            yield from _strings_in(place, "developer", Part.CONTENT, schema, key, DOCUMENT_DEPTH)
        elif isinstance(value, dict):
            yield from _schema(place, value, depth - 1)
        else:
            for inner in value if isinstance(value, list) else ():
                yield from _schema(place, inner, depth - 1)


def _strings_in(place: int, role: str, part: Part, holder: Any, key: str | int, depth: int) -> Iterator[PromptText]:  # noqa: ANN401
    """Every string below a place, wherever it stands; nothing deeper than anybody writes."""
    value = holder.get(key) if isinstance(holder, dict) else holder[key]
    if isinstance(value, str):
        yield _text(place, role, part, holder, key)
    elif depth and isinstance(value, dict | list):
        for inner in value if isinstance(value, dict) else range(len(value)):
            yield from _strings_in(place, role, part, value, inner, depth - 1)


def _text(message: int, role: str, part: Part, holder: Any, key: str | int) -> PromptText:  # noqa: ANN401 - object or list
    return PromptText(message, role, part, holder[key], lambda text: holder.__setitem__(key, text))


def _messages(messages: object) -> Iterator[PromptText]:
    for place, message in enumerate(messages if isinstance(messages, list) else ()):
        if isinstance(message, dict):
            yield from _message(place, message)


def _message(place: int, message: Json) -> Iterator[PromptText]:
    role = message.get("role")
    kind = message.get("type")
    if kind in ("function_call_output", "custom_tool_call_output"):
        role = "tool"
    role = {"function": "tool", None: "user"}.get(role, role)
    role = role if isinstance(role, str) else "user"
    content_part = Part.TOOL_RESULT if role == "tool" else Part.CONTENT
    for key, part in (
        ("content", content_part),
        ("output", content_part),
        ("text", content_part),
        ("arguments", Part.ARGUMENTS),
        ("refusal", Part.REFUSAL),
        ("reasoning_content", Part.REASONING),
        ("reasoning", Part.REASONING),
    ):
        value = message.get(key)
        if isinstance(value, str):
            yield _text(place, role, part, message, key)
        for inner in value if isinstance(value, list) else ():
            for name in ("text", "refusal", "content"):
                if isinstance(inner, dict) and isinstance(inner.get(name), str):
                    yield _text(place, role, part, inner, name)
    calls = message.get("tool_calls")
    functions = [call.get("function") for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
    for function in (*functions, message.get("function_call")):
        if isinstance(function, dict) and isinstance(function.get("arguments"), str):
            yield _text(place, role, Part.ARGUMENTS, function, "arguments")


@dataclass(frozen=True, slots=True)
class _Piece:
    text: int
    """Which of the texts."""
    offset: int
    """Where in that text the piece begins."""
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Seam:
    """Neighbouring texts as one: short ones whole, of long ones the part beside their neighbour."""

    joined: str
    pieces: tuple[_Piece, ...]

    def crosses(self, finding: Finding) -> bool:
        """Whether a finding in the joined text lies in more than one of them; else it was found without joining."""
        return len(self._touched(finding)) > 1

    def first_text(self, finding: Finding) -> int:
        """The text in which it begins."""
        return self.pieces[self._first(finding)].text

    def edits(self, finding: Finding) -> list[tuple[int, Edit]]:
        """A redaction as one for each text: as many stars as characters."""
        found = []
        for piece in self._touched(finding):
            start, end = max(piece.start, finding.start), min(piece.end, finding.end)
            if start < end:
                moved = piece.offset - piece.start
                found.append((piece.text, Edit(start + moved, end + moved, "*" * (end - start))))
        return found

    def _first(self, finding: Finding) -> int:
        return bisect_right(self.pieces, finding.start, key=lambda piece: piece.end)

    def _touched(self, finding: Finding) -> tuple[_Piece, ...]:
        """The pieces that a finding has characters of; there may be thousands that it has none of."""
        first = self._first(finding)
        return self.pieces[first : bisect_left(self.pieces, finding.end, lo=first, key=lambda piece: piece.start)]


def seams(texts: Sequence[str], glue: str) -> list[Seam]:
    """Where something could be split over neighbouring texts; in all no more than twice `SEAM_CHARACTERS` of each."""
    found: list[Seam] = []
    parts, pieces = list[str](), list[_Piece]()

    def add(index: int, offset: int, part: str) -> None:
        start = pieces[-1].end + len(glue) if pieces else 0
        pieces.append(_Piece(index, offset, start, start + len(part)))
        parts.append(part)

    for index, text in enumerate(texts):
        if len(text) <= 2 * SEAM_CHARACTERS:
            add(index, 0, text)
            continue
        add(index, 0, text[:SEAM_CHARACTERS])
        if len(pieces) > 1:
            found.append(Seam(glue.join(parts), tuple(pieces)))
        parts, pieces = [], []
        add(index, len(text) - SEAM_CHARACTERS, text[-SEAM_CHARACTERS:])
    if len(pieces) > 1:
        found.append(Seam(glue.join(parts), tuple(pieces)))
    return found
