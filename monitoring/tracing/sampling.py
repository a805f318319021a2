"""Which traces are kept. Pure; times are arguments.

At the head: what a client's `traceparent` has sampled, else a ratio of traces by their id, and of a canary so many a
second. At the tail, when a request is over: whatever failed, and every request of a version that is being taken back.
For the second the last requests of each canary wait in a short list; when its version is taken back they are kept after
all. What the engine itself would have to say about those is lost unless it was told that they were sampled: hence the
canary's own allowance at the head, which a canary with little traffic never exhausts.

Refused requests are cheap to make, so of each reason only so many a second are kept: a flood of bad keys takes neither
the collector nor the disk along, and hides no full queue.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterable
from typing import Final

from monitoring.tracing.records import TraceRecord

WAITING_PER_CANARY = 256
"""Requests of one canary that wait to see whether it will be taken back."""
MOST_CANARIES = 64
MOST_TEXT_BYTES = 32 * 1024 * 1024
"""Of prompts and answers that wait so, of all canaries together; beyond it a request waits without its text."""
REFUSALS_PER_S = 5.0
"""Of each reason that is told of; some 25 reasons make at most 125 a second, whoever asks how often."""


class Reason(enum.StrEnum):
    """Why a trace is kept."""

    HEAD = "head"
    CANARY = "canary"
    ERROR = "error"
    REFUSED = "refused"
    TAKEN_BACK = "taken-back"


_HEAD: Final = Reason.HEAD
_ERROR: Final = Reason.ERROR
_TAKEN_BACK: Final = Reason.TAKEN_BACK


class Allowance:
    """So many a second, and at most a second's worth at once.

    >>> allowance = Allowance(2.0)
    >>> [allowance.take(at) for at in (0.0, 0.1, 0.2, 0.6, 0.7)]
    [True, True, False, True, False]
    """

    __slots__ = ("_left", "_most", "_per_s", "_seen_at")

    def __init__(self, per_s: float) -> None:
        self._per_s = per_s
        self._most = max(1.0, per_s) if per_s > 0 else 0.0
        self._left = self._most
        self._seen_at = 0.0

    def take(self, now: float) -> bool:
        """Whether one more is allowed at this monotonic time; if so, it counts."""
        if now > self._seen_at:  # who waited in a queue comes with an earlier time: no second is counted twice
            self._left = min(self._most, self._left + (now - self._seen_at) * self._per_s)
            self._seen_at = now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


class RefusalSampler:
    """Decides which refused requests are told of: `REFUSALS_PER_S` of each reason, which are a closed set."""

    def __init__(self, per_s: float = REFUSALS_PER_S) -> None:
        self._per_s = per_s
        self._allowances: dict[str, Allowance] = {}
        self.unkept = 0
        """Those that were not."""

    def take(self, reason: str, now: float) -> bool:
        """Whether one that was refused for this reason, at this monotonic time, is told of."""
        allowance = self._allowances.get(reason)
        if allowance is None:
            allowance = self._allowances[reason] = Allowance(self._per_s)
        if allowance.take(now):
            return True
        self.unkept += 1
        return False


class TailSampler:
    """Decides on finished requests. Single-threaded."""

    def __init__(self, waiting_per_canary: int = WAITING_PER_CANARY) -> None:
        self._waiting_per_canary = waiting_per_canary
        self._waiting: dict[str, deque[TraceRecord]] = {}
        self._text_bytes = 0
        self._canaries: set[str] = set()
        self._taken_back: set[str] = set()

    def why(self, digest: str, *, head: bool, failed: bool) -> Reason | None:
        """Why a finished request is kept, None when it is not (yet).

        Args:
            digest: the revision that was picked.
            head: whether it was sampled at its start.
            failed: whether it ended badly, for its client or for its version.
        """
        if head:
            return _HEAD
        if failed:
            return _ERROR
        return _TAKEN_BACK if digest in self._taken_back else None

    def may_be_wanted(self, digest: str) -> bool:
        """Whether a request that is not kept may be kept yet: then `wait` takes it."""
        return digest in self._canaries

    def wait(self, digest: str, record: TraceRecord) -> None:
        """Keep one in mind; the oldest is forgotten."""
        waiting = self._waiting.get(digest)
        if waiting is None:
            waiting = self._waiting[digest] = deque()
        if len(waiting) >= self._waiting_per_canary:
            self._text_bytes -= _text_bytes(waiting.popleft())
        if self._text_bytes + _text_bytes(record) > MOST_TEXT_BYTES:
            record.content = None
        self._text_bytes += _text_bytes(record)
        waiting.append(record)

    def follow(self, stables: Iterable[str], canaries: Iterable[str]) -> list[TraceRecord]:
        """Follow a traffic table; the waiting requests of canaries that were taken back.

        A canary that has no weight any more and did not become stable was taken back (or its rollout given up).

        Args:
            stables: digests of stable revisions.
            canaries: digests of canaries that get traffic.
        """
        now, stable = set(canaries), set(stables)
        gone = self._canaries - now - stable
        found: list[TraceRecord] = []
        for digest in sorted(d for d in self._waiting if d in gone or d not in now):
            waiting = self._waiting.pop(digest)
            self._text_bytes -= sum([_text_bytes(record) for record in waiting])
            if digest in gone:  # else promoted
                found += waiting
        for record in found:
            record.because = Reason.TAKEN_BACK
        self._taken_back = ({*self._taken_back, *gone} - now) - stable
        while len(self._taken_back) > MOST_CANARIES:
            self._taken_back.pop()
        self._canaries = now
        return found


def _text_bytes(record: TraceRecord) -> int:
    return 0 if record.content is None else record.content.size_bytes
