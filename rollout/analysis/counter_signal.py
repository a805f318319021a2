"""A signal that is read as counters from a metrics store, for engines behind somebody else's gateway. Pure.

The readings are in the event log like gateways' events, so a fold of the log gives the same evidence again. How they
become evidence, and why counters of two arms that were read at different moments do no harm: monitoring/sequential/
counters.py. Counters hold requests that have ended, so a request that hangs is in none of them: what lets a
rollout go forward here is as prompt as whoever counts, which is why gateways' own counts are the default.
"""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field

from monitoring.sequential.absolute import RateTest
from monitoring.sequential.counters import CounterMixture, Sample, Window
from monitoring.sequential.forward import ForwardConfig, NonInferiority, objective_log_e
from monitoring.sequential.planning import Standing, requests_to_decision
from rollout.analysis.signal import margin
from rollout.analysis.watched import DEFAULT_MAX_RATE
from rollout.observation import Counts, SignalReading, Verdict
from rollout.specs import SignalSpec
from serving.outcomes import SignalName
from serving.specs import Frozen

WATCHED = 100
"""The weight of a canary that has all traffic."""


class ArmCounters(Frozen):
    """Cumulative counters of one revision."""

    events: Annotated[int, Field(ge=0)]
    units: Annotated[int, Field(ge=0)]


class CounterReading(Frozen):
    """One reading of one signal, or why there is none.

    `number` counts the readings of one start of the reader. `weight` is the canary's in percent, in force (by all
    that divide traffic) since long enough that what is counted was admitted under it; 0 when it was not.
    """

    signal: SignalName
    number: Annotated[int, Field(ge=1)]
    at: float
    weight: Annotated[int, Field(ge=0, le=100)] = 0
    canary: ArmCounters | None = None
    stable: ArmCounters | None = None
    error: str = ""


