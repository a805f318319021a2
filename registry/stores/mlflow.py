"""The registry on MLflow: a SQLite file by default, any tracking URI as well.

MLflow holds everything: a registered model, its versions with Tidegate's facts in tags, a run per version with
parameters, metrics and lineage, the files as artifacts, and MLflow's own aliases. A registration goes

    run (pending) -> files -> description -> model version (pending) -> version ready -> run ready

so a crash anywhere leaves only what is marked as pending: no listing shows it, and the next registration of the model
sweeps it. Registrations of one model are one at a time on a machine (a file lock, freed by the kernel); between
machines, the older of two versions with the same number wins.
"""

from __future__ import annotations

import functools
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from registry.baking import POLICY_FILE, CheckPolicy, any_mapping
from registry.errors import (
    InvalidRequest,
    InvalidSource,
    RegistryBusy,
    RegistryError,
    RegistryUnavailable,
    UnknownModel,
    UnknownVersion,
    VersionExists,
)
from registry.files import OnProgress, seal, silent
from registry.manifest import dump_manifest, load_manifest, manifest_digest
from registry.models import Manifest, ModelVersion, RegisterRequest
from registry.references import check_alias, is_model_name
from registry.registration import Staged, check_request, known_versions, number_staged, stage
from registry.semver import Numbered, SemVer, refuse_taken
from registry.stores import mlflow_tags as tags
from registry.stores.base import checked_policy, unknown_alias
from registry.stores.mlflow_client import Mlflow, NotFound
from registry.stores.mlflow_folders import Folders
from registry.stores.mlflow_import import Importer
from registry.stores.mlflow_runs import MODEL_PATH, Run, Runs
from registry.stores.mlflow_tags import Stored

STALE_VERSION_S = 60.0
"""A version is pending for milliseconds; after this its registration has died (only asked between machines)."""

STALE_RUN_S = 86_400.0
"""A run is pending while files are sent, which may take hours (only asked between machines)."""


