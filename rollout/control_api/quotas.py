"""The routes of quotas: what all keys of a namespace may use together.

No `from __future__ import annotations` in modules with routes: FastAPI reads annotations of local functions.
"""

import json
import logging
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path

from rollout.access import sees
from rollout.control_api.authentication import Caller
from rollout.control_api.bodies import Namespace, QuotaBody
from rollout.control_api.guard import Guard
from rollout.control_api.plane import ControlPlane
from rollout.errors import RolloutError
from serving.keys import Quota

log = logging.getLogger(__name__)

MAX_QUOTAS = 1_000
"""Every gateway holds all of them, and tells how far each is used."""


class UnknownQuota(RolloutError):
    """The namespace has none."""


class InvalidQuota(RolloutError):
    """A quota that would limit nothing, or one too many."""


def quota_routes(plane: ControlPlane, guard: Guard, clock: Callable[[], float]) -> APIRouter:
    """Quotas: set, listed, removed."""
    routes = APIRouter(prefix="/api/v1/quotas")
    Asking = Annotated[Caller, Depends(guard)]  # noqa: N806 - a type
    Named = Annotated[Namespace, Path(description="The keys' namespace; `*`: those that are good in all.")]  # noqa: N806

    @routes.get("")
    async def list_(caller: Asking) -> dict[str, Any]:
        plane.controller.require_leadership()
        mine = (q for q in plane.keys.quotas() if sees(caller.namespace, q.namespace))
        return {"quotas": [q.model_dump(mode="json") for q in mine]}

    @routes.put("/{namespace}")
    async def put(namespace: Named, body: QuotaBody, caller: Asking) -> dict[str, Any]:
        plane.controller.require_leadership()
        quota = Quota(namespace=namespace, **body.model_dump(), set_at=clock())
        if not any(limit is not None for limit in body.model_dump().values()):
            raise InvalidQuota(
                "a quota of nothing limits nothing; give requests_per_minute, tokens_per_minute or concurrency, or "
                f"take it away with `tidegate quota remove {namespace}`"
            )
        others = {q.namespace for q in plane.keys.quotas()} - {namespace}
        if len(others) >= MAX_QUOTAS:
            raise InvalidQuota(f"there are {MAX_QUOTAS} quotas, which is the limit; `tidegate quota remove` an old one")
        await plane.keys.put_quota(quota)
        _log("quota set", quota, caller)
        return {"quota": quota.model_dump(mode="json")}

    @routes.delete("/{namespace}")
    async def remove(namespace: Named, caller: Asking) -> dict[str, Any]:
        plane.controller.require_leadership()
        found = next((q for q in plane.keys.quotas() if q.namespace == namespace), None)
        if found is None:
            raise UnknownQuota(f"namespace {namespace} has no quota; `tidegate quota list` shows those there are")
        await plane.keys.drop_quota(namespace)
        _log("quota removed", found, caller)
        return {"quota": found.model_dump(mode="json")}

    return routes


def _log(event: str, quota: Quota, caller: Caller) -> None:
    line = {"event": event, **quota.model_dump(mode="json", exclude={"set_at"})}
    log.info("%s", json.dumps({**line, "actor": caller.actor, "source": caller.source}))
