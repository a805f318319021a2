"""What a finished request becomes: a trace and a line with the guardrails' verdicts and without text."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import orjson
import pytest

from guardrails.chat_streams import Located
from guardrails.checks.base import Part
from guardrails.verdicts import Direction, Finding, Language, Verdict
from monitoring.instruments import GatewayInstruments
from monitoring.measurements import RequestOutcome
from monitoring.tracing.records import TraceRecord
from serving.admission import Pick, route_of
from serving.gateway.guard_records import GuardRecord
from serving.gateway.observing import Observer
from serving.gateway.overseeing import Asked
from serving.gateway.recorder import Recorder
from serving.gateway.trail import begin
from serving.gateway.transcript import Transcript
from serving.gateway.units import Unit
from serving.openai_protocol import Operation
from serving.request_log.frames import Unpacker
from serving.traffic import Generation, ModelTraffic, RevisionTraffic, Role

BODY = {"model": "chat", "user": "jane", "temperature": 0.5, "stop": "x", "n": True, "seed": 2**64 - 1}
ANSWER = orjson.dumps({
    "choices": [{"message": {"content": "planted"}, "finish_reason": "stop"}], "usage": {"completion_tokens": 3},
})  # fmt: skip
PARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Kept:
    """Both ends."""

    dropped = 0

    def __init__(self) -> None:
        self.all: list[Any] = []

    def offer(self, what: Any) -> None:
        self.all.append(what)


def picked() -> Pick:
    stable = RevisionTraffic(digest="a" * 64, version="1.0.0", role=Role.STABLE, weight=100, application="s")
    route = route_of(ModelTraffic(model="chat", salt="0" * 16, revisions=(stable,)), Generation(1, 1))
    return Pick(route, stable, False)


def finished(
    outcome: RequestOutcome = RequestOutcome.OK,
    *,
    nonce: bytes = b"\xff" * 9,
    ratio: float = 1.0,
    may_tell: bool = False,
    answered_by: RevisionTraffic | None = None,
    content: bool = False,
    change: Callable[[Unit], object] = lambda unit: None,
) -> tuple[list[TraceRecord], list[Any]]:
    sender, sink = Kept(), Kept()
    recorder = Recorder(GatewayInstruments(), lambda work: None, time.monotonic, time.time)
    recorder.observer = Observer(
        sender, sink, trace_ratio=0.0, log_ratio=ratio, trace_content=content,
        may_tell=lambda revision: may_tell and revision.version == "1.0.0",
    )  # fmt: skip
    unit = recorder.admit(picked(), Operation.CHAT, stream=False, session=None)
    headers = {b"traceparent": PARENT} if outcome is RequestOutcome.OK else {}
    body = orjson.dumps(BODY)
    unit.trail = begin(unit.started - 1.0, nonce, "key", "s", BODY, body, headers, traced=True, ratio=0.0)
    unit.trail.dispatched("http://e:1", "e", 1, "1.0.0", unit.started)
    change(unit)
    transcript = Transcript(False, False, [ANSWER], len(ANSWER), b"", ANSWER, 1, 1.0, 1.0)
    recorder.conclude(unit, outcome, transcript, answered_by=answered_by or unit.revision)
    recorder.flush()
    return sender.all, Unpacker().feed(b"".join(sink.all))


def guarded(unit: Unit) -> None:
    guard = GuardRecord("standard", "d" * 64, input=Verdict.BLOCK, check="toxicity-in", input_s=0.25)
    finding = Finding("pii", Verdict.REDACT, 0, 7, 1.0, Language.EN, "an address", "replacement")
    guard.add(Direction.OUTPUT, [Located(0, Part.CONTENT, finding)] * 2)
    unit.guard = guard
    unit.events += ["guardrail/pii", "guardrail/pii:units"]


def test_the_trace_tells_queue_attempt_and_what_the_guardrails_said() -> None:
    (record,), _ = finished(change=guarded)
    assert record.admitted_at - record.arrived_at == pytest.approx(1.0)
    assert [(a.host, a.version, a.failure) for a in record.attempts] == [("e", "1.0.0", "")]
    assert record.guard is not None
    assert (record.guard.verdict, record.guard.check) == ("block", "toxicity-in")
    assert record.guard.ended_at - record.guard.started_at == pytest.approx(0.25)
    assert [tuple(f) for f in record.found] == [("pii", "output", "redact", 2)]
    assert list(record.events) == ["guardrail/pii"], "not what was merely looked for"
    assert record.parameters == {"gen_ai.request.temperature": 0.5}, (
        "numbers that have a name and that OTLP has room for, and no booleans"
    )
    assert record.content is None


def test_a_line_has_verdicts_and_neither_prompt_nor_answer() -> None:
    _, (frame,) = finished(change=guarded)
    assert frame.facts["verdicts"] == [{"check": "pii", "direction": "output", "verdict": "redact", "times": 2}]
    assert frame.facts["signals"] == ["guardrail/pii"]
    assert (frame.prompt, frame.answer) == (b"", b"")
    assert "planted" not in str(frame)
    assert "replacement" not in str(frame)


def test_text_goes_where_the_policy_lets_it_and_the_trace_is_told_to_hold_it() -> None:
    (record,), (frame,) = finished(may_tell=True, content=True)
    assert (frame.prompt, frame.answer) == (orjson.dumps(BODY), ANSWER)
    assert record.content == (orjson.dumps(BODY), ANSWER, "chat", False)
    (record,), _ = finished(may_tell=False, content=True)
    assert record.content is None


@pytest.mark.parametrize(
    ("outcome", "nonce", "logged"),
    [
        (RequestOutcome.OK, b"\x00" * 9, True),
        (RequestOutcome.OK, b"\xff" * 9, False),
        (RequestOutcome.ERROR, b"\xff" * 9, True),
        (RequestOutcome.RETRIED, b"\xff" * 9, True),
        (RequestOutcome.TIMEOUT, b"\xff" * 9, True),
        (RequestOutcome.CLIENT_ERROR, b"\xff" * 9, False),
    ],
)
def test_a_sample_is_by_the_requests_id_and_failures_are_in_it(
    outcome: RequestOutcome, nonce: bytes, logged: bool
) -> None:
    _, frames = finished(outcome, nonce=nonce, ratio=0.5)
    assert bool(frames) is logged


def test_an_answer_that_broke_off_is_its_last_attempts_failure() -> None:
    (record,), _ = finished(RequestOutcome.TIMEOUT)
    assert (record.because, record.attempts[-1].failure, record.failed) == ("error", "timeout", True)


def test_an_answer_of_another_version_is_told_only_if_that_one_allows_it_too() -> None:
    other = RevisionTraffic(digest="b" * 64, version="0.9.0", role=Role.STABLE, weight=0, application="o")
    (record,), (frame,) = finished(RequestOutcome.RETRIED, may_tell=True, content=True, answered_by=other)
    assert (frame.prompt, frame.answer, record.content) == (b"", b"", None)


class Raises:
    """Whoever hears of requests and can't cope."""

    def __init__(self) -> None:
        self.settled = self.ended = self.over = self.read = self._raise

    def _raise(self, *_: Any, **__: Any) -> Any:
        raise ZeroDivisionError


