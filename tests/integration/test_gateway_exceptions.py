"""Nothing of one request's failure stays behind in the process.

Compiled code keeps what it handles in the thread, not in the coroutine: an `except` block that waits lends its
exception to whatever runs meanwhile, and two that overlap leave it there for good, with its traceback.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from pathlib import Path

import httpx
import pytest

from serving.traffic import Role
from tests.integration.gateway_fakes import rig, session_on, table

pytestmark = pytest.mark.integration

FAKES = [
    {"do": "die"},
    {"do": "die-after-head"},
    {"do": "die-mid", "chunks": 6, "delay_s": 0.002},
    {"status": 500},
]


@pytest.mark.parametrize("stream", [False, True])
async def test_failures_that_overlap_leave_no_exception_behind(tmp_path: Path, stream: bool) -> None:
    seen: list[BaseException | None] = []

    async def look() -> None:
        while True:
            seen.append(sys.exception())
            await asyncio.sleep(0.002)

    async with (
        rig(tmp_path, first=table(1, 50)) as r,
        httpx.AsyncClient(base_url=r.url, timeout=30, limits=httpx.Limits(max_connections=20)) as http,
    ):
        fakes = itertools.cycle(FAKES)
        r.canary.do = r.stable.do = lambda body: next(fakes)
        looking = asyncio.create_task(look())

        async def ask(number: int) -> None:
            await asyncio.sleep(number * 0.004)  # so that waits begin and end in turns
            role = Role.CANARY if number % 2 else Role.STABLE
            chat = {"model": "chat", "messages": [{"role": "user", "content": "hi"}], "stream": stream}
            await http.post("/v1/chat/completions", json=chat, headers={"x-session-id": session_on(role, 50)})

        await asyncio.gather(*(ask(n) for n in range(20)))
        looking.cancel()
        await r.settled()
    assert len(seen) > 5
    assert [e for e in seen if e is not None] == []
    assert sys.exception() is None
