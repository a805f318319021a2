"""Toxicity of a text, English and Chinese: offence, hate, threats, and requests for harm. Three small models vote.

    text -> plain characters -> sentences -> token pairs  (logistic regression)      --+
                                             token means  (deep averaging network)   --+-> light log-odds
                                             sentence embedding (networks, averaged) ----> added for what is embedded

The embedding is by far the dearest part. A short text is embedded as it is, one of some sentences as a whole and its
worst sentence again, so that a good paragraph does not hide a bad sentence. Of a longer text every sentence is read by
the light models; only if one is suspicious, it is embedded, while the light models read what stands around it: time for
one text is bounded. Log-odds become a probability by Platt scaling, for each language apart; the worst piece
decides.
How it was trained, on what, how good it is and where it fails: guardrails/models/toxicity/README.md.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guardrails.classifiers.base import Score
from guardrails.classifiers.encoder import SentenceEncoder, shared_encoder
from guardrails.classifiers.token_features import MeanModel, PairModel, Tokens, dense_layers, through
from guardrails.classifiers.weights import MODELS, UnusableWeights, load_model
from guardrails.classifiers.windows import room, surroundings, windows
from guardrails.normalise import Layer, plain
from guardrails.text_units import language_of
from guardrails.verdicts import Language

TOXICITY = MODELS / "toxicity"

SHORT_TOKENS = 64
"""A text of about this many tokens (190 letters, 64 Chinese characters) is judged in one piece."""
WHOLE_TOKENS = 256
"""One of up to this many (770 letters) is judged as a whole and by its worst sentence."""
SENTENCE_TOKENS = 24
"""About a sentence."""
CONTEXT_TOKENS = 64
"""Of a longer text the light models read the worst sentence with this much around it, the others the sentence alone."""
DOUBT_BESIDE_WHOLE, DOUBT_ALONE = 5.0, -0.25
"""Log-odds by which a sentence must be surer: than the whole, which knows more, where that is judged beside it; and
where it alone is taken for a long text, whose surroundings speak for it already."""
SENTENCES_PER_EMBEDDING = 96
"""Of a long text one more sentence is embedded for every so many ..."""
MOST_EMBEDDED = 4
"""... up to this many."""
_BLOCK_TOKENS = 16_384
"""Tokens that are read at a time, which bounds memory at some 10 MB."""

_BLANK = "".join(map(chr, range(33))) + "\u00a0\u3000"

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of plain text number `text` that is embedded; `doubt` is taken from its log-odds.

    `first` to `last` is what the light models read of it: the stretch, or more.
    """

    text: int
    start: int
    end: int
    doubt: float
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Found:
    """The stretch of a plain text that decides, and how sure the models are of it."""

    probability: float
    start: int
    end: int


class ToxicityClassifier:
    """The shipped toxicity model. Cheap to make: weights and encoder are loaded when they are first needed.

    Args:
        folder: Where `weights.safetensors` and `settings.json` lie; the shipped model by default.
    """

    def __init__(self, folder: Path = TOXICITY) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._model: Model | None = None

    def load(self) -> Model:
        """The loaded model; the first call reads about 130 MB into memory and takes two or three seconds.

        Raises:
            UnusableWeights: The weights are damaged, of another version, or not installed.
        """
        with self._lock:
            if self._model is None:
                arrays, settings = load_model(self._folder)
                try:
                    self._model = Model(arrays, settings, shared_encoder())
                except (KeyError, TypeError, ValueError) as error:
                    raise UnusableWeights(
                        f"the model {self._folder.name!r} lacks what this version reads ({error}); "
                        "install the package again"
                    ) from error
            return self._model

    def scores(self, texts: Sequence[str]) -> list[Score]:
        """How likely each text is toxic, and which window says so; see `Classifier`."""
        return self.load().scores(texts)


