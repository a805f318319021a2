"""The port between learned judgements and the checks that use them. Pure.

A classifier keeps nothing between calls: the same texts give the same scores, in any order and from any thread. A score
never carries the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from guardrails.verdicts import Language


@dataclass(frozen=True, slots=True)
class Score:
    """How sure a classifier is about a text, and which stretch of it decided.

    `probability` lies in [0, 1], `threshold` is the classifier's own default for that language; `start` and `end` are
    characters of the text as it was given (both 0 where there is nothing to point at).
    """

    probability: float
    threshold: float
    language: Language
    start: int
    end: int

    @property
    def flagged(self) -> bool:
        """Whether the default threshold is reached."""
        return self.probability >= self.threshold


class Classifier(Protocol):
    """Scores texts, many at once for speed. Implementations are safe to call from several threads."""

    def scores(self, texts: Sequence[str]) -> list[Score]:
        """One score for each text, in the same order.

        Raises:
            UnusableWeights: The weights are damaged, of another version, or not installed.
        """
        ...
