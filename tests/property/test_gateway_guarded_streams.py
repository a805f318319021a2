"""However an engine's stream is cut into reads, the gateway sends the same text, and never what the policy forbids."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardrails.enforcement import activate
from guardrails.model_checks.memory import MemoryModelChecks
from guardrails.pipeline import Guardrails
from guardrails.policy import parse_policy
from guardrails.verdicts import Verdict
from serving.gateway.guard_records import GuardRecord
from serving.gateway.guarded_answers import GuardedStream
from serving.gateway.guarding import PolicyInForce
from serving.openai_protocol import Operation
from serving.streaming import DONE, sse_payloads

ACTIVE = activate(
    parse_policy("""
schema: 1
name: test
hold_back: {tokens: 8}
checks:
  - {name: pii, direction: output, action: redact, on_error: fail_closed}
  - {name: words, check: banned-words, direction: output, action: block, options: {words: [damnation]}}
""")
)
MAIL = "jane.doe@example.com"
WORDS = st.sampled_from([
    "Hello ", "world. ", "潮汐在", "夜里上涨。", f"write to {MAIL} ", "+44 20 7946 0958 ", "damnation ", "Dams hold. ",
    "🇨🇳👩‍👩‍👧 ", "\n",
])  # fmt: skip


def policy() -> PolicyInForce:
    guardrails = Guardrails(ACTIVE, MemoryModelChecks({}))
    return PolicyInForce("chat", "1.0.0", "test", "", guardrails, False, True, frozenset(), (), True)


def released(operation: Operation, reads: list[bytes]) -> tuple[list[dict[str, Any]], GuardRecord, bool]:
    """What the client gets: the events, the record, and whether the engine was stopped."""
    written: list[bytes] = []
    stopped: list[bool] = []

    async def run() -> GuardRecord:
        record = GuardRecord("test", "")
        stream = GuardedStream(policy(), operation, None, written.append, lambda: stopped.append(True), record)
        for read in reads:
            stream.feed(read)
        await stream.finish()
        stream.say_done()
        return record

    record = asyncio.run(run())
    payloads = sse_payloads(b"".join(written))
    return [json.loads(p) for p in payloads if p != DONE], record, bool(stopped)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def chat(pieces: list[str]) -> bytes:
    def event(choice: dict[str, Any]) -> bytes:
        return b"data: " + json.dumps({"id": "c", "choices": [{"index": 0, **choice}]}).encode() + b"\r\n\r\n"

    body = [event({"delta": {"content": piece}, "finish_reason": None}) for piece in pieces]
    return b": hi\n\n" + b"".join([*body, event({"delta": {}, "finish_reason": "stop"})]) + b"data: [DONE]\n\n"


def responses(pieces: list[str]) -> bytes:
    def event(kind: str, **more: Any) -> bytes:
        return f"event: {kind}\n".encode() + b"data: " + json.dumps({"type": kind, **more}).encode() + b"\n\n"

    place = {"item_id": "m", "output_index": 0, "content_index": 0}
    whole = "".join(pieces)
    item = {"id": "m", "type": "message", "content": [{"type": "output_text", "text": whole}]}
    return b"".join([
        event("response.created", response={"id": "r", "status": "in_progress", "output": []}),
        *(event("response.output_text.delta", delta=piece, **place) for piece in pieces),
        event("response.output_text.done", text=whole, **place),
        event("response.completed", response={"id": "r", "status": "completed", "output": [item]}),
    ])  # fmt: skip


def text_of(operation: Operation, events: list[dict[str, Any]]) -> tuple[str, str]:
    """The text and how it ended."""
    if operation is Operation.RESPONSES:
        said = "".join(e["delta"] for e in events if e["type"] == "response.output_text.delta")
        return said, str(events[-1]["response"]["status"])
    choices = [choice for event in events for choice in event["choices"]]
    return "".join(c["delta"].get("content", "") for c in choices), str(choices[-1]["finish_reason"])


@pytest.mark.parametrize(("operation", "write"), [(Operation.CHAT, chat), (Operation.RESPONSES, responses)])
@settings(max_examples=25)
@given(pieces=st.lists(WORDS, min_size=1, max_size=12), places=st.lists(st.integers(0, 10**6), max_size=30))
def test_any_chunking_releases_the_same_text(
    operation: Operation, write: Any, pieces: list[str], places: list[int]
) -> None:
    whole = "".join(pieces)
    at_once, record, stopped = released(operation, [write([whole])])
    in_pieces, _, _ = released(operation, cut(write(pieces), places))
    text, ending = text_of(operation, at_once)
    assert text_of(operation, in_pieces) == (text, ending)
    assert MAIL not in text
    assert "7946 0958" not in text
    assert "damnation" not in text
    blocked = "damnation" in whole
    assert (record.output is Verdict.BLOCK) == stopped == blocked
    assert ending == (("incomplete" if blocked else "completed") if write is responses else
                      ("content_filter" if blocked else "stop"))  # fmt: skip
    if not blocked and MAIL not in whole and "7946" not in whole:
        assert text == whole


def test_an_error_beside_a_text_lets_no_text_past_the_checks() -> None:
    event = {"id": "c", "error": {"message": "?"}, "choices": [{"index": 0, "delta": {"content": MAIL}}]}
    events, _, _ = released(Operation.CHAT, [f"data: {json.dumps(event)}\n\n".encode()])
    assert MAIL not in json.dumps(events)
