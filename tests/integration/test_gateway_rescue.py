"""What a replica that dies costs: a request of which no byte was released is answered by another replica."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.outcomes import Cause, Signal
from serving.traffic import Role
from tests.integration.gateway_fakes import FakeEngine, Rig, rig, session_on, table, until

pytestmark = pytest.mark.integration


def chat(**more: Any) -> dict[str, Any]:
    return {"model": "chat", "messages": [{"role": "user", "content": "hello"}], **more}


def mortal(victims: set[str]) -> Any:
    """An engine that goes down, as kill -9 does, with the first request whose mark is among the victims."""

    def do(body: dict[str, Any]) -> dict[str, Any]:
        if body.get("mark") in victims:
            victims.discard(body["mark"])
            return {"do": "die", "gone": True}
        return {}

    return do


async def with_replicas(r: Rig, application: str, *engines: FakeEngine) -> None:
    urls = {"stable-app": [r.stable.url], "canary-app": [r.canary.url]}
    r.source.set({**urls, application: [*urls[application], *(e.url for e in engines)]})
    await until(lambda: len(r.gateway.book.of(application)) == 1 + len(engines))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("role", list(Role))
async def test_a_request_whose_engine_has_gone_is_answered(tmp_path: Path, role: Role, stream: bool) -> None:
    async with rig(tmp_path, first=table(1, 50)) as r, httpx.AsyncClient(base_url=r.url, timeout=20) as http:
        engine = r.stable if role is Role.STABLE else r.canary
        other = await FakeEngine().start()
        await with_replicas(r, f"{role.value}-app", other)
        victims = {"victim"}
        engine.do = other.do = mortal(victims)
        answer = await http.post(
            "/v1/chat/completions", json=chat(mark="victim", stream=stream),
            headers={"x-session-id": session_on(role, 50)},
        )  # fmt: skip
        assert (answer.status_code, victims) == (200, set())
        assert "hello victim" in answer.text
        assert answer.headers["x-tidegate-role"] == "stable"  # a canary's failure is rescued by stable
        await r.settled()
        assert [(e.signal, e.cause, e.arm) for e in r.controller.events] == [(Signal.ERROR, Cause.ENDPOINT_LOST, role)]
        await other.stop()


async def test_a_dead_canary_replica_costs_nothing_when_the_budget_on_stable_is_spent(tmp_path: Path) -> None:
    async with rig(tmp_path, first=table(1, 50)) as r, httpx.AsyncClient(base_url=r.url, timeout=20) as http:
        other = await FakeEngine().start()
        await with_replicas(r, "canary-app", other)
        headers = {"x-session-id": session_on(Role.CANARY, 50)}
        for engine in (r.stable, r.canary, other):
            engine.do = lambda body: {"before_s": 1.0}
        answers = [
            asyncio.create_task(http.post("/v1/chat/completions", json=chat(mark=i), headers=headers))
            for i in range(16)
        ]
        await until(lambda: len(r.canary.busy) + len(other.busy) == 16)
        dead = max((r.canary, other), key=lambda engine: len(engine.busy))
        lost = len(dead.busy)
        await dead.stop()
        got = [await answer for answer in answers]
        assert [a.json()["choices"][0]["message"]["content"] for a in got] == [f"hello {i}" for i in range(16)]
        by = Counter(a.headers["x-tidegate-role"] for a in got)
        assert by["stable"] == 3  # the least budget; its sibling has answered the others
        assert lost > by["stable"]
        await other.stop()


async def test_a_request_is_sent_to_no_third_engine_when_two_died_of_it(tmp_path: Path) -> None:
    async with rig(tmp_path, first=table(1, None)) as r, httpx.AsyncClient(base_url=r.url, timeout=20) as http:
        others = [await FakeEngine().start() for _ in range(3)]
        await with_replicas(r, "stable-app", *others)
        for engine in (r.stable, *others):
            engine.do = lambda body: {"do": "die", "gone": True} if body.get("mark") == "poison" else {}
        answer = await http.post("/v1/chat/completions", json=chat(mark="poison"))
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "engine_connection_lost")
        assert sum(len(e.requests) for e in (r.stable, *others)) == 2
        answer = await http.post("/v1/chat/completions", json=chat(mark="poison"))
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "prompt_refused")
        assert (await http.post("/v1/chat/completions", json=chat(mark="good"))).status_code == 200
        await asyncio.gather(*(e.stop() for e in others))


async def test_a_replica_that_refuses_the_connection_does_not_count_as_one_that_died(tmp_path: Path) -> None:
    async with rig(tmp_path, first=table(1, None)) as r, httpx.AsyncClient(base_url=r.url, timeout=20) as http:
        others = [await FakeEngine().start() for _ in range(2)]
        await with_replicas(r, "stable-app", *others)
        await r.stable.stop()
        for endpoint in r.gateway.book.of("stable-app"):
            endpoint.work = 0 if endpoint.url == r.stable.url else 10_000  # so the one that has gone is asked first
        victims = {"victim"}
        for engine in others:
            engine.do = mortal(victims)
        answer = await http.post("/v1/chat/completions", json=chat(mark="victim"))
        assert (answer.status_code, victims) == (200, set())
        assert [e.failures for e in r.gateway.book.of("stable-app") if e.url == r.stable.url] == [1]
        await asyncio.gather(*(e.stop() for e in others))
