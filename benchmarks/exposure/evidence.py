"""What gateways would tell of a stream, and which of it the ledger counts: the way from requests to tests.

Latency limits are those of `serving/gateway/latency.py` (quantiles of stable's last 512 completions, the canary's
latency divided by 1.25 first), refreshed every 32 completions instead of at each one; which slow units are told at
all its `Apart` decides here too. The rules of counting are those of `rollout/analysis/units.py`, written again for
speed; `production.py` gives the same events to the ledger itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from benchmarks.exposure.batch import Events, paths
from benchmarks.exposure.traffic import Fault, Flags, Floats, Stream
from monitoring.sequential.events import EProcessConfig
from rollout.analysis.comparison import LEVEL_RATES
from rollout.specs import DEFAULT_SLOWDOWN
from serving.gateway.latency import MIN_COMPLETIONS, PROBABILITIES, WINDOW, Apart
from serving.outcomes import LEVELS, Signal

REFRESH_COMPLETIONS = 32
"""Every so many completions the limits are computed anew: a fraction of the work, and they hardly move in between."""

WEIGHT = 0.10
ALPHA = 0.01
SHARES = {"error": 0.5, "latency": 0.25, "finding": 0.25}
"""Parts of alpha, as `planning.share_alpha` gives for an error signal and two others."""


@dataclass(frozen=True, slots=True)
class Told:
    """Units with an event of one signal, in the order in which gateways tell of them."""

    canary: Flags
    admitted_s: Floats
    settled_s: Floats
    session: NDArray[np.int64]
    request_index: NDArray[np.int64]
    admission: NDArray[np.int64]
    levels: Flags
    """One column for each level of a latency signal, one column in all for another."""
    rate: Floats
    """Stable's rate of such events per request as the ledger knows it then; 0 where nothing is discounted."""

    def __len__(self) -> int:
        return len(self.canary)

    def take(self, chosen: NDArray[np.int64]) -> Told:
        """Some of the units."""
        return Told(
            self.canary[chosen], self.admitted_s[chosen], self.settled_s[chosen], self.session[chosen],
            self.request_index[chosen], self.admission[chosen], self.levels[chosen], self.rate[chosen],
        )  # fmt: skip


def limits(at_s: Floats, done_s: Floats, latency_s: Floats, refresh: int = REFRESH_COMPLETIONS) -> Floats:
    """The four limits in force at each admission, by row; NaN while stable has fewer than 20 completions.

    Args:
        at_s: admissions.
        done_s: completions of stable, in any order.
        latency_s: their latencies.
        refresh: completions between two computations of the limits.

    """
    order = np.argsort(done_s)
    past = latency_s[order]
    seen = np.searchsorted(done_s[order], at_s, side="right")
    seen = np.where(seen >= MIN_COMPLETIONS, np.maximum(seen - seen % refresh, MIN_COMPLETIONS), 0)
    stops, row = np.unique(seen, return_inverse=True)
    found = np.full((len(stops), len(LEVELS)), np.nan)
    full = stops >= WINDOW
    if full.any():
        windows = np.lib.stride_tricks.sliding_window_view(past, WINDOW)[stops[full] - WINDOW]
        ranks = [math.ceil(p * WINDOW) - 1 for p in PROBABILITIES]
        found[full] = np.partition(windows, ranks, axis=1)[:, ranks]
    for i in np.flatnonzero(~full & (stops > 0)):
        window = np.sort(past[: stops[i]])
        found[i] = [window[math.ceil(p * len(window)) - 1] for p in PROBABILITIES]
    return found[row]


def told(
    stream: Stream, fault: Fault, until_s: float, *, latency_until_s: float | None = None, weight: float = WEIGHT
) -> dict[str, Told]:
    """What gateways tell of the requests from 0 to `until_s`, by signal; of slow ones perhaps only a first part."""
    signals = _plain(stream.until(until_s), fault, weight)
    signals["latency"] = _slow(stream.until(until_s if latency_until_s is None else latency_until_s), fault, weight)
    return _with_rates(signals, weight) if stream.session[0] >= 0 else signals


def _with_rates(signals: dict[str, Told], weight: float) -> dict[str, Told]:
    """Note stable's rate of events before each: earlier ones over the admissions that all events so far span."""
    names = sorted(signals)
    rank = np.concatenate([np.full(len(signals[name]), place) for place, name in enumerate(names)])
    number = np.concatenate([signals[name].admission for name in names])
    order = np.lexsort((rank, np.concatenate([signals[name].settled_s for name in names])))
    span = np.empty(len(order))
    span[order] = np.maximum.accumulate(number[order]) - np.minimum.accumulate(number[order])
    found = {}
    for place, name in enumerate(names):
        units, mine = signals[name], span[rank == place]
        before: Floats = np.cumsum(~units.canary) - ~units.canary
        known = (units.request_index > 1) & (before >= 2) & (mine > 0.0)
        seen = np.minimum(0.5, (before[known] - 1) / (mine[known] * (1.0 - weight)))
        rates = np.zeros(len(units))
        rates[known] = [float(f"{rate:.2g}") for rate in seen.tolist()]
        found[name] = replace(units, rate=rates)
    return found


