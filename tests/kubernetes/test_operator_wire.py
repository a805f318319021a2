"""The operator through kopf and the official client over real HTTP, with the rights that the chart gives it."""

from __future__ import annotations

import asyncio
import functools
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from rollout.event_log.base import EventLog, Kind, NewEntry
from rollout.event_log.memory import MemoryEventLog
from rollout.operator import watcher
from rollout.operator.names import KIND
from rollout.operator.reconciler import WORKERS
from rollout.operator.resource import wish_of
from rollout.specs import parse_spec
from tests.kubectl import require
from tests.kubernetes.faults import Trouble
from tests.kubernetes.rig import ACCOUNT, NAMESPACE, operating, prepared
from tests.kubernetes.server import ApiServer
from tests.kubernetes.world import OperatorWorld
from tests.unit.helm.charts import objects

pytestmark = pytest.mark.integration

MANY = 500


@pytest.fixture
def cluster(api: ApiServer) -> ApiServer:
    return prepared(api, objects())


async def test_a_whole_life_with_the_chart_s_rights(cluster: ApiServer, tmp_path: Path) -> None:
    async with operating(cluster, tmp_path) as rig:
        rig.apply("1.0.0")
        await rig.until(lambda: rig.serving("1.0.0"))
        rig.apply("1.1.0")
        await rig.until(lambda: rig.serving("1.1.0"))
        rig.annotate("rollback", "answers in riddles")
        await rig.until(lambda: rig.serving("1.0.0") and rig.condition("RolledBack") == "Condemned")
        assert rig.told()["commands"][0]["outcome"] == "Done"
        assert {e["reason"] for e in cluster.cluster.list("events", NAMESPACE)} >= {"RolloutStarted", "RolledBack"}
        managers = {
            m["manager"]
            for m in cluster.cluster.get("modeldeployments", NAMESPACE, "chat")["metadata"]["managedFields"]
        }
        assert managers == {"kubectl", "tidegate-operator"}, "kopf writes nothing of its own"
        cluster.cluster.delete("modeldeployments", NAMESPACE, "chat")
        await rig.until(lambda: cluster.cluster.find("modeldeployments", NAMESPACE, "chat") is None)
    assert [(a, code) for a, code in cluster.asked if code == 403] == []
    places = {a.namespace for a, _ in cluster.asked if a.user == ACCOUNT and a.resource}
    assert places == {NAMESPACE}, "a release stays in the namespaces that it watches"


async def test_kubectl_drives_it(cluster: ApiServer, tmp_path: Path) -> None:
    program = require()
    config, manifest = tmp_path / "admin", tmp_path / "chat.yaml"
    config.write_text(yaml.safe_dump(cluster.kubeconfig(namespace=NAMESPACE)))
    body = {"apiVersion": "tidegate.dev/v1alpha1", "kind": "ModelDeployment", "metadata": {"name": "chat"}}

    async def kubectl(*words: str) -> str:
        command = [program, "--kubeconfig", str(config), "--cache-dir", str(tmp_path / "cache"), *words]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=30, check=False)
        return done.stdout + done.stderr

    async with operating(cluster, tmp_path) as rig:
        for version in ("1.0.0", "1.1.0"):
            manifest.write_text(
                yaml.safe_dump({**body, "spec": {"model": "chat", "version": version, "emergency": True}})
            )
            assert "serverside-applied" in await kubectl("apply", "--server-side", "-f", str(manifest))
            await rig.until(lambda v=version: rig.serving(v))  # type: ignore[misc]
        assert "annotated" in await kubectl("annotate", "mdep", "chat", "tidegate.dev/rollback=reason")
        await rig.until(lambda: rig.serving("1.0.0"))
        heads, row = (await kubectl("get", "mdep")).splitlines()
        assert heads.split() == ["NAME", "STABLE", "CANARY", "WEIGHT", "PHASE", "REASON", "AGE"]
        assert row.split()[:2] == ["chat", "1.0.0"]
        waited = await kubectl("wait", "mdep/chat", "--for=condition=Ready", "--timeout=5s")
        assert "condition met" in waited


