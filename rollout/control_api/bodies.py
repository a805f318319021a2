"""What clients send. Closed: an unknown field is an error."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from rollout.spec_types import Duration
from serving.keys import ControlRole, Priority, Scope
from serving.specs import ModelName

Reason = Annotated[str, Field(max_length=1000, description="Why; goes into the event log.")]


class Body(BaseModel):
    """Base of all."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DeployBody(Body):
    """A wish, as the CLI and scripts send it."""

    spec: dict[str, Any] = Field(description="The document of rollout.yaml; GET /api/v1/schema describes it.")
    reason: Reason = ""


class VerbBody(Body):
    """The arguments of a verb."""

    reason: Reason = ""
    full: bool = Field(default=False, description="promote: skip all that is left, not only this step.")
    version: Annotated[str, Field(max_length=64)] | None = Field(
        default=None, description="rollback, undo, ack: which version."
    )
    replicas: Annotated[int, Field(ge=1, le=64)] | None = Field(
        default=None, description="scale: how many stable gets."
    )
    most: Annotated[int, Field(ge=1, le=64)] | None = Field(
        default=None, description="scale: up to how many it may grow with its load; left out, no more."
    )
    dry_run: bool = Field(default=False, description="Answer with the plan, and do nothing.")
    wait_s: Annotated[float, Field(ge=0, le=30)] = Field(
        default=0.0, description="rollback, abort: wait so long for the gateways to confirm that traffic has left."
    )


class EraseBody(Body):
    """Whose requests are to be taken out of the log."""

    user: Annotated[str, StringConstraints(min_length=1, max_length=512)] = Field(
        description="As requests named it: `user` or `safety_identifier`."
    )


class DriftAckBody(Body):
    """Whose drift alarms somebody has seen."""

    model: ModelName
    stream: Annotated[str, StringConstraints(min_length=1, max_length=200)] | None = Field(
        default=None, description="Only this one, as the watch names it; left out: all of the model."
    )
    reason: Annotated[str, StringConstraints(max_length=1000)] = ""


Namespace = Annotated[str, StringConstraints(pattern=r"^(\*|[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)$")]


class QuotaBody(Body):
    """What all keys of a namespace may use together. What is left out has no limit."""

    requests_per_minute: Annotated[int, Field(ge=1)] | None = None
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = None
    concurrency: Annotated[int, Field(ge=1)] | None = None


class KeyBody(Body):
    """A key to be made. What is left out has no limit; without scopes and roles it is a key for asking models."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f()]+$")] = Field(
        description="For people: who holds it. No control characters and no round brackets."
    )
    namespace: Namespace = Field(
        default="default", description="On a cluster: whose models it may ask and command; `*` means all."
    )
    scopes: frozenset[Scope] | None = None
    models: tuple[ModelName, ...] = Field(default=(), max_length=256, description="Empty means all.")
    roles: frozenset[ControlRole] = frozenset()
    priority: Priority = Priority.STANDARD
    requests_per_minute: Annotated[int, Field(ge=1)] | None = None
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = None
    concurrency: Annotated[int, Field(ge=1)] | None = None
    expires_in: Annotated[Duration, Field(gt=0)] | None = Field(default=None, description="For instance 30d.")
