"""Run one gateway: `python -m serving.gateway.main --config '{"home": "/home/me/.tidegate"}' [--name gateway-0]`.

In a container: `--config-file /etc/tidegate/gateway.json`; what differs from pod to pod
is in the environment (`ENVIRONMENT`).

Both servers, the line to the controller and the endpoint poll live in one event loop of one process. SIGTERM or
SIGINT: readiness says no, the port is closed, keep-alive connections are closed with their next answer, streams may go
on for the drain window, then the last totals are sent and it ends. SIGHUP: the certificate is read again.

`--process 0`, `--process 1`, ... run several of them on one public port: the kernel spreads connections over them. Each
has its own admin port, counted up from the configured one, and a name of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import secrets
import signal
import sys
import time
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any

import uvloop

from serving.addresses import host_and_port
from serving.gateway import compiled

compiled.use()  # before any of what may be compiled is imported, so the imports below stand where they stand

from monitoring.instruments import GatewayInstruments
from serving.endpoints import Address, EndpointBook
from serving.errors import InvalidTable
from serving.gateway.app import AdminApp, DataApp
from serving.gateway.attempts import Attempts
from serving.gateway.channel import Channel
from serving.gateway.config import GatewayConfig, InvalidConfig
from serving.gateway.discovery import EndpointSource, StaticEndpoints
from serving.gateway.discovery_cluster import ClusterAccess, ClusterEndpoints
from serving.gateway.discovery_ray import RayServeEndpoints
from serving.gateway.drift_feed import DriftFeed
from serving.gateway.drift_line import LocalWatch, RemoteWatch
from serving.gateway.feedback import Feedback
from serving.gateway.guard_models import GuardModels
from serving.gateway.guard_replicas import GuardReplicas
from serving.gateway.guarded_way import GuardedWay
from serving.gateway.guarding import Guarding
from serving.gateway.http_server import HttpServer, ServerLimits
from serving.gateway.listening import PortTaken, bind
from serving.gateway.logs import configure, log
from serving.gateway.mirror import Mirroring
from serving.gateway.overseeing import Overseer
from serving.gateway.pipeline import Pipeline
from serving.gateway.protection import Protection
from serving.gateway.recorder import Recorder
from serving.gateway.request_ids import load_secret
from serving.gateway.resampler import Resampler
from serving.gateway.seams import Gatekeeper
from serving.gateway.telemetry import Telemetry
from serving.gateway.text_permission import TextPermission
from serving.gateway.tls import Certificate
from serving.gateway.traffic_state import TrafficState, load_table
from serving.gateway.upstream import UpstreamClient
from serving.limits import PromptDeaths
from serving.specs import GUARD_APPLICATION
from serving.traffic import TrafficTable

SWEEP_EVERY_S = 0.1
PRUNE_EVERY_S = 5.0
"""Also how often the certificate's files are looked at."""
ADMIN_LIMITS = ServerLimits(body_bytes=64 * 1024, connections=256)
ADMIN_DRAIN_S = 1.0
GC_AFTER_OBJECTS = 10_000
FLUSH_S = 0.15
"""One more round of events and totals."""


ENVIRONMENT = {
    "TIDEGATE_GATEWAY_NAME": "name",
    "TIDEGATE_GATEWAY_HOST": "host",
    "TIDEGATE_GATEWAY_ADMIN_HOST": "admin_host",
}
"""Variables that win over the configuration: pods share one file, and each has a name and addresses of its own."""


