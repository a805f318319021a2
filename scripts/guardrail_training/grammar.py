"""Grows labelled sentences from the grammars in `sentences_en.yaml` and `sentences_zh.yaml`."""

from __future__ import annotations

import itertools
import random
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

_SLOT = re.compile(r"\{(\w+)\}")
_FAMILIES = ("hate", "requests", "talk")
_LABELS = {"harmful": 1, "harmless": 0}


@dataclass(frozen=True, slots=True)
class Row:
    """One text with its label, its language and where it comes from."""

    text: str
    toxic: int
    lang: str
    source: str


def grow(per_pattern: int, seed: int) -> list[Row]:
    """Up to `per_pattern` different sentences of every pattern; the same seed grows the same sentences."""
    rows: dict[str, Row] = {}
    for lang in ("en", "zh"):
        grammar = yaml.safe_load(Path(__file__).with_name(f"sentences_{lang}.yaml").read_text(encoding="utf-8"))
        for family, (name, label) in itertools.product(_FAMILIES, _LABELS.items()):
            for pattern in grammar[family][name]:
                dice = random.Random(f"{seed}/{pattern}")  # noqa: S311 - no secret
                for _ in range(per_pattern):
                    text = _filled(pattern, grammar["words"], dice, lang)
                    rows.setdefault(text.casefold(), Row(text, label, lang, f"grammar-{family}"))
    return list(rows.values())


def _filled(pattern: str, words: dict[str, list[str]], dice: random.Random, lang: str) -> str:
    chosen: dict[str, str] = {}

    def word(match: re.Match[str]) -> str:
        return chosen.setdefault(match[1], dice.choice(words[match[1]]))

    text = _SLOT.sub(word, pattern)
    if lang == "en" and dice.random() < 0.9:
        text = text[:1].upper() + text[1:]
    if dice.random() < 0.15:
        text = text.rstrip("?.!？。！")
    if lang == "en" and dice.random() < 0.1:
        text = text.lower()
    return text
