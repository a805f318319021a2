"""The gateway's end of the request log: hand finished requests to the writer's process, and never wait for it.

What is to be told gathers for a moment and goes through the pipe in one write. When the writer can't keep up, what
waits is bounded by bytes; beyond it requests are dropped and counted. A writer that dies is started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable

from serving.request_log.settings import WriterSettings

logger = logging.getLogger("tidegate.gateway")

TOGETHER_S = 0.02
"""How long a finished request waits for others."""
TOGETHER_BYTES = 128 * 1024
MOST_WAITING_BYTES = 32 * 1024 * 1024
"""Handed over but not yet taken by the writer; a few seconds of a busy gateway."""
AGAIN_AFTER_S = 1.0
AGAIN_MOST_S = 60.0
LASTED_S = 30.0
"""A writer that ended sooner could not begin, or hardly: starting one after the other would take time from others."""
CLOSE_WITHIN_S = 5.0


class LogSink:
    """One gateway's. Lives in its event loop; `start`, then `stop`."""

    def __init__(self, settings: Callable[[], WriterSettings], most_waiting_bytes: int = MOST_WAITING_BYTES) -> None:
        """Make one that writes nothing yet.

        Args:
            settings: the writer's; asked anew for each writer, since no two may share a boot.
            most_waiting_bytes: what may wait for the writer.
        """
        self.dropped = 0
        """Requests that were not logged, since the writer was away or too slow."""
        self._settings = settings
        self._most_waiting = most_waiting_bytes
        self._frames: list[bytes] = []
        self._size = 0
        self._timer: asyncio.TimerHandle | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._stopping = False

    async def start(self) -> None:
        """Start the writer."""
        await self._spawn()
        self._keeper = asyncio.create_task(self._keep())

    async def _spawn(self) -> None:
        argv = (sys.executable, "-m", "serving.request_log.writer", self._settings().model_dump_json())
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        self._process = await asyncio.create_subprocess_exec(*argv, stdin=asyncio.subprocess.PIPE, env=env)

    async def _keep(self) -> None:
        """Start the writer again when it ends: at once, and more and more slowly when it does not last."""
        pause_s = 0.0
        while True:
            assert self._process is not None
            began = time.monotonic()
            code = await self._process.wait()
            if self._stopping:
                return
            logger.error("the request log's writer ended with code %s; starting another one", code)
            if time.monotonic() - began < LASTED_S:
                await asyncio.sleep(pause_s)
                pause_s = min(AGAIN_MOST_S, max(AGAIN_AFTER_S, 2 * pause_s))
            else:
                pause_s = 0.0
            while True:
                try:
                    await self._spawn()
                    break
                except OSError as error:
                    logger.error("the request log's writer can't be started: %s", error)  # noqa: TRY400
                    await asyncio.sleep(AGAIN_AFTER_S)

    def offer(self, frame: bytes) -> None:
        """Take one finished request."""
        self._frames.append(frame)
        self._size += len(frame)
        if self._size >= TOGETHER_BYTES:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(TOGETHER_S, self.flush)

    def flush(self) -> None:
        """Hand over what waits, or drop it where the writer has not taken what came before."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        frames, self._frames, self._size = self._frames, [], 0
        pipe = self._process.stdin if self._process is not None else None
        if pipe is None or pipe.is_closing() or pipe.transport.get_write_buffer_size() > self._most_waiting:
            self.dropped += len(frames)
        elif frames:
            pipe.write(b"".join(frames))

    async def stop(self) -> None:
        """Hand over the last, and wait until it is written."""
        self._stopping = True
        self.flush()
        process = self._process
        if process is None:
            return
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
        try:
            async with asyncio.timeout(CLOSE_WITHIN_S):
                await process.wait()
        except TimeoutError:
            logger.error("the request log's writer takes long to end; it goes on by itself")  # noqa: TRY400
        if self._keeper is not None:
            self._keeper.cancel()
