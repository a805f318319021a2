"""What traffic looked like when it was fine: the immutable reference that the detectors compare with. Pure.

A reference is built from a window or a data set that the operator names, never from whatever came last, and only on
command: a reference that follows the traffic follows the drift. Its rows are split in two halves by chance. The *fit*
half gives the axes, the scale, the centres and the clusters; the *calibration* half alone says how scores are spread.
Rows that shaped a score look less odd under it than new ones do, so without the split every stream raises an alarm.

Where traffic has a daily cycle, one calibration is kept per block of hours (see `daily`), on axes that all share.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from monitoring.drift.errors import DamagedReference, TooFewRequests, UnusableVectors

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

FORMAT = 1
CLIP = 4.0
"""Coordinates are cut at this many standard deviations, so that one odd request can't steer a direction."""

LEAST_DEVIATION = 0.01
"""Floor of a named feature's standard deviation: a share that was always 0 still has a scale when it moves."""

MIN_CALIBRATION = 500
"""Rows per calibration: with fewer, the 5 % tail stands on under 25 rows and its margin eats the evidence."""


@dataclass(frozen=True, slots=True)
class ReferenceSpec:
    """How a reference is built.

    Attributes:
        components: principal components of an embedding that are kept. 64 of 512 tell topics apart; with 16
            a topic that is 30 % of the traffic is found about twice as late.
        clusters: groups of similar requests, for explanations and for the distance to the nearest of them.
        max_fit: rows of the fit half at most, over all blocks together.
        max_calibration: rows of each block's calibration at most: 2,000 of 65 coordinates are 520 kB.
        examples: example ids that are kept per cluster.

    """

    components: int = 64
    clusters: int = 32
    max_fit: int = 8000
    max_calibration: int = 2000
    examples: int = 3

    def __post_init__(self) -> None:
        if self.components < 1 or self.clusters < 2 or self.examples < 1:
            raise ValueError(
                f"components {self.components}, clusters {self.clusters}, examples {self.examples}; "
                "give at least 1, 2 and 1"
            )
        if self.max_calibration < MIN_CALIBRATION:
            raise ValueError(f"max_calibration is {self.max_calibration}; give at least {MIN_CALIBRATION}")

    def least_rows(self, named: bool) -> int:
        """Rows without which no reference is built: both halves must be able to do their work."""
        fit = MIN_CALIBRATION if named else 8 * self.components
        return 2 * max(fit, MIN_CALIBRATION)


@dataclass(frozen=True, slots=True)
class Block:
    """The calibration of some hours of the day.

    Attributes:
        centre: mean coordinates of this block's fit rows.
        calibration: coordinates of calibration rows less the centre, one row each.
        cluster_share: share of the block's calibration rows that is in each cluster.

    """

    centre: Floats
    calibration: Floats
    cluster_share: Floats


