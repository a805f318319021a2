"""Names for groups of similar requests, made of their cheap features, so that an alarm says more than a number. Pure.

A label holds no word of any request: "Chinese, about 40 characters" tells an operator where to look, and who may read
texts finds them by the ids beside it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from monitoring.drift.errors import UnusableVectors
from monitoring.drift.features import NAMES, Cheap
from monitoring.drift.reference import Reference

SCRIPTS = {
    Cheap.LATIN: "Latin letters", Cheap.HAN: "Chinese", Cheap.KANA: "Japanese", Cheap.HANGUL: "Korean",
    Cheap.CYRILLIC: "Cyrillic letters", Cheap.ARABIC: "Arabic letters", Cheap.OTHER_LETTERS: "other letters",
}  # fmt: skip

NOTABLE = {Cheap.DIGITS: (0.10, "digits"), Cheap.PUNCTUATION: (0.15, "punctuation"), Cheap.SYMBOLS: (0.05, "symbols"),
           Cheap.UPPER_CASE: (0.5, "capitals")}  # fmt: skip
"""Shares above which a feature is named."""

NO_REQUESTS = "no requests"


def label(cheap: NDArray[Any]) -> str:
    """The label of a group by its mean cheap features.

    >>> label(np.array([5.357, 0, 0.8, 0, 0, 0, 0, 0, 0.12, 0.08, 0, 0, 0]))
    'Chinese, about 40 characters, 12 % digits'
    """
    by_name = dict(zip(Cheap, (float(value) for value in cheap), strict=True))
    script = max(SCRIPTS, key=lambda name: by_name[name])
    parts = [SCRIPTS[script] if by_name[script] > 0.0 else "no letters"]
    characters = 2.0 ** by_name[Cheap.LOG_LENGTH] - 1.0
    parts.append(f"about {float(f'{characters:.2g}'):.0f} characters")
    parts += [f"{by_name[name]:.0%} {word}".replace("%", " %") for name, (least, word) in NOTABLE.items()
              if by_name[name] > least]  # fmt: skip
    return ", ".join(parts)


def cluster_labels(reference: Reference, vectors: NDArray[Any], cheap: NDArray[Any]) -> tuple[str, ...]:
    """A label for each cluster of a reference.

    Args:
        reference: whose clusters.
        vectors: requests as `reference.locate` takes them, one row each.
        cheap: their cheap features, row by row the same requests.

    Raises:
        UnusableVectors: when the two don't fit together, or the cheap features have another length than `NAMES`.

    """
    if len(vectors) != len(cheap) or (len(cheap) and cheap.shape[1] != len(NAMES)):
        raise UnusableVectors(
            f"{len(vectors)} vectors and cheap features of shape {cheap.shape}; give one row for each"
        )
    sums = np.zeros((len(reference.centres), len(NAMES)))
    counts = np.zeros(len(reference.centres), dtype=np.int64)
    for vector, features in zip(vectors, cheap, strict=True):
        cluster = reference.locate(vector)[1]
        sums[cluster] += features
        counts[cluster] += 1
    return tuple(label(total / count) if count else NO_REQUESTS for total, count in zip(sums, counts, strict=True))
