"""What is kept of one request's way, for its trace and the request log. Made only where one of the two is on.

References and times, nothing is computed: what comes of it is decided when the answer is over (`observing`).
"""

from __future__ import annotations

from collections.abc import Mapping
from random import getrandbits
from typing import Any, Final

from monitoring.tracing.context import in_sample, read_traceparent, traceparent
from monitoring.tracing.sampling import Allowance

TRACEPARENT: Final = b"traceparent"


class Try:
    """One attempt. Times are monotonic seconds, 0.0 when it did not come so far."""

    __slots__ = ("ended", "failure", "host", "port", "span_id", "started", "url", "version")

    def __init__(self, url: str) -> None:
        self.url = url
        self.span_id = getrandbits(64) or 1
        self.host = ""
        self.port = 0
        self.version = ""
        self.started = 0.0
        self.ended = 0.0
        self.failure = ""


class Trail:
    """One request's."""

    __slots__ = ("arrived", "body", "by_canary", "fields", "key", "nonce", "parent_id", "request_id", "sampled",
                 "session", "span_id", "told", "trace_id", "traced", "tries")  # fmt: skip

    def __init__(
        self,
        arrived: float,
        nonce: bytes,
        key: str,
        session: str | None,
        fields: Mapping[str, Any],
        body: bytes,
        *,
        traced: bool,
    ) -> None:
        """See `begin`; not sampled yet."""
        self.arrived = arrived
        """Monotonic seconds."""
        self.nonce = nonce
        self.key = key
        self.session = session
        self.fields = fields
        """The body, parsed."""
        self.body = body
        self.traced = traced
        """Whether the engine is told of the trace."""
        self.trace_id = 0
        self.span_id = 0
        self.parent_id = 0
        self.sampled = False
        """At the head."""
        self.by_canary = False
        """Sampled because it went to a canary."""
        self.told = False
        """Whether the engine is told that it is sampled."""
        self.request_id = b""
        """As the client was told it; empty when it was told none."""
        self.tries: list[Try] = []
        """In their order; one for each endpoint."""

    def lines(self, url: str) -> bytes:
        """The header for the engine at a URL: its spans become children of this attempt's."""
        if not self.traced:
            return b""
        return b"traceparent: %b\r\n" % traceparent(self.trace_id, self._try(url).span_id, sampled=self.told)

    def dispatched(self, url: str, host: str, port: int, version: str, now: float) -> None:
        """An attempt begins."""
        attempt = self._try(url)
        attempt.host, attempt.port, attempt.version, attempt.started = host, port, version, now

    def failed(self, url: str, failure: str, now: float) -> None:
        """It gave no answer."""
        attempt = self._try(url)
        attempt.failure, attempt.ended = failure, now

    def _try(self, url: str) -> Try:
        for known in self.tries:
            if known.url == url:
                return known
        made = Try(url)
        self.tries.append(made)
        return made


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
    canaries: Allowance | None = None,
    tell_engine: bool = False,
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
        canaries: where the request goes to a canary, how many of those are sampled beyond the ratio.
        tell_engine: whether the engine is told that the trace is sampled though it is not yet.
    """
    trail = Trail(arrived, nonce, key, session, fields, body, traced=traced)
    if not traced:
        return trail
    trail.span_id = getrandbits(64) or 1
    given = headers.get(TRACEPARENT)
    parent = read_traceparent(given) if given is not None else None
    if parent is not None:
        trail.trace_id, trail.parent_id, trail.sampled = parent
    else:
        trail.trace_id = getrandbits(128) or 1
        trail.sampled = in_sample(trail.trace_id, ratio)
        if canaries is not None and not trail.sampled:
            trail.sampled = trail.by_canary = canaries.take(arrived)
    trail.told = trail.sampled or tell_engine
    return trail
