"""What people ask for: `rollout.yaml`, the command line's flags and the custom resource are one schema.

Closed and frozen: an unknown field is an error that names the fields there are. Durations are written as `30s`,
`5m`, `1h` or a number of seconds, and kept as seconds.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from rollout.errors import InvalidSpec
from serving.outcomes import Signal
from serving.specs import ModelName

_DURATION = re.compile(r"^(\d+(?:\.\d+)?)(ms|s|m|h|d)?$")
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, None: 1.0}


def parse_duration_s(value: object) -> object:
    """Read `"90s"`, `"1.5m"`, `90` as seconds; what is not a duration is left for the schema to refuse.

    >>> parse_duration_s("1.5m")
    90.0
    """
    if isinstance(value, str):
        found = _DURATION.match(value.strip())
        if not found:
            raise ValueError(f"{value!r} is not a duration; write it as 500ms, 30s, 5m, 1h or a number of seconds")
        return float(found[1]) * _UNIT_S[found[2]]
    return value


Duration = Annotated[float, BeforeValidator(parse_duration_s), Field(ge=0)]
"""Seconds."""

Ratio = Annotated[float, BeforeValidator(lambda v: float(v) if isinstance(v, str) else v)]
"""A number; a string in the custom resource, which has no floats."""


class Spec(BaseModel):
    """Base: closed, frozen, camelCase outside and snake_case inside."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel, populate_by_name=True)


class OnInsufficient(enum.StrEnum):
    """What to do when a step's `maxDuration` is over and the evidence does not suffice either way."""

    PAUSE = "pause"
    PROMOTE = "promote"
    ROLLBACK = "rollback"


class CanaryStep(Spec):
    """Hold the canary at `weight` percent for at least `duration`, and until the evidence suffices."""

    weight: Annotated[int, Field(ge=1, le=100)]
    duration: Duration = 30.0
    max_duration: Duration | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max_duration is not None and self.max_duration < self.duration:
            raise ValueError(f"maxDuration {self.max_duration} s is shorter than duration {self.duration} s; raise it")
        return self


GATEWAY_SLOWDOWN = 1.25
"""How much slower than stable a canary's latency may be before it is an event, as every gateway measures it."""

DEFAULT_STEPS = tuple(CanaryStep(weight=w) for w in (5, 25, 50))


class CanaryStrategy(Spec):
    """Weights in rising order. `100` as the last step means: promote after the step before it, and the soak.

    During the soak stable keeps `holdbackPercent`, since above half a canary's fault is hard to see by
    comparison (analysis.md, section 7).
    """

    steps: tuple[CanaryStep, ...] = DEFAULT_STEPS
    soak: Duration = 0.0
    holdback_percent: Annotated[int, Field(ge=1, le=50)] = 20

    @model_validator(mode="after")
    def _rising(self) -> Self:
        weights = [s.weight for s in self.steps]
        if not weights:
            raise ValueError("steps is empty; give at least one, for instance [{weight: 10, duration: 1m}]")
        if weights != sorted(set(weights)):
            raise ValueError(f"step weights {weights} must rise; a lower or equal weight after a higher one is refused")
        return self

    @property
    def shifting_steps(self) -> tuple[CanaryStep, ...]:
        """The steps that divide traffic, that is all below 100."""
        return tuple(s for s in self.steps if s.weight < 100)


class Strategy(Spec):
    """How the new version takes over. One key."""

    canary: CanaryStrategy = CanaryStrategy()


class SignalSpec(Spec):
    """One signal that is watched.

    `share` is its part of alpha relative to the others (error gets half of all unless told otherwise). `maxRate` is
    the absolute objective of going forward, `maxRatio` the non-inferiority margin rho1 (None: by weight,
    analysis.md, section 6). With `gating` false it can roll back but need not pass for a step.
    """

    name: Signal
    share: Annotated[float, Field(gt=0)] | None = None
    max_rate: Annotated[Ratio, Field(gt=0, lt=1)] = 0.05
    max_ratio: Annotated[Ratio, Field(gt=1)] | None = None
    max_slowdown: Annotated[Ratio, Field(ge=1)] = GATEWAY_SLOWDOWN
    gating: bool = True

    @model_validator(mode="after")
    def _as_measured(self) -> Self:
        if self.max_slowdown != GATEWAY_SLOWDOWN:
            raise ValueError(
                f"maxSlowdown {self.max_slowdown} can't be had yet: gateways measure latency against "
                f"{GATEWAY_SLOWDOWN}; leave it out"
            )
        return self


