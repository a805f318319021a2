"""The control plane's own process before a real API server, as its ServiceAccount; engines and gateways are made up."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

import httpx
import websockets
import yaml

from registry.models import RegisterRequest
from registry.stores.mlflow import MlflowStore
from rollout.operator.crd import definition
from rollout.operator.names import API_VERSION, KIND
from serving.outcomes import FROM_CONTROLLER, Ack, Hello, TablePush, Totals
from tests.kubernetes.api_errors import Refused
from tests.kubernetes.cluster import Write
from tests.kubernetes.definitions import RAY_CLUSTERS, RAY_SERVICES
from tests.kubernetes.gateways import an_endpoint_slice
from tests.kubernetes.kuberay import KubeRay
from tests.kubernetes.real_server import RealServer
from tests.ports import free_ports
from tests.unit.helm.charts import objects

Object = dict[str, Any]

NAMESPACE = "models"
ACCOUNT = f"system:serviceaccount:{NAMESPACE}:r-controller"
TOKEN = "bootstrap-token-of-the-real-rig-0123456789"
PATIENCE_S = 90.0
AUDIT = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata"}],
}


class Gateway:
    """Dials whoever leads, acknowledges every table, and says that whatever is in it answers."""

    def __init__(self, name: str, ports: list[int]) -> None:
        self._name = name
        self._ports = ports
        self._over = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name=name, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(10)

    async def _run(self) -> None:
        while not self._over.is_set():
            for port in tuple(self._ports):
                with suppress(OSError, websockets.WebSocketException, TimeoutError):
                    await self._follow(f"ws://127.0.0.1:{port}/internal/v1/gateway")
            await asyncio.sleep(0.3)

    async def _follow(self, url: str) -> None:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with websockets.connect(url, additional_headers=headers, proxy=None) as line:
            await line.send(Hello(gateway=self._name, boot=secrets.token_hex(4), fence=0, sequence=0).model_dump_json())
            applications: tuple[str, ...] = ()
            while not self._over.is_set():
                with suppress(TimeoutError):
                    message = FROM_CONTROLLER.validate_json(await asyncio.wait_for(line.recv(), 0.2))
                    if isinstance(message, TablePush):
                        table = message.table
                        applications = tuple(r.application for m in table.models for r in (*m.revisions, *m.drains))
                        ack = Ack(fence=table.fence, sequence=table.sequence, applied_at=time.time())
                        await line.send(ack.model_dump_json())
                totals = Totals(
                    sent_at=time.time(), totals=(), settled_through={}, in_flight={},
                    endpoints_ready=dict.fromkeys(applications, 1),
                )  # fmt: skip
                await line.send(totals.model_dump_json())


class Controllers:
    """Processes of the control plane, each a pod by name, with one store and one registry between them."""

    def __init__(self, server: RealServer, folder: Path) -> None:
        self._server = server
        self._folder = folder
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.ports: list[int] = []
        (folder / "token").write_text(TOKEN)
        (folder / "token").chmod(0o600)
        store = MlflowStore(
            f"sqlite:///{folder / 'mlflow.db'}", artifact_root=folder / "artifacts", cache=folder / "cache"
        )
        for version in ("1.0.0", "1.1.0"):
            for model in ("chat", "other"):
                store.register(RegisterRequest(model=model, source=f"sim:?seed={version[2]}", version=version))

    def log(self, name: str) -> str:
        return (self._folder / f"{name}.log").read_text()

    def times_led(self) -> int:
        return sum(log.read_text().count("leading with fence") for log in self._folder.glob("r-controller-*.log"))

    def start(self, name: str) -> None:
        """A pod of the Deployment; its token is that of the chart's ServiceAccount."""
        home = self._folder / name
        home.mkdir(exist_ok=True)
        config = home / "kubeconfig"
        config.write_text(
            yaml.safe_dump(self._server.kubeconfig(self._server.token(NAMESPACE, "r-controller"), NAMESPACE))
        )
        (port,) = free_ports(1)
        settings = {
            "home": home, "platform": "kubernetes", "release": "r", "namespace": NAMESPACE, "pod_name": name,
            "kubeconfig": config, "control_port": port, "engine_image": "registry.test/engine:1", "auth": "keys",
            "control_token_file": self._folder / "token", "store_url": f"sqlite:///{self._folder / 'store.db'}",
            "tracking_uri": f"sqlite:///{self._folder / 'mlflow.db'}",
        }  # fmt: skip
        own = {f"TIDEGATE_{key.upper()}": str(value) for key, value in settings.items()}
        with (self._folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                [sys.executable, "-m", "tidegate.control_plane"], env={**os.environ, **own}, stdout=log, stderr=log
            )
        self.ports.append(port)

    def kill(self, name: str) -> None:
        process = self.running.pop(name)
        process.kill()
        process.wait()

    def stop(self) -> None:
        for name in tuple(self.running):
            self.kill(name)


