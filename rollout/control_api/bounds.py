"""A bound on request bodies, for every route, before anything reads them."""

from __future__ import annotations

import contextlib

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rollout.control_api.errors import error_answer

MAX_BODY_BYTES = 256 * 1024
PATIENCE = 4
"""So many bounds are read, and thrown away, before the answer."""


class BodyTooLarge(Exception):
    """A body went over the bound while it was read."""


class BoundedBodies:
    """ASGI middleware: a body above the bound is answered with 413, whether its length was told or not."""

    def __init__(self, app: ASGIApp, limit_bytes: int = MAX_BODY_BYTES) -> None:
        self._app = app
        self._limit_bytes = limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        told = dict(scope["headers"]).get(b"content-length", b"0")
        if told.isdigit() and int(told) > self._limit_bytes:
            await self._refuse(scope, receive, send)
            return
        await self._counted(scope, receive, send)

    async def _counted(self, scope: Scope, receive: Receive, send: Send) -> None:
        taken, over = 0, False

        async def counted() -> Message:
            nonlocal taken, over
            message = await receive()
            taken += len(message.get("body", b""))
            over = over or taken > self._limit_bytes
            if over:
                raise BodyTooLarge
            return message

        async def muted(message: Message) -> None:
            if not over:  # what the application makes of a body that ended in an error is not the answer
                await send(message)

        with contextlib.suppress(BodyTooLarge):
            await self._app(scope, counted, muted)
        if over:
            # A client that is still sending would see a broken connection instead of the answer.
            while taken <= PATIENCE * self._limit_bytes:
                message = await receive()
                taken += len(message.get("body", b""))
                if not message.get("more_body", False):
                    break
            await self._refuse(scope, receive, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        message = f"the body is larger than {self._limit_bytes} bytes, which is the limit; send less"
        answer = error_answer(413, "too_large", message, {"connection": "close"})
        await answer(scope, receive, send)
