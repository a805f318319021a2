"""Made-up vectors for the drift tests: a few topics as Gaussian clouds, and references of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from monitoring.drift.features import NAMES, cheap_features
from monitoring.drift.reference import Reference, ReferenceSpec, build_reference

DIMENSIONS = 24
SPEC = ReferenceSpec(components=8, clusters=6)
ENGLISH = (
    "How do I sort a list in Python?",
    "Write a short poem on the sea.",
    "What is 17 times 23?",
    "Summarise this: ",
)


def cloud(rows: int, seed: int, topics: tuple[int, ...] = (0, 1, 2)) -> NDArray[np.float32]:
    """Vectors of the topics named, in equal shares; topic t sits at 3 on axis t."""
    rng = np.random.default_rng(seed)
    out = rng.standard_normal((rows, DIMENSIONS))
    out[np.arange(rows), rng.choice(topics, rows)] += 3.0
    return out.astype(np.float32)


def ids(rows: int) -> list[str]:
    return [f"req-{row}" for row in range(rows)]


def reference(seed: int = 1, rows: int = 3000) -> Reference:
    return build_reference(cloud(rows, seed), ids(rows), source="a window", rng=np.random.default_rng(seed), spec=SPEC)


def english(rows: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [ENGLISH[rng.integers(len(ENGLISH))] + "word " * int(rng.integers(1, 30)) for _ in range(rows)]


def cheap_reference(seed: int = 1, rows: int = 1500) -> Reference:
    table = np.stack([cheap_features(text) for text in english(rows, seed)])
    return build_reference(table, ids(rows), source="a window", rng=np.random.default_rng(seed), spec=SPEC, names=NAMES)
