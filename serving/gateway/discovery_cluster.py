"""Endpoints on a cluster: the traffic table says for each revision where to ask (`RevisionTraffic.endpoints`).

- `ray://HOST:PORT`: the Ray dashboard of the revision's own cluster, with the token that all of them share; then each
  replica, as `discovery_ray` does;
- `service://NAMESPACE/NAME:PORT`: the EndpointSlices of a Service, read from the API server over plain HTTP with this
  pod's own token. No client library is on the way of the data plane.

What can't be asked keeps the set that it had; the others go on. With many revisions each is asked less often.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import re
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from serving.endpoints import Address
from serving.errors import EndpointsUnavailable
from serving.gateway.discovery import Publish
from serving.gateway.discovery_ray import Replicas, ask_dashboard, same, targets_of
from serving.gateway.logs import log
from serving.traffic import TrafficTable

POLL_S = 0.5
QUESTIONS_PER_S = 50
"""Over all dashboards; with more revisions than half of it they are asked less often than every 0.5 s."""
ASK_TIMEOUT_S = 2.0
SERVE_PORT = 8000
"""Ray Serve's own proxy in a pod, which is no endpoint."""
SERVICE_NAME = "kubernetes.io/service-name"
_SERVICE = re.compile(r"^service://(?P<namespace>[^/]+)/(?P<name>[^:]+):(?P<port>[0-9]+)$")


@dataclass(frozen=True, slots=True)
class ClusterAccess:
    """How the cluster is asked."""

    ray_token_file: Path | None = None
    """Holds the token of the Ray dashboards; read again whenever they are asked."""
    url: str = "https://kubernetes.default.svc"
    token_file: Path = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
    ca_file: Path = Path("/var/run/secrets/kubernetes.io/serviceaccount/ca.crt")


@dataclass(frozen=True, slots=True)
class _Service:
    namespace: str
    name: str
    port: int


