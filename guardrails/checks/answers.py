"""Checks on an answer as a whole: its presence, length, language and form, refusals and loops. Pure.

All but `repetition` and `refusal` wait for the complete text, so in a stream they can only flag, or hold all
of it back (`mode: buffer_full`).
"""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass
from typing import Annotated, Any

import jsonschema
from pydantic import AfterValidator, Field

from guardrails.checks.base import CheckKind, Context, NoOptions, Options, Part, RuleCheck, Scope
from guardrails.normalise import View
from guardrails.text_units import language_of
from guardrails.verdicts import Direction, Hit, Language


@dataclass(frozen=True)
class EmptyCheck(RuleCheck):
    """An answer without anything that can be seen."""

    options: NoOptions

    def examine(self, view: View, context: Context) -> list[Hit]:
        """A hit on text that has only spaces and invisible characters."""
        if context.part is not Part.CONTENT or view.plain.text.strip():
            return []
        return [Hit(0, len(view.original), 1.0, "nothing visible")]


class LengthOptions(Options):
    """Options of the check `length`, in characters."""

    least: Annotated[int, Field(ge=0)] = 0
    most: Annotated[int, Field(ge=1)] = 100_000


@dataclass(frozen=True)
class LengthCheck(RuleCheck):
    """A text that is too short or too long."""

    options: LengthOptions

    def examine(self, view: View, context: Context) -> list[Hit]:
        """A hit on the part that is too much, or on all of a text that is too short."""
        size = len(view.original)
        if size > self.options.most:
            return [Hit(self.options.most, size, 1.0, f"{size} characters, more than {self.options.most}")]
        if size < self.options.least:
            return [Hit(0, size, 1.0, f"{size} characters, fewer than {self.options.least}")]
        return []


class LanguageOptions(Options):
    """Options of the check `language`."""

    expected: Language | None = None
    """The language that answers must be in; that of the prompt, where it isn't given."""
    least_characters: Annotated[int, Field(ge=1)] = 20
    """Shorter texts are not looked at: a name or a number has no language."""


_CODE = re.compile(r"```.{0,20000}?(?:```|$)|`[^`\n]{0,200}`|https?://\S{1,300}", re.DOTALL)


@dataclass(frozen=True)
class LanguageCheck(RuleCheck):
    """An answer in another language than the one asked for, by script."""

    options: LanguageOptions

    def examine(self, view: View, context: Context) -> list[Hit]:
        """A hit on the whole text. Code, addresses and languages other than English and Chinese are left out."""
        expected = self.options.expected or context.prompt_language
        prose = _CODE.sub(" ", view.plain.text)
        if expected in (None, Language.OTHER) or len(prose.strip()) < self.options.least_characters:
            return []
        found = language_of(prose)
        if found in (expected, Language.OTHER):
            return []
        return [Hit(0, len(view.original), 0.9, f"{found.value} instead of {expected.value}")]


def _usable_schema(schema: dict[str, Any]) -> dict[str, Any]:
    if len(json.dumps(schema)) > 64_000:
        raise ValueError("the schema has more than 64000 characters; make it smaller")
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise ValueError(f"it is not a JSON Schema (draft 2020-12): {error.message}") from None
    if re.search(r'"\$(?:ref|dynamicRef)": "(?!#)', json.dumps(schema)):
        raise ValueError("it refers to another document; write that one's definitions below $defs")
    if re.search(r'"(?:pattern|patternProperties)":', json.dumps(schema)):
        raise ValueError("it has a pattern, whose cost is not bounded; use the check `patterns` for that")
    return schema


class JsonOptions(Options):
    """Options of the check `json`."""

    json_schema: Annotated[dict[str, Any], AfterValidator(_usable_schema)] = Field(default_factory=dict)
    """A JSON Schema, draft 2020-12; empty: any JSON will do."""
    fenced: bool = True
    """Whether JSON inside a Markdown code fence is as good."""


_FENCE = re.compile(r"\A\s*```(?:json)?\s*\n(.*?)\n?```\s*\Z", re.DOTALL)


@dataclass(frozen=True)
class JsonCheck(RuleCheck):
    """An answer that is not the JSON that was asked for."""

    options: JsonOptions

    @functools.cached_property
    def _validator(self) -> Any:  # noqa: ANN401 - jsonschema has no types
        return jsonschema.Draft202012Validator(self.options.json_schema)

    def examine(self, view: View, context: Context) -> list[Hit]:
        """A hit on the whole text; its reason names the place in the document and the rule, not the value."""
        if context.part is not Part.CONTENT:
            return []
        text = view.original
        if self.options.fenced and (fence := _FENCE.match(text)):
            text = fence[1]
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return [Hit(0, len(view.original), 1.0, "not JSON")]
        error = next(iter(self._validator.iter_errors(value)), None)
        if error is None:
            return []
        place = "/".join(str(part) for part in error.absolute_path if isinstance(part, int)) or "-"
        return [Hit(0, len(view.original), 1.0, f"breaks the schema's {error.validator} (item {place})")]


