"""What comes over wires, cut anywhere and made of anything: heads, chunked bodies, event streams, metrics."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as classic

from monitoring.instruments import GatewayInstruments
from monitoring.measurements import RequestMeasurement, RequestOutcome, RevisionInfo
from serving.gateway.connection import Connection
from serving.gateway.http_parsing import ChunkedBody, Head, MalformedRequest, check_beginning, parse_head, read_head
from serving.openai_protocol import Operation
from serving.streaming import read_stream


@settings(deadline=None)
@given(
    pieces=st.lists(st.binary(min_size=1, max_size=40), max_size=8),
    cuts=st.lists(st.integers(1, 30), max_size=60),
    behind=st.binary(max_size=20),
)
def test_chunked_body_is_the_same_however_it_is_cut(pieces: list[bytes], cuts: list[int], behind: bytes) -> None:
    wire = b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces) + b"0\r\n\r\n" + behind
    decoder, parts, rest, at = ChunkedBody(), [], None, 0
    for size in [*cuts, len(wire)]:
        rest = decoder.feed(wire[at : at + size], parts)
        at += size
        if rest is not None:
            break
    assert b"".join(parts) == b"".join(pieces)
    assert decoder.size_bytes == sum(map(len, pieces))
    assert rest is not None
    assert rest + wire[at:] == behind


class _Transport(asyncio.Transport):
    """To an engine that answers whatever it is asked."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Drop it."""


_LOOP = asyncio.new_event_loop()
_SIZES = st.sampled_from([b"%x", b"%X", b"0%x", b"%08x", b"%x;name=value", b"0000000000%x"])