def _plain(stream: Stream, fault: Fault, weight: float) -> dict[str, Told]:
    canary = (stream.draw < weight) & (stream.at_s >= 0.0)
    error, finding, latency = stream.outcomes(canary, fault)
    one = np.ones((len(canary), 1), dtype=bool)
    return {
        name: _told(np.flatnonzero(flags & (stream.at_s >= 0.0)), stream, canary, latency, one)
        for name, flags in (("error", error), ("finding", finding))
    }


def _slow(stream: Stream, fault: Fault, weight: float) -> Told:
    canary = (stream.draw < weight) & (stream.at_s >= 0.0)
    _, _, latency = stream.outcomes(canary, fault)
    judged, stable = np.flatnonzero(stream.at_s >= 0.0), np.flatnonzero(~canary)
    now = limits(stream.at_s[judged], (stream.at_s + latency)[stable], latency[stable])
    levels = np.zeros((len(canary), len(LEVELS)), dtype=bool)
    levels[judged] = (latency[judged] / np.where(canary[judged], DEFAULT_SLOWDOWN, 1.0))[:, None] > now
    slow = _told(np.flatnonzero(levels[:, 0]), stream, canary, latency, levels)
    apart = Apart()
    rule = partial(apart.told, "chat", "bench", Signal.SLOW_TOKENS)
    return _level_by_level(slow, lambda i, level, at, now: rule(LEVELS[level], at, now))


def _level_by_level(units: Told, told: Callable[[int, int, float, float], bool]) -> Told:
    """Leave to each unit the levels that `told(unit, level, admitted, settled)` keeps, and drop units without any."""
    levels = units.levels.copy()
    times = zip(units.admitted_s.tolist(), units.settled_s.tolist(), strict=True)
    for i, (admitted, settled) in enumerate(times):
        for level in np.flatnonzero(levels[i]).tolist():
            levels[i, level] = told(i, level, admitted, settled)
    return replace(units, levels=levels).take(np.flatnonzero(levels.any(axis=1)))


def _told(which: NDArray[np.int64], stream: Stream, canary: Flags, latency: Floats, levels: Flags) -> Told:
    settled = stream.at_s[which] + latency[which]
    in_order = np.argsort(settled, kind="stable")
    order = which[in_order]
    number = order - int(np.searchsorted(stream.at_s, 0.0)) + 1
    return Told(
        canary[order], stream.at_s[order], settled[in_order], stream.session[order],
        stream.request_index[order], number, levels[order], np.zeros(len(order)),
    )  # fmt: skip


def counted(units: Told, *, latency: bool) -> Told:
    """The units that count: a session's first of the signal, and slow ones that began after the last had ended.

    Of a latency both hold level by level.
    """
    sticky = len(units) > 0 and bool(units.session[0] >= 0)
    if not latency:
        if sticky:
            _, first = np.unique(units.session, return_index=True)
            units = units.take(np.sort(first))
        return units
    seen: set[tuple[int, int]] = set()
    free_at = [-math.inf] * len(LEVELS)
    sessions = units.session.tolist()

    def counts(i: int, level: int, admitted: float, settled: float) -> bool:
        if sticky:
            if (level, sessions[i]) in seen:
                return False
            seen.add((level, sessions[i]))
        if admitted < free_at[level]:
            return False
        free_at[level] = settled
        return True

    return _level_by_level(units, counts)


def first_crossings(units: list[Told], alpha: float, weight: float, *, latency: bool) -> list[int | None]:
    """For each rollout the place of the deciding unit among its counted units, None where nothing is decided."""
    if not latency:
        config = EProcessConfig(alpha=alpha)
        ways = paths(config, weight, [Events(u.canary, u.request_index, u.rate) for u in units])
        return [_first(way >= config.log_threshold) for way in ways]
    count = len(LEVELS)
    config = EProcessConfig(alpha=alpha, cap_factor=float(count))
    ways = paths(config, weight, [_at_level(u, level) for u in units for level in range(count)])
    found: list[int | None] = []
    for i, u in enumerate(units):
        mean = np.zeros(len(u))
        for level in range(count):
            way = np.concatenate(([0.0], ways[i * count + level]))
            mean += np.exp(way[np.cumsum(u.levels[:, level])]) / count
        found.append(_first(np.log(mean) >= config.log_threshold - 1e-12))
    return found


def _at_level(units: Told, level: int) -> Events:
    """The units that exceeded a level; by its definition stable's rate there is known."""
    above = units.levels[:, level]
    index = units.request_index[above]
    return Events(units.canary[above], index, np.full(len(index), LEVEL_RATES[level]))


def _first(reached: Flags) -> int | None:
    return int(np.argmax(reached)) if reached.any() else None


def decisions(
    rollouts: list[dict[str, Told]], weight: float = WEIGHT, alpha: float = ALPHA
) -> list[tuple[str, float] | None]:
    """For each rollout the signal that rolls it back and when its deciding unit was told (s), or None."""
    best: list[tuple[str, float] | None] = [None] * len(rollouts)
    for name, share in SHARES.items():
        latency = name == "latency"
        units = [counted(rollout[name], latency=latency) for rollout in rollouts]
        for i, place in enumerate(first_crossings(units, alpha * share, weight, latency=latency)):
            if place is None:
                continue
            at = float(units[i].settled_s[place])
            now = best[i]
            if now is None or at < now[1]:
                best[i] = (name, at)
    return best