async def test_it_lives_through_what_an_api_server_does_to_its_clients(cluster: ApiServer, tmp_path: Path) -> None:
    async with operating(cluster, tmp_path) as rig:
        rig.apply("1.0.0")
        await rig.until(lambda: rig.serving("1.0.0"))
        writes = lambda asked: asked.writes  # noqa: E731
        for number, trouble in enumerate(
            (Trouble.CONFLICT, Trouble.TOO_MANY, Trouble.INTERNAL, Trouble.TIMEOUT, Trouble.LOST_ANSWER, Trouble.CUT), 1
        ):
            cluster.faults.plan(trouble, writes, times=2, retry_after_s=1)
            cluster.cut_watches()
            rig.apply(f"1.{number}.0")
            await rig.until(lambda n=number: rig.serving(f"1.{n}.0"))  # type: ignore[misc]
        assert {t for t, _ in cluster.faults.met} == {
            Trouble.CONFLICT, Trouble.TOO_MANY, Trouble.INTERNAL, Trouble.TIMEOUT, Trouble.LOST_ANSWER, Trouble.CUT,
        }  # fmt: skip
        cluster.cluster.forget_history()
        cluster.cut_watches()
        rig.apply("1.9.0")
        await rig.until(lambda: rig.serving("1.9.0"))


async def test_the_api_server_away_and_the_operator_killed(cluster: ApiServer, tmp_path: Path) -> None:
    log = MemoryEventLog()
    async with operating(cluster, tmp_path, log) as rig:
        rig.apply("1.0.0")
        await rig.until(lambda: rig.serving("1.0.0"))
        cluster.leave()
        rig.apply("1.1.0")  # somebody's write that the operator does not see
        await asyncio.sleep(0.3)
        assert rig.controller.status("chat").stable is not None, "stable serves all the same"
    cluster.come_back()
    async with operating(cluster, tmp_path, log) as rig:
        await rig.until(lambda: rig.serving("1.1.0"))
        assert rig.resolved == ["chat@1.1.0"], "what had been deployed is not deployed again"


async def test_a_registry_that_hangs_holds_no_rollback_up(cluster: ApiServer, tmp_path: Path) -> None:
    async with operating(cluster, tmp_path) as rig:
        for version in ("1.0.0", "1.1.0"):
            rig.apply(version)
            await rig.until(lambda v=version: rig.serving(v))  # type: ignore[misc]
        rig.hanging.add("9.0.0")
        for number in range(2 * WORKERS):
            rig.apply("9.0.0", name=f"other-{number}")
        await asyncio.sleep(0.3)
        rig.annotate("rollback", "now")
        took_s = await rig.until(lambda: rig.controller.status("chat").stable.version == "1.0.0")  # type: ignore[union-attr]
        assert took_s < 5.0
        rig.hanging.clear()
        await rig.until(lambda: rig.serving("9.0.0", "other-7"))


async def test_a_revoked_right_is_told_and_heals(cluster: ApiServer, tmp_path: Path) -> None:
    async with operating(cluster, tmp_path) as rig:
        rig.apply("1.0.0")
        await rig.until(lambda: rig.serving("1.0.0"))
        before = cluster.access.revoke("patch", "modeldeployments/status")
        rig.apply("1.1.0")
        await rig.until(lambda: "cannot patch" in rig.operator.message)
        assert "docs/kubernetes.md" in rig.operator.message
        stable = rig.controller.status("chat").stable
        assert stable is not None
        cluster.access.grants = before
        rig.operator.reconciler.wake(next(iter(rig.operator.reconciler.resources)).key)
        await rig.until(lambda: rig.serving("1.1.0"))


