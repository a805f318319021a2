"""What traces, the request log and a scrape cost the gateway: measured in pairs in one run, for several settings.

    python -m benchmarks.observability_cost [--requests 4096] [--rounds 9] [--seconds 4] [--sources]

It measures the gateway's hot path as it is deployed: compiled where there is a C compiler (docs/adr/0008; it is built
first, in a minute or two, if that was not done since the last edit), else from the sources. `--sources` asks for those.

The first table is the CPU time of the event loop's thread for one request, in parts that are measured apart:

    admitted   before the engine is asked: numbered as evidence, its trail begun
    recorded   after its answer has gone out: read, judged, counted, settled, traced, logged. This is what "recording a
               finished request" means, and what the limit of 50 us is for.

It is the dearest kind of request: one of a rollout, whose text is read. Settings take turns within a round, and
differences are taken within it. Forwarding is not in it (`gateway_overhead`, `gateway_peers`), but for what recording
takes while a stream passes, which is told apart; nor is the spans' thread, which is told apart too.

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
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from opentelemetry.sdk.trace.export import SpanExportResult

from serving.gateway import compiled

if __name__ == "__main__" and "--sources" not in sys.argv:
    try:
        compiled.build()
    except compiled.NotBuilt as reason:
        print(f"the hot path is not compiled: {reason}", file=sys.stderr)
    compiled.use()  # before any of what may be compiled is imported

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
from serving.gateway.units import Question
from serving.openai_protocol import Operation
from serving.request_log.reading import RequestLog
from serving.request_log.settings import RequestLogSettings
from serving.request_log.sink import LogSink
from serving.traffic import Generation, ModelTraffic, RevisionTraffic, Role

TEXT = (
    "The tide turns when the moon has passed, and the gate closes by itself. Harbours on the northern coast were built "
    "for this: at low water ships lie on the mud, six hours later they float, and pilots bring them out before the ebb "
    "begins. Old almanacs list the hours for every port of the land, a year ahead."
)
"""An ordinary answer: one that repeated itself would be an event for the controller, which is rare and dear."""
PROMPT = {"model": "chat", "messages": [{"role": "user", "content": "Tell me something about tides. " * 8}],
          "max_tokens": 128, "temperature": 0.7, "user": "somebody"}  # fmt: skip
USAGE = {"prompt_tokens": 70, "completion_tokens": 64, "total_tokens": 134}
LIMIT_US = 50.0
"""For recording a finished request, whatever is on."""
TOGETHER = 64
"""Requests that are admitted before the first of them is recorded, so that the clock is asked seldom."""
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
    pieces = [TEXT[i : i + 5] for i in range(0, 310, 5)]
    start = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "chat"}
    chunks = [{**start, "choices": [{"index": 0, "delta": {"content": p}, "finish_reason": None}]} for p in pieces]
    last = {**start, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": USAGE}
    events = [b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in [*chunks, last]]
    transcript = kept([*events, b"data: [DONE]\n\n"])
    transcript.bodies, transcript.first_at, transcript.last_at = len(events), 1.0, 1.6
    return transcript


def kept(events: Sequence[bytes]) -> Transcript:
    """What recording does with each event while a stream passes."""
    transcript = Transcript(True)
    for event in events:
        transcript.add(event)
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


def finish(observer: Observer | None, make: Transcript, requests: int, pick: Pick) -> tuple[float, float]:
    """Seconds of this thread's CPU for one request: until it is admitted, and for recording it."""
    waiting: list[Callable[[], None]] = []
    recorder = Recorder(GatewayInstruments(), waiting.append, time.monotonic, time.time)
    recorder.observer = observer
    body = json.dumps(PROMPT).encode()
    traced = observer is not None and observer._sender is not None
    ratio = observer._trace_ratio if observer is not None else 0.0
    admitted = recorded = 0.0
    url = "http://127.0.0.1:9000"
    for _ in range(requests // TOGETHER):
        began, units = time.thread_time(), []
        for _ in range(TOGETHER):
            unit = recorder.admit(pick, Operation.CHAT, stream=make.event_stream, session=None)
            unit.question = Question(PROMPT, b"n" * 9, "default", "key")
            if observer is not None:
                nonce = fresh_nonce()
                trail = unit.trail = begin(unit.started, nonce, "", None, PROMPT, body, {}, traced=traced, ratio=ratio)
                trail.lines(url)
                trail.dispatched(url, "127.0.0.1", 9000, "1.0.0", unit.started)
            units.append(unit)
        then = time.thread_time()
        for unit in units:
            recorder.conclude(unit, RequestOutcome.OK, make, answered_by=pick.revision)
            while waiting:
                waiting.pop()()
        recorder.flush()
        now = time.thread_time()
        admitted, recorded = admitted + then - began, recorded + now - then
    done = requests // TOGETHER * TOGETHER
    return admitted / done, recorded / done


def recording(requests: int, rounds: int) -> bool:
    """The first table; whether recording is within the limit whatever is on."""
    pick, within = picked(), True
    sender = SpanSender(Nowhere(), Whose("bench", "bench", "0"), most_waiting=10**9)
    way = "compiled, as deployed" if compiled.in_use() else "from the sources: not what is deployed where gcc is"
    print(f"hot path: {way}")
    for what, make in (("plain answer", whole()), ("stream of 64 events", stream())):
        times: dict[str, list[tuple[float, float]]] = {}
        for _ in range(rounds):
            for name, observer in observers(sender).items():
                admitted, recorded = finish(observer, make, requests, pick)
                times.setdefault(name, []).append((admitted * 1e6, recorded * 1e6))
                sender._waiting.clear()
        print(f"\n{what}: CPU of the event loop, us (median of {rounds} rounds; least in brackets)")
        print(f"  {'':24} {'admitted':>9} {'recorded':>9}          recording adds")
        for name, found in times.items():
            admitted, recorded = (statistics.median(part) for part in zip(*found, strict=True))
            least = min(part for _, part in found)
            added = statistics.median([a[1] - b[1] for a, b in zip(found, times["off"], strict=True)])
            print(f"  {name:24} {admitted:9.1f} {recorded:9.1f} ({least:5.1f})   {added:6.1f}")
            within = within and recorded < LIMIT_US
    while_it_passes()
    record_spans(sender, pick)
    return within


def while_it_passes() -> None:
    """What recording does with each event of a stream before its end."""
    events = stream().parts
    times = []
    for _ in range(2000):
        began = time.thread_time()
        kept(events)
        times.append(time.thread_time() - began)
    each = statistics.median(times) / len(events) * 1e9
    print(f"\nwhile a stream passes, recording takes {each:.0f} ns for each event")


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
    parser.add_argument("--sources", action="store_true", help="measure the sources though the hot path is compiled")
    parser.add_argument("--requests", type=int, default=4096, help="in one measurement")
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
