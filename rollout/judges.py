"""Which policy scores the answers of a rollout: the judge, reduced to the checks that its signals name. Shell.

The signal `guardrail/<check>` is measured by the check of that name, on the answers of both arms alike, by a policy
that is frozen when the rollout starts: what a version's own policy does can't make it look worse, or better.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from guardrails.errors import GuardrailError
from guardrails.plugins import installed_catalogue
from guardrails.policies.shipped import Shipped, shipped_text
from guardrails.policy import parse_policy
from guardrails.verdicts import Direction
from rollout.errors import InvalidSpec
from rollout.specs import RolloutSpec

FAMILY = "guardrail"


def judge_policy(spec: RolloutSpec, text: str | None = None) -> str:
    """The text of the policy that judges this rollout, "" when no signal of it needs one.

    Args:
        spec: what was asked for.
        text: the YAML of all checks that there are to choose from; the shipped judge, if None.

    Raises:
        InvalidSpec: a signal names a check that the judge does not have, or the judge itself is no valid policy.

    """
    wanted = [name for family, _, name in (s.name.partition("/") for s in spec.analysis.signals) if family == FAMILY]
    if not wanted:
        return ""
    text = shipped_text(Shipped.JUDGE) if text is None else text
    try:
        policy = parse_policy(text, installed_catalogue())
    except GuardrailError as error:
        raise InvalidSpec(f"the judge's policy can't be used: {error}") from None
    known = sorted(rule.name for rule in policy.rules(Direction.OUTPUT))
    for name in wanted:
        if name not in known:
            raise InvalidSpec(
                f"signal {FAMILY}/{name}: the judge has no check of that name for answers; it has {', '.join(known)}"
            )
    document = yaml.safe_load(text)
    document["checks"] = [_observing(rule) for rule in document["checks"] if rule["name"] in wanted]
    return str(yaml.safe_dump(document, sort_keys=False, allow_unicode=True))


def _observing(rule: Mapping[str, Any]) -> dict[str, Any]:
    """A judge sees answers alone, and changes nothing, whatever its file says."""
    return {**rule, "direction": "output", "action": "flag", "mode": "observe"}


def judge_from_file(path: Path | None) -> str | None:
    """The judge that an operator has written, None for the shipped one.

    Raises:
        InvalidSpec: the file can't be read.

    """
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSpec(f"judge_policy_file {path} can't be read ({type(error).__name__}); check the path") from None
