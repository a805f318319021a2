"""The registry in memory, its files below a folder: for tests, dry runs and demos. Forgets everything at exit."""

from __future__ import annotations

import datetime as dt
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from registry.baking import CheckPolicy, any_mapping
from registry.errors import InvalidSource, UnknownModel, UnknownVersion
from registry.files import OnProgress, SourceFile, list_files, seal, silent
from registry.manifest import manifest_digest
from registry.models import Facets, Lineage, Manifest, ModelVersion, RegisterRequest, SourceKind
from registry.references import check_alias
from registry.registration import Staged, check_request, known_versions, number_staged, stage
from registry.semver import Numbered, SemVer, refuse_taken
from registry.sources import MlflowSource
from registry.stores.base import checked_policy, policy_file, unknown_alias
from registry.verification import VerifiedFolders


@dataclass(frozen=True)
class _Record:
    version: ModelVersion
    manifest: Manifest
    facets: Facets
    folder: Path


@dataclass
class _Model:
    records: dict[str, _Record] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)


class MemoryStore:
    """See `base.RegistryStore`. `root` is where files are kept (default: a new temporary folder)."""

    def __init__(
        self,
        root: Path | None = None,
        now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
        check_policy: CheckPolicy = any_mapping,
    ) -> None:
        self._root = root or Path(tempfile.mkdtemp(prefix="tidegate-registry-"))
        self._now = now
        self._check_policy = check_policy
        self._models: dict[str, _Model] = {}
        self._verified = VerifiedFolders(self._root / "verified")
        self._lock = threading.RLock()
        self.cases: dict[tuple[str, str], str] = {}
        """The cases of evaluations, by (version's reference, name)."""

    def list_models(self) -> tuple[str, ...]:
        """See the protocol."""
        return tuple(sorted(self._models))

    def list_versions(self, model: str) -> tuple[ModelVersion, ...]:
        """See the protocol."""
        with self._lock:
            known = self._model(model)
            ordered = sorted(known.records.values(), key=lambda r: SemVer.parse(r.version.version), reverse=True)
            return tuple(self._with_aliases(known, record) for record in ordered)

    def get(self, model: str, version: str) -> ModelVersion:
        """See the protocol."""
        with self._lock:
            return self._with_aliases(self._model(model), self._record(model, version))

    def get_by_alias(self, model: str, alias: str) -> ModelVersion:
        """See the protocol."""
        with self._lock:
            aliases = self._model(model).aliases
            if alias not in aliases:
                raise unknown_alias(model, alias, aliases)
            return self.get(model, aliases[alias])

    def register(self, request: RegisterRequest, on_progress: OnProgress = silent) -> ModelVersion:
        """See the protocol."""
        checked = check_request(request, self._check_policy)
        with self._lock:
            known = self._models.get(request.model, _Model())
            refuse_taken(request.model, checked.version, [SemVer.parse(v) for v in known.records])
            serial = len(known.records) + 1
            folder = self._root / request.model / str(serial)
            try:
                staged = stage(checked, folder, self._own_version, on_progress)
                existing = {v: r.facets for v, r in known.records.items()}
                numbered, parent = number_staged(checked, staged.facets, existing, known.aliases)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            seal(folder)
            version = self._version(request, staged, numbered, parent, serial)
            known.records[version.version] = _Record(version, staged.manifest, staged.facets, folder)
            self._models[request.model] = known
            return version

    def _version(
        self, request: RegisterRequest, staged: Staged, numbered: Numbered, parent: str | None, serial: int
    ) -> ModelVersion:
        return ModelVersion(
            model=request.model,
            version=str(numbered.version),
            mlflow_version=str(serial),
            kind=staged.kind,
            location=staged.uri or str(staged.folder),
            manifest_sha256=manifest_digest(staged.manifest),
            engine_args=staged.facets.engine_args,
            generation=request.generation,
            metrics=request.metrics,
            policy_sha256=staged.facets.policy,
            lineage=Lineage(
                commit=request.commit, dataset=request.dataset, parent_version=parent, source=staged.lineage
            ),
            bump=numbered.bump,
            bump_reason=numbered.reason,
            created_at=self._now(),
        )

    def set_alias(self, model: str, alias: str, version: str | None) -> None:
        """See the protocol."""
        check_alias(alias)
        with self._lock:
            aliases = self._model(model).aliases
            if version is None:
                aliases.pop(alias, None)
            else:
                aliases[alias] = self._record(model, version).version.version

    def materialise(self, version: ModelVersion, *, verify: bool = False, on_progress: OnProgress = silent) -> Path:
        """See the protocol."""
        record = self._record(version.model, version.version)
        self._verified.ensure(record.folder, record.manifest, version.reference, force=verify, on_progress=on_progress)
        return record.folder

    def manifest(self, version: ModelVersion) -> Manifest:
        """See the protocol."""
        return self._record(version.model, version.version).manifest

    def policy_text(self, version: ModelVersion) -> str:
        """See the protocol."""
        if not version.policy_sha256:
            return ""
        file = policy_file(self._record(version.model, version.version).folder)
        return checked_policy(version, file.read_bytes() if file is not None else None)

    def verify(self, version: ModelVersion, on_progress: OnProgress = silent) -> None:
        """See the protocol."""
        self.materialise(version, verify=True, on_progress=on_progress)

    def note_evaluation(self, version: ModelVersion, name: str, metrics: Mapping[str, float], cases: str) -> None:
        """See the protocol."""
        with self._lock:
            record = self._record(version.model, version.version)
            known = {**record.version.metrics, **{f"{name}.{metric}": value for metric, value in metrics.items()}}
            self._model(version.model).records[version.version] = replace(
                record, version=record.version.model_copy(update={"metrics": known})
            )
            if cases:
                self.cases[(version.reference, name)] = cases

    def _own_version(self, source: MlflowSource) -> tuple[SourceFile, ...]:
        """`models:/` in memory means this store's own versions."""
        known = self._models.get(source.name, _Model())
        for record in known.records.values():
            number = known.aliases.get(source.alias or "")
            if source.version == record.version.mlflow_version or record.version.version == number:
                if record.version.kind is SourceKind.SIMULATED:
                    break
                return tuple(list_files(self.materialise(record.version, verify=True)))
        at = f"/{source.version}" if source.version else f"@{source.alias}"
        raise InvalidSource(f"models:/{source.name}{at} is no version with files; tidegate model list shows all")

    def _model(self, model: str) -> _Model:
        if model not in self._models:
            raise UnknownModel(
                f"no model {model[:80]!r} is registered ({', '.join(sorted(self._models)) or 'there are none yet'}); "
                "register one with tidegate model register"
            )
        return self._models[model]

    def _record(self, model: str, version: str) -> _Record:
        records = self._model(model).records
        number = str(SemVer.parse(version))
        if number not in records:
            raise UnknownVersion(f"{model} has no version {number}; {known_versions(records)}")
        return records[number]

    @staticmethod
    def _with_aliases(known: _Model, record: _Record) -> ModelVersion:
        number = record.version.version
        aliases = tuple(sorted(a for a, v in known.aliases.items() if v == number))
        return record.version.model_copy(update={"aliases": aliases})
