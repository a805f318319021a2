"""Endpoints from Ray Serve: `GET {dashboard}/api/serve/applications/`, then each replica for its engine's address.

Ray lists, per application, the replicas' own ports (direct ingress). Each replica answers
`GET http://{ip}:{port}{route_prefix}/-/engine` with `{"url": "http://127.0.0.1:41233", "boot": "...", "ready": true}`:
where its engine listens, a mark that is new for each engine process, and whether it takes requests. Traffic goes to
that URL directly. An application without replicas lists Serve's proxy as its target, which is no endpoint.

The dashboard's address and token are in a JSON file that the supervisor writes, `{"dashboard_url", "token"}`; it may
appear or change at any time. While Ray can't be asked, the last set stays in use.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from serving.endpoints import Address
from serving.errors import EndpointsUnavailable
from serving.gateway.discovery import Publish
from serving.gateway.logs import log

POLL_S = 0.5
REASK_S = 5.0
ASK_TIMEOUT_S = 2.0
_GONE = frozenset({"DELETING", "NOT_STARTED"})


@dataclass(frozen=True, slots=True)
class Target:
    """One replica's own HTTP port."""

    application: str
    base_url: str


@dataclass(slots=True)
class _Known:
    address: Address | None = None
    asked_at: float = float("-inf")


class Replicas:
    """Where the engines of some replicas are: a new or not yet ready one is asked each time, a ready one every 5 s."""

    def __init__(self) -> None:
        self._known: dict[Target, _Known] = {}

    def suspect(self, url: str) -> bool:
        """Have the replica of this engine asked next time; returns whether it is one of these."""
        found = [k for k in self._known.values() if k.address is not None and k.address.url == url]
        for known in found:
            known.asked_at = float("-inf")
        return bool(found)

    async def refresh(self, http: httpx.AsyncClient, targets: Sequence[Target]) -> dict[str, list[Address]]:
        """Ask those of these replicas that are due; returns the engines known now, by application."""
        self._known = {t: self._known.get(t) or _Known() for t in targets}
        now = time.monotonic()
        due = [t for t in targets if (k := self._known[t]).address is None or now - k.asked_at >= REASK_S]
        await asyncio.gather(*(self._ask(http, t) for t in due))
        found: dict[str, list[Address]] = {}
        for target in targets:
            known = self._known.get(target)
            if known is not None and known.address is not None:
                found.setdefault(target.application, []).append(known.address)
        return found

    async def _ask(self, http: httpx.AsyncClient, target: Target) -> None:
        known = self._known[target]
        known.asked_at = time.monotonic()
        try:
            answer = await http.get(f"{target.base_url}/-/engine")
            body = answer.json() if answer.status_code == 200 else {}
        except httpx.TimeoutException:
            return  # busy, perhaps: what is known stays, a dead engine is found by connecting to it
        except (httpx.HTTPError, ValueError):
            body = {}
        ready = isinstance(body, dict) and body.get("ready") is True and isinstance(body.get("url"), str)
        # A replica whose pod must leave its node ends what it has begun.
        leaving = ready and body.get("draining") is True
        known.address = Address(body["url"], str(body.get("boot", "")), draining=leaving) if ready else None


def same(one: Mapping[str, Sequence[Address]] | None, other: Mapping[str, Sequence[Address]]) -> bool:
    """Whether two sets of addresses are equal, and drain alike."""
    return one == other and all(
        [a.draining for a in addresses] == [b.draining for b in other[application]]
        for application, addresses in (one or {}).items()
    )


def targets_of(details: Mapping[str, Any], serve_port: int) -> list[Target]:
    """The replicas that Ray's answer lists, read tolerantly.

    Args:
        details: The JSON of `GET /api/serve/applications/` (Ray 2.60, `ServeInstanceDetails`).
        serve_port: The port of Serve's own proxy, whose entries are left out.
    """
    applications: Mapping[str, Any] = details.get("applications") or {}
    found: list[Target] = []
    for group in details.get("target_groups") or ():
        application = group.get("app_name") or ""
        status = (applications.get(application) or {}).get("status")
        if not application or status is None or status in _GONE or str(group.get("protocol", "")).upper() != "HTTP":
            continue
        prefix = (group.get("route_prefix") or "/").rstrip("/")
        for target in group.get("targets") or ():
            ip, port = target.get("ip"), target.get("port")
            if ip and port and port != serve_port:
                host = f"[{ip}]" if ":" in ip else ip
                found.append(Target(application, f"http://{host}:{port}{prefix}"))
    return found


