"""A gateway's line to the drift watch: over a socket of this machine, or over a cluster's network with a key."""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from serving.gateway.logs import log
from serving.gateway.resolving import addresses_of
from serving.introduction import LEAST_KEY_CHARACTERS, MAX_FRAME_BYTES, NONCE_BYTES, GatewaySide
from serving.sightings import MAX_FRAME_BYTES as MAX_SAID_BYTES
from serving.sightings import BrokenFrame, Frames, Scored, scored_of

WITHIN_S = 5.0
"""For the name to be found, the connection to be made and the watch to prove its key."""


@dataclass(frozen=True, slots=True)
class LocalWatch:
    """The watch of this machine."""

    socket: Path


@dataclass(frozen=True, slots=True)
class RemoteWatch:
    """The watch of a cluster."""

    host: str
    port: int
    key_file: Path
    """Read for each connection, so that a Secret that was changed is taken up by the next one."""


class WatchAway(Exception):
    """There is no watch to tell anything. The message is for logs."""


def read_key(path: Path) -> str:
    """The key that gateways and watch share.

    Raises:
        ValueError: it can't be read, or is too short to be one.
    """
    try:
        key = path.read_text().strip()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}; mount the Secret with the drift watch's key there") from None
    if len(key) < LEAST_KEY_CHARACTERS:
        raise ValueError(f"{path} has {len(key)} characters; a key has at least {LEAST_KEY_CHARACTERS}")
    return key


class Line(asyncio.Protocol):
    """One connection. Nothing may be told before `ready`; `ended` when it is over."""

    def __init__(self, heard: Callable[[Scored], object], introduction: GatewaySide | None) -> None:
        self._heard = heard
        self._introduction = introduction
        self._frames = Frames()
        loop = asyncio.get_running_loop()
        self.transport: asyncio.WriteTransport | None = None
        self.ready: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[None] = loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is there."""
        self.transport = cast("asyncio.WriteTransport", transport)
        if self._introduction is None:
            self.ready.set_result(None)
        else:
            self._frames.most_bytes = MAX_FRAME_BYTES

    def data_received(self, data: bytes) -> None:
        """The watch says something."""
        try:
            for body in self._frames.feed(data):
                if self._introduction is not None and not self._introduction.proved:
                    self._introduce(self._introduction, body)
                else:
                    self._heard(scored_of(body))
        except BrokenFrame as error:
            log(logging.WARNING, "drift-watch-unreadable", reason=str(error))
            assert self.transport is not None
            self.transport.close()

    def _introduce(self, introduction: GatewaySide, body: bytes) -> None:
        assert self.transport is not None
        reply = introduction.answer(body)
        if reply:
            self.transport.write(reply)
        else:
            self._frames.most_bytes = MAX_SAID_BYTES
            self.ready.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        for future in (self.ready, self.ended):
            if not future.done():
                future.set_result(None)


async def dial(watch: LocalWatch | RemoteWatch, heard: Callable[[Scored], object]) -> Line:
    """Connect, and prove the key where one is needed.

    Raises:
        WatchAway: nobody answers there, or not as a watch that holds the key.
    """
    loop = asyncio.get_running_loop()
    line: Line | None = None
    try:
        async with asyncio.timeout(WITHIN_S):
            if isinstance(watch, LocalWatch):
                _, line = await loop.create_unix_connection(lambda: Line(heard, None), str(watch.socket))
            else:
                introduction = GatewaySide(read_key(watch.key_file), secrets.token_hex(NONCE_BYTES))
                connection = await _connected(watch.host, watch.port)
                _, line = await loop.create_connection(lambda: Line(heard, introduction), sock=connection)
            await line.ready
    except TimeoutError:
        _close(line)
        raise WatchAway(f"no answer within {WITHIN_S:g} s") from None
    except (OSError, ValueError) as error:
        raise WatchAway(getattr(error, "strerror", None) or str(error) or type(error).__name__) from None
    except asyncio.CancelledError:
        _close(line)
        raise
    if line.ended.done():
        raise WatchAway("the connection was closed before the watch had proved its key")
    return line


def _close(line: Line | None) -> None:
    if line is not None and line.transport is not None:
        line.transport.close()


async def _connected(host: str, port: int) -> socket.socket:
    loop = asyncio.get_running_loop()
    failure = OSError(f"{host} has no address")
    for family, kind, protocol, _, address in await addresses_of(host, port):
        connection = socket.socket(family, kind, protocol)
        try:
            connection.setblocking(False)
            notice_silence(connection)
            await loop.sock_connect(connection, address)
        except BaseException as error:
            connection.close()
            if not isinstance(error, OSError):
                raise
            failure = error
        else:
            return connection
    raise failure


def notice_silence(connection: socket.socket) -> None:
    """Have the kernel end a connection whose other end has gone without a word, as with a node that was lost."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 20_000)
