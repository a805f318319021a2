"""The routes that change something about a rollout.

No `from __future__ import annotations` in modules with routes: FastAPI reads annotations of local functions.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from rollout.commands import Command, Verb
from rollout.control_api.authentication import Caller
from rollout.control_api.bodies import DeployBody, VerbBody
from rollout.control_api.guard import Guard, check_model
from rollout.control_api.plane import ControlPlane
from rollout.errors import CommandRefused
from rollout.specs import parse_spec


def acting_routes(plane: ControlPlane, guard: Guard) -> APIRouter:
    """Deployments and verbs. Each is in the event log, with who, from where and why, before it has any effect."""
    routes = APIRouter(prefix="/api/v1")
    Asking = Annotated[Caller, Depends(guard)]  # noqa: N806 - a type

    @routes.post("/rollouts", status_code=202)
    async def deploy(
        body: DeployBody, caller: Asking, dry_run: Annotated[bool, Query(alias="dryRun")] = False
    ) -> dict[str, Any]:
        spec = parse_spec(body.spec)
        check_model(plane, caller, spec.model)
        command = Command(
            verb=Verb.DEPLOY, actor=caller.actor, source=caller.source, namespace=caller.namespace, reason=body.reason
        )
        return await plane.deploy(spec, command, dry_run=dry_run)

    @routes.post("/rollouts/{model}/{verb}", status_code=202)
    async def act(model: str, verb: Verb, body: VerbBody, caller: Asking) -> dict[str, Any]:
        if verb is Verb.DEPLOY:
            raise CommandRefused("deploy goes to POST /api/v1/rollouts with a spec")
        command = Command(
            verb=verb,
            actor=caller.actor,
            source=caller.source,
            namespace=caller.namespace,
            reason=body.reason,
            full=body.full,
            version=body.version,
            replicas=body.replicas,
            most=body.most,
        )
        return await plane.verb(model, command, dry_run=body.dry_run, wait_s=body.wait_s)

    return routes
