"""The labelled texts of the drift benchmark, their embeddings, and streams of requests made from them."""

from __future__ import annotations

import ast
import gzip
import hashlib
import importlib.util
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from monitoring.drift.features import cheap_features

TOPICS = ("race", "gender", "region")
MOST_CHARACTERS = 2000
BATCH = 32


LIBRARIES = ("mlflow", "sklearn", "sqlalchemy")
"""Whose documentation stands in for labelled texts: every installation of the platform has it."""
MOST_OF_A_LIBRARY = 10_000

Embed = Callable[[list[str]], NDArray[np.float32]]


@dataclass(frozen=True)
class Texts:
    """Texts with a topic: embeddings, cheap features, topic by number in `names`, and whether each is toxic."""

    embeddings: NDArray[np.float32]
    cheap: NDArray[np.float32]
    topics: NDArray[np.int64]
    toxic: NDArray[np.bool_]
    names: tuple[str, ...] = TOPICS


def read_texts(folder: Path, cache: Path, embed: Embed) -> Texts:
    """Every row with a topic in `train.jsonl.gz` and `dev.jsonl.gz`; embeddings are kept in the cache, by digest."""
    rows, vectors = [], []
    for name in ("train", "dev"):
        path = folder / f"{name}.jsonl.gz"
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            own = [row for row in map(json.loads, lines) if row.get("topic") in TOPICS]
        rows += own
        vectors.append(_kept(name, [row["text"][:MOST_CHARACTERS] for row in own], cache, embed))
    return Texts(
        embeddings=np.concatenate(vectors),
        cheap=np.stack([cheap_features(row["text"]) for row in rows]),
        topics=np.array([TOPICS.index(row["topic"]) for row in rows]),
        toxic=np.array([bool(row["toxic"]) for row in rows]),
    )


def installed_texts(cache: Path, embed: Embed) -> Texts:
    """Paragraphs of the documentation inside installed libraries, a library being a topic: real text for everybody."""
    texts: list[str] = []
    topics: list[int] = []
    for number, library in enumerate(LIBRARIES):
        own = paragraphs(library)[:MOST_OF_A_LIBRARY]
        texts += own
        topics += [number] * len(own)
    return Texts(
        embeddings=_kept("installed", texts, cache, embed),
        cheap=np.stack([cheap_features(text) for text in texts]),
        topics=np.array(topics),
        toxic=np.zeros(len(texts), dtype=bool),
        names=LIBRARIES,
    )


def paragraphs(library: str) -> list[str]:
    """Distinct paragraphs of 40 to 400 characters of a library's docstrings, in an order that is always the same."""
    spec = importlib.util.find_spec(library)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{library} is not installed; `make venv` does that, or give --data FOLDER")
    found: dict[str, None] = {}
    for path in sorted(Path(spec.origin).parent.rglob("*.py")):
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (OSError, SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
                told = (" ".join(part.split()) for part in (ast.get_docstring(node) or "").split("\n\n"))
                found |= dict.fromkeys(t for t in told if 40 <= len(t) <= 400 and not t.startswith((">>>", ":")))
    return sorted(found, key=lambda text: hashlib.sha256(text.encode()).digest())


def _kept(name: str, texts: list[str], cache: Path, embed: Embed) -> NDArray[np.float32]:
    kept = cache / f"{name}-{hashlib.sha256(chr(0).join(texts).encode()).hexdigest()[:16]}.npy"
    if not kept.exists():
        sys.stderr.write(f"embedding {len(texts)} texts ({name}) into {kept}\n")
        cache.mkdir(parents=True, exist_ok=True)
        np.save(kept, embedded(texts, embed))
    return np.asarray(np.load(kept, allow_pickle=False), dtype=np.float32)


def embedded(texts: list[str], embed: Embed) -> NDArray[np.float32]:
    """Their embeddings, in order; computed in batches of like length."""
    order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
    out: NDArray[np.float32] | None = None
    for start in range(0, len(order), BATCH):
        places = order[start : start + BATCH]
        batch = np.asarray(embed([texts[place] for place in places]), dtype=np.float32)
        if out is None:
            out = np.empty((len(texts), batch.shape[1]), dtype=np.float32)
        out[places] = batch
    if out is None:
        raise SystemExit("no texts with a topic in the folder; give one whose rows have topic race, gender or region")
    return out


@dataclass(frozen=True)
class Split:
    """One new topic, and the rows of the other two: for the reference, and for the streams. None is in both."""

    topic: int
    reference: NDArray[np.int64]
    pool: NDArray[np.int64]
    new: NDArray[np.int64]
    toxic: NDArray[np.int64]


def split(texts: Texts, topic: int, reference_rows: int, rng: np.random.Generator) -> Split:
    """Deal the rows of the topics that are not new."""
    rows = rng.permutation(np.flatnonzero(texts.topics != topic))
    pool = rows[reference_rows:]
    new = np.flatnonzero(texts.topics == topic)
    return Split(topic, rows[:reference_rows], pool, new, pool[texts.toxic[pool]])


@dataclass(frozen=True)
class Change:
    """What comes after the change: a share of requests of the new topic, or toxic ones alone."""

    name: str
    share: float = 0.0
    toxic_only: bool = False


CHANGES: tuple[Change, ...] = (
    Change("topic 100 %", 1.0),
    Change("topic 30 %", 0.3),
    Change("topic 10 %", 0.1),
    Change("toxic only", toxic_only=True),
)


def healthy(dealt: Split, length: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """A stream of the reference's kind, no row twice while there are enough."""
    return np.resize(rng.permutation(dealt.pool), length)


def changed(dealt: Split, change: Change, onset: int, length: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """A stream that changes after `onset` requests."""
    stream = healthy(dealt, length, rng)
    after = length - onset
    other = rng.choice(dealt.toxic if change.toxic_only else dealt.new, after)
    moved = np.ones(after, dtype=bool) if change.toxic_only else rng.random(after) < change.share
    stream[onset:] = np.where(moved, other, stream[onset:])
    return stream


def middle(values: Iterable[float]) -> tuple[float, float, float]:
    """The median, and the tenth and ninetieth of a hundred; infinite where so many were never found."""
    ordered = np.sort(np.array(list(values), dtype=float))
    return tuple(float(np.quantile(ordered, q, method="higher")) for q in (0.5, 0.1, 0.9))  # type: ignore[return-value]
