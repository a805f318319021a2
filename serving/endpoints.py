"""Choose an endpoint: filter -> score in [0, 1] -> pick. Pure; `now` is an argument, in monotonic seconds.

Filter: what is not ejected. Score: `1 / (1 + outstanding)`, the least outstanding of all wins (full knowledge, so
no need for "power of two choices"). Pick: the highest score, ties to the one that served least.

Ejection: an endpoint that refused a connection gets nothing for 1 s, doubling to 30 s with each further refusal.
After that it is half-open: one request probes it, and only when that connects do others follow.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

EJECTION_FIRST_S = 1.0
EJECTION_MOST_S = 30.0
WARM_UP_REQUESTS = 3
"""The first requests of a replica compile and fill caches: they give no latency evidence."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where an engine answers. `boot` changes when the engine was started anew at the same address."""

    url: str
    boot: str = ""


@dataclass(slots=True)
class Endpoint:
    """One engine process as this gateway sees it."""

    application: str
    address: Address
    host: str
    port: int
    prefix: str
    outstanding: int = 0
    """Requests of this gateway under way there."""
    served: int = 0
    """Requests sent there since it was first seen."""
    failures: int = 0
    """Refused connections in a row."""
    ejected_until: float = 0.0
    probing: bool = False

    @property
    def url(self) -> str:
        """The base URL."""
        return self.address.url


def endpoint_of(application: str, address: Address) -> Endpoint:
    """Read an address.

    Raises:
        ValueError: the URL is not `http://host:port[/prefix]`.
    """
    parts = urlsplit(address.url)
    if parts.scheme != "http" or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"endpoint {address.url!r} of {application!r}: expected http://host:port[/prefix]")
    return Endpoint(application, address, parts.hostname, parts.port or 80, parts.path.rstrip("/"))


def usable(endpoint: Endpoint, now: float) -> bool:
    """The filter: not ejected, or half-open without a probe under way."""
    if endpoint.failures == 0:
        return True
    return now >= endpoint.ejected_until and not endpoint.probing


def score(endpoint: Endpoint) -> float:
    """The scorer: 1 for an idle endpoint, falling with its outstanding requests."""
    return 1.0 / (1 + endpoint.outstanding)


def pick(candidates: Sequence[Endpoint], now: float, exclude: Collection[str] = ()) -> Endpoint | None:
    """The picker: highest score, ties to the one that served least; when all are ejected, the first to come back.

    Args:
        candidates: Endpoints of one application.
        now: Monotonic seconds.
        exclude: URLs that were tried already for this request.

    Returns:
        An endpoint, or None when every one is excluded. Cost: one pass over the candidates.
    """
    best: Endpoint | None = None
    for endpoint in candidates:
        if (exclude and endpoint.url in exclude) or not usable(endpoint, now):
            continue
        if best is None or (score(endpoint), -endpoint.served) > (score(best), -best.served):
            best = endpoint
    if best is not None:
        return best
    left = [e for e in candidates if e.url not in exclude]
    return min(left, key=lambda e: e.ejected_until, default=None)


def dispatched(endpoint: Endpoint, now: float) -> bool:
    """Note that a request goes there. Returns whether it falls into the replica's warm-up."""
    if endpoint.failures and now >= endpoint.ejected_until:
        endpoint.probing = True
    endpoint.outstanding += 1
    endpoint.served += 1
    return endpoint.served <= WARM_UP_REQUESTS


def connected(endpoint: Endpoint) -> None:
    """Note that it accepted a connection and answered: it is healthy again."""
    endpoint.failures = 0
    endpoint.probing = False


def connect_failed(endpoint: Endpoint, now: float) -> None:
    """Note a refused connection: eject for 1 s, 2 s, 4 s, ... 30 s."""
    if endpoint.failures == 0 or endpoint.probing or now >= endpoint.ejected_until:
        endpoint.failures = min(endpoint.failures + 1, 16)
        endpoint.ejected_until = now + min(EJECTION_MOST_S, EJECTION_FIRST_S * 2.0 ** (endpoint.failures - 1))
    endpoint.probing = False


def finished(endpoint: Endpoint) -> None:
    """Note that a request there has ended, well or badly."""
    endpoint.outstanding -= 1
    endpoint.probing = False


class EndpointBook:
    """All endpoints by application. Replacing the set keeps what is known of those that stay."""

    def __init__(self) -> None:
        self._by_application: dict[str, list[Endpoint]] = {}

    def replace(self, addresses: Mapping[str, Iterable[Address]]) -> bool:
        """Make the book hold exactly these. Returns whether anything changed; malformed URLs are left out."""
        book: dict[str, list[Endpoint]] = {}
        changed = False
        for application, wanted in addresses.items():
            known = {e.address: e for e in self._by_application.get(application, ())}
            entries = book[application] = []
            for address in wanted:
                entry = known.get(address)
                if entry is None:
                    try:
                        entry = endpoint_of(application, address)
                    except ValueError:
                        continue
                    changed = True
                entries.append(entry)
            changed = changed or len(entries) != len(known)
        changed = changed or book.keys() != self._by_application.keys()
        self._by_application = book
        return changed

    def of(self, application: str) -> Sequence[Endpoint]:
        """The endpoints of an application, none when it is unknown."""
        return self._by_application.get(application, ())

    def ready(self, application: str, now: float) -> bool:
        """Whether one of them takes requests now."""
        return any(usable(endpoint, now) for endpoint in self._by_application.get(application, ()))

    def ready_counts(self, now: float) -> dict[str, int]:
        """By application: how many take requests now."""
        return {a: sum(usable(e, now) for e in es) for a, es in self._by_application.items()}