@settings(deadline=None, max_examples=200)
@given(
    chunks=st.lists(st.tuples(_SIZES, st.binary(min_size=1, max_size=40)), min_size=1, max_size=8),
    cuts=st.lists(st.integers(0, 400), max_size=12),
)
def test_an_engines_chunks_are_passed_on_whole_however_they_are_cut(
    chunks: list[tuple[bytes, bytes]], cuts: list[int]
) -> None:
    frames = [b"%b\r\n%b\r\n" % (size % len(piece), piece) for size, piece in chunks]
    ends = [sum(map(len, frames[:i])) for i in range(len(frames))]  # engines write whole chunks, so cuts there are many
    wire, body = b"".join(frames) + b"0\r\n\r\n", b"".join(piece for _, piece in chunks)
    connection = Connection(_LOOP, ("engine", 1), lambda _: None)
    connection.connection_made(_Transport())
    connection.begin(b"head", b"body", time.monotonic() + 60.0)
    connection.data_received(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    passed: list[bytes] = []
    own_framing: list[bytes] = []

    def framed(data: bytes, chunks_of_it: bytes) -> None:
        passed.append(data)
        decoder, parts = ChunkedBody(), []
        assert decoder.feed(chunks_of_it, parts) is None
        assert b"".join(parts) == data
        own_framing.append(chunks_of_it)

    relaying = connection.relay(passed.append, framed)
    relaying.send(None)
    at = 0
    for cut in sorted({*(c for c in cuts if c < len(wire)), *ends, len(wire)}):
        if cut > at:
            connection.data_received(wire[at:cut])
            at = cut
    assert b"".join(passed) == body
    assert connection.complete
    relaying.close()
    assert connection.end()
    assert all(b";" not in chunk.partition(b"\r\n")[0] for chunk in own_framing)


_FRAGMENTS = st.sampled_from(
    [b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b",", b"content-length", b"transfer-encoding", b"chunked", b"5",
     b"+", b"GET", b"/v1", b"HTTP/1.1", b"host", b"x", b"%", b"\xff", b";", b"a" * 50]
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(_FRAGMENTS, max_size=40).map(b"".join))
def test_any_bytes_are_a_head_without_doubt_or_refused(raw: bytes) -> None:
    text = b"POST /v1/x HTTP/1.1\r\nhost: x\r\n" + raw.partition(b"\r\n\r\n")[0]
    try:
        head = parse_head(text.rstrip(b"\r\n"))
    except MalformedRequest:
        return
    assert not any(c in value for _, value in head.headers for c in (b"\r", b"\n", b"\0"))
    names = [name for name, _ in head.headers]
    assert names.count(b"content-length") <= 1
    assert not (b"content-length" in names and b"transfer-encoding" in names)
    assert (head.length is None) == (b"transfer-encoding" in names)


@settings(deadline=None)
@given(st.binary(max_size=200), st.lists(st.integers(1, 20), max_size=30))
def test_chunked_garbage_ends_in_a_refusal_or_waits(wire: bytes, cuts: list[int]) -> None:
    decoder, parts, at = ChunkedBody(), [], 0
    for size in [*cuts, len(wire)]:
        try:
            if decoder.feed(wire[at : at + size], parts) is not None:
                return
        except MalformedRequest:
            return
        at += size
    try:
        check_beginning(wire)
    except MalformedRequest:
        return


_TEXT = st.text(alphabet=st.sampled_from('ab "\\\n\t你好\u2028{}:,data'), max_size=6)
_EVENT = st.one_of(
    _TEXT.map(lambda t: {"choices": [{"index": 0, "delta": {"content": t}, "finish_reason": None}]}),
    _TEXT.map(lambda t: {"choices": [{"index": 1, "delta": {"content": t}, "finish_reason": None}]}),
    _TEXT.map(lambda t: {"choices": [{"index": 0, "delta": {"content": t}, "finish_reason": "stop"}]}),
    _TEXT.map(lambda t: {"choices": [{"index": 0, "delta": {"content": t, "tool_calls": [{"id": t}]}}]}),
    st.just({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}),
    st.just({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}),
    st.just({"error": {"code": 500}}),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(_EVENT, max_size=30), st.booleans(), st.booleans(), st.sampled_from(["\n\n", "\r\n\r\n"]))
def test_joined_events_say_what_single_ones_say(events: list[dict], compact: bool, ascii_only: bool, end: str) -> None:
    separators = (",", ":") if compact else None
    lines = [json.dumps(e, separators=separators, ensure_ascii=ascii_only) for e in events]
    answer = read_stream(Operation.CHAT, "".join(f"data: {line}{end}" for line in [*lines, "[DONE]"]).encode())
    texts: dict[int, str] = {}
    reasons: dict[int, str] = {}
    for choice in (c for e in events for c in e.get("choices", ())):
        texts[choice["index"]] = texts.get(choice["index"], "") + choice["delta"]["content"]
        if choice.get("finish_reason"):
            reasons[choice["index"]] = choice["finish_reason"]
    assert answer.texts == tuple(texts[i] for i in sorted(texts))
    assert answer.finish_reasons == tuple(reasons.get(i, "") for i in sorted(texts))
    assert answer.ended
    assert answer.error_code == ("500" if any("error" in e for e in events) else None)
    assert answer.output_tokens == (4 if any("usage" in e for e in events) else None)


@settings(deadline=None, max_examples=50)  # reading the text back takes most of the time
@given(
    st.lists(
        st.builds(
            RequestMeasurement,
            model=st.sampled_from(["chat", 'odd"na\\me\n']), version=st.sampled_from(["1.0.0", "1.1.0"]),
            operation=st.sampled_from(["chat", "embeddings"]), outcome=st.sampled_from(RequestOutcome),
            duration_s=st.floats(0, 100), first_token_s=st.none() | st.floats(0, 20),
            per_token_s=st.none() | st.floats(0, 5), input_tokens=st.none() | st.integers(0, 10**6),
            output_tokens=st.none() | st.integers(0, 10**6),
            trace=st.none() | st.tuples(st.just("0af7651916cd43dd8448eb211c80319c"), st.floats(0, 2**31)),
        ),
        max_size=20,
    )
)  # fmt: skip
def test_every_observation_is_in_the_scrape_in_both_formats(measured: list[RequestMeasurement]) -> None:
    instruments = GatewayInstruments()
    pairs = [(model, version) for model in ("chat", 'odd"na\\me\n') for version in ("1.0.0", "1.1.0")]
    instruments.set_revisions(RevisionInfo(m, v, "r", "stable") for m, v in pairs)
    for m in measured:
        instruments.record(m)
    for parse, accept in ((classic, ""), (openmetrics, "application/openmetrics-text; version=1.0.0")):
        samples = [s for f in parse(instruments.render(accept)[0].decode()) for s in f.samples]

        def total(name: str, samples: list = samples, **labels: str) -> float:
            return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())

        assert total("tidegate_requests_total") == len(measured)
        for model, version in pairs:
            mine = [m for m in measured if (m.model, m.version) == (model, version)]
            where = {"model": model, "version": version}
            assert total("tidegate_requests_total", **where) == len(mine)
            assert total("gen_ai_server_request_duration_seconds_count", **where) == len(mine)
            under = total("gen_ai_server_request_duration_seconds_bucket", le="10.24", **where)
            assert under == sum(m.duration_s <= 10.24 for m in mine)
            firsts = [m.first_token_s for m in mine if m.first_token_s is not None]
            assert total("gen_ai_server_time_to_first_token_seconds_count", **where) == len(firsts)
            assert total("tidegate_tokens_total", direction="output", **where) == sum(
                m.output_tokens or 0 for m in mine
            )


_NAMES = st.sampled_from(
    [b"Content-Length", b"content-length", b"X-Session-Id", b"authorization", b"c", b"Host", b"x-a"]
)
_VALUES = st.sampled_from([b"5", b"12", b" 7", b"+5", b"5, 5", b"content-length: 9", b"Content-Length: 3", b"a", b""])


@settings(deadline=None)
@given(st.lists(st.lists(st.tuples(_NAMES, st.sampled_from([b": ", b":", b" : "]), _VALUES), max_size=5), max_size=8))
def test_a_remembered_head_is_read_as_a_new_one(heads: list[list[tuple[bytes, bytes, bytes]]]) -> None:
    """Whatever was read before, a head means what it means alone: to be remembered must never smuggle anything."""

    def read(raw: bytes, reader: Callable[[bytes], Head]) -> object:
        try:
            head = reader(raw)
        except MalformedRequest as e:
            return e.status, str(e)
        fields = {name: value for name, value in head.fields.items() if name != b"content-length"}
        headers = [h for h in head.headers if h[0] != b"content-length"]
        return head.start.target, head.length, fields, headers, head.keep_alive, head.awaits_continue

    for lines in heads:
        raw = b"\r\n".join([b"POST /v1/x HTTP/1.1", b"host: h", *(n + c + v for n, c, v in lines)])
        for _ in range(2):
            assert read(raw, parse_head) == read(raw, read_head), raw
