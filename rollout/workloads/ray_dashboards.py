"""What the Ray dashboards of a cluster's revisions say, asked a few at a time. Shell.

Only a dashboard knows of replicas that died inside a pod. Those whose revision is not calm are asked every time, the
others in turn, so that hundreds of models cost as much as a few.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx

from rollout.workloads.base import WorkloadState, WorkloadStatus

ASK_S = 2.0
AT_ONCE = 16
MOST = 48
"""Dashboards asked in one look."""
PATH = "/api/serve/applications/"


class RayDashboards:
    """Asks dashboards for their applications; one that does not answer is no error, and nothing follows from it."""

    def __init__(self, token: Callable[[], str], *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        """Prepare.

        Args:
            token: reads the token of Ray's APIs; empty for none.
            transport: replaces the network in tests.
        """
        self._token = token
        self._transport = transport
        self._client: httpx.AsyncClient | None = None
        self._turn: dict[str, int] = {}
        self._count = 0

    async def ask(self, urls: Mapping[str, str], seen: Mapping[str, WorkloadStatus]) -> Mapping[str, Mapping[str, Any]]:
        """What the dashboards say, by application, of those that were asked and answered.

        Args:
            urls: application -> its dashboard.
            seen: what was seen last, to know whose turn it is.

        """
        chosen = self._chosen(urls, seen)
        self._count += 1
        self._turn = {a: self._count if a in chosen else self._turn.get(a, 0) for a in urls}
        permits = asyncio.Semaphore(AT_ONCE)
        answers = await asyncio.gather(*(self._one(permits, a, urls[a]) for a in chosen))
        return {a: found for a, found in zip(chosen, answers, strict=True) if found is not None}

    def _chosen(self, urls: Mapping[str, str], seen: Mapping[str, WorkloadStatus]) -> Sequence[str]:
        def order(application: str) -> tuple[bool, int, str]:
            known = seen.get(application)
            calm = known is not None and known.state is WorkloadState.READY
            return calm, self._turn.get(application, 0), application

        return sorted(urls, key=order)[:MOST]

    async def _one(self, permits: asyncio.Semaphore, application: str, url: str) -> Mapping[str, Any] | None:
        if self._client is None:
            self._client = httpx.AsyncClient(timeout=ASK_S, transport=self._transport, trust_env=False)
        token = self._token()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        async with permits:
            try:
                answer = await self._client.get(f"{url}{PATH}", headers=headers)
                details = answer.json() if answer.status_code == 200 else {}
            except (httpx.HTTPError, ValueError):
                return None
        found = (details.get("applications") or {}).get(application) if isinstance(details, dict) else None
        return found if isinstance(found, dict) else None

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None
