"""One signal's tests: against the canary at once, for it on what has settled. Pure.

The mathematics is monitoring/sequential's; this is how a rollout puts it together (analysis page, sections 3 to 7).
Whatever is remembered is bounded: settled events are counts by weight, since the forward test does not depend on
their order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

from monitoring.sequential.events import EProcessConfig
from monitoring.sequential.forward import ForwardConfig, NonInferiority, default_rho1, objective_log_e
from monitoring.sequential.intervals import RatioInterval, ratio_interval
from monitoring.sequential.planning import Standing, requests_to_decision, watched_requests_to_decision
from rollout.analysis.comparison import Kind, Ranks, Sighting, against, kind_of
from rollout.analysis.watched import WatchedSignal, largest_fine_rate
from rollout.observation import Comparison, Counts, SignalReading, Verdict
from rollout.specs import LATE_SIGNALS, SignalSpec
from serving.outcomes import Signal, SignalName

TAIL_RANK = 0.9
"""A scored answer counts as bad when it is among the worst tenth of those before it."""

PAIR_RANK = 0.5
"""A pair's difference counts when it is larger than half of those before it: the rest is noise of sampling."""

TAIL_FROM = 20
"""Scores that must be known before one can be among the worst tenth of them."""

LEAST_LATENCY_UNITS = 30
"""A canary passes no latency signal before it had this many settled requests: of fewer, too many may have been left
out (warm-up, moved sessions, answers of a few tokens) for the slow ones that are missing to mean anything."""

SILENT_UNITS = 300
"""A signal that nobody has told of after this many settled requests (both arms) is not being measured. A score that
is sampled at 1 % stays silent that long once in twenty times; the error goes away with the first score."""

INTERVAL_ALPHA = 0.05
"""Comparisons of an A/B test are 95 % intervals, each valid at all times."""

_ALWAYS_TOLD = frozenset(s.value for s in Signal)


def margin(spec: SignalSpec, weight: float) -> float:
    """rho1: the ratio of event rates that must be excluded at a canary weight (a probability)."""
    if spec.max_ratio is not None:
        return spec.max_ratio
    return default_rho1(weight) if 0.0 < weight < 1.0 else default_rho1(0.5)


NOTHING = Counts()


@lru_cache(maxsize=256)
def _non_inferiority(rho1: float, beta: float) -> NonInferiority:
    return NonInferiority(ForwardConfig(rho1=rho1, b=beta))


@dataclass(frozen=True, slots=True)
class Standings:
    """What the ledger counted for one signal, over all gateways that measure it.

    Attributes:
        canary: compared units of the canary.
        stable: of stable.
        settled: settled units of the canary, compared or watched, and those of them with an event.
        settled_both: settled units of both arms.
        watched_canary: watched units of the canary, at least all up to the last event known.
        watched_stable: of the old side, before the switch.
        told: whether any gateway has said that it measures this signal.

    """

    canary: int = 0
    stable: int = 0
    settled: Counts = NOTHING
    settled_both: int = 0
    watched_canary: int = 0
    watched_stable: int = 0
    told: bool = True


