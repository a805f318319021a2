"""How a version is written into MLflow's tags, and read back. Pure.

Everything that Tidegate knows of a version is in tags of MLflow's model version, so MLflow's own client and UI show it.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from dataclasses import dataclass

from registry.errors import Damaged
from registry.models import Bump, Facets, Lineage, ModelVersion, RegisterRequest, SourceKind
from registry.registration import Staged
from registry.semver import Numbered

PREFIX = "tidegate."
SEMVER = PREFIX + "semver"
STATE = PREFIX + "state"
MODEL = PREFIX + "model"
REGISTRATION = PREFIX + "registration"
MANIFEST = PREFIX + "manifest"
MANIFEST_SHA256 = PREFIX + "manifest_sha256"
KIND = PREFIX + "kind"
URI = PREFIX + "uri"
LAYOUT = PREFIX + "layout"
FACETS = PREFIX + "facets"
ENGINE_ARGS = PREFIX + "engine_args"
GENERATION = PREFIX + "generation"
POLICY_SHA256 = PREFIX + "policy_sha256"
BUMP = PREFIX + "bump"
BUMP_REASON = PREFIX + "bump_reason"
PARENT = PREFIX + "parent_version"
SOURCE = PREFIX + "source"
COMMIT = PREFIX + "commit"
DATASET = PREFIX + "dataset"
IMPORT_ERROR = PREFIX + "import_error"

PENDING = "pending"
READY = "ready"

LAYOUT_PLAIN = "plain"
"""The artifacts are the version's folder as it is."""
LAYOUT_TRANSFORMERS = "transformers"
"""MLflow's transformers flavour: the folder is put together from `model/` and `components/*/`."""

MAX_TAG_CHARS = 100_000
"""MLflow's limit on the value of a model version's tag."""


@dataclass(frozen=True)
class Stored:
    """One of MLflow's model versions, without MLflow's types."""

    name: str
    number: str
    source: str
    run_id: str | None
    created_ms: int
    tags: Mapping[str, str]

    @property
    def ready(self) -> bool:
        """Whether Tidegate has registered or imported it completely."""
        return SEMVER in self.tags and self.tags.get(STATE) == READY

    @property
    def pending(self) -> bool:
        """Whether a registration of ours was left half-way (or is under way)."""
        return self.tags.get(STATE) == PENDING

    @property
    def foreign(self) -> bool:
        """Whether somebody registered it with MLflow's own client."""
        return not self.ready and not self.pending


def version_tags(
    staged: Staged, numbered: Numbered, parent: str | None, manifest: str, manifest_sha256: str
) -> dict[str, str]:
    """The tags of a version, whoever registered it. Without the state and the request's own fields."""
    tags = {
        SEMVER: str(numbered.version),
        KIND: staged.kind.value,
        LAYOUT: LAYOUT_PLAIN,
        MANIFEST: manifest,
        MANIFEST_SHA256: manifest_sha256,
        FACETS: staged.facets.model_dump_json(),
        ENGINE_ARGS: json.dumps(dict(staged.facets.engine_args), sort_keys=True),
        POLICY_SHA256: staged.facets.policy,
        BUMP: numbered.bump.value if numbered.bump else "",
        BUMP_REASON: numbered.reason,
        PARENT: parent or "",
        SOURCE: staged.lineage,
        URI: staged.uri or "",
    }
    return {k: v for k, v in tags.items() if v}


def request_tags(request: RegisterRequest) -> dict[str, str]:
    """The tags that repeat what was asked for."""
    tags = {
        GENERATION: json.dumps(dict(request.generation), sort_keys=True) if request.generation else "",
        COMMIT: request.commit or "",
        DATASET: request.dataset or "",
    }
    return {k: v for k, v in tags.items() if v}


def read_version(stored: Stored, aliases: tuple[str, ...], metrics: Mapping[str, float]) -> ModelVersion:
    """The version that the tags describe. Unknown tags are somebody else's and are left alone.

    Raises:
        Damaged: a tag that Tidegate wrote was changed into something that cannot be read.
    """
    tags = stored.tags
    try:
        return ModelVersion(
            model=stored.name,
            version=tags[SEMVER],
            mlflow_version=stored.number,
            kind=SourceKind(tags[KIND]),
            location=tags.get(URI) or stored.source,
            manifest_sha256=tags[MANIFEST_SHA256],
            engine_args=json.loads(tags.get(ENGINE_ARGS, "{}")),
            generation=json.loads(tags.get(GENERATION, "{}")),
            metrics=metrics,
            policy_sha256=tags.get(POLICY_SHA256, ""),
            lineage=Lineage(
                commit=tags.get(COMMIT),
                dataset=tags.get(DATASET),
                parent_version=tags.get(PARENT),
                source=tags.get(SOURCE, ""),
            ),
            aliases=aliases,
            bump=Bump(tags[BUMP]) if BUMP in tags else None,
            bump_reason=tags.get(BUMP_REASON, ""),
            created_at=dt.datetime.fromtimestamp(stored.created_ms / 1000, dt.UTC),
        )
    except (KeyError, ValueError) as error:
        raise Damaged(
            f"the tags of {stored.name} version {stored.number} in MLflow were changed and cannot be read "
            f"({str(error).splitlines()[0]}); set them back in MLflow, or register the version anew"
        ) from error


def read_facets(stored: Stored) -> Facets:
    """The facets that were stored; empty ones when an older Tidegate stored none that can be read."""
    try:
        known = json.loads(stored.tags.get(FACETS, "{}"))
        return Facets.model_validate({k: v for k, v in known.items() if k in Facets.model_fields})
    except (ValueError, AttributeError):
        return Facets()
