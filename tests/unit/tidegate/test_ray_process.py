"""Ray's process for the supervisor, over a Ray that only pretends."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from tidegate import ray_process
from tidegate.ray_head import RayStartFailed
from tidegate.settings import Settings


class Head:
    """Starts as told; remembers that it was stopped."""

    started = 0.1
    failure: Exception | None = None
    dies_with: str | None = None
    hangs = False
    stopped = 0

    def __init__(self, _settings: Settings) -> None:
        type(self).stopped = 0

    async def start(self) -> float:
        if self.failure is not None:
            raise self.failure
        if self.hangs:
            await asyncio.sleep(60)
        return self.started

    async def wait_for_death(self) -> str:
        if self.dies_with is None:
            await asyncio.sleep(60)
        return str(self.dies_with)

    async def stop(self) -> None:
        type(self).stopped += 1


def use(monkeypatch: pytest.MonkeyPatch, **traits: object) -> type[Head]:
    kind = type("Pretended", (Head,), traits)
    monkeypatch.setattr(ray_process, "RayHead", kind)
    return kind


async def test_a_ray_that_dies_ends_the_process_with_its_last_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head = use(monkeypatch, dies_with="Ray ended with code 1: no luck")
    assert await ray_process.keep(Settings(home=tmp_path)) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "Ray ended with code 1: no luck"
    assert head.stopped == 1


async def test_a_ray_that_cannot_start_says_why_in_the_last_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head = use(monkeypatch, failure=RayStartFailed("port 8100 is in use"))
    assert await ray_process.keep(Settings(home=tmp_path)) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "port 8100 is in use"
    assert head.stopped == 1


@pytest.mark.parametrize("traits", [{}, {"hangs": True}], ids=["running", "starting"])
async def test_sigterm_stops_ray_also_while_it_starts(
    traits: dict[str, object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    head = use(monkeypatch, **traits)
    asyncio.get_running_loop().call_later(0.05, os.kill, os.getpid(), signal.SIGTERM)
    assert await asyncio.wait_for(ray_process.keep(Settings(home=tmp_path)), 5) == 0
    assert head.stopped == 1