@dataclass(frozen=True, slots=True)
class Reference:
    """An immutable reference; two with the same digest are the same.

    Attributes:
        source: where its rows are from: "2026-03-01T00:00Z to 2026-03-08T00:00Z of chat", "data set support-v2".
        names: a name for each feature, or none for an embedding.
        mean: of the vectors, in the fit half.
        axes: (values of a vector, coordinates); a vector less the mean times this is a row of coordinates.
        weights: how much each coordinate counts when a direction is formed.
        centres: of the clusters, (clusters, axes).
        spread: mean and standard deviation of the distance to the nearest centre.
        example_ids: by cluster, ids of the requests nearest to its centre.
        blocks: one for the whole day, or several of equal length from midnight on.
        rows: rows given, fit rows, calibration rows.
        digest: SHA-256 of all of it, as hexadecimal digits.

    """

    source: str
    names: tuple[str, ...]
    mean: Floats
    axes: Floats
    weights: Floats
    centres: Floats
    spread: tuple[float, float]
    example_ids: tuple[tuple[str, ...], ...]
    blocks: tuple[Block, ...]
    rows: tuple[int, int, int]
    digest: str = ""

    @property
    def dimensions(self) -> int:
        """Values in a vector."""
        return int(self.mean.shape[0])

    @property
    def coordinates(self) -> int:
        """Coordinates: one per axis, and the distance to the nearest cluster."""
        return int(self.axes.shape[1]) + 1

    @property
    def nbytes(self) -> int:
        """Bytes of memory that its arrays take."""
        return sum(array.nbytes for array in _arrays(self).values())

    def block_of(self, hour: int) -> int:
        """The block that an hour of the day belongs to.

        Raises:
            ValueError: for an hour that is not one of 0 to 23.

        """
        if not 0 <= hour < 24:
            raise ValueError(f"hour is {hour}; give the hour of the day, 0 to 23")
        return hour * len(self.blocks) // 24

    def locate(self, vector: NDArray[Any]) -> tuple[Floats, int]:
        """Coordinates of one request and its cluster.

        Raises:
            UnusableVectors: when it has another length than the reference's, or is not finite.

        """
        if vector.shape != self.mean.shape:
            raise UnusableVectors(
                f"a vector of shape {vector.shape} for a reference of {self.dimensions} values: it was made by another "
                "embedding model; build a reference with the present one"
            )
        centred = vector.astype(np.float32, copy=False) - self.mean
        z = centred @ self.axes
        np.clip(z, -CLIP, CLIP, out=z)
        apart = self.centres - z
        squares = np.einsum("ij,ij->i", apart, apart)
        cluster = int(squares.argmin())
        distance = (float(squares[cluster]) ** 0.5 - self.spread[0]) / self.spread[1]
        # Not a number anywhere shows up here: the squares sum over all coordinates.
        if distance != distance:
            raise UnusableVectors("a vector with values that are not finite; leave the request out and count it")
        out = np.empty(z.shape[0] + 1, dtype=np.float32)
        out[:-1] = z
        out[-1] = min(max(distance, -CLIP), CLIP)
        return out, cluster


def build_reference(
    vectors: NDArray[Any],
    ids: Sequence[str],
    *,
    source: str,
    rng: np.random.Generator,
    spec: ReferenceSpec | None = None,
    names: Sequence[str] = (),
    hours: NDArray[np.integer[Any]] | None = None,
    blocks: int = 1,
) -> Reference:
    """A reference of the rows given.

    Args:
        vectors: one row per request: embeddings, or cheap features.
        ids: a request id per row; the reference keeps ids as examples, never a text.
        source: where the rows are from, in words.
        rng: splits the rows.
        spec: sizes.
        names: of the features, where they have one; axes are then the features themselves, not principal components.
        hours: hour of the day of each row, when there is more than one block.
        blocks: parts of the day that get a calibration of their own; a divisor of 24 (see `daily.choose_blocks`).

    Raises:
        TooFewRequests: when there are too few rows, in all or in a block.
        UnusableVectors: when vectors, ids, names and hours don't fit together, or a value is not finite.
        ValueError: when `blocks` doesn't divide 24.

    """
    spec = spec or ReferenceSpec()
    table = _checked(vectors, ids, names, spec)
    block_of = _blocks_of(hours, blocks, len(table))
    fit, calibration = _split(block_of, blocks, rng, spec)
    every_fit = np.concatenate(fit)
    mean = table[every_fit].mean(axis=0)
    axes, weights = _named_axes(table[every_fit]) if names else _principal_axes(table[every_fit] - mean, spec)
    z = np.clip((table - mean) @ axes, -CLIP, CLIP).astype(np.float32)
    centres = _k_means(z[every_fit], spec.clusters, rng)
    cluster, distance = _nearest(z, centres)
    held_out = np.concatenate(calibration)
    spread = (float(distance[held_out].mean()), max(float(distance[held_out].std()), 1e-6))
    column = np.clip((distance - spread[0]) / spread[1], -CLIP, CLIP).astype(np.float32)
    full = np.concatenate([z, column[:, None]], axis=1)
    kept = tuple(
        _block(full, cluster, fit_rows, own, len(centres)) for fit_rows, own in zip(fit, calibration, strict=True)
    )
    return _sealed(
        Reference(
            source=source,
            names=tuple(names),
            mean=mean,
            axes=axes,
            weights=np.append(weights, np.float32(1.0)),
            centres=centres,
            spread=spread,
            example_ids=_examples(ids, cluster, distance, len(centres), spec.examples),
            blocks=kept,
            rows=(len(table), len(every_fit), len(held_out)),
        )
    )