class Permit:
    def __init__(self) -> None:
        self.settled: list[tuple[Any, ...]] = []

    def settle(self, *what: Any) -> None:
        self.settled.append(what)


@pytest.mark.parametrize("who", ["observer", "after_reading", "overseer"])
def test_whoever_hears_of_a_request_and_raises_costs_neither_its_tokens_nor_its_outcome(who: str) -> None:
    deferred: list[Callable[[], None]] = []
    recorder = Recorder(GatewayInstruments(), deferred.append, time.monotonic, time.time)
    setattr(recorder, who, [Raises()] if who == "after_reading" else Raises())
    permits = [Permit(), Permit()]
    for permit in permits:
        unit = recorder.admit(picked(), Operation.CHAT, stream=False, session=None, permit=permit)  # type: ignore[arg-type]
        unit.trail = begin(unit.started, b"n" * 9, "key", "s", BODY, b"{}", {}, traced=True, ratio=0.0)
        unit.asked = Asked(b"{}", None)
        transcript = Transcript(False, False, [ANSWER], len(ANSWER), b"", ANSWER, 1, 1.0, 1.0)
        recorder.conclude(unit, RequestOutcome.OK, transcript, answered_by=unit.revision)
        for work in deferred:
            work()
        deferred.clear()
        assert unit.ticket.settled
    assert [permit.settled for permit in permits] == [[("1.0.0", None, 3)]] * 2


def test_a_refused_prompt_is_refused_whatever_its_observer_does() -> None:
    recorder = Recorder(GatewayInstruments(), lambda work: None, time.monotonic, time.time)
    recorder.observer = Raises()
    unit = recorder.admit(picked(), Operation.CHAT, stream=False, session=None)
    unit.trail = begin(unit.started, b"n" * 9, "key", "s", BODY, b"{}", {}, traced=True, ratio=0.0)
    recorder.stopped(unit)
    assert unit.ticket.settled


@pytest.mark.parametrize(("said", "kept"), [(Verdict.BLOCK, 0), (Verdict.ERROR, 5), (None, 5)])
def test_prompts_that_could_not_be_checked_are_told_of_and_a_flood_of_them_is_counted(
    said: Verdict | None, kept: int
) -> None:
    sender, sink = Kept(), Kept()
    recorder = Recorder(GatewayInstruments(), lambda work: None, lambda: 5.0, lambda: 9.0)
    observer = recorder.observer = Observer(sender, sink, log_ratio=1e-9)
    for _ in range(20):
        unit = recorder.admit(picked(), Operation.CHAT, stream=False, session=None)
        unit.trail = begin(unit.started, b"\xff" * 9, "key", None, BODY, b"{}", {}, traced=True, ratio=0.0)
        unit.guard = GuardRecord("p", "d", input=said, check="toxicity")
        recorder.stopped(unit)
    assert len(sender.all) == len(sink.all) == kept
    assert observer.unkept == (20 - kept if kept else 0)
