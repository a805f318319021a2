"""A ModelDeployment as it is read from the API server: what it asks for, and what its status remembers. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rollout.commands import Verb
from rollout.errors import InvalidSpec
from rollout.operator.documents import DeploymentStatus
from rollout.operator.names import FINALIZER, GROUP
from rollout.specs import RolloutSpec, parse_spec

ID_CHARS = 16
MAX_REASON = 500


class Key(NamedTuple):
    """Which resource."""

    namespace: str
    name: str


COMMANDS = (Verb.ROLLBACK, Verb.ABORT, Verb.UNDO, Verb.ACK, Verb.RETRY, Verb.PROMOTE)
"""What an annotation may say once, in the order in which it is carried out: safety first."""


class Order(BaseModel):
    """What an annotation says: JSON of these fields, or plain text, which is the reason."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Annotated[str, Field(min_length=1, max_length=128)]
    reason: Annotated[str, Field(max_length=MAX_REASON)] = ""
    to: Annotated[str, Field(max_length=64)] | None = None
    """rollback, undo, ack: which version."""
    full: bool = False
    """promote: to the end. rollback, abort: all traffic at once."""
    by: Annotated[str, Field(max_length=128)] = ""
    """Who says it."""


@dataclass(frozen=True)
class Unreadable:
    """An annotation that can't be carried out as it stands."""

    id: str
    problem: str


@dataclass(frozen=True)
class Resource:
    """One ModelDeployment."""

    key: Key
    uid: str
    version: str
    generation: int
    created_at: str
    model: str
    """What it claims, whether or not the rest of its spec can be read; empty when it claims nothing."""
    spec: RolloutSpec | None
    problem: str
    """Why the spec can't be read."""
    annotations: Mapping[str, str]
    deleting: bool
    held: bool
    """Whether our finalizer is on it."""
    status: DeploymentStatus
    written: Mapping[str, Any] = field(default_factory=dict)
    """The status as it stands there."""

    @property
    def seniority(self) -> tuple[str, str]:
        """The older of two that claim one model keeps it; of two that are equally old, always the same one."""
        return (self.created_at, self.uid)

    @property
    def wish(self) -> str:
        """The digest of what is asked to be rolled out; empty when that can't be read.

        Fields at their defaults do not count, so that a new release, which knows more fields, reads the same wish.
        """
        return wish_of(self.spec) if self.spec is not None else ""

    @property
    def pause(self) -> str:
        """The wish to stay where it is, as an id; empty when there is none."""
        said = self.annotations.get(f"{GROUP}/pause")
        if said is not None and said.strip().lower() != "false":
            return digest(said)
        return "spec" if self.spec is not None and self.spec.paused else ""

    def order(self, verb: Verb) -> Order | Unreadable | None:
        """What the annotation for a verb says, if there is one."""
        said = self.annotations.get(f"{GROUP}/{verb}")
        return None if said is None else read_order(said)


HOW_NOT_WHAT: dict[str, Any] = {
    "paused": True,
    "progress_deadline_seconds": True,
    "revision_history_limit": True,
    "rollback_window": True,
    "drain_deadline": True,
    "engine": {"min_replicas": True, "max_replicas": True},
}
"""Fields whose change alone asks for no rollout."""


def wish_of(spec: RolloutSpec) -> str:
    """The digest of what a spec asks to be rolled out."""
    asked = spec.model_dump(mode="json", exclude_defaults=True, exclude=HOW_NOT_WHAT)
    if not asked.get("engine"):  # nothing but replicas was given
        asked.pop("engine", None)
    return digest(json.dumps(asked, sort_keys=True, separators=(",", ":")))


def digest(text: str) -> str:
    """A short id of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:ID_CHARS]


def read_order(said: str) -> Order | Unreadable:
    """Read an annotation's value.

    >>> read_order('{"id": "a1", "to": "1.2.0"}').to
    '1.2.0'
    >>> read_order("answers in riddles").reason
    'answers in riddles'
    """
    own = digest(said)
    if not said.lstrip().startswith("{"):
        return Order(id=own, reason=said.strip()[:MAX_REASON])
    try:
        found = json.loads(said)
        return Order.model_validate({"id": own, **found})
    except ValueError as error:
        told = error.errors()[0] if isinstance(error, ValidationError) else None
        why = f"{'.'.join(map(str, told['loc']))}: {told['msg']}" if told else str(error)
        known = ", ".join(Order.model_fields)
        return Unreadable(own, f"the annotation is not JSON of the fields {known} ({why}); plain text is a reason")


def read_resource(body: Mapping[str, Any]) -> Resource:
    """Read what the API server sent."""
    metadata = body.get("metadata") or {}
    given = body.get("spec")
    spec, problem = None, ""
    try:
        spec = parse_spec(given if isinstance(given, Mapping) else {})
    except InvalidSpec as error:
        problem = str(error)
    model = given.get("model") if isinstance(given, Mapping) else None
    written = body.get("status") or {}
    return Resource(
        key=Key(metadata.get("namespace", ""), metadata["name"]),
        uid=metadata.get("uid", ""),
        version=metadata.get("resourceVersion", ""),
        generation=int(metadata.get("generation", 0)),
        created_at=metadata.get("creationTimestamp") or "",
        model=model if isinstance(model, str) else "",
        spec=spec,
        problem=problem,
        annotations=metadata.get("annotations") or {},
        deleting=bool(metadata.get("deletionTimestamp")),
        held=FINALIZER in (metadata.get("finalizers") or ()),
        status=_status(written),
        written=written,
    )


def _status(written: Mapping[str, Any]) -> DeploymentStatus:
    """What the status remembers; one that can't be read (somebody else wrote it) remembers nothing."""
    try:
        return DeploymentStatus.model_validate(written)
    except ValidationError:
        return DeploymentStatus()
