"""A receiver of webhooks over a real socket, which checks signatures as the standard says."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Request:
    """One request as it came."""

    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers.get("webhook-id", "")


class Receiver:
    """Answers 204 to what is signed with its secret and 401 to the rest; `answers` are given first, one by one."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self.requests: list[Request] = []
        self.accepted: list[Request] = []
        self.answers: list[int] = []
        self.location = ""
        self.hang = False
        self.came = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/hook"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            pairs = (line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
            headers = {name.lower(): value for name, value in pairs}
            body = await reader.readexactly(int(headers["content-length"]))
            status = self._judge(Request(headers, body))
            if self.hang:
                await asyncio.sleep(3600)
            location = f"location: {self.location}\r\n" if self.location else ""
            writer.write(f"HTTP/1.1 {status} X\r\n{location}content-length: 0\r\nconnection: close\r\n\r\n".encode())
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def _judge(self, request: Request) -> int:
        self.requests.append(request)
        self.came.set()
        if self.answers:
            return self.answers.pop(0)
        if not self._signed(request):
            return 401
        self.accepted.append(request)
        return 204

    def _signed(self, request: Request) -> bool:
        signed = f"{request.id}.{request.headers['webhook-timestamp']}.".encode() + request.body
        expected = base64.b64encode(hmac.new(self._secret, signed, hashlib.sha256).digest()).decode()
        told = [part.removeprefix("v1,") for part in request.headers["webhook-signature"].split()]
        return any(hmac.compare_digest(expected, t) for t in told)
