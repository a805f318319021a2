"""A guarded stream whose engine never ends an event, or whose checks raise: bounded, closed, and nobody's evidence."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails.enforcement import activate
from guardrails.model_checks.memory import MemoryModelChecks
from guardrails.pipeline import Guardrails
from guardrails.policy import parse_policy
from guardrails.verdicts import Verdict
from serving.gateway.guard_records import GuardRecord
from serving.gateway.guarded_answers import MOST_EVENT_BYTES, Events, GuardedStream
from serving.gateway.guarding import PolicyInForce
from serving.openai_protocol import Operation

PLANTED = "a text that no log may hold"
EVENTS = {
    Operation.CHAT: {"choices": [{"index": 0, "delta": {"content": PLANTED}}]},
    Operation.RESPONSES: {"type": "response.output_text.delta", "delta": PLANTED, "output_index": 0},
}


def policy() -> PolicyInForce:
    active = activate(parse_policy("schema: 1\nname: t\nchecks: [{name: pii, direction: output, action: redact}]\n"))
    guardrails = Guardrails(active, MemoryModelChecks({}))
    return PolicyInForce("chat", "1.0.0", "t", "", guardrails, False, True, frozenset(), (), True)


async def stream(
    operation: Operation, drive: Callable[[GuardedStream], object]
) -> tuple[GuardedStream, list[bytes], list[bool], GuardRecord]:
    written: list[bytes] = []
    stopped: list[bool] = []
    record = GuardRecord("t", "")
    made = GuardedStream(policy(), operation, None, written.append, lambda: stopped.append(True), record)
    drive(made)
    await asyncio.sleep(0)
    await made.finish()
    return made, written, stopped, record


def raises(*_: object) -> Any:
    raise LookupError(PLANTED)


@pytest.mark.parametrize("operation", [Operation.CHAT, Operation.RESPONSES])
@pytest.mark.parametrize("at", ["feed", "finish", "expire"])
async def test_a_guard_that_raises_closes_the_answer_and_says_nothing_of_its_text(
    operation: Operation, at: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drive(made: GuardedStream) -> None:
        monkeypatch.setattr(made._guard, at, raises)
        made.feed(b"data: " + json.dumps(EVENTS[operation]).encode() + b"\n\n")
        if at == "expire":
            made._expire()

    made, written, stopped, record = await stream(operation, drive)
    assert (made.failed, made.blocked, stopped) == (True, False, [True])
    assert (record.output, record.check) == (Verdict.ERROR, "guardrails")
    told = json.loads(written[-1].split(b"data: ")[1])
    error = told if operation is Operation.RESPONSES else told["error"]
    assert error["code"] == "guardrail_unavailable", "fail closed, and the client is told"
    assert told.get("type", "error") == "error"
    assert PLANTED not in b"".join(written).decode()
    assert "LookupError" in caplog.text
    assert PLANTED not in caplog.text


async def test_an_event_that_never_ends_is_given_up_and_not_kept() -> None:
    def drive(made: GuardedStream) -> None:
        for _ in range(MOST_EVENT_BYTES // 65_536 + 3):
            made.feed(b"x" * 65_536)

    made, written, stopped, record = await stream(Operation.CHAT, drive)
    assert (made.failed, stopped, record.check) == (True, [True], "limits")
    assert sum(map(len, made._events._rest)) == 0
    assert b"guardrail_unavailable" in written[-1]


@pytest.mark.parametrize("payload", [b"y" * 2_000_000, b"\n".join([b"y" * 58] * 34_000)], ids=["a line", "lines"])
def test_a_long_event_in_small_pieces_is_read_once(payload: bytes) -> None:
    events = Events()
    whole = b"data: " + payload.replace(b"\n", b"\ndata: ") + b"\n\ndata: [DONE]\n\n"
    found = [one for at in range(0, len(whole), 64) for one in events.feed(whole[at : at + 64])]
    assert found == [payload, b"[DONE]"]


@given(
    st.lists(st.sampled_from([b"data: a", b"data: b", b": c", b"\n", b"\r", b"\r\n", b"\n\n"]), max_size=12), st.data()
)
def test_events_are_the_same_however_their_bytes_are_cut(parts: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(parts)
    at_once, cut = Events(), Events()
    expected = at_once.feed(whole) + at_once.finish()
    places = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    pieces = [whole[a:b] for a, b in pairwise([0, *places, len(whole)])]
    assert [one for piece in pieces for one in cut.feed(piece)] + cut.finish() == expected
