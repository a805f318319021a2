"""The three formats tell the same, read back by others' parsers; native buckets are where Prometheus has them."""

from __future__ import annotations

import math

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.internal.decoder import _DecodeVarint32
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from monitoring.aggregates import NATIVE_ZERO, Histogram
from monitoring.instruments import LATE_SERIES_S, GatewayInstruments
from monitoring.measurements import RequestMeasurement, RequestOutcome, RevisionInfo
from monitoring.protobuf import native_buckets

TRACE = "0af7651916cd43dd8448eb211c80319c"
PROTOBUF = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.6,text/plain"


def filled() -> GatewayInstruments:
    made = GatewayInstruments()
    made.set_revisions([RevisionInfo("chat", "1.0.0", "a" * 12, "stable")])
    for i in range(40):
        trace = (TRACE, 1234.5) if i == 7 else None
        outcome = RequestOutcome.ERROR if i == 9 else RequestOutcome.OK
        made.record(RequestMeasurement("chat", "1.0.0", "chat", outcome, 0.2 * i, 0.02, 0.01, i, 5, trace))
    made.retry("chat", "1.0.0", "timeout")
    made.set_queue_depths({("chat", "standard"): 3})
    return made


def samples(families: object) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (s.name, frozenset(s.labels.items())): s.value
        for family in families  # type: ignore[attr-defined]
        for s in family.samples
        if not s.name.endswith("_created")
    }


def test_both_texts_tell_the_same_and_only_openmetrics_has_exemplars() -> None:
    made = filled()
    text, _ = made.render("")
    openmetrics, kind = made.render("application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text")
    families = list(read_openmetrics(openmetrics.decode()))
    assert samples(families) == samples(read_text(text.decode()))
    seen = [(s.name, s.exemplar) for family in families for s in family.samples if s.exemplar]
    assert {e.labels["trace_id"] for _, e in seen} == {TRACE}
    assert {float(e.timestamp) for _, e in seen} == {1234.5}
    assert len(seen) == 5, "one for each histogram that the request is in"
    assert TRACE.encode() not in text


def client_model() -> type:
    """`io.prometheus.client.MetricFamily`, as prometheus/client_model has it, for reading what we wrote."""
    file = descriptor_pb2.FileDescriptorProto(name="m.proto", package="t", syntax="proto2")
    kinds = {"double": 1, "uint64": 4, "string": 9, "message": 11, "uint32": 13, "sint32": 17, "sint64": 18, "int32": 5}

    def message(name: str, *fields: tuple[str, int, str, bool]) -> None:
        made = file.message_type.add(name=name)
        for field, number, kind, repeated in fields:
            one = made.field.add(name=field, number=number, label=3 if repeated else 1)
            one.type = kinds.get(kind, kinds["message"])  # type: ignore[assignment]
            if kind not in kinds:
                one.type_name = f".t.{kind}"

    message("Label", ("name", 1, "string", False), ("value", 2, "string", False))
    message("Value", ("value", 1, "double", False))
    message("Time", ("seconds", 1, "uint64", False), ("nanos", 2, "int32", False))
    message("Exemplar", ("label", 1, "Label", True), ("value", 2, "double", False), ("timestamp", 3, "Time", False))
    message("Bucket", ("count", 1, "uint64", False), ("bound", 2, "double", False), ("exemplar", 3, "Exemplar", False))
    message("Span", ("offset", 1, "sint32", False), ("length", 2, "uint32", False))
    message(
        "Histogram", ("count", 1, "uint64", False), ("sum", 2, "double", False), ("bucket", 3, "Bucket", True),
        ("schema", 5, "sint32", False), ("zero_threshold", 6, "double", False), ("zero_count", 7, "uint64", False),
        ("positive_span", 12, "Span", True), ("positive_delta", 13, "sint64", True),
    )  # fmt: skip
    message(
        "Metric", ("label", 1, "Label", True), ("gauge", 2, "Value", False), ("counter", 3, "Value", False),
        ("histogram", 7, "Histogram", False),
    )  # fmt: skip
    message(
        "MetricFamily", ("name", 1, "string", False), ("help", 2, "string", False), ("type", 3, "int32", False),
        ("metric", 4, "Metric", True),
    )  # fmt: skip
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.MetricFamily"))