class CounterSignal:
    """Everything known of one signal that is read as counters.

    Args:
        spec: what was asked for.
        alpha: this signal's part of the chance of a false rollback.
        beta: the chance of passing a step with a version that is worse by the margin.

    """

    def __init__(self, spec: SignalSpec, alpha: float, beta: float) -> None:
        self._spec = spec
        self._alpha = alpha
        self._beta = beta
        self._mixture = CounterMixture()
        self._state = self._mixture.start()
        self._window: Window | None = None
        self._last: Sample | None = None
        self._boot = ""
        self._crossed = False
        self._absolute_crossed = False
        self._log_e = 0.0
        self._closed: dict[float, tuple[int, int]] = {}
        self._canary = Counts()
        self._stable = Counts()
        # Whoever gives no rate has not said what is too high; a query may count anything.
        self._rate = RateTest(spec.max_rate) if spec.max_rate != DEFAULT_MAX_RATE else None
        self._rate_state = self._rate.start() if self._rate else None
        self._error = ""
        self._read = False

    def add(self, reading: CounterReading, boot: str) -> None:
        """Take in one reading, in the order of the log."""
        self._read = True
        self._error = reading.error
        if reading.canary is None or (reading.stable is None and 0 < reading.weight < WATCHED):
            self._error = reading.error or "a reading without both revisions' counters"
            return
        stable = reading.stable or ArmCounters(events=0, units=0)
        now = Sample(reading.canary.events, reading.canary.units, stable.events, stable.units)
        before, same_reader = self._last, boot == self._boot
        self._last, self._boot = now, boot
        weight = reading.weight / 100.0
        # A reset, or another reader, or another weight: what happened since the last reading belongs to no window.
        goes_on = before is not None and same_reader and not now.fell(before)
        open_now = self._window
        if open_now is not None and not (goes_on and open_now.weight == weight):
            self._close(open_now)
            open_now = None
        if not 0 < reading.weight <= WATCHED:
            return
        if open_now is None:
            self._window = Window(weight=weight, first=now)
            return
        assert before is not None
        self._window = open_now.read(now)
        self._count(before, now, compared=reading.weight < WATCHED)
        self._judge()

    def reading(self, weight: float) -> SignalReading:
        """The signal as it stands now. `weight` is the canary's present one, as a probability."""
        rho1 = margin(self._spec, weight)
        comparison = NonInferiority(ForwardConfig(rho1=rho1, b=self._beta)).log_e(self._in_favour())
        objective = objective_log_e(self._canary.n, min(self._canary.events, self._canary.n), self._spec.max_rate)
        by, forward = max((("non-inferiority", comparison), ("objective", objective)), key=lambda pair: pair[1])
        needed = -math.log(self._beta)
        left = None
        if 0.0 < weight < 1.0 and not self._error:
            left = requests_to_decision(self._standing(weight, rho1, comparison, objective)).requests
        return SignalReading(
            name=self._spec.name,
            canary=self._canary,
            stable=self._stable,
            log_e=self._log_e,
            threshold=-math.log(self._alpha),
            forward_log_e=forward,
            forward_threshold=needed,
            forward_by=by,
            objective_log_e=objective,
            absolute_log_e=self._absolute(),
            absolute_threshold=-math.log(self._alpha) if self._rate else 0.0,
            gating=self._spec.gating,
            verdict=self._verdict(forward >= needed),
            error=self._error,
            requests_to_decision=left,
        )

    def _standing(self, weight: float, rho1: float, comparison: float, objective: float) -> Standing:
        return Standing(
            weight=weight,
            canary_events=self._canary.events,
            canary_units=self._canary.n,
            stable_events=self._stable.events,
            stable_units=self._stable.n,
            log_e=self._log_e,
            alpha=self._alpha,
            forward_log_e=comparison,
            rho1=rho1,
            objective_log_e=objective,
            p_max=self._spec.max_rate,
            b=self._beta,
        )

    def _verdict(self, shown: bool) -> Verdict:
        if self._crossed or self._absolute_crossed:
            return Verdict.FAILED
        if self._error:
            return Verdict.ERROR
        if shown:
            return Verdict.SUCCESSFUL
        return Verdict.RUNNING if self._canary.n else Verdict.PENDING

    def _count(self, before: Sample, now: Sample, *, compared: bool) -> None:
        events = now.canary_events - before.canary_events
        units = now.canary_units - before.canary_units
        self._canary = Counts(events=self._canary.events + events, n=self._canary.n + units)
        if compared:
            self._stable = Counts(
                events=self._stable.events + now.stable_events - before.stable_events,
                n=self._stable.n + now.stable_units - before.stable_units,
            )
        elif self._rate is not None and self._rate_state is not None:
            self._rate_state = self._rate.update(self._rate_state, max(units, events), events)

    def _judge(self) -> None:
        window = self._window
        if window is not None and window.weight < 1.0:
            canary, stable = window.against()
            self._log_e = self._mixture.log_e(self._state, canary, stable, window.weight)
        self._crossed = self._crossed or self._log_e >= -math.log(self._alpha)
        self._absolute_crossed = self._absolute_crossed or (
            self._rate is not None and self._absolute() >= -math.log(self._alpha)
        )

    def _absolute(self) -> float:
        return self._rate.log_e(self._rate_state) if self._rate and self._rate_state else 0.0

    def _close(self, window: Window) -> None:
        if window.weight < 1.0:
            self._state = self._mixture.close(self._state, *window.against(), window.weight)
            self._closed = _added(self._closed, window)
        self._window = None

    def _in_favour(self) -> dict[float, tuple[int, int]]:
        window = self._window
        return self._closed if window is None or window.weight >= 1.0 else _added(self._closed, window)


def _added(counts: dict[float, tuple[int, int]], window: Window) -> dict[float, tuple[int, int]]:
    canary, stable = window.in_favour()
    had = counts.get(window.weight, (0, 0))
    return counts | {window.weight: (had[0] + canary, had[1] + stable)}
