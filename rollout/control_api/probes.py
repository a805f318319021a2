"""The routes of bias probes' reports: kept by whoever probed, read by whoever wants to know.

No `from __future__ import annotations` in modules with routes: FastAPI reads annotations of local functions.
"""

import asyncio
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path

from rollout.control_api.authentication import Caller
from rollout.control_api.guard import Guard
from rollout.control_api.plane import ControlPlane
from rollout.errors import RolloutError
from rollout.probes.base import ProbeReport, ProbeReports

AHEAD_S = 3600.0
"""How far the clock of whoever probed may be before ours: a report from the future could not be replaced."""


class UnknownReport(RolloutError):
    """The version was never probed, or its report was too long ago to be kept."""


class InvalidReport(RolloutError):
    """A report of another version than the path says, or of a time to come."""


def probe_routes(
    plane: ControlPlane, guard: Guard, reports: ProbeReports | None, clock: Callable[[], float]
) -> APIRouter:
    """Reports: a version's last one, and a new one."""
    routes = APIRouter(prefix="/api/v1/probes")
    Asking = Annotated[Caller, Depends(guard)]  # noqa: N806 - a type
    Version = Annotated[str, Path(max_length=255)]  # noqa: N806

    def there() -> ProbeReports:
        if reports is None:
            raise UnknownReport("this control plane keeps no reports of bias probes")
        return reports

    @routes.get("/{model}/{version}")
    async def find(model: str, version: Version, _: Asking) -> dict[str, Any]:
        found = await asyncio.to_thread(there().load, model, version)
        if found is None:
            raise UnknownReport(f"{model}@{version} was never probed; `tidegate probe run {model}@{version}` does it")
        return {"report": found.model_dump(mode="json")}

    @routes.put("/{model}/{version}")
    async def put(model: str, version: Version, body: ProbeReport, _: Asking) -> dict[str, Any]:
        plane.controller.status(model)  # a model that nobody deployed has no version to probe
        if (body.model, body.version) != (model, version):
            raise InvalidReport(f"the report is of {body.model}@{body.version}, the path of {model}@{version}")
        if body.at > clock() + AHEAD_S:
            raise InvalidReport("the report is over an hour ahead of this control plane's clock; set the clocks right")
        await asyncio.to_thread(there().save, body)
        return {"kept": True}

    return routes
