"""Run one gateway: `python -m serving.gateway.main --config '{"home": "/home/me/.tidegate"}' [--name gateway-0]`.

Both servers, the line to the controller and the endpoint poll live in one event loop of one process. SIGTERM or
SIGINT: no new connections, streams may go on for the drain window, then the last totals are sent and it ends.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import secrets
import signal
import socket
import sys
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import uvicorn
import uvloop

from monitoring.instruments import GatewayInstruments
from serving.endpoints import Address, EndpointBook
from serving.errors import InvalidTable
from serving.gateway.app import AdminApp, DataApp
from serving.gateway.channel import Channel
from serving.gateway.config import GatewayConfig, InvalidConfig
from serving.gateway.discovery import EndpointSource, StaticEndpoints
from serving.gateway.discovery_ray import RayServeEndpoints
from serving.gateway.logs import configure, log
from serving.gateway.pipeline import Pipeline
from serving.gateway.recorder import Recorder
from serving.gateway.request_ids import load_secret
from serving.gateway.traffic_state import TrafficState, load_table
from serving.gateway.upstream import UpstreamClient
from serving.traffic import TrafficTable

KEEP_ALIVE_S = 75
SWEEP_EVERY_S = 0.1
PRUNE_EVERY_S = 5.0
FLUSH_S = 0.15
"""One more round of events and totals."""


class PortTaken(InvalidConfig):
    """A port can't be had."""


class _Server(uvicorn.Server):
    """uvicorn without its own signal handlers: two servers in one process would fight over them."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bind(host: str, port: int, flag: str) -> socket.socket:
    """Bind a listening socket.

    Raises:
        PortTaken: something else listens there, or it is not ours to take.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as e:
        listener.close()
        raise PortTaken(
            f"port {port} on {host} can't be had ({e.strerror}); stop what listens there, or pass another {flag}"
        ) from None
    listener.setblocking(False)
    return listener


class Gateway:
    """One gateway with all its parts. Made inside a running event loop; `start`, then `stop`."""

    def __init__(self, config: GatewayConfig, source: EndpointSource | None = None) -> None:
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
        self.source = source or _source(config)
        self.client = UpstreamClient(
            connect_timeout_s=config.connect_timeout_s,
            idle_timeout_s=config.idle_timeout_s,
            keepalive_s=config.keepalive_s,
        )
        pipeline = Pipeline(
            config, self.state, self.book, self.client, self.recorder, self.instruments,
            load_secret(config.secret_file), self.source.suspect,
        )  # fmt: skip
        self.data_app = DataApp(pipeline, self.state)
        self.channel: Channel | None = None
        if config.control_url is not None:
            self.channel = Channel(
                gateway=config.name, boot=self.boot, control_url=config.control_url,
                credentials_file=config.credentials_file, table_file=config.table_file,
                state=self.state, book=self.book, recorder=self.recorder,
            )  # fmt: skip
        self.draining = False
        self.admin_app = AdminApp(
            self.state, self.book, self.recorder, self.instruments,
            draining=lambda: self.draining,
            connected=lambda: self.channel is not None and self.channel.connected,
        )  # fmt: skip
        self.state.on_applied(self.recorder.table_applied)
        self.state.on_applied(self._log_table)
        self._servers: list[_Server] = []
        self._tasks: list[asyncio.Task[None]] = []
        self.port = config.port
        self.admin_port = config.admin_port

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
        data = bind(config.host, config.port, "--gateway-port")
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
        self._serve(self.data_app, data)
        self._serve(self.admin_app, admin)
        self._spawn(self.source.run(self._publish))
        self._spawn(self._housekeeping())
        if self.channel is not None:
            self._spawn(self.channel.run())
        while not all(server.started for server in self._servers):  # noqa: ASYNC110 - uvicorn offers a flag only
            await asyncio.sleep(0.005)
        log(logging.INFO, "gateway-started", name=config.name, boot=self.boot, port=self.port,
            admin_port=self.admin_port)  # fmt: skip

    def _serve(self, app: Any, listener: socket.socket) -> None:  # noqa: ANN401 - uvicorn's own ASGI types differ
        server = _Server(
            uvicorn.Config(
                app, http="httptools", ws="none", lifespan="off", log_config=None, access_log=False,
                server_header=False, proxy_headers=False, timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=max(1, round(self.config.drain_s)),
            )
        )  # fmt: skip
        self._servers.append(server)
        self._spawn(server.serve(sockets=[listener]))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(_complain_if_dead)
        self._tasks.append(task)

    async def _housekeeping(self) -> None:
        pruned_at = time.monotonic()
        while True:
            await asyncio.sleep(SWEEP_EVERY_S)
            self.recorder.sweep()
            now = time.monotonic()
            if now - pruned_at > PRUNE_EVERY_S:
                pruned_at = now
                self.recorder.prune()

    async def stop(self) -> None:
        """Stop accepting, let streams finish within the drain window, send the last outcomes, end."""
        self.draining = True
        log(logging.INFO, "gateway-draining", window_s=self.config.drain_s)
        data, admin = self._servers
        data.should_exit = True
        await asyncio.wait([self._tasks[0]])
        self.recorder.flush()
        if self.channel is not None and self.channel.connected:
            await asyncio.sleep(FLUSH_S)
        admin.should_exit = True
        await asyncio.wait([self._tasks[1]])
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.client.close()
        log(logging.INFO, "gateway-stopped", name=self.config.name)


def _complain_if_dead(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        logging.getLogger("tidegate.gateway").error("a part of the gateway died", exc_info=task.exception())


def _source(config: GatewayConfig) -> EndpointSource:
    if config.endpoints is not None:
        return StaticEndpoints(config.endpoints)
    assert config.ray_file is not None
    return RayServeEndpoints(config.ray_file, config.serve_port)


async def serve(config: GatewayConfig, source: EndpointSource | None = None) -> None:
    """Run a gateway until SIGTERM or SIGINT.

    Raises:
        PortTaken: a port can't be had.
    """
    gateway = Gateway(config, source)
    await gateway.start()
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    await stopping.wait()
    await gateway.stop()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns 0, 1 for a failure, 2 for wrong use."""
    parser = argparse.ArgumentParser(prog="python -m serving.gateway.main", description=__doc__)
    parser.add_argument("--config", required=True, help="a GatewayConfig as JSON, or @FILE that holds it")
    parser.add_argument("--name", help="this gateway's name at the controller; wins over the configuration's")
    given = parser.parse_args(arguments)
    try:
        text = given.config
        if text.startswith("@"):
            with open(text[1:], encoding="utf-8") as file:
                text = file.read()
        config = GatewayConfig.from_json(text)
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
