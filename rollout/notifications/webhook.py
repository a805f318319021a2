"""Notifications as signed HTTP requests, in the form of Standard Webhooks (standardwebhooks.com).

A receiver checks `webhook-signature` over `id.timestamp.body` with the shared secret, refuses old timestamps, and
drops ids that it has seen. Redirects are not followed: where a request with our signature goes is decided by the
configuration alone, not by whoever answers there.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import hashlib
import hmac
import json
from collections.abc import Callable, Collection

import httpx

from rollout.notifications.base import Happening, NotDelivered, Notification

SECRET_PREFIX = "whsec_"  # noqa: S105 - the prefix of secrets, not one
MIN_SECRET_BYTES = 24
MAX_SECRET_BYTES = 64
TIMEOUT_S = 15.0
"""For the whole exchange: a receiver should note what it was told and answer, and do its work later."""
CONNECT_TIMEOUT_S = 5.0
GONE = 410


def parse_secret(text: str) -> bytes:
    """Read a secret: `whsec_` and base64 of 24 to 64 bytes.

    Raises:
        ValueError: it has another form; the message does not show it.

    """
    body = text.strip().removeprefix(SECRET_PREFIX)
    try:
        secret = base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        secret = b""
    if not MIN_SECRET_BYTES <= len(secret) <= MAX_SECRET_BYTES:
        raise ValueError(
            f"a webhook's secret must be {SECRET_PREFIX} and base64 of {MIN_SECRET_BYTES} to {MAX_SECRET_BYTES} bytes "
            f"(found {len(secret)}); `echo {SECRET_PREFIX}$(openssl rand -base64 32)` makes one"
        )
    return secret


def sign(secret: bytes, message_id: str, timestamp_s: int, body: bytes) -> str:
    """The header `webhook-signature`: version 1, HMAC-SHA256 over `id.timestamp.body`, base64."""
    signed = f"{message_id}.{timestamp_s}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).decode()


def write_body(notification: Notification) -> bytes:
    """The request's body. The same notification gives the same bytes."""
    at = dt.datetime.fromtimestamp(notification.at, dt.UTC).isoformat()
    document = {"type": notification.type.value, "timestamp": at, "data": notification.data}
    return json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


class WebhookNotifier:
    """One receiver behind a URL.

    Args:
        name: what it is called in logs.
        url: where requests go; http or https.
        secret: shared with the receiver, see `parse_secret`.
        wanted: what it wants to be told of.
        clock: seconds since the epoch, for the signature's timestamp.
        transport: for tests; None means the network.

    """

    def __init__(
        self,
        *,
        name: str,
        url: str,
        secret: bytes,
        wanted: Collection[Happening] = tuple(Happening),
        clock: Callable[[], float],
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.name = name
        self.wanted = frozenset(wanted)
        self._url = url
        self._secret = secret
        self._clock = clock
        self._http = httpx.AsyncClient(
            timeout=httpx.Timeout(TIMEOUT_S, connect=CONNECT_TIMEOUT_S), follow_redirects=False, transport=transport
        )

    async def deliver(self, notification: Notification) -> None:
        """See `Notifier.deliver`. Every answer but 2xx is a failure; 410 says that trying again won't help."""
        body = write_body(notification)
        timestamp_s = int(self._clock())
        headers = {
            "content-type": "application/json",
            "user-agent": "tidegate",
            "webhook-id": notification.id,
            "webhook-timestamp": str(timestamp_s),
            "webhook-signature": sign(self._secret, notification.id, timestamp_s, body),
        }
        try:
            # Streamed, so that an answer of any size is dropped unread.
            async with self._http.stream("POST", self._url, content=body, headers=headers) as answer:
                status = answer.status_code
        except httpx.HTTPError as error:
            raise NotDelivered(f"webhook {self.name}: {type(error).__name__}") from error
        if not 200 <= status < 300:
            told = "redirects are not followed; configure the final URL" if 300 <= status < 400 else "not accepted"
            raise NotDelivered(f"webhook {self.name} answered {status}: {told}", retryable=status != GONE)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()