class MlflowStore:
    """See `base.RegistryStore`.

    Args:
        tracking_uri: as MLflow takes it: `sqlite:////path/mlflow.db`, `http://...`.
        artifact_root: where files are kept when `tracking_uri` is a database; a tracking server has its own place.
        cache: local copies of what does not lie on this machine, notes on what was verified, locks.
        busy_timeout_s: how long a locked database is asked again. MLflow lets SQLite wait 20 s by itself, which is
            why the default adds nothing to that.
        lock_timeout_s: how long a registration waits for another of the same model; copying tens of GB takes minutes.

    Raises:
        RegistryUnavailable, RegistryBusy: MLflow cannot be used now.

    """

    def __init__(
        self,
        tracking_uri: str,
        artifact_root: Path,
        cache: Path,
        *,
        busy_timeout_s: float = 20.0,
        lock_timeout_s: float = 600.0,
        check_policy: CheckPolicy = any_mapping,
    ) -> None:
        self._check_policy = check_policy
        database = _sqlite_file(tracking_uri)
        if database is not None:
            database.parent.mkdir(parents=True, exist_ok=True)
        self._exclusive = database is not None
        locks = database.parent / "locks" if database is not None else cache / "locks"
        self._mlflow = Mlflow(tracking_uri, locks, busy_timeout_s=busy_timeout_s, lock_timeout_s=lock_timeout_s)
        self._client = self._mlflow.client
        serves_artifacts = tracking_uri.startswith(("http:", "https:"))
        self._runs = Runs(self._mlflow, artifact_root.resolve(), exclusive=not serves_artifacts)
        self._folders = Folders(self._mlflow, cache)
        self._importer = Importer(self._mlflow, self._folders)

    def list_models(self) -> tuple[str, ...]:
        """See the protocol."""
        names: list[str] = []
        token = None
        while True:
            page: Any = self._mlflow.ask(self._client.search_registered_models, max_results=100, page_token=token)
            names.extend(m.name for m in page if is_model_name(m.name))
            token = page.token
            if not token:
                break
        return tuple(sorted(n for n in names if any(not v.pending for v in self._mlflow.versions(n))))

    def list_versions(self, model: str) -> tuple[ModelVersion, ...]:
        """See the protocol. What was registered with MLflow's own client is imported at first sight."""
        known, aliases = self._known(model)
        ordered = sorted(known.values(), key=lambda v: SemVer.parse(v.tags[tags.SEMVER]), reverse=True)
        return tuple(self._read(stored, aliases) for stored in ordered)

    def get(self, model: str, version: str) -> ModelVersion:
        """See the protocol."""
        number = str(SemVer.parse(version))
        known, aliases = self._known(model)
        if number not in known:
            refused = [v for v in self._mlflow.versions(model) if tags.IMPORT_ERROR in v.tags and v.foreign]
            also = "".join(f"; MLflow's {v.number} cannot be served: {v.tags[tags.IMPORT_ERROR]}" for v in refused[:2])
            raise UnknownVersion(f"{model} has no version {number}; {known_versions(known)}{also}")
        return self._read(known[number], aliases)

    def get_by_alias(self, model: str, alias: str) -> ModelVersion:
        """See the protocol."""
        aliases = self._aliases(model)
        if alias not in aliases:
            raise unknown_alias(model, alias, aliases)
        known, _ = self._known(model, wanted=aliases[alias])
        for stored in known.values():
            if stored.number == aliases[alias]:
                return self._read(stored, aliases)
        raise unknown_alias(model, alias, aliases)

    def set_alias(self, model: str, alias: str, version: str | None) -> None:
        """See the protocol."""
        check_alias(alias)
        if version is None:
            if alias in self._aliases(model):
                self._mlflow.ask(self._client.delete_registered_model_alias, model, alias)
            return
        number = self.get(model, version).mlflow_version
        self._mlflow.ask(self._client.set_registered_model_alias, model, alias, number)

    def materialise(self, version: ModelVersion, *, verify: bool = False, on_progress: OnProgress = silent) -> Path:
        """See the protocol."""
        stored = self._stored(version)
        uri = self._mlflow.artifact_uri(stored.name, stored.number)
        return self._folders.materialise(uri, stored, version.reference, verify, on_progress)

    def manifest(self, version: ModelVersion) -> Manifest:
        """See the protocol."""
        stored = self._stored(version)
        return load_manifest(stored.tags.get(tags.MANIFEST, ""), version.manifest_sha256, version.reference)

    def policy_text(self, version: ModelVersion) -> str:
        """See the protocol."""
        if not version.policy_sha256:
            return ""
        stored = self._stored(version)
        uri = self._mlflow.artifact_uri(stored.name, stored.number)
        return checked_policy(version, self._folders.one_file(uri, POLICY_FILE))

    def verify(self, version: ModelVersion, on_progress: OnProgress = silent) -> None:
        """See the protocol."""
        self.materialise(version, verify=True, on_progress=on_progress)

    def note_evaluation(self, version: ModelVersion, name: str, metrics: Mapping[str, float], cases: str) -> None:
        """See the protocol."""
        stored = self._stored(version)
        if stored.run_id is None:
            raise InvalidRequest(
                f"{version.reference} was registered without a run, which MLflow keeps metrics with; register it with "
                "tidegate model register"
            )
        self._runs.note(stored.run_id, name, metrics, cases)

    def register(self, request: RegisterRequest, on_progress: OnProgress = silent) -> ModelVersion:
        """See the protocol."""
        checked = check_request(request, self._check_policy)
        with self._mlflow.lock(request.model):
            self._sweep(request.model)
            known, aliases = self._known_or_new(request.model)
            refuse_taken(request.model, checked.version, [SemVer.parse(v) for v in known])
            run = self._runs.open(request)
            try:
                with self._folders.scratch() as scratch:
                    fetch = functools.partial(self._importer.fetch, scratch=scratch / "fetched")
                    # Where the run's artifacts are local they are filled in place, so that weights are copied once.
                    folder = (run.local or scratch) / MODEL_PATH
                    staged = stage(checked, folder, fetch, on_progress)
                    facets = {v: tags.read_facets(s) for v, s in known.items()}
                    pointed = {a: v for v, s in known.items() for a, n in aliases.items() if n == s.number}
                    numbered, parent = number_staged(checked, staged.facets, facets, pointed)
                    return self._publish(request, run, staged, numbered, parent, on_progress)
            except BaseException:
                self._runs.discard_by_id(run.run_id)
                raise

    def _publish(
        self,
        request: RegisterRequest,
        run: Run,
        staged: Staged,
        numbered: Numbered,
        parent: str | None,
        on_progress: OnProgress,
    ) -> ModelVersion:
        manifest = dump_manifest(staged.manifest)
        sha256 = manifest_digest(staged.manifest)
        if len(manifest) > tags.MAX_TAG_CHARS:
            raise InvalidSource(
                f"the source has {len(staged.manifest.files)} files, whose manifest takes {len(manifest)} characters; "
                f"MLflow's limit is {tags.MAX_TAG_CHARS}: leave out what an engine does not need"
            )
        if run.local is None:
            self._runs.upload(run, staged.folder, on_progress)
            self._folders.keep(staged.folder, sha256)
        else:
            seal(staged.folder)
        self._runs.describe(run, request, f"{request.model}@{numbered.version}", manifest)
        mine = uuid.uuid4().hex
        written = tags.version_tags(staged, numbered, parent, manifest, sha256) | tags.request_tags(request)
        written |= {tags.STATE: tags.PENDING, tags.REGISTRATION: mine}
        stored = self._create(request.model, run, numbered, written)
        self._settle(stored, numbered)
        self._runs.settle(run.run_id)
        return self._read(self._again(stored), self._aliases(request.model))

    def _create(self, model: str, run: Run, numbered: Numbered, written: Mapping[str, str]) -> Stored:
        try:
            self._mlflow.ask(self._client.get_registered_model, model)
        except NotFound:
            self._mlflow.ask(self._client.create_registered_model, model)
        self._mlflow.ask(
            self._client.create_model_version,
            model,
            run.model_uri,
            run_id=run.run_id,
            tags=dict(written),
            description=f"{numbered.version}: {numbered.reason}",
            await_creation_for=0,
        )
        mine = written[tags.REGISTRATION]
        made = [v for v in self._mlflow.versions(model) if v.tags.get(tags.REGISTRATION) == mine]
        if not made:
            raise RegistryUnavailable(f"MLflow did not keep the new version of {model}; try again")
        for twin in made[1:]:  # a call that was repeated after its answer got lost
            self._mlflow.ask(self._client.delete_model_version, model, twin.number)
        return made[0]

    def _settle(self, mine: Stored, numbered: Numbered) -> None:
        """Make a pending version ready, unless another machine was faster with the same number."""
        number = str(numbered.version)
        others = [v for v in self._mlflow.versions(mine.name) if v.number != mine.number]
        rivals = [v for v in others if v.tags.get(tags.SEMVER) == number]
        lost: RegistryError | None = None
        if any(v.ready for v in rivals):
            lost = VersionExists(f"{mine.name}@{number} was registered by somebody else just now; take another number")
        elif any(v.pending and int(v.number) < int(mine.number) and not self._stale(v) for v in rivals):
            lost = RegistryBusy(f"{mine.name}@{number} is being registered by somebody else; try again")
        if lost is not None:
            self._mlflow.ask(self._client.delete_model_version, mine.name, mine.number)
            raise lost
        self._mlflow.ask(self._client.set_model_version_tag, mine.name, mine.number, tags.STATE, tags.READY)

    def _sweep(self, model: str) -> None:
        """Remove what registrations that died half-way left. Called under the model's lock."""
        now_ms = int(time.time() * 1000)
        versions = self._mlflow.versions(model)
        for stored in versions:
            if stored.pending and (self._exclusive or self._stale(stored)):
                self._mlflow.ask(self._client.delete_model_version, model, stored.number)
        ready = {v.run_id for v in versions if v.ready}
        self._runs.sweep(model, ready, now_ms if self._exclusive else now_ms - int(STALE_RUN_S * 1000))

    @staticmethod
    def _stale(stored: Stored) -> bool:
        return stored.created_ms < (time.time() - STALE_VERSION_S) * 1000

    def _known(self, model: str, wanted: str | None = None) -> tuple[dict[str, Stored], dict[str, str]]:
        """The ready versions by semantic number, foreign ones imported; and the aliases.

        `wanted` is MLflow's number of the version that is really needed: its import may fail the call.
        """
        aliases = self._aliases(model)
        stored = self._mlflow.versions(model)
        if any(self._importer.wants(v, wanted) for v in stored):
            with self._mlflow.lock(model):
                return self._imported(model, wanted), aliases
        return {v.tags[tags.SEMVER]: v for v in stored if v.ready}, aliases

    def _imported(self, model: str, wanted: str | None = None) -> dict[str, Stored]:
        """Import under the model's lock, which the caller holds."""
        self._importer.run(model, self._mlflow.versions(model), wanted)
        return {v.tags[tags.SEMVER]: v for v in self._mlflow.versions(model) if v.ready}

    def _known_or_new(self, model: str) -> tuple[dict[str, Stored], dict[str, str]]:
        """As `_known`, under the model's lock, and nothing at all for a model that does not exist yet."""
        try:
            return self._imported(model), self._mlflow.aliases(model)
        except NotFound:
            return {}, {}

    def _aliases(self, model: str) -> dict[str, str]:
        try:
            return self._mlflow.aliases(model)
        except NotFound:
            known = ", ".join(self.list_models()) or "there are none yet"
            raise UnknownModel(
                f"no model {model[:80]!r} is registered ({known}); register one with tidegate model register"
            ) from None

    def _read(self, stored: Stored, aliases: Mapping[str, str]) -> ModelVersion:
        pointing = tuple(sorted(a for a, number in aliases.items() if number == stored.number))
        return tags.read_version(stored, pointing, self._runs.metrics(stored.run_id))

    def _stored(self, version: ModelVersion) -> Stored:
        for stored in self._mlflow.versions(version.model):
            if stored.number == version.mlflow_version and stored.ready:
                return stored
        raise UnknownVersion(f"{version.reference} is no longer in MLflow; tidegate model list shows what is")

    def _again(self, stored: Stored) -> Stored:
        return next(v for v in self._mlflow.versions(stored.name) if v.number == stored.number)


def _sqlite_file(uri: str) -> Path | None:
    """The file behind a SQLite URI, None for every other tracking URI."""
    scheme, separator, rest = uri.partition(":///")
    if not separator or not scheme.startswith("sqlite"):
        return None
    return Path(rest.partition("?")[0])
