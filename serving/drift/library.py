"""The references of all streams on disk, and how they are built. A reference changes only when somebody builds one.

    references/MODEL/SCOPE/current          the digest in force
    references/MODEL/SCOPE/DIGEST/          cheap.npz, embedding.npz, about.json

A reference is written whole before `current` names it, in one step, so a reader never sees half of one.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from monitoring.drift.daily import Daily, choose_blocks
from monitoring.drift.errors import DamagedReference, TooFewRequests
from monitoring.drift.features import NAMES, cheap_features
from monitoring.drift.labels import cluster_labels
from monitoring.drift.reference import Reference, ReferenceSpec, build_reference, load_reference, save_reference
from serving.drift.streams import MOST_STREAMS, StreamName
from serving.errors import ServingError

DAY_S = 86_400
MOST_TEXTS = 20_000
"""Of a data set: more make no better reference, only a slower one."""

Embed = Callable[[Sequence[str]], NDArray[np.float32]]
"""Embeds texts: one row each. The composition root has one; see `drift.main`."""


class TooManyStreams(ServingError):
    """There are as many streams as may be watched."""


class About(BaseModel):
    """What is known of a built reference beside its numbers."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    model: str
    scope: str
    digest: str
    source: str
    built_at: float
    rows: int
    blocks: int
    daily: str
    """Why the day is divided like this."""
    labels: tuple[str, ...]
    """Of the clusters."""
    window_s: float | None = None
    """How long the window was, for building it anew; None for a data set."""


@dataclass(frozen=True, slots=True)
class Built:
    """A reference of a stream: of both kinds of features."""

    about: About
    cheap: Reference
    embedding: Reference


@dataclass(frozen=True, slots=True)
class Rows:
    """What a reference is built of, one row per request."""

    ids: tuple[str, ...]
    at: NDArray[np.float64]
    cheap: NDArray[np.float32]
    embedding: NDArray[np.float32]

    @classmethod
    def of_archive(cls, rows: NDArray[np.void]) -> Rows:
        """Rows as `archive.read_rows` gives them; those with a value that is not finite are left out."""
        embedding = rows["embedding"].astype(np.float32)
        whole = np.isfinite(embedding).all(axis=1) & np.isfinite(rows["cheap"]).all(axis=1)
        if not whole.all():
            rows, embedding = rows[whole], embedding[whole]  # else a week's would lie in memory twice
        ids = tuple(i.decode() for i in rows["id"])
        return cls(ids, rows["at"].copy(), rows["cheap"].copy(), embedding)

    @classmethod
    def of_texts(cls, texts: Sequence[str], embed: Embed, say: Callable[[int], object] = lambda done: None) -> Rows:
        """Rows of a data set; ids are line numbers, and there is no time of day."""
        parts = []
        for start in range(0, len(texts), 64):
            parts.append(embed(texts[start : start + 64]))
            say(min(start + 64, len(texts)))
        table = np.concatenate(parts) if parts else np.zeros((0, 1), np.float32)
        cheap = np.array([cheap_features(text) for text in texts], np.float32).reshape(len(texts), len(NAMES))
        return cls(tuple(f"line {n + 1}" for n in range(len(texts))), np.zeros(len(texts)), cheap, table)


