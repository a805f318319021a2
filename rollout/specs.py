"""What people ask for: `rollout.yaml`, the command line's flags and the custom resource are one schema.

Closed and frozen: an unknown field is an error that names the fields there are. Durations are written as `30s`,
`5m`, `1h` or a number of seconds, and kept as seconds. Strategies are in strategy_specs.py; schema.py publishes all
of it as JSON Schema.
"""

from __future__ import annotations

import enum
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field, StringConstraints, ValidationError, model_validator

from rollout.engine_specs import Capacity, EngineSpec, OnShortage, Resources
from rollout.errors import InvalidSpec
from rollout.spec_types import DECIMAL, WHOLE, Duration, Spec, parse_duration_s
from rollout.strategy_specs import DEFAULT_STEPS, Strategy
from serving.outcomes import THUMBS_DOWN, Signal, SignalName
from serving.specs import ModelName

__all__ = [
    "DEFAULT_SIGNALS",
    "DEFAULT_SLOWDOWN",
    "DEFAULT_STEPS",
    "FAMILIES",
    "LATENCY_SIGNALS",
    "AnalysisSpec",
    "Capacity",
    "EngineSpec",
    "OnInsufficient",
    "OnShortage",
    "PrometheusQuery",
    "Resources",
    "RolloutSpec",
    "SignalSpec",
    "parse_duration_s",
    "parse_spec",
]


class OnInsufficient(enum.StrEnum):
    """What to do when a step's `maxDuration` is over and the evidence does not suffice either way."""

    PAUSE = "pause"
    PROMOTE = "promote"
    ROLLBACK = "rollback"


DEFAULT_SLOWDOWN = 1.25
"""How much slower than stable a canary's latency may be before it is an event, unless `maxSlowdown` says otherwise."""

LATENCY_SIGNALS = frozenset({Signal.SLOW_TOKENS.value, Signal.SLOW_FIRST_TOKEN.value})

FAMILIES = ("guardrail", "score", "prometheus", "drift", "probe")
"""Signals that carry a name of their own: a guardrail's check, a score, a query of Prometheus, a gate."""

GATES = ("drift/input", "probe/bias")
"""Signals that only hold: requests are no longer what their reference is of; a version treats groups unlike."""

LATE_SIGNALS = frozenset({THUMBS_DOWN})
"""Signals whose events come when their units have settled, if anybody takes the trouble: silence says nothing."""

_NAMED = (*(s.value for s in Signal), *sorted(LATE_SIGNALS))

_SIGNAL_PATTERN = f"^(?:{'|'.join(_NAMED)}|(?:{'|'.join(FAMILIES)})/[a-z0-9-]{{1,40}})$"


class PrometheusQuery(Spec):
    """Where a `prometheus/...` signal comes from: two ever-growing counters of one version.

    In both, `$version` stands for the version and `$model` for the model.
    """

    events: Annotated[str, StringConstraints(pattern=r"\$version", max_length=2000)]
    """PromQL of how many requests went wrong, for instance `sum(app_errors_total{version="$version"})`."""
    total: Annotated[str, StringConstraints(pattern=r"\$version", max_length=2000)]
    """PromQL of how many requests there were."""

    def events_of(self, model: str, version: str) -> str:
        """The query of what went wrong with one version."""
        return _filled(self.events, model, version)

    def total_of(self, model: str, version: str) -> str:
        """The query of all requests of one version."""
        return _filled(self.total, model, version)


def _filled(query: str, model: str, version: str) -> str:
    return query.replace("$version", version).replace("$model", model)


