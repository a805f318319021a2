"""Erasing at a drift watch of another pod: the control plane's side and the watch's own port, over a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import httpx
import pytest

from rollout.control_api.errors import classify
from rollout.control_api.requests import EraseIncomplete
from serving.drift.app import DriftApp
from serving.drift.archive import read_rows
from serving.drift.book import Book
from serving.drift.erasing import erase
from serving.drift.main import LIMITS
from serving.drift.streams import StreamName
from serving.gateway.http_server import HttpServer
from serving.gateway.listening import bind
from serving.request_log.marks import mark_of
from tests.ports import free_ports
from tests.unit.drift_watch.test_book import DIMENSIONS, book, config, seen, take
from tidegate.request_log import HomesRequestLog
from tidegate.settings import Settings

KEY = "k" * 40
SECRET = b"s" * 32
JANE, JOE = mark_of(SECRET, "jane"), mark_of(SECRET, "joe")
LATE = 1e9 + 60


@contextlib.asynccontextmanager
async def watch(home: Path, port: int, *, obeys: bool) -> AsyncIterator[Book]:
    """A watch that holds its archive; one that does not obey is stuck."""
    one = book(home)
    one.hold()
    wait_s = 5.0 if obeys else 0.0
    app = DriftApp(dict, KEY, partial(erase, one.config.places, DIMENSIONS, wait_s=wait_s))
    server = HttpServer(app, LIMITS)
    await server.start(bind("127.0.0.1", port, "port"))

    async def follow() -> None:
        while obeys:
            one.follow()
            await asyncio.sleep(0.01)

    following = asyncio.create_task(follow())
    try:
        yield one
    finally:
        following.cancel()
        await server.drain(1.0)
        one.close()


def settings(tmp_path: Path, port: int, **more: object) -> Settings:
    for name, content in (("key", KEY.encode()), ("secret", SECRET)):
        (tmp_path / name).write_bytes(content)
    told = {"request_secret_file": tmp_path / "secret", "drift_key_file": tmp_path / "key", **more}
    return Settings(home=tmp_path / "controller", drift_watch_url=f"http://127.0.0.1:{port}", **told)


def users(home: Path) -> list[str]:
    return [
        row.decode() for row in read_rows(config(home).places.archive, StreamName("chat"), 0, 2e9, DIMENSIONS)["user"]
    ]


async def refused(log: HomesRequestLog, user: str = "jane") -> str:
    with pytest.raises(EraseIncomplete) as caught:
        await asyncio.to_thread(log.erase, user, LATE)
    assert classify(caught.value) == (503, "erase_incomplete")
    return str(caught.value)


async def test_the_watch_takes_a_user_out_by_its_key(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    log = HomesRequestLog(settings(tmp_path, port))
    assert "erased: 0 lines of the request log; not erased: the drift watch's vectors" in await refused(log)
    async with watch(tmp_path, port, obeys=True) as one, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
        take(one, [seen(1, user=JANE), seen(2, user=JOE), seen(3, user=JANE), seen(4, user=JANE, at=1e9 + 7200)])
        (tmp_path / "key").write_text("another")
        assert "answered 401" in await refused(log)
        for body in (
            {"user": "../../up", "until": 1.0}, {"user": JANE, "until": 1e12}, {"user": JANE},
            {"user": JANE, "until": -1},
        ):  # fmt: skip
            reply = await http.post("/erase", json=body, headers={"authorization": f"Bearer {KEY}"})
            assert reply.status_code == 400, body
        long = await http.post("/erase", content=b" " * 9000, headers={"authorization": f"Bearer {KEY}"})
        assert long.status_code == 413
        assert users(tmp_path) == [JANE, JOE, JANE, JANE]
        (tmp_path / "key").write_text(KEY)
        assert await asyncio.to_thread(log.erase, "jane", LATE) == 2
        assert users(tmp_path) == [JOE, JANE], "what came later stays"
        assert await asyncio.to_thread(log.erase, "jane", LATE) == 0


async def test_a_watch_that_ends_after_its_note_takes_the_user_out_when_it_comes_back(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    log = HomesRequestLog(settings(tmp_path, port))
    async with watch(tmp_path, port, obeys=False) as one:
        take(one, [seen(1, user=JANE), seen(2, user=JOE)])
        assert "answered 503: the drift watch has not taken the vectors out" in await refused(log)
        assert users(tmp_path) == [JANE, JOE]
        assert json.loads((one.config.places.erased / f"{JANE}.json").read_text()) == {"user": JANE, "until": LATE}
    async with watch(tmp_path, port, obeys=True):
        assert await asyncio.to_thread(log.erase, "jane", LATE) in (0, 1)
        assert users(tmp_path) == [JOE]


async def test_without_the_gateways_secret_nobody_is_said_to_be_erased(tmp_path: Path) -> None:
    told = settings(tmp_path, 1, request_secret_file=None)
    assert (await refused(HomesRequestLog(told))).startswith("nothing is erased: the drift watch is elsewhere")
    assert not told.gateway_secret_file.exists()
    missing = settings(tmp_path, 1, request_secret_file=Path("/proc/self/nothing"))
    assert "can't be read" in await refused(HomesRequestLog(missing))


def test_a_watch_without_a_key_lets_nobody_erase(tmp_path: Path) -> None:
    assert DriftApp(dict, "", partial(erase, config(tmp_path).places, DIMENSIONS))._erase is None
