"""What a gateway tells the drift watch of a request, on the real socket."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from serving.sightings import Frames, Sighting, sighting_of
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
