"""Errors over HTTP: one shape, `{"error": {"code", "message"}}`, whatever went wrong.

What was refused goes into the process's log as one JSON line: who, from where, what, why. Keys, bodies and free text
of clients are not in it.
"""

import json
import logging
from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from registry.errors import RegistryError, UnknownModel, UnknownVersion
from rollout.control_api.authentication import Caller, Forbidden, TooManyFailures, Unauthorized
from rollout.control_api.drift import DriftWatchAway, NotWatched
from rollout.control_api.keys import InvalidKey, UnknownKey
from rollout.control_api.probes import InvalidReport, UnknownReport
from rollout.control_api.quotas import InvalidQuota, UnknownQuota
from rollout.control_api.requests import EraseIncomplete, UnknownRequest
from rollout.controller import NotLeading
from rollout.errors import CommandRefused, InsufficientCapacity, InvalidSpec, Quarantined, RolloutError, UnknownRollout

log = logging.getLogger(__name__)

STATUS_OF: dict[type[Exception], tuple[int, str]] = {
    UnknownRollout: (404, "unknown_rollout"),
    UnknownModel: (404, "unknown_model"),
    UnknownVersion: (404, "unknown_version"),
    InvalidSpec: (400, "invalid_spec"),
    CommandRefused: (409, "refused"),
    Quarantined: (409, "quarantined"),
    InsufficientCapacity: (409, "insufficient_capacity"),
    NotLeading: (503, "not_leading"),
    UnknownKey: (404, "no_such_key"),
    InvalidKey: (400, "invalid_key"),
    UnknownQuota: (404, "no_such_quota"),
    InvalidQuota: (400, "invalid_quota"),
    UnknownReport: (404, "not_probed"),
    InvalidReport: (400, "invalid_report"),
    UnknownRequest: (404, "unknown_request"),
    EraseIncomplete: (503, "erase_incomplete"),
    NotWatched: (404, "not_watched"),
    DriftWatchAway: (503, "drift_watch_away"),
}

LOGGED = frozenset({401, 403, 409, 429})


def error_answer(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An error as every route answers it."""
    return JSONResponse({"error": {"code": code, "message": message}}, status_code=status, headers=headers)


def log_refusal(
    status: int, code: str, *, method: str, path: str, source: str, actor: str = "", namespace: str = ""
) -> None:
    """One line about a refused request. `path` comes from a client; JSON keeps it in one line.

    `namespace` is the one that the actor is bound to.
    """
    line = {"event": "refused", "status": status, "code": code, "actor": actor, "source": source}
    line |= {"namespace": namespace} if namespace else {}
    log.warning("%s", json.dumps({**line, "method": method, "path": path[:256]}))


def classify(error: Exception) -> tuple[int, str]:
    """The HTTP status and the code of an error of ours."""
    for kind in type(error).__mro__:
        if kind in STATUS_OF:
            return STATUS_OF[kind]
    if isinstance(error, RegistryError):
        return (503, "registry_busy") if error.retryable else (409, "registry")
    if isinstance(error, RolloutError):
        return (503, "unavailable") if error.retryable else (400, "refused")
    return 500, "internal"


def install_errors(app: FastAPI) -> None:
    """Make every error of the application have the one shape."""

    def answer(
        request: Request, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
    ) -> JSONResponse:
        if status in LOGGED:
            caller: Caller | None = getattr(request.state, "caller", None)
            source = getattr(request.state, "source", "")
            actor, bound = (caller.actor, caller.namespace) if caller is not None else ("", "")
            log_refusal(
                status, code, method=request.method, path=request.url.path, source=source, actor=actor, namespace=bound
            )
        return error_answer(status, code, message, headers)

    async def refuse(request: Request, error: Exception) -> JSONResponse:
        status, code = classify(error)
        headers = {"retry-after": "1"} if status == 503 else None
        return answer(request, status, code, str(error), headers)

    async def unauthorized(request: Request, error: Exception) -> JSONResponse:
        code = error.code if isinstance(error, Unauthorized) else "unauthorized"
        return answer(request, 401, code, str(error), {"www-authenticate": "Bearer"})

    async def forbidden(request: Request, error: Exception) -> JSONResponse:
        return answer(request, 403, "forbidden", str(error))

    async def too_many(request: Request, error: Exception) -> JSONResponse:
        wait_s = error.retry_after_s if isinstance(error, TooManyFailures) else 60
        return answer(request, 429, "too_many_failures", str(error), {"retry-after": str(wait_s)})

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return answer(request, 400, "invalid_request", _complaints(error))

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        code = {404: "unknown_route", 405: "wrong_method"}.get(error.status_code, "refused")
        message = f"{error.detail}: {request.method} {request.url.path[:256]}; GET /openapi.json lists what there is"
        return answer(request, error.status_code, code, message, error.headers)

    async def internal(request: Request, error: Exception) -> JSONResponse:
        log.error("%s %s failed", request.method, request.url.path[:256], exc_info=error)
        message = f"the control plane failed ({type(error).__name__}); `tidegate logs controller` has the trace"
        return answer(request, 500, "internal", message)

    app.add_exception_handler(RolloutError, refuse)
    app.add_exception_handler(RegistryError, refuse)
    app.add_exception_handler(Unauthorized, unauthorized)
    app.add_exception_handler(Forbidden, forbidden)
    app.add_exception_handler(TooManyFailures, too_many)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, internal)


def _complaints(error: RequestValidationError) -> str:
    """Each field that is wrong and what is allowed, without what was sent: it may be a secret in the wrong place."""
    told = []
    for fault in error.errors()[:5]:
        where = ".".join(str(part) for part in fault["loc"] if part not in ("body", "query", "path"))
        what = "unknown field" if fault["type"] == "extra_forbidden" else fault["msg"].removeprefix("Value error, ")
        told.append(f"{where}: {what}" if where else what)
    return "; ".join(told)