def save_reference(reference: Reference, file: IO[bytes]) -> None:
    """Write a reference as an npz archive: arrays and a line of JSON, no pickle."""
    about = np.frombuffer(_about(reference).encode(), dtype=np.uint8)
    np.savez(file, allow_pickle=False, about=about, **_arrays(reference))


_UNREADABLE = (
    KeyError, ValueError, TypeError, IndexError, EOFError, OSError, RuntimeError, MemoryError, ArithmeticError,
    AttributeError, struct.error, zlib.error, zipfile.BadZipFile,
)  # fmt: skip
"""What Python's and numpy's readers raise on an archive whose bytes were changed."""


def load_reference(file: IO[bytes]) -> Reference:
    """Read what `save_reference` wrote.

    Raises:
        DamagedReference: when it can't be read, is of another format, or was changed since.

    """
    try:
        with zipfile.ZipFile(file) as archive:
            if (broken := archive.testzip()) is not None:
                raise DamagedReference(f"{broken} is damaged; build the reference again from its window")
        file.seek(0)
        with np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        about = json.loads(arrays.pop("about").tobytes().decode())
        if about["format"] != FORMAT:
            raise DamagedReference(
                f"a reference of format {about['format']}, this version reads {FORMAT}; build it again"
            )
        blocks = tuple(
            Block(arrays[f"centre_{n}"], arrays[f"calibration_{n}"], arrays[f"cluster_share_{n}"])
            for n in range(about["blocks"])
        )
        found = Reference(
            source=about["source"],
            names=tuple(about["names"]),
            mean=arrays["mean"],
            axes=arrays["axes"],
            weights=arrays["weights"],
            centres=arrays["centres"],
            spread=(about["spread"][0], about["spread"][1]),
            example_ids=tuple(tuple(ids) for ids in about["example_ids"]),
            blocks=blocks,
            rows=(about["rows"][0], about["rows"][1], about["rows"][2]),
        )
        sealed = _sealed(found)
    except _UNREADABLE as error:
        raise DamagedReference(
            f"not a whole reference ({type(error).__name__}); build it again from its window"
        ) from error
    if sealed.digest != about["digest"]:
        raise DamagedReference(
            f"the content has digest {sealed.digest[:12]} and says {str(about['digest'])[:12]}: "
            "it was changed; build it again from its window"
        )
    return sealed


def _checked(vectors: NDArray[Any], ids: Sequence[str], names: Sequence[str], spec: ReferenceSpec) -> Floats:
    if vectors.ndim != 2 or len(ids) != len(vectors):
        raise UnusableVectors(f"vectors of shape {vectors.shape} for {len(ids)} ids; give one row per id")
    if names and len(names) != vectors.shape[1]:
        raise UnusableVectors(f"{len(names)} names for {vectors.shape[1]} features; give one name per feature")
    least = spec.least_rows(bool(names))
    if len(vectors) < least:
        raise TooFewRequests(
            f"{len(vectors)} requests for a reference; at least {least} are needed "
            f"(half to fit {len(names) or spec.components} axes, half to calibrate); take a longer window"
        )
    table = vectors.astype(np.float32)
    if not np.isfinite(table).all():
        raise UnusableVectors(f"{int((~np.isfinite(table)).any(axis=1).sum())} rows are not finite; leave them out")
    return table


def _blocks_of(hours: NDArray[np.integer[Any]] | None, blocks: int, rows: int) -> Integers:
    if blocks < 1 or 24 % blocks:
        raise ValueError(f"{blocks} blocks of a day; give a divisor of 24: 1, 2, 3, 4, 6, 8, 12 or 24")
    if blocks == 1:
        return np.zeros(rows, dtype=np.int64)
    if hours is None or hours.shape != (rows,) or hours.min() < 0 or hours.max() > 23:
        raise UnusableVectors(f"{blocks} blocks of a day need the hour, 0 to 23, of each of the {rows} rows")
    return (hours.astype(np.int64) * blocks) // 24