class Gateway:
    """One gateway with all its parts. Made inside a running event loop; `start`, then `stop`."""

    def __init__(
        self,
        config: GatewayConfig,
        source: EndpointSource | None = None,
        gatekeeper: Gatekeeper | None = None,
    ) -> None:
        """Make one that serves nothing yet.

        Raises:
            InvalidConfig: its certificate can't be used.
        """
        assert config.table_file is not None
        assert config.secret_file is not None
        assert config.credentials_file is not None
        self.config = config
        self.boot = secrets.token_hex(8)
        self.state = TrafficState(config.lease_s)
        self.book = EndpointBook()
        self.instruments = GatewayInstruments()
        loop = asyncio.get_running_loop()
        self.recorder = Recorder(self.instruments, loop.call_soon, time.monotonic, time.time)
        self.recorder.look_at(config.quality_per_s)
        self.source = source or _source(config)
        self.client = UpstreamClient(
            connect_timeout_s=config.connect_timeout_s,
            idle_timeout_s=config.idle_timeout_s,
            keepalive_s=config.keepalive_s,
        )
        self.protection = Protection(config, self.boot)
        self.mirroring = Mirroring(
            config.mirror, self.state, self.book, self.recorder, self.instruments,
            Attempts(self.book, self.client, self.recorder, PromptDeaths(), self.source.suspect, config.picking),
            self.protection.gatekeeper if gatekeeper is None else None, config.queue.endpoint_concurrency,
        )  # fmt: skip
        secret = load_secret(config.secret_file)
        self.drift: DriftFeed | None = None
        self.resampler: Resampler | None = None
        watch = _drift_watch(config)
        if watch is not None and config.drift_per_s > 0:
            self.drift = DriftFeed(watch, secret, config.drift_per_s, time.monotonic)
            self.drift.on_score = self.recorder.scored
            self.recorder.after_reading.append(self.drift)
            self.resampler = Resampler(
                config.resample,
                Attempts(self.book, self.client, self.recorder, PromptDeaths(), self.source.suspect, config.picking),
                self.drift, self.instruments, self.protection.gatekeeper.waiting,
            )  # fmt: skip
            self.recorder.after_reading.append(self.resampler)
        self.guard_replicas = GuardReplicas(config.guard.service) if config.guard.service else None
        self.guard_models = GuardModels(config.guard, self._guard_urls)
        self.guarding = Guarding(config.guard, self.guard_models, self.guard_models.crowded, self.instruments)
        self.guarding.on_models = self.guard_models.needed
        self.overseer = Overseer(config.guard, self.guarding, self.recorder, self.guarding.ask)
        self.mirroring.compare = self.overseer.compare
        self.texts = TextPermission()
        self.telemetry = Telemetry(config, may_tell=self.texts)
        self.recorder.observer = self.telemetry.observer
        pipeline = Pipeline(
            config, self.state, self.book, self.client, self.recorder, self.instruments, secret, self.source.suspect,
            gatekeeper or self.protection.gatekeeper, self.mirroring,
            lambda attempts: GuardedWay(self.guarding, self.overseer, self.recorder, attempts),
            self.telemetry.observer,
        )  # fmt: skip
        self.certificate: Certificate | None = None
        if config.tls_cert_file is not None and config.tls_key_file is not None:
            self.certificate = Certificate(config.tls_cert_file, config.tls_key_file)
        self.feedback = Feedback(secret, self.recorder, self.instruments, self.telemetry.observer)
        self.data_app = DataApp(pipeline, self.state, self.feedback)
        self.channel: Channel | None = None
        if config.control_url is not None:
            self.channel = Channel(
                gateway=config.name, boot=self.boot, control_url=config.control_url,
                credentials_file=config.credentials_file, table_file=config.table_file,
                state=self.state, book=self.book, recorder=self.recorder,
                keys=self.protection.keys, usage=self.protection.usage, usable=self.guarding.usable,
            )  # fmt: skip
        self.draining = False
        self.admin_app = AdminApp(
            self.state, self.book, self.recorder, self.instruments,
            draining=lambda: self.draining,
            connected=lambda: self.channel is not None and self.channel.connected, protection=self.protection,
            telemetry=self.telemetry,
        )  # fmt: skip
        self.state.on_applied(self.guarding.table_applied)
        self.state.on_applied(self.recorder.table_applied)
        self.state.on_applied(self.mirroring.table_applied)
        if self.telemetry.observer is not None:
            self.state.on_applied(self.texts.table_applied)
            self.state.on_applied(self.telemetry.observer.table_applied)
        self.state.on_applied(self.feedback.table_applied)
        self.state.on_applied(self._log_table)
        if isinstance(self.source, ClusterEndpoints):
            self.state.on_applied(self.source.follow)
        self.data_server = HttpServer(self.data_app, _limits(config))
        self.admin_server = HttpServer(self.admin_app, ADMIN_LIMITS)
        self._tasks: list[asyncio.Task[None]] = []
        self.port = config.port
        self.admin_port = config.admin_port

    def _guard_urls(self) -> list[str]:
        """The replicas of the guardrails' own service."""
        if self.guard_replicas is not None:
            return self.guard_replicas.urls
        return [endpoint.url for endpoint in self.book.of(GUARD_APPLICATION)]

    def _log_table(self, table: TrafficTable) -> None:
        weights = {m.model: {r.version: r.weight for r in m.revisions} for m in table.models}
        log(logging.INFO, "table-applied", fence=table.fence, sequence=table.sequence, weights=weights,
            age_s=round(time.time() - table.issued_at, 3))  # fmt: skip

    def _publish(self, endpoints: Mapping[str, Sequence[Address]]) -> None:
        if self.book.replace(endpoints):
            urls = {a: [e.url for e in self.book.of(a)] for a in endpoints}
            keys = frozenset((e.host, e.port) for a in endpoints for e in self.book.of(a))
            self.client.forget_endpoints(keys)
            log(logging.INFO, "endpoints-changed", endpoints=urls)

    async def start(self) -> None:
        """Bind both ports, load the last table, start everything.

        Raises:
            PortTaken: a port can't be had.
        """
        config = self.config
        assert config.table_file is not None
        data = bind(config.host, config.port, "--gateway-port", share=config.reuse_port)
        try:
            admin = bind(config.admin_host, config.admin_port, "--admin-port")
        except PortTaken:
            data.close()
            raise
        self.port, self.admin_port = data.getsockname()[1], admin.getsockname()[1]
        try:
            table = load_table(config.table_file)
            if table is not None:
                self.state.apply(table, time.time())
        except InvalidTable as e:
            log(logging.ERROR, "table-unreadable", reason=str(e))
        self.protection.load()
        self._follow_endpoints()
        await self.telemetry.start()
        await self.data_server.start(data, self.certificate.context if self.certificate is not None else None)
        await self.admin_server.start(admin)
        self._spawn(self.source.run(self._publish))
        self._spawn(self._housekeeping())
        self._spawn(self.protection.usage.run())
        for work in self.overseer.work():
            self._spawn(work)
        if self.channel is not None:
            self._spawn(self.channel.run())
        if self.drift is not None:
            self._spawn(self.drift.run())
        if self.guard_replicas is not None:
            self._spawn(self.guard_replicas.run())
        log(logging.INFO, "gateway-started", name=config.name, boot=self.boot, port=self.port,
            admin_port=self.admin_port, compiled=compiled.in_use())  # fmt: skip

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(_complain_if_dead)
        self._tasks.append(task)

    def _follow_endpoints(self) -> None:
        self.protection.follow(self.state.table, self.book.ready_counts(time.monotonic()))

    async def _housekeeping(self) -> None:
        pruned_at = time.monotonic()
        while True:
            await asyncio.sleep(SWEEP_EVERY_S)
            now = time.monotonic()
            prune = now - pruned_at > PRUNE_EVERY_S
            if prune:
                pruned_at = now
            try:
                self._keep_house(prune=prune)
            except Exception:  # the next sweep may work, and without sweeps watermarks stand still and memory grows
                logging.getLogger("tidegate.gateway").exception("a sweep failed; the next one follows")

    def _keep_house(self, *, prune: bool) -> None:
        self.recorder.sweep()
        self._follow_endpoints()
        if self.drift is not None:
            self.instruments.set_drift_untold(self.drift.dropped)
        if prune:
            self.recorder.prune()
            if self.certificate is not None:
                self.certificate.reload(if_changed=True)

    def reload(self) -> None:
        """Read again what may have changed on disk."""
        if self.certificate is not None:
            self.certificate.reload(if_changed=False)

    async def stop(self) -> None:
        """Stop accepting, let streams finish within the drain window, send the last outcomes, end."""
        self.draining = True
        self.mirroring.stop()
        if self.resampler is not None:
            self.resampler.stop()
        log(logging.INFO, "gateway-draining", window_s=self.config.drain_s)
        await asyncio.sleep(self.config.drain_delay_s)
        await self.data_server.drain(self.config.drain_s)
        self.recorder.flush()
        self.overseer.close()
        self.protection.usage.hurry()
        if self.channel is not None and self.channel.connected:
            await asyncio.sleep(FLUSH_S)
        await self.admin_server.drain(ADMIN_DRAIN_S)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.guarding.close()
        await self.protection.close()
        self.client.close()
        await self.telemetry.stop()
        log(logging.INFO, "gateway-stopped", name=self.config.name)


