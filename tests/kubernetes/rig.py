"""The operator on a real wire: a stand-in API server, kopf and the official client, a controller in real time.

Engines are ready as soon as they are asked for, and one gateway follows every table at once: what is tested here is
what happens between the operator and the API server.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rollout.actions import Deployed
from rollout.commands import Command, Target
from rollout.control_api.plane import ControlPlane
from rollout.controller import Controller
from rollout.event_log.base import EventLog
from rollout.event_log.memory import MemoryEventLog
from rollout.operator.api import Address
from rollout.operator.crd import definition
from rollout.operator.names import API_VERSION, KIND
from rollout.operator.running import Operator
from rollout.specs import RolloutSpec
from rollout.traffic_routers.gateway import Connection, GatewayRouter
from rollout.workloads.memory import MemoryWorkloads
from serving.outcomes import FROM_CONTROLLER, Ack, Hello, TablePush, Totals
from serving.traffic import Generation
from tests.kubernetes.cluster import Write
from tests.kubernetes.patches import merge_patch
from tests.kubernetes.server import ApiServer
from tests.simulation.world import deployed

Object = dict[str, Any]
NAMESPACE = "models"
ACCOUNT = f"system:serviceaccount:{NAMESPACE}:r-controller"
PATIENCE_S = 30.0


class Gateway:
    """Acknowledges every table, and says that whatever is in it answers."""

    def __init__(self, router: GatewayRouter) -> None:
        self._router = router
        self._connection: Connection | None = None
        self._table: TablePush | None = None
        self._acknowledged: Generation | None = None

    async def run(self) -> None:
        hello = Hello(gateway="gateway-0", boot="boot-1", fence=0, sequence=0)
        self._connection = await self._router.attach(hello, self._take)
        while True:
            await self._tell()
            await asyncio.sleep(0.05)

    async def _take(self, text: str) -> None:
        message = FROM_CONTROLLER.validate_json(text)
        if isinstance(message, TablePush):
            self._table = message

    async def _tell(self) -> None:
        if self._table is None or self._connection is None:
            return
        table = self._table.table
        if table.generation != self._acknowledged:
            self._acknowledged = table.generation
            ack = Ack(fence=table.fence, sequence=table.sequence, applied_at=time.time())
            await self._router.receive(self._connection, ack.model_dump_json())
        revisions = [r for m in table.models for r in (*m.revisions, *m.drains)]
        totals = Totals(
            sent_at=time.time(),
            totals=(),
            settled_through={},
            endpoints_ready={r.application: 1 for r in revisions},
            in_flight={},
        )
        await self._router.receive(self._connection, totals.model_dump_json())


@dataclass
class Rig:
    """Everything, and the shortcuts of people."""

    api: ApiServer
    controller: Controller
    operator: Operator
    resolved: list[str]
    hanging: set[str]
    """Versions for which the registry does not answer."""

    def apply(self, version: str, name: str = "chat", **spec: Any) -> None:
        body = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {"name": name},
            "spec": {"model": name, "version": version, "emergency": True, **spec},
        }
        cluster = self.api.cluster
        cluster.apply(cluster.kind(KIND), NAMESPACE, name, body, Write("kubectl"), force=True)

    def annotate(self, verb: str, value: str, name: str = "chat") -> None:
        patch = {"metadata": {"annotations": {f"tidegate.dev/{verb}": value}}}
        cluster = self.api.cluster
        cluster.patch(cluster.kind(KIND), NAMESPACE, name, lambda o: merge_patch(o, patch), Write("kubectl"))

    def told(self, name: str = "chat") -> Object:
        found = self.api.cluster.find(KIND, NAMESPACE, name)
        return (found or {}).get("status") or {}

    def condition(self, kind: str, name: str = "chat") -> str:
        return next((c["reason"] for c in self.told(name).get("conditions", ()) if c["type"] == kind), "")

    def serving(self, version: str, name: str = "chat") -> bool:
        told = self.told(name)
        return told.get("stable") == version and not told.get("canary") and self.condition("Ready", name) == "Serving"

    async def until(self, condition: Callable[[], bool], patience_s: float = PATIENCE_S) -> float:
        """Wait for something; returns how long it took in seconds."""
        began = time.monotonic()
        while not condition():
            if time.monotonic() - began > patience_s:
                raise AssertionError(f"never; told {self.told()}, operator says {self.operator.message!r}")
            await asyncio.sleep(0.02)
        return time.monotonic() - began


def prepared(api: ApiServer, manifests: Iterable[Mapping[str, Any]] = ()) -> ApiServer:
    """A cluster with the definition, the namespace, and the rights that some manifests grant."""
    api.cluster.create("customresourcedefinitions", None, definition())
    api.cluster.create("namespaces", None, {"metadata": {"name": NAMESPACE}})
    api.grant([dict(m) for m in manifests])
    return api


def address(api: ApiServer, folder: Path, token: str = ACCOUNT) -> Address:
    """The way to a stand-in, as a kubeconfig."""
    file = folder / "kubeconfig"
    file.write_text(yaml.safe_dump(api.kubeconfig(token, NAMESPACE)))
    return Address(kubeconfig=file, context="stand-in")


async def _keep_loading(workloads: MemoryWorkloads) -> None:
    while True:
        workloads.tick()
        await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def operating(
    api: ApiServer, folder: Path, log: EventLog | None = None, token: str = ACCOUNT, also: tuple[str, ...] = ()
) -> AsyncIterator[Rig]:
    """A controller with its operator, for further namespaces too. Leaving is a crash: nothing is given back."""
    router, workloads, ids = GatewayRouter(time.monotonic), MemoryWorkloads(load_ticks=1), itertools.count(1)
    controller = Controller(
        event_log=log or MemoryEventLog(),
        workloads=workloads,
        router=router,
        holder="rig",
        clock=time.time,
        new_id=lambda: f"{next(ids):08x}",
    )
    resolved: list[str] = []
    hanging: set[str] = set()

    async def resolve(spec: RolloutSpec, _: str) -> Deployed:
        while spec.version in hanging:  # noqa: ASYNC110 - the test takes it away
            await asyncio.sleep(0.05)
        resolved.append(f"{spec.model}@{spec.version}")
        return deployed(spec.version, spec.model)

    plane = ControlPlane.__new__(ControlPlane)
    plane.controller = controller

    async def aim(model: str, command: Command) -> Target | None:
        return await plane.aim(model, command)

    operator = Operator(
        controller=controller,
        resolve=resolve,
        aim=aim,
        address=address(api, folder, token),
        namespaces=(*also, NAMESPACE),
        instance="r-controller-0",
        clock=time.time,
        monotonic=time.monotonic,
    )
    works = (controller.run(), operator.run(), Gateway(router).run(), _keep_loading(workloads))
    tasks = [asyncio.create_task(work) for work in works]
    try:
        yield Rig(api, controller, operator, resolved, hanging)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
