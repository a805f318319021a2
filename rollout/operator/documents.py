"""What the operator writes into a ModelDeployment's status. Pure: the resource's schema is generated from these.

No floats: shares and evidence are strings. Nothing here changes while nothing happens, so that a status that is
written again is the same status and no write at all.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel


class Document(BaseModel):
    """Base: camelCase outside; read tolerantly, since a newer operator may have written more."""

    model_config = ConfigDict(
        extra="ignore",
        frozen=True,
        alias_generator=to_camel,
        populate_by_name=True,
        use_attribute_docstrings=True,
    )

    def written(self) -> dict[str, Any]:
        """As it stands in the resource: without what there is nothing to say about."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


KEYED = {"conditions": "type", "commands": "verb", "signals": "name"}
"""Lists that the API server merges by a name, in which it may put the items in another order than they were sent."""


def same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two statuses, as they are written, say the same."""
    return _in_order(one) == _in_order(other)


def _in_order(status: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: sorted(value, key=lambda item, by=KEYED[name]: str(item.get(by))) if name in KEYED else value  # type: ignore[misc]
        for name, value in status.items()
    }


class ConditionType(enum.StrEnum):
    """The conditions of a ModelDeployment."""

    READY = "Ready"
    """Some version answers requests."""
    PROGRESSING = "Progressing"
    """A rollout is under way and moves."""
    ROLLED_BACK = "RolledBack"
    """The version that is asked for was taken back, and is not tried again by itself."""
    DEGRADED = "Degraded"
    """Something needs a person."""


class Condition(Document):
    """One condition, in the words of Kubernetes' API conventions."""

    type: ConditionType
    """Which one."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    reason: Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")]
    """Why, in one word for programs."""
    message: Annotated[str, Field(max_length=1024)] = ""
    """Why, and what to do about it, in a sentence for people."""
    last_transition_time: Annotated[str, Field(max_length=32)]
    """When the condition began to hold, or ceased to."""
    observed_generation: int | None = None
    """The generation of the resource that this was said about."""


class Outcome(enum.StrEnum):
    """What became of a command in an annotation."""

    DONE = "Done"
    REFUSED = "Refused"


class Handled(Document):
    """A command that was asked for by an annotation, and what became of it."""

    verb: Annotated[str, Field(max_length=16)]
    """The annotation's name behind tidegate.dev/."""
    id: Annotated[str, Field(max_length=128)]
    """Its id: as given, or the digest of its text."""
    outcome: Outcome
    """Whether it was carried out."""
    message: Annotated[str, Field(max_length=1024)] = ""
    """What was done, or why it was refused and what would be accepted."""


class SignalView(Document):
    """The evidence on one signal, as it was judged last."""

    name: Annotated[str, Field(max_length=64)]
    """The signal."""
    verdict: Annotated[str, Field(max_length=16)]
    """Pending, Running, Successful, Failed, Error or Inconclusive."""
    canary_events: int = 0
    """Events among the new version's requests."""
    canary_requests: int = 0
    """Requests of the new version."""
    stable_events: int = 0
    """Events among stable's requests."""
    stable_requests: int = 0
    """Requests of stable."""
    log_e: Annotated[str, Field(max_length=32)] = ""
    """Natural logarithm of the evidence that the new version is worse."""
    threshold: Annotated[str, Field(max_length=32)] = ""
    """What it must reach for the version to be taken back."""


class DeploymentStatus(Document):
    """Where a model stands. The operator alone writes it."""

    observed_generation: int = 0
    """The newest generation of the resource that the operator has read."""
    phase: Annotated[str, Field(max_length=16)] = ""
    """Progressing, Paused, Healthy or Degraded."""
    reason: Annotated[str, Field(max_length=256)] = ""
    """The last thing that happened, and why."""
    stable: Annotated[str, Field(max_length=64)] | None = None
    """The version that serves."""
    canary: Annotated[str, Field(max_length=64)] | None = None
    """The version that is being rolled out."""
    weight: int = 0
    """Percent of requests that the new version gets."""
    observed_weight: int | None = None
    """The same, once every gateway has confirmed it."""
    strategy: Annotated[str, Field(max_length=16)] | None = None
    """How the last rollout took or takes over."""
    stage: Annotated[str, Field(max_length=16)] | None = None
    """Where the last rollout stands inside."""
    step: int = 0
    """The step that it is at, from 1 on; 0 while none has begun."""
    steps: int = 0
    """How many steps it has before the soak and the promotion."""
    rollout: Annotated[str, Field(max_length=64)] | None = None
    """The id of the last rollout."""
    target: Annotated[str, Field(max_length=64)] | None = None
    """The version that the last rollout was about."""
    waiting_for: Annotated[str, Field(max_length=64)] | None = None
    """What the rollout waits for, in one word."""
    awaits: Annotated[str, Field(max_length=16)] | None = None
    """The verb that a person must say for it to go on."""
    previous: Annotated[str, Field(max_length=64)] | None = None
    """The version that is kept warm for the way back."""
    kept: Annotated[tuple[str, ...], Field(max_length=128)] = ()
    """Versions that a rollback may name."""
    quarantined: Annotated[tuple[str, ...], Field(max_length=128)] = ()
    """Versions that were condemned and that nobody has acknowledged yet."""
    draining: Annotated[tuple[str, ...], Field(max_length=64)] = ()
    """Versions without new requests that may still be answering old ones."""
    replicas: int = 0
    """Replicas of stable that are wanted."""
    started_at: Annotated[str, Field(max_length=32)] | None = None
    """When the last rollout began."""
    finished_at: Annotated[str, Field(max_length=32)] | None = None
    """When the last rollout ended."""
    handled_wish: Annotated[str, Field(max_length=64)] | None = None
    """The digest of the spec that was deployed last, or needed no deployment."""
    last_handled_rollback: Annotated[str, Field(max_length=128)] | None = None
    """The id of the last rollback that was handled."""
    commands: Annotated[tuple[Handled, ...], Field(max_length=16)] = ()
    """The last command of each kind that was handled."""
    conditions: Annotated[tuple[Condition, ...], Field(max_length=8)] = ()
    """Ready, Progressing, RolledBack, Degraded."""
    signals: Annotated[tuple[SignalView, ...], Field(max_length=64)] = ()
    """The evidence of the rollout that is under way; refreshed every few seconds."""

    def handled(self, verb: str) -> Handled | None:
        """What became of the last command of a kind."""
        return next((c for c in self.commands if c.verb == verb), None)

    def condition(self, kind: ConditionType) -> Condition | None:
        """One of the conditions."""
        return next((c for c in self.conditions if c.type is kind), None)
