"""What traces, the request log and a scrape cost the gateway: measured in pairs in one run, for several settings.

    python -m benchmarks.observability_cost [--requests 4000] [--rounds 9] [--seconds 4]

The first table is the CPU time of the event loop's thread for one finished request, from its admission to its being
recorded: unit, ledger, reading of the answer, metrics, and what a setting adds. Settings take turns within a round, and
differences are taken within it. The spans' thread is not in it: what it takes beside the loop is told apart.

The second table: a real log with its writer's process takes 2,000 requests a second, while a ticker in the same event
loop notes how late it is woken. The third: how long a scrape of 20 models with 3 versions holds the loop, by format.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import secrets
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from opentelemetry.sdk.trace.export import SpanExportResult

from monitoring.instruments import GatewayInstruments
from monitoring.measurements import RequestMeasurement, RequestOutcome, RevisionInfo
from monitoring.tracing.exporting import SpanSender, Whose
from serving.admission import Availability, Pick, choose, route_of
from serving.gateway.main import GC_AFTER_OBJECTS
from serving.gateway.observing import Observer
from serving.gateway.recorder import Recorder
from serving.gateway.request_ids import fresh_nonce, load_secret
from serving.gateway.trail import begin
from serving.gateway.transcript import Transcript
from serving.openai_protocol import Operation
from serving.request_log.reading import RequestLog
from serving.request_log.settings import RequestLogSettings
from serving.request_log.sink import LogSink
from serving.traffic import Generation, ModelTraffic, RevisionTraffic, Role

TEXT = "The tide turns when the moon has passed, and the gate closes by itself. " * 4
PROMPT = {"model": "chat", "messages": [{"role": "user", "content": "Tell me something about tides. " * 8}],
          "max_tokens": 128, "temperature": 0.7, "user": "somebody"}  # fmt: skip
USAGE = {"prompt_tokens": 70, "completion_tokens": 64, "total_tokens": 134}
LIMIT_US = 50.0
"""What everything together may add to a finished request."""
RATE_PER_S = 2000


def whole() -> Transcript:
    """A plain chat answer."""
    message = {"role": "assistant", "content": TEXT}
    body = {"id": "c", "object": "chat.completion", "created": 1, "model": "chat", "usage": USAGE,
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}  # fmt: skip
    data = json.dumps(body).encode()
    return Transcript(False, False, [data], len(data), b"", data, 1, 1.0, 1.0)


def stream() -> Transcript:
    """The same as 64 events."""
    pieces = [TEXT[i : i + 5] for i in range(0, 320, 5)]
    start = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "chat"}
    chunks = [{**start, "choices": [{"index": 0, "delta": {"content": p}, "finish_reason": None}]} for p in pieces]
    last = {**start, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": USAGE}
    events = [b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in [*chunks, last]]
    transcript = Transcript(True)
    for event in [*events, b"data: [DONE]\n\n"]:
        transcript.add(event)
    transcript.bodies, transcript.first_at, transcript.last_at = len(events), 1.0, 1.6
    return transcript


def picked() -> Pick:
    """A request that chance gave to stable, beside a canary at 10 %."""
    stable = RevisionTraffic(digest="a" * 64, version="1.0.0", role=Role.STABLE, weight=90, application="s")
    canary = RevisionTraffic(digest="b" * 64, version="1.1.0", role=Role.CANARY, weight=10, application="c")
    model = ModelTraffic(model="chat", salt="0123456789abcdef", rollout="r", revisions=(stable, canary))
    route = route_of(model, Generation(1, 1))
    ready = Availability(ready=lambda _: True, known=lambda _: True, lease_valid=True)
    return next(p for i in range(99) if isinstance(p := choose(route, None, str(i), ready), Pick) and not p.pinned)


class Nowhere:
    """An exporter that takes spans and does nothing with them."""

    def export(self, spans: Sequence[object]) -> SpanExportResult:
        """Of SpanExporter."""
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Of SpanExporter."""


