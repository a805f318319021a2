"""Where the guardrails' service is: every replica by its address, and the last ones known while the name is not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from serving.gateway import guard_replicas
from serving.gateway.guard_replicas import GuardReplicas
from serving.gateway.guard_settings import GuardSettings


async def test_a_name_leads_to_each_of_its_addresses_and_holds_while_it_can_not_be_looked_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(guard_replicas, "EVERY_S", 0.001)
    looked = 0

    def told() -> Iterator[list[str]]:
        yield ["10.0.0.2", "10.0.0.1", "10.0.0.1"]
        raise OSError("no such name")

    answers = told()

    async def look(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        nonlocal looked
        looked += 1
        assert (host, port) == ("r-guardrails.models.svc", 8092)
        return [(0, 0, 0, "", (address, port)) for address in next(answers, None) or ["fd00::1"]]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", look)
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
