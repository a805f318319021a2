"""What the EndpointSlices of a Service say: which of its pods get requests. Pure, but for the poller."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from rollout.cluster_api import ClusterApi
from rollout.errors import ClusterUnavailable

log = logging.getLogger(__name__)

SERVICE_NAME = "kubernetes.io/service-name"
POLL_S = 2.0
STALE_S = 15.0
"""What was seen so long ago is not known any more."""


def slices_path(namespace: str) -> str:
    """The path of a namespace's slices."""
    return f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"


def ready_addresses(slices: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """The addresses that get requests, over all slices; `ready` left out means that they do."""
    return frozenset(address for endpoint in _ready(slices) for address in endpoint.get("addresses") or ())


def ready_pods(slices: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """The names of the pods that get requests."""
    named = (endpoint.get("targetRef") or {} for endpoint in _ready(slices))
    return frozenset(str(ref["name"]) for ref in named if ref.get("kind") == "Pod" and ref.get("name"))


def _ready(slices: Iterable[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
    for part in slices:
        for endpoint in part.get("endpoints") or ():
            if (endpoint.get("conditions") or {}).get("ready") is not False:
                yield endpoint


class GatewayPods:
    """Knows the ready pods behind the gateways' Service: a gateway is named as its pod is."""

    def __init__(
        self, api: ClusterApi, namespace: str, service: str, monotonic: Callable[[], float], changed: Callable[[], None]
    ) -> None:
        """Prepare.

        Args:
            api: the API server.
            namespace: of the Service.
            service: its name.
            monotonic: seconds.
            changed: called when the set is another one.
        """
        self._api = api
        self._path = slices_path(namespace)
        self._labels = f"{SERVICE_NAME}={service}"
        self._monotonic = monotonic
        self._changed = changed
        self._names: Collection[str] | None = None
        self._seen_at = float("-inf")

    def names(self) -> Collection[str] | None:
        """The gateways that get requests; None while that is not known."""
        return self._names if self._monotonic() - self._seen_at <= STALE_S else None

    async def once(self) -> None:
        """Look once."""
        try:
            found = ready_pods(await self._api.every(self._path, labels=self._labels))
        except ClusterUnavailable as error:
            log.warning("which gateways get requests can't be told: %s", error)
            return
        changed = found != self.names()
        self._names, self._seen_at = found, self._monotonic()
        if changed:
            self._changed()

    async def run(self) -> None:
        """Look again and again, for ever."""
        while True:
            await self.once()
            await asyncio.sleep(POLL_S)
