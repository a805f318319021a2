"""The two quick readings of a text: hashed pairs of tokens, and the mean of token vectors. Numpy, many texts at once.

Both are linear in the number of tokens with a small constant, so that they can read all of a long prompt.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]

_MIX = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(29)


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of several texts in one row. Text i begins at `starts[i]` and has `lengths[i]` of them, at least 1."""

    ids: Ids
    starts: Ids
    lengths: Ids

    @classmethod
    def of(cls, texts: Sequence[list[int]]) -> Tokens:
        """Texts as lists of token ids in one row."""
        lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        ids = np.fromiter(itertools.chain.from_iterable(texts), np.int64, int(lengths.sum()))
        return cls(ids, np.cumsum(lengths) - lengths, lengths)

    def owner(self) -> Ids:
        """For each token the number of its text."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)


def hashed_features(tokens: Tokens, buckets: int) -> tuple[Ids, Ids]:
    """Which of `buckets` (a power of two) each text's tokens and pairs of neighbours fall into, each once.

    Returns two arrays of the same length: text and bucket. The hash is multiplicative (Knuth, TAOCP 6.4), fixed for
    ever: weights that were trained with it depend on it.
    """
    owner, mask = tokens.owner(), np.uint64(buckets - 1)
    ones = (tokens.ids.astype(np.uint64) + np.uint64(1)) * _MIX
    ones ^= ones >> _SHIFT
    pairs = (ones[:-1] * np.uint64(3) + ones[1:]) * _MIX
    pairs ^= pairs >> _SHIFT
    inside = owner[:-1] == owner[1:]
    places = np.concatenate([ones & mask, pairs[inside] & mask]).astype(np.int64)
    keys = np.unique(np.concatenate([owner, owner[:-1][inside]]) * buckets + places)
    return keys // buckets, keys % buckets


class PairModel:
    """A logistic regression on hashed tokens and pairs, weighted by rarity (TF-IDF, texts of length 1)."""

    def __init__(self, arrays: dict[str, NDArray[Any]]) -> None:
        self._rarity: Floats = arrays["pairs.rarity"]
        self._gain: Floats = arrays["pairs.rarity"] * arrays["pairs.weight"]
        self._bias = float(arrays["pairs.bias"][0])

    def logits(self, tokens: Tokens) -> Floats:
        """One log-odds for each text."""
        owner, bucket = hashed_features(tokens, len(self._gain))
        texts = len(tokens.lengths)
        gain = np.bincount(owner, self._gain[bucket], texts)
        norm = np.sqrt(np.bincount(owner, self._rarity[bucket] ** 2, texts))
        found: Floats = (gain / np.maximum(norm, 1e-9) + self._bias).astype(np.float32)
        return found


class MeanModel:
    """A small network on the sum of token vectors over the root of their number (a deep averaging network).

    Its first layer is linear, so it is applied to the whole vocabulary beforehand: reading a token is one addition.
    """

    def __init__(self, arrays: dict[str, NDArray[Any]], first_layer: Floats) -> None:
        self._first = first_layer
        self._layers = dense_layers(arrays, "mean")

    def logits(self, tokens: Tokens) -> Floats:
        """One log-odds for each text."""
        sums = np.add.reduceat(self._first[tokens.ids], tokens.starts, axis=0)
        sums /= np.sqrt(tokens.lengths, dtype=np.float32)[:, None]
        return through(self._layers, sums)


Layers = tuple[Floats, list[tuple[Floats, Floats]]]
"""The first layer's bias (its matrix is applied by the caller), then matrices with biases."""


def dense_layers(arrays: dict[str, NDArray[Any]], name: str) -> Layers:
    """The layers `name.1.bias`, `name.2.weight`, `name.2.bias`, ... of a network."""
    rest: list[tuple[Floats, Floats]] = []
    while (number := len(rest) + 2) and f"{name}.{number}.weight" in arrays:
        rest.append((arrays[f"{name}.{number}.weight"], arrays[f"{name}.{number}.bias"]))
    return arrays[f"{name}.1.bias"], rest


def through(layers: Layers, sums: Floats) -> Floats:
    """The network's log-odds, given what the first matrix made of the input; ReLU between layers."""
    bias, rest = layers
    value = sums + bias
    for weight, bias in rest:
        value = np.maximum(value, 0) @ weight + bias
    return value[:, 0]
