"""The judge of a soak is judged: answers that are wrong in each of the ways that matter are told to be so."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.soak.load import Client, Kind, Sums, Tally
from benchmarks.soak.world import World

pytestmark = pytest.mark.integration
WORDS = " tide" * 23


def chunk(text: str, finish: str | None = None, fingerprint: str = "sim-1") -> dict[str, Any]:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    return {"system_fingerprint": fingerprint, "choices": [choice]}


def lost() -> dict[str, Any]:
    return {"error": {"code": "engine_connection_lost", "message": "lost"}}


def whole_of(mark: str) -> list[Any]:
    return [chunk(mark), chunk(WORDS, "stop"), "[DONE]"]


class Liar:
    """Answers streams as it is told to."""

    def __init__(self, events: Callable[[str], list[Any]], headers: str = "", cut: bool = False) -> None:
        self.events, self.headers, self.cut = events, headers, cut

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = int(next(line.split(":")[1] for line in head.split("\r\n") if line.startswith("content-length")))
        body = json.loads(await reader.readexactly(length))
        mark = body["messages"][0]["content"].split()[0]
        datas = [d if isinstance(d, str) else json.dumps(d) for d in self.events(mark)]
        data = "".join(f"data: {d}\n\n" for d in datas).encode()
        kind = f"content-type: text/event-stream\r\n{self.headers or 'x-tidegate-version: 1.0.0'}\r\n"
        writer.write(f"HTTP/1.1 200 OK\r\n{kind}transfer-encoding: chunked\r\n\r\n{len(data):x}\r\n".encode() + data)
        writer.write(b"" if self.cut else b"\r\n0\r\n\r\n")
        await writer.drain()
        if self.cut:
            writer.close()


async def ask(liar: Liar, killed: dict[str, float] | None = None, kind: Kind = Kind.STREAM) -> Tally:
    server = await asyncio.start_server(liar.serve, "127.0.0.1", 0)
    world: Any = SimpleNamespace(
        port=server.sockets[0].getsockname()[1], key=World.key, weight=0, weighed_at=0.0, killed=killed or {},
        obeyed=lambda: True,
    )  # fmt: skip
    tally = Tally()
    await Client(1, world, tally, random.Random(2)).one(kind)
    server.close()
    return tally


async def test_a_good_answer_is_one() -> None:
    tally = await ask(Liar(whole_of))
    assert (tally.wrong, tally.unexpected, tally.outcomes[Kind.STREAM]) == ([], [], {"answered": 1})
    assert tally.usage == {"1.0.0": Sums(requests=1, input_tokens=7, output_tokens=24)}  # counted, though not shown


@pytest.mark.parametrize(
    ("case", "events"),
    [
        ("somebody else's", lambda mark: whole_of("[[mark:9-9]]")),
        ("another one's beginning", lambda mark: whole_of(mark[:-3] + "9]]")),
        ("two in one", lambda mark: [chunk(mark), chunk(" [[mark:9-9]]"), chunk(" tide" * 22, "stop"), "[DONE]"]),
        ("too short", lambda mark: [chunk(mark), chunk(" tide", "stop"), "[DONE]"]),
        ("without an end", lambda mark: [chunk(mark), chunk(WORDS, "stop")]),
        ("without a reason", lambda mark: [chunk(mark), chunk(WORDS), "[DONE]"]),
        ("of the other version", lambda mark: [chunk(mark), chunk(WORDS + " tide" * 6, "stop"), "[DONE]"]),
    ],
)
async def test_wrong_answers_are_seen(case: str, events: Callable[[str], list[Any]]) -> None:
    tally = await ask(Liar(events))
    assert len(tally.wrong) == 1, case


async def test_answers_from_another_version_than_the_promised_are_seen() -> None:
    tally = await ask(Liar(whole_of, "x-tidegate-version: 9.9.9"), kind=Kind.LEFT)
    assert tally.wrong == []
    results = [await ask(Liar(whole_of, "x-tidegate-version: 1.1.0"), kind=Kind.SESSION)]
    assert any("is stable's" in text for text in results[0].wrong)


async def test_a_lost_stream_is_excused_by_its_killed_engine_alone() -> None:
    late = float("inf")
    begun = Liar(lambda mark: [chunk(mark), lost()])
    excused = await ask(begun, {"sim-1": late})
    assert (excused.broken_streams, excused.unexpected) == ({"sim-1": 1}, [])
    for killed in ({}, {"sim-2": late}, {"sim-1": 0.0}):
        assert len((await ask(begun, killed)).unexpected) == 1
    never_begun = Liar(lambda mark: [lost()])
    assert len((await ask(never_begun, {"sim-1": late})).unexpected) == 1


async def test_a_cut_connection_is_never_excused() -> None:
    tally = await ask(Liar(whole_of, cut=True), {"sim-1": float("inf")})
    assert len(tally.unexpected) == 1
