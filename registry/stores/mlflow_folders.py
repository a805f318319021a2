"""Local folders of versions that MLflow keeps: in place where they can be, else in a cache. Shell."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from registry.errors import Damaged, RegistryUnavailable
from registry.files import OnProgress, SourceFile, copy_files, list_files, seal, silent, verify_folder
from registry.manifest import load_manifest
from registry.models import Manifest
from registry.stores.mlflow_client import Mlflow, local_path
from registry.stores.mlflow_tags import LAYOUT, LAYOUT_PLAIN, LAYOUT_TRANSFORMERS, MANIFEST, MANIFEST_SHA256, Stored
from registry.verification import VerifiedFolders


def layout_of(root: Path) -> str:
    """How a folder of MLflow artifacts is laid out.

    `mlflow.transformers.log_model` writes MLmodel, `model/` (as save_pretrained does) and `components/tokenizer/`.
    """
    wrapped = (root / "MLmodel").exists() and (root / "model" / "config.json").exists()
    return LAYOUT_TRANSFORMERS if wrapped and not (root / "config.json").exists() else LAYOUT_PLAIN


def version_files(root: Path) -> list[SourceFile]:
    """The files of a version inside MLflow's artifacts, under the paths that an engine expects.

    For the transformers flavour `model/` and every component (tokenizer, processors) are laid over each other, the
    model's own files winning; MLflow's notes around them (requirements, MLmodel) belong to no version.
    """
    if layout_of(root) == LAYOUT_PLAIN:
        return list_files(root)
    flat: dict[str, SourceFile] = {}
    for folder in (*sorted((root / "components").glob("*/")), root / "model"):
        for file in list_files(folder):
            flat[file.path] = file
    return sorted(flat.values(), key=lambda f: f.path)


class Folders:
    """Finds, fetches and verifies the folders of versions.

    `cache` holds what does not lie on this machine in the right form, by the digest of its manifest.
    """

    def __init__(self, mlflow: Mlflow, cache: Path) -> None:
        self._mlflow = mlflow
        self._cache = cache
        self._verified = VerifiedFolders(cache / "verified")

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder that is gone afterwards, on the same disk as the cache."""
        folder = self._cache / "scratch" / uuid.uuid4().hex
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @contextlib.contextmanager
    def artifacts(self, uri: str) -> Iterator[Path]:
        """MLflow's artifacts in a local folder: where they lie, else a download that is gone afterwards.

        Raises:
            RegistryUnavailable: they are not there.
        """
        with self.scratch() as folder:
            local = local_path(uri)
            root = local if local is not None else self._mlflow.download(uri, folder)
            if not root.is_dir():
                raise RegistryUnavailable(
                    f"the artifacts at {uri} cannot be reached from this machine; "
                    "mount them here, or let the tracking server serve them (mlflow server --serve-artifacts)"
                )
            yield root

    def one_file(self, uri: str, path: str) -> bytes | None:
        """One file of a version's artifacts without the others; None when there is no such file.

        Raises:
            RegistryUnavailable: it can't be reached.
        """
        local = local_path(uri)
        if local is not None:
            return (local / path).read_bytes() if (local / path).is_file() else None
        with self.scratch() as folder:
            return self._mlflow.download(f"{uri.rstrip('/')}/{path}", folder).read_bytes()

    def cached(self, manifest_sha256: str) -> Path:
        """Where the cache keeps a version."""
        return self._cache / "versions" / manifest_sha256

    def keep(self, folder: Path, manifest_sha256: str) -> Path:
        """Move a finished folder into the cache, whole or not at all."""
        target = self.cached(manifest_sha256)
        seal(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):  # somebody else was first: theirs has the same digest
            os.rename(folder, target)
        return target

    def materialise(self, uri: str, stored: Stored, reference: str, verify: bool, report: OnProgress = silent) -> Path:
        """A verified local folder of a ready version. See `RegistryStore.materialise`."""
        sha256 = stored.tags.get(MANIFEST_SHA256, "")
        layout = stored.tags.get(LAYOUT, LAYOUT_PLAIN)
        manifest = load_manifest(stored.tags.get(MANIFEST, ""), sha256, reference)
        local = local_path(uri)
        if local is not None and layout == LAYOUT_PLAIN:
            self._verified.ensure(local, manifest, reference, force=verify, on_progress=report)
            return local
        target = self.cached(sha256)
        if target.exists():
            try:
                self._verified.ensure(target, manifest, reference, force=verify, on_progress=report)
            except Damaged:  # only the cache's copy: the artifacts may be sound
                shutil.rmtree(target)
            else:
                return target
        self._fetch(uri, manifest, sha256, reference, report)
        self._verified.ensure(target, manifest, reference, on_progress=silent)
        return target

    def _fetch(self, uri: str, manifest: Manifest, sha256: str, reference: str, report: OnProgress) -> None:
        report("fetch", 0, sum(f.size_bytes for f in manifest.files))
        with self.artifacts(uri) as root, self.scratch() as folder:
            copy = folder / "version"
            copy_files(version_files(root), copy, report)
            verify_folder(copy, manifest, reference, report)
            self.keep(copy, sha256)
