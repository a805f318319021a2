"""Write metrics in Prometheus' protobuf format, the only one with native histograms. Pure.

Prometheus asks for it when native histograms are switched on. A histogram then has its classic buckets and the native
ones, as Go's own client writes them; which of the two are kept, Prometheus' configuration says. The few messages needed
are written by hand: `io.prometheus.client.MetricFamily` of prometheus/client_model, each behind its length.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

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
    parts = [_label(name, value) for name, value in series.labels.items()]
    value = series.value
    if isinstance(value, Histogram):
        parts.append(_message(7, _histogram(value)))
    else:
        parts.append(_message(3 if kind is FamilyType.COUNTER else 2, _double(1, value)))
    return b"".join(parts)


@lru_cache(maxsize=4096)
def _label(name: str, value: str) -> bytes:
    return _message(1, _text(1, name) + _text(2, value))


def _histogram(histogram: Histogram) -> bytes:
    parts: list[bytes] = []
    count = 0
    exemplars = histogram.exemplars
    for place, (own, bound) in enumerate(zip(histogram.counts, _bounds(tuple(histogram.bounds)), strict=True)):
        count += own
        bucket = b"\x08" + _varint(count) + bound  # field 1, a varint
        if place in exemplars:
            bucket += _message(3, _exemplar(exemplars[place]))
        parts.append(b"\x1a" + _varint(len(bucket)) + bucket)  # field 3, a message
    native = [_whole(5, _zigzag(NATIVE_SCHEMA)), _double(6, NATIVE_ZERO), _whole(7, histogram.zeros)]
    spans, deltas = native_buckets(histogram.native)
    native += (_message(12, _whole(1, _zigzag(offset)) + _whole(2, length)) for offset, length in spans)
    native.append(_message(13, b"".join([_varint(d << 1 if d >= 0 else (-d << 1) - 1) for d in deltas])))
    return b"".join([_whole(1, count), _double(2, histogram.total), *parts, *native])


def native_buckets(counts: Mapping[int, int]) -> tuple[list[tuple[int, int]], list[int]]:
    """Spans (offset from the end of the one before, length) and counts, each as what it has more than the last one.

    >>> native_buckets({3: 5, 4: 2, 6: 4, 20: 1})
    ([(3, 4), (13, 1)], [5, -3, -2, 4, -3])
    """
    spans: list[tuple[int, int]] = []
    deltas: list[int] = []
    before = end = length = offset = 0
    for index, count in sorted(counts.items()):
        gap = index - end
        if length and gap <= MOST_GAP:
            for _ in range(gap):
                deltas.append(-before)
                before = 0
            length += gap + 1
        else:
            if length:
                spans.append((offset, length))
            offset, length = gap, 1
        end = index + 1
        deltas.append(count - before)
        before = count
    if length:
        spans.append((offset, length))
    return spans, deltas


def _exemplar(seen: Exemplar) -> bytes:
    seconds = int(seen.at)
    at = _whole(1, seconds) + _whole(2, int((seen.at - seconds) * 1e9))
    return _message(1, _text(1, "trace_id") + _text(2, seen.trace_id)) + _double(2, seen.value) + _message(3, at)


@lru_cache(maxsize=64)
def _bounds(bounds: tuple[float, ...]) -> tuple[bytes, ...]:
    """The upper bounds of a histogram's buckets as they are written, the infinite one too."""
    return tuple(_double(2, bound) for bound in (*bounds, float("inf")))


def _varint(value: int) -> bytes:
    if value < _KNOWN:
        return _VARINTS[value]
    return _long_varint(value)


def _long_varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


_KNOWN = 4096
_VARINTS = tuple(_long_varint(value) for value in range(_KNOWN))


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
