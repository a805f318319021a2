"""Trace context as the recommendation has it, and which traces are kept."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult

from monitoring.tracing.context import in_sample, read_traceparent, traceparent
from monitoring.tracing.exporting import MOST_CONTENT_BYTES, SpanSender, Whose
from monitoring.tracing.records import Said, TraceRecord
from monitoring.tracing.sampling import MOST_TEXT_BYTES, WAITING_PER_CANARY, Allowance, Reason, TailSampler

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize(
    ("header", "sampled"),
    [
        (f"00-{TRACE}-{SPAN}-01", True),
        (f"00-{TRACE}-{SPAN}-00", False),
        (f"00-{TRACE}-{SPAN}-03", True),
        (f" 00-{TRACE}-{SPAN}-01 ", True),
        (f"cc-{TRACE}-{SPAN}-01-what-a-later-version-adds", True),
        (f"00-{TRACE}-{SPAN}-01-more", None),
        (f"ff-{TRACE}-{SPAN}-01", None),
        (f"00-{TRACE.upper()}-{SPAN}-01", None),
        (f"00-{'0' * 32}-{SPAN}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE}-{SPAN}", None),
        ("", None),
    ],
)
def test_a_traceparent_is_read_or_counts_as_none(header: str, sampled: bool | None) -> None:
    found = read_traceparent(header.encode())
    if sampled is None:
        assert found is None
    else:
        assert found == (int(TRACE, 16), int(SPAN, 16), sampled)


@given(st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1), st.booleans())
def test_what_is_passed_on_is_read_back(trace_id: int, span_id: int, sampled: bool) -> None:
    assert read_traceparent(traceparent(trace_id, span_id, sampled=sampled)) == (trace_id, span_id, sampled)


@given(st.integers(0, 2**128 - 1), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_sample_holds_the_smaller(trace_id: int, one: float, other: float) -> None:
    assert in_sample(trace_id, 1.0)
    assert not in_sample(trace_id, 0.0)
    assert in_sample(trace_id, max(one, other)) or not in_sample(trace_id, min(one, other))


@given(st.lists(st.integers(0, 5), min_size=100, max_size=100))
def test_no_order_of_times_is_allowed_more_than_so_many_a_second(times: list[int]) -> None:
    allowance = Allowance(1.0)
    assert sum(allowance.take(at) for at in times) <= 1 + max(times)


def record(number: int) -> TraceRecord:
    return TraceRecord(
        number, 1, 0, "", "chat", "chat", "1.1.0", "c", "canary", "ok", failed=False, stream=False,
        arrived_at=0.0, admitted_at=0.0, ended_at=1.0,
    )  # fmt: skip


class TestTail:
    def test_the_head_goes_first_then_failures(self) -> None:
        tail = TailSampler()
        assert tail.why("d", head=True, failed=True) is Reason.HEAD
        assert tail.why("d", head=False, failed=True) is Reason.ERROR
        assert tail.why("d", head=False, failed=False) is None

    def test_a_canary_that_is_taken_back_gives_its_last_requests_and_all_that_still_end(self) -> None:
        tail = TailSampler()
        assert tail.follow(["s"], ["c"]) == []
        assert tail.may_be_wanted("c")
        assert not tail.may_be_wanted("s")
        for i in range(WAITING_PER_CANARY + 10):
            tail.wait("c", record(i))
        found = tail.follow(["s"], [])
        assert [r.trace_id for r in found] == list(range(10, WAITING_PER_CANARY + 10))
        assert {r.because for r in found} == {Reason.TAKEN_BACK}
        assert tail.why("c", head=False, failed=False) is Reason.TAKEN_BACK
        assert tail.follow(["s"], []) == []

    def test_texts_that_wait_are_bounded_and_their_room_is_given_back(self) -> None:
        tail = TailSampler(waiting_per_canary=4)
        text = Said(b"x" * (MOST_TEXT_BYTES // 4), b"", "chat", event_stream=False)

        def told(digest: str) -> bool:
            one = record(1)
            one.content = text
            tail.wait(digest, one)
            return one.content is not None

        tail.follow(["s"], ["a", "b"])
        assert [told("a") for _ in range(6)] == [True] * 6, "those that are forgotten make room"
        assert not told("b")
        assert len(tail.follow(["s"], ["b"])) == 4
        assert [told("b") for _ in range(6)] == [True] * 6
        tail.follow(["b"], ["c"])
        assert told("c"), "of one that was promoted too"

    def test_one_that_is_promoted_gives_none(self) -> None:
        tail = TailSampler()
        tail.follow(["s"], ["c"])
        tail.wait("c", record(1))
        assert tail.follow(["c"], []) == []
        assert tail.why("c", head=False, failed=False) is None

    def test_one_that_comes_back_is_a_canary_again(self) -> None:
        tail = TailSampler()
        tail.follow(["s"], ["c"])
        tail.follow(["s"], [])
        tail.follow(["s"], ["c"])
        assert tail.why("c", head=False, failed=False) is None
        assert tail.may_be_wanted("c")


class Collected:
    """An exporter that keeps what it is given."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.spans += spans
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Nothing to do."""


def test_a_text_that_can_not_be_told_costs_neither_its_trace_nor_others_nor_room_for_their_texts() -> None:
    def content(said: Said) -> dict[str, str]:
        raise RecursionError

    collected = Collected()
    sender = SpanSender(collected, Whose("gateway", "0", "1"), content=content)
    text = Said(b"x" * (MOST_CONTENT_BYTES // 2), b"", "chat", event_stream=False)
    for _ in range(2):
        records = [record(1), record(2), record(3)]
        for one in records[:2]:
            one.content = text
        for one in records:
            sender.offer(one)
        assert records[0].content is text, "there is room for it again"
        sender._send([sender._waiting.popleft() for _ in records])
    assert [s.context.trace_id for s in collected.spans if s.parent is None] == [1, 2, 3] * 2
    assert (sender.sent, sender.dropped) == (6, 0)
