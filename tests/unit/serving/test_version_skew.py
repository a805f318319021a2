"""Gateways and controllers of two neighbouring versions, in the middle of an upgrade."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError
from websockets.asyncio.client import ClientConnection

from serving.accounting import UsageRow
from serving.endpoints import EndpointBook
from serving.gateway.channel import Channel
from serving.gateway.traffic_state import TrafficState, load_table
from serving.keys import KeyRecord
from serving.outcomes import (
    FROM_CONTROLLER,
    FROM_GATEWAY,
    Accepted,
    Ack,
    Event,
    Events,
    Heartbeat,
    Hello,
    KeysPush,
    Refused,
    Signal,
    TablePush,
    Total,
    Totals,
    UsageAccepted,
    UsageReport,
)
from serving.traffic import ModelTraffic, RevisionTraffic, Role, TrafficTable

DIGEST = "0" * 64
REVISION = RevisionTraffic(digest=DIGEST, version="1.0.0", role=Role.STABLE, weight=100, application="chat--1-0-0")
TRAFFIC = ModelTraffic(model="chat", salt="s", revisions=(REVISION,))
TABLE = TrafficTable(fence=1, sequence=1, issued_at=0.0, models=(TRAFFIC,))
EVENT = Event(
    sequence=1, model="chat", rollout="r", signal=Signal.ERROR, arm=Role.CANARY, digest=DIGEST, weight=10, admission=1,
    admitted_at=0.0, settled_at=1.0,
)  # fmt: skip
TOTAL = Total(model="chat", rollout="r", digest=DIGEST, role=Role.CANARY, weight=10)
KEY = KeyRecord(id="abcdefghijkl", secret_sha256=DIGEST, name="website", created_at=0.0)
ROW = UsageRow(gateway="g", boot="b", hour=0, key="k", model="chat", version="1.0.0")
DOWN = (TablePush(table=TABLE), KeysPush(keys=(KEY,)), UsageAccepted(number=1), Accepted(through=1), Heartbeat(fence=1),
        Refused(reason="x"))  # fmt: skip
UP = (Hello(gateway="g", boot="b"), Ack(fence=1, sequence=1, applied_at=0.0), Events(events=(EVENT,)),
      Totals(sent_at=0.0, totals=(TOTAL,)), UsageReport(number=1, rows=(ROW,)))  # fmt: skip


def of_tomorrow(message: BaseModel) -> dict[str, Any]:
    """The message as a newer version might write it: with a field that nobody knows at every level."""
    found: dict[str, Any] = json.loads(message.model_dump_json())

    def add(model: BaseModel, written: dict[str, Any]) -> None:
        written["of_tomorrow"] = {"more": 1}
        for name in type(model).model_fields:
            value = getattr(model, name)
            if isinstance(value, BaseModel):
                add(value, written[name])
            elif isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
                for part, text in zip(value, written[name], strict=True):
                    add(part, text)

    add(message, found)
    return found


@pytest.mark.parametrize(
    ("adapter", "message"),
    [*((FROM_CONTROLLER, m) for m in DOWN), *((FROM_GATEWAY, m) for m in UP)],
    ids=lambda v: getattr(v, "type", ""),
)
def test_a_message_with_more_than_is_known_says_what_is_known(adapter: TypeAdapter[Any], message: BaseModel) -> None:
    text = json.dumps(of_tomorrow(message))
    assert adapter.validate_json(text, extra="ignore") == message
    with pytest.raises(ValidationError):
        adapter.validate_json(text)


def test_a_table_that_a_newer_gateway_left_on_disk_is_read(tmp_path: Path) -> None:
    file = tmp_path / "table.json"
    file.write_text(json.dumps(of_tomorrow(TABLE)))
    assert load_table(file) == TABLE


class Line:
    """What the controller sends, and nothing to send back to it."""

    def __init__(self, *texts: str) -> None:
        self._texts = texts

    async def __aiter__(self) -> AsyncIterator[str]:
        for text in self._texts:
            yield text

    async def send(self, _: str) -> None:
        await asyncio.sleep(0)


class Deaf:
    """A recorder that nobody tells anything."""

    on_event: Any = None


def told(state: TrafficState, folder: Path, *texts: str) -> None:
    channel = Channel(
        gateway="g", boot="b", control_url="http://127.0.0.1:1", credentials_file=folder / "none",
        table_file=folder / "table.json", state=state, book=EndpointBook(), recorder=cast(Any, Deaf()),
    )  # fmt: skip
    asyncio.run(channel._listen(cast(ClientConnection, Line(*texts))))


HEARTBEAT = Heartbeat(fence=1).model_dump_json()
RENAMED = '{"type": "table", "board": {}}'


@pytest.mark.parametrize(
    ("unread", "valid"),
    [(RENAMED, False), ("{", False), ('{"type": "poem"}', True)],
    ids=["a table of another form", "no JSON", "a kind of message that is not known"],
)
def test_a_table_that_can_not_be_read_ends_the_canarys_lease(tmp_path: Path, unread: str, valid: bool) -> None:
    """It may have taken the canary back: heartbeats of its sender must not keep the canary served."""
    state = TrafficState(lease_s=60.0)
    told(state, tmp_path, TablePush(table=TABLE).model_dump_json(), HEARTBEAT)
    assert state.lease_valid(time.monotonic())
    told(state, tmp_path, unread, HEARTBEAT)
    assert state.lease_valid(time.monotonic()) is valid
    assert state.table == TABLE, "stable is served for ever"
    newer = TABLE.model_copy(update={"sequence": 2})
    told(state, tmp_path, TablePush(table=newer).model_dump_json())
    assert state.lease_valid(time.monotonic()), "one that can be read ends that"
