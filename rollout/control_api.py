"""The control plane over HTTP: status, commands, events, and the socket that gateways dial.

Everything but `/healthz` wants a bearer key. Errors have one shape, `{"error": {"code", "message"}}`, and the
message gives the value, the limit and the way out.
"""

import asyncio
import hmac
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Header, Query, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from monitoring.instruments import RolloutInstruments
from registry.errors import RegistryError, UnknownModel, UnknownVersion
from rollout.commands import Command, Target, Verb
from rollout.controller import Controller, NotLeading
from rollout.decide import Decision
from rollout.errors import CommandRefused, InvalidSpec, Quarantined, RolloutError, UnknownRollout
from rollout.replay import replay
from rollout.reports import history_entry, measurement, report
from rollout.specs import RolloutSpec, parse_spec
from rollout.status import ModelStatus
from rollout.traffic_routers.gateway import GatewayRouter
from rollout.versions import Versions
from serving.outcomes import FROM_GATEWAY, Hello, Refused

log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
"""The largest message taken from a gateway."""

STATUS_OF: dict[type[Exception], tuple[int, str]] = {
    UnknownRollout: (404, "unknown_rollout"),
    UnknownModel: (404, "unknown_model"),
    UnknownVersion: (404, "unknown_version"),
    InvalidSpec: (400, "invalid_spec"),
    CommandRefused: (409, "refused"),
    Quarantined: (409, "quarantined"),
    NotLeading: (503, "not_leading"),
}


class Unauthorized(Exception):
    """No key, or not one that is known."""


class DeployBody(BaseModel):
    """A wish, as the CLI and scripts send it."""

    model_config = ConfigDict(extra="forbid")

    spec: dict[str, Any]
    reason: str = Field(default="", max_length=1000)


class VerbBody(BaseModel):
    """The arguments of a verb."""

    model_config = ConfigDict(extra="forbid")

    reason: str = Field(default="", max_length=1000)
    full: bool = False
    version: str | None = None
    dry_run: bool = False


class ControlPlane:
    """What the routes act on."""

    def __init__(self, controller: Controller, router: GatewayRouter, versions: Versions, token: str) -> None:
        self.controller = controller
        self.router = router
        self.versions = versions
        self._token = token

    def admit(self, authorization: str | None) -> None:
        """Let a caller with the right key pass.

        Raises:
            Unauthorized: in every other case.

        """
        given = (authorization or "").removeprefix("Bearer ").strip()
        if not hmac.compare_digest(given.encode(), self._token.encode()):
            raise Unauthorized

    def report(self, status: ModelStatus) -> dict[str, Any]:
        """A model's status document."""
        model = status.model
        return report(status, self.controller.observation(model), self.controller.waiting_for(model))

    async def deploy(self, spec: RolloutSpec, command: Command, *, dry_run: bool) -> dict[str, Any]:
        """Resolve and verify the version, then start its rollout."""
        version, deployed = await self.versions.resolve(spec)
        answer = await self._carry_out(spec.model, command, self.controller.new_target(spec, deployed), dry_run)
        if dry_run:
            answer["plan"] |= {"bump": version.bump, "bump_reason": version.bump_reason}
        return answer

    async def verb(self, model: str, command: Command, *, dry_run: bool) -> dict[str, Any]:
        """Carry out any other verb."""
        target = await self._target(self.controller.status(model), command)
        return await self._carry_out(model, command, target, dry_run)

    async def _target(self, status: ModelStatus, command: Command) -> Target | None:
        """What the verb would have to start, if anything."""
        rollout = status.rollout
        match command.verb:
            case Verb.RETRY:
                if rollout is None:
                    raise CommandRefused(
                        f"retry: {status.model} has no rollout to repeat; `tidegate deploy` starts one"
                    )
                return await self._target_of(rollout.spec)
            case Verb.UNDO:
                return await self._earlier(status, command.version, emergency=False)
            case Verb.ROLLBACK if self._must_start(status, command):
                return await self._earlier(status, command.version, emergency=True)
            case _:
                return None

    @staticmethod
    def _must_start(status: ModelStatus, command: Command) -> bool:
        """Whether a rollback goes to something that does not run any more."""
        running = {d.version for d in status.running()}
        if command.version is not None:
            return command.version not in running
        return status.canary is None and status.previous is None and status.stable is not None

    async def _earlier(self, status: ModelStatus, version: str | None, *, emergency: bool) -> Target:
        if version is None:
            stable = status.stable
            found = None if stable is None else await self.versions.earlier(status.model, stable.version)
            if found is None:
                raise CommandRefused(f"{status.model} has no earlier version in the registry; name one with --to")
            version = found.version
        base = status.rollout.spec if status.rollout is not None else RolloutSpec(model=status.model, version=version)
        spec = base.model_copy(update={"version": version, "emergency": emergency, "paused": False})
        return await self._target_of(spec)

    async def _target_of(self, spec: RolloutSpec) -> Target:
        _, deployed = await self.versions.resolve(spec)
        return self.controller.new_target(spec, deployed)

    async def _carry_out(self, model: str, command: Command, target: Target | None, dry_run: bool) -> dict[str, Any]:
        if dry_run:
            return {"plan": _said(self.controller.plan(model, command, target))}
        decision = await self.controller.execute(model, command, target)
        status = self.controller.status(model)
        return {"decision": _said(decision), "accepted_at": status.updated_at, "status": self.report(status)}


