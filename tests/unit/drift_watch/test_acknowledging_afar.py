"""Acknowledging at a drift watch of another pod: the control plane's side and the watch's port, over a real socket."""

from __future__ import annotations

import asyncio
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rollout.control_api.drift import DriftWatchAway, NotWatched
from rollout.control_api.errors import classify
from serving.drift.acknowledging import hand_over
from serving.drift.app import DriftApp
from serving.drift.config import Places
from serving.drift.main import LIMITS
from serving.gateway.http_server import HttpServer
from serving.gateway.listening import bind
from tests.ports import free_ports
from tests.unit.drift_watch.test_erasing_afar import KEY, settings
from tidegate.drift_watch import HomesDriftWatch

STREAM = {"model": "chat", "stream": "tenant=acme", "detectors": {}}


@pytest.mark.parametrize("runs", [True, False])
async def test_it_is_taken_in_by_a_watch_that_runs_and_kept_for_one_that_does_not(tmp_path: Path, runs: bool) -> None:
    places = Places(tmp_path / "watch")
    (port,) = free_ports(1)
    status: dict[str, Any] = {"written_at": time.time(), "streams": [STREAM], "requests": [], "dropped": 0}
    app = DriftApp(lambda: status, KEY, None, partial(hand_over, places, wait_s=5.0 if runs else 0.0))
    server = HttpServer(app, LIMITS)
    await server.start(bind("127.0.0.1", port, "port"))
    watch = HomesDriftWatch(settings(tmp_path, port))
    found: list[dict[str, Any]] = []

    async def take_in() -> None:
        while runs:
            for path in places.acknowledgements.glob("*.json"):
                found.append(json.loads(path.read_text()))
                path.unlink()
            await asyncio.sleep(0.01)

    taking = asyncio.create_task(take_in())
    try:
        assert (await asyncio.to_thread(watch.status))["streams"] == [STREAM]
        for scope in (None, "tenant=acme"):
            assert await asyncio.to_thread(watch.acknowledge, "chat", scope, "ann", "a campaign") is runs
        with pytest.raises(NotWatched, match=r"chat \(all\) is not watched; see `tidegate drift status`"):
            await asyncio.to_thread(watch.acknowledge, "chat", "all", "ann", "")
        (tmp_path / "key").write_text("another")
        with pytest.raises(DriftWatchAway, match="answered 401"):
            await asyncio.to_thread(watch.acknowledge, "chat", None, "ann", "")
    finally:
        taking.cancel()
        await server.drain(1.0)
    found += [json.loads(path.read_text()) for path in sorted(places.acknowledgements.glob("*.json"))]
    assert [(f["model"], f["scope"], f["by"], f["reason"]) for f in found] == [
        ("chat", scope, "ann", "a campaign") for scope in (None, "tenant=acme")
    ]
    assert all(abs(f["at"] - time.time()) < 60 for f in found), "by the watch's clock"
    (tmp_path / "key").write_text(KEY)
    with pytest.raises(DriftWatchAway, match="does not answer") as away:
        await asyncio.to_thread(watch.status)
    assert classify(away.value) == (503, "drift_watch_away")


async def test_an_older_watch_is_told_from_a_stream_that_is_not_watched(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    server = HttpServer(DriftApp(lambda: {"streams": []}, KEY), LIMITS)
    await server.start(bind("127.0.0.1", port, "port"))
    try:
        with pytest.raises(DriftWatchAway, match="an older watch takes no acknowledgement"):
            await asyncio.to_thread(HomesDriftWatch(settings(tmp_path, port)).acknowledge, "chat", None, "ann", "")
    finally:
        await server.drain(1.0)
