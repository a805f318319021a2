"""What the guardrails' models answer over HTTP, whoever runs them: a process of its own, or a replica on Ray Serve."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from guardrails.errors import CheckFailed
from serving.ray_app.asgi import Application, Receive, Scope, Send, lifespan

EXAMINE = "/v1/examine"
MOST_BODY_BYTES = 16 * 1024 * 1024

Answer = Callable[[bytes], Awaitable[bytes]]
"""The hits for the texts of one request. Raises ValueError where it is none, CheckFailed where a model can't run."""
Page = Callable[[Scope], tuple[int, Any] | None]
"""Status and JSON of what is asked for by GET; None where there is nothing."""

Metrics = Callable[[str], tuple[bytes, str]]
"""The exposition for an `Accept` header, and its content type."""

logger = logging.getLogger("tidegate.guardrails")


def application(answer: Answer, page: Page, served: str, metrics: Metrics | None = None) -> Application:
    """An ASGI application; a function, since uvicorn takes methods for ASGI 2.

    Args:
        answer: examines texts.
        page: answers what is asked for by GET.
        served: says in words what else is served, for whoever asks for something else.
        metrics: what GET /metrics is answered; None where something else collects them.
    """

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
        elif scope["type"] == "http":
            content_type = "application/json"
            if metrics is not None and (scope["method"], scope["path"]) == ("GET", "/metrics"):
                status, (body, content_type) = 200, metrics(_accepted(scope))
            else:
                status, body = await _respond(scope, receive, answer, page, served)
            headers = [(b"content-type", content_type.encode()), (b"cache-control", b"no-store")]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": body})

    return serve


async def _respond(scope: Scope, receive: Receive, answer: Answer, page: Page, served: str) -> tuple[int, bytes]:
    if scope["method"] in ("GET", "HEAD"):
        found = page(scope)
        if found is not None:
            return found[0], json.dumps(found[1]).encode()
    if scope["method"] != "POST" or not str(scope["path"]).endswith(EXAMINE):
        return 404, _error(f"only POST {EXAMINE} and {served} are answered here")
    body = await _body_of(receive)
    if body is None:
        return 413, _error(f"more than {MOST_BODY_BYTES} bytes; send fewer texts")
    try:
        return 200, await answer(body)
    except ValueError as error:
        return 400, _error(str(error))
    except CheckFailed as error:
        logger.warning("a model could not be run: %s", error)
        return 503, _error(type(error).__name__)


def _accepted(scope: Scope) -> str:
    return next((value.decode("latin-1") for name, value in scope["headers"] if name == b"accept"), "")


def _error(message: str) -> bytes:
    return json.dumps({"error": message}).encode()


async def _body_of(receive: Receive) -> bytes | None:
    """The body of a request; None when it is too long."""
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > MOST_BODY_BYTES:
            return None
        if not message.get("more_body"):
            return bytes(body)
