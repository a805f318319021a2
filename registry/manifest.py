"""Manifests: their canonical form, their digest, and how a folder differs from one. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from pydantic import ValidationError

from registry.errors import Damaged
from registry.models import Manifest, ManifestFile

MISSING = "missing"
UNEXPECTED = "not in the manifest"


def canonical_json(value: object) -> str:
    """JSON with sorted keys, no spaces and only ASCII: one text for one value, so that digests agree."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest_of(value: object) -> str:
    """The sha256, in hexadecimal, of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def sorted_manifest(files: Iterable[ManifestFile]) -> Manifest:
    """A manifest in its one order: by path."""
    return Manifest(files=tuple(sorted(files, key=lambda f: f.path)))


def dump_manifest(manifest: Manifest) -> str:
    """The manifest's canonical JSON."""
    return canonical_json(manifest.model_dump(mode="json"))


def manifest_digest(manifest: Manifest) -> str:
    """What names a version's content: the sha256 of the manifest's canonical JSON."""
    return hashlib.sha256(dump_manifest(manifest).encode()).hexdigest()


def load_manifest(text: str, sha256: str, reference: str) -> Manifest:
    """Read a stored manifest and check it against the digest that was stored apart from it.

    Raises:
        Damaged: it cannot be read, or is not the one that was registered.
    """
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        raise Damaged(
            f"the manifest of {reference} cannot be read ({error.error_count()} errors); register the version anew",
            path="manifest.json",
        ) from error
    found = manifest_digest(manifest)
    if found != sha256:
        raise Damaged(
            f"the manifest of {reference} has digest {found[:12]}, registered was {sha256[:12]}; "
            "register the version anew under another number",
            path="manifest.json",
            expected=sha256,
            found=found,
        )
    return manifest


class Mismatch(NamedTuple):
    """The first difference between a manifest and what is there."""

    path: str
    expected: str
    found: str


def first_listing_mismatch(manifest: Manifest, sizes_bytes: Mapping[str, int]) -> Mismatch | None:
    """The first path, in order, that is missing, unexpected or of another size. None when the listing agrees.

    Needs no file's content, so it finds most damage before a single byte is hashed.
    """
    expected = manifest.by_path()
    for path in sorted({*expected, *sizes_bytes}):
        if path not in sizes_bytes:
            return Mismatch(path, expected[path].sha256, MISSING)
        if path not in expected:
            return Mismatch(path, UNEXPECTED, f"{sizes_bytes[path]} bytes")
        if expected[path].size_bytes != sizes_bytes[path]:
            return Mismatch(path, f"{expected[path].size_bytes} bytes", f"{sizes_bytes[path]} bytes")
    return None
