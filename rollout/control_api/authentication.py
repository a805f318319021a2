"""Who is asking: keys, the bootstrap token, and a limit on wrong ones.

The bootstrap token lies in `$TIDEGATE_HOME/credentials` and is an admin's; everybody else has a key of
serving/keys.py with roles. A key that was revoked or has expired is refused from that moment on, on open sockets
and streams too. No key or token is ever logged.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

from rollout.access import Network, client_address
from serving.keys import EVERYWHERE, ControlRole, KeyRecord, matches, split_key
from serving.specs import Frozen

log = logging.getLogger(__name__)

FAILURES_PER_MINUTE = 10
MINUTE_S = 60.0
ADDRESSES = 4096
"""Addresses whose failures are counted at once; the one seen longest ago is forgotten first."""
DEFAULT_ACTOR = "operator"


class Unauthorized(Exception):
    """No key, or not one that is good. `code` says which."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Forbidden(Exception):
    """A good key without the role that is needed, or of another namespace."""


class TooManyFailures(Exception):
    """An address has shown too many wrong keys. `retry_after_s` says when it is heard again."""

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Caller(Frozen):
    """Who asks, with which roles, from where."""

    actor: str
    """As it goes into the log: the key's name and id; with the bootstrap token what the client says."""
    source: str
    """The address it came from."""
    roles: frozenset[ControlRole]
    key: str = ""
    """The key's id; "" for the bootstrap token."""
    namespace: str = ""
    """The only one whose models it may see and command; "" for all (`rollout.access`)."""


class FailureLimit:
    """Counts failed authentications per address and minute, in bounded memory.

    It slows nobody down whose key is good: behind a proxy, and on one machine, many share an address, and one client
    with an old key must not lock an operator out. Guessing is hopeless anyway (256 bits); what the limit protects
    is the log and the processor.
    """

    def __init__(self, monotonic: Callable[[], float], limit: int = FAILURES_PER_MINUTE) -> None:
        self._monotonic = monotonic
        self._limit = limit
        self._seen: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def failed(self, address: str) -> int | None:
        """Count a failure. Returns None, or above the limit in how many seconds it may try again."""
        place, now = _place(address), self._monotonic()
        began, count = self._seen.pop(place, (now, 0))
        if now - began >= MINUTE_S:
            began, count = now, 0
        self._seen[place] = (began, count + 1)
        while len(self._seen) > ADDRESSES:
            self._seen.popitem(last=False)
        if count < self._limit:
            return None
        if count == self._limit:
            log.warning("%s has shown %d wrong keys within a minute; it gets 429 now", address, count)
        return max(1, math.ceil(began + MINUTE_S - now))


def _place(address: str) -> str:
    """What is counted together: an IPv4 address, or the /64 that one IPv6 customer has."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    return str(ipaddress.ip_network((found, 64), strict=False)) if found.version == 6 else address


class Authenticator:
    """Tells who asks.

    Args:
        token: the bootstrap token.
        keys: the keys there are now, by id.
        clock: seconds since the epoch, for expiry.
        monotonic: seconds, for the limit.
        namespaced: whether models live in namespaces, which keys are then bound to.
        trusted_proxies: whose `X-Forwarded-For` is believed.

    """

    def __init__(
        self,
        *,
        token: str,
        namespaced: bool,
        keys: Callable[[], Mapping[str, KeyRecord]],
        clock: Callable[[], float],
        monotonic: Callable[[], float],
        trusted_proxies: Sequence[Network] = (),
    ) -> None:
        self._token_sha256 = hashlib.sha256(token.encode()).digest()
        self._namespaced = namespaced
        self._keys = keys
        self._clock = clock
        self._limit = FailureLimit(monotonic)
        self._trusted = tuple(trusted_proxies)

    def source(self, peer: str, forwarded_for: str) -> str:
        """Where a request came from."""
        return client_address(peer, forwarded_for, self._trusted)

    def identify(self, authorization: str | None, actor: str | None, source: str) -> Caller:
        """The caller.

        Args:
            authorization: the header, `Bearer <key>`.
            actor: the header `X-Tidegate-Actor`, believed with the bootstrap token only.
            source: see `source`.

        Raises:
            Unauthorized: no key, an unknown, a revoked or an expired one.
            TooManyFailures: the same, once too often.

        """
        scheme, _, given = (authorization or "").strip().partition(" ")
        given = given.strip()
        if scheme.lower() != "bearer" or not given:
            raise Unauthorized(
                "unauthorized", "a bearer key is needed; the local CLI reads it from $TIDEGATE_HOME/credentials"
            )
        try:
            return self._identify(given, actor, source)
        except Unauthorized:
            wait_s = self._limit.failed(source)
            if wait_s is not None:
                raise TooManyFailures(
                    f"too many wrong keys from {source} (limit {FAILURES_PER_MINUTE} per minute); wait {wait_s} s",
                    wait_s,
                ) from None
            raise

    def _identify(self, given: str, actor: str | None, source: str) -> Caller:
        is_token = hmac.compare_digest(hashlib.sha256(given.encode()).digest(), self._token_sha256)
        parts = split_key(given)
        if parts is None:
            if is_token:
                return Caller(actor=actor or DEFAULT_ACTOR, source=source, roles=frozenset({ControlRole.ADMIN}))
            raise Unauthorized("unknown_key", "this is not a key of this control plane; ask an admin for one")
        key_id, secret = parts
        record = self._keys().get(key_id)
        if not matches(record, secret) or record is None:
            raise Unauthorized("unknown_key", "this is not a key of this control plane; ask an admin for one")
        self._check(record)
        bound = record.namespace if self._namespaced and record.namespace != EVERYWHERE else ""
        actor = f"{record.name} ({record.id})"
        return Caller(actor=actor, source=source, roles=record.roles, key=record.id, namespace=bound)

    def _check(self, record: KeyRecord) -> None:
        way_out = "an admin makes another with `tidegate key create`"
        if record.revoked_at is not None:
            raise Unauthorized("revoked_key", f"key {record.name} ({record.id}) was revoked; {way_out}")
        if not record.valid(self._clock()):
            raise Unauthorized("expired_key", f"key {record.name} ({record.id}) has expired; {way_out}")

    def still_good(self, caller: Caller) -> bool:
        """Whether who was let in before would be let in now."""
        if not caller.key:
            return True
        record = self._keys().get(caller.key)
        return record is not None and record.valid(self._clock())
