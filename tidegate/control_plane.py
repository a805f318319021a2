"""The control plane's process: `python -m tidegate.control_plane`. Composition root of the controller.

Reads its settings from the environment and `$TIDEGATE_HOME`; the supervisor starts it and starts it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import signal
import socket
import sys
import time
from collections.abc import Coroutine, Iterator, Mapping
from functools import partial
from typing import Any

import uvicorn

from console.page import mount_console
from registry.promotion import Moment
from rollout.access import parse_networks
from rollout.accounts.sql import SqlAccountStore
from rollout.announcer import Announcer
from rollout.control_api.app import create_app
from rollout.control_api.authentication import Authenticator
from rollout.control_api.plane import ControlPlane, KeyIndex
from rollout.controller import Controller
from rollout.errors import ClusterError, EventLogUnavailable, InvalidSpec, LogConflict, UnusableStore
from rollout.event_log.sql import SqlEventLog
from rollout.judges import judge_from_file, judge_policy
from rollout.notifications.sql import SqlCursors
from rollout.operator.election import Election
from rollout.operator.running import Operator
from rollout.probes.sql import SqlProbeReports
from rollout.status import ModelStatus, Stage
from rollout.traffic_routers.gateway import GatewayRouter
from rollout.versions import Versions
from rollout.workloads.ray_serve import RayServeWorkloads
from serving.orderly_server import OrderlyServer
from tidegate.composition import (
    build_bias_gate,
    build_drift_gate,
    build_election,
    build_leader_label,
    build_operator,
    build_poller,
    build_registry,
    build_smoke_runner,
)
from tidegate.drift_watch import HomesDriftWatch
from tidegate.errors import WrongUse
from tidegate.mounted import MIN_TOKEN_CHARS, book_gateway_key, open_store, read_gateway_key, read_mounted
from tidegate.on_kubernetes import build_cluster_parts
from tidegate.probe_files import adopt_reports
from tidegate.request_log import HomesRequestLog
from tidegate.runfile import write_private
from tidegate.settings import Settings, load_settings
from tidegate.webhooks import adopt_cursors, build_webhooks

log = logging.getLogger("tidegate.control_plane")

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
CLOSING_S = 2.0
"""How long open requests may go on when it stops. Event streams never end by themselves."""


def read_token(settings: Settings) -> str:
    """The bootstrap token, an admin's; made on first use, readable by the owner alone. A mounted one is only read.

    Raises:
        WrongUse: a mounted one can't be read or is too short.
    """
    path = settings.credentials_file
    if settings.control_token_file is not None:
        return read_mounted(path, "control_token_file")
    token = path.read_text().strip() if path.exists() else ""
    if not token:  # also after a crash between making the file and writing it
        token = secrets.token_urlsafe(32)
        write_private(path, token + "\n")
    path.chmod(0o600)
    return token


def check_bind(host: str, token: str) -> None:
    """Refuse to be reached from elsewhere without authentication.

    Raises:
        WrongUse: the host is not loopback and the bootstrap token could be guessed.
    """
    if host not in LOOPBACK and len(token) < MIN_TOKEN_CHARS:
        raise WrongUse(
            f"host {host} is not loopback, and the token in the credentials file has {len(token)} characters, fewer "
            f"than {MIN_TOKEN_CHARS}; remove the file, and a good one is made, or use 127.0.0.1"
        )


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
    try:
        token = read_token(settings)
        check_bind(settings.host, token)
        gateway_key = read_gateway_key(settings)
        webhooks = build_webhooks(settings, time.time)
        judge_text = judge_from_file(settings.judge_policy_file)
        database = open_store(settings)
        cluster = build_cluster_parts(settings, time.monotonic) if settings.platform == "kubernetes" else None
    except (WrongUse, InvalidSpec, ClusterError, UnusableStore, EventLogUnavailable) as error:
        log.error("%s", error)  # noqa: TRY400 - a wrong setting needs no trace
        return WrongUse.exit_code if isinstance(error, WrongUse | InvalidSpec) else 1
    event_log, accounts = SqlEventLog(database), SqlAccountStore(database)
    cursors = SqlCursors(database)
    adopt_cursors(cursors, settings.webhook_cursors_file)
    probes = SqlProbeReports(database)
    adopt_reports(probes, settings.home / "probes")
    if gateway_key is not None:
        book_gateway_key(accounts, gateway_key, now=time.time())
    router = cluster.router if cluster is not None else GatewayRouter(time.monotonic)
    versions = Versions(
        build_registry(settings),
        judge=partial(judge_policy, text=judge_text),
        cluster=cluster.home if cluster is not None else None,
    )
    holder = f"{settings.pod_name or socket.gethostname()}:{settings.home}"
    smoke = build_smoke_runner(settings, accounts, holder, now=time.time())
    controller = Controller(
        event_log=event_log,
        accounts=accounts,
        workloads=cluster.workloads
        if cluster is not None
        else RayServeWorkloads(
            settings.ray_file,
            log_dir=settings.log_dir,
            host=settings.host,
            serve_port=settings.serve_port,
            guards=settings.guard_models == "service",
        ),
        router=router,
        holder=holder,
        clock=time.time,
        new_id=lambda: secrets.token_hex(8),
        smoke=smoke,
    )
    try:
        poller = build_poller(settings, controller, router)
    except WrongUse as error:
        log.error("%s", error)  # noqa: TRY400
        return error.exit_code
    aliases = Aliases(versions)
    controller.subscribe(aliases.follow)
    announcer = Announcer(
        event_log=event_log,
        notifiers=webhooks,
        cursors=cursors,
        leads=lambda: controller.leads,
        clock=time.time,
    )
    controller.subscribe(announcer.wake)
    authenticator = Authenticator(
        token=token,
        namespaced=settings.platform == "kubernetes",
        keys=KeyIndex(controller, controller.accounting),
        clock=time.time,
        monotonic=time.monotonic,
        trusted_proxies=parse_networks(settings.trusted_proxies),
    )
    plane = ControlPlane(
        controller=controller,
        router=router,
        versions=versions,
        keys=controller.accounting,
        accounts=accounts,
        authenticator=authenticator,
    )
    try:
        operator, election = build_operator(settings, controller, plane), build_election(settings)
        label = build_leader_label(settings, controller)
        if cluster is not None and operator is not None:
            cluster.owners.look = operator.reconciler.owner_of
    except ClusterError as error:
        log.error("%s", error)  # noqa: TRY400
        return 1
    app = create_app(
        plane,
        platform=lambda: _platform(settings, announcer, operator),
        clock=time.time,
        logged=HomesRequestLog(settings),
        probes=probes,
        drift=HomesDriftWatch(settings) if settings.drift else None,
    )
    mount_console(app)
    # uvicorn would believe X-Forwarded-For from loopback; whom we believe is in the settings.
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.control_port,
        log_level="warning",
        access_log=False,
        lifespan="off",
        proxy_headers=False,
        timeout_graceful_shutdown=int(CLOSING_S),
    )
    # Closing the store empties SQLite's write-ahead log into its file, which then is all there is to copy or replace.
    with contextlib.closing(database):
        async with smoke:
            beside = {"aliases": aliases.run(), "notifications": announcer.run()}
            beside["drift gate"] = build_drift_gate(settings, controller).run()
            beside["bias gate"] = build_bias_gate(probes, controller).run()
            if poller is not None:
                beside["measuring"] = poller.run()
            if cluster is not None:
                beside |= {name: work() for name, work in cluster.beside.items()}
            if operator is not None:
                beside["operator"] = operator.run()
            if label is not None:
                beside["leader label"] = label.run()
            return await _run(OrderlyServer(config), lead(controller, election), beside)


async def lead(controller: Controller, election: Election | None) -> None:
    """Lead when possible. Where there is an election, who has lost it does not even try.

    Raises:
        LogConflict: the leadership was lost; the process should start again.
    """
    if election is None:
        await controller.run()
        return
    await election.elected()
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(controller.run())
            tasks.create_task(election.keep())
    finally:
        await election.give_back()


async def _run(
    server: OrderlyServer, to_lead: Coroutine[Any, Any, None], beside: Mapping[str, Coroutine[Any, Any, None]]
) -> int:
    """Serve and lead until one of the two ends; what runs beside them may fail without stopping rollouts."""
    others = [asyncio.create_task(work, name=name) for name, work in beside.items()]
    for task in others:
        task.add_done_callback(_note_end)
    server.stop_on(signal.SIGTERM, signal.SIGINT)
    serving = asyncio.create_task(server.serve())
    leading = asyncio.create_task(to_lead)
    done, _ = await asyncio.wait({serving, leading}, return_when=asyncio.FIRST_COMPLETED)
    code = 0
    if leading in done:
        code = _why_it_ended(leading)
        server.should_exit = True
    else:
        leading.cancel()
    for task in others:
        task.cancel()
    await asyncio.gather(serving, leading, *others, return_exceptions=True)
    return code


def _note_end(task: asyncio.Task[None]) -> None:
    """What can't go on beside the rollouts is a defect to be seen, and no reason to stop them."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("%s ended: %s", task.get_name(), error, exc_info=error)


def _why_it_ended(leading: asyncio.Task[None]) -> int:
    error = leading.exception()
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, LogConflict):
        log.warning("%s; starting again as a follower", error)
        return 3
    log.error("the controller ended: %s", error, exc_info=error)
    return 1


def _platform(settings: Settings, announcer: Announcer, operator: Operator | None) -> dict[str, Any]:
    addresses = {"gateway": settings.gateway_url, "control": settings.control_url}
    cluster = {"cluster": {"message": operator.message}} if operator is not None else {}
    return {"addresses": addresses, "webhooks": announcer.state, **cluster}


def main() -> None:
    """Entry of the process."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("kopf").setLevel(logging.ERROR)  # it warns that it leaves signals alone, which is meant
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(asyncio.run(serve(load_settings())))


if __name__ == "__main__":
    main()