def _drift_watch(config: GatewayConfig) -> LocalWatch | RemoteWatch | None:
    if config.drift_address is not None and config.drift_key_file is not None:
        return RemoteWatch(*host_and_port(config.drift_address), config.drift_key_file)
    return LocalWatch(config.drift_socket) if config.drift_socket is not None else None


def _complain_if_dead(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        logging.getLogger("tidegate.gateway").error("a part of the gateway died", exc_info=task.exception())


def _limits(config: GatewayConfig) -> ServerLimits:
    return ServerLimits(
        body_bytes=config.max_body_bytes, connections=config.max_connections, head_within_s=config.head_within_s,
        body_within_s=config.body_within_s, idle_s=config.client_idle_s, write_within_s=config.write_within_s,
    )  # fmt: skip


def _source(config: GatewayConfig) -> EndpointSource:
    if config.endpoints is not None:
        return StaticEndpoints(config.endpoints)
    if config.cluster:
        return ClusterEndpoints(
            ClusterAccess(
                ray_token_file=config.ray_token_file, url=config.kubernetes_url,
                token_file=config.kubernetes_token_file, ca_file=config.kubernetes_ca_file,
            )
        )  # fmt: skip
    assert config.ray_file is not None
    return RayServeEndpoints(config.ray_file, config.serve_port)


async def serve(config: GatewayConfig, source: EndpointSource | None = None) -> None:
    """Run a gateway until SIGTERM or SIGINT.

    Raises:
        PortTaken: a port can't be had.
    """
    gateway = Gateway(config, source)
    await gateway.start()
    # What is there now stays, so collections need not look at it again; and what a request makes is gone with it, so
    # they need not come every few requests.
    gc.freeze()
    gc.set_threshold(GC_AFTER_OBJECTS, 20, 20)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    loop.add_signal_handler(signal.SIGHUP, gateway.reload)
    await stopping.wait()
    await gateway.stop()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns 0, 1 for a failure, 2 for wrong use."""
    parser = argparse.ArgumentParser(prog="python -m serving.gateway.main", description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", help="a GatewayConfig as JSON, or @FILE that holds it")
    source.add_argument("--config-file", metavar="FILE", help="the file that holds it")
    parser.add_argument("--name", help="this gateway's name at the controller; wins over the configuration's")
    parser.add_argument("--process", type=int, metavar="N", help="which of several processes on one port this is")
    given = parser.parse_args(arguments)
    try:
        text = f"@{given.config_file}" if given.config is None else given.config
        if text.startswith("@"):
            with open(text[1:], encoding="utf-8") as file:
                text = file.read()
        config = GatewayConfig.from_json(text)
        named: dict[str, Any] = {f: value for name, f in ENVIRONMENT.items() if (value := os.environ.get(name))}
        config = replace(config, **named)
        if given.process is not None:
            config = config.for_process(given.process)
        if given.name:
            config = replace(config, name=given.name)
    except (InvalidConfig, OSError) as e:
        print(f"gateway: {e}", file=sys.stderr)
        return 2
    configure()
    try:
        uvloop.run(serve(config))
    except (InvalidConfig, OSError) as e:
        print(f"gateway: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
