"""A traffic router in memory: follows at once, or when told to. For tests, dry runs and demos."""

from __future__ import annotations

from rollout.traffic_routers.base import RouterView
from serving.traffic import TrafficTable


class MemoryTrafficRouter:
    """One router that follows every table, unless `follows` is set to False."""

    def __init__(self, *, ready: dict[str, int] | None = None) -> None:
        self.table: TrafficTable | None = None
        self.applied: TrafficTable | None = None
        self.follows = True
        self.gateways = 1
        self.ready: dict[str, int] = ready if ready is not None else {}
        self.in_flight: dict[str, int] = {}

    async def set(self, table: TrafficTable) -> None:
        """Take the table over, where it is newer."""
        if self.table is None or table.generation > self.table.generation:
            self.table = table
        if self.follows:
            self.applied = self.table

    def view(self) -> RouterView:
        """The present state."""
        applied = self.gateways > 0 and self.applied is self.table
        return RouterView(
            gateways=self.gateways,
            applied=applied,
            ready_endpoints=dict(self.ready),
            in_flight=dict(self.in_flight) if applied else None,
        )
