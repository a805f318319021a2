"""Signed request ids: short, opaque, and enough to credit feedback without a store.

`req_` + base64url of: 9 random bytes, the masked payload, 6 bytes of signature. The payload is
`kind fence.sequence model@version`, masked with a keystream from the gateways' secret and the random bytes, since a
client that could read its arm could aim at one. Kind: `s` stable, `c` canary (by chance both), `f` forced, `r`
answered by stable in the canary's place; only the first two are evidence.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from serving.traffic import Generation

_RANDOM = 9
_SIGNATURE = 6
_PREFIX = "req_"


@dataclass(frozen=True, slots=True)
class RequestFacts:
    """What a request id says."""

    kind: str
    generation: Generation
    model: str
    version: str


def _mask(secret: bytes, nonce: bytes, payload: bytes) -> bytes:
    stream = hashlib.shake_128(secret + b"mask" + nonce).digest(len(payload))
    return bytes(a ^ b for a, b in zip(payload, stream, strict=True))


def _sign(secret: bytes, signed: bytes) -> bytes:
    return hashlib.blake2b(signed, key=secret[:64], digest_size=_SIGNATURE, person=b"tg-request").digest()


def issue(secret: bytes, nonce: bytes, facts: RequestFacts) -> str:
    """Make the id of one request from 9 random bytes."""
    generation = facts.generation
    payload = f"{facts.kind}{generation.fence}.{generation.sequence} {facts.model}@{facts.version}".encode()
    signed = nonce + _mask(secret, nonce, payload)
    return _PREFIX + base64.urlsafe_b64encode(signed + _sign(secret, signed)).decode().rstrip("=")


def read(secret: bytes, request_id: str) -> RequestFacts | None:
    """What an id says, or None when no gateway with this secret issued it."""
    if not request_id.startswith(_PREFIX):
        return None
    text = request_id[len(_PREFIX) :]
    try:
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError:
        return None
    signed, signature = raw[:-_SIGNATURE], raw[-_SIGNATURE:]
    if len(signed) <= _RANDOM or not hmac.compare_digest(_sign(secret, signed), signature):
        return None
    payload = _mask(secret, signed[:_RANDOM], signed[_RANDOM:]).decode()
    order, _, name = payload[1:].partition(" ")
    fence, _, sequence = order.partition(".")
    model, _, version = name.partition("@")
    return RequestFacts(payload[0], Generation(int(fence), int(sequence)), model, version)


def fresh_nonce() -> bytes:
    """9 random bytes."""
    return os.urandom(_RANDOM)


def load_secret(path: Path) -> bytes:
    """Read the secret that all gateways of a home share, or create it (mode 0600).

    Raises:
        OSError: it can neither be read nor created.
    """
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