class ClusterEndpoints:
    """An `EndpointSource` that follows the traffic table."""

    def __init__(self, access: ClusterAccess, transport: httpx.AsyncBaseTransport | None = None) -> None:
        """Prepare; nothing is asked yet.

        Args:
            access: how the cluster is asked.
            transport: replaces the network in tests.
        """
        self._access = access
        self._transport = transport
        self._dashboards: dict[str, str] = {}
        """Application -> its dashboard."""
        self._services: dict[str, _Service] = {}
        self._replicas: dict[str, Replicas] = {}
        self._found: dict[str, Sequence[Address]] = {}
        self._published: Mapping[str, Sequence[Address]] | None = None
        self._complaints: dict[str, str] = {}
        self._poke = asyncio.Event()
        self._asking: dict[str, asyncio.Task[None]] = {}

    def follow(self, table: TrafficTable) -> None:
        """Ask for the revisions of this table from now on."""
        named = {r.application: r.endpoints for m in table.models for r in (*m.revisions, *m.drains)}
        self._dashboards = {
            a: f"http://{where.removeprefix('ray://')}" for a, where in named.items() if where.startswith("ray://")
        }
        found = ((a, _SERVICE.match(where)) for a, where in named.items())
        self._services = {a: _Service(m["namespace"], m["name"], int(m["port"])) for a, m in found if m is not None}
        self._replicas = {a: self._replicas.get(a) or Replicas() for a in self._dashboards}
        self._found = {a: addresses for a, addresses in self._found.items() if a in named}
        self._poke.set()

    def suspect(self, url: str) -> None:
        """Ask again now; the replica of this engine among the first."""
        if any(replicas.suspect(url) for replicas in self._replicas.values()) or self._services:
            self._poke.set()

    async def run(self, publish: Publish) -> None:
        """Ask until cancelled."""
        trust: ssl.SSLContext | bool = True
        if self._access.ca_file.exists():
            trust = ssl.create_default_context(cafile=str(self._access.ca_file))
        async with httpx.AsyncClient(
            timeout=ASK_TIMEOUT_S, trust_env=False, verify=trust, transport=self._transport
        ) as http:
            try:
                while True:
                    self._ask_all(http, publish)
                    self._poke.clear()
                    try:
                        async with asyncio.timeout(max(POLL_S, len(self._dashboards) / QUESTIONS_PER_S)):
                            await self._poke.wait()
                        await asyncio.sleep(0.05)  # a burst of suspicions is one question
                    except TimeoutError:
                        pass
            finally:
                for task in self._asking.values():
                    task.cancel()
                await asyncio.gather(*self._asking.values(), return_exceptions=True)

    def _ask_all(self, http: httpx.AsyncClient, publish: Publish) -> None:
        """Ask everybody who is not being asked still: who does not answer holds up nobody else."""
        works: dict[str, Callable[[], Awaitable[None]]] = {}
        token = _read(self._access.ray_token_file)
        for application, url in self._dashboards.items():
            works[url] = functools.partial(self._ask_ray, http, application, url, token)
        by_namespace: dict[str, dict[str, _Service]] = {}
        for application, service in self._services.items():
            by_namespace.setdefault(service.namespace, {})[application] = service
        for namespace, named in by_namespace.items():
            works[namespace] = functools.partial(self._ask_services, http, namespace, named)
        self._asking = {who: task for who, task in self._asking.items() if not task.done()}
        for who, work in works.items():
            if who not in self._asking:
                self._asking[who] = asyncio.get_running_loop().create_task(self._then_tell(work, publish))
        self._tell(publish)

    async def _then_tell(self, work: Callable[[], Awaitable[None]], publish: Publish) -> None:
        await work()
        self._tell(publish)

    def _tell(self, publish: Publish) -> None:
        """Publish the whole set when it is another one. Before anybody has answered there is none."""
        found = {a: f for a, f in self._found.items() if a in self._dashboards or a in self._services}
        if not same(self._published, found) and (found or self._published is not None):
            self._published = found
            publish(found)

    async def _ask_ray(self, http: httpx.AsyncClient, application: str, url: str, token: str) -> None:
        try:
            details = await ask_dashboard(http, url, token)
        except EndpointsUnavailable as error:
            self._complain(url, str(error))
            return
        self._complain(url, "")
        targets = [t for t in targets_of(details, SERVE_PORT) if t.application == application]
        replicas = self._replicas.get(application)
        if replicas is not None:  # else the table has dropped it meanwhile
            self._found[application] = (await replicas.refresh(http, targets)).get(application, [])

    async def _ask_services(self, http: httpx.AsyncClient, namespace: str, named: Mapping[str, _Service]) -> None:
        """The slices of all Services of one namespace, in one question."""
        names = ",".join(sorted({service.name for service in named.values()}))
        path = f"{self._access.url}/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"
        headers = {"Authorization": f"Bearer {_read(self._access.token_file)}"}
        try:
            answer = await http.get(path, params={"labelSelector": f"{SERVICE_NAME} in ({names})"}, headers=headers)
            answer.raise_for_status()
            slices = answer.json().get("items") or ()
        except (httpx.HTTPError, ValueError, AttributeError) as error:
            self._complain(path, f"the EndpointSlices of {namespace} can't be read ({type(error).__name__}: {error})")
            return
        self._complain(path, "")
        for application, service in named.items():
            mine = [s for s in slices if (s["metadata"].get("labels") or {}).get(SERVICE_NAME) == service.name]
            self._found[application] = addresses_of(mine, service.port)

    def _complain(self, who: str, why: str) -> None:
        if why != self._complaints.get(who, ""):
            self._complaints[who] = why
            log(logging.WARNING if why else logging.INFO, "endpoints-unavailable" if why else "endpoints-available",
                source=who, reason=why)  # fmt: skip


def addresses_of(slices: Sequence[Mapping[str, Any]], port: int) -> list[Address]:
    """The engines in the slices of one Service, sorted; each with its pod's uid for a boot.

    A pod that is neither ready nor ending what it has begun is left out. A Service of two families of addresses has
    slices of each, with the same pods: those of IPv4 are taken, where there are any.
    """
    found: dict[str, Address] = {}
    family = "IPv4" if any(s.get("addressType") == "IPv4" and s.get("endpoints") for s in slices) else "IPv6"
    for part in slices:
        if part.get("addressType") != family:
            continue
        for endpoint in part.get("endpoints") or ():
            conditions = endpoint.get("conditions") or {}
            leaving = conditions.get("terminating") is True and conditions.get("serving") is not False
            if conditions.get("ready") is False and not leaving:
                continue
            boot = str((endpoint.get("targetRef") or {}).get("uid") or "")
            for address in (endpoint.get("addresses") or ())[:1]:
                host = f"[{address}]" if ":" in address else address
                url = f"http://{host}:{port}"
                found[url] = Address(url, boot, draining=leaving)
    return [found[url] for url in sorted(found)]


def _read(file: Path | None) -> str:
    try:
        return file.read_text().strip() if file is not None else ""
    except OSError:
        return ""
