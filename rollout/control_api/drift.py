"""The routes of the drift watch: what it sees of the caller's models, and that somebody has seen an alarm.

Who acknowledged what is in the watch's own record of the alarm, and in the process's log. Asking takes its time, so it
is done in threads, few at a time: they are those in which the leader renews its lease.

No `from __future__ import annotations` in modules with routes: FastAPI reads annotations of local functions.
"""

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Protocol, TypeVar

from fastapi import APIRouter, Depends

from rollout.control_api.authentication import Caller
from rollout.control_api.bodies import DriftAckBody
from rollout.control_api.guard import Guard, check_model
from rollout.control_api.plane import ControlPlane
from rollout.errors import RolloutError

log = logging.getLogger(__name__)

T = TypeVar("T")

AT_ONCE = 2
"""Questions to the watch at a time; a watch that hangs must not take the process's threads."""
TURN_S = 15.0
"""How long a question waits for its turn."""


class NotWatched(RolloutError):
    """The drift watch has no such stream, or there is no watch."""


class DriftWatchAway(RolloutError):
    """The drift watch does not answer; nothing has changed for sure."""

    retryable = True


class DriftWatch(Protocol):
    """The drift watch, as whoever puts the control plane together knows it. Its methods block."""

    def status(self) -> Mapping[str, Any]:
        """What it last knew: `written_at`, `streams`, `requests`, `dropped`.

        Raises:
            DriftWatchAway: it can't be asked.
        """
        ...

    def acknowledge(self, model: str, stream: str | None, by: str, reason: str) -> bool:
        """Acknowledge a model's alarms; False when that is noted, and taken in when the watch runs again.

        Raises:
            NotWatched: it watches no such stream.
            DriftWatchAway: it can't be told.
        """
        ...


def drift_routes(plane: ControlPlane, guard: Guard, watch: DriftWatch | None) -> APIRouter:
    """What is seen, and an acknowledgement."""
    routes = APIRouter(prefix="/api/v1/drift")
    Asking = Annotated[Caller, Depends(guard)]  # noqa: N806 - a type

    def there() -> DriftWatch:
        if watch is None:
            raise NotWatched("there is no drift watch; on a cluster drift.enabled brings one")
        return watch

    turns = asyncio.Semaphore(AT_ONCE)

    async def asked(call: Callable[..., T], *given: Any) -> T:  # noqa: ANN401 - whatever it takes
        try:
            async with asyncio.timeout(TURN_S):
                await turns.acquire()
        except TimeoutError:
            raise DriftWatchAway("the drift watch still has earlier questions to answer; see its pod's log") from None
        try:
            return await asyncio.to_thread(call, *given)
        finally:
            turns.release()

    @routes.get("")
    async def status(caller: Asking) -> dict[str, Any]:
        found = await asked(there().status)
        names = plane.names_for(caller)
        return {"drift": found if names is None else narrowed(found, names)}

    @routes.post("/ack")
    async def ack(body: DriftAckBody, caller: Asking) -> dict[str, Any]:
        check_model(plane, caller, body.model)
        plane.require_known(caller, body.model)
        taken = await asked(there().acknowledge, body.model, body.stream, caller.actor, body.reason)
        bound = {"namespace": caller.namespace} if caller.namespace else {}
        note = {"event": "drift acknowledged", "actor": caller.actor, **bound, "model": body.model}
        log.info("%s", json.dumps({**note, "stream": body.stream}))
        return {"acknowledged": True, "taken_in": taken}

    return routes


def narrowed(found: Mapping[str, Any], names: frozenset[str]) -> dict[str, Any]:
    """A status without what is of other models.

    >>> narrowed({"written_at": 1.0, "streams": [{"model": "a"}, {"model": "b"}], "dropped": 2}, frozenset("a"))
    {'written_at': 1.0, 'streams': [{'model': 'a'}], 'requests': []}
    """
    parts = {name: [row for row in found.get(name, ()) if row["model"] in names] for name in ("streams", "requests")}
    return {"written_at": found["written_at"], **parts}
