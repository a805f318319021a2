"""Many dashboards, a few questions: whoever is not calm always, the others in turn."""

from __future__ import annotations

import httpx

from rollout.workloads.base import WorkloadState, WorkloadStatus
from rollout.workloads.ray_dashboards import MOST, RayDashboards


async def test_whose_turn_it_is() -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.host)
        return httpx.Response(200, json={"applications": {request.url.host: {"status": "RUNNING"}}})

    names = [f"app-{n:03d}" for n in range(MOST * 2)]
    urls = {name: f"http://{name}:8265" for name in names}
    seen = {n: WorkloadStatus(application=n, state=WorkloadState.READY, ready_replicas=1) for n in names}
    restless = names[-1]
    seen[restless] = WorkloadStatus(application=restless, state=WorkloadState.DEGRADED)
    dashboards = RayDashboards(lambda: "", transport=httpx.MockTransport(answer))
    for _ in range(3):
        assert len(await dashboards.ask(urls, seen)) == MOST
    assert asked.count(restless) == 3
    assert set(asked) == set(names), "after three looks everybody had a turn"
    await dashboards.close()
