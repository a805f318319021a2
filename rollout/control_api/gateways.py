"""The socket that gateways dial."""

import logging

from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from pydantic import ValidationError

from rollout.access import WEBSOCKET, right_of
from rollout.control_api.authentication import Caller, Forbidden, TooManyFailures, Unauthorized
from rollout.control_api.errors import log_refusal
from rollout.control_api.guard import check
from rollout.control_api.plane import ControlPlane
from rollout.controller import NotLeading
from serving.outcomes import FROM_GATEWAY, Hello, Refused

log = logging.getLogger(__name__)

PATH = "/internal/v1/gateway"


def gateway_routes(plane: ControlPlane) -> APIRouter:
    """The socket. Its guard is its own: a socket's refusal is a close code, not an answer."""
    routes = APIRouter()

    @routes.websocket(PATH)
    async def gateway(socket: WebSocket) -> None:
        try:
            caller = _admit(plane, socket)
        except Forbidden as error:
            await socket.close(code=4403, reason=str(error)[:120])
        except (Unauthorized, TooManyFailures) as error:
            await socket.close(code=4401, reason=str(error)[:120])
        except NotLeading:
            await socket.close(code=4503, reason="this controller does not lead yet")
        else:
            await socket.accept()
            await _serve(plane, socket, caller)

    return routes


def _admit(plane: ControlPlane, socket: WebSocket) -> Caller:
    peer = socket.client.host if socket.client is not None else ""
    source = plane.authenticator.source(peer, ", ".join(socket.headers.getlist("x-forwarded-for")))
    actor = bound = ""
    try:
        caller = plane.authenticator.identify(socket.headers.get("authorization"), "gateway", source)
        actor, bound = caller.actor, caller.namespace
        check(caller, right_of(WEBSOCKET, PATH), f"{WEBSOCKET} {PATH}")
    except (Forbidden, Unauthorized) as error:
        status, code = (403, "forbidden") if isinstance(error, Forbidden) else (401, error.code)
        log_refusal(status, code, method=WEBSOCKET, path=PATH, source=source, actor=actor, namespace=bound)
        raise
    return caller


async def _serve(plane: ControlPlane, socket: WebSocket, caller: Caller) -> None:
    connection = None
    try:
        if not plane.controller.leads:
            await socket.send_text(Refused(reason="this controller does not lead yet").model_dump_json())
            await socket.close(code=4503)
            return
        hello = FROM_GATEWAY.validate_json(await socket.receive_text(), extra="ignore")
        if not isinstance(hello, Hello):
            await socket.close(code=4400, reason="the first message must be hello")
            return
        connection = await plane.router.attach(hello, socket.send_text, lambda: socket.close(code=4503))
        log.info("gateway %s connected", hello.gateway)
        while plane.authenticator.still_good(caller):
            await plane.router.receive(connection, await socket.receive_text())
        await socket.close(code=4401, reason="the key was revoked or has expired")
    except WebSocketDisconnect:
        pass
    except ValidationError as error:
        log.warning("a gateway sent what can't be read: %d faults", error.error_count())
        await socket.close(code=4400, reason="unreadable message")
    finally:
        if connection is not None:
            plane.router.detach(connection)
            log.info("gateway %s went away", connection.hello.gateway)
