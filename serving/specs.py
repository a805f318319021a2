"""What a revision is, and how it is named on the wire.

A revision is a model version *as deployed*: the same weights on a new engine image are a new revision and go
through a canary like any other (docs/architecture.md, "Decisions").
"""

from __future__ import annotations

import enum
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""A lower-case sha256 in hexadecimal, 64 characters."""

ModelName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
"""A registered model's name: a DNS label, since it becomes part of application and object names."""


GUARD_APPLICATION = "tidegate-guardrails"
"""The Serve application of the guardrails' own models, where they run there: no registered model can be named so, since
a revision's application has two dashes in a row."""


class Frozen(BaseModel):
    """Base of what users write and what crosses a process boundary: closed and immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class EngineKind(enum.StrEnum):
    """Which engine answers for a revision."""

    VLLM = "vllm"
    SIMULATED = "simulated"
    EXTERNAL = "external"
    """Whatever answers OpenAI's API in a workload that somebody else runs."""


class RevisionSpec(Frozen):
    """Everything that decides what a revision answers, and therefore everything its digest covers.

    `engine_args` are vLLM's command line flags without the dashes (`max_model_len: "2048"`), values as strings;
    an empty string means a flag without a value. `source` is a local folder for vLLM, a `sim:` URI for the
    simulated engine, and is *not* part of the digest: `manifest_sha256` is. `policy_sha256` names the version's own
    guardrail policy, "" where it brings none.
    """

    model: ModelName
    version: str
    manifest_sha256: Digest
    engine: EngineKind
    source: str
    engine_image: str = "local"
    engine_args: Mapping[str, str] = Field(default_factory=dict)
    accelerator: str = "cpu"
    policy_sha256: str = ""

    @property
    def digest(self) -> str:
        """The revision's identity: sha256 over the canonical JSON of what changes its answers."""
        covered = self.model_dump(mode="json", exclude={"source"})
        canonical = json.dumps(covered, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def application(self) -> str:
        """The name of its Ray Serve application, for instance `chat--1-3-0--0a1b2c3d`."""
        return application_name(self.model, self.version, self.digest)


def digest_of_text(text: str) -> str:
    """The SHA-256 of a text, in hexadecimal: what names a guardrail policy."""
    return hashlib.sha256(text.encode()).hexdigest()


def application_name(model: str, version: str, digest: str) -> str:
    """Name the Serve application of a revision.

    >>> application_name("chat", "1.3.0", "0a1b2c3d" + "0" * 56)
    'chat--1-3-0--0a1b2c3d'
    """
    return f"{model}--{version.replace('.', '-').replace('+', '-')}--{digest[:8]}"


MAX_OBJECT_NAME = 47
"""What KubeRay allows: it appends to a RayService's name, and the result must be a DNS label."""


def object_name(application: str) -> str:
    """Name the Kubernetes object of an application: its own name where that is a short enough DNS-1035 label.

    Otherwise lower case, shortened in the middle, and always ending in the revision's eight hexadecimal digits.

    >>> object_name("chat--1-3-0--0a1b2c3d")
    'chat--1-3-0--0a1b2c3d'
    >>> object_name("7b--1-3-0-RC-1--0a1b2c3d")
    'tg-7b--1-3-0-rc-1--0a1b2c3d'
    """
    name = re.sub(r"[^a-z0-9-]", "-", application.lower())
    if not name[:1].isalpha():
        name = f"tg-{name}"
    head, tail = name[: -len("--00000000")], name[-len("--00000000") :]
    return head[: MAX_OBJECT_NAME - len(tail)].rstrip("-") + tail
