"""The routes that only read.

No `from __future__ import annotations` in modules with routes: FastAPI reads annotations of local functions.
"""

import asyncio
import itertools
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query
from fastapi.responses import JSONResponse, Response, StreamingResponse

from monitoring.instruments import RolloutInstruments
from rollout.control_api.authentication import Caller
from rollout.control_api.feed import Feed
from rollout.control_api.guard import Guard, check_model
from rollout.control_api.plane import ControlPlane, said
from rollout.event_log.base import Entry
from rollout.replay import replay
from rollout.reports import history_entry, measurement
from rollout.schema import json_schema

PAGE = 1000
"""Entries of the log in one answer, unless told otherwise."""
MAX_PAGE = 10_000

Platform = Callable[[], dict[str, Any]]


def health_routes(plane: ControlPlane, guard: Guard) -> APIRouter:
    """What needs no key."""
    routes = APIRouter(dependencies=[Depends(guard)])
    instruments = RolloutInstruments()

    @routes.get("/healthz")
    async def healthz() -> dict[str, Any]:
        return {"status": "ok", "leads": plane.controller.leads}

    @routes.get("/readyz")
    async def readyz() -> JSONResponse:
        leads = plane.controller.leads
        missing = [] if leads else ["this controller does not lead; another one does, or will in a moment"]
        return JSONResponse({"ready": leads, "missing": missing}, status_code=200 if leads else 503)

    @routes.get("/metrics")
    async def metrics(accept: Annotated[str, Header()] = "") -> Response:
        controller = plane.controller
        taken_back, rollbacks = controller.folded.taken_back, controller.folded.rollbacks
        measured = [
            measurement(s, controller.observation(s.model), controller.waiting_for(s.model), taken_back.get(s.model))
            for s in controller.statuses
        ]
        # In a thread: of a thousand rollouts it takes most of a second, and no decision may wait for it.
        body, content_type = await asyncio.to_thread(instruments.render, measured, rollbacks.copy(), accept)
        return Response(body, headers={"content-type": content_type})

    return routes


def reading_routes(plane: ControlPlane, guard: Guard, platform: Platform) -> APIRouter:
    """The platform, models, rollouts."""
    controller = plane.controller
    routes = APIRouter(prefix="/api/v1", dependencies=[Depends(guard)])
    Asking = Annotated[Caller, Depends(guard)]  # noqa: N806 - a type

    @routes.get("/whoami")
    async def whoami(caller: Asking) -> dict[str, Any]:
        told = {"actor": caller.actor, "key": caller.key or None, "roles": sorted(caller.roles)}
        return {**told, "namespace": caller.namespace or None}

    @routes.get("/status")
    async def status() -> dict[str, Any]:
        connections = plane.router.connections
        return {
            "controller": {"leads": controller.leads},
            "gateways": [
                {"gateway": c.hello.gateway, "boot": c.hello.boot, "generation": list(c.applied)} for c in connections
            ],
            "store": {"available": not controller.store_message, "message": controller.store_message},
            "ray": {"available": not controller.workload_message, "message": controller.workload_message},
            **platform(),
        }

    @routes.get("/schema")
    async def schema() -> dict[str, Any]:
        return json_schema()

    @routes.get("/models")
    async def models(caller: Asking) -> dict[str, Any]:
        controller.require_leadership()
        keys = ("model", "stable", "canary", "phase")
        return {"models": [{k: plane.report(s)[k] for k in keys} for s in plane.seen_by(caller)]}

    @routes.get("/rollouts")
    async def rollouts(caller: Asking) -> dict[str, Any]:
        controller.require_leadership()
        return {"rollouts": [plane.report(s) for s in plane.seen_by(caller)]}

    @routes.get("/rollouts/{model}")
    async def rollout(model: str) -> dict[str, Any]:
        return plane.report(controller.status(model))

    return routes


def log_routes(plane: ControlPlane, guard: Guard) -> APIRouter:
    """What happened: from the log, in threads, since reading it may take longer than the controller may stand still."""
    controller = plane.controller
    routes = APIRouter(prefix="/api/v1", dependencies=[Depends(guard)])
    feed = Feed(plane)

    @routes.get("/rollouts/{model}/history")
    async def history(
        model: str,
        evidence: Annotated[bool, Query(description="Also what the gateways reported.")] = False,
        after: Annotated[int, Query(ge=0, description="Only entries with a higher id.")] = 0,
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE, description="How many at most.")] = PAGE,
    ) -> dict[str, Any]:
        controller.status(model)

        def read() -> list[dict[str, Any]]:
            entries = (e for e in controller.entries(model, evidence=evidence) if e.id > after)
            return [history_entry(e) for e in itertools.islice(entries, limit)]

        found = await asyncio.to_thread(read)
        return {"entries": found, "next_after": found[-1]["id"] if len(found) == limit else None}

    @routes.get("/rollouts/{model}/replay")
    async def replayed(model: str) -> dict[str, Any]:
        controller.status(model)

        def read() -> list[dict[str, Any]]:
            entries: list[Entry] = list(controller.entries(model, evidence=False))
            return [
                {
                    "id": d.id,
                    "at": d.at,
                    "same": d.same,
                    "recorded": said(d.recorded),
                    "today": None if d.today is None else said(d.today),
                }
                for d in replay(entries)
            ]

        return {"decisions": await asyncio.to_thread(read)}

    @routes.get("/events", response_class=StreamingResponse)
    async def events(
        caller: Annotated[Caller, Depends(guard)],
        model: Annotated[str | None, Query(max_length=63, description="Whom to follow; else every model.")] = None,
    ) -> StreamingResponse:
        controller.require_leadership()
        check_model(plane, caller, model)
        feed.check_room()
        frames = feed.follow(
            model,
            good=lambda: plane.authenticator.still_good(caller),
            sees=lambda name: plane.may_see(caller, name),
        )
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(frames, media_type="text/event-stream", headers=headers)

    return routes
