"""Where gateways tell the drift watch of requests: a local stream socket that only this user can open."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import cast

from serving.drift.worker import Worker
from serving.sightings import BrokenFrame, Frames, Scored, frame, sighting_of

logger = logging.getLogger("tidegate.drift")

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


class GatewayLine(asyncio.Protocol):
    """One gateway's line."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._frames = Frames()
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A gateway is there."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """It tells of requests."""
        try:
            for body in self._frames.feed(data):
                self._worker.offer(sighting_of(body), self._from_worker)
        except BrokenFrame as error:
            logger.warning("a gateway's line is closed: %s", error)
            assert self._transport is not None
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone."""
        self._transport = None

    def _from_worker(self, scored: Scored) -> None:
        self._loop.call_soon_threadsafe(self._answer, scored)

    def _answer(self, scored: Scored) -> None:
        transport = self._transport
        if transport is not None and transport.get_write_buffer_size() < UNSENT_BYTES:
            transport.write(frame(scored))
