"""A version's files on disk: listing, hashing, copying, verifying. Shell."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from registry.errors import Damaged, NoSpace, RegistryUnavailable, UnsafeFile
from registry.manifest import first_listing_mismatch, sorted_manifest
from registry.models import Manifest, ManifestFile

OnProgress = Callable[[str, int, int], None]
"""Called with a stage (`fetch`, `copy`, `verify`, `store`), the bytes done and the bytes in all."""

CHUNK_BYTES = 1024 * 1024
"""Large enough for sha256 to run at full speed, small enough that memory stays flat."""

MARGIN_BYTES = 64 * CHUNK_BYTES
"""Left free beside a copy, for the database and the logs."""

_JUNK = frozenset({"__pycache__", "Thumbs.db", "desktop.ini"})


def silent(stage: str, done_bytes: int, total_bytes: int) -> None:
    """Report progress to nobody."""


@dataclass(frozen=True)
class SourceFile:
    """A file to copy: its path inside the folder (with `/`), where it really lies, and its size."""

    path: str
    real: Path
    size_bytes: int


def list_files(folder: Path, links_within: Path | None = None) -> list[SourceFile]:
    """Every file below a folder, by path, without what tools leave behind (`.git`, `.DS_Store`, `__pycache__`).

    A link is followed only where it ends inside `links_within` (default: the folder itself; the hub's cache links
    from a snapshot into its own blobs).

    Raises:
        UnsafeFile: a link that leads elsewhere, a link to a folder, or something that is not a file at all.
        RegistryUnavailable: the folder cannot be read.
    """
    bound = (links_within or folder).resolve()
    return sorted(_walk(folder, bound), key=lambda f: f.path)


def _walk(folder: Path, bound: Path) -> Iterator[SourceFile]:
    def refuse(error: OSError) -> None:
        raise RegistryUnavailable(f"{error.filename} cannot be read ({error.strerror}); check its permissions")

    for root, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not _is_junk(name)]
        for name in folders:
            if (Path(root) / name).is_symlink():
                raise UnsafeFile(f"{Path(root) / name} is a link to a folder; put a copy of the folder in its place")
        for name in names:
            if not _is_junk(name):
                yield _checked_file(folder, Path(root) / name, bound)


def _is_junk(name: str) -> bool:
    return name.startswith(".") or name in _JUNK


def _checked_file(folder: Path, path: Path, bound: Path) -> SourceFile:
    real = path.resolve()
    if path.is_symlink() and not real.is_relative_to(bound):
        raise UnsafeFile(f"{path} is a link that leads out of {bound}, to {real}; put a copy of the file in its place")
    if not real.is_file():
        raise UnsafeFile(f"{path} is neither a file nor a folder (a broken link or a device?); remove it")
    return SourceFile(path.relative_to(folder).as_posix(), real, real.stat().st_size)


def total_bytes(files: Sequence[SourceFile]) -> int:
    """What the files weigh together."""
    return sum(f.size_bytes for f in files)


def hash_file(path: Path, on_chunk: Callable[[int], None] | None = None) -> str:
    """The sha256 of a file, read in chunks of 1 MiB; `on_chunk` is told how many bytes were read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            if on_chunk is not None:
                on_chunk(len(chunk))
    return digest.hexdigest()


class Meter:
    """Adds up bytes and reports them under one stage's name."""

    def __init__(self, stage: str, total: int, on_progress: OnProgress) -> None:
        self._stage, self._total, self._report = stage, total, on_progress
        self._done = 0
        on_progress(stage, 0, total)

    def add(self, count: int) -> None:
        """So many bytes more are done."""
        self._done += count
        self._report(self._stage, self._done, self._total)


def build_manifest(folder: Path, on_progress: OnProgress = silent) -> Manifest:
    """The manifest of a folder as it is now."""
    files = list_files(folder)
    meter = Meter("verify", total_bytes(files), on_progress)
    return sorted_manifest(
        ManifestFile(path=f.path, size_bytes=f.size_bytes, sha256=hash_file(f.real, meter.add)) for f in files
    )


def copy_files(files: Sequence[SourceFile], destination: Path, on_progress: OnProgress = silent) -> list[ManifestFile]:
    """Copy files into a folder and hash them on the way: each byte is read once.

    Plain copies, never links: a version must not change when its source does.

    Raises:
        NoSpace: the copy does not fit on the disk.
        RegistryUnavailable: reading or writing failed.
    """
    destination.mkdir(parents=True, exist_ok=True)
    need, free = total_bytes(files) + MARGIN_BYTES, shutil.disk_usage(destination).free
    if need > free:
        raise NoSpace(
            f"the copy needs {need / 1e9:.2f} GB below {destination}, free are {free / 1e9:.2f} GB; "
            "make room or move TIDEGATE_HOME to a larger disk"
        )
    meter = Meter("copy", total_bytes(files), on_progress)
    try:
        return [_copy_file(f, destination / f.path, meter) for f in files]
    except OSError as error:
        message = (
            f"copying to {destination} failed: {error.strerror or error} ({error.filename}); mend it and try again"
        )
        raise RegistryUnavailable(message) from error


def _copy_file(file: SourceFile, target: Path, meter: Meter) -> ManifestFile:
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    with file.real.open("rb") as source, target.open("wb") as copy:
        while chunk := source.read(CHUNK_BYTES):
            digest.update(chunk)
            copy.write(chunk)
            size += len(chunk)
            meter.add(len(chunk))
    return ManifestFile(path=file.path, size_bytes=size, sha256=digest.hexdigest())


def verify_folder(folder: Path, manifest: Manifest, reference: str, on_progress: OnProgress = silent) -> None:
    """Check that a folder holds exactly what a manifest says: first the listing, then every byte.

    Raises:
        Damaged: names the first file, by path, that is missing, unexpected or different.
    """
    if not folder.is_dir():
        raise Damaged(f"the files of {reference} are gone from {folder}; {WAY_OUT}", found="no folder")
    try:
        files = list_files(folder)
    except UnsafeFile as error:
        raise Damaged(f"{reference} was tampered with: {error}") from error
    wrong = first_listing_mismatch(manifest, {f.path: f.size_bytes for f in files})
    if wrong is not None:
        raise damaged(reference, folder, *wrong)
    meter = Meter("verify", total_bytes(files), on_progress)
    for file, expected in zip(files, manifest.files, strict=True):
        try:
            found = hash_file(file.real, meter.add)
        except OSError as error:
            raise RegistryUnavailable(
                f"{file.real} of {reference} cannot be read: {error.strerror}; {WAY_OUT}"
            ) from error
        if found != expected.sha256:
            raise damaged(reference, folder, file.path, expected.sha256, found)


WAY_OUT = "restore it from a copy, or register the version anew under another number"


def damaged(reference: str, folder: Path, path: str, expected: str, found: str) -> Damaged:
    """The error for one file that is not what the manifest says."""
    return Damaged(
        f"{reference} is damaged: {folder / path}: expected {expected[:16]}, found {found[:16]}; {WAY_OUT}",
        path=path,
        expected=expected,
        found=found,
    )


def seal(folder: Path) -> None:
    """Make a version's files read-only: a version never changes once registered."""
    for file in list_files(folder):
        file.real.chmod(0o444)