_REFUSAL_EN = re.compile(
    r"(?:i(?:'m|\s+am)\s+(?:really\s+|very\s+|so\s+)?sorry,?\s+(?:but\s+)?(?:i|as\s+an)|i\s+(?:can(?:no|')t|cannot|can\s+not|won'?t|will\s+not|am\s+(?:not\s+able|unable)"
    r"|must\s+(?:decline|refuse))\s+(?:to\s+)?(?:\w+\s+){0,2}?(?:help|assist|provide|comply|fulfil|do\s+that|answer|create|write|generate|support|discuss|engage|share|offer|give)"
    r"|i'?m\s+(?:not\s+able|unable)\s+to|as\s+an\s+ai(?:\s+\w+){0,3},?\s+i\s+(?:can|do\s*n|am\s+not|must)|(?:that|this)\s+(?:request\s+)?(?:goes\s+against|violates)\s+my"
    r"|i\s+have\s+to\s+(?:decline|refuse)|i\s+apologi[sz]e,?\s+but\s+i)"
)
_REFUSAL_ZH = re.compile(
    r"(?:很?抱歉|对不起|非常抱歉|十分抱歉|不好意思)[,，。!！]?[^。！？\n]{0,12}(?:无法|不能|不可以|不会|没办法|不便|不应)"
    r"|(?:我|本助手)(?:是|作为)[^。！？\n]{0,12}(?:无法|不能|不会)(?:提供|回答|协助|帮助|满足|完成|执行|支持|讨论|生成)"
    r"|(?:我|本人)(?:无法|不能|不会|不可以|拒绝)(?:为您|为你|给您|给你|向您|向你)?(?:提供|回答|协助|帮助|满足|完成|执行|支持|讨论|生成|继续)"
    r"|作为(?:一个|一名)?(?:人工智能|ai|语言模型)[^。！？\n]{0,15}(?:无法|不能|不会)|(?:您|你)的(?:请求|要求)[^。！？\n]{0,10}(?:违反|不符合)"
)
REFUSAL_CHARACTERS = 240
"""A refusal stands at the beginning of an answer."""


@dataclass(frozen=True)
class RefusalCheck(RuleCheck):
    """An answer that begins by refusing."""

    options: NoOptions

    def examine(self, view: View, context: Context) -> list[Hit]:
        """A hit on the phrase: 0.9 within the first 80 characters, 0.7 after."""
        if context.preceding or context.part is not Part.CONTENT:
            return []
        layer = view.plain
        text = layer.text[:REFUSAL_CHARACTERS].lower().replace("’", "'")
        found = (_REFUSAL_EN.search(text) or _REFUSAL_ZH.search(text)) if len(text) <= len(layer.text) else None
        if not found:
            return []
        return [Hit(*layer.span(*found.span()), 0.9 if found.start() < 80 else 0.7, "refusal at the beginning")]


class RepetitionOptions(Options):
    """Options of the check `repetition`."""

    times: Annotated[int, Field(ge=3, le=100)] = 4
    """How often a passage comes one after the other before it counts."""
    least_characters: Annotated[int, Field(ge=20, le=600)] = 60
    """How long the repeated passages are together."""


LONGEST_PERIOD = 200


@dataclass(frozen=True)
class RepetitionCheck(RuleCheck):
    """A text that has run into a loop: the same passage again and again, at its end."""

    options: RepetitionOptions

    def examine(self, view: View, context: Context) -> list[Hit]:
        """A hit on the repeated passages at the end of the text, when they are long and many enough.

        A text repeats with period p over as many characters from its end as equal those p before them; the longest such
        stretch over all p up to `LONGEST_PERIOD` counts. A stretch of one character (a rule of dashes, spaces, a table)
        must be five times as long.
        """
        text = view.original.rstrip()
        tail = text[-(LONGEST_PERIOD + 1) * self.options.times :]
        probe = tail[-8:]
        if len(tail) < self.options.least_characters:
            return []
        at = tail.rfind(probe, 0, len(tail) - 1)
        while at >= 0:
            period = len(tail) - len(probe) - at
            if period > LONGEST_PERIOD:
                return []
            same = _repeats(tail, period)
            least = self.options.least_characters * (5 if len(set(tail[-period:])) < 3 else 1)
            if same >= least and same >= period * self.options.times:
                return [Hit(len(text) - same, len(text), min(1.0, 0.5 + same / period / 40), f"period {period}")]
            at = tail.rfind(probe, 0, at + len(probe) - 1)
        return []


def _repeats(text: str, period: int) -> int:
    """How many characters at the end are part of a repetition with this period."""
    unit = text[-period:]
    count = 1
    while text.endswith(unit, 0, len(text) - count * period):
        count += 1
    return count * period


EMPTY = CheckKind(
    "empty", "an answer without anything visible", EmptyCheck, directions=Direction.OUTPUT, scope=Scope.WHOLE
)
LENGTH = CheckKind("length", "a text too short or too long", LengthCheck, LengthOptions, scope=Scope.WHOLE)
LANGUAGE = CheckKind(
    "language",
    "an answer in another language than the prompt, or than the one expected",
    LanguageCheck,
    LanguageOptions,
    directions=Direction.OUTPUT,
    scope=Scope.WHOLE,
)
JSON = CheckKind(
    "json",
    "an answer that is not JSON, or breaks a JSON Schema",
    JsonCheck,
    JsonOptions,
    directions=Direction.OUTPUT,
    scope=Scope.WHOLE,
)
REFUSAL = CheckKind(
    "refusal",
    "an answer that begins by refusing",
    RefusalCheck,
    directions=Direction.OUTPUT,
    carry_over_characters=REFUSAL_CHARACTERS,
)
REPETITION = CheckKind(
    "repetition",
    "an answer that has run into a loop",
    RepetitionCheck,
    RepetitionOptions,
    directions=Direction.OUTPUT,
    carry_over_characters=(LONGEST_PERIOD + 1) * 8,
)
