"""Which traces are kept. Pure.

At the head: what a client's `traceparent` has sampled, else a ratio of traces by their id. At the tail, when a request
is over: whatever failed, and every request of a version that is being taken back. For the second the last requests of
each canary wait in a short list; when its version is taken back they are kept after all. What the engine itself
would have to say about them is lost, since it was told at the start that the trace was not sampled.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterable

from monitoring.tracing.records import TraceRecord

WAITING_PER_CANARY = 256
"""Requests of one canary that wait to see whether it will be taken back."""
MOST_CANARIES = 64


class Reason(enum.StrEnum):
    """Why a trace is kept."""

    HEAD = "head"
    ERROR = "error"
    TAKEN_BACK = "taken-back"


class TailSampler:
    """Decides on finished requests. Single-threaded."""

    def __init__(self, waiting_per_canary: int = WAITING_PER_CANARY) -> None:
        self._waiting_per_canary = waiting_per_canary
        self._waiting: dict[str, deque[TraceRecord]] = {}
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
            return Reason.HEAD
        if failed:
            return Reason.ERROR
        return Reason.TAKEN_BACK if digest in self._taken_back else None

    def may_be_wanted(self, digest: str) -> bool:
        """Whether a request that is not kept may be kept yet: then `wait` takes it."""
        return digest in self._canaries

    def wait(self, digest: str, record: TraceRecord) -> None:
        """Keep one in mind; the oldest is forgotten."""
        waiting = self._waiting.get(digest)
        if waiting is None:
            waiting = self._waiting[digest] = deque(maxlen=self._waiting_per_canary)
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
        found = [record for digest in sorted(gone) for record in self._waiting.pop(digest, ())]
        for digest in [d for d in self._waiting if d not in now]:
            del self._waiting[digest]  # promoted
        for record in found:
            record.because = Reason.TAKEN_BACK
        self._taken_back = ({*self._taken_back, *gone} - now) - stable
        while len(self._taken_back) > MOST_CANARIES:
            self._taken_back.pop()
        self._canaries = now
        return found