class Counting:
    """A sink that only counts bytes: what the loop hands over, without the pipe."""

    dropped = 0

    def __init__(self) -> None:
        self.size = 0

    def offer(self, frame: bytes) -> None:
        """Of LogSink."""
        self.size += len(frame)


def observers(sender: SpanSender) -> dict[str, Observer | None]:
    """By setting."""
    allowed: Callable[[RevisionTraffic], bool] = lambda revision: True  # noqa: E731
    return {
        "off": None,
        "traces, 1 % kept": Observer(sender, None, trace_ratio=0.01),
        "traces, all kept": Observer(sender, None, trace_ratio=1.0),
        "log of all, no text": Observer(None, Counting(), log_ratio=1.0),
        "log of all, with text": Observer(None, Counting(), log_ratio=1.0, may_tell=allowed),
        "both, all kept": Observer(sender, Counting(), trace_ratio=1.0, log_ratio=1.0),
    }


def finish(observer: Observer | None, make: Transcript, requests: int, pick: Pick) -> float:
    """Seconds of this thread's CPU for one request."""
    waiting: list[Callable[[], None]] = []
    recorder = Recorder(GatewayInstruments(), waiting.append, time.monotonic, time.time)
    recorder.observer = observer
    body = json.dumps(PROMPT).encode()
    traced = observer is not None and observer._sender is not None
    ratio = observer._trace_ratio if observer is not None else 0.0
    began = time.thread_time()
    for _ in range(requests):
        unit = recorder.admit(pick, Operation.CHAT, stream=make.event_stream, session=None)
        if observer is not None:
            nonce = fresh_nonce()
            trail = unit.trail = begin(unit.started, nonce, "", None, PROMPT, body, {}, traced=traced, ratio=ratio)
            trail.lines("http://127.0.0.1:9000")
            trail.dispatched("http://127.0.0.1:9000", "127.0.0.1", 9000, "1.0.0", unit.started)
        recorder.conclude(unit, RequestOutcome.OK, make, answered_by=pick.revision)
        while waiting:
            waiting.pop()()
    recorder.flush()
    return (time.thread_time() - began) / requests


def recording(requests: int, rounds: int) -> bool:
    """The first table; whether every setting is within the limit."""
    pick, within = picked(), True
    sender = SpanSender(Nowhere(), Whose("bench", "bench", "0"), most_waiting=10**9)
    for what, make in (("plain answer", whole()), ("stream of 64 events", stream())):
        times: dict[str, list[float]] = {}
        for _ in range(rounds):
            for name, observer in observers(sender).items():
                times.setdefault(name, []).append(finish(observer, make, requests, pick) * 1e6)
                sender._waiting.clear()
        print(f"\n{what}: CPU of the event loop for one finished request, us (median, least of {rounds} rounds)")
        for name, found in times.items():
            added = statistics.median([a - b for a, b in zip(found, times["off"], strict=True)])
            print(f"  {name:24} {statistics.median(found):6.1f} {min(found):6.1f}   added {added:5.1f}")
        fewest = [min(found) for found in times.values()]
        within = within and max(fewest) - fewest[0] < LIMIT_US
    record_spans(sender, pick)
    return within


def record_spans(sender: SpanSender, pick: Pick) -> None:
    """What the sending thread does for one request that is kept."""
    finish(Observer(sender, None, trace_ratio=1.0), whole(), 2000, pick)
    records = list(sender._waiting)
    sender._waiting.clear()
    began = time.thread_time()
    for record in records:
        sender._maker.spans(record)
    print(f"spans of a kept request, made in the sending thread: {(time.thread_time() - began) / 2000 * 1e6:.1f} us")


