"""How a new version takes over: one of four strategies, each with what it needs to know. Pure.

| strategy | traffic of the new version | what lets it go on |
|---|---|---|
| canary | rising weights, compared with stable at each | evidence at every step, then a soak |
| blueGreen | none but testers', then all at once | a smoke suite; watched after the switch, taken back by itself |
| shadow | copies of stable's requests, answers never returned | evidence from pairs of answers |
| ab | a fixed part, for a number of sessions | a person, who reads the report |
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from rollout.spec_types import WHOLE, Duration, Spec
from serving.keys import KeyId
from serving.traffic import Tester


class StrategyName(enum.StrEnum):
    """The strategies, as status documents and the command line name them."""

    CANARY = "canary"
    BLUE_GREEN = "blue-green"
    SHADOW = "shadow"
    AB = "ab"


class TesterSpec(Spec):
    """Whose requests go to the new version whatever its weight: a header with its value, or the id of a key.

    Such requests had no choice, so they carry no evidence.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [{"required": ["header", "value"]}, {"required": ["key"]}],
            "dependentRequired": {"value": ["header"]},
        }
    )

    header: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9-]{1,64}$")] | None = None
    """The name of a request header."""
    value: Annotated[str, StringConstraints(max_length=256)] | None = None
    """What the header must be."""
    key: KeyId | None = None
    """The id of an API key, as `tidegate key list` shows it."""

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.header is None) == (self.key is None) or (self.header is None) != (self.value is None):
            raise ValueError("a tester is a header with its value, or the id of a key; give one of the two")
        return self

    def tester(self) -> Tester:
        """The same in the words of a traffic table."""
        return Tester(header=self.header, value=self.value, key=self.key)


Testers = Annotated[tuple[TesterSpec, ...], Field(max_length=32)]


def _in_order(least_s: float, most_s: float | None) -> None:
    if most_s is not None and most_s < least_s:
        raise ValueError(f"maxDuration {most_s} s is shorter than duration {least_s} s; raise it")


class CanaryStep(Spec):
    """Hold the canary at `weight` percent for at least `duration`, and until the evidence suffices."""

    weight: Annotated[int, Field(ge=1, le=100), WHOLE]
    """Percent of requests that the canary gets."""
    duration: Duration = 30.0
    """How long it is held at least."""
    max_duration: Duration | None = None
    """After this long without a verdict, `analysis.onInsufficient` decides. Left out: wait for ever."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _in_order(self.duration, self.max_duration)
        return self


DEFAULT_STEPS = tuple(CanaryStep(weight=w) for w in (5, 25, 50))


class CanaryStrategy(Spec):
    """Weights in rising order. `100` as the last step means: promote after the step before it, and the soak.

    During the soak stable keeps `holdbackPercent`, then half of it, then a quarter, in equal parts of the soak. Above
    half, a canary's fault is hard to see by comparison (one canary event multiplies the evidence by at most
    1/weight), so the comparison is kept as strong as the operator allows at first, and only what it has passed
    shrinks it. Halving makes the risk of each part (the share of users who leave stable) half that of the part before.
    """

    steps: tuple[CanaryStep, ...] = DEFAULT_STEPS
    """The weights, in rising order."""
    soak: Duration = 0.0
    """How long the canary serves most requests before it is promoted."""
    soak_requests: Annotated[int, Field(ge=1), WHOLE] | None = None
    """The least number of canary requests in the soak, spread over its parts like its time."""
    holdback_percent: Annotated[int, Field(ge=1, le=50), WHOLE] = 20
    """What stable keeps in the first part of the soak."""
    testers: Testers = ()
    """Who meets the canary whatever its weight."""

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

    @property
    def soaks(self) -> bool:
        """Whether there is a soak, by time or by requests."""
        return self.soak > 0 or self.soak_requests is not None

    @property
    def holdbacks(self) -> tuple[int, ...]:
        """What stable keeps in each part of the soak, in percent: falling, each at least 1, none twice.

        Never more than the last step left it: a soak does not take traffic back.

        >>> CanaryStrategy(holdback_percent=20).holdbacks
        (20, 10, 5)
        """
        steps = self.shifting_steps
        most = 100 - steps[-1].weight if steps else 99
        halved = (self.holdback_percent, -(-self.holdback_percent // 2), -(-self.holdback_percent // 4))
        return tuple(dict.fromkeys(min(part, most) for part in halved))


class Expectation(Spec):
    """What an answer of the smoke suite must look like. All that is given must hold."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    contains: Annotated[str, StringConstraints(min_length=1)] | None = None
    """Words that stand somewhere in the answer."""
    matches: str | None = None
    """A regular expression that is found somewhere in the answer."""
    not_matches: str | None = None
    """A regular expression that is found nowhere in it."""
    json_form: Literal[True] | Mapping[str, Any] | None = Field(default=None, alias="json")
    """`true`: the answer is JSON; a mapping: it is JSON that this JSON Schema accepts."""

    @model_validator(mode="after")
    def _something(self) -> Self:
        if all(v is None for v in (self.contains, self.matches, self.not_matches, self.json_form)):
            raise ValueError("nothing is expected; give contains, matches, notMatches or json")
        for pattern in (self.matches, self.not_matches):
            try:
                re.compile(pattern or "")
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        return self


