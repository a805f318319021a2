"""The keys that this gateway accepts: pushed by the controller, kept on disk, checked on every request.

A key that was presented rightly is remembered by a keyed hash of its text, so that from its second request on a check
is one fast hash and one look-up, and no text of a key is ever kept. A push forgets all that, so a revoked key is
refused from the very next request on. The time of both ways tells nothing about how much of a wrong key was right.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from serving.admission import Reason, Rejection
from serving.errors import ServingError
from serving.gateway.durable import replace_file
from serving.gateway.http_parsing import Notes
from serving.gateway.seams import Caller, Header
from serving.keys import KeyRecord, Scope, matches, split_key
from serving.outcomes import KeysPush

_AUTHORIZATION: Final = b"authorization"
_OTHERS: Final = (b"api-key", b"x-api-key")
"""As SDKs for Azure and for Anthropic send it."""

_MOST_KEY_BYTES: Final = 256
_versions: Final = itertools.count()


class KeysUnreadable(ServingError):
    """The file with the keys of the last run can't be read as such."""


class Holder:
    """One key and the caller that it makes."""

    __slots__ = ("caller", "expires_at", "may_infer", "record")

    def __init__(self, record: KeyRecord, caller: Caller, may_infer: bool) -> None:
        self.record = record
        self.caller = caller
        self.may_infer = may_infer
        self.expires_at = record.expires_at


class Keyring:
    """All keys of one gateway. Times are wall-clock seconds: keys expire by the calendar."""

    def __init__(self, hash_key: bytes, *, max_age_s: float | None = None) -> None:
        """Make an empty ring, which rejects everybody.

        Args:
            hash_key: 16 to 64 random bytes of this process.
            max_age_s: How long keys hold without a word from the controller; None: for ever.
        """
        self._hash_key = hash_key
        self._max_age_s = max_age_s
        self._version = next(_versions)
        """Another one whenever the keys are others, and in every ring: heads are remembered for the whole process."""
        self._holders: dict[str, Holder] = {}
        self._verified: dict[bytes, Holder] = {}
        self._confirmed_at: float | None = None

    def replace(self, keys: Iterable[KeyRecord], confirmed_at: float) -> frozenset[str]:
        """Accept these keys and no others from now on.

        Args:
            keys: All of them; revoked ones may be among them or missing.
            confirmed_at: When the controller said so.

        Returns:
            The ids of keys that held before and are gone or revoked now.
        """
        before = self._holders
        live = (r for r in keys if r.revoked_at is None)
        self._holders = {r.id: Holder(r, self._caller(r), Scope.INFERENCE in r.scopes) for r in live}
        self._verified.clear()
        self._version = next(_versions)
        self._confirmed_at = confirmed_at
        return frozenset(before.keys() - self._holders.keys())

    def confirm(self, now: float) -> None:
        """The controller is there and has pushed nothing newer."""
        if self._confirmed_at is not None:
            self._confirmed_at = max(self._confirmed_at, now)

    def usable(self, now: float) -> bool:
        """Whether keys were ever pushed, and not too long ago."""
        return self._confirmed_at is not None and (
            self._max_age_s is None or now - self._confirmed_at <= self._max_age_s
        )

    def holder(self, key_id: str) -> Holder | None:
        """The key of this id, if it is accepted (it may have expired)."""
        return self._holders.get(key_id)

    def holders(self) -> Iterable[Holder]:
        """All of them."""
        return self._holders.values()

    def __len__(self) -> int:
        return len(self._holders)

    def recall(self, notes: Notes, now: float) -> Caller | None:
        """The caller whom `authenticate` found for an equal head, if it would find them again."""
        if notes.caller_as_of != self._version or not self.usable(now):
            return None
        holder: Holder = notes.caller
        expires_at = holder.expires_at
        return holder.caller if expires_at is None or now < expires_at else None

    def authenticate(self, headers: Iterable[Header], now: float, notes: Notes | None = None) -> Caller | Rejection:
        """The caller that a request's headers name, or why there is none.

        Args:
            headers: The request's, names in lower case.
            now: Wall-clock seconds.
            notes: Where the caller is noted for `recall`.
        """
        if not self.usable(now):
            return _unusable(self._confirmed_at)
        presented = presented_key(headers)
        if presented is None:
            return _missing()
        mark = hashlib.blake2b(presented, key=self._hash_key, digest_size=16).digest()
        holder = self._verified.get(mark)
        if holder is None:
            holder = self._verify(presented)
            if holder is None:
                return _wrong(presented)
            self._verified[mark] = holder  # one text per key can get here, so this is no larger than the ring
        record = holder.record
        if record.expires_at is not None and not record.valid(now):  # revoked ones are not in the ring
            return _expired(record)
        if not holder.may_infer:
            return missing_scope(record.id, Scope.INFERENCE)
        if notes is not None:
            notes.caller, notes.caller_as_of = holder, self._version
        return holder.caller

    def _verify(self, presented: bytes) -> Holder | None:
        try:
            parts = split_key(presented.decode("ascii"))
        except UnicodeDecodeError:
            return None
        if parts is None:
            return None
        key_id, secret = parts
        holder = self._holders.get(key_id)
        return holder if matches(holder.record if holder is not None else None, secret) else None

    def _caller(self, record: KeyRecord) -> Caller:
        return Caller(
            key_id=record.id,
            name=record.name,
            namespace=record.namespace,
            scopes=record.scopes,
            may_see_version=Scope.SEE_VERSION in record.scopes,
            may_pin=Scope.PIN_VERSION in record.scopes,
            priority=record.priority,
            homes=record.homes,
            models=record.models,
        )