class SignalSpec(Spec):
    """One signal that is watched.

    With `gating` false it can roll back but need not pass for a step.
    """

    name: Annotated[SignalName, Field(json_schema_extra={"pattern": _SIGNAL_PATTERN})]
    """One of the gateways' signals, or `guardrail/<check>`, `score/<name>`, `prometheus/<name>`, `drift/input`,
    `probe/bias`."""
    share: Annotated[float, Field(gt=0), DECIMAL] | None = None
    """Its part of alpha relative to the others; error gets half of all unless told otherwise."""
    max_rate: Annotated[float, Field(gt=0, lt=1), DECIMAL] = 0.05
    """The objective: the rate of events that is good enough whatever stable's is."""
    max_ratio: Annotated[float, Field(gt=1), DECIMAL] | None = None
    """How many times stable's rate still counts as not worse. Left out: by the canary's weight."""
    max_slowdown: Annotated[float, Field(ge=1, le=10), DECIMAL] | None = None
    """Of slow-tokens and slow-first-token: the factor by which the canary may be slower. Left out: 1.25."""
    gating: Annotated[bool, Field(strict=True)] = True
    """Whether a step needs it to pass. Of feedback/thumbs-down it is false: votes come late and from few, so that none
    proves nothing."""
    prometheus: PrometheusQuery | None = None

    @model_validator(mode="before")
    @classmethod
    def _late_ones_do_not_gate(cls, given: object) -> object:
        if isinstance(given, Mapping) and given.get("name") == THUMBS_DOWN and "gating" not in given:
            return {**given, "gating": False}
        return given

    @model_validator(mode="after")
    def _known(self) -> Self:
        family, _, rest = self.name.partition("/")
        if self.name in LATE_SIGNALS and self.gating:
            raise ValueError(f"signal {self.name}: gating is true; votes come late and from few, so leave it out")
        if not (self.name in _NAMED or (family in FAMILIES and rest)):
            known = ", ".join([*_NAMED, *(f"{f}/<name>" for f in FAMILIES)])
            raise ValueError(f"{self.name!r} is no signal; there are {known}")
        if family in ("drift", "probe") and self.name not in GATES:
            own = ", ".join(gate for gate in GATES if gate.startswith(f"{family}/"))
            raise ValueError(f"{self.name!r} is no signal; of {family} there is {own}")
        if (self.prometheus is not None) != (family == "prometheus"):
            raise ValueError(
                f"signal {self.name}: queries belong to signals named prometheus/<name>, and those need them: "
                "prometheus: {events: ..., total: ...}"
            )
        if self.name not in LATENCY_SIGNALS and self.max_slowdown not in (None, DEFAULT_SLOWDOWN):
            raise ValueError(f"signal {self.name}: maxSlowdown is for {' and '.join(sorted(LATENCY_SIGNALS))} only")
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
    """How the evidence is judged."""

    alpha: Annotated[float, Field(gt=0, le=0.2), DECIMAL] = 0.01
    """The chance of ever rolling back a healthy canary, over all signals."""
    beta: Annotated[float, Field(gt=0, le=0.2), DECIMAL] = 0.05
    """The chance of a step passing a version that is worse by the margin."""
    signals: Annotated[tuple[SignalSpec, ...], Field(min_length=1)] = DEFAULT_SIGNALS
    """What is watched, each named once."""
    on_insufficient: OnInsufficient = OnInsufficient.PAUSE

    @model_validator(mode="before")
    @classmethod
    def _something_to_watch(cls, given: object) -> object:
        if isinstance(given, Mapping) and given.get("signals") in ([], ()):
            raise ValueError("signals is empty; a rollout that watches nothing can't be judged")
        return given

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [str(s.name) for s in self.signals]
        if len(set(names)) != len(names):
            raise ValueError(f"a signal is named twice in {names}; name each once")
        if len(self._slowdowns()) > 1:
            raise ValueError(
                f"maxSlowdown is {' and '.join(f'{v:g}' for v in sorted(self._slowdowns()))} in one rollout; gateways "
                "measure every latency signal against the same factor, so give one value"
            )
        return self

    def _slowdowns(self) -> set[float]:
        return {s.max_slowdown for s in self.signals if s.name in LATENCY_SIGNALS and s.max_slowdown is not None}

    @property
    def max_slowdown(self) -> float:
        """The factor that gateways measure latency against."""
        return next(iter(self._slowdowns()), DEFAULT_SLOWDOWN)