DEFAULT_SIGNALS = (
    SignalSpec(name=Signal.ERROR),
    SignalSpec(name=Signal.ENGINE_4XX),
    SignalSpec(name=Signal.LENGTH_STOP),
    SignalSpec(name=Signal.REPETITION),
    # Latency can't gate: a model whose answers are too short to have a token rate would never be promoted.
    SignalSpec(name=Signal.SLOW_TOKENS, gating=False),
)


class AnalysisSpec(Spec):
    """How the evidence is judged.

    `alpha` bounds the chance of ever rolling back a healthy canary, `beta` that of a step passing a version that is
    worse by the margin.
    """

    alpha: Annotated[Ratio, Field(gt=0, le=0.2)] = 0.01
    beta: Annotated[Ratio, Field(gt=0, le=0.2)] = 0.05
    signals: tuple[SignalSpec, ...] = DEFAULT_SIGNALS
    on_insufficient: OnInsufficient = OnInsufficient.PAUSE

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [s.name for s in self.signals]
        if len(set(names)) != len(names):
            raise ValueError(f"a signal is named twice in {[str(n) for n in names]}; name each once")
        if not names:
            raise ValueError("signals is empty; a rollout that watches nothing can't be judged")
        return self


class EngineSpec(Spec):
    """Capacity: what the rollout owns, as against what the version owns."""

    image: str = "local"
    min_replicas: Annotated[int, Field(ge=1, le=64)] = 1


class RolloutSpec(Spec):
    """A wish: this version of this model, this way."""

    model: ModelName
    version: str
    paused: bool = False
    progress_deadline_seconds: Annotated[int, Field(ge=1)] = 1800
    engine: EngineSpec = EngineSpec()
    strategy: Strategy = Strategy()
    analysis: AnalysisSpec = AnalysisSpec()
    rollback_window: Duration = 1800.0
    drain_deadline: Duration = 600.0
    emergency: bool = False
    """Skip steps and evidence: all traffic as soon as the version answers."""


def parse_spec(document: Mapping[str, Any]) -> RolloutSpec:
    """Read a spec from a parsed YAML document: bare, or inside a `ModelDeployment`.

    Raises:
        InvalidSpec: with each field that is wrong, the value found, and what is allowed.

    """
    body = document.get("spec", document) if document.get("kind") == "ModelDeployment" else document
    if not isinstance(body, Mapping):
        raise InvalidSpec(f"the spec is a {type(body).__name__}, not a mapping; see examples/rollout.yaml")
    try:
        return RolloutSpec.model_validate(body)
    except ValidationError as error:
        raise InvalidSpec(
            "; ".join(_complaint(e["loc"], e["type"], e["msg"], e["input"]) for e in error.errors())
        ) from None


def _complaint(loc: tuple[int | str, ...], kind: str, message: str, found: object) -> str:
    where = ".".join(str(part) for part in loc) or "spec"
    if kind == "extra_forbidden":
        known = ", ".join(sorted(f.alias or n for n, f in _model_at(loc[:-1]).model_fields.items()))
        return f"{where}: unknown field; the fields here are {known}"
    return f"{where}: {message.removeprefix('Value error, ')} (found {str(found)[:80]!r})"


def _model_at(loc: tuple[int | str, ...]) -> type[Spec]:
    """The schema class that a path of field names leads to; list indexes are passed over."""
    here: type[Spec] = RolloutSpec
    children: dict[str, type[Spec]] = {
        "engine": EngineSpec,
        "strategy": Strategy,
        "canary": CanaryStrategy,
        "steps": CanaryStep,
        "analysis": AnalysisSpec,
        "signals": SignalSpec,
    }
    for part in loc:
        here = children.get(str(part), here)
    return here
