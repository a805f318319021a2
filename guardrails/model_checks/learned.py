"""What the small models say of texts, as the adapters call it: texts in, hits out. No thread, no process, no network.

`LearnedChecks` is the one object behind every way of running them: in threads of the gateway (`threads`), or in a
service that batches for all gateways (`serving/ray_app`). Both give the same hits for the same texts.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from guardrails.checks.base import Options
from guardrails.checks.learned import (
    ATTACKS,
    BANNED_TOPICS,
    JAILBREAK,
    TOXICITY,
    UNUSUAL,
    ExampleOptions,
    JailbreakOptions,
    NormalOptions,
)
from guardrails.classifiers.base import Classifier, Score
from guardrails.classifiers.encoder import shared_encoder
from guardrails.classifiers.outliers import NormalTraffic
from guardrails.classifiers.similarity import ExampleSimilarity
from guardrails.classifiers.toxicity import ToxicityClassifier
from guardrails.errors import CheckUnavailable
from guardrails.model_checks.base import ModelText
from guardrails.text_units import last_sentence_start
from guardrails.verdicts import Hit

LEAST_SCORE = 0.01
"""Hits below this are left out: no threshold is so low."""
MOST_LISTS = 64
"""Lists of examples whose embeddings are kept; of versions that come and go the oldest are forgotten."""
CONTEXT_CHARACTERS = 200
"""Of a stream's earlier text, the sentence that goes on in the new one is judged with it, up to this length."""

Made = TypeVar("Made")
Hits = Sequence[Sequence[Hit]]


class LearnedChecks:
    """The models, loaded at the first use. Safe to call from several threads."""

    def __init__(self, toxicity: Classifier | None = None) -> None:
        """`toxicity` is another classifier than the shipped one, for tests."""
        self._toxicity = toxicity or ToxicityClassifier()
        self._similar: _Kept[ExampleSimilarity] = _Kept()
        self._normal: _Kept[NormalTraffic] = _Kept()

    @property
    def by_kind(self) -> Mapping[str, Callable[[Sequence[ModelText]], Hits]]:
        """The function of each kind of check."""
        return {
            TOXICITY.name: self.toxicity,
            JAILBREAK.name: self.similarity,
            BANNED_TOPICS.name: self.similarity,
            UNUSUAL.name: self.unusual,
        }

    def warm_up(self, kinds: Iterable[str]) -> None:
        """Load what these kinds need, so that no request waits for it: some 150 MB and a second."""
        for kind in sorted({*kinds} & self.by_kind.keys()):
            if kind == TOXICITY.name:
                self._toxicity.scores(["warm-up"])
            else:
                shared_encoder()

    def toxicity(self, texts: Sequence[ModelText]) -> Hits:
        """How toxic what is new in each text is: by itself, and as the rest of the sentence that it goes on with."""
        asked: list[str] = []
        places: list[list[tuple[int, int]]] = []
        for text in texts:
            begins = {text.context_characters, _sentence_before(text)}
            places.append([(len(asked) + at, begin) for at, begin in enumerate(sorted(begins))])
            asked += (text.text[begin:] for begin in sorted(begins))
        scores = self._toxicity.scores(asked)
        return [[hit for at, begin in found if (hit := _toxic(scores[at], begin)) is not None] for found in places]

    def similarity(self, texts: Sequence[ModelText]) -> Hits:
        """How close a sentence of each text comes to one of its check's examples."""
        found: list[list[Hit]] = [[] for _ in texts]
        for options, places in _by_options(texts).items():
            similar = self._similar.get(options, _examples)
            matches = similar.matches([texts[at].text for at in places])
            for at, match in zip(places, matches, strict=True):
                if match.similarity >= LEAST_SCORE:
                    score = min(1.0, match.similarity)
                    found[at] = [Hit(match.start, match.end, score, f"like example {match.example + 1}")]
        return found

    def unusual(self, texts: Sequence[ModelText]) -> Hits:
        """How many of 100 normal prompts are more usual than each text, as a share."""
        found: list[list[Hit]] = [[] for _ in texts]
        encoder = shared_encoder()
        for options, places in _by_options(texts).items():
            normal = self._normal.get(options, _normal_traffic)
            vectors = encoder.embed(encoder.cut([texts[at].text for at in places]))
            for at, rarity in zip(places, normal.rarity(vectors), strict=True):
                if rarity >= LEAST_SCORE:
                    found[at] = [texts[at].whole(float(rarity), "unlike normal prompts")]
        return found


class _Kept(OrderedDict[Options, Made]):
    """What was made of options, the last few of them."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()

    def get(self, options: Options, make: Callable[[Options], Made]) -> Made:  # type: ignore[override]
        with self._lock:
            if options not in self:
                self[options] = make(options)
                if len(self) > MOST_LISTS:
                    self.popitem(last=False)
            return self[options]


def _examples(options: Options) -> ExampleSimilarity:
    if isinstance(options, ExampleOptions):
        return ExampleSimilarity(options.examples)
    if isinstance(options, JailbreakOptions):
        return ExampleSimilarity((*ATTACKS, *options.examples))
    raise CheckUnavailable(f"{type(options).__name__} has no examples to compare with")


def _normal_traffic(options: Options) -> NormalTraffic:
    if not isinstance(options, NormalOptions):
        raise CheckUnavailable(f"{type(options).__name__} has no normal prompts to compare with")
    encoder = shared_encoder()
    return NormalTraffic.fit(np.asarray(encoder.embed(encoder.cut(list(options.normal)))), seed=1)


def _by_options(texts: Sequence[ModelText]) -> dict[Options, list[int]]:
    places: dict[Options, list[int]] = {}
    for at, text in enumerate(texts):
        places.setdefault(text.active.options, []).append(at)
    return places


def _sentence_before(text: ModelText) -> int:
    """Where the sentence begins that the new text goes on with; where it begins itself, if it begins one."""
    context = text.text[: text.context_characters]
    return last_sentence_start(context, CONTEXT_CHARACTERS) if context.strip() else text.context_characters


def _toxic(score: Score, moved: int) -> Hit | None:
    if score.probability < LEAST_SCORE:
        return None
    return Hit(score.start + moved, score.end + moved, score.probability, "toxic")
