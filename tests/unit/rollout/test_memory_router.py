"""The traffic router in memory: what was asked for is not what is observed until it follows."""

from __future__ import annotations

import asyncio

from rollout.traffic_routers.memory import MemoryTrafficRouter
from serving.traffic import TrafficTable


def table(sequence: int) -> TrafficTable:
    return TrafficTable(fence=1, sequence=sequence, issued_at=0.0)


def test_setting_is_not_verifying_and_older_tables_are_ignored():
    router = MemoryTrafficRouter(ready={"app": 1})
    asyncio.run(router.set(table(2)))
    assert router.view().applied
    assert router.view().in_flight == {}
    asyncio.run(router.set(table(1)))
    assert router.applied == table(2)
    router.follows = False
    asyncio.run(router.set(table(3)))
    assert not router.view().applied
    assert router.view().in_flight is None
