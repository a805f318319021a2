"""The port to whatever divides the traffic. Setting is not verifying: `set` asks, `view` tells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from pydantic import Field

from serving.specs import Frozen
from serving.traffic import TrafficTable


class RouterView(Frozen):
    """What is known of the routers now."""

    gateways: int = 0
    applied: bool = False
    """There is at least one router, and every one has acknowledged the newest table."""
    ready_endpoints: Mapping[str, int] = Field(default_factory=dict)
    """By application: the fewest usable endpoints over all routers."""
    in_flight: Mapping[str, int] | None = None
    """By digest, summed over all routers; None until every one has told it since the newest table."""


class TrafficRouter(Protocol):
    """Divides requests over revisions."""

    async def set(self, table: TrafficTable) -> None:
        """Ask every router to follow this table; returns when it has been sent, not when it is applied."""
        ...

    def view(self) -> RouterView:
        """Tell how far the routers have followed."""
        ...