def presented_key(headers: Iterable[Header]) -> bytes | None:
    """The key that a request presents: `Authorization: Bearer`, else `api-key`, else `x-api-key`.

    >>> presented_key([(b"x-api-key", b"b"), (b"authorization", b"bearer  a ")])
    b'a'
    """
    other = None
    for name, value in headers:
        if name == _AUTHORIZATION:
            scheme, _, rest = value.partition(b" ")
            if scheme.lower() == b"bearer" and (key := rest.strip()):
                return key[:_MOST_KEY_BYTES]
        elif name in _OTHERS and other is None:
            other = value.strip()[:_MOST_KEY_BYTES] or None
    return other


def _missing() -> Rejection:
    return Rejection(
        Reason.INVALID_API_KEY,
        "You didn't provide an API key. Send it as `Authorization: Bearer tg-...`; an administrator makes one with "
        "`tidegate key create`.",
        headers=((b"www-authenticate", b"Bearer"),),
    )


def _wrong(presented: bytes) -> Rejection:
    return Rejection(
        Reason.INVALID_API_KEY,
        f"Incorrect API key provided: {shown(presented)}. `tidegate key list` shows which keys there are.",
        headers=((b"www-authenticate", b'Bearer error="invalid_token"'),),
    )


def shown(presented: bytes) -> str:
    """What a message may say of a presented key: its public id, if it has one.

    >>> shown(b"tg-0a1b2c3d4e5f-secret"), shown(b"sk-something-else")
    ('tg-0a1b2c3d4e5f-...', 'not of the form tg-<id>-<secret>')
    """
    parts = split_key(presented.decode("ascii", "replace"))
    if parts is None or not (parts[0].isascii() and parts[0].isalnum()):
        return "not of the form tg-<id>-<secret>"
    return f"tg-{parts[0]}-..."


def _expired(record: KeyRecord) -> Rejection:
    return Rejection(
        Reason.INVALID_API_KEY,
        f"The API key tg-{record.id}-... has expired; ask for a new one.",
        headers=((b"www-authenticate", b'Bearer error="invalid_token"'),),
    )


def missing_scope(key_id: str, scope: Scope, param: str | None = None) -> Rejection:
    """The rejection of a key that lacks a scope."""
    return Rejection(
        Reason.NOT_PERMITTED,
        f"You have insufficient permissions for this operation. The API key tg-{key_id}-... lacks the scope "
        f"`{scope.value}`; use one that has it.",
        param=param,
    )


def _unusable(confirmed_at: float | None) -> Rejection:
    why = (
        "has not received any API keys yet"
        if confirmed_at is None
        else "has heard nothing from its controller for longer than its keys may hold"
    )
    return Rejection(Reason.KEYS_UNAVAILABLE, f"The gateway {why}; try again in 1 s.", retry_after_s=1)


def save_keys(path: Path, pushed: KeysPush) -> None:
    """Keep keys (hashes only) and quotas for a start without a controller. Blocks: call it from a thread.

    Raises:
        OSError: it could not be written.
    """
    replace_file(path, pushed.model_dump_json().encode())


def load_keys(path: Path) -> tuple[KeysPush, float] | None:
    """What was pushed last in the last run and when that was (wall-clock seconds), or None when nothing was.

    Raises:
        KeysUnreadable: the file can't be read as keys.
    """
    try:
        text = path.read_bytes()
        pushed_at = path.stat().st_mtime
    except FileNotFoundError:
        return None
    except OSError as e:
        raise KeysUnreadable(f"{path} can't be read ({e.strerror}); remove it and wait for the controller") from None
    try:
        return KeysPush.model_validate_json(text, extra="ignore"), pushed_at
    except ValidationError as e:
        raise KeysUnreadable(
            f"{path} holds no keys ({e.error_count()} errors); remove it and wait for the controller"
        ) from None
