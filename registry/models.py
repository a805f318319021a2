"""What a registered version is. Pure.

A version owns everything that decides its answers: weights, tokenizer, prompt (baked into the chat template),
generation defaults, engine arguments that change answers, guardrail policy. Capacity belongs to the rollout.
"""

from __future__ import annotations

import datetime as dt
import enum
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
ModelName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]


class Frozen(BaseModel):
    """Closed and immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Alias(enum.StrEnum):
    """The aliases that Tidegate moves by itself; people may set others."""

    PRODUCTION = "production"
    CANDIDATE = "candidate"


class SourceKind(enum.StrEnum):
    """Where the bytes of a version came from."""

    FOLDER = "folder"
    SIMULATED = "simulated"


class ManifestFile(Frozen):
    """One file of a version: its path inside the version's folder, its size and its digest."""

    path: str
    size_bytes: int = Field(ge=0)
    sha256: Sha256


class Manifest(Frozen):
    """Every file of a version, sorted by path. Its own digest names the version's content."""

    files: tuple[ManifestFile, ...]

    def by_path(self) -> Mapping[str, ManifestFile]:
        """The files by their path."""
        return MappingProxyType({f.path: f for f in self.files})


class Bump(enum.StrEnum):
    """The part of a semantic version that a change asks for."""

    PATCH = "patch"
    MINOR = "minor"
    MAJOR = "major"


class Facets(Frozen):
    """What decides a version's answers, split by what each part asks of the version number.

    `architecture`, `tokenizer`, `weights`, `prompt` and `policy` are digests, empty when the version has none.
    `generation` and `engine_args` are kept as they are, so that a reason can name the settings that changed.
    """

    architecture: str = ""
    tokenizer: str = ""
    weights: str = ""
    prompt: str = ""
    policy: str = ""
    generation: Mapping[str, str] = Field(default_factory=dict)
    engine_args: Mapping[str, str] = Field(default_factory=dict)


class RegisterRequest(Frozen):
    """What a person asks to have registered.

    `source` is a folder, `hf:ID[@REV]`, `models:/NAME/VERSION`, `models:/NAME@ALIAS` or `sim:?k=v`. With `version`
    the number is given by hand; without, `bump` raises the parent's number, None meaning: derive it from what
    changed (`--bump auto`). `parent` is the version to compare with; None means the one that `production` points
    to, else the highest. `generation` values are JSON scalars as typed (`0.2`, `true`), else plain text.
    """

    model: ModelName
    source: str
    version: str | None = None
    bump: Bump | None = None
    prompt_file: Path | None = None
    policy_file: Path | None = None
    generation: Mapping[str, str] = Field(default_factory=dict)
    engine_args: Mapping[str, str] = Field(default_factory=dict)
    metrics: Mapping[str, float] = Field(default_factory=dict)
    dataset: str | None = None
    commit: str | None = None
    parent: str | None = None


class Lineage(Frozen):
    """Where a version comes from. None means: not told."""

    commit: str | None = None
    dataset: str | None = None
    parent_version: str | None = None
    source: str = ""


class ModelVersion(Frozen):
    """A registered version, as stored.

    `mlflow_version` is MLflow's own integer. `location` is where the artifacts lie (an MLflow artifact URI), or the
    `sim:` URI. `engine_args` are those that change answers, values as strings, keys as vLLM's flags with
    underscores.
    """

    model: ModelName
    version: str
    mlflow_version: str
    kind: SourceKind
    location: str
    manifest_sha256: Sha256
    engine_args: Mapping[str, str] = Field(default_factory=dict)
    generation: Mapping[str, str] = Field(default_factory=dict)
    metrics: Mapping[str, float] = Field(default_factory=dict)
    policy_sha256: str = ""
    lineage: Lineage = Lineage()
    aliases: tuple[str, ...] = ()
    bump: Bump | None = None
    bump_reason: str = ""
    created_at: dt.datetime

    @property
    def reference(self) -> str:
        """Tidegate's notation, for instance `chat@1.3.0`."""
        return f"{self.model}@{self.version}"
