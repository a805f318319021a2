"""The guardrail policy: a YAML file that belongs to a model version. Pure.

    schema: 1
    name: support-desk
    checks:
      - name: pii
        direction: both
        action: redact
        thresholds: {default: 0.5, zh: 0.6}

Everything is closed: an unknown key, check or value is a fault, and `parse_policy` lists all faults at once. The digest
of what was meant (not of how it was written) goes into the revision, so that an edit is a new revision.
"""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Hashable, Mapping
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from guardrails.checks.base import Catalogue, Cost, Scope
from guardrails.checks.catalogue import BUILT_IN
from guardrails.errors import InvalidPolicy
from guardrails.text_units import Stretch
from guardrails.verdicts import Direction, Language, Verdict

MAX_POLICY_CHARACTERS = 256_000
MAX_SENTENCE_CHARACTERS = 400
"""A sentence longer than this is let go in pieces."""


class Frozen(BaseModel):
    """Base of the policy's parts: closed and frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Mode(enum.StrEnum):
    """What a stream waits for."""

    WINDOW = "window"
    """Text is held back until its stretch is checked."""
    BUFFER_FULL = "buffer_full"
    """Nothing is let go before the whole answer is checked."""
    OBSERVE = "observe"
    """Nothing waits and nothing is changed; findings are only reported."""


class Failure(enum.StrEnum):
    """What follows when a check could not run."""

    OPEN = "fail_open"
    CLOSED = "fail_closed"


class HoldBack(Frozen):
    """How much text of a stream is checked and let go together: `sentence`, `{tokens: 24}` or `{characters: 96}`.

    A stretch ends with a sentence in any case. Tokens are counted as text_units.py says: 4 characters each, or one
    Chinese character.
    """

    tokens: Annotated[int, Field(ge=4, le=2000)] | None = None
    characters: Annotated[int, Field(ge=16, le=8000)] | None = None

    @model_validator(mode="after")
    def _one(self) -> HoldBack:
        if self.tokens is not None and self.characters is not None:
            raise ValueError("says both tokens and characters; give one of them")
        return self

    def stretch(self) -> Stretch:
        """The same as the streaming engine counts it."""
        if self.tokens is not None:
            return Stretch(max_characters=self.tokens * 8, max_tokens=self.tokens)
        return Stretch(max_characters=self.characters or MAX_SENTENCE_CHARACTERS)


def _hold_back(value: object) -> object:
    return {} if value == "sentence" else value


def _thresholds(value: object) -> object:
    plain_number = isinstance(value, int | float) and not isinstance(value, bool)
    return {Language.OTHER.value: value} if plain_number else value


Threshold = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,62}$")]
HoldBackField = Annotated[HoldBack, BeforeValidator(_hold_back)]


class CheckRule(Frozen):
    """One check of a policy: which, on what, and what follows."""

    name: Name
    """What its findings, metrics and rollout signals are called."""
    check: Name = ""
    """The kind of check; the name, where it isn't given."""
    direction: Direction = Direction.BOTH
    """Where it isn't given: whatever the check is made for."""
    action: Literal[Verdict.ALLOW, Verdict.FLAG, Verdict.REDACT, Verdict.BLOCK] = Verdict.FLAG
    thresholds: Annotated[dict[Language, Threshold], BeforeValidator(_thresholds)] = {Language.OTHER: 0.5}
    """A hit counts from this score on; `default` is for texts of other languages, and of those not given."""
    languages: frozenset[Language] | None = None
    """Only texts in these; all, where it isn't given."""
    mode: Mode = Mode.WINDOW
    hold_back: HoldBackField | None = None
    """The policy's, where it isn't given."""
    on_error: Failure = Failure.OPEN
    time_budget_ms: Annotated[int, Field(ge=1, le=60_000)] = 500
    """How long a stream waits for one verdict. Rules need no budget: they run in microseconds."""
    options: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _kind(cls, value: Any) -> Any:  # noqa: ANN401 - what YAML gave
        if isinstance(value, Mapping) and "check" not in value and "name" in value:
            return {**value, "check": value["name"]}
        return value

    def threshold(self, language: Language) -> float:
        """The score from which a hit in a text of this language counts."""
        return self.thresholds.get(language, self.thresholds.get(Language.OTHER, 0.5))

    @property
    def enforces(self) -> bool:
        """Whether it can change or stop a text."""
        return self.mode is not Mode.OBSERVE and self.action in (Verdict.REDACT, Verdict.BLOCK)

    @property
    def fails_closed(self) -> bool:
        """Whether a text stops when this check could not run. A check that only observes never stops anything."""
        return self.mode is not Mode.OBSERVE and self.on_error is Failure.CLOSED

    @property
    def holds(self) -> bool:
        """Whether text has to wait for its verdict."""
        return self.enforces or self.fails_closed


