"""Put texts through a policy one by one, as `tidegate guard` does: what it says of a text, how well it judges many."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from guardrails.chat_streams import Json, Located
from guardrails.checks.base import Catalogue
from guardrails.checks.http_check import HTTP
from guardrails.checks.learned import LEARNED
from guardrails.enforcement import activate
from guardrails.evaluation import Judged
from guardrails.model_checks.base import ModelChecks, Routed
from guardrails.observing import Observation
from guardrails.pipeline import Guardrails, asked
from guardrails.policy import CheckRule, Failure, Mode, Policy
from guardrails.verdicts import Direction, Finding, Language, Verdict


def local_models(policy: Policy) -> ModelChecks:
    """What runs the model checks of a policy for one command; what it does not need is neither loaded nor imported."""
    kinds = {rule.check for rule in policy.checks}
    by_kind: dict[str, ModelChecks] = {}
    learned_kinds = kinds & {kind.name for kind in LEARNED}
    if learned_kinds:
        from guardrails.model_checks.learned import LearnedChecks
        from guardrails.model_checks.threads import ThreadModelChecks

        learned = LearnedChecks()
        learned.warm_up(learned_kinds)  # no text's time budget is for loading
        by_kind |= dict.fromkeys(learned_kinds, ThreadModelChecks(learned.by_kind))
    if HTTP.name in kinds:
        from guardrails.model_checks.http import HttpModelChecks

        by_kind[HTTP.name] = HttpModelChecks()
    return Routed(by_kind)


@dataclass(frozen=True, slots=True)
class Trial:
    """What a policy says of one text in one direction."""

    direction: Direction
    verdict: Verdict
    text: str
    """What would be forwarded, or sent."""
    findings: tuple[Located, ...]
    latency_ms: float


async def try_text(policy: Policy, catalogue: Catalogue, models: ModelChecks, text: str) -> list[Trial]:
    """What the policy says of a text as a prompt and as an answer, checks that only observe among it."""
    late: list[Located] = []
    guardrails = Guardrails(activate(policy, catalogue), models, report_late=late.extend)
    began = time.perf_counter()
    prompt = await guardrails.check_input({"messages": [{"role": "user", "content": text}]})
    prompt_ms = 1000 * (time.perf_counter() - began)
    await guardrails.observed()
    of_prompt, late[:] = (*prompt.findings, *late), []
    began = time.perf_counter()
    answer = await guardrails.check_answer({"choices": [{"index": 0, "message": {"content": text}}]})
    answer_ms = 1000 * (time.perf_counter() - began)
    await guardrails.observed()
    sent = answer.answer["choices"][0]["message"]["content"]
    forwarded = prompt.body["messages"][0]["content"]
    return [
        Trial(Direction.INPUT, _with_late(prompt.verdict, of_prompt), forwarded, of_prompt, prompt_ms),
        Trial(
            Direction.OUTPUT,
            _with_late(answer.verdict, (*answer.findings, *late)),
            sent,
            (*answer.findings, *late),
            answer_ms,
        ),
    ]


def _with_late(verdict: Verdict, findings: Sequence[Located]) -> Verdict:
    """A verdict that let the text pass, with what was found afterwards."""
    return Verdict.FLAG if verdict is Verdict.ALLOW and findings else verdict


class Evaluator:
    """Judges labelled texts by a policy's thresholds, and keeps every score, for curves over all thresholds."""

    def __init__(
        self, policy: Policy, catalogue: Catalogue, models: ModelChecks, direction: Direction, checks: Sequence[str]
    ) -> None:
        """Begin.

        Args:
            policy: whose checks and thresholds.
            catalogue: the kinds of checks that there are.
            models: runs model checks.
            direction: whether texts are prompts or answers.
            checks: names of the checks that count; all that can do more than allow, if empty.
        """
        self._rules: Mapping[str, CheckRule] = {
            rule.name: rule
            for rule in policy.rules(direction)
            if (rule.name in checks if checks else rule.action is not Verdict.ALLOW)
        }
        lenient = tuple(_measuring(rule) for rule in self._rules.values())
        self._active = activate(policy.model_copy(update={"checks": lenient}), catalogue)
        self._models = models
        self._direction = direction

    @property
    def checks(self) -> tuple[str, ...]:
        """The names of the checks that count."""
        return tuple(self._rules)

    async def judge(self, text: str, *, bad: bool, source: str, language: str) -> Judged:
        """Put one text through."""
        prompt: Json = {"messages": [{"role": "user", "content": text}]}
        answer: Json = {"choices": [{"index": 0, "message": {"content": text}}]}
        looked = Observation(self._active, (self._direction,), prompt, answer)
        began = time.perf_counter()
        for _ in looked.steps():
            pass
        await looked.models(lambda pending: asked(self._models, pending))
        latency_ms = 1000 * (time.perf_counter() - began)
        found = [located.finding for located in looked.findings.get(self._direction, ())]
        scored = [finding for finding in found if finding.verdict is not Verdict.ERROR]
        return Judged(
            source=source,
            language=language,
            bad=bad,
            score=max((finding.score for finding in scored), default=0.0),
            flagged=any(f.score >= self._threshold(f) for f in scored),
            latency_ms=latency_ms,
            failed=len(scored) < len(found),
        )

    def _threshold(self, finding: Finding) -> float:
        """From which score on the policy itself would count this; what is no check of it (a limit) counts always."""
        rule = self._rules.get(finding.check)
        return rule.threshold(finding.language) if rule is not None else 0.0


def _measuring(rule: CheckRule) -> CheckRule:
    """The rule so that it only measures, whatever the score."""
    changes: dict[str, Any] = {
        "action": Verdict.ALLOW,
        "mode": Mode.OBSERVE,
        "on_error": Failure.OPEN,
        "thresholds": {Language.OTHER: 0.0},
        "time_budget_ms": 60_000,
    }
    return rule.model_copy(update=changes)
