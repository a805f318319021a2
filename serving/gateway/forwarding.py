"""Which headers travel: from the client to the engine, and back. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final

Header = tuple[bytes, bytes]

_HOP_BY_HOP: Final = frozenset(
    (b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te",
     b"trailer", b"transfer-encoding", b"upgrade")
)  # fmt: skip

# The gateway writes its own framing and id; the client's key is not the engine's business; a compressed answer could
# not be judged.
_NOT_TO_ENGINE: Final = _HOP_BY_HOP | {
    b"host", b"content-length", b"expect", b"accept-encoding", b"authorization", b"api-key", b"x-api-key", b"cookie",
    b"x-request-id", b"x-request-timeout", b"x-client-request-id", b"x-tidegate-mirror",
}  # fmt: skip

# Where an engine sends somebody else to is an address inside, which clients can neither reach nor should know.
_NOT_TO_CLIENT: Final = _HOP_BY_HOP | {
    b"content-length", b"content-location", b"date", b"location", b"server", b"x-request-id", b"x-client-request-id",
    b"x-tidegate-version", b"x-tidegate-role",
}  # fmt: skip

_NOT_TO_ENGINE_TRACED: Final = _NOT_TO_ENGINE | {b"traceparent"}
_NONE: Final[frozenset[bytes]] = frozenset()

MAX_CLIENT_ID_BYTES: Final = 128


def _listed(headers: Iterable[Header]) -> frozenset[bytes]:
    """Header names that `Connection` names: they are hop-by-hop too. Nearly always none, which is seen at once."""
    for key, value in headers:
        if key == b"connection" and value.lower() not in (b"keep-alive", b"close"):
            return frozenset(token.strip().lower() for token in value.split(b","))
    return _NONE


def client_id(fields: Mapping[bytes, bytes]) -> bytes | None:
    """The client's own request id: `x-client-request-id`, else `x-request-id`, when it is printable and short."""
    value = fields.get(b"x-client-request-id") or fields.get(b"x-request-id")
    if not value or len(value) > MAX_CLIENT_ID_BYTES or not value.isascii() or not value.decode().isprintable():
        return None
    return value


def passed_on(headers: Iterable[Header], *, traced: bool = False) -> bytes:
    """The lines of a client's head that go on to an engine, each with its CR LF; names in lower case.

    With `traced` the client's `traceparent` is left out: the gateway writes its own.
    """
    drop = _NOT_TO_ENGINE_TRACED if traced else _NOT_TO_ENGINE
    listed = _listed(headers)
    if listed:
        drop = drop | listed
    lines: list[bytes] = []
    for key, value in headers:
        if key not in drop and b"\n" not in value and b"\r" not in value:
            lines += (key, b": ", value, b"\r\n")
    return b"".join(lines)


def engine_head(target: bytes, host: bytes, lines: bytes, body_bytes: int, request_id: bytes) -> bytes:
    """The head of the request to the engine.

    Args:
        target: Path and query.
        host: `host:port` of the engine.
        lines: Further ones, each with its CR LF: `passed_on`, and the client's own id.
        body_bytes: Length of the body.
        request_id: Passed on as `x-request-id`.
    """
    return b"POST %b HTTP/1.1\r\nhost: %b\r\ncontent-length: %d\r\nx-request-id: %b\r\n%b\r\n" % (
        target, host, body_bytes, request_id, lines)  # fmt: skip


def client_headers(headers: Iterable[Header], own: Iterable[Header]) -> list[Header]:
    """The headers of the answer to the client: the engine's without those of one hop, then the gateway's own."""
    drop = _NOT_TO_CLIENT
    listed = _listed(headers)
    if listed:
        drop = drop | listed
    return [h for h in headers if h[0] not in drop] + list(own)


def client_lines(headers: Iterable[Header]) -> bytes:
    """What of an engine's headers goes on to the client, as it is written there.

    Raises:
        ValueError: one holds a line break.
    """
    kept = client_headers(headers, ())
    lines = b"".join([b"%b: %b\r\n" % header for header in kept])
    if lines.count(b"\n") != len(kept):
        raise ValueError("a header of the answer holds a line break")
    return lines


def read_lines(lines: bytes) -> list[Header]:
    """Headers that are written out, each with its CR LF, one by one.

    >>> read_lines(b"a: 1" + bytes([13, 10]))
    [(b'a', b'1')]
    """
    found = [line.partition(b": ") for line in lines.split(b"\r\n")]
    return [(name, value) for name, _, value in found if name]


@lru_cache(maxsize=1024)
def version_lines(version: str, role: str) -> bytes:
    """The headers that say which version answered, written out.

    Raises:
        ValueError: the version holds a line break.
    """
    if "\n" in version or "\r" in version:
        raise ValueError("a version holds a line break, so it can't be told in a header")
    return f"x-tidegate-version: {version}\r\nx-tidegate-role: {role}\r\n".encode()
