"""The kubelet's end of a port-forward, as the API server passes it through: WebSocket, `v4.channel.k8s.io`.

After k8s.io/kubelet/pkg/cri/streaming/portforward (websocket.go): of the i-th port, channel 2i carries data and 2i+1
errors; both begin with the port's number in two bytes, little-endian. Data is copied 32 KiB at a time; what can't be
connected is told on the error channel; when the pod's side ends, a close frame is sent and the connection closed,
without waiting for the client's.
"""

from __future__ import annotations

import asyncio
import contextlib

from aiohttp import WSMsgType, web

from tests.kubernetes.api_errors import Refused

PROTOCOL = "v4.channel.k8s.io"
BUFFER_BYTES = 32 * 1024


class Kubelet:
    """Of all pods of a cluster."""

    def __init__(self) -> None:
        self.ports: dict[tuple[str, str, int], tuple[str, int]] = {}
        """What listens: by namespace, pod and port, where it really is."""
        self.forwards = 0
        """How many port-forwards there were."""

    async def forward(self, request: web.Request, namespace: str, pod: str) -> web.StreamResponse:
        """Answer a request for `pods/portforward`."""
        if request.headers.get("Upgrade", "").lower() != "websocket":
            raise Refused(400, "BadRequest", "you must specify at least 1 port, and upgrade the connection")
        port = int(request.query["ports"])
        line = web.WebSocketResponse(protocols=(PROTOCOL,), compress=False, autoclose=False)
        await line.prepare(request)
        assert line.ws_protocol == PROTOCOL
        self.forwards += 1
        for channel in (0, 1):
            await line.send_bytes(bytes((channel,)) + port.to_bytes(2, "little"))
        try:
            reader, writer = await asyncio.open_connection(*self.ports[namespace, pod, port])
        except (OSError, KeyError):
            told = f"error forwarding port {port} to pod 5f0c, uid : failed to connect to localhost:{port} inside"
            await line.send_bytes(b"\x01" + told.encode() + b' namespace: dial tcp4: connect: connection refused"')
        else:
            await _copy(line, reader, writer)
        if request.transport is not None:
            with contextlib.suppress(ConnectionError):
                assert line._writer is not None
                await line._writer.close(1000, b"")
            request.transport.close()
        return line


async def _copy(line: web.WebSocketResponse, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    async def outward() -> None:
        while data := await reader.read(BUFFER_BYTES):
            await line.send_bytes(b"\x00" + data)

    async def inward() -> None:
        async for message in line:
            if message.type is WSMsgType.BINARY and message.data[:1] == b"\x00":
                writer.write(message.data[1:])
                await writer.drain()

    ways = [asyncio.ensure_future(way()) for way in (outward, inward)]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        writer.close()
