"""A gateway in front of several replicas: conversations stay together, a bad replica is left out and comes back."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.knobs import ROUND_ROBIN
from tests.integration.gateway_fakes import FakeEngine, Rig, rig, table, until

pytestmark = pytest.mark.integration
SYSTEM = {"role": "system", "content": "You keep the harbour's log. " * 200}


@contextlib.asynccontextmanager
async def replicas(home: Path, count: int, **config: Any) -> AsyncIterator[tuple[Rig, list[FakeEngine]]]:
    engines = [await FakeEngine().start() for _ in range(count)]
    try:
        async with rig(home, first=table(1, None), **config) as r:
            r.source.set({"stable-app": [e.url for e in engines]})
            await until(lambda: len(r.gateway.book.of("stable-app")) == count)
            yield r, engines
    finally:
        await asyncio.gather(*(e.stop() for e in engines))


async def ask(http: httpx.AsyncClient, *contents: str, **more: object) -> httpx.Response:
    messages = [SYSTEM, *({"role": "user", "content": c} for c in contents)]
    return await http.post("/v1/chat/completions", json={"messages": messages, "model": "chat", **more})


def idle(r: Rig) -> Callable[[], bool]:
    return lambda: all(e.outstanding == e.work == 0 for e in r.gateway.book.of("stable-app"))


async def test_turns_of_a_conversation_go_to_one_replica_and_round_robin_can_be_asked_for(tmp_path: Path) -> None:
    for name, expected, config in (("affine", 1, {}), ("around", 3, {"picking": ROUND_ROBIN})):
        async with replicas(tmp_path / name, 3, **config) as (r, engines), httpx.AsyncClient(base_url=r.url) as http:
            turns = ["and the tides?"]
            for i in range(6):
                assert (await ask(http, *turns, stream=i % 2 == 0)).status_code == 200
                turns.append(f"and on day {i}?")
            assert sum(bool(e.requests) for e in engines) == expected
            await until(idle(r))


async def test_a_replica_that_only_fails_is_left_out_and_comes_back(tmp_path: Path) -> None:
    async with replicas(tmp_path, 3) as (r, engines), httpx.AsyncClient(base_url=r.url) as http:
        bad = engines[0]
        bad.do = lambda body: {"status": 500}

        async def statuses(count: int) -> list[int]:
            return [(await ask(http, f"{i}" * 600)).status_code for i in range(count)]

        seen: list[int] = []
        ejected = next(e for e in r.gateway.book.of("stable-app") if e.url == bad.url)
        for i in range(200):
            ask_bad = {"messages": [{"role": "user", "content": f"short {i}"}], "model": "chat"}
            seen.append((await http.post("/v1/chat/completions", json=ask_bad)).status_code)
            if ejected.ejected_until:
                break
        assert ejected.for_answers
        assert seen.count(500) == 5
        assert r.gateway.book.ready("stable-app", 0.0)
        asked = len(bad.requests)
        assert await statuses(10) == [200] * 10
        assert len(bad.requests) == asked
        bad.do = lambda body: {}
        for _ in range(200):
            assert set(await statuses(3)) == {200}
            if not ejected.ejected_until:
                break
            await asyncio.sleep(0.05)
        assert ejected.ejected_until == 0
        await until(idle(r))


async def test_a_version_that_always_fails_is_never_hidden(tmp_path: Path) -> None:
    async with replicas(tmp_path, 3) as (r, engines), httpx.AsyncClient(base_url=r.url) as http:
        for engine in engines:
            engine.do = lambda body: {"status": 500}
        for i in range(60):
            assert (await ask(http, str(i))).status_code == 500
        assert [e.ejected_until for e in r.gateway.book.of("stable-app")] == [0, 0, 0]
        assert sum(len(e.requests) for e in engines) == 60


async def test_work_comes_back_to_nothing_whatever_happens(tmp_path: Path) -> None:
    async with replicas(tmp_path, 3) as (r, engines), httpx.AsyncClient(base_url=r.url) as http:
        fakes: list[dict[str, Any]] = [
            {}, {"status": 500}, {"do": "die"}, {"do": "die-mid"}, {"chunks": 40, "delay_s": 0.01}, {"do": "no-done"}
        ]  # fmt: skip

        async def one(i: int) -> None:
            with contextlib.suppress(httpx.HTTPError, json.JSONDecodeError):
                await asyncio.wait_for(ask(http, str(i), stream=i % 2 == 0, fake=fakes[i % len(fakes)]), 0.2 + i % 3)

        with contextlib.suppress(TimeoutError):
            await asyncio.gather(*(one(i) for i in range(60)), return_exceptions=True)
        await until(idle(r), 10)
        assert all(e.requests for e in engines)
