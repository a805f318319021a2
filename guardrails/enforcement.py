"""From a policy to the checks that run, and from hits to findings. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from guardrails.checks.base import Catalogue, Check, CheckKind, Cost, Options, Scope
from guardrails.checks.catalogue import BUILT_IN
from guardrails.errors import UnknownCheck
from guardrails.policy import CheckRule, Policy
from guardrails.verdicts import Direction, Finding, Hit, Language, Verdict


@dataclass(frozen=True, slots=True)
class ActiveCheck:
    """A rule of a policy with the check that does it. `check` is None where a model behind a port does it."""

    rule: CheckRule
    kind: CheckKind
    check: Check | None
    options: Options

    @property
    def is_model(self) -> bool:
        """Whether its verdicts come later."""
        return self.kind.cost is Cost.MODEL

    @property
    def looks_at_whole(self) -> bool:
        """Whether it waits for the complete text."""
        return self.kind.scope is Scope.WHOLE


@dataclass(frozen=True, slots=True)
class ActivePolicy:
    """A policy with its checks made; shared by all requests of a version."""

    policy: Policy
    input: tuple[ActiveCheck, ...]
    output: tuple[ActiveCheck, ...]

    def checks(self, direction: Direction) -> tuple[ActiveCheck, ...]:
        """The checks for prompts, or for answers."""
        return self.input if direction is Direction.INPUT else self.output


def activate(policy: Policy, catalogue: Catalogue = BUILT_IN) -> ActivePolicy:
    """Make the checks that a policy names.

    Raises:
        UnknownCheck: the policy was read with a catalogue that had more checks than this one.
    """
    made = []
    for rule in policy.checks:
        kind = catalogue.get(rule.check)
        if kind is None:
            raise UnknownCheck(
                f"no check named {rule.check!r}; there are {', '.join(sorted(catalogue))}; install its plug-in here too"
            )
        options = kind.options.model_validate(rule.options)
        check = None if kind.build is None else kind.build(options)
        made.append(ActiveCheck(rule=rule, kind=kind, check=check, options=options))
    return ActivePolicy(
        policy=policy,
        input=tuple(a for a in made if a.rule.direction.covers(Direction.INPUT)),
        output=tuple(a for a in made if a.rule.direction.covers(Direction.OUTPUT)),
    )


def judge(rule: CheckRule, hits: Iterable[Hit], language: Language) -> list[Finding]:
    """The hits that reach the rule's threshold, with the verdict that the rule gives them.

    A score that is no number in [0, 1] counts as 1: a check that can't count is not a reason to let text pass.
    """
    if rule.languages is not None and language not in rule.languages:
        return []
    threshold = rule.threshold(language)
    found = []
    for hit in hits:
        score = hit.score if 0 <= hit.score <= 1 else 1.0
        if score >= threshold:
            found.append(
                Finding(
                    check=rule.name,
                    verdict=rule.action,
                    start=hit.start,
                    end=hit.end,
                    score=score,
                    language=language,
                    reason=hit.reason,
                    replacement=hit.replacement,
                )
            )
    return found


def could_not_run(rule: CheckRule, start: int, end: int, language: Language, reason: str) -> Finding:
    """The finding of a check that failed. Whether the text stops is the rule's `fails_closed`."""
    return Finding(rule.name, Verdict.ERROR, start, end, 0.0, language, reason)
