"""A control plane over a real socket: controller, log, registry and gateway hub are real; engines are in memory."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import uvicorn
import websockets
from fastapi import FastAPI

from console.page import mount_console
from registry.models import RegisterRequest
from registry.stores.memory import MemoryStore
from rollout.access import parse_networks
from rollout.accounts.memory import MemoryAccountStore
from rollout.control_api.app import create_app
from rollout.control_api.authentication import Authenticator
from rollout.control_api.drift import DriftWatch
from rollout.control_api.plane import ControlPlane, KeyIndex
from rollout.control_api.requests import LoggedRequests
from rollout.controller import Controller
from rollout.event_log.memory import MemoryEventLog
from rollout.probes.base import ProbeReports
from rollout.traffic_routers.gateway import GatewayRouter
from rollout.versions import ClusterHome, Versions
from rollout.workloads.memory import MemoryWorkloads
from serving.outcomes import FROM_CONTROLLER, Ack, Hello, KeysPush, TablePush, Totals

TOKEN = "bootstrap-token-of-the-tests"
STEPS = [{"weight": 10, "duration": "1h"}, {"weight": 50, "duration": "1h"}]


async def until(condition: Callable[[], Any], within_s: float = 20.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        await asyncio.sleep(0.01)


@dataclass
class Rig:
    """The running control plane and what is behind it."""

    url: str
    controller: Controller
    plane: ControlPlane
    router: GatewayRouter
    log: MemoryEventLog
    accounts: MemoryAccountStore
    clock: list[float]
    http: httpx.AsyncClient
    app: FastAPI
    tables: list[Any] = field(default_factory=list)

    def as_key(self, key: str, **headers: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {key}", **headers}

    async def get(self, path: str, key: str = TOKEN, **params: Any) -> httpx.Response:
        return await self.http.get(path, params=params or None, headers=self.as_key(key))

    async def post(self, path: str, body: Any = None, key: str = TOKEN, **headers: str) -> httpx.Response:
        return await self.http.post(path, json=body or {}, headers=self.as_key(key, **headers))

    async def make_key(self, name: str, *roles: str, **fields: Any) -> tuple[str, str]:
        """A key with roles: its text and its id."""
        made = await self.post("/api/v1/keys", {"name": name, "roles": roles, **fields})
        assert made.status_code == 201, made.text
        return made.json()["key"], made.json()["record"]["id"]

    async def deploy(self, version: str, **spec: Any) -> httpx.Response:
        strategy = {"canary": {"steps": STEPS}}
        return await self.post(
            "/api/v1/rollouts", {"spec": {"model": "chat", "version": version, "strategy": strategy, **spec}}
        )

    async def serve_first(self) -> None:
        """chat@1.0.0 is stable."""
        assert (await self.deploy("1.0.0")).status_code == 202
        await until(lambda: self.controller.status("chat").stable is not None)

    async def serve_canary(self) -> None:
        """chat@1.0.0 is stable and chat@1.0.1 has 10 %."""
        await self.serve_first()
        assert (await self.deploy("1.0.1")).status_code == 202
        await until(lambda: self.controller.status("chat").rollout.weight == 10)


@contextlib.asynccontextmanager
async def running(
    *,
    trusted: tuple[str, ...] = (),
    gateways: int = 1,
    lead: bool = True,
    logged: LoggedRequests | None = None,
    namespaced: bool = False,
    probes: ProbeReports | None = None,
    drift: DriftWatch | None = None,
) -> AsyncIterator[Rig]:
    """A control plane with registered versions 1.0.0 to 1.0.2 of `chat` and gateways that follow it.

    With `namespaced` it stands as on a cluster, its own namespace `team-a`, and there is a model `ledger`.
    """
    store = MemoryStore()
    for version in ("1.0.0", "1.0.1", "1.0.2"):
        store.register(RegisterRequest(model="chat", source="sim:?seed=" + version[-1], version=version))
    store.register(RegisterRequest(model="ledger", source="sim:?seed=7", version="1.0.0"))
    log, accounts, workloads = MemoryEventLog(), MemoryAccountStore(), MemoryWorkloads(load_ticks=1)
    router, clock, ids = GatewayRouter(time.monotonic), [0.0], itertools.count(1)
    controller = Controller(
        event_log=log,
        workloads=workloads,
        router=router,
        holder="rig",
        clock=lambda: time.time() + clock[0],
        new_id=lambda: f"{next(ids):08x}",
        accounts=accounts,
    )
    authenticator = Authenticator(
        token=TOKEN,
        namespaced=namespaced,
        keys=KeyIndex(controller, controller.accounting),
        clock=lambda: time.time() + clock[0],
        monotonic=lambda: time.monotonic() + clock[0],
        trusted_proxies=parse_networks(trusted),
    )
    plane = ControlPlane(
        controller=controller,
        router=router,
        versions=Versions(store, cluster=ClusterHome("team-a", "registry.test/engine:1") if namespaced else None),
        keys=controller.accounting,
        accounts=accounts,
        authenticator=authenticator,
    )
    app = create_app(
        plane,
        platform=lambda: {"addresses": {}},
        clock=lambda: time.time() + clock[0],
        logged=logged,
        probes=probes,
        drift=drift,
    )
    mount_console(app)
    listening = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, lifespan="off", proxy_headers=False, timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    async with contextlib.AsyncExitStack() as stack:
        tasks = [asyncio.create_task(server.serve(sockets=[listening]))]
        if lead:
            tasks += [asyncio.create_task(controller.run()), asyncio.create_task(_load(workloads))]
            await until(lambda: controller.leads)
        http = await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=30, trust_env=False))
        rig = Rig(url, controller, plane, router, log, accounts, clock, http, app)
        names = [f"gateway-{i}" for i in range(gateways if lead else 0)]
        tasks += [asyncio.create_task(follow_as_gateway(rig, name)) for name in names]
        await until(lambda: len(router.connections) == len(names))
        try:
            yield rig
        finally:
            server.should_exit = True
            while not all(task.done() for task in tasks):
                for task in tasks[1:]:
                    task.cancel()
                await asyncio.wait(tasks, timeout=0.2)


async def _load(workloads: MemoryWorkloads) -> None:
    while True:
        workloads.tick()
        await asyncio.sleep(0.02)


async def follow_as_gateway(rig: Rig, name: str, key: str = TOKEN, told: list[KeysPush] | None = None) -> None:
    """Dial as a gateway: acknowledge tables, and say that every application of the table has an endpoint.

    Keys and quotas that come go into `told`.
    """
    url = rig.url.replace("http", "ws") + "/internal/v1/gateway"
    headers = {"Authorization": f"Bearer {key}"}
    async with websockets.connect(url, additional_headers=headers, proxy=None) as line:
        await line.send(Hello(gateway=name, boot=secrets.token_hex(4), fence=0, sequence=0).model_dump_json())
        reporting = asyncio.create_task(_report(rig, line))
        try:
            async for text in line:
                message = FROM_CONTROLLER.validate_json(text)
                if isinstance(message, KeysPush) and told is not None:
                    told.append(message)
                if isinstance(message, TablePush):
                    table = message.table
                    rig.tables.append(table)
                    ack = Ack(fence=table.fence, sequence=table.sequence, applied_at=time.time())
                    await line.send(ack.model_dump_json())
        finally:
            reporting.cancel()


async def _report(rig: Rig, line: Any) -> None:
    while True:
        seen = rig.controller.workloads.seen or {}
        totals = Totals(
            sent_at=time.time(), totals=(), settled_through={}, endpoints_ready=dict.fromkeys(seen, 1), in_flight={}
        )
        await line.send(totals.model_dump_json())
        await asyncio.sleep(0.05)
