"""One stream of requests, given alike to every scheme: arrivals, who would go where, what would happen.

A stream holds the chances, not the choices: a uniform number that decides the arm (canary when it is below the weight
in force), one that decides about an error, one about a guardrail finding, and the latency. So schemes with different
weights meet the same requests, and the same one fails in the same arm whoever is watching.

Times are seconds since the canary got its first request; the stream begins earlier, with stable alone, because every
gateway has a window of stable's latency by then.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

RATE = 10.0
"""Requests per second over both arms, on average, in every shape."""

BEFORE_S = 120.0
"""Seconds of stable alone before the rollout."""

MEDIAN_LATENCY_S = 0.120
LATENCY_SIGMA = 0.5
"""Log-normal: p50 120 ms, p99 384 ms, so that a p99 limit of 500 ms suits the stable version."""

PARETO_LEAST_S, PARETO_SHAPE = 0.025, 2.0
"""Heavy tail: p50 35 ms, p99 250 ms, infinite variance."""

SESSION_REQUESTS = 8.0
SESSION_GAP_S = 5.0
SESSION_BADNESS_SHAPE = 0.5
"""A session multiplies its error and finding rates by a gamma variable of mean 1 and this shape (variance 2)."""

CYCLE_S = 600.0
"""A day, compressed to ten minutes so that every rollout lives through whole ones."""

BURST_ON_S, BURST_OFF_S, BURST_ON_RATE, BURST_OFF_RATE = 8.0, 20.0, 30.0, 2.0

REPLICAS = 10
STALL_S, STALL_EVERY_S = 2.0, 120.0
"""In the stalls shape every replica stops for 2 s about once in two minutes; the canary has one of the ten."""


class Shape(enum.StrEnum):
    """How requests come."""

    STEADY = "steady"
    """Poisson."""
    BURSTY = "bursty"
    """Poisson, 30 a second for about 8 s, then 2 a second for about 20 s."""
    DAILY = "daily"
    """Load, error rates and latency rise and fall together."""
    SESSIONS = "sessions"
    """Eight requests each on average, some sessions far worse than others, a session stays on its arm."""
    HEAVY_TAIL = "heavy tail"
    """Pareto latency."""
    STALLS = "stalls"
    """Replicas stop now and then, each as often as the others: one accident slows several answers of one arm."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What each arm does. Rates are probabilities per request; all of it from the start, or after an onset.

    Attributes:
        name: for tables.
        errors: (stable's rate, the canary's).
        findings: the same for guardrail findings.
        slowdown: the canary's latency over stable's.
        onset_s: when the canary turns bad; before, it is stable's equal.

    """

    name: str
    errors: tuple[float, float] = (0.01, 0.01)
    findings: tuple[float, float] = (0.002, 0.002)
    slowdown: float = 1.0
    onset_s: float = 0.0


HEALTHY = Fault("healthy")
QUIET = Fault("healthy, 0.2 % errors", errors=(0.002, 0.002))
"""A stable version whose errors lie well within the success rates that other tools' documentation asks for."""


@dataclass(frozen=True, slots=True)
class Stream:
    """Requests in order of arrival; arrays of one length.

    Attributes:
        at_s: arrival.
        draw: uniform in [0, 1); the arm is the canary when it is below the weight. One for a whole session.
        session: a number, or -1 where every request is its own.
        request_index: place within its session since the canary's first request, from 1.
        error_draw: an error happens when it is below the arm's rate (uniform over the request's own multiplier).
        finding_draw: the same for guardrail findings.
        stable_s: latency on stable.
        canary_s: on the canary, before any fault.
        stalls: whether replicas stop now and then.

    """

    at_s: Floats
    draw: Floats
    session: NDArray[np.int64]
    request_index: NDArray[np.int64]
    error_draw: Floats
    finding_draw: Floats
    stable_s: Floats
    canary_s: Floats
    stalls: bool = False

    def until(self, end_s: float) -> Stream:
        """The requests that arrive before that time."""
        part = slice(0, int(np.searchsorted(self.at_s, end_s)))
        return Stream(
            self.at_s[part], self.draw[part], self.session[part], self.request_index[part],
            self.error_draw[part], self.finding_draw[part], self.stable_s[part], self.canary_s[part], self.stalls,
        )  # fmt: skip

    def outcomes(self, canary: Flags, fault: Fault) -> tuple[Flags, Flags, Floats]:
        """Per request, given the arms: whether it failed, whether it had a finding, and its latency in seconds."""
        bad = canary & (self.at_s >= fault.onset_s)
        error = self.error_draw < np.where(bad, fault.errors[1], fault.errors[0])
        finding = self.finding_draw < np.where(bad, fault.findings[1], fault.findings[0])
        latency = np.where(canary, self.canary_s, self.stable_s)
        return error, finding, np.where(bad, latency * fault.slowdown, latency)


