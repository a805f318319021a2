"""Where endpoints come from: the port, and the static adapter. `discovery_ray` asks Ray Serve.

A source says who is there; how it is with them (ejected, slow, warm) the gateway finds out by itself and keeps while
the source goes on naming them. What an adapter has to give, with Kubernetes' EndpointSlices as the example:

- for each application all its addresses at once, never a difference: a lost or doubled message then costs nothing;
- `Address.url`, where the engine itself answers: a slice's address and port;
- `Address.boot`, another one for each process that ever answered there, such as the pod's uid: a new process has cold
  caches and no history, so it must not pass for the old one;
- `Address.draining` for what ends its answers and takes no new ones: a slice's `serving and terminating`. It stays
  listed until it is gone; what is not ready and not draining is left out.

An application that the traffic table lists under `drains` needs nothing from its source: no request is sent to a
revision that the table does not give traffic, whichever endpoints it has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from serving.endpoints import Address

Publish = Callable[[Mapping[str, Sequence[Address]]], None]


class EndpointSource(Protocol):
    """Tells which engines answer for which application. The last set stays in use while it can't tell."""

    async def run(self, publish: Publish) -> None:
        """Call `publish` with the whole set, at the start and whenever it changed, until cancelled.

        It must not end by itself nor raise because what it asks is away: then it says so in the log, and tries again.
        Publishing the same set again does no harm.
        """
        ...

    def suspect(self, url: str) -> None:
        """An engine at this URL refused or broke a connection: look again soon. Idempotent and cheap."""
        ...


class StaticEndpoints:
    """A list that is given, and may be given anew at run time. For tests, demos and bare processes."""

    def __init__(self, endpoints: Mapping[str, Sequence[str]] | None = None) -> None:
        self._endpoints: Mapping[str, Sequence[str]] = dict(endpoints or {})
        self._publish: Publish | None = None
        self.suspected: list[str] = []

    def set(self, endpoints: Mapping[str, Sequence[str]]) -> None:
        """Replace the list: application -> base URLs. In force at once."""
        self._endpoints = dict(endpoints)
        self._tell()

    def _tell(self) -> None:
        if self._publish is not None:
            self._publish({a: [Address(url) for url in urls] for a, urls in self._endpoints.items()})

    async def run(self, publish: Publish) -> None:
        """Publish the list, and again when it is replaced."""
        self._publish = publish
        self._tell()
        await asyncio.Event().wait()

    def suspect(self, url: str) -> None:
        """Only remember the last few: the list is what it is."""
        self.suspected = [*self.suspected[-99:], url]
