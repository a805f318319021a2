"""From a request to a folder that is ready to be registered: fetch, inspect, copy, bake, measure. Shell.

The stores call this and then record what it returns, each in its own way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from registry.baking import (
    CheckPolicy,
    Ingredients,
    any_mapping,
    bake,
    bake_simulation,
    check_baked_policy,
    read_ingredients,
)
from registry.errors import RegistryUnavailable, UnknownVersion
from registry.facets import compute_facets
from registry.files import OnProgress, build_manifest, copy_files, hash_file, list_files
from registry.inspection import inspect
from registry.manifest import sorted_manifest
from registry.models import Alias, Facets, Manifest, ManifestFile, RegisterRequest, SourceKind
from registry.semver import Numbered, SemVer, number_version
from registry.sources import (
    FetchMlflow,
    FolderSource,
    HubSource,
    MlflowSource,
    SimulatedSource,
    Source,
    fetch,
    parse_source,
)


@dataclass(frozen=True)
class Checked:
    """A request whose own parts make sense; its source has not been looked at yet."""

    request: RegisterRequest
    source: Source
    ingredients: Ingredients
    version: SemVer | None
    check_policy: CheckPolicy = any_mapping


@dataclass(frozen=True)
class Staged:
    """A version's folder, finished. `lineage` says where exactly the bytes came from; `uri` is set for `sim:`."""

    kind: SourceKind
    folder: Path
    manifest: Manifest
    facets: Facets
    lineage: str
    uri: str | None


def check_request(request: RegisterRequest, check_policy: CheckPolicy = any_mapping) -> Checked:
    """Check everything about a request that needs neither the registry nor the source's bytes.

    Args:
        request: What somebody wants registered.
        check_policy: Whether a guardrail policy can be put in force, the request's or one that lies in the source.

    Raises:
        InvalidRequest, InvalidSource: the version, the source's notation, a setting or a file cannot be used.
    """
    return Checked(
        request=request,
        source=parse_source(request.source),
        ingredients=read_ingredients(request, check_policy),
        version=SemVer.parse(request.version) if request.version is not None else None,
        check_policy=check_policy,
    )


def stage(checked: Checked, folder: Path, fetch_mlflow: FetchMlflow, on_progress: OnProgress) -> Staged:
    """Fill `folder` with the version's files, baked, and measure them.

    Raises:
        RegistryError: any of InvalidSource, InvalidPrompt, InvalidPolicy, NoSpace, RegistryUnavailable; the folder may
            be half full.
    """
    try:
        if isinstance(checked.source, SimulatedSource):
            return _stage_simulation(checked, checked.source, folder)
        return _stage_folder(checked, checked.source, folder, fetch_mlflow, on_progress)
    except OSError as error:
        message = f"writing to {folder} failed: {error.strerror or error} ({error.filename}); mend it and try again"
        raise RegistryUnavailable(message) from error


def _stage_simulation(checked: Checked, source: SimulatedSource, folder: Path) -> Staged:
    bake_simulation(folder, dict(source.parameters), checked.ingredients)
    return _measured(checked, folder, build_manifest(folder), source.uri, source.uri)


def _stage_folder(
    checked: Checked,
    source: FolderSource | HubSource | MlflowSource,
    folder: Path,
    fetch_mlflow: FetchMlflow,
    on_progress: OnProgress,
) -> Staged:
    fetched = fetch(source, fetch_mlflow, on_progress)
    inspect(fetched.files)
    copied = copy_files(fetched.files, folder, on_progress)
    before = _stamps(folder)
    bake(folder, checked.ingredients)
    return _measured(checked, folder, _after_baking(folder, copied, before), fetched.lineage, None)


def _measured(checked: Checked, folder: Path, manifest: Manifest, lineage: str, uri: str | None) -> Staged:
    check_baked_policy(folder, checked.check_policy)
    facets = compute_facets(folder, manifest, checked.ingredients.engine_args)
    kind = SourceKind.SIMULATED if uri is not None else SourceKind.FOLDER
    return Staged(kind=kind, folder=folder, manifest=manifest, facets=facets, lineage=lineage, uri=uri)


def _stamps(folder: Path) -> dict[str, tuple[int, int, int]]:
    stats = {f.path: f.real.stat() for f in list_files(folder)}
    return {path: (s.st_ino, s.st_mtime_ns, s.st_size) for path, s in stats.items()}


def _after_baking(folder: Path, copied: Iterable[ManifestFile], before: Mapping[str, tuple[int, int, int]]) -> Manifest:
    """The manifest after baking: the copy's digests where a file was left alone, so that weights are read once."""
    known = {f.path: f for f in copied}
    after = _stamps(folder)
    return sorted_manifest(
        known[path]
        if path in known and before.get(path) == stamp
        else ManifestFile(path=path, size_bytes=stamp[2], sha256=hash_file(folder / path))
        for path, stamp in after.items()
    )


def number_staged(
    checked: Checked, facets: Facets, existing: Mapping[str, Facets], aliases: Mapping[str, str]
) -> tuple[Numbered, str | None]:
    """The number of a staged version, and that of the version it was compared with.

    Compared with `parent` where it is given, else with what `production` points to (a fix of what serves is a PATCH
    of it, whatever else was tried since), else with the highest.

    Raises:
        UnknownVersion: `parent` does not exist.
        VersionExists, NothingChanged: as `semver.number_version` says.
    """
    model = checked.request.model
    numbers = {SemVer.parse(v): f for v, f in existing.items()}
    parent = parent_version(model, checked.request.parent, numbers, aliases)
    numbered = number_version(
        model=model,
        version=checked.version,
        bump=checked.request.bump,
        new=facets,
        parent=(parent, numbers[parent]) if parent else None,
        existing=numbers.keys(),
    )
    return numbered, str(parent) if parent else None


def parent_version(
    model: str, given: str | None, existing: Mapping[SemVer, Facets], aliases: Mapping[str, str]
) -> SemVer | None:
    """Which version a new one is compared with; None for a model's first."""
    if given is not None:
        parent = SemVer.parse(given)
        if parent not in existing:
            raise UnknownVersion(f"parent {model}@{parent} is not registered; {known_versions(map(str, existing))}")
        return parent
    production = aliases.get(Alias.PRODUCTION)
    if production is not None and (served := SemVer.parse(production)) in existing:
        return served
    return max(existing, default=None)


def known_versions(versions: Iterable[str], shown: int = 8) -> str:
    """The end of a message on an unknown version: what there is, highest first."""
    ordered = [str(v) for v in sorted(map(SemVer.parse, versions), reverse=True)]
    if not ordered:
        return "it has no versions yet: register one with tidegate model register"
    more = f" and {len(ordered) - shown} older" if len(ordered) > shown else ""
    return f"registered are {', '.join(ordered[:shown])}{more}"
