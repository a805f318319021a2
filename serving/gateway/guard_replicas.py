"""Where the replicas of the guardrails' service are, by its name in the cluster's DNS: one address for each."""

from __future__ import annotations

import asyncio
import logging

from serving.addresses import base_url, host_and_port
from serving.gateway.logs import log
from serving.gateway.resolving import addresses_of

EVERY_S = 5.0
WITHIN_S = 5.0


class GuardReplicas:
    """Looks the name up again and again. What was found last holds while it can't be."""

    def __init__(self, address: str) -> None:
        self._host, self._port = host_and_port(address)
        self.urls: list[str] = []
        """Of the replicas that were ready a moment ago."""

    async def run(self) -> None:
        """Look for ever; cancel it to stop."""
        known = True
        while True:
            try:
                async with asyncio.timeout(WITHIN_S):
                    found = await self._look()
            except OSError as error:  # a time-out is one
                if known:
                    log(logging.WARNING, "guard-service-unknown", host=self._host, reason=str(error) or "no answer")
                known = False
            else:
                known, self.urls = True, found
            await asyncio.sleep(EVERY_S)

    async def _look(self) -> list[str]:
        found = await addresses_of(self._host, self._port)
        return sorted({base_url(str(address[0]), self._port) for *_, address in found})