class RolloutSpec(Spec):
    """A wish: this version of this model, this way."""

    model_config = ConfigDict(title="Tidegate rollout")

    model: ModelName
    """The registered model, and its name at the gateway."""
    version: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    """Which version of it, for instance 1.3.0."""
    paused: Annotated[bool, Field(strict=True)] = False
    """Start the workload, then wait for `resume` before the first traffic."""
    progress_deadline_seconds: Annotated[int, Field(ge=1), WHOLE] = 1800
    """How long the new version may take to become ready."""
    revision_history_limit: Annotated[int, Field(ge=0, le=100), WHOLE] = 5
    """How many promoted revisions before the present one `undo` and `rollback --to` may name."""
    engine: EngineSpec = EngineSpec()
    strategy: Strategy = Strategy()
    analysis: AnalysisSpec = AnalysisSpec()
    rollback_window: Duration = 1800.0
    """How long the old version stays ready after a promotion."""
    drain_deadline: Duration = 600.0
    """How long answers under way may go on after their version has lost its traffic."""
    emergency: Annotated[bool, Field(strict=True)] = False
    """Skip steps and evidence: all traffic as soon as the version answers."""


def parse_spec(document: Mapping[str, Any]) -> RolloutSpec:
    """Read a spec from a parsed YAML document: bare, or inside a `ModelDeployment`.

    Raises:
        InvalidSpec: with each field that is wrong, the value found, and what is allowed.

    """
    body = document.get("spec", document) if document.get("kind") == "ModelDeployment" else document
    if not isinstance(body, Mapping):
        raise InvalidSpec(f"the spec is a {type(body).__name__}, not a mapping; see examples/rollout.yaml")
    if empty := [".".join(path) for path in _empty(body, ())]:
        raise InvalidSpec(
            "; ".join(f"{path} is empty; give a value ({{}} for the defaults) or leave it out" for path in empty)
        )
    try:
        # By the names that are published only: what is stored is read by pydantic itself, under its own names.
        return RolloutSpec.model_validate(body, by_alias=True, by_name=False)
    except ValidationError as error:
        raise InvalidSpec(
            "; ".join(_complaint(e["loc"], e["type"], e["msg"], e["input"]) for e in error.errors())
        ) from None


def _empty(value: object, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Where a key stands without a value: `blueGreen:` must not be read as if nothing had been asked for."""
    if value is None:
        yield path
    elif isinstance(value, Mapping):
        for key, part in value.items():
            if path[-1:] != ("expect",) or key != "json":
                yield from _empty(part, (*path, str(key)))
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from _empty(part, (*path, str(index)))


def _complaint(loc: tuple[int | str, ...], kind: str, message: str, found: object) -> str:
    where = ".".join(str(part) for part in loc) or "spec"
    if kind == "extra_forbidden":
        known = ", ".join(sorted(f.alias or n for n, f in _model_at(loc[:-1]).model_fields.items()))
        return f"{where}: unknown field; the fields here are {known}"
    return f"{where}: {message.removeprefix('Value error, ')} (found {str(found)[:80]!r})"


def _model_at(loc: tuple[int | str, ...]) -> type[Spec]:
    """The schema class that a path of field names leads to; list indexes are passed over."""
    here: type[Spec] = RolloutSpec
    for part in loc:
        for name, field in here.model_fields.items():
            if part in (name, field.alias):
                here = next(_models_in(field.annotation), here)
                break
    return here


def _models_in(annotation: object) -> Iterator[type[Spec]]:
    """The schema classes that a field's type is made of."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        if issubclass(annotation, Spec):
            yield annotation
        return
    for part in typing.get_args(annotation):
        yield from _models_in(part)
