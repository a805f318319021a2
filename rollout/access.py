"""Who may do what at the control plane. Pure.

Two tables: which right each route needs, and which roles have that right. A route that is in neither is refused for
everybody, so that a new one can't be forgotten open.

On a cluster a key is bound to its namespace besides: `bound` is that namespace, and "" for who is bound to none: the
bootstrap token, a key of all namespaces, everybody on the local platform.
"""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Collection, Mapping, Sequence
from typing import assert_never

from serving.keys import ControlRole


class Right(enum.StrEnum):
    """What a route does, as far as it matters for who may use it."""

    OPEN = "open"
    """Needs no key: health, metrics, the console's empty page, the API's description."""
    READ = "read"
    """See models, rollouts, their history, and usage."""
    OPERATE = "operate"
    """Say verbs: deploy, promote, roll back."""
    MANAGE_KEYS = "manage-keys"
    SET_QUOTAS = "set-quotas"
    """Say what the keys of a namespace may use together."""
    READ_TEXT = "read-text"
    """Read logged prompts and answers."""
    ERASE_TEXT = "erase-text"
    """Take a user's requests out of the log."""
    DIAL = "dial"
    """Follow traffic tables and report outcomes, as a gateway does."""


WEBSOCKET = "WEBSOCKET"
"""Stands for the method of a route that is a socket."""

ROUTES: Mapping[tuple[str, str], Right] = {
    ("GET", "/"): Right.OPEN,
    ("GET", "/healthz"): Right.OPEN,
    ("GET", "/readyz"): Right.OPEN,
    ("GET", "/metrics"): Right.OPEN,
    ("GET", "/openapi.json"): Right.OPEN,
    ("GET", "/api/v1/status"): Right.READ,
    ("GET", "/api/v1/schema"): Right.READ,
    ("GET", "/api/v1/whoami"): Right.READ,
    ("GET", "/api/v1/models"): Right.READ,
    ("GET", "/api/v1/rollouts"): Right.READ,
    ("GET", "/api/v1/rollouts/{model}"): Right.READ,
    ("GET", "/api/v1/rollouts/{model}/history"): Right.READ,
    ("GET", "/api/v1/rollouts/{model}/replay"): Right.READ,
    ("GET", "/api/v1/events"): Right.READ,
    ("GET", "/api/v1/usage"): Right.READ,
    ("GET", "/api/v1/requests"): Right.READ_TEXT,
    ("GET", "/api/v1/requests/{request_id}"): Right.READ_TEXT,
    ("POST", "/api/v1/requests/erase"): Right.ERASE_TEXT,
    ("GET", "/api/v1/probes/{model}/{version}"): Right.READ,
    ("PUT", "/api/v1/probes/{model}/{version}"): Right.OPERATE,
    ("GET", "/api/v1/drift"): Right.READ,
    ("POST", "/api/v1/drift/ack"): Right.OPERATE,
    ("POST", "/api/v1/rollouts"): Right.OPERATE,
    ("POST", "/api/v1/rollouts/{model}/{verb}"): Right.OPERATE,
    ("GET", "/api/v1/keys"): Right.MANAGE_KEYS,
    ("POST", "/api/v1/keys"): Right.MANAGE_KEYS,
    ("POST", "/api/v1/keys/{key_id}/revoke"): Right.MANAGE_KEYS,
    ("GET", "/api/v1/quotas"): Right.READ,
    ("PUT", "/api/v1/quotas/{namespace}"): Right.SET_QUOTAS,
    ("DELETE", "/api/v1/quotas/{namespace}"): Right.SET_QUOTAS,
    (WEBSOCKET, "/internal/v1/gateway"): Right.DIAL,
}
"""By (method, path template)."""


def right_of(method: str, path: str) -> Right | None:
    """The right that a route needs; None for a route that nobody has decided about, which nobody may use."""
    return ROUTES.get(("GET" if method == "HEAD" else method, path))


def needed(right: Right) -> ControlRole | None:
    """The least role that has a right; None when no key is needed."""
    match right:
        case Right.OPEN:
            return None
        case Right.READ:
            return ControlRole.VIEWER
        case Right.OPERATE:
            return ControlRole.OPERATOR
        case Right.MANAGE_KEYS | Right.SET_QUOTAS | Right.ERASE_TEXT:
            return ControlRole.ADMIN
        case Right.READ_TEXT:
            return ControlRole.DATA_READER
        case Right.DIAL:
            return ControlRole.GATEWAY
        case _:
            assert_never(right)


_LADDER = (ControlRole.VIEWER, ControlRole.OPERATOR, ControlRole.ADMIN)
"""Each of these may do what the ones before it may."""


def may(roles: Collection[ControlRole], right: Right | None, bound: str = "") -> bool:
    """Whether somebody with these roles has a right. `admin` has every one; None is had by nobody.

    `data-reader` and `gateway` stand beside the ladder: they include nothing, so that a key that leaks from a
    gateway's machine can neither read statuses nor roll anything back.

    Quotas are set by those who are bound to no namespace: one that its own subjects could raise would be none.
    A user's requests are erased whatever model they went to, and a gateway is told every model's traffic and every key:
    an admin of one namespace has neither right. A gateway's own key dials whatever its namespace, since `manages`
    lets nobody make one who could not dial.
    """
    if right is None:
        return False
    if bound and right in (Right.ERASE_TEXT, Right.SET_QUOTAS):
        return False
    if bound and right is Right.DIAL:
        return ControlRole.GATEWAY in roles
    least = needed(right)
    if least is None or ControlRole.ADMIN in roles:
        return True
    if least in _LADDER:
        return any(role in roles for role in _LADDER[_LADDER.index(least) :])
    return least in roles


def sees(bound: str, home: str) -> bool:
    """Whether somebody may see and command a model. `home` is its namespace, "" outside a cluster."""
    return not bound or not home or bound == home


def manages(bound: str, namespace: str, roles: Collection[ControlRole]) -> bool:
    """Whether an admin may make, see and revoke a key of this namespace (`*`: of all) with these roles.

    A gateway's key opens more than one namespace, whatever it says of itself.
    """
    return not bound or (namespace == bound and ControlRole.GATEWAY not in roles)


Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def parse_networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """Read addresses and networks: `10.0.0.7`, `10.0.0.0/8`, `fd00::/8`.

    Raises:
        ValueError: one of them is neither.

    """
    try:
        return tuple(ipaddress.ip_network(text.strip(), strict=False) for text in texts)
    except ValueError:
        raise ValueError(
            f"{', '.join(texts)!r}: each must be an address or a network, for instance 10.0.0.0/8"
        ) from None


def client_address(peer: str, forwarded_for: str, trusted: Sequence[Network]) -> str:
    """Where a request came from: the peer, or behind trusted proxies what they say.

    `X-Forwarded-For` is read from its end: each proxy appends whom it was called by, so the last address that is not
    one of our own proxies is the first that nobody could have made up.

    Args:
        peer: the address at the other end of the connection.
        forwarded_for: the header; "" when there is none.
        trusted: proxies that are believed.

    """
    if not _within(peer, trusted):
        return peer
    told = [part.strip() for part in forwarded_for.split(",") if part.strip()]
    found = peer
    for address in reversed(told):
        if not _is_address(address):
            return found
        found = address
        if not _within(address, trusted):
            return found
    return found


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _within(address: str, networks: Sequence[Network]) -> bool:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(found in network for network in networks)
