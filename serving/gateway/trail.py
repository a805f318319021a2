"""What is kept of one request's way, for its trace and the request log. Made only where one of the two is on.

References and times, nothing is computed: what comes of it is decided when the answer is over (`observing`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from random import getrandbits
from typing import Any

from monitoring.tracing.context import in_sample, read_traceparent, traceparent

TRACEPARENT = b"traceparent"


@dataclass(slots=True)
class Try:
    """One attempt. Times are monotonic seconds, 0.0 when it did not come so far."""

    span_id: int
    host: str = ""
    port: int = 0
    version: str = ""
    started: float = 0.0
    ended: float = 0.0
    failure: str = ""


@dataclass(slots=True)
class Trail:
    """One request's."""

    arrived: float
    """Monotonic seconds."""
    nonce: bytes
    key: str
    session: str | None
    fields: Mapping[str, Any]
    """The body, parsed."""
    body: bytes
    trace_id: int
    span_id: int
    parent_id: int
    sampled: bool
    """At the head."""
    traced: bool
    """Whether the engine is told of the trace."""
    request_id: bytes = b""
    """As the client was told it; empty when it was told none."""
    tries: dict[str, Try] = field(default_factory=dict)
    """By the endpoint's URL, in their order."""

    def lines(self, url: str) -> bytes:
        """The header for the engine at a URL: its spans become children of this attempt's."""
        if not self.traced:
            return b""
        value = traceparent(self.trace_id, self._try(url).span_id, sampled=self.sampled)
        return b"traceparent: " + value + b"\r\n"

    def dispatched(self, url: str, host: str, port: int, version: str, now: float) -> None:
        """An attempt begins."""
        attempt = self._try(url)
        attempt.host, attempt.port, attempt.version, attempt.started = host, port, version, now

    def failed(self, url: str, failure: str, now: float) -> None:
        """It gave no answer."""
        attempt = self._try(url)
        attempt.failure, attempt.ended = failure, now

    def _try(self, url: str) -> Try:
        found = self.tries.get(url)
        if found is None:
            found = self.tries[url] = Try(getrandbits(64) or 1)
        return found


def begin(
    arrived: float,
    nonce: bytes,
    key: str,
    session: str | None,
    fields: Mapping[str, Any],
    body: bytes,
    headers: Mapping[bytes, bytes],
    *,
    traced: bool,
    ratio: float,
) -> Trail:
    """The trail of a request whose turn has come.

    Args:
        arrived: monotonic seconds.
        nonce: what its id is made of.
        key: the id of the key that asks.
        session: the session that it names.
        fields: its body, parsed.
        body: the same as it came.
        headers: by name in lower case.
        traced: whether traces are on.
        ratio: the part of traces without a parent that is sampled at the head.
    """
    given = headers.get(TRACEPARENT) if traced else None
    parent = read_traceparent(given) if given is not None else None
    if parent is not None:
        trace_id, parent_id, sampled = parent
    else:
        trace_id, parent_id = getrandbits(128) or 1, 0
        sampled = traced and in_sample(trace_id, ratio)
    return Trail(arrived, nonce, key, session, fields, body, trace_id, getrandbits(64) or 1, parent_id, sampled, traced)