def _said(decision: Decision) -> dict[str, Any]:
    """A decision without its secrets."""
    actions = [a.model_dump(mode="json", exclude={"salt"}) for a in decision.actions]
    return {"cause": decision.cause, "reason": decision.reason, "actions": actions}


def create_app(plane: ControlPlane, *, platform: Callable[[], dict[str, Any]]) -> FastAPI:
    """Build the application. `platform` tells about the processes around the controller, for `/api/v1/status`."""
    app = FastAPI(title="Tidegate control plane", version="1", docs_url=None, redoc_url=None)
    _install_errors(app)
    app.include_router(_health(plane))
    app.include_router(_reading(plane, platform))
    app.include_router(_acting(plane))
    app.include_router(_gateways(plane))
    return app


def _guard(plane: ControlPlane) -> Callable[..., Awaitable[str]]:
    async def admitted(
        authorization: Annotated[str | None, Header()] = None,
        x_tidegate_actor: Annotated[str | None, Header(max_length=128)] = None,
    ) -> str:
        plane.admit(authorization)
        return x_tidegate_actor or "operator"

    return admitted


def _health(plane: ControlPlane) -> APIRouter:
    routes = APIRouter()

    instruments = RolloutInstruments()

    @routes.get("/healthz")
    async def healthz() -> dict[str, Any]:
        return {"status": "ok", "leads": plane.controller.leads}

    @routes.get("/metrics")
    async def metrics(accept: Annotated[str, Header()] = "") -> Response:
        controller = plane.controller
        measured = [measurement(s, controller.observation(s.model)) for s in controller.statuses]
        body, content_type = instruments.render(measured, controller.rollbacks, accept)
        return Response(body, headers={"content-type": content_type})

    return routes


def _reading(plane: ControlPlane, platform: Callable[[], dict[str, Any]]) -> APIRouter:
    controller = plane.controller
    routes = APIRouter(prefix="/api/v1", dependencies=[Depends(_guard(plane))])

    @routes.get("/status")
    async def status() -> dict[str, Any]:
        connections = plane.router.connections
        return {
            "controller": {"leads": controller.leads},
            "gateways": [
                {"gateway": c.hello.gateway, "boot": c.hello.boot, "generation": list(c.applied)} for c in connections
            ],
            "ray": {"available": not controller.workload_message, "message": controller.workload_message},
            **platform(),
        }

    @routes.get("/models")
    async def models() -> dict[str, Any]:
        controller.require_leadership()
        keys = ("model", "stable", "canary", "phase")
        return {"models": [{k: plane.report(s)[k] for k in keys} for s in controller.statuses]}

    @routes.get("/rollouts")
    async def rollouts() -> dict[str, Any]:
        controller.require_leadership()
        return {"rollouts": [plane.report(s) for s in controller.statuses]}

    @routes.get("/rollouts/{model}")
    async def rollout(model: str) -> dict[str, Any]:
        return plane.report(controller.status(model))

    @routes.get("/rollouts/{model}/history")
    async def history(model: str, evidence: Annotated[bool, Query()] = False) -> dict[str, Any]:
        controller.status(model)
        return {"entries": [history_entry(e) for e in controller.entries(model, evidence=evidence)]}

    @routes.get("/rollouts/{model}/replay")
    async def replayed(model: str) -> dict[str, Any]:
        controller.status(model)
        decisions = replay(controller.entries(model, evidence=False))
        return {
            "decisions": [
                {
                    "id": d.id,
                    "at": d.at,
                    "same": d.same,
                    "recorded": _said(d.recorded),
                    "today": None if d.today is None else _said(d.today),
                }
                for d in decisions
            ]
        }

    @routes.get("/events")
    async def events() -> StreamingResponse:
        return StreamingResponse(_status_stream(plane), media_type="text/event-stream")

    return routes