def build(
    name: StreamName,
    rows: Rows,
    *,
    source: str,
    daily: Daily,
    window_s: float | None,
    now: float,
    spec: ReferenceSpec | None = None,
) -> Built:
    """Build a reference; the same rows give the same one.

    Args:
        name: The stream.
        rows: Requests when all was fine.
        source: Where they are from, in words.
        daily: Whether the day is divided.
        window_s: See `About`.
        now: Wall-clock seconds.
        spec: Sizes.

    Raises:
        TooFewRequests: Too few rows.

    """
    spec = spec or ReferenceSpec()
    least = spec.least_rows(named=False)
    if len(rows.ids) < least:
        kept = "" if window_s is None else " (of each hour a sample of 1,000 is kept)"
        raise TooFewRequests(
            f"{len(rows.ids)} requests of {name.model} ({name.scope}) in {source}; at least {least} are needed; "
            f"take a longer window or a data set{kept}"
        )
    digest = hashlib.sha256(np.ascontiguousarray(rows.embedding).view(np.uint8).data)
    rng = np.random.default_rng(int(digest.hexdigest()[:16], 16))
    hours, days = (rows.at // 3600 % 24).astype(np.int64), (rows.at // DAY_S).astype(np.int64)
    division = choose_blocks(rows.embedding, hours, days, daily=daily, rng=rng)
    embedding = build_reference(
        rows.embedding, rows.ids, source=source, rng=rng, spec=spec, hours=hours, blocks=division.blocks
    )
    cheap = build_reference(
        rows.cheap, rows.ids, source=source, rng=rng, spec=spec, names=NAMES, hours=hours, blocks=division.blocks
    )
    labelled = rng.permutation(len(rows.ids))[:4000]
    about = About(
        model=name.model, scope=name.scope, source=source, built_at=now, rows=len(rows.ids), blocks=division.blocks,
        digest=hashlib.sha256((embedding.digest + cheap.digest).encode()).hexdigest()[:16], daily=division.reason,
        labels=cluster_labels(embedding, rows.embedding[labelled], rows.cheap[labelled]), window_s=window_s,
    )  # fmt: skip
    return Built(about, cheap, embedding)


def put(folder: Path, built: Built) -> None:
    """Write a reference and put it in force.

    Raises:
        TooManyStreams: It would be one stream too many.
        OSError: It can't be written.

    """
    name = StreamName(built.about.model, built.about.scope)
    place = folder / name.path
    if not (place / "current").exists() and sum(1 for _ in names(folder)) >= MOST_STREAMS:
        raise TooManyStreams(f"{MOST_STREAMS} streams have a reference already; remove one first")
    target = place / built.about.digest
    target.mkdir(parents=True, exist_ok=True, mode=0o700)
    for kind, reference in (("cheap", built.cheap), ("embedding", built.embedding)):
        with (target / f"{kind}.npz").open("wb") as file:
            save_reference(reference, file)
            file.flush()
            os.fsync(file.fileno())
    _replace(target / "about.json", built.about.model_dump_json(indent=1))
    _replace(place / "current", built.about.digest)
    for old in place.iterdir():
        if old.is_dir() and old.name != built.about.digest:
            shutil.rmtree(old, ignore_errors=True)


def remove(folder: Path, name: StreamName) -> bool:
    """Take a stream's reference out of force, which ends its watch. Returns whether there was one."""
    place = folder / name.path
    there = (place / "current").exists()
    (place / "current").unlink(missing_ok=True)
    shutil.rmtree(place, ignore_errors=True)
    return there


def names(folder: Path) -> Iterator[StreamName]:
    """The streams that have a reference."""
    for path in sorted(folder.glob("*/*/current")):
        yield StreamName.of_path(path.parent.parent.name, path.parent.name)


def digest_in_force(folder: Path, name: StreamName) -> str | None:
    """The digest of a stream's reference, None without one."""
    try:
        return (folder / name.path / "current").read_text().strip() or None
    except OSError:
        return None


def about(folder: Path, name: StreamName) -> About | None:
    """What is known of a stream's reference, None without one.

    Raises:
        DamagedReference: It can't be read.

    """
    digest = digest_in_force(folder, name)
    if digest is None:
        return None
    try:
        return About.model_validate_json((folder / name.path / digest / "about.json").read_text())
    except (OSError, ValidationError) as error:
        raise DamagedReference(
            f"the reference of {name.model} ({name.scope}) can't be read ({type(error).__name__}); build it again"
        ) from None


def load(folder: Path, name: StreamName) -> Built | None:
    """The reference in force, None without one.

    Raises:
        DamagedReference: It can't be read.

    """
    found = about(folder, name)
    if found is None:
        return None
    kinds = []
    for kind in ("cheap", "embedding"):
        try:
            with (folder / name.path / found.digest / f"{kind}.npz").open("rb") as file:
                kinds.append(load_reference(file))
        except OSError as error:
            raise DamagedReference(
                f"the reference of {name.model} ({name.scope}) can't be read ({error.strerror}); build it again"
            ) from None
    return Built(found, kinds[0], kinds[1])


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def window_source(model: str, since: float, until: float) -> str:
    """A window in words: "2026-03-01T00:00Z to 2026-03-08T00:00Z of chat"."""
    first, last = (time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime(at)) for at in (since, until))
    return f"{first} to {last} of {model}"
