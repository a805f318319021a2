"""How Ray Serve's account of itself is read, without Ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from rollout.errors import WorkloadRejected, WorkloadUnavailable
from rollout.workloads.base import Workload, WorkloadState
from rollout.workloads.ray_serve import RayServeWorkloads, telling_line
from serving.specs import GUARD_APPLICATION, EngineKind, RevisionSpec

RUNNING, STARTING = {"state": "RUNNING", "replica_id": "a"}, {"state": "STARTING", "replica_id": "b"}
DEAD = [{"replica_id": "x"}, {"replica_id": "y"}]
TRACEBACK = (
    "The deployment failed to start 3 times in a row. Error:\n\x1b[36mray::ServeReplica:x.initialize()\x1b[39m\n"
    '  File "a.py", line 1, in f\nserving.errors.EngineStartFailed: vllm engine of chat@1.2.0 exited with code 1: '
    "ValueError: odd; correct it [permanent]"
)


def workload(version: str = "1.0.0", replicas: int = 1) -> Workload:
    spec = RevisionSpec(
        model="chat", version=version, manifest_sha256="0" * 64, engine=EngineKind.SIMULATED, source="sim:"
    )
    return Workload(revision=spec, replicas=replicas)


class FakeRay:
    """Answers like the dashboard: remembers what was PUT, tells what it is told to tell."""

    def __init__(self, tmp_path: Path) -> None:
        self.file = tmp_path / "ray.json"
        self.publish("http://ray:1", "one")
        self.token = "one"
        self.details: dict[str, Any] = {"applications": {}}
        self.puts: list[dict[str, Any]] = []
        self.answer: httpx.Response | None = None
        self.port = RayServeWorkloads(self.file, log_dir=tmp_path, transport=httpx.MockTransport(self._handle))

    def publish(self, url: str, token: str) -> None:
        replacement = self.file.with_suffix(".new")
        replacement.write_text(json.dumps({"dashboard_url": url, "token": token}))
        replacement.replace(self.file)

    def _handle(self, request: httpx.Request) -> httpx.Response:
        if request.headers.get("authorization") != f"Bearer {self.token}":
            return httpx.Response(401, text="no")
        if self.answer is not None:
            return self.answer
        if request.method == "PUT":
            config = json.loads(request.content)
            self.puts.append(config)
            self.details = {
                "controller_info": {"actor_id": "c"},
                "applications": {
                    app["name"]: {"status": "RUNNING", "deployed_app_config": app} for app in config["applications"]
                },
            }
        return httpx.Response(200, json=self.details)

    def tell(
        self, status: str, *, replicas: list[Any], target: int = 1, message: str = "", dead: list[Any] | None = None
    ) -> None:
        engine = {
            "message": message,
            "replicas": replicas,
            "target_num_replicas": target,
            "recent_dead_replicas": dead or [],
        }
        self.details = {"applications": {"chat": {"status": status, "message": "", "deployments": {"engine": engine}}}}


@pytest.fixture
def ray(tmp_path: Path) -> FakeRay:
    return FakeRay(tmp_path)


@pytest.mark.parametrize(
    ("status", "replicas", "target", "message", "dead", "state", "says"),
    [
        ("DEPLOYING", [], 1, "", [], WorkloadState.STARTING, ""),
        ("NOT_STARTED", [], 0, "", [], WorkloadState.STARTING, ""),
        ("DEPLOYING", [STARTING], 1, "", [], WorkloadState.STARTING, ""),
        ("RUNNING", [RUNNING], 1, "old news", [], WorkloadState.READY, ""),
        ("RUNNING", [RUNNING, RUNNING], 2, "", DEAD, WorkloadState.READY, ""),
        ("RUNNING", [STARTING], 1, "", DEAD, WorkloadState.DEGRADED, ""),
        ("UNHEALTHY", [], 1, "a replica died", DEAD, WorkloadState.DEGRADED, "a replica died"),
        ("DEPLOYING", [RUNNING, STARTING], 2, "", DEAD, WorkloadState.DEGRADED, ""),
        ("DEPLOYING", [RUNNING, STARTING], 2, "", [], WorkloadState.STARTING, ""),
        ("DEPLOYING", [], 1, TRACEBACK, DEAD, WorkloadState.FAILED, "ValueError: odd; correct it"),
        ("DEPLOYING", [], 1, TRACEBACK.replace("[permanent]", ""), DEAD, WorkloadState.STARTING, "ValueError: odd"),
        ("DEPLOY_FAILED", [], 1, TRACEBACK, DEAD, WorkloadState.FAILED, "vllm engine of chat@1.2.0 exited"),
        ("DEPLOY_FAILED", [RUNNING], 2, TRACEBACK, DEAD, WorkloadState.DEGRADED, "vllm engine of chat@1.2.0 exited"),
        ("DELETING", [RUNNING], 0, "", [], WorkloadState.STOPPING, ""),
    ],
)
async def test_states(
    ray: FakeRay,
    status: str,
    replicas: list[Any],
    target: int,
    message: str,
    dead: list[Any],
    state: WorkloadState,
    says: str,
) -> None:
    ray.tell(status, replicas=replicas, target=target, message=message, dead=dead)
    seen = (await ray.port.observe())["chat"]
    assert seen.state is state
    assert says in seen.message
    assert "\n" not in seen.message
    assert seen.ready_replicas == replicas.count(RUNNING)
    assert seen.restarts == len(dead)


async def test_restarts_are_counted_beyond_what_serve_retains(ray: FakeRay) -> None:
    for first in range(0, 20, 5):
        ray.tell("RUNNING", replicas=[RUNNING], dead=[{"replica_id": str(n)} for n in range(first, first + 10)])
        seen = await ray.port.observe()
    assert seen["chat"].restarts == 25


async def test_one_put_carries_everything_and_nothing_is_written_twice(ray: FakeRay) -> None:
    await ray.port.apply([])
    assert len(ray.puts) == 1, "an empty set still starts Serve"
    both = [workload("1.0.0"), workload("1.1.0")]
    await ray.port.apply(both)
    await ray.port.apply(both[::-1])
    assert len(ray.puts) == 2
    applications = {app["name"]: app for app in ray.puts[1]["applications"]}
    assert applications.keys() == {w.application for w in both}
    one = applications[both[0].application]
    assert one["import_path"] == "serving.ray_app.application:build"
    assert one["args"]["revision"]["version"] == "1.0.0"
    assert one["deployments"][0]["graceful_shutdown_timeout_s"] == 35


async def test_the_guardrails_models_run_beside_revisions_and_are_none(ray: FakeRay, tmp_path: Path) -> None:
    port = RayServeWorkloads(ray.file, log_dir=tmp_path, transport=httpx.MockTransport(ray._handle), guards=True)
    await port.apply([])
    await port.apply([workload()])
    await port.apply([workload()])
    assert [[app["name"] for app in put["applications"]] for put in ray.puts] == [
        [GUARD_APPLICATION],
        [workload().application, GUARD_APPLICATION],
    ]
    assert list(await port.observe()) == [workload().application]
    await port.close()


async def test_capacity_is_not_part_of_what_restarts_replicas(ray: FakeRay) -> None:
    await ray.port.apply([workload(replicas=1)])
    await ray.port.apply([workload(replicas=3)])
    first, second = (put["applications"][0] for put in ray.puts)
    assert first["args"] == second["args"]
    assert second["deployments"][0]["num_replicas"] == 3


async def test_an_application_on_its_way_out_is_written_again_when_wanted(ray: FakeRay) -> None:
    await ray.port.apply([workload()])
    ray.details["applications"][workload().application]["status"] = "DELETING"
    await ray.port.apply([workload()])
    assert len(ray.puts) == 2


async def test_a_new_ray_is_found_by_its_file(ray: FakeRay) -> None:
    await ray.port.observe()
    ray.token = "two"
    with pytest.raises(WorkloadUnavailable, match="401"):
        await ray.port.observe()
    ray.publish("http://ray:2", "two")
    assert await ray.port.observe() == {}


async def test_refusals_and_outages(ray: FakeRay) -> None:
    ray.answer = httpx.Response(400, text="ValidationError: 1 error: num_replicas must be positive")
    with pytest.raises(WorkloadRejected, match="num_replicas"):
        await ray.port.apply([workload()])
    ray.answer = httpx.Response(503, text="GCS may be down")
    with pytest.raises(WorkloadUnavailable, match="503"):
        await ray.port.observe()
    ray.answer = httpx.Response(200, text="<html>")
    with pytest.raises(WorkloadUnavailable, match="not JSON"):
        await ray.port.observe()
    ray.file.write_text("{}")
    with pytest.raises(WorkloadUnavailable, match="is Ray running"):
        await ray.port.observe()


def test_telling_line_without_ours() -> None:
    assert (
        telling_line("a\nModuleNotFoundError: No module named 'x'\n\nb") == "ModuleNotFoundError: No module named 'x'"
    )
    assert telling_line("") == ""
