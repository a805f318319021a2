"""Writes to ModelDeployments through the API server: server-side apply, under the operator's own field manager."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from rollout.errors import UndeclaredFields
from rollout.operator.api import ResourceApi
from rollout.operator.names import API_VERSION, FINALIZER, KIND, OPERATOR_MANAGER
from rollout.operator.resource import Resource, digest
from rollout.operator.telling import Note, moment

log = logging.getLogger(__name__)

T = TypeVar("T")

THREADS = 8
MAX_MESSAGE = 1024
UNDECLARED_S = 300.0
"""How long fields that the definition did not know are left out before they are tried again."""


class ApiWriter:
    """ResourceWriter over the official client, in threads of its own so that nobody else's calls are held up."""

    def __init__(self, api: ResourceApi, *, instance: str, clock: Callable[[], float]) -> None:
        """`instance`: who posts Events, the pod's name."""
        self._api = api
        self._instance = instance
        self._clock = clock
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="cluster-writes")
        self._undeclared: frozenset[str] = frozenset()
        self._undeclared_since = 0.0

    @property
    def undeclared(self) -> frozenset[str]:
        """See `ResourceWriter`. Forgotten after a while, since a newer definition may have been applied."""
        if self._undeclared and self._clock() - self._undeclared_since > UNDECLARED_S:
            self._undeclared = frozenset()
        return self._undeclared

    def close(self) -> None:
        """Let the threads go."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def write_status(self, resource: Resource, status: Mapping[str, Any]) -> Mapping[str, Any]:
        """See `ResourceWriter`. Nobody else may own a field of the status, so it is taken by force."""
        try:
            return await self._apply_status(resource, status)
        except UndeclaredFields as error:  # Helm upgrades no definitions: the operator may be newer than it
            if error.fields <= self.undeclared:
                raise
            log.warning("%s; until then the status lacks %s", error, ", ".join(sorted(error.fields)))
            self._undeclared, self._undeclared_since = self.undeclared | error.fields, self._clock()
            return await self._apply_status(resource, status)

    async def _apply_status(self, resource: Resource, status: Mapping[str, Any]) -> Mapping[str, Any]:
        known = {name: value for name, value in status.items() if name not in self.undeclared}
        # Of a status's metadata an API server reads the version alone: a uid would not keep it from one made anew.
        metadata = {"resourceVersion": resource.version} if resource.version else {}
        return await self._run(
            lambda: self._api.apply(
                resource.key,
                {"status": known},
                manager=OPERATOR_MANAGER,
                uid=resource.uid,
                force=True,
                status=True,
                metadata=metadata,
            )
        )

    async def hold(self, resource: Resource, *, held: bool) -> Mapping[str, Any]:
        """See `ResourceWriter`. What an apply leaves out goes, if nobody else owns it; so does the finalizer."""
        finalizers = {"finalizers": [FINALIZER]} if held else {}
        found = await self._run(
            lambda: self._api.apply(resource.key, {}, manager=OPERATOR_MANAGER, uid=resource.uid, metadata=finalizers)
        )
        left = found["metadata"].get("finalizers") or []
        if held or FINALIZER not in left:
            return found
        # A backup that was restored, or somebody's apply of a whole resource, owns it too: it would stay for ever.
        others = {
            "uid": resource.uid,
            "resourceVersion": found["metadata"]["resourceVersion"],
            "finalizers": [name for name in left if name != FINALIZER],
        }
        return await self._run(lambda: self._api.change_metadata(resource.key, others, manager=OPERATOR_MANAGER))

    async def post(self, resource: Resource, note: Note) -> None:
        """See `ResourceWriter`. The name follows from what it says and when: said twice in a minute is said once."""
        now = self._clock()
        same = digest(f"{resource.uid} {note.reason} {note.message} {int(now // 60)}")
        at = moment(now)
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{resource.key.name[:200].rstrip('-.')}.{same}", "namespace": resource.key.namespace},
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
