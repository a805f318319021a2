"""Where the guardrails' service is: every replica by its address, and the last ones known while the name is not."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.gateway import drift_line, guard_replicas
from serving.gateway.drift_line import RemoteWatch, WatchAway
from serving.gateway.guard_replicas import GuardReplicas
from serving.gateway.guard_settings import GuardSettings
from serving.gateway.resolving import addresses_of


async def test_a_name_leads_to_each_of_its_addresses_and_holds_while_it_can_not_be_looked_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(guard_replicas, "EVERY_S", 0.001)
    looked = 0

    def told() -> Iterator[list[str]]:
        yield ["10.0.0.2", "10.0.0.1", "10.0.0.1"]
        raise OSError("no such name")

    answers = told()

    async def look(host: str, port: int) -> list[tuple[object, ...]]:
        nonlocal looked
        looked += 1
        assert (host, port) == ("r-guardrails.models.svc", 8092)
        return [(0, 0, 0, "", (address, port)) for address in next(answers, None) or ["fd00::1"]]

    monkeypatch.setattr(guard_replicas, "addresses_of", look)
    replicas = GuardReplicas("r-guardrails.models.svc:8092")
    assert replicas.urls == []
    task = asyncio.create_task(replicas.run())
    seen = []
    while looked < 3:
        await asyncio.sleep(0.001)
        seen.append(tuple(replicas.urls))
    await asyncio.sleep(0.005)
    task.cancel()
    assert ("http://10.0.0.1:8092", "http://10.0.0.2:8092") in seen
    assert () not in seen[seen.index(("http://10.0.0.1:8092", "http://10.0.0.2:8092")) :]
    assert replicas.urls == ["http://[fd00::1]:8092"]


async def test_a_resolver_that_hangs_takes_no_thread_that_others_need(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answered.wait(30) and [])
    for module in (guard_replicas, drift_line):
        monkeypatch.setattr(module, "WITHIN_S", 0.001)
    monkeypatch.setattr(guard_replicas, "EVERY_S", 0.0)
    looking = asyncio.create_task(GuardReplicas("r-guardrails.models.svc:8092").run())
    key_file = Path(__file__)
    try:
        for _ in range(40):
            with pytest.raises(WatchAway):
                await drift_line.dial(RemoteWatch("r-drift.models.svc", 8091, key_file), lambda scored: None)
        assert await asyncio.wait_for(asyncio.to_thread(lambda: "free"), 5) == "free"
    finally:
        looking.cancel()
        answered.set()


async def test_what_can_be_no_name_is_not_known_and_ends_nothing() -> None:
    with pytest.raises(OSError, match="is no name"):
        await addresses_of("a..b", 80)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"models": "threads", "service": "a:1"}, "say `service` there"),
        ({"models": "service", "service": "a"}, "HOST:PORT"),
        ({"models": "service", "service": "a:0"}, "HOST:PORT"),
    ],
)
def test_an_address_that_is_none_or_that_nobody_would_ask_is_refused(settings: dict[str, str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        GuardSettings(**settings)  # type: ignore[arg-type]
