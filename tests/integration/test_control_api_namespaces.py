"""The control plane of a cluster that two teams share: `chat` is team-a's, `ledger` is team-b's."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import threading
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx
import pytest
import websockets

from rollout.access import ROUTES, Right
from rollout.commands import Command, Verb
from rollout.control_api.drift import AT_ONCE
from rollout.probes.memory import MemoryProbeReports
from rollout.specs import RolloutSpec
from serving.accounting import UsageRow, hour_of
from serving.outcomes import KeysPush
from tests.contract.test_probe_reports import report
from tests.integration.control_rig import TOKEN, Rig, follow_as_gateway, running, until

pytestmark = pytest.mark.integration

LOGGED: tuple[Mapping[str, Any], ...] = (
    {"request_id": "req_a", "model": "chat", "prompt": "of a"},
    {"request_id": "req_b", "model": "ledger", "prompt": "of b"},
)


class Logged:
    """A request log in memory, which sorts out models as the real one does."""

    def find(self, request_id: str) -> Mapping[str, Any] | None:
        return next((line for line in LOGGED if line["request_id"] == request_id), None)

    def search(self, wanted: Mapping[str, Any], limit: int) -> list[Mapping[str, Any]]:
        return [line for line in LOGGED if wanted["models"] is None or line["model"] in wanted["models"]][-limit:]

    def erase(self, user: str, until: float) -> int:
        return len(LOGGED)


class Watch:
    """A drift watch in memory."""

    def __init__(self) -> None:
        self.acknowledged: list[tuple[str, str | None, str, str]] = []

    def status(self) -> Mapping[str, Any]:
        streams = [{"model": name, "stream": "all"} for name in ("chat", "ledger")]
        return {"written_at": 1.0, "streams": streams, "requests": [{"model": "ledger"}], "dropped": 3}

    def acknowledge(self, model: str, stream: str | None, by: str, reason: str) -> bool:
        self.acknowledged.append((model, stream, by, reason))
        return True


async def deploy_in(rig: Rig, namespace: str, model: str) -> None:
    """As the operator carries out a ModelDeployment."""
    spec = RolloutSpec(model=model, version="1.0.0")
    _, deployed = await rig.plane.versions.resolve(spec, namespace)
    command = Command(verb=Verb.DEPLOY, actor=f"{namespace}/{model}", namespace=namespace)
    await rig.controller.execute(model, command, rig.controller.new_target(spec, deployed, ""))
    await until(lambda: rig.controller.status(model).stable is not None)


@contextlib.asynccontextmanager
async def shared(drift: Watch | None = None) -> AsyncIterator[Rig]:
    probes = MemoryProbeReports()
    for model in ("chat", "ledger"):
        probes.save(report("1.0.0", model=model))
    async with running(namespaced=True, logged=Logged(), probes=probes, drift=drift or Watch()) as rig:
        await rig.serve_canary()
        await deploy_in(rig, "team-b", "ledger")
        for key in ("aaaaaaaaaaaa", "bbbbbbbbbbbb"):
            row = UsageRow(
                gateway="g", boot="b", hour=hour_of(time.time()), key=key,
                model="chat" if key[0] == "a" else "ledger", version="1.0.0", requests=1, input_tokens=1,
                output_tokens=1, unmetered=0,
            )  # fmt: skip
            rig.accounts.add_usage([row])
        yield rig


def refusal(answer: httpx.Response) -> tuple[int, str, str]:
    told = answer.json()["error"]
    return answer.status_code, told["code"], told["message"]


async def test_no_answer_to_a_key_tells_of_another_namespaces_models() -> None:
    async with shared() as rig:
        everything = await rig.make_key("sre", "viewer", "data-reader", namespace="*")
        for key, mine, theirs in [
            ((await rig.make_key("a", "viewer", "data-reader", namespace="team-a"))[0], "chat", "ledger"),
            ((await rig.make_key("b", "viewer", "data-reader", namespace="team-b"))[0], "ledger", "chat"),
        ]:
            lists = ""
            own: list[httpx.Response] = []
            foreign: list[httpx.Response] = []
            for (method, path), right in ROUTES.items():
                if method != "GET" or right not in (Right.READ, Right.READ_TEXT) or path.endswith(("events", "schema")):
                    continue
                if "{" not in path:
                    lists += (await rig.get(path, key=key)).text
                    continue
                for name, into in ((mine, own), (theirs, foreign)):
                    request_id = "req_a" if name == "chat" else "req_b"
                    into.append(await rig.get(path.format(model=name, version="1.0.0", request_id=request_id), key=key))
            assert mine in lists
            assert theirs not in lists
            assert {a.status_code for a in own} == {200}
            assert sorted(a.status_code for a in foreign) == [
                403,
                403,
                403,
                403,
                404,
            ]  # the text of a request: as unknown
            unknown = refusal(await rig.get("/api/v1/rollouts/nothing", key=key))
            assert unknown[:2] == (404, "unknown_rollout")
            assert theirs not in unknown[2]
            for path in ("/api/v1/usage", "/api/v1/requests", "/api/v1/events"):
                assert (await rig.get(path, key=key, model=theirs)).status_code == 403
        seen = (await rig.get("/api/v1/models", key=everything[0])).json()["models"]
        assert [m["model"] for m in seen] == ["chat", "ledger"]


async def test_events_pass_over_another_namespaces_models() -> None:
    async with shared() as rig:
        key, _ = await rig.make_key("b", "viewer", namespace="team-b")
        async with rig.http.stream("GET", "/api/v1/events", headers=rig.as_key(key)) as answer:
            lines = (json.loads(line[5:]) async for line in answer.aiter_lines() if line.startswith("data:"))
            async with asyncio.timeout(20):
                assert (await anext(lines))["model"] == "ledger"
                await rig.post("/api/v1/rollouts/chat/pause", {"reason": "not for b"})
                await rig.post("/api/v1/rollouts/ledger/scale", {"replicas": 2})
                told = await anext(lines)
        assert told["model"] == "ledger"


async def test_a_key_commands_its_own_namespace_and_the_audit_trail_names_it(caplog: pytest.LogCaptureFixture) -> None:
    async with shared() as rig:
        key, key_id = await rig.make_key("ops", "operator", namespace="team-a")
        caplog.set_level(logging.WARNING)
        for path, body in [
            ("/api/v1/rollouts/ledger/scale", {"replicas": 2}),
            ("/api/v1/rollouts/ledger/rollback", {"dry_run": True}),
            ("/api/v1/rollouts", {"spec": {"model": "ledger", "version": "1.0.0"}}),
        ]:
            status, code, message = refusal(await rig.post(path, body, key=key))
            assert (status, code) == (403, "forbidden")
            assert "'ledger' is not of namespace team-a" in message
            assert f"ops ({key_id})" in message
            assert "--namespace" in message
            assert "team-b" not in message
        lines = [json.loads(r.getMessage()) for r in caplog.records if '"refused"' in r.getMessage()]
        assert [(x["status"], x["namespace"]) for x in lines] == [(403, "team-a")] * 3
        paused = await rig.post("/api/v1/rollouts/chat/pause", {"reason": "pager"}, key=key)
        assert paused.status_code == 202
        told = (await rig.get("/api/v1/rollouts/chat/history", key=key)).json()["entries"][-1]["payload"]["command"]
        assert (told["actor"], told["namespace"]) == (f"ops ({key_id})", "team-a")


async def test_a_model_stays_in_its_namespace_and_a_key_makes_none_in_another() -> None:
    async with running(namespaced=True) as rig:
        b, _ = await rig.make_key("b", "operator", namespace="team-b")
        new = {"spec": {"model": "ledger", "version": "1.0.0"}}
        status, _, message = refusal(await rig.post("/api/v1/rollouts", new, key=b))
        assert (status, "tidegate deploy -n team-b" in message) == (403, True)
        await deploy_in(rig, "team-b", "chat")
        assert (await rig.deploy("1.0.1")).status_code == 202  # by the bootstrap token, from team-a's control plane
        canary = rig.controller.status("chat").canary
        assert canary is not None
        assert canary.namespace == "team-b"
        assert rig.tables[-1].model("chat").namespace == "team-b"


async def test_drift_is_acknowledged_by_an_operator_of_the_models_namespace() -> None:
    watch = Watch()
    async with shared(watch) as rig:
        mine, _ = await rig.make_key("ann", "operator", namespace="team-a")
        viewer, _ = await rig.make_key("viv", "viewer", namespace="team-a")
        url = "/api/v1/drift/ack"
        for body, key in (({"model": "ledger"}, mine), ({"model": "chat"}, viewer)):
            assert refusal(await rig.post(url, body, key=key))[:2] == (403, "forbidden")
        assert refusal(await rig.post(url, {"model": "nothing"}, key=mine))[:2] == (404, "unknown_rollout")
        assert watch.acknowledged == []
        body = {"model": "chat", "stream": "tenant=acme", "reason": "a campaign"}
        assert (await rig.post(url, body, key=mine)).json() == {"acknowledged": True, "taken_in": True}
        ((model, stream, by, reason),) = watch.acknowledged
        assert (model, stream, reason) == ("chat", "tenant=acme", "a campaign")
        assert by.startswith("ann")


async def test_a_drift_watch_that_hangs_takes_few_of_the_threads_that_renew_the_lease() -> None:
    here, at_once, go_on = threading.Lock(), [0, 0], threading.Event()

    class Hanging(Watch):
        def status(self) -> Mapping[str, Any]:
            with here:
                at_once[:] = at_once[0] + 1, max(at_once[1], at_once[0] + 1)
            go_on.wait(10)
            with here:
                at_once[0] -= 1
            return super().status()

    async with shared(Hanging()) as rig:
        asking = [asyncio.create_task(rig.get("/api/v1/drift")) for _ in range(6)]
        await until(lambda: at_once[0] == AT_ONCE)
        assert (await rig.get("/api/v1/whoami")).status_code == 200  # by then all six have come
        go_on.set()
        assert [answer.status_code for answer in await asyncio.gather(*asking)] == [200] * 6
        assert at_once[1] == AT_ONCE


async def test_an_admin_of_a_namespace_manages_its_keys_and_no_others() -> None:
    async with shared() as rig:
        admin, admin_id = await rig.make_key("lead", "admin", namespace="team-a")
        _, theirs = await rig.make_key("b", "viewer", namespace="team-b")
        door, gateways = await rig.make_key("gateways", "gateway")
        for body in ({"namespace": "*"}, {"namespace": "team-b"}, {"namespace": "team-a", "roles": ["gateway"]}):
            assert refusal(await rig.post("/api/v1/keys", {"name": "x", **body}, key=admin))[:2] == (403, "forbidden")
        made = await rig.post("/api/v1/keys", {"name": "x", "namespace": "team-a", "models": ["ledger"]}, key=admin)
        assert made.status_code == 201
        assert "not deployed yet: ledger" in made.json()["warning"]  # not in its namespace
        listed = (await rig.get("/api/v1/keys", key=admin)).json()["keys"]
        assert {k["id"] for k in listed} == {admin_id, made.json()["record"]["id"]}
        for key_id in (theirs, gateways):
            refused = await rig.post(f"/api/v1/keys/{key_id}/revoke", key=admin)
            assert refusal(refused)[:2] == (404, "no_such_key")
        assert refusal(await rig.post("/api/v1/requests/erase", {"user": "ada"}, key=admin))[0] == 403
        with pytest.raises(websockets.InvalidStatus):  # a gateway is told everything
            await follow_as_gateway(rig, "impostor", admin)
        before = len(rig.router.connections)
        task = asyncio.create_task(follow_as_gateway(rig, "gateway-x", door))
        await until(lambda: len(rig.router.connections) == before + 1)
        task.cancel()


async def test_a_quota_is_set_by_who_is_bound_to_none_and_seen_by_its_namespace() -> None:
    async with shared() as rig:
        admin, _ = await rig.make_key("lead", "admin", namespace="team-a")
        viewer, _ = await rig.make_key("b", "viewer", namespace="team-b")
        url, body = "/api/v1/quotas/team-a", {"requests_per_minute": 600}
        told: list[KeysPush] = []
        listening = asyncio.create_task(follow_as_gateway(rig, "listener", told=told))
        for key in (admin, viewer):
            assert refusal(await rig.http.put(url, json=body, headers=rig.as_key(key)))[:2] == (403, "forbidden")
        assert (await rig.http.put(url, json=body, headers=rig.as_key(TOKEN))).status_code == 200
        await until(lambda: told and [q.requests_per_minute for q in told[-1].quotas] == [600])
        assert [q["namespace"] for q in (await rig.get("/api/v1/quotas", key=admin)).json()["quotas"]] == ["team-a"]
        assert (await rig.get("/api/v1/quotas", key=viewer)).json()["quotas"] == []
        for wrong in ({}, {"requests_per_minute": 0}, {"rpm": 1}):
            assert (await rig.http.put(url, json=wrong, headers=rig.as_key(TOKEN))).status_code == 400
        assert (await rig.http.delete(url, headers=rig.as_key(TOKEN))).status_code == 200
        await until(lambda: told[-1].quotas == ())
        assert refusal(await rig.http.delete(url, headers=rig.as_key(TOKEN)))[:2] == (404, "no_such_quota")
        listening.cancel()


async def test_outside_a_cluster_namespaces_bind_nobody() -> None:
    async with running() as rig:
        await rig.serve_canary()
        key, _ = await rig.make_key("ops", "admin", namespace="shop")
        assert (await rig.post("/api/v1/rollouts/chat/pause", {"reason": "look"}, key=key)).status_code == 202
        assert (await rig.post("/api/v1/keys", {"name": "x", "namespace": "*"}, key=key)).status_code == 201
