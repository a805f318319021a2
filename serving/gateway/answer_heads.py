"""Read the head of an engine's plain answer: one that came whole in one read, framed by its length alone. Pure.

Nearly every answer that isn't a stream is of this kind. Its head is read here once and remembered, so that the next
one like it costs a look-up of its exact bytes. Whatever else may stand in a head (a coding, a close, a line that is
not as RFC 9112 has it, two lengths, an informational answer) is no plain answer, and is left to the general parser.

A head is remembered only when it holds nothing but headers that are the same for everybody, and is short.
"""

from __future__ import annotations

import re
from typing import Final

from serving.gateway.forwarding import Header, client_headers

REMEMBERED_HEADS: Final = 512
REMEMBERED_BYTES: Final = 512

_STATUS: Final = re.compile(rb"HTTP/1\.1 ([2-5][0-9]{2}) [\t\x20-\x7e\x80-\xff]*").fullmatch
_LINE: Final = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([\t\x20-\x7e\x80-\xff]*)").fullmatch
_LENGTH: Final = re.compile(rb"[0-9]{1,18}").fullmatch

_BODILESS = (204, 304)
_FRAMING: Final = (b"transfer-encoding", b"upgrade", b"trailer")
_IMPERSONAL: Final = frozenset((
    b"content-type", b"content-length", b"date", b"server", b"connection", b"keep-alive", b"vary", b"cache-control",
))  # fmt: skip


class AnswerHead:
    """The head of a plain answer, laid out for passing it on."""

    __slots__ = ("compressed", "event_stream", "headers", "is_json", "length", "lines", "status")

    def __init__(self, status: int, headers: list[Header], length: int) -> None:
        fields = dict(headers)
        kind = fields.get(b"content-type", b"")
        self.status = status
        self.headers = headers
        """In the order they came, names in lower case."""
        self.length = length
        """Of the body, in bytes."""
        self.is_json = b"json" in kind
        self.event_stream = kind.startswith(b"text/event-stream")
        self.compressed = fields.get(b"content-encoding", b"identity") != b"identity"
        self.lines = b"".join(b"%b: %b\r\n" % header for header in client_headers(headers, ()))
        """What of it goes on to the client, as it is written there."""


_heads: Final[dict[bytes, AnswerHead]] = {}


def plain_head(raw: bytes) -> AnswerHead | None:
    """Read the head of an answer.

    Args:
        raw: The bytes before the empty line.

    Returns:
        The head, or None when this is no plain answer: let the general parser read it.
    """
    found = _heads.get(raw)
    if found is not None:
        return found
    if b"ransfer-" in raw:  # a stream: seen at once, since nothing of it would be remembered
        return None
    lines = raw.split(b"\r\n")
    start = _STATUS(lines[0])
    if start is None or int(start[1]) in _BODILESS:
        return None
    headers: list[Header] = []
    length: bytes | None = None
    impersonal = len(raw) <= REMEMBERED_BYTES
    for line in lines[1:]:
        read = _LINE(line)
        if read is None:
            return None
        name, value = read[1].lower(), read[2].rstrip(b" \t")
        if name in _FRAMING or (name == b"connection" and value.lower() != b"keep-alive"):
            return None
        if name == b"content-length":
            if length is not None or _LENGTH(value) is None:
                return None
            length = value
        impersonal = impersonal and name in _IMPERSONAL
        headers.append((name, value))
    if length is None:
        return None
    head = AnswerHead(int(start[1]), headers, int(length))
    if impersonal:
        if len(_heads) >= REMEMBERED_HEADS:
            _heads.clear()
        _heads[raw] = head
    return head
