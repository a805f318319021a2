"""The evidence of one rollout: a fold over increments, from which the readings of all signals follow. Pure.

Three streams come in. Events (serving/outcomes.py) feed the rollback tests the moment they are known. Cumulative
totals with their settlement watermark feed what lets a rollout go forward: an event counts for non-inferiority only
once every admission before it has its outcome, and the objectives use settled units alone (analysis page, section 2).
Readings of counters (counter_signal.py) are for engines behind somebody else's gateway.

Nothing is booked twice: events and readings carry a number per (gateway, boot), totals replace each other by their
key. Everything that grows is bounded; where a bound is reached, the signal says so and holds (`Verdict.ERROR`).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

from monitoring.sequential.planning import share_alpha
from monitoring.sequential.scores import sampled_weight
from rollout.analysis.comparison import Kind, Sighting, kind_of
from rollout.analysis.counter_signal import CounterReading, CounterSignal
from rollout.analysis.gate import GateSignal
from rollout.analysis.side_reports import lower_bound, sample_ratio, similarity
from rollout.analysis.signal import SignalTest, Standings
from rollout.analysis.sources import Counted, Pending, Source
from rollout.analysis.units import WATCHED, Units
from rollout.analysis.watched import WatchedSignal
from rollout.observation import Comparison, Counts, Exposure, SampleRatio, SignalReading, Similarity
from rollout.specs import AnalysisSpec, RolloutSpec, SignalSpec
from serving.outcomes import LEVELS, Cause, Event, SignalName, Total
from serving.specs import Frozen
from serving.traffic import Role

MAX_PENDING = 100_000
"""Events per gateway that wait for settlement. Requests end by their deadline, so more means that a gateway's
watermark stands still; what is not kept could have spoken against going forward, so the signals are Errors then."""


class EvidenceIncrement(Frozen):
    """What one gateway, or one reader of counters, added to the evidence of one rollout; as it is in the event log."""

    rollout: str
    gateway: str
    boot: str
    at: float = 0.0
    events: tuple[Event, ...] = ()
    totals: tuple[Total, ...] = ()
    settled_through: int = 0
    counters: tuple[CounterReading, ...] = ()


class Ledger:
    """Books the evidence of one rollout and reads the signals off it. What is read is kept until something changes.

    Args:
        rollout: its id.
        spec: what was asked for.
        canary: the digest that is judged.
        stable: the digest it is compared with; None when there is none.

    """

    def __init__(self, rollout: str, spec: RolloutSpec, *, canary: str, stable: str | None) -> None:
        self.rollout = rollout
        self._weight = 0
        self._analysis: AnalysisSpec = spec.analysis
        self._digests: dict[str, Role] = {canary: Role.CANARY} | ({} if stable is None else {stable: Role.STABLE})
        self._paired = spec.strategy.shadow is not None
        self._reports = spec.strategy.ab is not None
        self._sources: dict[tuple[str, str], Source] = {}
        self._units = Units()
        self._compared = {role: Counted() for role in Role}
        self._watched = {role: Counted() for role in Role}
        self._watching = False
        self._tests: dict[SignalName, SignalTest] = {}
        self._counters: dict[SignalName, CounterSignal | GateSignal] = {}
        for s in spec.analysis.signals:
            if kind_of(s.name) is Kind.GATE:
                self._counters[s.name] = GateSignal(s)
        for s, alpha in _alphas(spec.analysis):
            if kind_of(s.name) is Kind.COUNTER:
                self._counters[s.name] = CounterSignal(s, alpha, spec.analysis.beta)
            else:
                self._tests[s.name] = SignalTest(s, alpha, spec.analysis.beta, paired=self._paired)
        self._readings: tuple[SignalReading, ...] | None = None
        self._exposure: Exposure | None = None
        self._ratio: tuple[SampleRatio | None] | None = None
        self._comparisons: tuple[Comparison, ...] | None = None

    @property
    def weight(self) -> int:
        """The canary's weight in percent now: it decides the margin of going forward, and the estimates."""
        return self._weight

    @weight.setter
    def weight(self, percent: int) -> None:
        if percent != self._weight:
            self._weight = percent
            self._changed()

    # -- booking ------------------------------------------------------------------------------------------------

    def add(self, increment: EvidenceIncrement) -> bool:
        """Book an increment; False when it was of another rollout or held nothing new."""
        if increment.rollout != self.rollout:
            return False
        source = self._source(increment.gateway, increment.boot)
        changed = False
        if increment.events:
            fresh = [e for e in increment.events if e.sequence > source.last_event]
            for unit in _by_unit(fresh):
                source.last_event = unit[-1].sequence
                self._book(unit, source)
            changed = bool(fresh)
        for total in increment.totals:
            changed = self._total(total, source) or changed
        if increment.totals:
            changed = source.note_totals(max(increment.settled_through, source.settled_through)) or changed
        for reading in increment.counters:
            changed = self._counter(reading, source, increment.boot) or changed
        if increment.settled_through > source.settled_through:
            source.settled_through = increment.settled_through
            changed = True
        self._settle(source)
        if changed:
            self._changed()
        return changed

    def watches(self, signal: SignalName) -> bool:
        """Whether events of this signal are evidence here; the others need not be kept."""
        return signal in self._tests

    def _changed(self) -> None:
        self._readings = self._exposure = self._ratio = self._comparisons = None

    def _source(self, gateway: str, boot: str) -> Source:
        key = (gateway, boot)
        found = self._sources.get(key)
        if found is None:
            # A gateway that started again will never settle what its last start left open.
            for (name, _), old in self._sources.items():
                if name == gateway:
                    old.settled_through = max([old.settled_through, *(p.admission for p in old.pending)])
                    self._settle(old)
            found = self._sources[key] = Source()
        return found

    def _book(self, unit: list[Event], source: Source) -> None:
        first = unit[0]
        test = self._tests.get(first.signal)
        if test is None or test.ignored:
            return
        source.told.add(first.signal)
        self._units.span += source.note_event(first.admission)
        refusal = _refusal(unit, test, paired=self._paired)
        if refusal:
            test.error = test.error or refusal
            return
        if first.weight == WATCHED:
            self._book_watched(first, test, source)
        elif test.kind is Kind.SCORE:
            self._book_score(first, test, source)
        else:
            self._book_event(unit, test, source)

    def _book_event(self, unit: list[Event], test: SignalTest, source: Source) -> None:
        rate = self._units.stable_rate(unit[0])
        unit = [e for e in unit if self._first_of_session(e, test) and self._units.apart(e)]
        if not unit:
            return
        first = unit[0]
        on_canary, weight = first.arm is Role.CANARY, first.weight / 100.0
        test.count(on_canary=on_canary)
        # A broken connection may be the machine's doing: it holds up promotion (through the totals), but it is no
        # evidence against the version. An engine that keeps dying is caught by its restarts (decide.py).
        if first.cause is not Cause.ENDPOINT_LOST:
            levels = tuple(LEVELS.index(e.level) for e in unit if e.level)
            index = 1 if first.session is None else first.request_index
            test.observe(Sighting(on_canary, weight, levels, index, rate))
        self._wait(source, Pending(first.admission, first.signal, on_canary, weight))

    def _book_score(self, event: Event, test: SignalTest, source: Source) -> None:
        assert event.score is not None
        if self._paired:
            # The two answers of one pair carry the same admission number; the difference needs both.
            other = source.other_half(event)
            if other is None or other.score is None or not self._first_of_session(event, test):
                return
            difference = event.score - other.score if event.arm is Role.CANARY else other.score - event.score
            if test.score_pair(difference):
                self._wait(source, Pending(event.admission, event.signal, difference > 0.0, 0.5))
            return
        if not self._first_of_session(event, test):
            return
        # Four digits, so that few different weights are remembered where sampling rates vary.
        weight = round(sampled_weight(event.weight / 100.0, event.canary_rate, event.stable_rate), 4)
        weight = min(max(weight, 1e-4), 1.0 - 1e-4)
        on_canary = event.arm is Role.CANARY
        if test.score(event.score, on_canary=on_canary, weight=weight):
            self._wait(source, Pending(event.admission, event.signal, on_canary, weight))

    def _book_watched(self, event: Event, test: SignalTest, source: Source) -> None:
        """An event of a unit without a choice of arm: whose it is, its digest says."""
        role = self._digests.get(event.digest)
        if role is None or test.kind in (Kind.LATENCY, Kind.SCORE) or not self._first_of_session(event, test):
            return
        test.count_watched(on_canary=role is Role.CANARY)
        if role is Role.STABLE:
            return
        self._watch(source)
        if test.watched is not None and event.cause is not Cause.ENDPOINT_LOST:
            test.watched.book(self._watched[Role.CANARY].settled)
            self._wait(source, Pending(event.admission, event.signal, True, 1.0))

    def _watch(self, source: Source) -> None:
        """The canary has all traffic: freeze, once, what the old side's own rates were."""
        source.watching = True
        if self._watching:
            return
        self._watching = True
        old = self._watched[Role.STABLE]
        for test in self._tests.values():
            n = old.settled if test.always_told else self._told_settled(test.name, Role.STABLE, watched=True)
            test.watch(Counts(events=min(old.settled_events.get(test.name, 0), n), n=n))

    def _wait(self, source: Source, pending: Pending) -> None:
        if len(source.pending) >= MAX_PENDING:
            for test in self._tests.values():
                test.error = test.error or (
                    f"more than {MAX_PENDING} events of one gateway wait for settlement: its watermark stands still; "
                    "restart that gateway"
                )
            return
        source.pending.append(pending)
        source.earliest = min(source.earliest, pending.admission)

    def _first_of_session(self, event: Event, test: SignalTest) -> bool:
        first = self._units.first_of_session(event)
        if not first and event.session is not None and not test.error:
            test.error = self._units.full
        return first

    # -- counting -----------------------------------------------------------------------------------------------

    def _total(self, total: Total, source: Source) -> bool:
        role = self._digests.get(total.digest)
        key = (total.digest, total.weight)
        known = source.totals.get(key)
        if role is None or total == known:
            return False
        if known is not None and (total.admitted, total.settled) < (known.admitted, known.settled):
            return False  # late: cumulative counters only grow
        source.totals[key] = total
        source.note_names(total)
        watched = not 0 < total.weight < WATCHED
        units = (self._watched if watched else self._compared)[role]
        if watched and role is Role.CANARY and total.admitted:
            self._watch(source)
            source.watched += total.admitted - (known.admitted if known is not None else 0)
        units.replace(known, total)
        return True

    def _counter(self, reading: CounterReading, source: Source, boot: str) -> bool:
        last = source.last_reading.get(reading.signal, 0)
        test = self._counters.get(reading.signal)
        if test is None or reading.number <= last:
            return False
        source.last_reading[reading.signal] = reading.number
        test.add(reading, boot)
        return True

    def _settle(self, source: Source) -> None:
        if source.settled_through < source.earliest:
            return
        watched: dict[SignalName, int] = {}
        open_still: list[Pending] = []
        for p in source.pending:
            if p.admission > source.settled_through:
                open_still.append(p)
            elif p.weight >= 1.0:
                watched[p.signal] = watched.get(p.signal, 0) + 1
            else:
                self._tests[p.signal].settle(on_canary=p.on_canary, weight=p.weight)
        for signal, events in watched.items():
            test = self._tests[signal].watched
            assert test is not None
            test.settle(self._watched[Role.CANARY].settled, events)
        source.pending = open_still
        source.earliest = min((p.admission for p in open_still), default=math.inf)

    def _told_settled(self, signal: SignalName, role: Role, *, watched: bool | None = None) -> int:
        """Settled units of the gateways that measure a signal; `watched` says which, None for all.

        Of a signal that is measured on some answers only, those: the others say nothing for the version.
        """
        return sum(
            s.measured(t, signal)
            for s in self._sources.values()
            if signal in s.told
            for t in s.totals.values()
            if self._digests[t.digest] is role and (watched is None or watched is not (0 < t.weight < WATCHED))
        )

    def _standings(self, test: SignalTest, common: Standings) -> Standings:
        """The units of one signal; `common` are those of a signal that every gateway measures."""
        parts = (self._compared[Role.CANARY], self._watched[Role.CANARY])
        events = sum([part.settled_events.get(test.name, 0) for part in parts])
        if test.always_told:
            return replace(common, settled=Counts(events=events, n=common.settled.n)) if events else common
        told = any(test.name in s.told for s in self._sources.values())
        n = self._told_settled(test.name, Role.CANARY) if told else 0
        return replace(common, settled=Counts(events=events, n=n), told=told)

    def _common(self) -> Standings:
        """What was counted of every request, whatever signal it is asked for."""
        compared, watched = self._compared, self._watched
        canary = compared[Role.CANARY].settled + watched[Role.CANARY].settled
        return Standings(
            canary=compared[Role.CANARY].admitted,
            stable=compared[Role.STABLE].admitted,
            settled=Counts(n=canary),
            settled_both=canary + compared[Role.STABLE].settled + watched[Role.STABLE].settled,
            watched_canary=sum([s.watched_units for s in self._sources.values()]),
            watched_stable=watched[Role.STABLE].admitted,
        )

    # -- reading ------------------------------------------------------------------------------------------------

    def readings(self) -> tuple[SignalReading, ...]:
        """Every watched signal, in the spec's order."""
        if self._readings is None:
            weight, common = self._weight / 100.0, self._common()
            self._readings = tuple(
                self._counters[spec.name].reading(weight)
                if spec.name in self._counters
                else self._tests[spec.name].reading(self._standings(self._tests[spec.name], common), weight)
                for spec in self._analysis.signals
            )
        return self._readings

    def exposure(self) -> Exposure:
        """How many requests the canary was given, beside the fewest that could have shown its worst signal.

        A mirrored request exposes nobody.
        """
        if self._exposure is None:
            parts = [self._watched[Role.CANARY]] + ([] if self._paired else [self._compared[Role.CANARY]])
            first = [u.first_admitted_at for u in parts if u.first_admitted_at is not None]
            last = [u.last_admitted_at for u in parts if u.last_admitted_at is not None]
            self._exposure = Exposure(
                canary_requests=sum(u.admitted for u in parts),
                forced=sum(u.forced for u in parts),
                lower_bound=None if self._paired else lower_bound(self.readings(), self._alone()),
                first_admitted_at=min(first, default=None),
                last_admitted_at=max(last, default=None),
            )
        return self._exposure

    def _alone(self) -> dict[SignalName, WatchedSignal | None]:
        return {name: test.watched for name, test in self._tests.items()}

    def sample_ratio(self) -> SampleRatio | None:
        """Whether each arm got its share; None before any first sight, and for pairs, which chance does not divide."""
        if self._paired:
            return None
        if self._ratio is None:
            self._ratio = (sample_ratio(self._sources.values(), self._digests),)
        return self._ratio[0]

    def comparisons(self) -> tuple[Comparison, ...]:
        """The report of an A/B test, one entry for each event signal; empty for other strategies."""
        if not self._reports:
            return ()
        if self._comparisons is None:
            common = self._common()
            found = [test.compare(self._standings(test, common)) for test in self._tests.values()]
            self._comparisons = tuple(c for c in found if c is not None)
        return self._comparisons

    def similarity(self) -> Similarity | None:
        """How alike the answers of mirrored pairs are; None where nothing is mirrored."""
        return similarity(self._compared[Role.CANARY], self._compared[Role.STABLE]) if self._paired else None

    @property
    def sessions(self) -> int:
        """First sights of sessions that were divided by chance, over both arms."""
        return 0 if self._paired else sum(units.first_sights for units in self._compared.values())

    @property
    def pairs(self) -> int:
        """Mirrored pairs whose outcomes have settled."""
        return self._compared[Role.CANARY].settled if self._paired else 0


