"""What a gateway tells the drift watch of a request, on the real socket."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from typing import cast

import httpx
import pytest

from serving.drift.intake import listen_on
from serving.drift.worker import Worker
from serving.sightings import Frames, Scored, Sighting, frame, sighting_of
from serving.traffic import Role
from tests.integration.gateway_fakes import rig, session_on, table, until

pytestmark = pytest.mark.integration


async def test_a_sighting_has_the_id_that_the_client_was_told(tmp_path: Path) -> None:
    frames, seen = Frames(), list[Sighting]()

    async def take(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            seen.extend(map(sighting_of, frames.feed(data)))

    path = tmp_path / "d"
    server = await asyncio.start_unix_server(take, path)
    async with rig(tmp_path, first=table(1, 50), drift_socket=path) as r, httpx.AsyncClient(base_url=r.url) as http:
        await until(lambda: r.gateway.drift is not None and r.gateway.drift._transport is not None)
        body = {"model": "chat", "messages": [{"role": "user", "content": "hi"}]}
        told = []
        for headers in ({}, {"x-session-id": session_on(Role.CANARY, 50)}):
            answer = await http.post("/v1/chat/completions", json=body, headers=headers)
            told.append(answer.headers["x-request-id"])
        await until(lambda: len(seen) == 2)
        assert [sighting.request_id for sighting in seen] == told
    server.close()


KEY = "k" * 40


class Taken:
    """What a watch's worker would be told."""

    def __init__(self) -> None:
        self.seen: list[Sighting] = []

    def offer(self, seen: Sighting, answer: Callable[[Scored], object]) -> None:
        self.seen.append(seen)
        answer(Scored(seen.token, "output-drift", 0.5))


async def asked(http: httpx.AsyncClient, count: int) -> None:
    for _ in range(count):
        body = {"model": "chat", "messages": [{"role": "user", "content": "hi"}]}
        assert (await http.post("/v1/chat/completions", json=body)).status_code == 200


async def test_over_a_network_a_watch_is_told_of_requests_once_it_has_proved_the_key(tmp_path: Path) -> None:
    key_file, taken = tmp_path / "key", Taken()
    key_file.write_text("x" * 40)
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    watch = await listen_on(listener, KEY, cast("Worker", taken))
    told = {"drift_address": f"127.0.0.1:{port}", "drift_key_file": key_file}
    async with rig(tmp_path, first=table(1, 50), **told) as r, httpx.AsyncClient(base_url=r.url) as http:
        drift = r.gateway.drift
        assert drift is not None
        await asyncio.sleep(0.1)  # it dials and is refused
        await asked(http, 3)
        assert (drift.dropped, taken.seen) == (3, []), "nothing is told to a watch that has another key"
        key_file.write_text(KEY)  # the Secret is the same on both sides now
        await until(lambda: drift._transport is not None)
        await asked(http, 3)
        await until(lambda: len(taken.seen) == 3)
        assert drift.dropped == 3
    watch.close()


async def test_who_does_not_prove_the_key_in_time_or_says_something_else_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.drift.intake.INTRODUCED_WITHIN_S", 0.05)
    taken, listener = Taken(), socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    watch = await listen_on(listener, KEY, cast("Worker", taken))
    said = frame(Sighting("chat", "req_1", 1.0, "default", "chat", "hi", 2))
    for sent in (b"", said, b"GET / HTTP/1.1\r\n\r\n", (2**20).to_bytes(4, "big")):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        greeting = await asyncio.wait_for(reader.read(), 5)  # to its end
        assert KEY.encode() not in greeting
        writer.close()
    assert taken.seen == []
    watch.close()
