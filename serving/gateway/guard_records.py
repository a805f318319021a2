"""What the guardrails said of one request: plain values on its unit, for metrics, traces and the request log.

No text is in it. `Unit.guard` is None for a request that nothing looked at; findings of checks that only observe may be
added after the request's end, and are then told to `Recorder.on_findings` alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from guardrails.chat_streams import Located
from guardrails.verdicts import Direction, Verdict

MOST_FINDINGS = 64
"""Findings of one request that are kept one by one; all are counted."""


@dataclass(frozen=True, slots=True)
class GuardFinding:
    """One finding: where it was (`located.choice` counts messages of a prompt, choices of an answer), and what."""

    direction: Direction
    located: Located


@dataclass(slots=True)
class GuardRecord:
    """The guardrails' part in one request.

    Attributes:
        policy: The policy's name.
        digest: Its SHA-256, "" for the gateway's default.
        input: What became of the prompt; None when it was not held for its checks.
        output: What became of the answer; None likewise.
        check: The check that blocked, or that could not run; "" when none did.
        input_s: Seconds that the prompt waited for its checks.
        findings: The first of them.
        counts: All of them, by direction, check and verdict.
    """

    policy: str
    digest: str
    input: Verdict | None = None
    output: Verdict | None = None
    check: str = ""
    input_s: float = 0.0
    findings: list[GuardFinding] = field(default_factory=list)
    counts: Counter[tuple[Direction, str, Verdict]] = field(default_factory=Counter)

    def worst(self, direction: Direction) -> dict[str, Verdict]:
        """The most severe verdict of each check that found something."""
        found: dict[str, Verdict] = {}
        for side, check, verdict in self.counts:
            if side is direction:
                found[check] = max(found.get(check, Verdict.ALLOW), verdict, key=lambda v: v.severity)
        return found

    def add(self, direction: Direction, found: Iterable[Located]) -> None:
        """Take in what checks found."""
        for located in found:
            self.counts[direction, located.finding.check, located.finding.verdict] += 1
            if len(self.findings) < MOST_FINDINGS:
                self.findings.append(GuardFinding(direction, located))
