"""The registry's port: a small protocol, and what is the same over every adapter."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

from registry.baking import POLICY_FILE
from registry.errors import Damaged, UnknownVersion
from registry.files import OnProgress, silent
from registry.models import Alias, Manifest, ModelVersion, RegisterRequest
from registry.promotion import AliasMove
from registry.references import Reference, parse_reference


class RegistryStore(Protocol):
    """Registered models and their versions. Calls block; every one may raise RegistryBusy or RegistryUnavailable."""

    def list_models(self) -> tuple[str, ...]:
        """The names of all models that have a name Tidegate can serve, sorted."""
        ...

    def list_versions(self, model: str) -> tuple[ModelVersion, ...]:
        """A model's versions, highest first; what is half registered is not among them.

        Raises:
            UnknownModel: no such model.
        """
        ...

    def get(self, model: str, version: str) -> ModelVersion:
        """One version by its semantic number.

        Raises:
            UnknownModel, UnknownVersion: it is not registered.
            InvalidVersion: `version` is not a semantic version.
        """
        ...

    def get_by_alias(self, model: str, alias: str) -> ModelVersion:
        """The version that an alias points to.

        Raises:
            UnknownModel, UnknownVersion: there is no such model or alias.
        """
        ...

    def register(self, request: RegisterRequest, on_progress: OnProgress = silent) -> ModelVersion:
        """Register a version: everything it needs is copied, so the source may go afterwards.

        Raises:
            InvalidRequest, InvalidSource: nothing was registered; the message says what to change.
            VersionExists: the number is taken.
        """
        ...

    def set_alias(self, model: str, alias: str, version: str | None) -> None:
        """Point an alias at a version, or remove it with None. Doing it twice is doing it once.

        Raises:
            UnknownModel, UnknownVersion: no such model or version.
            InvalidRequest: a name that cannot be an alias.
        """
        ...

    def materialise(self, version: ModelVersion, *, verify: bool = False, on_progress: OnProgress = silent) -> Path:
        """A local folder with the version's files, verified against its manifest.

        What was verified and has not been touched since is not read again, unless `verify` asks for it. A
        simulated version has a folder too (its parameters and policy); what serves it is its `location`. The folder
        is read-only for everyone.

        Raises:
            Damaged: the first file that is not what was registered.
        """
        ...

    def manifest(self, version: ModelVersion) -> Manifest:
        """Every file of a version with its digest, as it was registered.

        Raises:
            Damaged: it can't be read, or is not the one whose digest the version has.
        """
        ...

    def policy_text(self, version: ModelVersion) -> str:
        """The guardrail policy that a version brings, without its weights; empty when it brings none.

        Raises:
            Damaged: it is not the one that was registered.
        """
        ...

    def verify(self, version: ModelVersion, on_progress: OnProgress = silent) -> None:
        """Read every byte and compare with the manifest.

        Raises:
            Damaged: the first file that is not what was registered.
        """
        ...

    def note_evaluation(self, version: ModelVersion, name: str, metrics: Mapping[str, float], cases: str) -> None:
        """Put an evaluation beside a version: what people said of its answers, say.

        Its metrics appear among the version's as `name.metric`; each call replaces the values before it.

        Args:
            version: which one.
            name: of the evaluation.
            metrics: numbers by name.
            cases: what they were measured on, as JSON lines; "" for none.

        Raises:
            UnknownVersion: the version is no longer there.
            InvalidRequest: the version has nothing that numbers could be kept with.
        """
        ...


def find(store: RegistryStore, reference: str | Reference) -> ModelVersion:
    """The version that `NAME@VERSION`, `NAME@ALIAS` or `NAME` (what is in production) names.

    Raises:
        InvalidVersion: the reference cannot be read.
        UnknownModel, UnknownVersion: nothing of that name.
    """
    wanted = parse_reference(reference) if isinstance(reference, str) else reference
    if wanted.version is not None:
        return store.get(wanted.model, wanted.version)
    return store.get_by_alias(wanted.model, wanted.alias or Alias.PRODUCTION)


def policy_file(folder: Path) -> Path | None:
    """The guardrail policy inside a materialised version, if it has one."""
    path = folder / POLICY_FILE
    return path if path.exists() else None


def apply_moves(store: RegistryStore, model: str, moves: Iterable[AliasMove]) -> None:
    """Make the moves that `promotion.alias_moves` asked for."""
    for move in moves:
        store.set_alias(model, move.alias, move.version)


def unknown_alias(model: str, alias: str, aliases: Iterable[str]) -> UnknownVersion:
    """The error for an alias that points nowhere."""
    known = ", ".join(sorted(aliases)) or "none"
    return UnknownVersion(
        f"{model} has no alias {alias[:80]!r} (its aliases: {known}); name a version, for instance {model}@1.0.0"
    )


def checked_policy(version: ModelVersion, found: bytes | None) -> str:
    """The text of a policy's bytes, which must have the version's digest.

    Raises:
        Damaged: they have not, or there are none.
    """
    digest = hashlib.sha256(found).hexdigest() if found is not None else "missing"
    if found is None or digest != version.policy_sha256:
        raise Damaged(
            f"the policy of {version.reference} is not the one that was registered ({digest[:12]}, registered was "
            f"{version.policy_sha256[:12]}); register the version anew under another number",
            path=POLICY_FILE,
            expected=version.policy_sha256,
            found=digest,
        )
    return found.decode()
