"""Imports versions that somebody registered with MLflow's own client. Shell.

Nothing of theirs is changed: manifest and semantic version are computed at first sight and written into tags. What
cannot be served (a pickle, no tokenizer) gets the reason as a tag, so that listings need not try it again.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from registry.errors import InvalidSource, NothingChanged, RegistryError
from registry.facets import compute_facets
from registry.files import SourceFile, build_manifest, copy_files, list_files
from registry.inspection import inspect
from registry.manifest import dump_manifest, manifest_digest, sorted_manifest
from registry.models import Bump, Facets, Manifest, SourceKind
from registry.registration import Staged
from registry.semver import Numbered, SemVer, number_version
from registry.sources import MlflowSource
from registry.stores import mlflow_tags as tags
from registry.stores.mlflow_client import Mlflow, NotFound, local_path, to_stored
from registry.stores.mlflow_folders import Folders, layout_of, version_files
from registry.stores.mlflow_tags import Stored

log = logging.getLogger(__name__)


class Importer:
    """Gives foreign versions a manifest and a number, and fetches `models:/` sources."""

    def __init__(self, mlflow: Mlflow, folders: Folders) -> None:
        self._mlflow = mlflow
        self._folders = folders

    @staticmethod
    def wants(stored: Stored, wanted: str | None) -> bool:
        """Whether a version waits to be imported. One that could not be is tried again only when it is asked for."""
        return stored.foreign and (tags.IMPORT_ERROR not in stored.tags or stored.number == wanted)

    def run(self, model: str, versions: Sequence[Stored], wanted: str | None) -> None:
        """Import what waits, oldest first. Call it under the model's lock.

        Raises:
            RegistryError: the version `wanted` (by MLflow's number) cannot be imported, or the registry is away.
        """
        existing = {SemVer.parse(v.tags[tags.SEMVER]): tags.read_facets(v) for v in versions if v.ready}
        for stored in versions:
            if not self.wants(stored, wanted):
                continue
            try:
                number, facets = self._import(stored, existing)
                existing[number] = facets
            except RegistryError as error:
                if error.retryable:
                    raise
                log.warning("version %s of %s in MLflow cannot be served: %s", stored.number, model, error)
                self._tag(stored, {tags.IMPORT_ERROR: str(error)[:1000]})
                if stored.number == wanted:
                    raise

    def _import(self, stored: Stored, existing: dict[SemVer, Facets]) -> tuple[SemVer, Facets]:
        uri = self._mlflow.artifact_uri(stored.name, stored.number)
        with self._folders.artifacts(uri) as root:
            files = version_files(root)
            inspect(files)
            layout = layout_of(root)
            with self._folder(uri, layout, root, files) as (folder, manifest):
                facets = compute_facets(folder, manifest, {})
        numbered, parent = _number(stored.name, facets, existing)
        lineage = f"models:/{stored.name}/{stored.number}"
        staged = Staged(
            kind=SourceKind.FOLDER, folder=root, manifest=manifest, facets=facets, lineage=lineage, uri=None
        )
        text = dump_manifest(manifest)
        if len(text) > tags.MAX_TAG_CHARS:
            raise InvalidSource(f"{lineage} has {len(manifest.files)} files, too many for a tag; register its folder")
        written = tags.version_tags(staged, numbered, parent, text, manifest_digest(manifest))
        number = written.pop(tags.SEMVER)
        # The number comes last: until it is there, a crash leaves a version that is simply imported again.
        self._tag(stored, written | {tags.LAYOUT: layout, tags.STATE: tags.READY})
        self._tag(stored, {tags.SEMVER: number})
        return numbered.version, facets

    @contextlib.contextmanager
    def _folder(
        self, uri: str, layout: str, root: Path, files: Sequence[SourceFile]
    ) -> Iterator[tuple[Path, Manifest]]:
        """The version's folder: the artifacts themselves where they can be served, else a copy for the cache."""
        if layout == tags.LAYOUT_PLAIN and local_path(uri) is not None:
            yield root, build_manifest(root)
            return
        with self._folders.scratch() as scratch:
            copy = scratch / "version"
            manifest = sorted_manifest(copy_files(files, copy))
            yield copy, manifest
            self._folders.keep(copy, manifest_digest(manifest))

    def _tag(self, stored: Stored, written: dict[str, str]) -> None:
        for key, value in written.items():
            self._mlflow.ask(self._mlflow.client.set_model_version_tag, stored.name, stored.number, key, value)

    def fetch(self, source: MlflowSource, scratch: Path) -> tuple[SourceFile, ...]:
        """The files of a `models:/` source; a download goes into `scratch`.

        Raises:
            InvalidSource: no such version, or a simulated one.
            Damaged: a version of Tidegate's whose files changed: a copy would make the damage official.
        """
        named = f"models:/{source.name}" + (f"/{source.version}" if source.version else f"@{source.alias}")
        stored = self._resolve(source, named)
        if stored.tags.get(tags.KIND) == SourceKind.SIMULATED:
            raise InvalidSource(f"{named} is simulated; give its source instead: {stored.tags.get(tags.URI)}")
        uri = self._mlflow.artifact_uri(stored.name, stored.number)
        if stored.ready:
            return tuple(list_files(self._folders.materialise(uri, stored, named, verify=True)))
        local = local_path(uri)
        return tuple(version_files(local if local is not None else self._mlflow.download(uri, scratch)))

    def _resolve(self, source: MlflowSource, named: str) -> Stored:
        client = self._mlflow.client
        try:
            if source.version is not None:
                return to_stored(self._mlflow.ask(client.get_model_version, source.name, source.version))
            number = self._mlflow.aliases(source.name).get(source.alias or "")
            if number is not None:
                return to_stored(self._mlflow.ask(client.get_model_version, source.name, number))
        except NotFound:
            pass
        raise InvalidSource(f"{named} is not in MLflow; check the name, and the version or alias")


def _number(model: str, facets: Facets, existing: dict[SemVer, Facets]) -> tuple[Numbered, str | None]:
    """Number a foreign version against the highest there is; an equal one is a PATCH, for nobody can be asked."""
    parent = max(existing, default=None)
    known = None if parent is None else (parent, existing[parent])
    number = functools.partial(
        number_version, model=model, version=None, new=facets, parent=known, existing=existing.keys()
    )
    try:
        numbered = number(bump=None)
    except NothingChanged:
        numbered = number(bump=Bump.PATCH)
    reason = f"imported from MLflow; {numbered.reason}"
    return Numbered(numbered.version, numbered.bump, reason), None if parent is None else str(parent)
