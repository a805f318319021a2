"""`guard test`: what a policy says of one text, with the real models, checks that only observe among them."""

from __future__ import annotations

import pytest

from guardrails.checks.catalogue import BUILT_IN
from guardrails.policies.shipped import Shipped, shipped_policy
from guardrails.policy import Policy, parse_policy
from guardrails.trial import local_models, try_text
from guardrails.verdicts import Verdict

OBSERVES = "schema: 1\nname: t\nchecks: [{name: toxicity, action: flag, mode: observe}]\n"


async def verdicts(policy: Policy, text: str) -> list[Verdict]:
    """A busy machine must not turn a verdict into an error, so the checks have all the time they want."""
    patient = tuple(rule.model_copy(update={"time_budget_ms": 60_000}) for rule in policy.checks)
    models = local_models(policy)
    try:
        trials = await try_text(policy.model_copy(update={"checks": patient}), BUILT_IN, models, text)
        return [trial.verdict for trial in trials]
    finally:
        await models.close()


async def test_what_only_observes_is_waited_for_and_told() -> None:
    assert await verdicts(parse_policy(OBSERVES), "you are a stupid worthless idiot") == [Verdict.FLAG] * 2


@pytest.mark.parametrize(
    ("text", "verdict"),
    [("你是个愚蠢的人", Verdict.BLOCK), ("我非常欣赏你的工作", Verdict.ALLOW), ("这是一个正常的对话", Verdict.ALLOW),
     ("I am a gay black woman", Verdict.ALLOW), ("how do I kill a Python process", Verdict.ALLOW)],
)  # fmt: skip
async def test_the_policy_that_protects_tells_an_insult_from_the_rest(text: str, verdict: Verdict) -> None:
    assert await verdicts(shipped_policy(Shipped.STANDARD), text) == [verdict] * 2
