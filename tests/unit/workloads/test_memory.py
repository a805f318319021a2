"""The failures that can be planted in the memory adapter."""

from __future__ import annotations

import pytest

from rollout.errors import WorkloadRejected, WorkloadUnavailable
from rollout.workloads.base import WorkloadState
from rollout.workloads.memory import MemoryWorkloads
from tests.unit.workloads.test_ray_serve import workload

ONE = workload("1.0.0")


async def state(workloads: MemoryWorkloads) -> WorkloadState:
    return (await workloads.observe())[ONE.application].state


async def test_time_passes_by_ticks_alone() -> None:
    workloads = MemoryWorkloads(load_ticks=2, drain_ticks=2)
    await workloads.apply([ONE])
    assert await state(workloads) is WorkloadState.STARTING
    workloads.tick()
    assert await state(workloads) is WorkloadState.STARTING
    workloads.tick()
    assert await state(workloads) is WorkloadState.READY
    await workloads.apply([])
    workloads.tick()
    assert await state(workloads) is WorkloadState.STOPPING
    workloads.tick()
    assert await workloads.observe() == {}


async def test_a_killed_replica_comes_back() -> None:
    workloads = MemoryWorkloads(load_ticks=1)
    await workloads.apply([ONE])
    workloads.tick()
    workloads.kill_replica(ONE.application)
    seen = (await workloads.observe())[ONE.application]
    assert (seen.state, seen.ready_replicas, seen.restarts) == (WorkloadState.DEGRADED, 0, 1)
    workloads.tick()
    assert await state(workloads) is WorkloadState.READY


async def test_a_lost_write_is_made_good_by_the_next() -> None:
    workloads = MemoryWorkloads()
    workloads.lose_writes()
    await workloads.apply([ONE])
    assert await workloads.observe() == {}
    await workloads.apply([ONE])
    assert await state(workloads) is WorkloadState.STARTING


async def test_everything_lost() -> None:
    workloads = MemoryWorkloads(load_ticks=1)
    await workloads.apply([ONE])
    workloads.tick()
    workloads.kill_everything()
    assert await workloads.observe() == {}
    await workloads.apply([ONE])
    assert await state(workloads) is WorkloadState.STARTING


async def test_outages_and_rejections() -> None:
    workloads = MemoryWorkloads()
    workloads.make_unavailable("gone")
    with pytest.raises(WorkloadUnavailable, match="gone"):
        await workloads.observe()
    workloads.make_available()
    workloads.reject_next_write("no")
    with pytest.raises(WorkloadRejected, match="no"):
        await workloads.apply([ONE])
    await workloads.apply([ONE])
    assert workloads.writes == 1
