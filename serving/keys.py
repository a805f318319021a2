"""API keys: what a key may do, how it is written, and how a presented one is checked. Pure.

A key is written `tg-<id>-<secret>`. The id (12 characters) is public: it names the key in logs, usage and limits. The
secret has 256 bits of chance, so a plain sha256 of it is as safe at rest as it is quick to check: there is no
dictionary to try. Only the hash is stored, pushed to gateways and kept on their disks; the comparison takes the same
time wherever it fails, and an unknown id costs the same as a wrong secret.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
from typing import Annotated

from pydantic import Field, StringConstraints

from serving.specs import Digest, Frozen

PREFIX = "tg"
ID_CHARS = 12
EVERYWHERE = "*"
"""The namespace of a key that is good in all of them."""
_NOBODY = "0" * 64


class Scope(enum.StrEnum):
    """What a key may do at a gateway."""

    INFERENCE = "inference"
    """Ask models, and rate their answers."""
    PIN_VERSION = "pin-version"
    """Name a version: `model: "chat@1.3.0"`."""
    SEE_VERSION = "see-version"
    """Learn which version and role answered."""


class ControlRole(enum.StrEnum):
    """What a key may do at the control plane. Each role includes the ones before it, but for `data-reader`."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"
    DATA_READER = "data-reader"
    """Read logged prompts and answers; nothing else."""
    GATEWAY = "gateway"
    """Dial the controller as a gateway; nothing else."""


class Priority(enum.StrEnum):
    """Who waits for whom when there is a queue."""

    INTERACTIVE = "interactive"
    STANDARD = "standard"
    BATCH = "batch"


KeyId = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]{12}$")]


class KeyRecord(Frozen):
    """One key without its secret. Times are in seconds since the epoch; None means no limit."""

    id: KeyId
    secret_sha256: Digest
    name: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    """For people: who holds it."""
    namespace: Annotated[str, StringConstraints(max_length=63)] = "default"
    """On a cluster: whose models it may ask and command; `*` means all. The local platform's models have none."""
    scopes: frozenset[Scope] = frozenset({Scope.INFERENCE})
    models: tuple[str, ...] = ()
    """Registered models that it may ask; empty means all."""
    roles: frozenset[ControlRole] = frozenset()
    priority: Priority = Priority.STANDARD
    requests_per_minute: Annotated[int, Field(ge=1)] | None = None
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = None
    concurrency: Annotated[int, Field(ge=1)] | None = None
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None

    def valid(self, now: float) -> bool:
        """Whether it is neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)

    @property
    def homes(self) -> frozenset[str] | None:
        """The namespaces of the models that it may ask, None for all. "" is that of every model outside a cluster."""
        return None if self.namespace == EVERYWHERE else frozenset({"", self.namespace})


class Quota(Frozen):
    """What all keys of one namespace may use together, beside each one's own limits; None means no limit."""

    namespace: Annotated[str, StringConstraints(min_length=1, max_length=63)]
    """The keys': whose models they ask does not matter. `*` is that of the keys which are good in all."""
    requests_per_minute: Annotated[int, Field(ge=1)] | None = None
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = None
    concurrency: Annotated[int, Field(ge=1)] | None = None
    set_at: float
    """Seconds since the epoch."""


def write_key(key_id: str, secret: str) -> str:
    """The key as its holder gets it, once."""
    return f"{PREFIX}-{key_id}-{secret}"


def hash_secret(secret: str) -> str:
    """What is stored of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def split_key(text: str) -> tuple[str, str] | None:
    """A presented key as (id, secret), or None when it has not the form of one."""
    prefix, _, rest = text.partition("-")
    key_id, _, secret = rest.partition("-")
    if prefix != PREFIX or len(key_id) != ID_CHARS or not secret or len(secret) > 128:
        return None
    return key_id, secret


def matches(record: KeyRecord | None, secret: str) -> bool:
    """Whether a secret is this key's, in time that tells nothing; False for None, in the same time."""
    expected = _NOBODY if record is None else record.secret_sha256
    return hmac.compare_digest(hash_secret(secret), expected) and record is not None
