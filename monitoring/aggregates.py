"""Count finished requests in plain lists, to be read at a scrape. Pure.

A metrics library pays for labels, locks and processes with every observation. Here one thread counts, so an
observation is a bisection and some additions, and all the work of writing series is left to the scrape.

A histogram is kept twice: in the conventions' own buckets, and in a native histogram's exponential ones (eight to a
doubling, Prometheus' schema 3), of which only those exist that something fell into.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from math import ceil, log2
from typing import NamedTuple

from monitoring.measurements import RequestMeasurement, RequestOutcome

FIRST_TOKEN_BUCKETS_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
PER_TOKEN_BUCKETS_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
DURATION_BUCKETS_S = tuple(0.01 * 2**i for i in range(14))
USAGE_BUCKETS_TOKENS = tuple(4.0**i for i in range(14))


NATIVE_SCHEMA = 3
"""Eight buckets to a doubling: a quantile is known to within 4.4 %."""
NATIVE_ZERO = 1e-6
"""Values up to this are zeros to the native histogram."""
_PER_DOUBLING = 1 << NATIVE_SCHEMA
_HIGHEST = 40 * _PER_DOUBLING
"""Larger values than 2^40 share a bucket, so that there are at most 500."""


class Exemplar(NamedTuple):
    """One request that fell into a bucket, and whose trace was kept. `at` is in wall-clock seconds."""

    trace_id: str
    value: float
    at: float


class Histogram:
    """Counts by bucket and a sum; `bounds` are upper bounds, a value on a bound belongs below it."""

    __slots__ = ("bounds", "counts", "exemplars", "native", "total", "zeros")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0
        self.native: dict[int, int] = {}
        """By index: values above 2^((index - 1) / 8) and up to 2^(index / 8)."""
        self.zeros = 0
        self.exemplars: dict[int, Exemplar] = {}
        """The last one of each bucket, where traces are kept."""

    def observe(self, value: float, exemplar: tuple[str, float] | None = None) -> None:
        """Count one value; `exemplar` is the trace that was kept of it, and when."""
        bucket = bisect_left(self.bounds, value)
        self.counts[bucket] += 1
        self.total += value
        if value > NATIVE_ZERO:
            index = min(ceil(log2(value) * _PER_DOUBLING), _HIGHEST)
            self.native[index] = self.native.get(index, 0) + 1
        else:
            self.zeros += 1
        if exemplar is not None:
            self.exemplars[bucket] = Exemplar(exemplar[0], value, exemplar[1])

    def cumulative(self) -> Iterator[tuple[float, int]]:
        """(upper bound, values up to it), the last bound infinite."""
        count = 0
        for bound, own in zip((*self.bounds, float("inf")), self.counts, strict=True):
            count += own
            yield bound, count


class OperationAggregates:
    """What is counted of one operation of one version."""

    __slots__ = ("durations", "first_token", "input_tokens", "outcomes", "output_tokens", "per_token")

    def __init__(self) -> None:
        self.outcomes: dict[RequestOutcome, int] = {}
        self.durations: dict[str, Histogram] = {}
        """By error type, "" for none."""
        self.first_token = Histogram(FIRST_TOKEN_BUCKETS_S)
        self.per_token = Histogram(PER_TOKEN_BUCKETS_S)
        self.input_tokens = Histogram(USAGE_BUCKETS_TOKENS)
        self.output_tokens = Histogram(USAGE_BUCKETS_TOKENS)

    def record(self, m: RequestMeasurement) -> None:
        """Count one finished request."""
        outcome, seen = m.outcome, m.trace
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
        error = "" if outcome is RequestOutcome.OK or outcome is RequestOutcome.RETRIED else outcome.value
        duration = self.durations.get(error)
        if duration is None:
            duration = self.durations[error] = Histogram(DURATION_BUCKETS_S)
        duration.observe(m.duration_s, seen)
        if m.first_token_s is not None:
            self.first_token.observe(m.first_token_s, seen)
        if m.per_token_s is not None:
            self.per_token.observe(m.per_token_s, seen)
        if m.input_tokens is not None:
            self.input_tokens.observe(m.input_tokens, seen)
        if m.output_tokens is not None:
            self.output_tokens.observe(m.output_tokens, seen)


class RequestAggregates:
    """All finished requests of one gateway process, by (model, version, operation). Bounded by what tables name."""

    def __init__(self) -> None:
        self._all: dict[tuple[str, str, str], OperationAggregates] = {}

    def record(self, m: RequestMeasurement) -> None:
        """Count one finished request."""
        key = (m.model, m.version, m.operation)
        found = self._all.get(key)
        if found is None:
            found = self._all[key] = OperationAggregates()
        found.record(m)

    def forget(self, model: str, version: str) -> None:
        """Drop what was counted of a version."""
        for key in [k for k in self._all if k[:2] == (model, version)]:
            del self._all[key]

    def items(self) -> list[tuple[tuple[str, str, str], OperationAggregates]]:
        """All of them in the order of their names."""
        return sorted(self._all.items(), key=lambda item: item[0])