class Limits(Frozen):
    """How much is checked, and what follows beyond."""

    max_characters: Annotated[int, Field(ge=1000, le=10_000_000)] = 1_000_000
    """Of one text: a message, or one part of an answer."""
    beyond: Failure = Failure.CLOSED
    """`fail_closed` refuses (or ends) a longer text, `fail_open` lets the rest pass unchecked, with a finding."""
    max_pending: Annotated[int, Field(ge=1, le=64)] = 4
    """Texts of one stream that models look at at once; more wait their turn."""


Role = Literal["system", "developer", "user", "assistant", "tool"]


class Policy(Frozen):
    """A whole policy."""

    schema_version: Literal[1] = Field(alias="schema")
    name: Name
    description: str = ""
    roles: frozenset[Role] = frozenset({"user", "assistant", "tool"})
    """Whose messages are checked. What the application itself says as system or developer is trusted."""
    hold_back: HoldBackField = HoldBack()
    carry_over_characters: Annotated[int, Field(ge=0, le=4000)] = 200
    """How much text before a stretch a model sees again."""
    limits: Limits = Limits()
    log_text: bool = False
    """Whether prompts and answers may be kept, in the request log and in traces that hold text: redacted, for a time.
    It changes no answer, but whether texts are kept is a version's business, so it is part of its policy."""
    checks: tuple[CheckRule, ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of what the policy means; equal for two spellings of the same policy."""
        return hashlib.sha256(canonical(self).encode()).hexdigest()

    def rules(self, direction: Direction) -> tuple[CheckRule, ...]:
        """The rules for prompts, or for answers."""
        return tuple(rule for rule in self.checks if rule.direction.covers(direction))


def canonical(policy: Policy) -> str:
    """The policy as JSON with every default written out and keys and sets sorted; without its description."""
    dumped = policy.model_dump(mode="python", by_alias=True, exclude={"description"})
    if not policy.log_text:  # policies from before there was such a thing keep their digests
        del dumped["log_text"]
    return json.dumps(_sorted(dumped), sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def _sorted(value: Any) -> Any:  # noqa: ANN401 - JSON of any shape
    if isinstance(value, Mapping):
        return {str(key): _sorted(part) for key, part in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(str(part) for part in value)
    return [_sorted(part) for part in value] if isinstance(value, list | tuple) else value


class _StrictLoader(yaml.SafeLoader):
    """YAML without aliases (a few bytes of them unfold into gigabytes) and without keys given twice."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.constructor.ConstructorError(None, None, "aliases are not allowed", None)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def parse_policy(text: str, catalogue: Catalogue = BUILT_IN) -> Policy:
    """Read a policy.

    Args:
        text: the YAML.
        catalogue: the kinds of checks there are; with plug-ins it is `plugins.installed_catalogue()`.

    Raises:
        InvalidPolicy: with every fault found, each beginning with its place.
    """
    if len(text) > MAX_POLICY_CHARACTERS:
        raise InvalidPolicy([f"it has {len(text)} characters, more than {MAX_POLICY_CHARACTERS}; shorten its lists"])
    try:
        content = yaml.load(text, Loader=_StrictLoader)  # noqa: S506 - a SafeLoader made stricter
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise InvalidPolicy([f"it is not YAML that can be read: {_one_line(error)}"]) from None
    if not isinstance(content, Mapping):
        raise InvalidPolicy([f"it is {_kind_of(content)}, not a mapping; begin with `schema: 1`"])
    faults: list[str] = []
    try:
        policy = Policy.model_validate(content)
    except ValidationError as error:
        faults = [_fault(content, e["loc"], e["msg"]) for e in error.errors()]
        raise InvalidPolicy([*faults, *_unknown_checks(content, catalogue)]) from None
    checks = []
    names: set[str] = set()
    for place, rule in enumerate(policy.checks):
        where = f"checks[{place}] {rule.name!r}"
        if rule.name in names:
            faults.append(f"{where}: the name stands twice; give one of the two another name")
        names.add(rule.name)
        made, found = _with_kind(rule, where, catalogue)
        faults += found
        checks.append(made)
    if faults:
        raise InvalidPolicy(faults)
    return policy.model_copy(update={"checks": tuple(checks)})


def _with_kind(rule: CheckRule, where: str, catalogue: Catalogue) -> tuple[CheckRule, list[str]]:
    """The rule with its options completed, and what is wrong with it."""
    kind = catalogue.get(rule.check)
    if kind is None:
        return rule, [_no_such_check(where, rule.check, catalogue)]
    faults = []
    if "direction" not in rule.model_fields_set:
        rule = rule.model_copy(update={"direction": kind.directions})
    if not kind.directions.covers(rule.direction):
        faults.append(
            f"{where}: direction {rule.direction.value} is not possible, since {kind.name} looks at"
            f" {kind.directions.value} only; write `direction: {kind.directions.value}`"
        )
    if rule.action is Verdict.REDACT and not kind.yields_spans:
        faults.append(
            f"{where}: action redact is not possible, since {kind.name} doesn't say where in the text it found"
            " something; use flag or block"
        )
    if kind.scope is Scope.WHOLE and rule.enforces and rule.mode is not Mode.BUFFER_FULL:
        faults.append(
            f"{where}: action {rule.action.value} in mode {rule.mode.value} would come after the text is out, since"
            f" {kind.name} looks at whole texts; use `mode: buffer_full`, or `action: flag`"
        )
    if kind.cost is Cost.CHEAP and kind.build is None:
        faults.append(f"{where}: {kind.name} has no way to be built; this is a fault of the plug-in")
    try:
        options = kind.options.model_validate(rule.options)
    except ValidationError as error:
        faults += [f"{where}: options.{_path(e['loc'])}: {_plain(e['msg'])}" for e in error.errors()]
        return rule, faults
    # As JSON sets would come out in another order in every process, and so would the policy's digest.
    return rule.model_copy(update={"options": _sorted(options.model_dump(mode="python"))}), faults


def _unknown_checks(content: Mapping[str, Any], catalogue: Catalogue) -> list[str]:
    """Unknown names are told even where other faults keep the policy from being read."""
    rules = content.get("checks")
    faults = []
    for place, rule in enumerate(rules if isinstance(rules, list) else ()):
        named = (rule.get("check") or rule.get("name")) if isinstance(rule, Mapping) else None
        if isinstance(named, str) and named not in catalogue:
            faults.append(_no_such_check(f"checks[{place}] {rule.get('name')!r}", named, catalogue))
    return faults


def _no_such_check(where: str, name: str, catalogue: Catalogue) -> str:
    return f"{where}: no check named {name!r}; there are {', '.join(sorted(catalogue))}"


def _fault(content: Mapping[str, Any], loc: tuple[int | str, ...], message: str) -> str:
    where = _path(loc)
    if len(loc) > 1 and loc[0] == "checks" and isinstance(loc[1], int):
        rule = content["checks"][loc[1]]
        name = rule.get("name") if isinstance(rule, Mapping) else None
        where = f"checks[{loc[1]}] {name!r}" + (f": {_path(loc[2:])}" if len(loc) > 2 else "")
    return f"{where}: {_plain(message)}"


def _path(loc: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in loc)


def _plain(message: str) -> str:
    return message.removeprefix("Value error, ").replace("Extra inputs are not permitted", "there is no such key")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _kind_of(value: object) -> str:
    return "empty" if value is None else f"a {type(value).__name__}"
