"""The one door: every route passes here, and what is not in rollout/access.py does not open.

No `from __future__ import annotations` in modules with routes: FastAPI reads annotations of local functions.
"""

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends, Header, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from rollout.access import Right, may, needed, right_of
from rollout.control_api.authentication import Authenticator, Caller, Forbidden
from rollout.control_api.plane import ControlPlane
from serving.keys import ControlRole

NOBODY = Caller(actor="", source="", roles=frozenset())
BEARER = HTTPBearer(auto_error=False, description="A key with a role, or the bootstrap token.")

Guard = Callable[..., Awaitable[Caller]]


def guard_of(plane: ControlPlane) -> Guard:
    """The dependency that lets a caller in, or raises what tells why not."""

    async def admitted(
        request: Request,
        _: Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)] = None,
        x_tidegate_actor: Annotated[str | None, Header(max_length=128)] = None,
    ) -> Caller:
        path = str(getattr(request.scope.get("route"), "path", ""))
        right = right_of(request.method, path)
        request.state.source = source_of(plane.authenticator, request)
        if right is Right.OPEN:
            return NOBODY
        # The header itself, not what was parsed: an unknown scheme is told apart from no key at all.
        caller = plane.authenticator.identify(
            request.headers.get("authorization"), x_tidegate_actor, request.state.source
        )
        request.state.caller = caller
        check(caller, right, f"{request.method} {request.url.path[:256]}")
        if (model := request.path_params.get("model")) is not None:
            check_model(plane, caller, model)
            plane.require_known(caller, model)
        return caller

    return admitted


def source_of(authenticator: Authenticator, request: Request) -> str:
    """The address that a request came from."""
    peer = request.client.host if request.client is not None else ""
    return authenticator.source(peer, ", ".join(request.headers.getlist("x-forwarded-for")))


def check(caller: Caller, right: Right | None, what: str) -> None:
    """Whether a caller may do it.

    Raises:
        Forbidden: it lacks the role, which the message names, or is bound to a namespace and this concerns all.

    """
    if may(caller.roles, right, caller.namespace):
        return
    if may(caller.roles, right):
        raise Forbidden(
            f"{what} concerns every namespace; {caller.actor} is bound to {caller.namespace}. An admin of all makes a "
            "key for it with `tidegate key create NAME --namespace '*'`"
        )
    least = needed(right) if right is not None else ControlRole.ADMIN
    has = ", ".join(sorted(caller.roles)) or "none"
    raise Forbidden(f"{what} needs the role {least}; {caller.actor} has {has}. An admin makes a key that has it")


def check_model(plane: ControlPlane, caller: Caller, model: str | None) -> None:
    """Whether a caller may see and command a model; None and one that nobody has deployed are nobody's.

    Raises:
        Forbidden: it is another namespace's, which the message does not name.

    """
    if model is None or plane.may_see(caller, model):
        return
    raise Forbidden(
        f"model {model[:64]!r} is not of namespace {caller.namespace}, which is the only one that {caller.actor} may "
        "see and command. An admin makes a key of the model's namespace, or of all, with `tidegate key create NAME "
        "--namespace NAMESPACE`"
    )