def _split(
    block_of: Integers, blocks: int, rng: np.random.Generator, spec: ReferenceSpec
) -> tuple[list[Integers], list[Integers]]:
    """Rows to fit and rows to calibrate, by block; no row is in both. What calibration does not need is fitted."""
    fit, calibration = [], []
    for block in range(blocks):
        rows = rng.permutation(np.flatnonzero(block_of == block))
        half = len(rows) // 2
        if half < MIN_CALIBRATION:
            raise TooFewRequests(
                f"{len(rows)} requests in block {block + 1} of {blocks} of the day; at least {2 * MIN_CALIBRATION} are "
                "needed in each; take a longer window or fewer blocks"
            )
        held_out = min(half, spec.max_calibration)
        calibration.append(np.sort(rows[:held_out]))
        fit.append(np.sort(rows[held_out:][: max(spec.max_fit // blocks, MIN_CALIBRATION)]))
    return fit, calibration


def _principal_axes(centred: Floats, spec: ReferenceSpec) -> tuple[Floats, Floats]:
    """Whitened principal components, and weights that trust the strong ones more."""
    values, vectors = np.linalg.eigh(np.asarray(centred.T @ centred, dtype=np.float64) / len(centred))
    kept = min(spec.components, len(values))
    deviations = np.sqrt(np.maximum(values[::-1][:kept], 1e-12))
    axes = vectors[:, ::-1][:, :kept] / deviations
    return axes.astype(np.float32), (deviations / deviations[0]).astype(np.float32)


def _named_axes(rows: Floats) -> tuple[Floats, Floats]:
    deviations = np.maximum(rows.std(axis=0), LEAST_DEVIATION)
    return np.diag(1.0 / deviations).astype(np.float32), np.ones(rows.shape[1], dtype=np.float32)


def _nearest(z: Floats, centres: Floats) -> tuple[Integers, Floats]:
    squares = (z * z).sum(axis=1)[:, None] - 2.0 * (z @ centres.T) + (centres * centres).sum(axis=1)
    cluster = squares.argmin(axis=1)
    least = np.maximum(squares[np.arange(len(z)), cluster], 0.0)
    return cluster.astype(np.int64), np.sqrt(least).astype(np.float32)


def _k_means(z: Floats, clusters: int, rng: np.random.Generator, rounds: int = 20) -> Floats:
    """Lloyd's algorithm from rows drawn by chance; a centre that loses all its rows stays where it is."""
    centres = z[rng.choice(len(z), size=min(clusters, len(z)), replace=False)].copy()
    for _ in range(rounds):
        cluster, _distance = _nearest(z, centres)
        for number in range(len(centres)):
            own = z[cluster == number]
            if len(own):
                centres[number] = own.mean(axis=0)
    return centres


def _block(full: Floats, cluster: Integers, fit: Integers, calibration: Integers, clusters: int) -> Block:
    centre = full[fit].mean(axis=0)
    share = np.bincount(cluster[calibration], minlength=clusters) / len(calibration)
    return Block(centre, full[calibration] - centre, share.astype(np.float32))


def _examples(
    ids: Sequence[str], cluster: Integers, distance: Floats, clusters: int, examples: int
) -> tuple[tuple[str, ...], ...]:
    order = np.argsort(distance, kind="stable")
    return tuple(
        tuple(str(ids[row]) for row in order[cluster[order] == number][:examples]) for number in range(clusters)
    )


def _arrays(reference: Reference) -> dict[str, Floats]:
    arrays = {name: getattr(reference, name) for name in ("mean", "axes", "weights", "centres")}
    for number, block in enumerate(reference.blocks):
        arrays |= {f"{name}_{number}": getattr(block, name) for name in ("centre", "calibration", "cluster_share")}
    return arrays


def _about(reference: Reference) -> str:
    about = {
        "format": FORMAT,
        "source": reference.source,
        "names": reference.names,
        "spread": reference.spread,
        "example_ids": reference.example_ids,
        "blocks": len(reference.blocks),
        "rows": reference.rows,
        "digest": reference.digest,
    }
    return json.dumps(about, sort_keys=True)


def _sealed(reference: Reference) -> Reference:
    """The same with its digest, and with arrays that nobody can change."""
    content = hashlib.sha256()
    blank = replace(reference, digest="")
    content.update(_about(blank).encode())
    for name, array in sorted(_arrays(reference).items()):
        if array.dtype != np.float32:
            raise TypeError(f"{name} is of {array.dtype}, not float32")
        array.setflags(write=False)
        content.update(f"{name}{array.shape}".encode())
        content.update(np.ascontiguousarray(array).tobytes())
    return replace(blank, digest=content.hexdigest())