async def _status_stream(plane: ControlPlane) -> AsyncIterator[str]:
    """Every change of a status as a server-sent event, and a comment every 15 s so that dead readers are noticed."""
    changes: asyncio.Queue[str] = asyncio.Queue(maxsize=100)

    def on_change(status: ModelStatus) -> None:
        if not changes.full():  # a reader that does not keep up misses steps, never the newest state for long
            changes.put_nowait(status.model)

    stop = plane.controller.subscribe(on_change)
    try:
        for status in plane.controller.statuses:
            yield f"data: {json.dumps(plane.report(status))}\n\n"
        while True:
            try:
                model = await asyncio.wait_for(changes.get(), 15.0)
            except TimeoutError:
                yield ": alive\n\n"
                continue
            yield f"data: {json.dumps(plane.report(plane.controller.status(model)))}\n\n"
    finally:
        stop()


def _acting(plane: ControlPlane) -> APIRouter:
    guard = _guard(plane)
    routes = APIRouter(prefix="/api/v1")
    Actor = Annotated[str, Depends(guard)]  # noqa: N806 - a type

    @routes.post("/rollouts", status_code=202)
    async def deploy(
        body: DeployBody, actor: Actor, dry_run: Annotated[bool, Query(alias="dryRun")] = False
    ) -> dict[str, Any]:
        command = Command(verb=Verb.DEPLOY, actor=actor, reason=body.reason)
        return await plane.deploy(parse_spec(body.spec), command, dry_run=dry_run)

    @routes.post("/rollouts/{model}/{verb}", status_code=202)
    async def act(model: str, verb: Verb, body: VerbBody, actor: Actor) -> dict[str, Any]:
        if verb is Verb.DEPLOY:
            raise CommandRefused("deploy goes to POST /api/v1/rollouts with a spec")
        command = Command(verb=verb, actor=actor, reason=body.reason, full=body.full, version=body.version)
        return await plane.verb(model, command, dry_run=body.dry_run)

    return routes


def _gateways(plane: ControlPlane) -> APIRouter:
    routes = APIRouter()

    @routes.websocket("/internal/v1/gateway")
    async def gateway(socket: WebSocket) -> None:
        try:
            plane.admit(socket.headers.get("authorization"))
        except Unauthorized:
            await socket.close(code=4401, reason="a bearer key is needed")
            return
        await socket.accept()
        await _serve_gateway(plane, socket)

    return routes


async def _serve_gateway(plane: ControlPlane, socket: WebSocket) -> None:
    connection = None
    try:
        if not plane.controller.leads:
            await socket.send_text(Refused(reason="this controller does not lead yet").model_dump_json())
            await socket.close(code=4503)
            return
        hello = FROM_GATEWAY.validate_json(await socket.receive_text())
        if not isinstance(hello, Hello):
            await socket.close(code=4400, reason="the first message must be hello")
            return
        connection = await plane.router.attach(hello, socket.send_text)
        log.info("gateway %s connected", hello.gateway)
        while True:
            await plane.router.receive(connection, await socket.receive_text())
    except WebSocketDisconnect:
        pass
    except ValidationError as error:
        log.warning("a gateway sent what can't be read: %d faults", error.error_count())
        await socket.close(code=4400, reason="unreadable message")
    finally:
        if connection is not None:
            plane.router.detach(connection)
            log.info("gateway %s went away", connection.hello.gateway)


def _install_errors(app: FastAPI) -> None:
    async def refuse(_: Request, error: Exception) -> JSONResponse:
        status, code = STATUS_OF.get(type(error), (500, "internal"))
        if status == 500 and isinstance(error, RegistryError):
            status, code = (503, "registry_busy") if error.retryable else (409, "registry")
        if status == 500 and isinstance(error, RolloutError):
            status, code = (503, "unavailable") if error.retryable else (400, "refused")
        return _error(status, code, str(error))

    async def unauthorized(_: Request, __: Exception) -> JSONResponse:
        way_out = "a bearer key is needed; the local CLI reads it from $TIDEGATE_HOME/credentials"
        return _error(401, "unauthorized", way_out)

    app.add_exception_handler(RolloutError, refuse)
    app.add_exception_handler(RegistryError, refuse)
    app.add_exception_handler(Unauthorized, unauthorized)


def _error(status: int, code: str, message: str) -> JSONResponse:
    return JSONResponse({"error": {"code": code, "message": message}}, status_code=status)
