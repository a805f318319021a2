"""Rollouts, the log, events, keys and usage over the control plane's API, as clients see them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import jsonschema
import pytest

from rollout.control_api.feed import MAX_READERS, Feed
from serving.accounting import UsageRow, hour_of
from serving.keys import hash_secret, split_key
from tests.integration.control_rig import TOKEN, Rig, running, until

pytestmark = pytest.mark.integration


async def documents(answer: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in answer.aiter_lines():
        if line.startswith("data:"):
            yield json.loads(line[5:])


async def first_that(answer: httpx.Response, condition: Any, within_s: float = 20.0) -> dict[str, Any]:
    async with asyncio.timeout(within_s):
        async for document in documents(answer):
            if condition(document):
                return document
    raise AssertionError("the stream ended")


def follow(rig: Rig, key: str = TOKEN, **params: str) -> Any:
    return rig.http.stream("GET", "/api/v1/events", params=params, headers=rig.as_key(key))


# ---------------------------------------------------------------------------------------------------------------- verbs


async def test_a_rollback_says_how_long_it_took_until_every_gateway_had_weight_0() -> None:
    async with running(gateways=3) as rig:
        await rig.serve_canary()
        answer = (await rig.post("/api/v1/rollouts/chat/rollback", {"reason": "pager", "wait_s": 10})).json()
        assert answer["confirmed"]["all"] is True
        assert (answer["confirmed"]["gateways"], answer["confirmed"]["weight"]) == (3, 0)
        assert 0 < answer["confirmed"]["after_s"] < 10
        newest = rig.tables[-1].model("chat")
        assert all(r.weight in (0, 100) for r in newest.revisions)
        assert answer["status"]["phase"] == "Degraded"


async def test_a_rollback_without_gateways_does_not_wait_for_them() -> None:
    async with running() as rig:
        await rig.serve_canary()
        for connection in rig.router.connections:
            rig.router.detach(connection)
        began = time.monotonic()
        answer = (await rig.post("/api/v1/rollouts/chat/rollback", {"wait_s": 20})).json()
        assert answer["confirmed"]["all"] is False
        assert answer["confirmed"]["gateways"] == 0
        assert time.monotonic() - began < 10


async def test_a_dry_run_changes_nothing_and_is_not_in_the_log() -> None:
    async with running() as rig:
        await rig.serve_canary()
        before = len(list(rig.log.read()))
        answer = (await rig.post("/api/v1/rollouts/chat/rollback", {"dry_run": True})).json()
        assert [a["type"] for a in answer["plan"]["actions"]] == ["withdraw"]
        assert len(list(rig.log.read())) == before
        assert (await rig.get("/api/v1/rollouts/chat")).json()["weight"] == 10


async def test_the_verbs_do_what_their_names_say() -> None:
    async with running() as rig:
        await rig.serve_canary()
        said = []
        for verb in ("pause", "resume", "promote", "abort"):
            answer = await rig.post(f"/api/v1/rollouts/chat/{verb}", {"reason": verb})
            assert answer.status_code == 202, answer.text
            said.append((verb, answer.json()["status"]["phase"], answer.json()["status"]["weight"]))
        assert said == [
            ("pause", "Paused", 10),
            ("resume", "Progressing", 10),
            ("promote", "Progressing", 50),
            ("abort", "Degraded", 0),
        ]
        again = (await rig.post("/api/v1/rollouts/chat/retry")).json()["status"]
        assert (again["phase"], again["canary"]) == ("Progressing", "1.0.1")


async def test_undo_goes_back_to_what_was_stable_without_asking_the_registry() -> None:
    async with running() as rig:
        await rig.serve_canary()
        await rig.post("/api/v1/rollouts/chat/promote", {"full": True})
        await until(lambda: rig.controller.status("chat").stable.version == "1.0.1")
        answer = await rig.post("/api/v1/rollouts/chat/undo")
        assert answer.status_code == 202, answer.text
        assert answer.json()["status"]["canary"] == "1.0.0"


async def test_a_condemned_version_is_refused_until_somebody_acknowledges_it() -> None:
    async with running() as rig:
        await rig.serve_canary()
        await rig.post("/api/v1/rollouts/chat/rollback")
        refused = await rig.deploy("1.0.1")
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "quarantined")
        assert (await rig.post("/api/v1/rollouts/chat/ack", {"version": "1.0.1"})).status_code == 202
        assert (await rig.deploy("1.0.1")).status_code == 202


async def test_no_answer_tells_the_salt() -> None:
    async with running() as rig:
        started = await rig.deploy("1.0.0")
        await until(lambda: rig.controller.status("chat").stable is not None)
        paths = ("rollouts", "rollouts/chat", "rollouts/chat/history?evidence=true", "rollouts/chat/replay")
        texts = [started.text, *[(await rig.get(f"/api/v1/{p}")).text for p in paths]]
        salt = rig.controller.status("chat").rollout.salt
        assert not [t for t in texts if salt in t or '"salt"' in t]


# ------------------------------------------------------------------------------------------------------------- the log


async def test_history_comes_in_pages_that_together_are_the_whole() -> None:
    async with running() as rig:
        await rig.serve_canary()
        for i in range(5):
            await rig.post(f"/api/v1/rollouts/chat/{'resume' if i % 2 else 'pause'}")
        whole = (await rig.get("/api/v1/rollouts/chat/history")).json()
        assert whole["next_after"] is None
        pages, after = [], 0
        while after is not None:
            page = (await rig.get("/api/v1/rollouts/chat/history", after=after, limit=2)).json()
            assert len(page["entries"]) <= 2
            pages += page["entries"]
            after = page["next_after"]
        assert pages == whole["entries"]
        assert [e["id"] for e in pages] == sorted(e["id"] for e in pages)


async def test_replay_takes_every_decision_again() -> None:
    async with running() as rig:
        await rig.serve_canary()
        decisions = (await rig.get("/api/v1/rollouts/chat/replay")).json()["decisions"]
        assert decisions
        assert all(d["same"] for d in decisions)


async def test_the_schema_describes_what_is_accepted() -> None:
    async with running() as rig:
        schema = (await rig.get("/api/v1/schema")).json()
        validator = jsonschema.Draft202012Validator(schema)
        good = {"model": "chat", "version": "1.0.0", "strategy": {"canary": {"steps": [{"weight": 5}]}}}
        validator.validate(good)
        assert (await rig.post("/api/v1/rollouts", {"spec": good})).status_code == 202
        bad = {**good, "stratagem": {}}
        assert list(validator.iter_errors(bad))
        assert (await rig.post("/api/v1/rollouts", {"spec": bad})).status_code == 400


async def test_whoami_tells_a_key_what_it_is() -> None:
    async with running() as rig:
        key, key_id = await rig.make_key("ops", "operator", "viewer")
        told = (await rig.get("/api/v1/whoami", key=key)).json()
        assert told == {"actor": f"ops ({key_id})", "key": key_id, "roles": ["operator", "viewer"], "namespace": None}


# --------------------------------------------------------------------------------------------------------------- events


async def test_events_begin_with_what_is_and_tell_every_change() -> None:
    async with running() as rig:
        await rig.serve_canary()
        async with follow(rig) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert (await first_that(answer, lambda d: True))["weight"] == 10
        async with follow(rig, model="chat") as answer:
            stream = documents(answer)
            assert (await anext(stream))["phase"] == "Progressing"
            await rig.post("/api/v1/rollouts/chat/pause", {"reason": "look"})
            async with asyncio.timeout(10):
                while (document := await anext(stream))["phase"] != "Paused":
                    pass
            assert "look" in document["reason"]


async def test_events_tell_what_changes_without_a_decision_but_not_more_than_twice_a_second() -> None:
    async with running() as rig:
        await rig.serve_canary()
        seen: list[tuple[float, dict[str, Any]]] = []
        async with follow(rig, model="chat") as answer:
            stream = documents(answer)
            await anext(stream)
            digest = rig.controller.status("chat").canary.digest
            began, n = time.monotonic(), 0
            connection = rig.router.connections[0]
            while time.monotonic() - began < 3.0:
                n += 1
                if connection.totals is not None:  # a stream more is under way
                    connection.totals = connection.totals.model_copy(update={"in_flight": {digest: n}})
                try:
                    async with asyncio.timeout(0.02):
                        seen.append((time.monotonic(), await anext(stream)))
                except TimeoutError:
                    stream = documents(answer)
                    break
        assert len(seen) <= 8


async def test_a_reader_gets_the_newest_state_and_not_each_that_it_has_missed() -> None:
    async with running() as rig:
        await rig.serve_canary()
        frames = Feed(rig.plane).follow("chat", good=lambda: True, sees=lambda _: True)
        await anext(frames)
        for i in range(50):
            await rig.post(f"/api/v1/rollouts/chat/{'resume' if i % 2 else 'pause'}", {"reason": f"number {i}"})
        assert "number 49" in await anext(frames)
        await frames.aclose()


async def test_a_reader_that_does_not_read_holds_nobody_up_and_gets_the_last_state() -> None:
    async with running() as rig:
        await rig.serve_canary()
        host, port = rig.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
        writer.write(f"GET /api/v1/events HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\n\r\n".encode())
        await writer.drain()
        for i in range(300):  # far more than fits into the sockets' buffers
            verb = "resume" if i % 2 else "pause"
            answer = await rig.post(f"/api/v1/rollouts/chat/{verb}", {"reason": f"{i} {'x' * 900}"})
            assert answer.status_code == 202
        await rig.post("/api/v1/rollouts/chat/rollback", {"reason": "the very last"})
        async with asyncio.timeout(20):
            text = b""
            while b"the very last" not in text[-20_000:]:
                text += await reader.read(65536)
        writer.close()


async def test_a_revoked_key_gets_no_more_events() -> None:
    async with running() as rig:
        await rig.serve_canary()
        key, key_id = await rig.make_key("dashboards", "viewer")
        async with follow(rig, key=key) as answer:
            stream = documents(answer)
            await anext(stream)
            await rig.post(f"/api/v1/keys/{key_id}/revoke")
            await rig.post("/api/v1/rollouts/chat/pause", {"reason": "not for you"})
            async with asyncio.timeout(20):
                rest = [d async for d in stream]
        assert not any("not for you" in d["reason"] for d in rest)


async def test_readers_leave_nothing_behind_and_are_bounded() -> None:
    async with running() as rig:
        await rig.serve_first()
        before = len(rig.controller._listeners)
        for _ in range(5):
            async with follow(rig) as answer:
                await first_that(answer, lambda d: True)
        await until(lambda: len(rig.controller._listeners) == before)
    assert MAX_READERS <= 1000


# ------------------------------------------------------------------------------------------------------ keys and usage


async def test_a_key_is_told_once_and_kept_as_a_hash() -> None:
    async with running() as rig:
        made = (await rig.post("/api/v1/keys", {"name": "app", "models": ["chat"], "expires_in": "30d"})).json()
        key_id, secret = split_key(made["key"]) or ("", "")
        assert made["record"]["id"] == key_id
        assert "not deployed yet: chat" in made["warning"]
        listed = await rig.get("/api/v1/keys")
        assert secret not in listed.text
        assert hash_secret(secret) not in listed.text
        assert "sha256" not in listed.text
        kept = rig.accounts.keys()[0]
        assert kept.secret_sha256 == hash_secret(secret)
        assert kept.expires_at == pytest.approx(time.time() + 30 * 86400, abs=120)
        assert [k["state"] for k in listed.json()["keys"]] == ["active"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "name"),
        ({"name": ""}, "name"),
        ({"name": "a (b)"}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"name": "x", "requests_per_minute": 0}, "requests_per_minute"),
        ({"name": "x", "tokens_per_minute": -1}, "tokens_per_minute"),
        ({"name": "x", "concurrency": 1.5}, "concurrency"),
        ({"name": "x", "expires_in": "soon"}, "expires_in"),
        ({"name": "x", "expires_in": 0}, "expires_in"),
        ({"name": "x", "roles": ["root"]}, "roles"),
        ({"name": "x", "scopes": [], "roles": []}, "neither"),
        ({"name": "x", "models": ["Not A Name"]}, "models"),
        ({"name": "x", "priority": "urgent"}, "priority"),
        ({"name": "x", "namespace": "Not ok"}, "namespace"),
    ],
    ids=lambda v: json.dumps(v) if isinstance(v, dict) else None,
)
async def test_a_key_that_makes_no_sense_is_refused_by_its_field(body: dict[str, Any], field: str) -> None:
    async with running(gateways=0) as rig:
        answer = await rig.post("/api/v1/keys", body)
        assert answer.status_code == 400
        assert field in answer.json()["error"]["message"]
        assert rig.accounts.keys() == ()


async def test_revoking_twice_is_revoking_once() -> None:
    async with running(gateways=0) as rig:
        _, key_id = await rig.make_key("app", "viewer")
        first = (await rig.post(f"/api/v1/keys/{key_id}/revoke")).json()["record"]
        rig.clock[0] = 100.0
        assert (await rig.post(f"/api/v1/keys/{key_id}/revoke")).json()["record"] == first
        assert first["state"] == "revoked"


async def test_usage_is_summed_and_named() -> None:
    async with running(gateways=0) as rig:
        _, key_id = await rig.make_key("应用", scopes=["inference"])
        hour = hour_of(time.time())
        place = {"gateway": "g", "boot": "b", "model": "chat"}
        rig.accounts.add_usage(
            [
                UsageRow(**place, hour=hour, key=key_id, version="1.0.0", requests=3, input_tokens=30),
                UsageRow(**place, hour=hour - 3600, key=key_id, version="1.0.0", requests=4, output_tokens=7),
                UsageRow(**place, hour=hour, key="", version="1.0.1", requests=1, unmetered=1),
                UsageRow(**place, hour=hour - 100 * 3600, key=key_id, version="1.0.0", requests=1000),
            ]
        )
        rows = (await rig.get("/api/v1/usage")).json()["usage"]
        assert {(r["key_name"], r["version"], r["requests"], r["input_tokens"], r["output_tokens"]) for r in rows} == {
            ("应用", "1.0.0", 7, 30, 7),
            (None, "1.0.1", 1, 0, 0),
        }
        by_name = (await rig.get(f"/api/v1/usage?key=应用&since={hour - 200 * 3600}")).json()["usage"]
        assert [r["requests"] for r in by_name] == [1007]
        assert (await rig.get("/api/v1/usage", model="nobody")).json()["usage"] == []
