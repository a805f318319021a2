"""The labelled texts that the guardrail models learn from: public data, and sentences of the project's own."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from guardrails.normalise import plain
from scripts.guardrail_training.grammar import Row, grow

SHARES = {
    "cold": 8.0,
    "davidson": 5.0,
    "hatecheck": 4.0,
    "hatecheck-zh": 8.0,
    "openai-moderation": 4.0,
    "xstest": 1.0,
    "grammar-hate": 2.0,
    "grammar-requests": 3.0,
    "grammar-talk": 1.0,
}
"""How much of what the networks see comes from each source, half of it toxic; a source not named here counts 1."""


def read(path: Path) -> list[Row]:
    """The rows of a file of JSON lines (gzip), each with `text`, `toxic`, `lang` and `source`."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        found = map(json.loads, lines)
        return [Row(plain(row["text"]).text, int(row["toxic"]), row["lang"], row["source"]) for row in found]


def own(per_pattern: int, seed: int, unlike: Sequence[Row]) -> list[Row]:
    """Sentences from the grammars, without those that also stand in `unlike` (what the models are judged on)."""
    taken = {_bare(row.text) for row in unlike}
    return [row for row in grow(per_pattern, seed) if _bare(row.text) not in taken]


def _bare(text: str) -> str:
    return "".join(filter(str.isalnum, text.casefold()))


def sampling(rows: Sequence[Row]) -> NDArray[np.float64]:
    """The probability of each row to be drawn: sources by `SHARES`, both labels of a source alike."""
    sources = np.array([row.source for row in rows])
    labels = np.array([row.toxic for row in rows])
    chance: NDArray[np.float64] = np.zeros(len(rows))
    for source in sorted(set(sources)):
        for label in (0, 1):
            members = (sources == source) & (labels == label)
            if members.any():
                chance[members] = SHARES.get(source, 1.0) / 2 / members.sum()
    return np.asarray(chance / chance.sum())
