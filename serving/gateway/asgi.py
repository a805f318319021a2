"""The few ASGI pieces that the gateway needs: types, reading a bounded body, sending a whole reply."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from serving.admission import Reason, Rejection
from serving.gateway.forwarding import Header, header
from serving.limits import too_large
from serving.openai_protocol import Reply

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

BODY_WITHIN_S = 60.0
"""How long a client may take to send its body; a slower one only ties up a connection."""

DISCARD_WITHIN_S = 1.0
DISCARD_TIMES = 4
"""Of a body that is too long, so much is read and thrown away: for so long, so many times the limit."""


async def read_body(headers: list[Header], receive: Receive, limit_bytes: int) -> bytes | Rejection | None:
    """Read a request's body.

    Returns:
        The body; or why it is not read (too long, compressed, too slow); or None when the client went away.
    """
    encoding = header(headers, b"content-encoding")
    if encoding is not None and encoding.lower() != b"identity":
        return Rejection(
            Reason.UNSUPPORTED_ENCODING,
            "The request body is compressed (content-encoding); only identity is accepted. Send it uncompressed.",
        )
    length = header(headers, b"content-length")
    if length is not None and int(length) > limit_bytes:
        if header(headers, b"expect") is None:
            await _discard(receive, limit_bytes)
        return too_large(limit_bytes, int(length))
    message = await receive()
    if message["type"] == "http.disconnect":
        return None
    body: bytes = message.get("body", b"")
    if not message.get("more_body", False):
        return body if len(body) <= limit_bytes else too_large(limit_bytes)
    try:
        async with asyncio.timeout(BODY_WITHIN_S):
            return await _read_rest(body, receive, limit_bytes)
    except TimeoutError:
        return Rejection(
            Reason.INVALID_REQUEST, f"The request body was not complete within {BODY_WITHIN_S:g} s; send it again."
        )


async def _read_rest(first: bytes, receive: Receive, limit_bytes: int) -> bytes | Rejection | None:
    parts, size = [first], len(first)
    while size <= limit_bytes:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        part = message.get("body", b"")
        parts.append(part)
        size += len(part)
        if not message.get("more_body", False):
            return b"".join(parts) if size <= limit_bytes else too_large(limit_bytes)
    await _discard(receive, limit_bytes)
    return too_large(limit_bytes)


async def _discard(receive: Receive, limit_bytes: int) -> None:
    """Read on for a moment: a client that is still sending would see a reset instead of the answer."""
    size = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DISCARD_WITHIN_S):
            while size <= DISCARD_TIMES * limit_bytes:
                message = await receive()
                size += len(message.get("body", b""))
                if not message.get("more_body", False):
                    return


async def send_reply(send: Send, reply: Reply, extra: Iterable[Header] = ()) -> None:
    """Send a whole reply."""
    await send({"type": "http.response.start", "status": reply.status, "headers": [*reply.headers, *extra]})
    await send({"type": "http.response.body", "body": reply.body, "more_body": False})