def _alphas(analysis: AnalysisSpec) -> list[tuple[SignalSpec, float]]:
    """Each signal with its part of alpha: half to `error`, the rest in equal parts unless shares are given."""
    judged = [s for s in analysis.signals if kind_of(s.name) is not Kind.GATE]
    shares = share_alpha(analysis.alpha, {str(s.name): s.share or 1.0 for s in judged})
    return [(s, shares[str(s.name)]) for s in judged]


def _refusal(unit: list[Event], test: SignalTest, *, paired: bool) -> str:
    """Why this is no evidence of its signal; empty when it is. One rollout judges one kind of evidence."""
    first = unit[0]
    scored = first.score is not None
    if scored is not (test.kind is Kind.SCORE):
        return f"{first.signal} was told {'with' if scored else 'without'} a score; upgrade the gateway"
    if first.score is not None and not math.isfinite(first.score):
        return f"{first.signal} was told with a score of {first.score}, which is no number; correct the scorer"
    if test.kind is Kind.LATENCY and not all(e.level in LEVELS for e in unit):
        return f"{first.signal} was told at a level that is none of {', '.join(LEVELS)}; upgrade the gateway"
    if first.weight < WATCHED and first.paired is not paired:
        told, judged = ("pairs", "requests") if first.paired else ("requests", "pairs")
        return f"{first.signal} was told of {told} in a rollout that is judged by {judged}; the two do not mix"
    return ""


class _Unit(NamedTuple):
    signal: SignalName
    admission: int


def _by_unit(events: list[Event]) -> list[list[Event]]:
    """Put together the levels that one unit's latency exceeded: they must move their tests in one step."""
    units: list[list[Event]] = []
    last: _Unit | None = None
    for event in events:
        unit = _Unit(event.signal, event.admission)
        if event.level and unit == last:
            units[-1].append(event)
        else:
            units.append([event])
        last = unit
    return units
