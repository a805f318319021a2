"""The evidence of one rollout: a fold over increments, from which the readings of all signals follow. Pure.

Two streams come in (serving/outcomes.py). Events feed the rollback tests the moment they are known. Cumulative
totals with their settlement watermark feed what lets a rollout go forward: an event counts for non-inferiority only
once every admission before it has its outcome, and the objectives use settled units alone (analysis.md, section 2).

Nothing is booked twice: events carry a number per (gateway, boot), totals replace each other by their key.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from monitoring.sequential.planning import least_canary_requests, share_alpha
from rollout.analysis.signal import LATENCY, SignalTest
from rollout.observation import Exposure, SignalReading
from rollout.specs import AnalysisSpec, RolloutSpec, SignalSpec
from serving.outcomes import Cause, Event, SignalName, Total
from serving.specs import Frozen
from serving.traffic import Role

MAX_SESSIONS = 1_000_000
"""Sessions whose first event is remembered, per rollout. Beyond it, new sessions' events are not booked: evidence is
lost, which is safe, where counting one session twice would not be."""


class EvidenceIncrement(Frozen):
    """What one gateway added to the evidence of one rollout; as it stands in the event log."""

    rollout: str
    gateway: str
    boot: str
    at: float = 0.0
    events: tuple[Event, ...] = ()
    totals: tuple[Total, ...] = ()
    settled_through: int = 0


@dataclass(slots=True)
class _Source:
    """What is known of one start of one gateway."""

    last_event: int = 0
    settled_through: int = 0
    pending: list[Event] = field(default_factory=list)
    totals: dict[tuple[str, int], Total] = field(default_factory=dict)


class Ledger:
    """Books the evidence of one rollout and reads the signals off it."""

    def __init__(self, rollout: str, spec: RolloutSpec, *, canary: str, stable: str | None) -> None:
        self.rollout = rollout
        self.weight = 0
        """The canary's weight in percent now: it decides the margin of going forward, and the estimates."""
        self._analysis: AnalysisSpec = spec.analysis
        self._canary = canary
        self._stable = stable
        self._sources: dict[tuple[str, str], _Source] = {}
        self._sessions: set[tuple[SignalName, str]] = set()
        self._slow_until: dict[SignalName, float] = {}
        self._tests: dict[SignalName, SignalTest] = {
            s.name: SignalTest(s, alpha, spec.analysis.beta) for s, alpha in _alphas(spec.analysis)
        }

    def add(self, increment: EvidenceIncrement) -> bool:
        """Book an increment; False when it was of another rollout or held nothing new."""
        if increment.rollout != self.rollout:
            return False
        source = self._source(increment.gateway, increment.boot)
        fresh = [e for e in increment.events if e.sequence > source.last_event]
        for unit in _by_unit(fresh):
            source.last_event = unit[-1].sequence
            self._book(unit, source)
        changed = bool(fresh)
        for total in increment.totals:
            key = (total.digest, total.weight)
            known = source.totals.get(key)
            if known is not None and (total.admitted, total.settled) < (known.admitted, known.settled):
                continue  # late: cumulative counters only grow
            if total != known:
                source.totals[key] = total
                changed = True
        if increment.settled_through > source.settled_through:
            source.settled_through = increment.settled_through
            changed = True
        self._settle(source)
        return changed

    def watches(self, signal: SignalName) -> bool:
        """Whether events of this signal are evidence here; the others need not be kept."""
        return signal in self._tests

    def _source(self, gateway: str, boot: str) -> _Source:
        key = (gateway, boot)
        if key not in self._sources:
            # A gateway that started again will never settle what its last start left open.
            for (name, _), old in self._sources.items():
                if name == gateway:
                    old.settled_through = max([old.settled_through, *(e.admission for e in old.pending)])
                    self._settle(old)
            self._sources[key] = _Source()
        return self._sources[key]

    def _book(self, unit: list[Event], source: _Source) -> None:
        first = unit[0]
        test = self._tests.get(first.signal)
        if test is None or not self._first_of_session(first) or not self._apart(first):
            return
        on_canary = first.arm is Role.CANARY
        test.count(on_canary=on_canary)
        # A broken connection may be the machine's doing: it holds up promotion (through the totals), but it is no
        # evidence against the version. An engine that keeps dying is caught by its restarts (decide.py).
        if first.cause is not Cause.ENDPOINT_LOST:
            test.observe(on_canary=on_canary, weight=first.weight / 100.0, levels=[e.level for e in unit])
        source.pending.append(first)

    def _apart(self, event: Event) -> bool:
        """Whether a slow unit began after the last one that counted had ended.

        One hiccup slows every answer that is under way on a replica. Booked one by one they would be as many
        independent proofs of one accident, and the next event would be likelier to be the same arm's, which the
        test's null forbids. Both arms are thinned together: apart, the one with less traffic would be spared.
        """
        if event.signal not in LATENCY:
            return True
        if event.admitted_at < self._slow_until.get(event.signal, float("-inf")):
            return False
        self._slow_until[event.signal] = event.settled_at
        return True

    def _first_of_session(self, event: Event) -> bool:
        """Whether this is a session's first event of this signal; the others of a sticky session count for nobody."""
        if event.session is None:
            return True
        key = (event.signal, event.session)
        if key in self._sessions or len(self._sessions) >= MAX_SESSIONS:
            return False
        self._sessions.add(key)
        return True

    def _settle(self, source: _Source) -> None:
        open_still: list[Event] = []
        for event in source.pending:
            if event.admission <= source.settled_through:
                self._tests[event.signal].settle(on_canary=event.arm is Role.CANARY, weight=event.weight / 100.0)
            else:
                open_still.append(event)
        source.pending = open_still

    def _totals(self, digest: str | None) -> Iterable[Total]:
        return (t for s in self._sources.values() for t in s.totals.values() if t.digest == digest)

    def readings(self) -> tuple[SignalReading, ...]:
        """Every watched signal, in the spec's order."""
        canary_n = sum(t.admitted for t in self._totals(self._canary))
        stable_n = sum(t.admitted for t in self._totals(self._stable))
        settled_n = sum(t.settled for t in self._totals(self._canary))
        weight = self.weight / 100.0
        found: list[SignalReading] = []
        for signal in self._analysis.signals:
            settled_events = sum(_settled_events(t, signal.name) for t in self._totals(self._canary))
            found.append(
                self._tests[signal.name].reading(
                    canary_n=canary_n,
                    stable_n=stable_n,
                    settled_n=settled_n,
                    settled_events=settled_events,
                    weight=weight,
                )
            )
        return tuple(found)

    def exposure(self) -> Exposure:
        """How many requests the canary was given, beside the fewest that could have shown its worst signal."""
        canary = list(self._totals(self._canary))
        first = [t.first_admitted_at for t in canary if t.first_admitted_at is not None]
        last = [t.last_admitted_at for t in canary if t.last_admitted_at is not None]
        return Exposure(
            canary_requests=sum(t.admitted for t in canary),
            lower_bound=self._lower_bound(),
            first_admitted_at=min(first, default=None),
            last_admitted_at=max(last, default=None),
        )

    def _lower_bound(self) -> int | None:
        """n_min of analysis.md, section 8, at the rates seen, for the signal with the most evidence against it."""
        readings = [r for r in self.readings() if r.canary.n and r.stable.n and r.log_e > 0]
        if not readings:
            return None
        worst = max(readings, key=lambda r: r.log_e - r.threshold)
        share = worst.canary.n / (worst.canary.n + worst.stable.n)
        p_canary, p_stable = worst.canary.events / worst.canary.n, worst.stable.events / worst.stable.n
        bound = least_canary_requests(p_stable, p_canary, share, math.exp(-worst.threshold))
        return math.ceil(bound) if math.isfinite(bound) else None


def _alphas(analysis: AnalysisSpec) -> list[tuple[SignalSpec, float]]:
    """Each signal with its part of alpha: half to `error`, the rest in equal parts unless shares are given."""
    weights = {s.name.value: s.share or 1.0 for s in analysis.signals}
    shares = share_alpha(analysis.alpha, weights)
    return [(s, shares[s.name.value]) for s in analysis.signals]


def _settled_events(total: Total, signal: SignalName) -> int:
    return total.settled_events.get(signal, 0)


def _by_unit(events: list[Event]) -> list[list[Event]]:
    """Put together the levels that one unit's latency exceeded: they must move their tests in one step."""
    units: list[list[Event]] = []
    for event in events:
        last = units[-1][-1] if units else None
        together = last is not None and event.level and (last.signal, last.admission) == (event.signal, event.admission)
        if together:
            units[-1].append(event)
        else:
            units.append([event])
    return units
