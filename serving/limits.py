"""Limits that protect the engines: deadlines, the budget of retries, and prompts that kill. Pure."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from serving.admission import Reason, Rejection

MAX_BODY_BYTES: Final = 8 * 1024 * 1024
"""The longest request body: a 128k-token prompt with images stays well below."""

RETRY_SHARE: Final = 0.10
"""Retries on stable may be this share of stable's in-flight: a dead canary must not double stable's load."""

RETRY_FLOOR: Final = 3
"""Retries that are allowed in any case, so that a quiet stable still rescues."""

DEATHS_UNTIL_REFUSED: Final = 2
"""A prompt that was under way in this many deaths of engines is refused."""


def retry_allowed(stable_in_flight: int, retries_in_flight: int) -> bool:
    """Whether one more retry on stable fits the budget.

    >>> retry_allowed(stable_in_flight=0, retries_in_flight=2), retry_allowed(0, 3), retry_allowed(100, 9)
    (True, False, True)
    """
    return retries_in_flight < max(RETRY_FLOOR, RETRY_SHARE * stable_in_flight)


def timeout_of(header: bytes | None, limit_s: float) -> float | Rejection:
    """The seconds a request may take: the platform's limit, or `x-request-timeout` when that is smaller."""
    if header is None:
        return limit_s
    try:
        wanted = float(header)
    except ValueError:
        wanted = math.nan
    if not wanted > 0:
        return Rejection(
            Reason.INVALID_REQUEST,
            f"x-request-timeout is not a number of seconds above 0; send for instance 30, at most {limit_s:g}.",
            param="x-request-timeout",
        )
    return min(wanted, limit_s)


def too_large(limit_bytes: int, actual_bytes: int | None = None) -> Rejection:
    """The rejection of a body above the limit."""
    given = f"{actual_bytes} bytes" if actual_bytes is not None else "longer"
    return Rejection(
        Reason.BODY_TOO_LARGE, f"The request body is {given}; the limit is {limit_bytes} bytes. Send a shorter one."
    )


@dataclass(slots=True)
class _Deaths:
    count: int
    last_incident: str
    last_at: float


class PromptDeaths:
    """Remembers prompts (hashes of bodies) that were under way when an engine died. Bounded in number and age.

    One death of an engine counts once for a prompt, however many copies of it were under way: deaths of the same
    endpoint within `incident_s` are one incident.
    """

    def __init__(self, capacity: int = 4096, ttl_s: float = 600.0, incident_s: float = 1.0) -> None:
        self._capacity = capacity
        self._ttl_s = ttl_s
        self._incident_s = incident_s
        self._seen: OrderedDict[bytes, _Deaths] = OrderedDict()

    def __len__(self) -> int:
        return len(self._seen)

    def record(self, prompt: bytes, endpoint: str, now: float) -> None:
        """Note that `endpoint` died while it answered this prompt; `now` in monotonic seconds."""
        entry = self._seen.get(prompt)
        if entry is None or now - entry.last_at > self._ttl_s:
            entry = self._seen[prompt] = _Deaths(1, endpoint, now)
        elif entry.last_incident != endpoint or now - entry.last_at > self._incident_s:
            entry.count += 1
            entry.last_incident, entry.last_at = endpoint, now
        self._seen.move_to_end(prompt)
        while len(self._seen) > self._capacity:
            self._seen.popitem(last=False)

    def refused(self, prompt: bytes, now: float) -> bool:
        """Whether this prompt was seen in too many deaths lately."""
        entry = self._seen.get(prompt)
        return entry is not None and entry.count >= DEATHS_UNTIL_REFUSED and now - entry.last_at <= self._ttl_s


def prompt_refused() -> Rejection:
    """The rejection of a prompt that was under way in several deaths of engines."""
    return Rejection(
        Reason.PROMPT_REFUSED,
        f"Engines died {DEATHS_UNTIL_REFUSED} times while they answered this request; the limit is "
        f"{DEATHS_UNTIL_REFUSED}. Change the request, or try again in 10 minutes.",
    )
