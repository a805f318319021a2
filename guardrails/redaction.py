"""Redact until nothing is left to redact. Pure.

What stands beside a redacted stretch may come to light by it: in `AKIA...2+44 20 7946 0958` the number is part of a
longer word until the key before it is gone. So a text with redactions is looked at again before it goes out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from guardrails.checks.base import Context
from guardrails.enforcement import ActiveCheck, judge
from guardrails.normalise import View
from guardrails.text_units import language_of
from guardrails.verdicts import REDACTED, Verdict, apply_edits, edits_of

MAX_ROUNDS = 4
SEEN_CHARACTERS = 64
"""How much of what went out before is looked at together with what goes out now."""


def settled(text: str, before: str, checks: Sequence[ActiveCheck], context: Context) -> str:
    """A text with redactions, and with those that they brought to light.

    Args:
        text: what goes out now.
        before: the end of what went out before; nothing in it is changed.
        checks: those that enforce something.
        context: what checks may know.
    """
    for _ in range(MAX_ROUNDS):
        view = View(before + text)
        seen = replace(context, language=language_of(view.original), complete=True)
        found = []
        for active in checks:
            if active.check is None or active.looks_at_whole:
                continue
            for finding in judge(active.rule, active.check.examine(view, seen), seen.language):
                if finding.start >= len(before) and finding.verdict in (Verdict.REDACT, Verdict.BLOCK):
                    masked = finding.replacement if finding.verdict is Verdict.REDACT else REDACTED
                    found.append(replace(finding, verdict=Verdict.REDACT, replacement=masked))
        if not found:
            return text
        edits = [replace(edit, start=edit.start - len(before), end=edit.end - len(before)) for edit in edits_of(found)]
        text = apply_edits(text, edits)
    return text
