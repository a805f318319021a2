"""A client of one connection, as small as it can be: it sees each piece when it comes, reads slowly, and hangs up."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass

PIECE_BYTES = 64 * 1024


class Broken(Exception):
    """The connection ended before the answer did."""


@dataclass(frozen=True)
class Head:
    """Status and headers of an answer, names in lower case."""

    status: int
    headers: dict[str, str]


class Wire:
    """One keep-alive connection to a gateway; it is made anew when it was closed between two requests."""

    def __init__(self, host: str, port: int, key: str) -> None:
        self._address = (host, port)
        self._key = key
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, path: str, body: dict[str, object], headers: dict[str, str] | None = None) -> Head:
        """Send a request, and wait for the head of its answer.

        Raises:
            Broken: the connection ended before it came.
        """
        data = json.dumps(body, ensure_ascii=False).encode()
        lines = [
            f"POST {path} HTTP/1.1",
            "host: soak",
            "content-type: application/json",
            f"authorization: Bearer {self._key}",
            f"content-length: {len(data)}",
            *(f"{name}: {value}" for name, value in (headers or {}).items()),
        ]
        message = "\r\n".join(lines).encode() + b"\r\n\r\n" + data
        kept = self._writer is not None
        try:
            return await self._send(message)
        except (OSError, asyncio.IncompleteReadError) as error:
            self.hang_up()
            if not kept or (isinstance(error, asyncio.IncompleteReadError) and error.partial):
                raise Broken(type(error).__name__) from error
        try:  # a kept connection may be closed just when it is used again; then nothing was answered
            return await self._send(message)
        except (OSError, asyncio.IncompleteReadError) as error:
            self.hang_up()
            raise Broken(type(error).__name__) from error

    async def _send(self, message: bytes) -> Head:
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(*self._address, limit=PIECE_BYTES)
        assert self._reader is not None
        self._writer.write(message)
        await self._writer.drain()
        first, *lines = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        fields = (line.partition(":") for line in lines if line)
        return Head(int(first.split(" ")[1]), {name.lower(): value.strip() for name, _, value in fields})

    async def pieces(self, head: Head, pause_s: float = 0.0) -> AsyncIterator[bytes]:
        """The body, piece by piece as it comes, with a pause after each.

        Raises:
            Broken: the connection ended before the body did.
        """
        assert self._reader is not None
        try:
            if "content-length" in head.headers:
                yield await self._reader.readexactly(int(head.headers["content-length"]))
            else:
                while size := int(await self._reader.readuntil(b"\r\n"), 16):
                    yield (await self._reader.readexactly(size + 2))[:-2]
                    if pause_s:
                        await asyncio.sleep(pause_s)
                await self._reader.readexactly(2)
        except (OSError, asyncio.IncompleteReadError, ValueError) as error:
            self.hang_up()
            raise Broken(type(error).__name__) from error
        if head.headers.get("connection", "").lower() == "close":
            self.hang_up()

    def hang_up(self) -> None:
        """Close the connection at once, whatever is under way on it."""
        if self._writer is not None:
            self._writer.transport.abort()
        self._reader = self._writer = None
