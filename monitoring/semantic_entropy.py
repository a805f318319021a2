"""Do several answers to one question mean the same? The semantic entropy of a sample of answers. Pure.

A model that knows gives the same meaning again and again in other words; one that makes something up gives another
each time (Farquhar et al., "Detecting hallucinations in large language models using semantic entropy", Nature 2024).
There answers are put together when each entails the other by a language model; here by the cosine of their sentence
embeddings, which needs no second model and is coarser: two answers that differ in one number alone count as one. So it
serves as a score for comparing two versions on the same traffic, and says little about a single answer.
"""

from __future__ import annotations

import math
from typing import Any

from numpy.typing import NDArray

SAME_MEANING = 0.7
"""Cosine above which two answers count as one meaning."""


def clusters(embeddings: NDArray[Any], same: float = SAME_MEANING) -> tuple[int, ...]:
    """Sizes of the groups of like answers, the largest first: each joins the first group whose first answer is alike.

    Args:
        embeddings: one row per answer, of length 1.
        same: the cosine from which on two are alike.

    """
    firsts: list[NDArray[Any]] = []
    sizes: list[int] = []
    for row in embeddings:
        place = next((n for n, first in enumerate(firsts) if float(first @ row) >= same), None)
        if place is None:
            firsts.append(row)
            sizes.append(1)
        else:
            sizes[place] += 1
    return tuple(sorted(sizes, reverse=True))


def semantic_entropy(embeddings: NDArray[Any], same: float = SAME_MEANING) -> float:
    """The entropy of the groups over its largest possible value, from 0 (all alike) to 1 (no two alike).

    >>> import numpy as np
    >>> semantic_entropy(np.eye(4)), semantic_entropy(np.ones((4, 1)))
    (1.0, 0.0)

    Raises:
        ValueError: for fewer than two answers.

    """
    count = len(embeddings)
    if count < 2:
        raise ValueError(f"{count} answers; semantic entropy needs at least 2 of one question")
    shares = [size / count for size in clusters(embeddings, same)]
    return max(0.0, -sum(share * math.log(share) for share in shares)) / math.log(count)