def generate(shape: Shape, horizon_s: float, rng: np.random.Generator) -> Stream:
    """Draw a stream from `BEFORE_S` before the rollout until `horizon_s` after its start."""
    if shape is Shape.SESSIONS:
        at, session, index = _sessions(horizon_s, rng)
        sessions = int(session.max()) + 1
        draw = rng.random(sessions)[session]
        badness = rng.gamma(SESSION_BADNESS_SHAPE, 1.0 / SESSION_BADNESS_SHAPE, sessions)[session]
    else:
        at = _arrivals(shape, horizon_s, rng)
        session = np.full(len(at), -1)
        index = np.ones(len(at), dtype=np.int64)
        draw = rng.random(len(at))
        badness = np.ones(len(at))
    swing = np.ones(len(at))
    if shape is Shape.DAILY:
        swing = 1.0 + 0.8 * np.sin(2.0 * np.pi * at / CYCLE_S)
    floor = np.maximum(badness * swing, 1e-12)
    latency = _latency(shape, len(at), rng) * (1.0 + 0.25 * (swing - 1.0))
    stable, canary = latency, latency
    if shape is Shape.STALLS:
        stable, canary = (latency + wait for wait in _stalls(at, rng))
    error, finding = rng.random(len(at)) / floor, rng.random(len(at)) / floor
    return Stream(at, draw, session, index, error, finding, stable, canary, stalls=shape is Shape.STALLS)


def _latency(shape: Shape, count: int, rng: np.random.Generator) -> Floats:
    if shape is Shape.HEAVY_TAIL:
        return PARETO_LEAST_S * (1.0 + rng.pareto(PARETO_SHAPE, count))
    return MEDIAN_LATENCY_S * np.exp(LATENCY_SIGMA * rng.standard_normal(count))


def _arrivals(shape: Shape, horizon_s: float, rng: np.random.Generator) -> Floats:
    """A Poisson process whose rate changes: arrivals of rate 1, mapped back through the accumulated rate."""
    if shape is Shape.BURSTY:
        periods = int((horizon_s + BEFORE_S) / (BURST_ON_S + BURST_OFF_S) * 1.5) + 20
        lengths = rng.exponential(1.0, (periods, 2)) * (BURST_ON_S, BURST_OFF_S)
        edges: Floats = np.concatenate(([0.0], np.cumsum(lengths.ravel()))) - BEFORE_S
        rates = np.tile((BURST_ON_RATE, BURST_OFF_RATE), periods)
    elif shape is Shape.DAILY:
        edges = np.arange(-BEFORE_S, horizon_s + 2.0).astype(np.float64)
        rates = RATE * (1.0 + 0.8 * np.sin(2.0 * np.pi * edges[:-1] / CYCLE_S))
    else:
        edges, rates = np.array([-BEFORE_S, horizon_s + 1.0]), np.array([RATE])
    mass = np.concatenate(([0.0], np.cumsum(rates * np.diff(edges))))
    count = int(mass[-1] + 8.0 * np.sqrt(mass[-1]) + 20)
    at = np.interp(np.cumsum(rng.exponential(1.0, count)), mass, edges, right=np.inf)
    return at[at < horizon_s]


def _sessions(horizon_s: float, rng: np.random.Generator) -> tuple[Floats, NDArray[np.int64], NDArray[np.int64]]:
    """Arrivals, session numbers and places within the session (from 1, since the rollout's start)."""
    began = -BEFORE_S - 10.0 * SESSION_REQUESTS * SESSION_GAP_S
    starts = began + np.cumsum(
        rng.exponential(SESSION_REQUESTS / RATE, int((horizon_s - began) * RATE / SESSION_REQUESTS * 1.1) + 200)
    )
    lengths = rng.geometric(1.0 / SESSION_REQUESTS, len(starts))
    session = np.repeat(np.arange(len(starts)), lengths)
    first = np.cumsum(lengths) - lengths
    gaps = rng.exponential(SESSION_GAP_S, len(session))
    gaps[first] = 0.0
    along = np.cumsum(gaps)
    at = starts[session] + along - along[first][session]
    place = np.arange(len(session)) - first[session]
    order = np.argsort(at, kind="stable")
    at, session, place = at[order], session[order], place[order]
    kept = (at >= -BEFORE_S) & (at < horizon_s)
    at, session, place = at[kept], session[kept], place[kept]
    earlier = np.full(len(starts), np.iinfo(np.int64).max)
    np.minimum.at(earlier, session[at >= 0.0], place[at >= 0.0])
    return at, session, np.maximum(place - earlier[session], 0) + 1


def _stalls(at: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Extra seconds that a request waits on each arm: it goes to one of the arm's replicas, which may stand still."""
    ends: list[Floats] = []
    span = at[-1] - at[0] + STALL_EVERY_S
    for _ in range(REPLICAS):
        starts = at[0] + np.cumsum(rng.exponential(STALL_EVERY_S, int(span / STALL_EVERY_S * 2) + 20))
        last = starts[np.maximum(np.searchsorted(starts, at, side="right") - 1, 0)]
        ends.append(np.where((starts[0] <= at) & (at < last + STALL_S), last + STALL_S - at, 0.0))
    replica = rng.integers(1, REPLICAS, len(at))
    return np.stack(ends)[replica, np.arange(len(at))], ends[0]
