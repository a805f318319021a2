"""Runs revisions as Ray Serve applications, through Ray's REST API alone.

One PUT carries the whole set; Serve deletes what it does not list and leaves alone what has not changed. What is
deployed is read first, so that reconciling an unchanged set writes nothing.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from rollout.errors import WorkloadRejected, WorkloadUnavailable
from rollout.workloads.base import Workload, WorkloadStatus
from rollout.workloads.serve_account import Deaths, status_of, telling_line
from rollout.workloads.serve_config import EngineSettings, application
from serving.specs import GUARD_APPLICATION

GUARD_IMPORT_PATH = "serving.ray_app.guard_service:build"
API = "/api/serve/applications/"
CALL_TIMEOUT_S = 60.0
"""The first PUT starts Serve itself, which takes seconds."""


class RayServeWorkloads:
    """WorkloadPort over a Ray cluster's REST API."""

    def __init__(
        self,
        ray_file: Path,
        *,
        log_dir: Path,
        host: str = "127.0.0.1",
        serve_port: int = 8100,
        threads: int = 0,
        load_timeout_s: float = 900.0,
        transport: httpx.AsyncBaseTransport | None = None,
        guards: bool = False,
    ) -> None:
        """Prepare; nothing is asked yet.

        Args:
            ray_file: JSON with `dashboard_url` and `token`; read again whenever it changes.
            log_dir: Where engines write their logs.
            host: Where replicas and engines listen; 0.0.0.0 on a cluster's pod network.
            serve_port: Ray Serve's own proxy, which nothing of ours uses but which must run for replicas to open ports.
            threads: Cores an engine may use on a CPU; 0: those that its replica may use.
            load_timeout_s: The longest an engine may take to become ready.
            transport: Replaces the network in tests.
            guards: Whether the guardrails' models run as an application beside the revisions.
        """
        self._ray_file = ray_file
        self._host = host
        self._serve_port = serve_port
        self._settings = EngineSettings(str(log_dir), host, threads, load_timeout_s)
        self._transport = transport
        self._beside = {GUARD_APPLICATION: _guard_application()} if guards else {}
        self._client: httpx.AsyncClient | None = None
        self._client_stamp: tuple[int, int] | None = None
        self._lock = asyncio.Lock()
        self._deaths = Deaths()
        self.writes = 0
        """How many times the configuration was written, for tests and metrics."""

    async def apply(self, desired: Sequence[Workload]) -> None:
        """Make Serve's applications equal to `desired`; writes only when they differ. See `WorkloadPort`."""
        ours = {workload.application: application(workload, self._settings) for workload in desired}
        wanted = self._beside | ours
        async with self._lock:
            details = await self._call("GET")
            if _running(details) == wanted and details.get("controller_info", {}).get("actor_id"):
                return
            body = {
                "proxy_location": "HeadOnly",
                "http_options": {"host": self._host, "port": self._serve_port, "keep_alive_timeout_s": 90},
                "applications": [wanted[name] for name in sorted(wanted)],
            }
            self.writes += 1
            await self._call("PUT", body)

    async def observe(self) -> Mapping[str, WorkloadStatus]:
        """Tell what Serve says of every application. See `WorkloadPort`."""
        applications = (await self._call("GET")).get("applications") or {}
        self._deaths.keep(applications)
        return {n: status_of(n, d, self._deaths) for n, d in applications.items() if n != GUARD_APPLICATION}

    async def shortage(self, wanted: Workload) -> str:
        """Nothing is known of room here: one machine holds what it holds, and Serve waits for what does not fit."""
        del wanted
        return ""

    async def close(self) -> None:
        """Close the connections; what runs goes on running."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None
            self._client_stamp = None

    async def _call(self, method: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        client = await self._connected()
        try:
            response = await client.request(method, API, json=body)
        except httpx.HTTPError as error:
            raise WorkloadUnavailable(
                f"Ray at {client.base_url} can't be reached: {type(error).__name__}: {error}"
            ) from error
        if response.status_code in (400, 422):
            raise WorkloadRejected(f"Ray refused the applications: {telling_line(response.text)}")
        if response.status_code != 200:
            line = telling_line(response.text)
            raise WorkloadUnavailable(f"Ray at {client.base_url} answered {response.status_code} to {method}: {line}")
        try:
            found = response.json() if method == "GET" else {}
        except ValueError as error:
            raise WorkloadUnavailable(f"Ray at {client.base_url} answered something that is not JSON") from error
        return found if isinstance(found, dict) else {}

    async def _connected(self) -> httpx.AsyncClient:
        """The client for the Ray that runs now: after a restart it has another port and another token."""
        try:
            stat = self._ray_file.stat()
            stamp = (stat.st_mtime_ns, stat.st_ino)
            if self._client is not None and stamp == self._client_stamp:
                return self._client
            found = json.loads(self._ray_file.read_text(encoding="utf-8"))
            url, token = str(found["dashboard_url"]), str(found.get("token") or "")
        except (OSError, ValueError, KeyError) as error:
            raise WorkloadUnavailable(
                f"{self._ray_file} can't be read ({error}); is Ray running? `tidegate status`"
            ) from error
        await self.close()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._client = httpx.AsyncClient(
            base_url=url, headers=headers, timeout=CALL_TIMEOUT_S, transport=self._transport, trust_env=False
        )
        self._client_stamp = stamp
        return self._client


def _guard_application() -> dict[str, Any]:
    """The guardrails' models: they scale by themselves, so nothing of their capacity is written here."""
    return {
        "name": GUARD_APPLICATION,
        "route_prefix": f"/{GUARD_APPLICATION}",
        "import_path": GUARD_IMPORT_PATH,
        "args": {},
        "deployments": [],
    }


def _running(details: Mapping[str, Any]) -> dict[str, Any]:
    """The configurations that are deployed, without applications on their way out."""
    found = {}
    for name, known in (details.get("applications") or {}).items():
        if known.get("status") != "DELETING":
            found[name] = _same_shape(known.get("deployed_app_config") or {})
    return found


def _same_shape(config: Mapping[str, Any]) -> dict[str, Any]:
    """A deployed configuration without what Serve adds."""
    return {key: config.get(key) for key in ("name", "route_prefix", "import_path", "args", "deployments")}
