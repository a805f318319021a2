"""The routes of the request log: what gateways wrote of single requests. For data-readers; erasing is an admin's.

Who read what goes into the process's log. Reading files takes its time, so it is done in threads.

No `from __future__ import annotations` in modules with routes: FastAPI reads annotations of local functions.
"""

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Protocol

from fastapi import APIRouter, Depends, Path, Query

from rollout.control_api.authentication import Caller
from rollout.control_api.bodies import EraseBody
from rollout.control_api.guard import Guard, check_model
from rollout.control_api.plane import ControlPlane
from rollout.errors import RolloutError

log = logging.getLogger(__name__)

PAGE = 100
MAX_PAGE = 10_000


class UnknownRequest(RolloutError):
    """The log has no such request, or there is no log."""


class EraseIncomplete(RolloutError):
    """Not everything of a user is gone; the message says what is and what isn't. The same again goes on with it."""

    retryable = True


class LoggedRequests(Protocol):
    """The request log, as whoever puts the control plane together knows it. Its methods block."""

    def find(self, request_id: str) -> Mapping[str, Any] | None:
        """One request, by the id that its client or its engine was told."""
        ...

    def search(self, wanted: Mapping[str, Any], limit: int) -> list[Mapping[str, Any]]:
        """The newest that are wanted, oldest first."""
        ...

    def erase(self, user: str, until: float) -> int:
        """Take a user's requests out; how many lines that were. The user by the name that requests gave.

        Raises:
            EraseIncomplete: a part could not be reached.
        """
        ...


def request_routes(
    plane: ControlPlane, guard: Guard, logged: LoggedRequests | None, clock: Callable[[], float]
) -> APIRouter:
    """Requests: one, those that are wanted, and the end of one user's."""
    routes = APIRouter(prefix="/api/v1/requests")
    Asking = Annotated[Caller, Depends(guard)]  # noqa: N806 - a type

    def there() -> LoggedRequests:
        if logged is None:
            raise UnknownRequest("this control plane has no request log; `request_log_ratio` on the gateways makes one")
        return logged

    @routes.get("")
    async def search(
        caller: Asking,
        since: Annotated[float, Query(description="Seconds since the epoch.")] = 0.0,
        until: Annotated[float | None, Query(description="The same; else now.")] = None,
        model: Annotated[str, Query(max_length=63)] = "",
        version: Annotated[str, Query(max_length=64)] = "",
        outcome: Annotated[str, Query(max_length=32, description="ok, retried, error, timeout, ...")] = "",
        signal: Annotated[str, Query(max_length=96, description="Only those that showed it.")] = "",
        rating: Annotated[str, Query(pattern="^(up|down|)$", description="Only those that were rated so.")] = "",
        with_prompt: Annotated[bool, Query(description="Only those whose text was kept.")] = False,
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE, description="How many at most, the newest.")] = PAGE,
    ) -> dict[str, Any]:
        check_model(plane, caller, model or None)
        wanted = {
            "since": since, "until": clock() if until is None else until, "model": model, "version": version,
            "outcome": outcome, "signal": signal, "rating": rating, "with_prompt": with_prompt,
            "models": plane.names_for(caller),
        }  # fmt: skip
        found = await asyncio.to_thread(there().search, wanted, limit)
        _note("requests read", caller, count=len(found))
        return {"requests": found}

    @routes.get("/{request_id}")
    async def find(request_id: Annotated[str, Path(max_length=256)], caller: Asking) -> dict[str, Any]:
        found = await asyncio.to_thread(there().find, request_id)
        names = plane.names_for(caller)
        if found is None or (names is not None and found.get("model") not in names):
            raise UnknownRequest(
                f"request {request_id!r} is not in the log: it may have been left out of the sample, be too old, or "
                "not be written yet (that takes half a second)"
            )
        _note("request read", caller, request_id=request_id)
        return {"request": found}

    @routes.post("/erase")
    async def erase(body: EraseBody, caller: Asking) -> dict[str, Any]:
        until = clock()
        lines = await asyncio.to_thread(there().erase, body.user, until)
        _note("user erased", caller, lines=lines)
        return {"erased": lines, "until": until}

    return routes


def _note(event: str, caller: Caller, **fields: object) -> None:
    bound = {"namespace": caller.namespace} if caller.namespace else {}
    log.info("%s", json.dumps({"event": event, "actor": caller.actor, **bound, **fields}))