async def test_a_watch_that_is_refused_is_told_in_the_resources_and_heals(
    cluster: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = watcher._settings()
    settings.networking.error_backoffs = [0.05]
    monkeypatch.setattr(watcher, "_settings", lambda: settings)
    monkeypatch.setattr(watcher, "AGAIN_S", (0.05, 0.5))
    async with operating(cluster, tmp_path) as rig:
        rig.apply("1.0.0")
        await rig.until(lambda: rig.serving("1.0.0"))
        before = cluster.access.revoke("watch", "modeldeployments")
        cluster.cut_watches()
        await rig.until(lambda: 'cannot watch resource "modeldeployments"' in rig.operator.message)
        key = next(iter(rig.operator.reconciler.resources)).key
        rig.operator.reconciler.wake(key)
        await rig.until(lambda: rig.condition("Degraded") == "Holding")
        told = next(c["message"] for c in rig.told()["conditions"] if c["type"] == "Degraded")
        assert told.startswith("changes of resources are not seen: watching modeldeployments ended")
        assert "the table of rights" in told
        rig.apply("1.1.0")
        await rig.until(lambda: rig.serving("1.1.0"))  # a list may still be read, now and then
        cluster.access.grants = before
        rig.apply("1.2.0")
        await rig.until(lambda: rig.serving("1.2.0"))
        rig.annotate("ack", "seen")  # the watch brings something, so it works
        await rig.until(lambda: rig.operator.message == "" and rig.condition("Degraded") == "AsExpected")


async def test_events_that_are_refused_keep_nothing_from_being_told(cluster: ApiServer, tmp_path: Path) -> None:
    cluster.access.revoke("create", "events")
    async with operating(cluster, tmp_path) as rig:
        for version in ("1.0.0", "1.1.0"):
            rig.apply(version)
            await rig.until(lambda v=version: rig.serving(v))  # type: ignore[misc]
    assert cluster.cluster.list("events", NAMESPACE) == []


async def test_a_namespace_that_may_not_be_read_holds_no_other_up(cluster: ApiServer, tmp_path: Path) -> None:
    """As after somebody has deleted a watched namespace: the rights in it are gone with it."""
    async with operating(cluster, tmp_path, also=("deleted",)) as rig:
        for version in ("1.0.0", "1.1.0"):
            rig.apply(version)
            await rig.until(lambda v=version: rig.serving(v))  # type: ignore[misc]
        assert "nothing of namespace deleted is seen" in rig.operator.message
        rig.annotate("rollback", "now")
        await rig.until(lambda: rig.serving("1.0.0"))
        refused = {a.namespace for a, code in cluster.asked if code == 403}
        assert refused == {"deleted"}


def many_that_serve(cluster: ApiServer) -> EventLog:
    """So many models that serve, their resources as the operator has left them, and the log of all that.

    One is made the long way; the others are the same under other names.
    """
    world = OperatorWorld(cluster=cluster.cluster, namespace=NAMESPACE)
    world.now = time.time()
    world.apply("1.0.0", "model-0", model="model-0")
    for _ in range(12):
        world.step()
    world.close()
    first = json.dumps(cluster.cluster.get(KIND, NAMESPACE, "model-0"))
    wish = wish_of(parse_spec(json.loads(first)))
    logged = [e.model_dump_json(exclude={"id", "fence"}) for e in world.log.read(kinds=(Kind.COMMAND, Kind.DECISION))]
    fence = world.log.acquire("world", time.monotonic(), 10.0)
    assert fence is not None
    for number in range(1, MANY):
        body = json.loads(first.replace("model-0", f"model-{number}"))
        cluster.cluster.restore(KIND, NAMESPACE, body)
        names = (("model-0", f"model-{number}"), (wish, wish_of(parse_spec(body))))
        entries = [NewEntry.model_validate_json(functools.reduce(lambda t, n: t.replace(*n), names, e)) for e in logged]
        world.log.append(entries, fence)
    world.log.release("world", fence)
    return world.log


async def test_many_resources_are_taken_in_soon_and_an_unchanged_one_is_never_written(
    cluster: ApiServer, tmp_path: Path
) -> None:
    log = await asyncio.to_thread(many_that_serve, cluster)
    before = cluster.cluster.version
    async with operating(cluster, tmp_path, log) as rig:
        reconciler = rig.operator.reconciler
        took_s = await rig.until(lambda: len(reconciler.resources) == MANY and reconciler.backlog == 0)
        await asyncio.sleep(0.5)
        assert rig.resolved == []
        assert rig.operator.message == ""
    print(f"{MANY} ModelDeployments resynced in {took_s:.1f} s", file=sys.stderr)
    assert cluster.writes() == [], "nothing had changed, so nothing is written"
    assert cluster.cluster.version == before
    assert took_s < 30.0