class SmokeMessage(Spec):
    """One message of a chat."""

    role: Literal["system", "user", "assistant"]
    """Whose message it is."""
    content: str
    """Its text."""


class SmokeCase(Spec):
    """One request of the smoke suite, and what its answer must look like."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["prompt"]}, {"required": ["messages"]}]})

    name: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    """What a failure of it is reported under."""
    prompt: Annotated[str, StringConstraints(min_length=1)] | None = None
    """Short for one message of a user."""
    messages: Annotated[tuple[SmokeMessage, ...], Field(min_length=1)] | None = None
    """The chat so far, in place of a prompt."""
    max_tokens: Annotated[int, Field(ge=1, le=4096), WHOLE] = 64
    """How long the answer may be."""
    expect: Expectation

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError(f"smoke case {self.name!r}: give a prompt or messages, one of the two")
        return self


class BlueGreenStrategy(Spec):
    """The candidate gets no traffic but its testers', passes the smoke suite, and takes all traffic in one switch.

    The old side is kept warm for `rollbackWindow`, in which the new one is watched and taken back by itself.
    """

    testers: Testers = ()
    """Who meets the candidate before the switch."""
    smoke: Annotated[tuple[SmokeCase, ...], Field(max_length=200)] = ()
    """Requests that the candidate must answer as expected before the switch."""
    preview_duration: Duration = 0.0
    """How long it is previewed at least."""
    preview_requests: Annotated[int, Field(ge=1), WHOLE] | None = None
    """The least number of testers' requests before the switch."""
    auto_switch: Annotated[bool, Field(strict=True)] = True
    """False: pause when the preview has passed, until somebody says `promote`."""

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [c.name for c in self.smoke]
        if len(set(names)) != len(names):
            raise ValueError(f"a smoke case is named twice in {names}; name each once")
        if self.preview_requests is not None and not self.testers:
            raise ValueError("previewRequests without testers can't be reached; give testers, or leave it out")
        return self


class OnPassed(enum.StrEnum):
    """What follows when a shadow has shown that it is not worse."""

    PAUSE = "pause"
    PROMOTE = "promote"


class ShadowStrategy(Spec):
    """Copies `mirrorPercent` of stable's requests to the new version; its answers never reach a client.

    Its answers are compared with stable's in pairs. Latency never judges a shadow: mirrors are dropped under load.
    """

    mirror_percent: Annotated[int, Field(ge=1, le=100), WHOLE] = 10
    """Percent of stable's requests that are copied."""
    duration: Duration = 60.0
    """How long they are at least."""
    max_duration: Duration | None = None
    """After this long without a verdict, `analysis.onInsufficient` decides. Left out: wait for ever."""
    pairs: Annotated[int, Field(ge=1), WHOLE] = 100
    """The least number of mirrored pairs."""
    on_passed: OnPassed = OnPassed.PAUSE
    on_failed: Literal["withdraw"] = "withdraw"
    """What follows when it is shown to be worse."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _in_order(self.duration, self.max_duration)
        return self


class AbStrategy(Spec):
    """A fixed split for a number of sessions, then a report of each signal's effect; a person decides."""

    weight: Annotated[int, Field(ge=1, le=99), WHOLE] = 50
    """Percent of sessions that get the new version."""
    sessions: Annotated[int, Field(ge=1), WHOLE] = 1000
    """How many sessions over both arms before the report; a request without a session counts as one."""
    safety: Annotated[bool, Field(strict=True)] = True
    """Whether a signal that failed takes the version back at once."""


AnyStrategy = CanaryStrategy | BlueGreenStrategy | ShadowStrategy | AbStrategy


class Strategy(Spec):
    """How the new version takes over: exactly one key. Left out, it is a canary with its defaults."""

    model_config = ConfigDict(json_schema_extra={"maxProperties": 1})

    canary: CanaryStrategy | None = None
    blue_green: BlueGreenStrategy | None = None
    shadow: ShadowStrategy | None = None
    ab: AbStrategy | None = None

    @model_validator(mode="before")
    @classmethod
    def _canary_unless_told(cls, given: object) -> object:
        if isinstance(given, Mapping) and all(v is None for v in given.values()):
            return {**given, "canary": CanaryStrategy()}
        return given

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        named = [name for name, part in self._parts() if part is not None]
        if len(named) != 1:
            raise ValueError(f"strategy names {' and '.join(named)}; give exactly one")
        return self

    def _parts(self) -> tuple[tuple[StrategyName, AnyStrategy | None], ...]:
        return (
            (StrategyName.CANARY, self.canary),
            (StrategyName.BLUE_GREEN, self.blue_green),
            (StrategyName.SHADOW, self.shadow),
            (StrategyName.AB, self.ab),
        )

    @property
    def name(self) -> StrategyName:
        """Which one it is."""
        return next(name for name, part in self._parts() if part is not None)

    @property
    def chosen(self) -> AnyStrategy:
        """The one that is given."""
        return next(part for _, part in self._parts() if part is not None)
