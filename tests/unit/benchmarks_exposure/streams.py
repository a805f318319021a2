"""Small streams made by hand: requests at even distances, with outcomes that are chosen."""

from __future__ import annotations

import numpy as np

from benchmarks.exposure.peers import Seen
from benchmarks.exposure.traffic import Fault, Stream

PERFECT = Fault("perfect", errors=(0.0, 0.0), findings=(0.0, 0.0))
BROKEN = Fault("broken", errors=(0.0, 1.0), findings=(0.0, 0.0))


def even_stream(until_s: float, rate: float = 10.0, latency_s: float = 0.1) -> Stream:
    """Requests at even distances; the draws for the arm run through 0, 0.01, ... 0.99 again and again."""
    count = int(until_s * rate)
    at = (np.arange(count) + 0.5) / rate
    half = np.full(count, 0.5)
    latency = np.full(count, latency_s)
    alone, first = np.full(count, -1), np.ones(count, dtype=np.int64)
    return Stream(at, np.arange(count) * 37 % 100 / 100.0, alone, first, half, half, latency, latency)


def seen(fault: Fault, until_s: float, **changes: float) -> Seen:
    """Such a stream under a fault, up to `until_s`."""
    return Seen(even_stream(until_s, **changes), fault, until_s)
