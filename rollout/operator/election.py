"""Who of several controllers tries to lead: a Lease of the cluster. Shell.

The Lease elects, and `kubectl get lease` says who. It protects nothing: the store's fencing token does, and only who
has that may write. So whoever leads goes on leading while the API server is away, and steps down when it reads that
somebody else holds the Lease; and where no API server answers at all, the store alone decides.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from collections.abc import Callable

from kubernetes import client

from rollout.errors import ClusterConflict, ClusterError, LogConflict
from rollout.operator.api import ResourceApi

log = logging.getLogger(__name__)

DURATION_S = 15
RENEW_S = 5.0
ASK_S = 2.0
ALONE_S = 2.0 * DURATION_S
"""As long as no API server has answered, before a candidate tries without it: a rollback must not wait for one."""


class Election:
    """One candidate.

    Args:
        api: the cluster.
        namespace: of the Lease.
        name: of the Lease.
        holder: who this is: the pod's name.
        clock: seconds since the epoch, for what is written.
        monotonic: seconds that never go back, for how long a Lease of somebody else has not changed.

    """

    def __init__(
        self,
        api: ResourceApi,
        *,
        namespace: str,
        name: str,
        holder: str,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._name = name
        self._holder = holder
        self._clock = clock
        self._monotonic = monotonic
        self._seen: tuple[str, float] | None = None
        """The version of the Lease that was read last, and when it was read first."""
        self.held = False
        self.message = ""
        """Why the Lease can't be read or written; empty while it can."""

    async def elected(self) -> None:
        """Return when this candidate holds the Lease, or when for long nobody could be asked for it."""
        began = self._monotonic()
        while not await self._ask():
            if not self.message:
                began = self._monotonic()
            elif self._monotonic() - began > ALONE_S:
                log.warning("no API server for %.0f s: trying to lead without the lease", ALONE_S)
                return
            await asyncio.sleep(ASK_S)
        log.info("%s holds the lease %s/%s", self._holder, self._namespace, self._name)

    async def keep(self) -> None:
        """Renew the Lease, for ever.

        Raises:
            LogConflict: somebody else holds it; leading must end.

        """
        while True:
            await asyncio.sleep(RENEW_S)
            if not await self._ask() and not self.message:
                raise LogConflict(f"lease {self._namespace}/{self._name} is held by somebody else, who is to lead")

    async def give_back(self) -> None:
        """Let the next one take it without waiting."""
        if not self.held:
            return
        self.held = False
        try:
            await asyncio.to_thread(self._release)
        except ClusterError as error:
            log.info("the lease was not given back, so the next controller waits for its end: %s", error)

    async def _ask(self) -> bool:
        try:
            self.held = await asyncio.to_thread(self._take)
        except ClusterConflict:
            return self.held  # somebody wrote it between our reading and writing: the next look tells who
        except ClusterError as error:
            if not self.message:
                log.warning("the lease can't be read or written: %s", error)
            self.message = str(error)
            return self.held
        self.message = ""
        return self.held

    def _take(self) -> bool:
        """Take or renew it; False while another one holds it. Blocks."""
        lease = self._api.read_lease(self._namespace, self._name)
        now = dt.datetime.fromtimestamp(self._clock(), dt.UTC)
        if lease is None:
            spec = client.V1LeaseSpec(
                holder_identity=self._holder, lease_duration_seconds=DURATION_S, acquire_time=now, renew_time=now,
                lease_transitions=0,
            )  # fmt: skip
            made = client.V1Lease(metadata=client.V1ObjectMeta(name=self._name), spec=spec)
            self._api.create_lease(self._namespace, made)
            return True
        spec = lease.spec or client.V1LeaseSpec()
        mine = spec.holder_identity == self._holder
        if not mine and spec.holder_identity and not self._expired(lease):
            return False
        if not mine:
            spec.acquire_time, spec.lease_transitions = now, (spec.lease_transitions or 0) + 1
        spec.holder_identity, spec.lease_duration_seconds, spec.renew_time = self._holder, DURATION_S, now
        lease.spec = spec
        self._api.replace_lease(self._namespace, self._name, lease)
        return True

    def _expired(self, lease: client.V1Lease) -> bool:
        """Whether it has not changed for as long as it lasts. By our own clock: two machines' clocks may differ."""
        version, now = str(lease.metadata.resource_version if lease.metadata is not None else ""), self._monotonic()
        if self._seen is None or self._seen[0] != version:
            self._seen = (version, now)
        lasts_s = (lease.spec.lease_duration_seconds if lease.spec is not None else None) or DURATION_S
        return now - self._seen[1] > lasts_s

    def _release(self) -> None:
        lease = self._api.read_lease(self._namespace, self._name)
        if lease is not None and lease.spec is not None and lease.spec.holder_identity == self._holder:
            lease.spec.holder_identity = ""
            lease.spec.lease_duration_seconds = 1
            self._api.replace_lease(self._namespace, self._name, lease)
