"""W3C trace context: what a client's `traceparent` says, and what is passed on to the engine. Pure.

A header that is not exactly as the recommendation has it counts as none: then the gateway begins a trace of its own.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_TRACEPARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL).fullmatch


class Parent(NamedTuple):
    """Whose child a request is."""

    trace_id: int
    span_id: int
    sampled: bool


def read_traceparent(value: bytes) -> Parent | None:
    """What a `traceparent` says, None when it is none.

    >>> read_traceparent(b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01").sampled
    True
    >>> read_traceparent(b"00-00000000000000000000000000000000-b7ad6b7169203331-01") is None
    True
    """
    found = _TRACEPARENT(value.strip())
    if found is None:
        return None
    version, trace, span, flags, more = found.groups()
    if version == b"ff" or (version == b"00" and more):
        return None
    trace_id, span_id = int(trace, 16), int(span, 16)
    if not trace_id or not span_id:
        return None
    return Parent(trace_id, span_id, bool(int(flags, 16) & 1))


def traceparent(trace_id: int, span_id: int, *, sampled: bool) -> bytes:
    """The header's value.

    >>> traceparent(1, 2, sampled=False)
    b'00-00000000000000000000000000000001-0000000000000002-00'
    """
    return b"00-%032x-%016x-%02x" % (trace_id, span_id, sampled)


def in_sample(trace_id: int, ratio: float) -> bool:
    """Whether a trace without a parent is in the head sample: by its id, so that everybody says the same.

    The rule of OpenTelemetry's TraceIdRatioBased: the low 64 bits below the ratio.
    """
    return (trace_id & 0xFFFFFFFFFFFFFFFF) < round(ratio * (1 << 64))
