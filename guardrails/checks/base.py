"""What a check is: the port between policies and whatever finds something in a text. Pure.

A check is a small object made once for each policy. It keeps nothing between calls, so one object serves all
requests at once and no request can see another's text. Write one in ten lines by deriving from `RuleCheck`
(docs/guardrails.md).
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict

from guardrails.normalise import View
from guardrails.verdicts import Direction, Hit, Language


class Cost(enum.StrEnum):
    """What one call of a check costs."""

    CHEAP = "cheap"
    """Well under a millisecond: run where the text is."""
    MODEL = "model"
    """A model or a network call: run elsewhere, under a time budget, while the text is held back."""


class Scope(enum.StrEnum):
    """How much text a check looks at."""

    WINDOW = "window"
    """A stretch with some text before it; the next stretch is looked at when it comes."""
    WHOLE = "whole"
    """The complete text, once it is there: form, length, language."""


class Part(enum.StrEnum):
    """Which part of a message or an answer a text is."""

    CONTENT = "content"
    REASONING = "reasoning"
    REFUSAL = "refusal"
    ARGUMENTS = "arguments"
    """The arguments of a tool call: usually JSON."""
    TOOL_RESULT = "tool_result"


@dataclass(frozen=True, slots=True)
class Context:
    """What a check may know beside the text.

    `preceding` is the number of characters that come before the text it is given, `complete` whether nothing follows.
    """

    direction: Direction
    language: Language = Language.OTHER
    part: Part = Part.CONTENT
    preceding: int = 0
    complete: bool = True
    prompt_language: Language | None = None
    """The language that the user wrote in, where that is known."""


class Check(Protocol):
    """Finds something in a text. Pure: the same text and context give the same hits."""

    def examine(self, view: View, context: Context) -> Sequence[Hit]:
        """What is there, with offsets in `view.original`, in any order."""
        ...

    def unfinished_from(self, view: View) -> int:
        """Where something that may yet become a hit begins at the end of a text that goes on; its length if nowhere.

        The promise that streams rest on: if a text has a hit from `s` to `e`, then for every prefix of it that ends
        between `s` and `e` this is at most `s`. Text from there on is held back until more has come.
        """
        ...


class RuleCheck:
    """A check whose hits never reach over the end of a stretch, unless it says otherwise."""

    def examine(self, view: View, context: Context) -> Sequence[Hit]:
        """What is there."""
        raise NotImplementedError

    def unfinished_from(self, view: View) -> int:
        """Nothing is ever unfinished."""
        return len(view.original)


class Options(BaseModel):
    """Base of the options that a policy may give a check: closed and frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class NoOptions(Options):
    """A check without options."""


@dataclass(frozen=True, slots=True)
class CheckKind:
    """A kind of check that policies can name."""

    name: str
    summary: str
    build: Callable[[Any], Check] | None
    """Makes the check from its options; None for one that a model behind the port `ModelChecks` does."""
    options: type[Options] = NoOptions
    directions: Direction = Direction.BOTH
    cost: Cost = Cost.CHEAP
    scope: Scope = Scope.WINDOW
    yields_spans: bool = False
    """Whether hits say where in the text something stands, so that it can be redacted."""
    carry_over_characters: int = 64
    """How much text before a stretch it wants to see again."""


Catalogue = Mapping[str, CheckKind]
"""The kinds of checks there are, by name."""
