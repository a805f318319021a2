"""What lies beside a gateway may be damaged: it says so and goes on, instead of losing one of its parts for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, cast

import pytest

from serving.endpoints import EndpointBook
from serving.errors import InvalidTable
from serving.gateway.channel import Channel
from serving.gateway.discovery_ray import RayServeEndpoints
from serving.gateway.outbox import Outbox
from serving.gateway.traffic_state import TrafficState, load_table

DAMAGED = {
    "cut in a character": '{"models": "你'.encode()[:-1],
    "no text": b"\xff\xfe\x00",
    "half": b'{"fence": 1',
    "": b"",
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_table_is_told_as_one(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "table.json"
    file.write_bytes(content)
    with pytest.raises(InvalidTable, match="remove it"):
        load_table(file)


class Quiet:
    """A recorder with nothing to tell."""

    on_event: Any = None
    outbox = Outbox()


def goes_on(part: Coroutine[Any, Any, None]) -> None:
    async def watched() -> None:
        task = asyncio.create_task(part)
        await asyncio.wait([task], timeout=0.4)
        assert not task.done(), task.exception()
        task.cancel()

    asyncio.run(watched())


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"two\nlines"], ids=["no text", "no header"])
def test_damaged_credentials_end_no_line_to_the_controller(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "credentials").write_bytes(content)
    channel = Channel(
        gateway="g", boot="b", control_url="http://127.0.0.1:1", credentials_file=tmp_path / "credentials",
        table_file=tmp_path / "table.json", state=TrafficState(60.0), book=EndpointBook(), recorder=cast(Any, Quiet()),
    )  # fmt: skip
    goes_on(channel.run())


@pytest.mark.parametrize(
    "said",
    ['{"dashboard_url": "http://127.0.0.1:abc"}', '{"dashboard_url": 5}', "[]", "\x00"],
    ids=["no URL", "a number", "a list", ""],
)
def test_a_damaged_address_of_ray_ends_no_discovery(tmp_path: Path, said: str) -> None:
    (tmp_path / "ray.json").write_text(said)
    goes_on(RayServeEndpoints(tmp_path / "ray.json", serve_port=8100).run(lambda _: None))
