"""Which gateways get clients' requests on a cluster: the ready pods behind their Service. Shell."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection

from rollout.cluster_api import ClusterApi
from rollout.endpoint_slices import SERVICE_NAME, ready_pods, slices_path
from rollout.errors import ClusterUnavailable

log = logging.getLogger(__name__)

POLL_S = 2.0
STALE_S = 15.0
"""What was seen so long ago is not known any more."""


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