class Model:
    """Loaded weights. Keeps nothing between calls."""

    def __init__(self, arrays: dict[str, NDArray[Any]], settings: dict[str, Any], encoder: SentenceEncoder) -> None:
        self._encoder = encoder
        self._pairs = PairModel(arrays)
        self._means = MeanModel(arrays, _over_vocabulary(encoder, arrays["mean.1.weight"]))
        count = int(settings["heads"])
        self._heads = [(arrays[f"head{i}.1.weight"], dense_layers(arrays, f"head{i}")) for i in range(count)]
        self._shares = (float(settings["pair_share"]), float(settings["mean_share"]))
        self._light = {Language(name): tuple(map(float, ab)) for name, ab in settings["light_calibration"].items()}
        self._full = {Language(name): tuple(map(float, ab)) for name, ab in settings["calibration"].items()}
        self._thresholds = {Language(name): float(value) for name, value in settings["thresholds"].items()}
        self._suspicious = float(settings["suspicious"])

    def scores(self, texts: Sequence[str]) -> list[Score]:
        """One score for each text."""
        plains = [plain(text) for text in texts]
        languages = [language_of(layer.text) for layer in plains]
        sentences = [list(windows(layer.text, SHORT_TOKENS, SENTENCE_TOKENS)) for layer in plains]
        light = self._sentence_probabilities(plains, languages, sentences)
        pieces = [
            piece
            for number, layer in enumerate(plains)
            for piece in self._pieces(number, layer.text, sentences[number], light[number])
        ]
        found: dict[int, Found] = {}
        for piece, probability in zip(pieces, self._piece_probabilities(plains, languages, pieces), strict=True):
            best = found.get(piece.text)
            if best is None or probability > best.probability:
                found[piece.text] = Found(float(probability), piece.start, piece.end)
        for number in range(len(texts)):
            if number not in found:  # a long text without a suspicious sentence
                at = int(light[number].argmax())
                found[number] = Found(float(light[number][at]), *sentences[number][at])
        return [self._score(plains[number], languages[number], found[number]) for number in range(len(texts))]

    def _sentence_probabilities(
        self, plains: list[Layer], languages: list[Language], sentences: list[list[tuple[int, int]]]
    ) -> list[Floats]:
        """What the light models say of each sentence of each text."""
        texts = [layer.text[start:end] for layer, spans in zip(plains, sentences, strict=True) for start, end in spans]
        of = [language for language, spans in zip(languages, sentences, strict=True) for _ in spans]
        sure = self._probabilities(self._light, self.light_logits(texts), of)
        bounds = itertools.pairwise(np.cumsum([0, *map(len, sentences)]))
        return [sure[low:high] for low, high in bounds]

    def _piece_probabilities(self, plains: list[Layer], languages: list[Language], pieces: list[Piece]) -> Floats:
        """What all models say of each piece."""
        texts = [plains[piece.text].text[piece.start : piece.end] for piece in pieces]
        wider = [plains[piece.text].text[piece.first : piece.last] for piece in pieces]
        doubts = np.array([piece.doubt for piece in pieces], np.float32)
        logits = self.light_logits(wider) + self.head_logits(texts) - doubts
        return self._probabilities(self._full, logits, [languages[piece.text] for piece in pieces])

    def light_logits(self, texts: Sequence[str]) -> Floats:
        """What the two quick models say, as one log-odds for each text."""
        pair_share, mean_share = self._shares
        cut = self._encoder.cut([text.lower() for text in texts])
        found = [
            pair_share * self._pairs.logits(tokens) + mean_share * self._means.logits(tokens) for tokens in _blocks(cut)
        ]
        return np.concatenate([np.zeros(0, np.float32), *found])

    def head_logits(self, texts: Sequence[str]) -> Floats:
        """What the networks on the sentence embedding say on average, as one log-odds for each text."""
        vectors = self._encoder.embed(self._encoder.cut(texts))
        said = [through(layers, vectors @ first) for first, layers in self._heads]
        found: Floats = np.mean(said, axis=0, dtype=np.float32)
        return found

    def _pieces(self, number: int, text: str, spans: list[tuple[int, int]], sure: Floats) -> list[Piece]:
        """What of a text is embedded, given its sentences and what the light models say of each."""
        if len(spans) == 1:
            return [Piece(number, *spans[0], 0.0, *spans[0])]
        count = min(1 + len(spans) // SENTENCES_PER_EMBEDDING, MOST_EMBEDDED)
        ranked = np.argsort(-sure, kind="stable")[:count]
        worst = spans[int(ranked[0])]
        if room(text)[-1] <= WHOLE_TOKENS:
            whole = Piece(number, 0, len(text), 0.0, 0, len(text))
            return [whole, Piece(number, *worst, DOUBT_BESIDE_WHOLE, *worst)]
        suspects = [int(at) for at in ranked if sure[at] >= self._suspicious]
        around = [surroundings(text, spans, at, CONTEXT_TOKENS) for at in suspects]
        return [Piece(number, *spans[at], DOUBT_ALONE, *wider) for at, wider in zip(suspects, around, strict=True)]

    def _probabilities(
        self, calibration: dict[Language, tuple[float, ...]], logits: Floats, languages: list[Language]
    ) -> Floats:
        """Platt scaling: 1 / (1 + exp(-(a * logit + b))), with a and b of each language."""
        of_each = np.array([calibration[language] for language in languages], np.float32).reshape(-1, 2)
        found = 1 / (1 + np.exp(-np.clip(of_each[:, 0] * logits + of_each[:, 1], -30, 30)))
        return found.astype(np.float32)

    def _score(self, layer: Layer, language: Language, found: Found) -> Score:
        probability = found.probability if layer.text.strip(_BLANK) else 0.0
        start, end = layer.span(found.start, found.end)
        return Score(round(probability, 6), self._thresholds[language], language, start, end)


def _over_vocabulary(encoder: SentenceEncoder, weight: Floats) -> Floats:
    """The first layer of the mean model for each token of the vocabulary: 33 MB at 64 wide."""
    blocks = [
        encoder.token_vectors(np.arange(low, min(low + 8192, encoder.vocabulary))) @ weight
        for low in range(0, encoder.vocabulary, 8192)
    ]
    return np.concatenate(blocks)


def _blocks(texts: list[list[int]]) -> Iterator[Tokens]:
    """Texts in groups of at most `_BLOCK_TOKENS` tokens (a longer text alone)."""
    group: list[list[int]] = []
    taken = 0
    for ids in texts:
        if group and taken + len(ids) > _BLOCK_TOKENS:
            yield Tokens.of(group)
            group, taken = [], 0
        group.append(ids)
        taken += len(ids)
    if group:
        yield Tokens.of(group)
