"""Signed request ids: short, opaque, and enough to credit feedback without a store.

`req_` + base64url of: 9 random bytes, the masked payload, 6 bytes of signature. The payload is
`kind fence.sequence model@version`, and behind a space a mark of the session where there is one. It is masked with a
keystream from the gateways' secret and the random bytes, since a client that could read its arm could aim at one.
Kind: `s` stable, `c` canary (by chance both), `f` forced, `r` answered by stable in the canary's place; only the first
two are evidence. The signature covers the id of the key that asked too, so that nobody else can use the id.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import os
import secrets
from binascii import b2a_base64
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from serving.traffic import Generation

_RANDOM = 9
_SIGNATURE = 6
_PREFIX = "req_"
_URL_SAFE = bytes.maketrans(b"+/", b"-_")


class RequestFacts(NamedTuple):
    """What a request id says."""

    kind: str
    generation: Generation
    model: str
    version: str
    session: str = ""
    """A mark of the session, the same on every gateway while the rollout lasts; "" for a single request."""


def _mask(secret: bytes, nonce: bytes, payload: bytes) -> bytes:
    size = len(payload)
    stream = hashlib.blake2b(nonce, key=secret[:64], person=b"tg-mask").digest()
    if size > len(stream):
        stream += hashlib.shake_128(secret + b"mask" + nonce).digest(size - len(stream))
    stream = stream[:size]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(stream, "big")).to_bytes(size, "big")


def _sign(secret: bytes, signed: bytes, key: str) -> bytes:
    return hashlib.blake2b(
        signed + key.encode(), key=secret[:64], digest_size=_SIGNATURE, person=b"tg-request"
    ).digest()


def issue(secret: bytes, nonce: bytes, facts: RequestFacts, key: str = "") -> str:
    """Make the id of one request from 9 random bytes, for the key (its id) that asked."""
    return issue_bytes(secret, nonce, *facts, key=key).decode()


def issue_bytes(
    secret: bytes,
    nonce: bytes,
    kind: str,
    generation: Generation,
    model: str,
    version: str,
    session: str = "",
    *,
    key: str = "",
) -> bytes:
    """The same as it is written in a header; what it shall say as in `RequestFacts`."""
    payload = _payload(kind, generation, model, version)
    signed = nonce + _mask(secret, nonce, payload + b" " + session.encode() if session else payload)
    return b"req_" + b2a_base64(signed + _sign(secret, signed, key), newline=False).translate(_URL_SAFE).rstrip(b"=")


@lru_cache(maxsize=1024)
def _payload(kind: str, generation: Generation, model: str, version: str) -> bytes:
    return f"{kind}{generation.fence}.{generation.sequence} {model}@{version}".encode()


def nonce_of(request_id: str) -> bytes:
    """The random bytes of an id that `read` has understood."""
    return base64.urlsafe_b64decode(request_id[len(_PREFIX) : len(_PREFIX) + _RANDOM * 4 // 3])


def read(secret: bytes, request_id: str, key: str = "") -> RequestFacts | None:
    """What an id says, or None when no gateway with this secret issued it to this key."""
    if not request_id.startswith(_PREFIX) or not request_id.isascii():
        return None
    text = request_id[len(_PREFIX) :]
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except ValueError:
        return None
    signed, signature = raw[:-_SIGNATURE], raw[-_SIGNATURE:]
    if len(signed) <= _RANDOM or not hmac.compare_digest(_sign(secret, signed, key), signature):
        return None
    payload = _mask(secret, signed[:_RANDOM], signed[_RANDOM:]).decode()
    order, _, rest = payload[1:].partition(" ")
    name, _, session = rest.partition(" ")
    fence, _, sequence = order.partition(".")
    model, _, version = name.partition("@")
    return RequestFacts(payload[0], Generation(int(fence), int(sequence)), model, version, session)


class _Nonces:
    """Random bytes from the kernel, fetched for some hundred requests at once."""

    __slots__ = ("_at", "_bytes")

    def __init__(self) -> None:
        self._bytes = b""
        self._at = 0

    def next(self) -> bytes:
        at = self._at
        if at >= len(self._bytes):
            self._bytes, at = os.urandom(_RANDOM * 512), 0
        self._at = at + _RANDOM
        return self._bytes[at : at + _RANDOM]


fresh_nonce = _Nonces().next
"""9 random bytes."""


def load_secret(path: Path) -> bytes:
    """Read the secret that all gateways of a home share, or create it (mode 0600). A mounted one is only read.

    Raises:
        OSError: it can neither be read nor created.
    """
    with contextlib.suppress(FileNotFoundError):
        secret = path.read_bytes()
        if len(secret) >= 32:
            return secret
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        secret = path.read_bytes()
        if len(secret) >= 32:
            return secret
        descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC, 0o600)
    secret = secrets.token_bytes(32)
    with os.fdopen(descriptor, "wb") as file:
        file.write(secret)
    return secret
