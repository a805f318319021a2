"""`pods/portforward` over a WebSocket: a frame's first byte says the channel, two for each port, data and errors."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping

from aiohttp import web

from tests.kubernetes.api_errors import bad_request, forbidden
from tests.kubernetes.rbac import Access, Request

PATH = re.compile(r"^/api/v1/namespaces/(?P<namespace>[^/]+)/pods/(?P<pod>[^/]+)/portforward$")
PROTOCOL = "v4.channel.k8s.io"
VERBS = ("get", "create")
"""A WebSocket begins with a GET; from Kubernetes 1.35 on `create` is asked for beside it."""

Forwards = Mapping[tuple[str, str, int], int]
"""(namespace, pod, port) -> a port on loopback that stands for it."""


async def forwarded(request: web.Request, user: str, access: Access, forwards: Forwards) -> web.StreamResponse | None:
    """Answer a request for a forward; None for any other."""
    asked = PATH.match(request.path)
    if asked is None:
        return None
    for verb in VERBS:
        if not access.allows(user, Request(verb, "", "pods/portforward", asked["namespace"], asked["pod"])):
            raise forbidden(user, verb, "pods/portforward", "", asked["namespace"], asked["pod"])
    ports = [int(port) for port in request.query.get("ports", "").split(",") if port]
    if len(ports) != 1 or PROTOCOL not in request.headers.get("Sec-WebSocket-Protocol", ""):
        raise bad_request("unable to upgrade: you must specify at least 1 port and a known subprotocol")
    socket = web.WebSocketResponse(protocols=(PROTOCOL,))
    await socket.prepare(request)
    for channel in (0, 1):
        await socket.send_bytes(bytes([channel]) + ports[0].to_bytes(2, "little"))
    reader, writer = await asyncio.open_connection("127.0.0.1", forwards[asked["namespace"], asked["pod"], ports[0]])

    async def back() -> None:
        while data := await reader.read(65536):
            await socket.send_bytes(b"\0" + data)
        await socket.close()

    backward = asyncio.get_running_loop().create_task(back())
    try:
        async for message in socket:
            if message.data[:1] == b"\0":
                writer.write(message.data[1:])
    finally:
        backward.cancel()
        writer.close()
    return socket