def test_protobuf_tells_what_text_tells_and_native_buckets_beside() -> None:
    made = filled()
    data, kind = made.render(PROTOBUF)
    assert "encoding=delimited" in kind
    reader, at, read = client_model(), 0, {}
    exemplars = 0
    while at < len(data):
        size, at = _DecodeVarint32(data, at)
        family = reader.FromString(data[at : at + size])
        at += size
        for metric in family.metric:
            labels = frozenset((x.name, x.value) for x in metric.label)
            if family.type != 4:
                read[family.name, labels] = (metric.counter if family.type == 0 else metric.gauge).value
                continue
            h = metric.histogram
            read |= {(f"{family.name}_count", labels): h.count, (f"{family.name}_sum", labels): h.sum}
            for bucket in h.bucket:
                le = "+Inf" if math.isinf(bucket.bound) else repr(bucket.bound)
                read[f"{family.name}_bucket", labels | {("le", le)}] = bucket.count
                exemplars += bucket.HasField("exemplar")
            assert (h.schema, h.zero_threshold) == (3, NATIVE_ZERO)
            counts, count = [], 0
            for delta in h.positive_delta:
                count += delta
                counts.append(count)
            assert sum(span.length for span in h.positive_span) == len(counts)
            assert sum(counts) + h.zero_count == h.count
    text = samples(read_text(made.render("")[0].decode()))
    assert read == text
    assert exemplars == 5


@given(st.lists(st.floats(1e-9, 1e13), min_size=1, max_size=60))
def test_every_value_is_in_its_native_bucket(values: list[float]) -> None:
    histogram = Histogram((1.0,))
    for value in values:
        histogram.observe(value)
    spans, deltas = native_buckets(histogram.native)
    found: dict[int, int] = {}
    index, place, count = 0, 0, 0
    for offset, length in spans:
        index += offset
        for _ in range(length):
            count += deltas[place]
            found[index] = count
            index, place = index + 1, place + 1
    assert {i: n for i, n in found.items() if n} == histogram.native
    assert sum(found.values()) + histogram.zeros == len(values)
    for value in values:
        if NATIVE_ZERO < value < 2.0**40:
            assert any(2 ** ((i - 1) / 8) * (1 - 1e-9) <= value <= 2 ** (i / 8) * (1 + 1e-9) for i in histogram.native)


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text; version=1.0.0", PROTOBUF])
def test_series_of_a_retired_version_are_gone_in_every_format(accept: str) -> None:
    made = filled()
    made.rated("chat", "1.0.0", "down")
    assert b"1.0.0" in made.render(accept)[0]
    made.set_revisions([RevisionInfo("chat", "2.0.0", "b" * 12, "stable")])
    assert b"1.0.0" not in made.render(accept)[0].replace(b"version=1.0.0", b"")


def test_series_that_come_late_stay_to_be_seen_and_are_gone_without_another_table() -> None:
    made = filled()
    made.set_revisions([RevisionInfo("chat", "2.0.0", "b" * 12, "stable")])
    made.retry("chat", "1.0.0", "timeout")
    made.guardrail_verdicts("chat", "1.0.0", "insults", "output", "allow")
    for now, seen in ((100.0, True), (100.0 + LATE_SERIES_S - 1, True), (100.0 + LATE_SERIES_S, False)):
        made.sweep(now)
        assert (b'version="1.0.0"' in made.render("")[0]) is seen
    made.retry("chat", "1.0.0", "timeout")
    made.set_revisions([RevisionInfo("chat", "2.0.0", "b" * 12, "stable")])
    assert b'version="1.0.0"' not in made.render("")[0]
