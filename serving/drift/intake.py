"""Where gateways tell the drift watch of requests: a local stream socket that only this user can open.

On a cluster it is a port, whose callers prove a key before anything else (`serving.introduction`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from pathlib import Path
from typing import cast

from serving.drift.worker import Worker
from serving.gateway.drift_line import notice_silence
from serving.introduction import MAX_FRAME_BYTES, NONCE_BYTES, WatchSide
from serving.sightings import MAX_FRAME_BYTES as MAX_SAID_BYTES
from serving.sightings import BrokenFrame, Frames, Scored, frame, sighting_of

logger = logging.getLogger("tidegate.drift")

MOST_LINES = 1024
"""Over a network, with those that have not proved the key yet. One per gateway process."""
INTRODUCED_WITHIN_S = 5.0

UNSENT_BYTES = 64 * 1024
"""Scores that a gateway does not read are dropped beyond this."""


async def listen(path: Path, worker: Worker) -> asyncio.AbstractServer:
    """Listen for gateways. A socket that a killed watch left is taken over.

    Raises:
        OSError: It can't be made.

    """
    _make_way(path)
    old = os.umask(0o177)
    try:
        loop = asyncio.get_running_loop()
        return await loop.create_unix_server(lambda: GatewayLine(worker), str(path))
    finally:
        os.umask(old)


def _make_way(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.unlink(missing_ok=True)


async def listen_on(listener: socket.socket, key: str, worker: Worker) -> asyncio.AbstractServer:
    """Listen for gateways of a cluster, on a bound socket."""
    notice_silence(listener)  # what is accepted has it too
    door = Door()
    loop = asyncio.get_running_loop()
    return await loop.create_server(lambda: GatewayLine(worker, key, door), sock=listener)


class Door:
    """How many lines are open over the network."""

    def __init__(self) -> None:
        self.open = 0


class GatewayLine(asyncio.Protocol):
    """One gateway's line.

    Args:
        worker: takes what it tells.
        key: what it has to prove first; "" on the local socket.
        door: counts the lines of a port.

    """

    def __init__(self, worker: Worker, key: str = "", door: Door | None = None) -> None:
        self._worker = worker
        self._door = door
        self._frames = Frames()
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._introduction = WatchSide(key, secrets.token_hex(NONCE_BYTES)) if key else None
        self._patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A gateway is there, or somebody who says so."""
        self._transport = cast("asyncio.Transport", transport)
        if self._door is not None:
            self._door.open += 1
        if self._introduction is None:
            return
        if self._door is not None and self._door.open > MOST_LINES:
            logger.warning("%d lines of gateways are open, the limit; one more is closed", MOST_LINES)
            self._transport.close()
            return
        self._frames.most_bytes = MAX_FRAME_BYTES
        self._patience = self._loop.call_later(INTRODUCED_WITHIN_S, self._transport.abort)
        self._transport.write(self._introduction.greeting)

    def data_received(self, data: bytes) -> None:
        """It tells of requests, once it has proved the key."""
        try:
            for body in self._frames.feed(data):
                if self._introduction is None:
                    self._worker.offer(sighting_of(body), self._from_worker)
                else:
                    self._introduce(self._introduction, body)
        except BrokenFrame as error:
            logger.warning("a gateway's line is closed: %s", error)
            assert self._transport is not None
            self._transport.close()

    def _introduce(self, introduction: WatchSide, body: bytes) -> None:
        assert self._transport is not None
        self._transport.write(introduction.answer(body))
        self._introduction = None
        self._frames.most_bytes = MAX_SAID_BYTES
        if self._patience is not None:
            self._patience.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone."""
        self._transport = None
        if self._door is not None:
            self._door.open -= 1
        if self._patience is not None:
            self._patience.cancel()

    def _from_worker(self, scored: Scored) -> None:
        self._loop.call_soon_threadsafe(self._answer, scored)

    def _answer(self, scored: Scored) -> None:
        transport = self._transport
        if transport is not None and transport.get_write_buffer_size() < UNSENT_BYTES:
            transport.write(frame(scored))
