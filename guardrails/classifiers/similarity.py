"""How close a text comes, sentence by sentence, to example sentences: banned topics, known attacks.

Every stretch of the text is embedded, about 0.05 ms per token on one core (1,000 characters: 15 ms of English, 55 ms of
Chinese), so checks made of this are opt-in. Examples in one language find sentences in another.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from guardrails.classifiers.encoder import SentenceEncoder, shared_encoder
from guardrails.classifiers.windows import windows
from guardrails.normalise import plain

SENTENCE_TOKENS = 32
"""A stretch holds about this many tokens: one sentence, or two short ones."""
MAX_STRETCHES = 256
"""Stretches of one text that are embedded; of a longer text they are taken evenly from all of it, so some is unread."""


@dataclass(frozen=True, slots=True)
class Match:
    """The stretch of a text that comes closest to an example.

    `similarity` is the cosine, from -1 to 1; `example` is its place in the list, -1 where the text has no words.
    Paraphrases of attacks reached 0.37 to 0.68 here, other requests 0.03 to 0.47: set the threshold on your own text.
    """

    similarity: float
    example: int
    start: int
    end: int


NOTHING = Match(-1.0, -1, 0, 0)


class ExampleSimilarity:
    """Compares texts with a fixed list of example sentences. Loads the encoder at the first use.

    Args:
        examples: At least one sentence, each at most a few dozen words.
    """

    def __init__(self, examples: Sequence[str], encoder: Callable[[], SentenceEncoder] = shared_encoder) -> None:
        self._examples = tuple(plain(example).text for example in examples)
        if not all(example.strip() for example in self._examples) or not self._examples:
            raise ValueError(
                f"{len(self._examples)} examples, an empty one among them or none at all; give 1 sentence or more"
            )
        self._encoder = encoder
        self._lock = threading.Lock()
        self._vectors: NDArray[np.float32] | None = None

    def matches(self, texts: Sequence[str]) -> list[Match]:
        """The closest stretch of each text, in the same order.

        Raises:
            UnusableWeights: The encoder is not installed or damaged.
        """
        encoder, vectors = self._encoder(), self._example_vectors()
        layers = [plain(text) for text in texts]
        spans = [(number, start, end) for number, layer in enumerate(layers) for start, end in _stretches(layer.text)]
        found = [NOTHING] * len(texts)
        if not spans:
            return found
        near = encoder.embed(encoder.cut([layers[at].text[start:end] for at, start, end in spans])) @ vectors.T
        for (number, start, end), row in zip(spans, near, strict=True):
            best = int(row.argmax())
            if row[best] > found[number].similarity:
                found[number] = Match(round(float(row[best]), 6), best, *layers[number].span(start, end))
        return found

    def _example_vectors(self) -> NDArray[np.float32]:
        with self._lock:
            if self._vectors is None:
                encoder = self._encoder()
                self._vectors = encoder.embed(encoder.cut(self._examples))
            return self._vectors


def _stretches(text: str) -> list[tuple[int, int]]:
    spans = [(start, end) for start, end in windows(text, SENTENCE_TOKENS, SENTENCE_TOKENS) if text[start:end].strip()]
    if len(spans) <= MAX_STRETCHES:
        return spans
    return [spans[at] for at in np.linspace(0, len(spans) - 1, MAX_STRETCHES).astype(int)]