class RayServeEndpoints:
    """Polls Ray every 0.5 s; asks a new or not yet ready replica at each poll, a ready one every 5 s."""

    def __init__(self, ray_file: Path, serve_port: int) -> None:
        self._ray_file = ray_file
        self._serve_port = serve_port
        self._replicas = Replicas()
        self._stamp: tuple[int, int] | None = None
        self._dashboard: str | None = None
        self._token = ""
        self._poke = asyncio.Event()
        self._published: dict[str, list[Address]] | None = None
        self._complaint = ""

    def suspect(self, url: str) -> None:
        """Ask the replica of this engine again now."""
        self._replicas.suspect(url)
        self._poke.set()

    async def run(self, publish: Publish) -> None:
        """Poll until cancelled."""
        async with httpx.AsyncClient(timeout=ASK_TIMEOUT_S, trust_env=False) as http:
            while True:
                try:
                    await self.poll(http, publish)
                    self._complain("")
                except EndpointsUnavailable as e:
                    self._complain(str(e))
                except Exception as e:  # Ray said what no version of it says: whoever is known stays known
                    self._complain(f"what Ray says of its applications can't be read ({type(e).__name__}: {e})")
                self._poke.clear()
                try:
                    async with asyncio.timeout(POLL_S):
                        await self._poke.wait()
                    await asyncio.sleep(0.05)  # a burst of suspicions is one question
                except TimeoutError:
                    pass

    def _complain(self, why: str) -> None:
        if why != self._complaint:
            self._complaint = why
            log(logging.WARNING if why else logging.INFO, "ray-unavailable" if why else "ray-available", reason=why)

    async def poll(self, http: httpx.AsyncClient, publish: Publish) -> None:
        """Ask Ray, then the replicas that are due, and publish when something changed.

        Raises:
            EndpointsUnavailable: Ray could not be asked; nothing was published.
        """
        self._read_ray_file()
        targets = targets_of(await self._ask_ray(http), self._serve_port)
        found = await self._replicas.refresh(http, targets)
        if not same(self._published, found):
            self._published = found
            publish(found)

    def _read_ray_file(self) -> None:
        try:
            stat = self._ray_file.stat()
            stamp = (stat.st_mtime_ns, stat.st_ino)
            if stamp == self._stamp:
                return
            content = json.loads(self._ray_file.read_text())
            self._dashboard = str(content["dashboard_url"]).rstrip("/")
            self._token = str(content.get("token") or "")
            self._stamp = stamp
        except FileNotFoundError:
            if self._dashboard is None:
                raise EndpointsUnavailable(f"{self._ray_file} is not there yet; the supervisor writes it") from None
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise EndpointsUnavailable(
                f"{self._ray_file} can't be read ({type(e).__name__}); expected dashboard_url and token"
            ) from None

    async def _ask_ray(self, http: httpx.AsyncClient) -> Mapping[str, Any]:
        return await ask_dashboard(http, str(self._dashboard), self._token)


async def ask_dashboard(http: httpx.AsyncClient, url: str, token: str) -> Mapping[str, Any]:
    """What a Ray dashboard says of its applications.

    Raises:
        EndpointsUnavailable: it could not be asked.
    """
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        answer = await http.get(f"{url}/api/serve/applications/", headers=headers)
        answer.raise_for_status()
        details = answer.json()
    except (httpx.HTTPError, ValueError) as e:
        raise EndpointsUnavailable(f"Ray at {url} can't be asked ({type(e).__name__})") from None
    if not isinstance(details, dict):
        raise EndpointsUnavailable(f"Ray at {url} answered with something else than an object")
    return details