class SignalTest:
    """Everything known of one signal of one rollout.

    Args:
        spec: what was asked for.
        alpha: this signal's part of the chance of a false rollback.
        beta: the chance of passing a step with a version that is worse by the margin.
        paired: whether the rollout is judged by mirrored pairs.

    """

    def __init__(self, spec: SignalSpec, alpha: float, beta: float, *, paired: bool = False) -> None:
        self.kind = kind_of(spec.name)
        self.always_told = spec.name in _ALWAYS_TOLD
        self._late = spec.name in LATE_SIGNALS
        self.watched: WatchedSignal | None = None
        self.error = ""
        """Why its evidence can't be trusted any more; stays until the rollout ends."""
        self._spec = spec
        self._alpha = alpha
        self._beta = beta
        self._paired = paired
        config = EProcessConfig(alpha=alpha)
        self._threshold = config.log_threshold
        self._against = against(self.kind, config)
        self._ranks = Ranks()
        self._compared: dict[float, tuple[int, int]] = {}
        self._settled: dict[float, tuple[int, int]] = {}
        self._in_favour: tuple[float, float] | None = None
        self._scored = [0, 0]
        self._events = [0, 0]
        self._watched_events = [0, 0]
        self._interval: tuple[int, RatioInterval] | None = None

    @property
    def name(self) -> SignalName:
        """The signal."""
        return self._spec.name

    @property
    def ignored(self) -> bool:
        """Whether nothing is judged by it: mirrors are dropped under load, so their latency says nothing."""
        return self._paired and self.kind is Kind.LATENCY

    @property
    def crossed(self) -> bool:
        """Whether the comparison has ever condemned the canary."""
        return self._against.crossed

    # -- evidence -----------------------------------------------------------------------------------------------

    def observe(self, seen: Sighting) -> None:
        """Feed the rollback test, and an A/B test's report, with one unit's event."""
        self._against.update(seen)
        _bump(self._compared, on_canary=seen.on_canary, weight=seen.weight)

    def count(self, *, on_canary: bool) -> None:
        """Count one unit with an event, for people."""
        self._events[not on_canary] += 1

    def count_watched(self, *, on_canary: bool) -> None:
        """Count one watched unit with an event, for people."""
        self._watched_events[not on_canary] += 1

    def score(self, badness: float, *, on_canary: bool, weight: float) -> bool:
        """Feed the rollback test with a scored unit; True when it is a bad one, which counts as an event."""
        self._scored[not on_canary] += 1
        full = len(self._ranks) >= TAIL_FROM
        rank = self._ranks.rank(badness)
        self._against.update(Sighting(on_canary=on_canary, weight=weight, rank=rank))
        bad = full and rank >= TAIL_RANK
        if bad:
            self.count(on_canary=on_canary)
        return bad

    def score_pair(self, difference: float) -> bool:
        """Feed the rollback test with a pair's difference, canary's badness minus stable's; True when it is marked.

        The larger half of the differences counts as events, of the arm whose answer was the worse one.
        """
        self._scored[0] += 1
        self._scored[1] += 1
        if difference == 0.0:
            return False
        full = len(self._ranks) >= TAIL_FROM
        rank = self._ranks.rank(abs(difference))
        on_canary = difference > 0.0
        self._against.update(Sighting(on_canary=on_canary, weight=0.5, rank=rank))
        marked = full and rank >= PAIR_RANK
        if marked:
            self.count(on_canary=on_canary)
        return marked

    def settle(self, *, on_canary: bool, weight: float) -> None:
        """Feed what lets a rollout go forward with one settled unit's event."""
        self._in_favour = None
        _bump(self._settled, on_canary=on_canary, weight=weight)

    def watch(self, baseline: Counts) -> None:
        """From now on the canary is watched alone; `baseline` is the old side's own rate before that."""
        fine = largest_fine_rate(self._spec, baseline, self._alpha)
        if fine is not None and self.watched is None:
            self.watched = WatchedSignal(*fine)

    # -- what follows from it -------------------------------------------------------------------------------------

    def reading(self, units: Standings, weight: float) -> SignalReading:
        """The signal as it stands now. `weight` is the canary's present one, as a probability."""
        if self._paired:
            weight = 0.5
        compared = self._counts(units)
        rho1 = margin(self._spec, weight)
        if self._in_favour is None or self._in_favour[0] != rho1:
            self._in_favour = (rho1, _non_inferiority(rho1, self._beta).log_e(self._settled))
        comparison = self._in_favour[1]
        objective = self._objective(units)
        by, forward = "non-inferiority", comparison
        if objective is not None and objective > comparison:
            by, forward = "objective", objective
        needed = -math.log(self._beta)
        absolute = self.watched.log_e(units.watched_canary) if self.watched is not None else 0.0
        absolute_threshold = self.watched.threshold if self.watched is not None else 0.0
        failed = self.crossed or (self.watched is not None and absolute >= absolute_threshold)
        error = self._unmeasured(units)
        verdict = self._verdict(units, failed=failed, error=error, shown=forward >= needed)
        left: int | None = 0
        if error or not units.told:
            left = None
        elif verdict not in (Verdict.FAILED, Verdict.SUCCESSFUL):
            left = self._requests_left(compared, units, weight, rho1, comparison, objective)
        canary, stable = self._with_watched(compared, units)
        return SignalReading(
            name=self._spec.name,
            canary=canary,
            stable=stable,
            log_e=self._against.log_e,
            threshold=self._threshold,
            forward_log_e=forward,
            forward_threshold=needed,
            forward_by=by,
            objective_log_e=objective,
            absolute_log_e=absolute,
            absolute_threshold=absolute_threshold,
            gating=self._spec.gating and not self.ignored,
            verdict=verdict,
            error=error,
            requests_to_decision=left,
        )

    def compare(self, units: Standings) -> Comparison | None:
        """The report of an A/B test; None for signals that are no events."""
        if self.kind is not Kind.EVENT:
            return None
        seen = sum(canary + stable for canary, stable in self._compared.values())
        if self._interval is None or self._interval[0] != seen:
            self._interval = (seen, ratio_interval(self._compared, alpha=INTERVAL_ALPHA))
        found = self._interval[1]
        canary, stable = self._counts(units)
        return Comparison(
            name=self._spec.name,
            canary=canary,
            stable=stable,
            ratio=found.estimate if 0.0 <= found.estimate < float("inf") else None,
            ratio_low=found.low if found.low > 0.0 else None,
            ratio_high=found.high if found.high < float("inf") else None,
            log_e=found.log_e,
        )

    def _counts(self, units: Standings) -> tuple[Counts, Counts]:
        """Events and units that were compared, canary's and stable's."""
        n = tuple(self._scored) if self.kind is Kind.SCORE else (units.canary, units.stable)
        canary, stable = (Counts(events=k, n=max(m, k)) for k, m in zip(self._events, n, strict=True))
        return canary, stable

    def _with_watched(self, compared: tuple[Counts, Counts], units: Standings) -> tuple[Counts, Counts]:
        """Events and units of both arms, those included that were watched without another arm."""
        if not (units.watched_canary or units.watched_stable or any(self._watched_events)):
            return compared
        both = zip(compared, self._watched_events, (units.watched_canary, units.watched_stable), strict=True)
        canary, stable = (
            Counts(events=seen.events + events, n=max(seen.n + n, seen.events + events)) for seen, events, n in both
        )
        return canary, stable

    def _requests_left(
        self,
        compared: tuple[Counts, Counts],
        units: Standings,
        weight: float,
        rho1: float,
        comparison: float,
        objective: float | None,
    ) -> int | None:
        """About how many more canary requests (pairs, of a shadow) a decision takes; None where that can't be told.

        Of scores it can't: how fast they tell depends on their whole distribution.
        """
        divided = 0.0 < weight < 1.0
        if self.kind is Kind.SCORE or not (divided or self.watched is not None):
            return None
        canary = compared[0] if divided else Counts(events=self._watched_events[0], n=units.watched_canary)
        standing = Standing(
            weight=weight,
            canary_events=canary.events,
            canary_units=max(canary.n, canary.events),
            stable_events=compared[1].events,
            stable_units=compared[1].n,
            log_e=self._against.log_e,
            alpha=self._alpha,
            forward_log_e=comparison,
            rho1=rho1,
            objective_log_e=objective,
            p_max=None if objective is None else self._spec.max_rate,
            b=self._beta,
        )
        if divided or self.watched is None:
            return requests_to_decision(standing).requests
        absolute = self.watched.log_e(units.watched_canary)
        standing = replace(standing, log_e=absolute, alpha=self.watched.alpha)
        return watched_requests_to_decision(standing, self.watched.p0).requests

    def _unmeasured(self, units: Standings) -> str:
        if self.error or units.told or self._late or units.settled_both < SILENT_UNITS:
            return self.error
        return (
            f"no gateway measures {self._spec.name}: nothing was told of it in {units.settled_both} settled requests "
            f"(limit {SILENT_UNITS}); set it up on the gateways, or leave the signal out"
        )

    def _verdict(self, units: Standings, *, failed: bool, error: str, shown: bool) -> Verdict:
        if failed:
            return Verdict.FAILED
        if error:
            return Verdict.ERROR
        few = self.kind is Kind.LATENCY and units.settled.n < LEAST_LATENCY_UNITS
        if shown and units.told and not few:
            return Verdict.SUCCESSFUL
        return Verdict.RUNNING if units.canary or units.watched_canary or self._scored[0] else Verdict.PENDING

    def _objective(self, units: Standings) -> float | None:
        """Evidence that the canary's own rate is below `maxRate`; None for what is only ever relative.

        Who did not vote may yet, or never does: of late signals no rate of all requests can be told.
        """
        if self._late or self.kind in (Kind.LATENCY, Kind.SCORE):
            return None
        n = units.settled.n if units.told else 0
        return objective_log_e(max(n, units.settled.events), units.settled.events, self._spec.max_rate)


def _bump(counts: dict[float, tuple[int, int]], *, on_canary: bool, weight: float) -> None:
    canary, stable = counts.get(weight, (0, 0))
    counts[weight] = (canary + on_canary, stable + (not on_canary))
