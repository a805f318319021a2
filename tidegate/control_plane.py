"""The control plane's process: `python -m tidegate.control_plane`. Composition root of the controller.

Reads its settings from the environment and `$TIDEGATE_HOME`; the supervisor starts it and starts it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any

import uvicorn

from console.page import mount_console
from registry.promotion import Moment
from rollout.control_api import ControlPlane, create_app
from rollout.controller import Controller
from rollout.errors import LogConflict
from rollout.event_log.sql import SqlEventLog
from rollout.status import ModelStatus, Stage
from rollout.traffic_routers.gateway import GatewayRouter
from rollout.versions import Versions
from rollout.workloads.ray_serve import RayServeWorkloads
from tidegate.composition import build_registry
from tidegate.settings import Settings, load_settings

log = logging.getLogger("tidegate.control_plane")

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


def read_token(settings: Settings) -> str:
    """The control plane's key; made on first use, readable by the owner alone."""
    path = settings.credentials_file
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(32))
    return path.read_text().strip()


class Aliases:
    """Moves the registry's aliases behind the statuses, in the order in which those changed."""

    def __init__(self, versions: Versions) -> None:
        self._versions = versions
        self._told: dict[str, list[tuple[Moment, str]]] = {}
        self._moves: asyncio.Queue[tuple[Moment, str, str]] = asyncio.Queue()

    def follow(self, status: ModelStatus) -> None:
        """Queue the moves that one model's status asks for."""
        moments = list(_moments(status))
        if moments != self._told.get(status.model):
            self._told[status.model] = moments
            for moment, version in moments:
                self._moves.put_nowait((moment, status.model, version))

    async def run(self) -> None:
        """Make the queued moves, for ever."""
        while True:
            moment, model, version = await self._moves.get()
            await self._versions.moved(moment, model, version)


def _moments(status: ModelStatus) -> Iterator[tuple[Moment, str]]:
    """What the registry should know of a model now."""
    rollout = status.rollout
    if rollout is not None and rollout.stage is Stage.WITHDRAWN:
        yield Moment.ABANDONED, rollout.target.version
    if status.canary is not None:
        yield Moment.DEPLOYED, status.canary.version
    elif status.stable is not None:
        yield Moment.HEALTHY, status.stable.version


async def serve(settings: Settings) -> int:
    """Run the controller and its API until told to stop. Returns the process's exit code."""
    if settings.host not in LOOPBACK:
        log.error("host %s is not loopback, and the control plane has no keys yet; use 127.0.0.1", settings.host)
        return 2
    token = read_token(settings)
    router = GatewayRouter(time.monotonic)
    versions = Versions(build_registry(settings))
    controller = Controller(
        event_log=SqlEventLog(settings.event_log_url),
        workloads=RayServeWorkloads(
            settings.ray_file, log_dir=settings.log_dir, host=settings.host, serve_port=settings.serve_port
        ),
        router=router,
        holder=f"{socket.gethostname()}:{settings.home}",
        clock=time.time,
        new_id=lambda: secrets.token_hex(8),
    )
    aliases = Aliases(versions)
    controller.subscribe(aliases.follow)
    plane = ControlPlane(controller, router, versions, token)
    app = create_app(plane, platform=lambda: _platform(settings))
    mount_console(app)
    config = uvicorn.Config(
        app, host=settings.host, port=settings.control_port, log_level="warning", access_log=False, lifespan="off"
    )
    server = uvicorn.Server(config)
    return await _run(server, controller, aliases)


async def _run(server: uvicorn.Server, controller: Controller, aliases: Aliases) -> int:
    moving = asyncio.create_task(aliases.run())
    serving = asyncio.create_task(server.serve())
    leading = asyncio.create_task(controller.run())
    done, _ = await asyncio.wait({serving, leading}, return_when=asyncio.FIRST_COMPLETED)
    code = 0
    if leading in done:
        code = _why_it_ended(leading)
        server.should_exit = True
    else:
        leading.cancel()
    moving.cancel()
    await asyncio.gather(serving, leading, moving, return_exceptions=True)
    return code


def _why_it_ended(leading: asyncio.Task[None]) -> int:
    error = leading.exception()
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, LogConflict):
        log.warning("%s; starting again as a follower", error)
        return 3
    log.error("the controller ended: %s", error, exc_info=error)
    return 1


def _platform(settings: Settings) -> dict[str, Any]:
    return {"addresses": {"gateway": settings.gateway_url, "control": settings.control_url}}


def main() -> None:
    """Entry of the process."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(asyncio.run(serve(load_settings())))


if __name__ == "__main__":
    main()
