"""One signal's tests: against the canary at once, for it on what has settled. Pure.

The mathematics is monitoring/sequential's; this is how a rollout puts it together (analysis.md, sections 3, 4, 6).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from monitoring.sequential.events import AveragedLevels, CappedMixture, EProcessConfig
from monitoring.sequential.forward import (
    ForwardConfig,
    ForwardState,
    NonInferiority,
    default_rho1,
    objective_log_e,
)
from monitoring.sequential.planning import Standing, requests_to_decision
from rollout.observation import Counts, SignalReading, Verdict
from rollout.specs import SignalSpec
from serving.outcomes import LEVELS, Signal

LATENCY = frozenset({Signal.SLOW_TOKENS, Signal.SLOW_FIRST_TOKEN})
"""Signals judged at several quantiles. They have no absolute objective: at the median half of all is slow."""


class _Against(Protocol):
    """The rollback test of one signal."""

    @property
    def log_e(self) -> float: ...

    @property
    def crossed(self) -> bool: ...

    def update(self, levels: Collection[int], canary: bool, weight: float) -> None: ...


class _Plain:
    """One process: an event is an event."""

    def __init__(self, config: EProcessConfig) -> None:
        self._process = CappedMixture(config)
        self._state = self._process.start()

    @property
    def log_e(self) -> float:
        return self._state.log_w

    @property
    def crossed(self) -> bool:
        return self._state.crossed

    def update(self, levels: Collection[int], canary: bool, weight: float) -> None:
        del levels
        self._state = self._process.update(self._state, canary, weight)


class _Averaged:
    """One process per quantile, averaged."""

    def __init__(self, config: EProcessConfig) -> None:
        self._process = AveragedLevels(config, len(LEVELS))
        self._state = self._process.start()

    @property
    def log_e(self) -> float:
        return self._process.log_e(self._state)

    @property
    def crossed(self) -> bool:
        return self._state.crossed

    def update(self, levels: Collection[int], canary: bool, weight: float) -> None:
        self._state = self._process.update(self._state, levels, canary, weight)


class SignalTest:
    """Everything known of one signal of one rollout.

    Args:
        spec: what was asked for.
        alpha: this signal's part of the chance of a false rollback.
        beta: the chance of passing a step with a version that is worse by the margin.

    """

    def __init__(self, spec: SignalSpec, alpha: float, beta: float) -> None:
        self._spec = spec
        self._alpha = alpha
        self._beta = beta
        config = EProcessConfig(alpha=alpha)
        self._threshold = config.log_threshold
        self._against: _Against = _Averaged(config) if spec.name in LATENCY else _Plain(config)
        self._settled: list[tuple[bool, float]] = []
        self._for: dict[float, tuple[NonInferiority, ForwardState]] = {}
        self._canary = 0
        self._stable = 0

    def observe(self, *, on_canary: bool, weight: float, levels: Collection[str]) -> None:
        """Feed the rollback test with one unit's event. `weight` is a probability; `levels` are those exceeded."""
        indexes = [LEVELS.index(level) for level in levels if level in LEVELS]
        self._against.update(indexes, on_canary, weight)

    def count(self, *, on_canary: bool) -> None:
        """Count one unit with an event, for people."""
        if on_canary:
            self._canary += 1
        else:
            self._stable += 1

    def settle(self, *, on_canary: bool, weight: float) -> None:
        """Feed what lets a rollout go forward with one settled unit's event."""
        self._settled.append((on_canary, weight))
        for rho1, (test, state) in self._for.items():
            self._for[rho1] = (test, test.update(state, on_canary, weight))

    def reading(
        self, *, canary_n: int, stable_n: int, settled_n: int, settled_events: int, weight: float
    ) -> SignalReading:
        """The signal as it stands now. `weight` is the canary's present one, as a probability."""
        rho1 = self._rho1(weight)
        comparison = self._forward(rho1).log_e
        objective = self._objective(settled_n, settled_events)
        by, forward = max((("non-inferiority", comparison), ("objective", objective)), key=lambda pair: pair[1])
        threshold = ForwardConfig(rho1=rho1, b=self._beta).log_threshold
        canary = Counts(events=self._canary, n=max(canary_n, self._canary))
        stable = Counts(events=self._stable, n=max(stable_n, self._stable))
        left = None
        if 0.0 < weight < 1.0:
            standing = Standing(
                weight=weight,
                canary_events=canary.events,
                canary_units=canary.n,
                stable_events=stable.events,
                stable_units=stable.n,
                log_e=self._against.log_e,
                alpha=self._alpha,
                forward_log_e=comparison,
                rho1=rho1,
                objective_log_e=None if self._spec.name in LATENCY else objective,
                p_max=None if self._spec.name in LATENCY else self._spec.max_rate,
                b=self._beta,
            )
            left = requests_to_decision(standing).requests
        return SignalReading(
            name=self._spec.name,
            canary=canary,
            stable=stable,
            log_e=self._against.log_e,
            threshold=self._threshold,
            forward_log_e=forward,
            forward_threshold=threshold,
            forward_by=by,
            gating=self._spec.gating,
            verdict=self._verdict(forward >= threshold, canary.n),
            requests_to_decision=left,
        )

    def _verdict(self, shown: bool, units: int) -> Verdict:
        if self._against.crossed:
            return Verdict.FAILED
        if shown:
            return Verdict.SUCCESSFUL
        return Verdict.RUNNING if units else Verdict.PENDING

    def _rho1(self, weight: float) -> float:
        if self._spec.max_ratio is not None:
            return self._spec.max_ratio
        return default_rho1(weight) if 0.0 < weight < 1.0 else default_rho1(0.5)

    def _forward(self, rho1: float) -> ForwardState:
        """The non-inferiority test at a margin; a new margin reads all settled events so far."""
        if rho1 not in self._for:
            test = NonInferiority(ForwardConfig(rho1=rho1, b=self._beta))
            state = test.start()
            for on_canary, weight in self._settled:
                state = test.update(state, on_canary, weight)
            self._for[rho1] = (test, state)
        return self._for[rho1][1]

    def _objective(self, n: int, events: int) -> float:
        """Evidence that the canary's own rate is below `max_rate`; none for latency, which is only ever relative."""
        if self._spec.name in LATENCY:
            return float("-inf")
        return objective_log_e(max(n, events), events, self._spec.max_rate)
