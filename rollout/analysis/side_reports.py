"""What is told beside the signals: the split, how alike answers are, the fewest requests that could show it. Pure.

Analysis page, sections 5, 7 and 8.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from monitoring.sequential.planning import least_canary_requests, least_watched_requests
from monitoring.sequential.sample_ratio import SAMPLE_RATIO_ALPHA, sample_ratio_over_steps
from rollout.analysis.comparison import Kind, kind_of
from rollout.analysis.sources import Counted, Source
from rollout.analysis.watched import WatchedSignal
from rollout.observation import SampleRatio, SignalReading, Similarity
from serving.outcomes import SignalName
from serving.traffic import Role


def sample_ratio(sources: Iterable[Source], roles: Mapping[str, Role]) -> SampleRatio | None:
    """Whether each arm got its share of first sights; None before any.

    Gateways may see the same session, so their counts can't be added up as if they were independent. Each has a test
    of its own, the g-th one at `alpha / (g (g + 1))`: alpha together, however many there will be (union bound).

    Args:
        sources: in the order in which they were first heard of.
        roles: by digest, the revisions that are compared.

    """
    found: list[float] = []
    canary = stable = 0
    for source in sources:
        counts = _first_sights(source, roles)
        if counts:
            place = len(found) + 1
            found.append(sample_ratio_over_steps(counts) - math.log(place * (place + 1)))
            canary += sum(n1 for n1, _ in counts.values())
            stable += sum(n0 for _, n0 in counts.values())
    if not found:
        return None
    return SampleRatio(log_e=max(found), threshold=-math.log(SAMPLE_RATIO_ALPHA), canary=canary, stable=stable)


def _first_sights(source: Source, roles: Mapping[str, Role]) -> dict[float, tuple[int, int]]:
    """By weight in (0, 1), the canary's and stable's."""
    counts: dict[float, tuple[int, int]] = {}
    for total in source.totals.values():
        if total.first_sights and 0 < total.weight < 100:
            canary, stable = counts.get(total.weight / 100.0, (0, 0))
            ours = roles[total.digest] is Role.CANARY
            counts[total.weight / 100.0] = (
                canary + (total.first_sights if ours else 0),
                stable + (0 if ours else total.first_sights),
            )
    return counts


def similarity(canary: Counted, stable: Counted) -> Similarity:
    """How alike the answers of mirrored pairs are; a pair is told with one of its two revisions, or with both."""
    pairs = canary if canary.similarity_n else stable
    again = stable if stable.baseline_n else canary
    return Similarity(
        pairs=pairs.similarity_n,
        to_stable=pairs.similarity_sum / pairs.similarity_n if pairs.similarity_n else None,
        baseline_pairs=again.baseline_n,
        baseline=again.baseline_sum / again.baseline_n if again.baseline_n else None,
    )


def lower_bound(readings: Iterable[SignalReading], watched: Mapping[SignalName, WatchedSignal | None]) -> int | None:
    """n_min at the rates seen, for the signal with the most evidence against the canary; None while there is none.

    Scores have no rate, and slow units are thinned, so neither has a bound.
    """
    bounds = [found for r in readings for found in _bounds(r, watched.get(r.name))]
    bound = max(bounds)[1] if bounds else math.inf
    return math.ceil(bound) if math.isfinite(bound) else None


def _bounds(reading: SignalReading, watched: WatchedSignal | None) -> Iterable[tuple[float, float]]:
    """Pairs of (evidence above the threshold, bound), by comparison and for a watched revision."""
    if kind_of(reading.name) not in (Kind.EVENT, Kind.COUNTER) or not reading.canary.n:
        return
    p_canary = reading.canary.events / reading.canary.n
    if reading.log_e > 0.0 and reading.stable.n:
        share = reading.canary.n / (reading.canary.n + reading.stable.n)
        p_stable = reading.stable.events / reading.stable.n
        bound = least_canary_requests(p_stable, p_canary, share, math.exp(-reading.threshold))
        yield reading.log_e - reading.threshold, bound
    if watched is not None and reading.absolute_log_e > 0.0:
        bound = least_watched_requests(watched.p0, p_canary, watched.alpha)
        yield reading.absolute_log_e - reading.absolute_threshold, bound
