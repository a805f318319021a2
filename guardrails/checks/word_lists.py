"""Words and phrases that a policy lists, and patterns that it writes itself. Pure.

Words are looked for on the folded reading, so `k i l l`, `kіll` and `k1ll` are found by `kill`. A word of an
alphabet matches as a whole word; Chinese has no spaces, so a Chinese phrase matches anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

from pydantic import AfterValidator, Field

from guardrails.checks.base import CheckKind, Context, Options, RuleCheck
from guardrails.checks.pattern_bounds import bounded_pattern
from guardrails.checks.tails import phrase_from, token_from
from guardrails.normalise import View, folded, plain
from guardrails.verdicts import Hit

MAX_PHRASE_CHARACTERS = 100
_SPACE = re.compile(r"\s+")
_FIRST_WORD = re.compile(r"[a-z0-9]+")


def _fold_phrase(phrase: str) -> str:
    return _SPACE.sub(" ", folded(plain(phrase)).text).strip()


Phrase = Annotated[str, Field(min_length=1, max_length=MAX_PHRASE_CHARACTERS), AfterValidator(str.strip)]


class WordListOptions(Options):
    """Options of the check `banned-words`."""

    words: Annotated[tuple[Phrase, ...], Field(min_length=1, max_length=10_000)]
    """Words and phrases, in any spelling; case does not matter."""
    except_in: Annotated[tuple[Phrase, ...], Field(max_length=1000)] = ()
    """Longer phrases in which they are harmless: `kill` in `kill a process`."""


class _Phrases:
    """Many phrases, found by their first word (or first character, where that is no letter of an alphabet).

    One look-up for each word of the text, instead of one attempt for each phrase at each character.
    """

    def __init__(self, phrases: Sequence[str]) -> None:
        by_first: dict[str, list[str]] = {}
        for phrase in {p for p in phrases if p}:
            first = _FIRST_WORD.match(phrase)
            by_first.setdefault(first[0] if first else phrase[0], []).append(phrase)
        self._by_first = {first: _expression(found) for first, found in by_first.items()}
        signs = "".join(re.escape(first) for first in by_first if not _FIRST_WORD.match(first))
        self._starts = re.compile(f"[a-z0-9]+|[{signs}]" if signs else "[a-z0-9]+")

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Where phrases stand, the longest of those that begin together."""
        found = []
        for start in self._starts.finditer(text):
            expression = self._by_first.get(start[0])
            match = expression.match(text, start.start()) if expression else None
            if match:
                found.append(match.span())
        return found


def _expression(phrases: Sequence[str]) -> re.Pattern[str]:
    """Phrases that begin alike, longest first. Chinese letters beside an English word end it: 请kill掉."""
    parts = []
    for phrase in sorted(phrases, key=lambda p: (-len(p), p)):
        back = "(?![a-z0-9])" if phrase[-1].isascii() and phrase[-1].isalnum() else ""
        parts.append(r"\s{1,8}".join(re.escape(word) for word in phrase.split(" ")) + back)
    return re.compile("|".join(parts))


def _squeezed(text: str) -> tuple[str, list[int]]:
    """The text with one space for each run of them, and where each character stood."""
    kept: list[str] = []
    places: list[int] = []
    for place, char in enumerate(text):
        if not char.isspace():
            kept.append(char)
        elif kept and kept[-1] != " ":
            kept.append(" ")
        else:
            continue
        places.append(place)
    return "".join(kept), places


@dataclass(frozen=True)
class WordListCheck(RuleCheck):
    """Finds what a list names."""

    options: WordListOptions

    @cached_property
    def _phrases(self) -> tuple[str, ...]:
        return tuple(_fold_phrase(phrase) for phrase in self.options.words)

    @cached_property
    def _listed(self) -> _Phrases:
        return _Phrases(self._phrases)

    @cached_property
    def _harmless(self) -> _Phrases:
        return _Phrases([_fold_phrase(phrase) for phrase in self.options.except_in])

    @cached_property
    def _beginnings(self) -> frozenset[str]:
        every = [*self._phrases, *(_fold_phrase(phrase) for phrase in self.options.except_in)]
        return frozenset(f"{phrase} "[:size] for phrase in every for size in range(1, len(phrase) + 1))

    def examine(self, view: View, context: Context) -> list[Hit]:
        """One hit for each place; its reason doesn't say which word it was."""
        hits: list[Hit] = []
        for layer in view.words:
            listed = self._listed.spans(layer.text)
            harmless = self._harmless.spans(layer.text) if listed else []
            hits += (
                Hit(*layer.span(start, end), 1.0, "listed word")
                for start, end in listed
                if not any(first <= start and end <= last for first, last in harmless)
            )
        return hits

    def unfinished_from(self, view: View) -> int:
        """A word at the end may go on, and so may a phrase or a code whose beginning stands there."""
        layer = view.folded
        skipped = max(0, len(layer.text) - 4 * MAX_PHRASE_CHARACTERS)
        text, places = _squeezed(layer.text[skipped:])
        first = min(
            phrase_from(text, self._beginnings, MAX_PHRASE_CHARACTERS),
            token_from(text, "abcdefghijklmnopqrstuvwxyz0123456789$@!|'", MAX_PHRASE_CHARACTERS),
        )
        if first >= len(text):
            return view.unfinished_from
        at = skipped + places[first]
        return min(view.unfinished_from, layer.span(at, at + 1)[0])


class PatternOptions(Options):
    """Options of the check `patterns`."""

    patterns: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=500), AfterValidator(bounded_pattern)], ...],
        Field(min_length=1, max_length=100),
    ]
    """Regular expressions in which every repetition has an upper bound."""
    longest_characters: Annotated[int, Field(ge=1, le=1000)] = 64
    """The longest stretch that any of them matches: so much of a stream's end is held back."""
    ignore_case: bool = False


@dataclass(frozen=True)
class PatternCheck(RuleCheck):
    """Finds what a policy's own patterns match, in the plain reading."""

    options: PatternOptions

    @cached_property
    def _compiled(self) -> tuple[re.Pattern[str], ...]:
        return tuple(re.compile(p, re.IGNORECASE if self.options.ignore_case else 0) for p in self.options.patterns)

    def examine(self, view: View, context: Context) -> list[Hit]:
        """One hit for each match that is no longer than `longest_characters`; its reason is the pattern's place."""
        text, longest = view.plain.text, self.options.longest_characters
        return [
            Hit(*view.plain.span(*found.span()), 1.0, f"pattern {place}")
            for place, pattern in enumerate(self._compiled)
            for found in pattern.finditer(text)
            if 0 < found.end() - found.start() <= longest
        ]

    def unfinished_from(self, view: View) -> int:
        """What a pattern may still match can't be told from outside: the longest match before the end."""
        text = view.plain.text
        at = max(0, len(text) - self.options.longest_characters)
        return view.plain.span(at, at + 1)[0] if at < len(text) else len(view.original)


BANNED_WORDS = CheckKind(
    name="banned-words",
    summary="words and phrases from a list, in whatever they are dressed up in",
    build=WordListCheck,
    options=WordListOptions,
    yields_spans=True,
)
PATTERNS = CheckKind(
    name="patterns",
    summary="regular expressions of the policy itself, each of bounded cost",
    build=PatternCheck,
    options=PatternOptions,
    yields_spans=True,
    carry_over_characters=128,
)
