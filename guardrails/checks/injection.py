"""Prompt injection and jailbreaks by weighted rules, a sentence at a time. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from guardrails.checks.base import CheckKind, Context, NoOptions, RuleCheck
from guardrails.checks.injection_rules import ROLE_TAG_WEIGHT, ROLE_TAGS, RULES, TALK_ABOUT, Rule, score_of
from guardrails.normalise import View
from guardrails.text_units import last_sentence_start
from guardrails.verdicts import Hit

LONGEST_SENTENCE = 400
HIDDEN_WEIGHT = 0.3
"""Added where the attack was written in a code, or with look-alike letters or invisible characters: nobody does that
by chance."""
_BREAK = re.compile(r"(?<=[.!?])\s+|[。！？；\n]+")
_TAG_SIGNS = re.compile(
    r"<[|/<]?(?:im_|end|eot|start|begin|sys|user|ass|s>|inst|dev)|\[/?(?:inst|sys|admin|dev)|##|system|assis|devel|---|===|系统|开发"
)
_QUOTES = frozenset("\"'“”‘’「」『』`《》")


def _sentences(text: str) -> Iterator[tuple[int, int]]:
    """Sentences, cut where they are longer than `LONGEST_SENTENCE`, with an overlap of half."""
    start = 0
    ends = [(found.start(), found.end()) for found in _BREAK.finditer(text)]
    for end, after in [*ends, (len(text), len(text))]:
        while end - start > LONGEST_SENTENCE:
            yield start, start + LONGEST_SENTENCE
            start += LONGEST_SENTENCE // 2
        if end > start:
            yield start, end
        start = after


def _quoted(text: str, start: int, end: int) -> bool:
    return any(c in _QUOTES for c in text[max(0, start - 12) : start]) and any(
        c in _QUOTES for c in text[end : end + 24]
    )


def _weigh(sentence: str, rules: Sequence[Rule]) -> tuple[float, dict[str, float], int, int]:
    """The weight of a sentence, by family, and where the matches lie."""
    families: dict[str, float] = {}
    first, last = len(sentence), 0
    about = None
    for rule in rules:
        found = rule.pattern.search(sentence) if rule.may_match(sentence) else None
        if found is None:
            continue
        weight = rule.weight
        if about is None:
            about = TALK_ABOUT.search(sentence) is not None
        if about and _quoted(sentence, *found.span()):
            weight /= 2
        families[rule.name] = max(families.get(rule.name, 0.0), weight)
        first, last = min(first, found.start()), max(last, found.end())
    return sum(families.values()), families, first, last


@dataclass(frozen=True)
class InjectionCheck(RuleCheck):
    """Finds attempts to take the model over."""

    options: NoOptions

    def examine(self, view: View, context: Context) -> list[Hit]:
        """One hit for each sentence that a rule matches, its reason the families of the rules."""
        hits = []
        disguised = view.mixed_script_words > 0 or view.invisible_characters > 2
        for place, layer in enumerate(view.words):
            before = 0.0
            rules = [rule for rule in RULES if rule.may_match(layer.text)]
            for start, end in _sentences(layer.text) if rules else ():
                weight, families, first, last = _weigh(layer.text[start:end], rules)
                own = weight
                if weight and (place or disguised):
                    weight += HIDDEN_WEIGHT
                    families["disguised"] = HIDDEN_WEIGHT
                if weight:
                    span = layer.span(start + first, start + last)
                    hits.append(Hit(*span, score_of(weight + before / 2), "+".join(sorted(families))))
                before = own
        lowered = view.plain.text.lower()
        if len(lowered) == len(view.plain.text) and _TAG_SIGNS.search(lowered):
            hits += (
                Hit(*view.plain.span(*found.span()), score_of(ROLE_TAG_WEIGHT), "role tag")
                for found in ROLE_TAGS.finditer(lowered)
            )
        return hits

    def unfinished_from(self, view: View) -> int:
        """The sentence that the text ends in, for its rules look at whole sentences."""
        return min(last_sentence_start(view.original, LONGEST_SENTENCE), view.unfinished_from)


INJECTION = CheckKind(
    name="prompt-injection",
    summary="orders to ignore instructions, extraction of the system prompt, personas without rules, forged role tags",
    build=InjectionCheck,
    yields_spans=True,
    carry_over_characters=LONGEST_SENTENCE,
)
