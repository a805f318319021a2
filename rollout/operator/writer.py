"""Writes to ModelDeployments through the API server: server-side apply, under the operator's own field manager."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from rollout.operator.api import ResourceApi
from rollout.operator.names import API_VERSION, FINALIZER, KIND, OPERATOR_MANAGER
from rollout.operator.resource import Resource, digest
from rollout.operator.telling import Note, moment

T = TypeVar("T")

THREADS = 8
MAX_MESSAGE = 1024


class ApiWriter:
    """ResourceWriter over the official client, in threads of its own so that nobody else's calls are held up."""

    def __init__(self, api: ResourceApi, *, instance: str, clock: Callable[[], float]) -> None:
        """`instance`: who posts Events, the pod's name."""
        self._api = api
        self._instance = instance
        self._clock = clock
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="cluster-writes")

    def close(self) -> None:
        """Let the threads go."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def write_status(self, resource: Resource, status: Mapping[str, Any]) -> Mapping[str, Any]:
        """See `ResourceWriter`. Nobody else may own a field of the status, so it is taken by force."""
        return await self._run(
            lambda: self._api.apply(
                resource.key,
                {"status": dict(status)},
                manager=OPERATOR_MANAGER,
                uid=resource.uid,
                force=True,
                status=True,
            )
        )

    async def hold(self, resource: Resource, *, held: bool) -> Mapping[str, Any]:
        """See `ResourceWriter`. What an apply leaves out goes, if nobody else owns it; so does the finalizer."""
        finalizers = {"finalizers": [FINALIZER]} if held else {}
        return await self._run(
            lambda: self._api.apply(resource.key, {}, manager=OPERATOR_MANAGER, uid=resource.uid, metadata=finalizers)
        )

    async def post(self, resource: Resource, note: Note) -> None:
        """See `ResourceWriter`. The name follows from what it says and when: said twice in a minute is said once."""
        now = self._clock()
        same = digest(f"{resource.uid} {note.reason} {note.message} {int(now // 60)}")
        at = moment(now)
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{resource.key.name[:200]}.{same}", "namespace": resource.key.namespace},
            "involvedObject": {
                "apiVersion": API_VERSION,
                "kind": KIND,
                "name": resource.key.name,
                "namespace": resource.key.namespace,
                "uid": resource.uid,
                "resourceVersion": resource.version,
            },
            "type": note.kind,
            "reason": note.reason,
            "message": note.message[:MAX_MESSAGE],
            "source": {"component": OPERATOR_MANAGER},
            "reportingComponent": OPERATOR_MANAGER,
            "reportingInstance": self._instance,
            "firstTimestamp": at,
            "lastTimestamp": at,
            "count": 1,
        }
        await self._run(lambda: self._api.post_event(resource.key.namespace, event))

    async def _run(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)