async def logging(seconds: float, *, text: bool) -> None:
    """One row of the second table."""
    pick, answer = picked(), whole()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        load_secret(home / "secret")
        settings = RequestLogSettings(ratio=1.0)
        sink = LogSink(lambda: settings.for_writer(home / "log" / "g", home / "secret", secrets.token_hex(4)))
        await sink.start()
        observer = Observer(None, sink, log_ratio=1.0, may_tell=lambda revision: text)
        loop = asyncio.get_running_loop()
        recorder = Recorder(GatewayInstruments(), loop.call_soon, time.monotonic, time.time)
        recorder.observer = observer
        body = json.dumps(PROMPT).encode()
        await asyncio.sleep(1.5)  # the writer imports what it needs
        late: list[float] = []
        began, done, cpu = time.perf_counter(), 0, time.thread_time()
        while (passed := time.perf_counter() - began) < seconds:
            for _ in range(int(passed * RATE_PER_S) - done):
                unit = recorder.admit(pick, Operation.CHAT, stream=False, session=None)
                unit.trail = begin(unit.started, fresh_nonce(), "", None, PROMPT, body, {}, traced=False, ratio=0.0)
                recorder.conclude(unit, RequestOutcome.OK, answer, answered_by=pick.revision)
                done += 1
            due = time.perf_counter() + 0.001
            await asyncio.sleep(0.001)
            late.append((time.perf_counter() - due) * 1e3)
        spent = time.thread_time() - cpu
        await sink.stop()
        log = RequestLog(home / "log")
        deadline = time.monotonic() + 60
        written = 0
        while written < done - sink.dropped and time.monotonic() < deadline:
            await asyncio.sleep(0.2)
            written = sum(1 for _ in log.lines())
        late.sort()
        ticks = f"{late[len(late) // 2]:9.2f} {late[int(len(late) * 0.99)]:8.2f} {late[-1]:8.2f}"
        name = "with text" if text else "no text"
        print(f"  {name:10} {done / seconds:7.0f} {written:8} {sink.dropped:8} {ticks} {spent / seconds * 100:7.0f} %")


def scrape() -> float:
    """The third table; the worst median, in ms."""
    made = GatewayInstruments()
    all_of = [(f"model-{m}", f"{v}.0.0") for m in range(20) for v in range(3)]
    made.set_revisions(RevisionInfo(m, v, "a" * 12, "stable") for m, v in all_of)
    for model, version in all_of:
        for i in range(300):
            outcome = RequestOutcome.ERROR if i % 50 == 0 else RequestOutcome.OK
            trace = ("0" * 32, 1.0) if i % 20 == 0 else None
            made.record(RequestMeasurement(model, version, "chat", outcome, 0.01 * i, 0.001 * i, 0.02, i, 2 * i, trace))
    formats = {
        "text": "",
        "OpenMetrics": "application/openmetrics-text; version=1.0.0",
        "protobuf": "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited",
    }
    print("\nscrape of 20 models x 3 versions: ms (median, worst of 15), bytes")
    worst = 0.0
    for name, accept in formats.items():
        times, size = [], 0
        for _ in range(15):
            began = time.perf_counter()
            size = len(made.render(accept)[0])
            times.append((time.perf_counter() - began) * 1e3)
        worst = max(worst, statistics.median(times))
        print(f"  {name:12} {statistics.median(times):6.1f} {max(times):6.1f} {size:10}")
    return worst


async def second_table(seconds: float) -> None:
    """Without text and with it."""
    print(f"\nrequest log at {RATE_PER_S} requests/s for {seconds:g} s: ticker late by ms (median, p99, worst)")
    print(f"  {'':10} {'per s':>7} {'written':>8} {'dropped':>8} {'median':>9} {'p99':>8} {'worst':>8} {'loop CPU':>9}")
    for text in (False, True):
        await logging(seconds, text=text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables. Returns 1 when a limit is not kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=4000, help="in one measurement")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=4.0, help="of the log at full rate")
    given: Any = parser.parse_args(arguments)
    gc.freeze()
    gc.set_threshold(GC_AFTER_OBJECTS, 20, 20)  # as the gateway has it
    within = recording(given.requests, given.rounds)
    asyncio.run(second_table(given.seconds))
    return 0 if scrape() < 50.0 and within else 1


if __name__ == "__main__":
    raise SystemExit(main())
