"""What checks find and what follows from it. Pure.

A check returns *hits*: where, how sure, why. The policy turns each into a *finding* with a verdict. Neither carries the
text that was checked, so both may be counted, traced and logged; a masked replacement is kept out of `repr`.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any


class Verdict(enum.StrEnum):
    """What is done with a text, from the mildest to the most severe.

    `error` stands highest: a check that could not run proves nothing, and what follows from it (503, an error event,
    or letting the text pass) is decided by the policy's fail_open or fail_closed, never by another check's verdict.
    """

    ALLOW = "allow"
    FLAG = "flag"
    REDACT = "redact"
    BLOCK = "block"
    ERROR = "error"

    @property
    def severity(self) -> int:
        """0 for allow to 4 for error."""
        return _SEVERITY[self]


_SEVERITY = {verdict: place for place, verdict in enumerate(Verdict)}


class Direction(enum.StrEnum):
    """Which way the text goes: prompts come in, answers go out."""

    INPUT = "input"
    OUTPUT = "output"
    BOTH = "both"

    def covers(self, other: Direction) -> bool:
        """Whether something meant for this direction applies to the other.

        >>> Direction.BOTH.covers(Direction.INPUT), Direction.INPUT.covers(Direction.OUTPUT)
        (True, False)
        """
        return self is Direction.BOTH or self is other


class Language(enum.StrEnum):
    """The languages that thresholds may be given for."""

    EN = "en"
    ZH = "zh"
    OTHER = "default"


@dataclass(frozen=True, slots=True)
class Hit:
    """What a check found: offsets in the text it was given, certainty in [0, 1], and why, without the text.

    `replacement` is what a redaction puts in the span's place; None leaves that to `REDACTED`.
    """

    start: int
    end: int
    score: float
    reason: str
    replacement: str | None = field(default=None, repr=False)

    def moved(self, by: int) -> Hit:
        """The same hit in a text that begins `by` characters earlier."""
        return replace(self, start=self.start + by, end=self.end + by) if by else self


REDACTED = "[redacted]"


@dataclass(frozen=True, slots=True)
class Finding:
    """A hit after the policy has judged it. Offsets are characters of the checked text (of one message or channel)."""

    check: str
    verdict: Verdict
    start: int
    end: int
    score: float
    language: Language
    reason: str
    replacement: str | None = field(default=None, repr=False, compare=False)

    def record(self) -> dict[str, Any]:
        """What may be logged: everything but the replacement."""
        return {
            "check": self.check,
            "verdict": self.verdict.value,
            "start": self.start,
            "end": self.end,
            "score": round(self.score, 4),
            "language": self.language.value,
            "reason": self.reason,
        }


def worst(findings: Iterable[Finding]) -> Verdict:
    """The most severe verdict among findings; allow when there are none."""
    return max((finding.verdict for finding in findings), key=lambda v: v.severity, default=Verdict.ALLOW)


def in_order(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Findings by place in the text, the more severe first where two begin together, each once."""
    unique = dict.fromkeys(findings)
    return tuple(sorted(unique, key=lambda f: (f.start, -f.verdict.severity, -f.end, f.check, f.reason)))


@dataclass(frozen=True, slots=True)
class Edit:
    """A stretch of text and what is put in its place."""

    start: int
    end: int
    replacement: str


def edits_of(findings: Iterable[Finding]) -> tuple[Edit, ...]:
    """The redactions among findings as disjoint edits in order.

    Where two overlap, the union is one edit. It takes the replacement of a finding that covers all of it, else it is
    replaced by `REDACTED`, since no one check knows how to mask it.

    >>> a = Finding("pii", Verdict.REDACT, 0, 4, 1.0, Language.EN, "", "1***")
    >>> b = Finding("pii", Verdict.REDACT, 2, 6, 1.0, Language.EN, "", "****")
    >>> edits_of([a]), edits_of([a, b])
    ((Edit(start=0, end=4, replacement='1***'),), (Edit(start=0, end=6, replacement='[redacted]'),))
    """
    spans = sorted(
        (f for f in findings if f.verdict is Verdict.REDACT and f.end > f.start),
        key=lambda f: (f.start, -f.end, f.check, f.reason),
    )
    edits: list[Edit] = []
    for finding in spans:
        masked = REDACTED if finding.replacement is None else finding.replacement
        if edits and finding.start < edits[-1].end:
            last = edits[-1]
            if finding.end > last.end:
                edits[-1] = Edit(last.start, finding.end, REDACTED)
            continue
        edits.append(Edit(finding.start, finding.end, masked))
    return tuple(edits)


def apply_edits(text: str, edits: Sequence[Edit]) -> str:
    """The text with disjoint, ordered edits made.

    >>> apply_edits("call 5551234 now", [Edit(5, 12, "***1234")])
    'call ***1234 now'
    """
    if not edits:
        return text
    pieces: list[str] = []
    at = 0
    for edit in edits:
        pieces += (text[at : edit.start], edit.replacement)
        at = edit.end
    pieces.append(text[at:])
    return "".join(pieces)
