"""Write metrics in Prometheus' protobuf format, the only one with native histograms. Pure.

Prometheus asks for it when native histograms are switched on. A histogram then has its classic buckets and the native
ones, as Go's own client writes them; which of the two are kept, Prometheus' configuration says. The few messages needed
are written by hand: `io.prometheus.client.MetricFamily` of prometheus/client_model, each behind its length.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from monitoring.aggregates import NATIVE_SCHEMA, NATIVE_ZERO, Exemplar, Histogram
from monitoring.exposition import HISTOGRAMS, Item, counters

CONTENT_TYPE = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"
MOST_GAP = 4
"""Empty native buckets between two filled ones that are written as zeros; a longer gap begins another span."""

_VARINT, _DOUBLE, _BYTES = 0, 1, 2


class FamilyType(enum.IntEnum):
    """`MetricType` of client_model."""

    COUNTER = 0
    GAUGE = 1
    HISTOGRAM = 4


@dataclass(frozen=True, slots=True)
class Series:
    """One set of labels with its value."""

    labels: Mapping[str, str]
    value: float | Histogram


@dataclass(frozen=True, slots=True)
class Family:
    """All series of one name; a counter's ends in `_total`."""

    name: str
    text: str
    type: FamilyType
    series: Sequence[Series]


def asked_for(accept: str) -> bool:
    """Whether an `Accept` header asks for this format before any other.

    >>> asked_for("application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited,*/*")
    True
    >>> asked_for("application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4")
    False
    """
    first = accept.partition(",")[0].replace(" ", "").lower()
    return first.startswith("application/vnd.google.protobuf;") and "encoding=delimited" in first


def finished_families(items: Sequence[Item], provider: str) -> list[Family]:
    """All series of finished requests; the arguments are those of `exposition.write_finished`."""
    found = [
        Family(
            f"{name}_total",
            text,
            FamilyType.COUNTER,
            [Series({more: value, "model": model, "version": v}, n) for (more, value, model, v), n in counts.items()],
        )
        for name, text, counts in counters(items)
    ]
    for name, text, series in HISTOGRAMS:
        told: list[Series] = []
        for (model, version, operation), counted in items:
            where = {"gen_ai_operation_name": operation, "gen_ai_provider_name": provider, "model": model}
            for more, value, histogram in series(counted):
                labels = {**where, "version": version}
                if more:
                    labels[more] = value
                told.append(Series(labels, histogram))
        found.append(Family(name, text, FamilyType.HISTOGRAM, told))
    return found


def write(families: Iterable[Family]) -> bytes:
    """All families, each behind its length."""
    return b"".join(_varint(len(message)) + message for message in map(_family, families) if message)


def _family(family: Family) -> bytes:
    if not family.series:
        return b""
    parts = [_text(1, family.name), _text(2, family.text), _whole(3, family.type)]
    parts += (_message(4, _metric(series, family.type)) for series in family.series)
    return b"".join(parts)


def _metric(series: Series, kind: FamilyType) -> bytes:
    parts = [_message(1, _text(1, name) + _text(2, value)) for name, value in series.labels.items()]
    value = series.value
    if isinstance(value, Histogram):
        parts.append(_message(7, _histogram(value)))
    else:
        parts.append(_message(3 if kind is FamilyType.COUNTER else 2, _double(1, value)))
    return b"".join(parts)


def _histogram(histogram: Histogram) -> bytes:
    parts: list[bytes] = []
    count = 0
    for place, (bound, count) in enumerate(histogram.cumulative()):
        bucket = _whole(1, count) + _double(2, bound)
        seen = histogram.exemplars.get(place)
        parts.append(_message(3, bucket if seen is None else bucket + _message(3, _exemplar(seen))))
    native = [_whole(5, _zigzag(NATIVE_SCHEMA)), _double(6, NATIVE_ZERO), _whole(7, histogram.zeros)]
    spans, deltas = native_buckets(histogram.native)
    native += (_message(12, _whole(1, _zigzag(offset)) + _whole(2, length)) for offset, length in spans)
    native.append(_message(13, b"".join(_varint(_zigzag(delta)) for delta in deltas)))
    return b"".join([_whole(1, count), _double(2, histogram.total), *parts, *native])


def native_buckets(counts: Mapping[int, int]) -> tuple[list[tuple[int, int]], list[int]]:
    """Spans (offset from the end of the one before, length) and counts, each as what it has more than the last one.

    >>> native_buckets({3: 5, 4: 2, 6: 4, 20: 1})
    ([(3, 4), (13, 1)], [5, -3, -2, 4, -3])
    """
    spans: list[tuple[int, int]] = []
    deltas: list[int] = []
    before = end = 0
    for index, count in _filled(sorted(counts.items())):
        if spans and index == end:
            spans[-1] = (spans[-1][0], spans[-1][1] + 1)
        else:
            spans.append((index - end, 1))
        end = index + 1
        deltas.append(count - before)
        before = count
    return spans, deltas


def _filled(buckets: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The buckets, with the zeros of short gaps."""
    last: int | None = None
    for index, count in buckets:
        if last is not None and index - last - 1 <= MOST_GAP:
            yield from ((between, 0) for between in range(last + 1, index))
        yield index, count
        last = index


def _exemplar(seen: Exemplar) -> bytes:
    seconds = int(seen.at)
    at = _whole(1, seconds) + _whole(2, int((seen.at - seconds) * 1e9))
    return _message(1, _text(1, "trace_id") + _text(2, seen.trace_id)) + _double(2, seen.value) + _message(3, at)


def _varint(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _zigzag(value: int) -> int:
    return value << 1 if value >= 0 else (-value << 1) - 1


def _whole(number: int, value: int) -> bytes:
    return bytes((number << 3 | _VARINT,)) + _varint(value)


def _double(number: int, value: float) -> bytes:
    return bytes((number << 3 | _DOUBLE,)) + struct.pack("<d", value)


def _message(number: int, content: bytes) -> bytes:
    return bytes((number << 3 | _BYTES,)) + _varint(len(content)) + content


def _text(number: int, value: str) -> bytes:
    return _message(number, value.encode())