class RealRig:
    """Everything: the server with the chart in it, KubeRay simulated, one gateway, controllers as they are started."""

    def __init__(self, folder: Path) -> None:
        self._stack = ExitStack()
        self._folder = folder
        (folder / "audit.yaml").write_text(yaml.safe_dump(AUDIT))
        self.server = RealServer(
            folder, f"--audit-policy-file={folder / 'audit.yaml'}", f"--audit-log-path={folder / 'audit.log'}",
            "--audit-log-mode=blocking",
        )  # fmt: skip
        self._over = threading.Event()
        self.trouble: list[str] = []
        """What was said to the simulated KubeRay that it can't get over by another try."""

    def __enter__(self) -> Self:
        self._stack.enter_context(self.server)
        self.objects = self.server.objects
        for body in (definition(), RAY_SERVICES, RAY_CLUSTERS):
            self.server.define(body)
        self.objects.create("namespaces", None, {"metadata": {"name": NAMESPACE}})
        self.server.install(objects(), "ServiceAccount", "Role", "RoleBinding")
        self.objects.create("endpointslices", NAMESPACE, an_endpoint_slice("r-gateway", ["gateway-0"]))
        self.controllers = Controllers(self.server, self._folder)
        self._stack.callback(self.controllers.stop)
        self.kuberay = KubeRay(self.objects)  # type: ignore[arg-type]
        ticking = threading.Thread(target=self._tick, name="kuberay", daemon=True)
        ticking.start()
        self._stack.callback(ticking.join, 10)
        self._stack.callback(self._over.set)
        self._stack.enter_context(Gateway("gateway-0", self.controllers.ports))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _tick(self) -> None:
        while not self._over.is_set():
            try:
                self.kuberay.tick()
            except Refused as refused:
                if refused.code not in (404, 409):
                    self.trouble.append(f"{refused.code} {refused.message}")
            except httpx.HTTPError:
                pass  # the server is away
            self._over.wait(0.3)

    def start_pod(self, name: str) -> None:
        """What the chart's Deployment would make, as far as anybody looks at it."""
        labels = {"app.kubernetes.io/component": "controller", "app.kubernetes.io/instance": "r"}
        body = {"metadata": {"name": name, "labels": labels}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
        self.objects.create("pods", NAMESPACE, body)
        self.controllers.start(name)

    # -- what people do and see --

    def apply(self, version: str, name: str = "chat", **spec: Any) -> None:
        spec = {"model": name, "version": version, "engine": {"checkRoom": False}, **spec}
        body = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": name}, "spec": spec}
        self.objects.apply(KIND, NAMESPACE, name, body, Write("kubectl"), force=True)

    def annotate(self, verb: str, value: str | None, name: str = "chat") -> None:
        """Set an annotation, or with None take it away."""
        patch = {"metadata": {"annotations": {f"tidegate.dev/{verb}": value}}}
        self.objects.merge(KIND, NAMESPACE, name, patch)

    def found(self, name: str = "chat") -> Object:
        return self.objects.find(KIND, NAMESPACE, name) or {}

    def told(self, name: str = "chat") -> Object:
        return self.found(name).get("status") or {}

    def condition(self, kind: str, name: str = "chat") -> str:
        return next((c["reason"] for c in self.told(name).get("conditions", ()) if c["type"] == kind), "")

    def serving(self, version: str, name: str = "chat") -> bool:
        told = self.told(name)
        return told.get("stable") == version and not told.get("canary") and self.condition("Ready", name) == "Serving"

    def until(self, condition: Callable[[], Any], patience_s: float = PATIENCE_S) -> float:
        """Wait for something; returns how long it took in seconds."""
        began = time.monotonic()
        while True:
            with suppress(httpx.HTTPError):
                if condition():
                    return time.monotonic() - began
            if time.monotonic() - began > patience_s:
                logs = "\n".join(self.controllers.log(n)[-3000:] for n in self.controllers.running)
                raise AssertionError(f"never; {self.trouble[-3:]}, {logs}")
            time.sleep(0.1)

    def versions(self) -> dict[str, str]:
        return {o["metadata"]["name"]: o["metadata"]["resourceVersion"] for o in self.objects.list(KIND, NAMESPACE)}

    def kubeconfig(self) -> Path:
        """An administrator's, as a file."""
        file = self._folder / "kubeconfig"
        file.write_text(yaml.safe_dump(self.server.kubeconfig(namespace=NAMESPACE)))
        return file

    def asked(self, user: str = ACCOUNT) -> Iterator[Object]:
        """Every request of somebody, from the API server's audit log."""
        for line in (self._folder / "audit.log").read_text().splitlines():
            with suppress(ValueError):  # a line that was cut when the server was killed
                event = json.loads(line)
                if event["user"]["username"] == user:
                    yield event
