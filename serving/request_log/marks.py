"""Under which name a user or a session stands in what is kept: a keyed hash, so that one can be erased. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

USER_FIELDS = ("user", "safety_identifier")
"""Fields of a body that name who is behind a request; the first that does."""


def mark_of(secret: bytes, name: str) -> str:
    """The mark of a user or a session.

    Args:
        secret: the gateways' own.
        name: as requests give it.
    """
    data = name.encode("utf-8", "replace")
    return hashlib.blake2b(data, key=secret[:64], digest_size=16, person=b"tg-log").hexdigest()


def user_of(fields: Mapping[str, Any]) -> str | None:
    """The user that a request's body names."""
    for name in USER_FIELDS:
        value = fields.get(name)
        if isinstance(value, str) and value:
            return value
    return None
