"""Record the outcome of every request: evidence for the controller, metrics for Prometheus.

Evidence is by intention to treat: a unit counts for its *assigned* revision by the outcome of its *first attempt*
(analysis.md, section 2). Both arms are measured alike. What needs the text of an answer is done after its end, in
small batches between other work; what is known at once (errors, a first token that is late) is told at once.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from monitoring.instruments import GatewayInstruments
from monitoring.measurements import RequestMeasurement, RequestOutcome, RevisionInfo
from serving.admission import Pick
from serving.gateway.judging import GENERATING, read_transcript, scores_in, signals_in
from serving.gateway.latency import Apart, LatencyWindow, Thresholds, exceeded
from serving.gateway.ledger import Ledger
from serving.gateway.observing import Over
from serving.gateway.outbox import Outbox
from serving.gateway.seams import Permit
from serving.gateway.sessions import Sessions, session_hash
from serving.gateway.transcript import Transcript
from serving.gateway.units import Unit
from serving.openai_protocol import Operation
from serving.outcomes import LEVELS, UNITS, Cause, Event, Signal, SignalName
from serving.streaming import Answer
from serving.traffic import RevisionTraffic, TrafficTable

logger = logging.getLogger("tidegate.gateway")

MIN_CHUNKS: Final = 4
"""A stream of fewer pieces says nothing about the time per token."""

MOST_WAITING: Final = 256
"""Answers waiting to be read; beyond it they are read at once, which slows the gateway down instead of growing it."""

SLICE_S: Final = 0.0015
"""How long answers are read before others get their turn."""


_EVENT_NAMES: Final = {
    (s, level): f"{s.value}:{level}" if level else s.value for s in Signal for level in ("", *LEVELS)
}
"""As the ledger counts them."""


_OK: Final = RequestOutcome.OK
_ERROR: Final = Signal.ERROR
_ENGINE_4XX: Final = Signal.ENGINE_4XX


class Observing(Protocol):
    """Hears of every finished request that has a trail: see `observing`."""

    def over(self, over: Over) -> tuple[str, float] | None:
        """It is over; what an exemplar may link to, where its trace was sent."""
        ...


class AfterReading(Protocol):
    """Hears of every request that has ended, once its answer was read and before it is settled."""

    def ended(self, unit: Unit, answer: Answer, answered_by: RevisionTraffic | None) -> None:
        """Must return soon. `answer` has its texts where the unit is judged, else perhaps only its usage."""
        ...


class _Ended:
    __slots__ = ("answered_by", "duration_s", "first_attempt", "outcome", "transcript", "unit")

    def __init__(
        self,
        unit: Unit,
        outcome: RequestOutcome,
        duration_s: float,
        transcript: Transcript | None,
        first_attempt: bool,
        answered_by: RevisionTraffic | None,
    ) -> None:
        self.unit = unit
        self.outcome = outcome
        self.duration_s = duration_s
        self.transcript = transcript
        self.first_attempt = first_attempt
        self.answered_by = answered_by


class Overseer(Protocol):
    """Looks at some requests after their end: see `overseeing`."""

    def settled(self, unit: Unit) -> None:
        """The unit has its outcome."""
        ...

    def read(self, unit: Unit, transcript: Transcript | None, *, first_attempt: bool) -> bool:
        """An answer is over; True when the unit's outcome waits until `Recorder.judged` is called."""
        ...


class Recorder:
    """All that one gateway process knows about outcomes. Single-threaded; times are arguments."""

    def __init__(
        self,
        instruments: GatewayInstruments,
        defer: Callable[[Callable[[], None]], object],
        monotonic: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self.instruments = instruments
        self.ledger = Ledger()
        self.outbox = Outbox()
        self.sessions = Sessions()
        self.in_flight: dict[str, int] = {}
        """By digest: answers under way."""
        self.on_event: Callable[[], None] = lambda: None
        self.observer: Observing | None = None
        self.on_findings: Callable[[Unit], None] = lambda _: None
        """Told when a unit's `guard` has findings that came after its end."""
        self.overseer: Overseer | None = None
        self.after_reading: list[AfterReading] = []
        self._look_at_per_s = 0.0
        self._looks = 0.0
        """How many answers may be looked at now, beside those that are evidence."""
        self._looked_at = 0.0
        self._defer = defer
        self._monotonic = monotonic
        self._wall = wall
        self._apart = Apart()
        self._windows: dict[tuple[str, str], LatencyWindow] = {}
        self._awaiting_first: dict[int, Unit] = {}
        self._ended: deque[_Ended] = deque()
        self._scheduled = False
        self._names: dict[str, tuple[str, str]] = {}
        self._live: set[tuple[str, str]] = set()

    def look_at(self, per_s: float) -> None:
        """Look at the texts of so many answers per second, too, that are no evidence; the first of each moment."""
        self._look_at_per_s = per_s

    # Tables

    def table_applied(self, table: TrafficTable) -> None:
        """Follow a new table: names for metrics, and forget what is gone."""
        infos: list[RevisionInfo] = []
        self._names = {}
        self._live = set()
        for model in table.models:
            self._live |= {(model.model, model.rollout or ""), (model.model, "")}
            roles = [(r, r.role.value) for r in model.revisions] + [(r, "draining") for r in model.drains]
            infos += [RevisionInfo(model.model, r.version, r.digest[:12], role) for r, role in roles]
            self._names |= {r.digest: (model.model, r.version) for r in (*model.drains, *model.revisions)}
        self.instruments.set_revisions(infos)
        for key in [k for k in self._windows if k[0] not in self._names]:
            del self._windows[key]

    def prune(self) -> None:
        """Forget totals that nobody needs any more. Call it now and then."""
        self.ledger.prune(self._live, self._wall())
        self._apart.prune(self._live)
        self.in_flight = {d: n for d, n in self.in_flight.items() if n or d in self._names}

    # One request, in the order of its life

    def admit(
        self, pick: Pick, operation: Operation, *, stream: bool, session: str | None, permit: Permit | None = None
    ) -> Unit:
        """Count an admission and freeze the latency limits that it will be judged by."""
        wall = self._wall()
        route = pick.route
        traffic, revision = route.traffic, pick.revision
        rollout = traffic.rollout or ""
        request_index, moved, first_sight = 1, False, pick.evidence
        if session is not None:
            visit = self.sessions.visit(traffic.model, session, rollout, revision.digest, by_chance=pick.evidence)
            request_index, moved, first_sight = visit.request_index, visit.moved, visit.first_sight
        ticket = self.ledger.admit(
            traffic.model, rollout, revision.digest, revision.role, pick.weight,
            evidence=pick.counted, now=wall, first_sight=first_sight,
        )  # fmt: skip
        unit = Unit(pick, operation, stream, ticket, wall, self._monotonic(), permit=permit)
        if session is not None:
            unit.request_index, unit.no_latency = request_index, moved
            unit.session = session
        stable = route.stable
        if pick.evidence and not unit.no_latency and stable is not None and operation in GENERATING:
            unit.per_token_limits = self._limits(stable.digest, "stream" if stream else "unary")
            if stream:
                unit.first_token_limits = self._limits(stable.digest, "first")
                if unit.first_token_limits is not None:
                    self._awaiting_first[id(unit)] = unit
        return unit

    def _limits(self, digest: str, kind: str) -> Thresholds | None:
        window = self._windows.get((digest, kind))
        return window.thresholds() if window is not None else None

    def warming_up(self, unit: Unit) -> None:
        """The request went to a replica that is still warming up: no latency evidence."""
        unit.no_latency = True
        unit.first_token_limits = unit.per_token_limits = None
        self._awaiting_first.pop(id(unit), None)

    def begun(self, revision: RevisionTraffic) -> None:
        """An answer of this revision is under way."""
        self.in_flight[revision.digest] = self.in_flight.get(revision.digest, 0) + 1

    def over(self, revision: RevisionTraffic) -> None:
        """It has ended."""
        self.in_flight[revision.digest] -= 1

    def first_token(self, unit: Unit, at: float) -> None:
        """The first output of the first attempt came, at this monotonic time."""
        unit.first_token_seen = True
        if self._awaiting_first.pop(id(unit), None) is not None:
            self._late(unit, at - unit.started)

    def sweep(self) -> None:
        """Tell of first tokens that are late already: a hang is an event at a fixed age, not at its end."""
        now = self._monotonic()
        for unit in list(self._awaiting_first.values()):
            self._late(unit, now - unit.started)

    def _late(self, unit: Unit, waited_s: float) -> None:
        traffic = unit.pick.route.traffic
        levels = exceeded(waited_s, unit.revision.role, unit.first_token_limits, traffic.max_slowdown)
        for level in levels[len(unit.late_levels) :]:
            self._emit(unit, Signal.SLOW_FIRST_TOKEN, level=level)
        if len(levels) > len(unit.late_levels):
            unit.late_levels = levels

    def failed(self, unit: Unit, cause: Cause) -> None:
        """The first attempt failed."""
        self._emit(unit, _ERROR, cause=cause)
        self._settle(unit)
        if unit.witness is not None:
            unit.witness.failed(cause)

    def refused(self, unit: Unit) -> None:
        """The engine answered the first attempt with a 4xx."""
        self._emit(unit, _ENGINE_4XX)
        self._settle(unit)
        if unit.witness is not None:
            unit.witness.refused()

    def aborted(self, unit: Unit) -> None:
        """The client went away."""
        self._emit(unit, Signal.CLIENT_ABORT)
        self._settle(unit)
        if unit.witness is not None:
            unit.witness.left()

    def dropped(self, unit: Unit) -> None:
        """The gateway itself gave it up (it is stopping, say): an outcome without any event, nobody's fault."""
        self._settle(unit)
        self._release(unit, unit.revision.version, Answer())
        if unit.witness is not None:
            unit.witness.left()

    def retried(self, unit: Unit, cause: Cause) -> None:
        """Stable is asked in the canary's place."""
        self.ledger.retried(unit.ticket)
        self.instruments.retry(unit.pick.route.model, unit.revision.version, cause.value)

    def conclude(
        self,
        unit: Unit,
        outcome: RequestOutcome,
        transcript: Transcript | None,
        *,
        first_attempt: bool = True,
        answered_by: RevisionTraffic | None = None,
    ) -> None:
        """The request is over for its client. What was answered is read later.

        Args:
            unit: The request.
            outcome: How it ended.
            transcript: What was answered, None when nothing was.
            first_attempt: False when stable answered in the canary's place: then the text is nobody's evidence.
            answered_by: Who answered, None when nobody did.
        """
        duration_s = self._monotonic() - unit.started
        self._awaiting_first.pop(id(unit), None)
        self._ended.append(_Ended(unit, outcome, duration_s, transcript, first_attempt, answered_by))
        if len(self._ended) > MOST_WAITING:
            self._read(self._ended.popleft())
        if not self._scheduled:
            self._scheduled = True
            self._defer(self._work)
        if unit.witness is not None:
            unit.witness.over(transcript)

    def _work(self) -> None:
        until = self._monotonic() + SLICE_S
        while self._ended:
            self._read(self._ended.popleft())
            if self._monotonic() > until:
                break
        self._scheduled = bool(self._ended)
        if self._scheduled:
            self._defer(self._work)

    def flush(self) -> None:
        """Read all that waits, at once."""
        while self._ended:
            self._read(self._ended.popleft())

    # What an answer says

    def _read(self, ended: _Ended) -> None:
        answer = Answer()
        try:
            answer = self._judge(ended)
        except Exception:
            # A unit without an outcome would hold up the watermark for ever, so it is settled whatever happens.
            logger.exception("reading an answer failed; its outcome counts without its text")
        finally:
            if not self._judged_later(ended):
                self._settle(ended.unit)
            if ended.unit.permit is not None:
                self._release(ended.unit, _worked(ended), answer)

    def _judged_later(self, ended: _Ended) -> bool:
        """Let the overseer have what it wants of a request; True when the outcome waits for it."""
        if self.overseer is None or ended.unit.asked is None:
            return False
        try:
            return self.overseer.read(ended.unit, ended.transcript, first_attempt=ended.first_attempt)
        except Exception:
            logger.exception("an answer could not be handed to the overseer; it is not looked at")
            return False

    def judged(self, unit: Unit, shown: Iterable[SignalName], measured: Iterable[SignalName]) -> None:
        """The judge has looked at an answer, or could not: its unit is settled.

        Args:
            unit: The request.
            shown: Signals that the answer shows.
            measured: Those that were looked for.
        """
        if unit.judged:
            unit.events += [f"{signal}{UNITS}" for signal in measured]
            for signal in shown:
                self._emit(unit, signal)
        self._settle(unit)

    def stopped(self, unit: Unit) -> None:
        """The guardrails refused the prompt, or could not check it: no engine was asked, and it is nobody's fault."""
        self._settle(unit)
        self._release(unit, "", Answer())
        if unit.trail is not None:
            duration_s = self._monotonic() - unit.started
            self._observe(Over(unit, unit.trail, RequestOutcome.BLOCKED, duration_s, None, Answer(), None, None, None))
        if unit.witness is not None:
            unit.witness.left()

    @staticmethod
    def _release(unit: Unit, version: str, answer: Answer) -> None:
        permit, unit.permit = unit.permit, None
        if permit is not None:
            permit.settle(version, answer.input_tokens, answer.output_tokens)

    def _judge(self, ended: _Ended) -> Answer:
        unit, transcript, outcome = ended.unit, ended.transcript, ended.outcome
        answer = Answer()
        first_s = per_token_s = None
        if transcript is not None:
            texts = unit.judged or self._may_look(unit)
            answer = read_transcript(unit.operation, transcript, usage_only=not texts)
            if unit.stream and transcript.first_at:
                first_s = transcript.first_at - unit.started
            per_token_s = _per_token_s(unit, transcript, answer, ended.duration_s)
            if outcome is _OK:
                outcome = self._quality(unit, transcript, answer, texts=texts)
                if texts and outcome is _OK and ended.answered_by is unit.revision:
                    self.instruments.answer_read(unit.pick.route.model, unit.revision.version, unit.shown)
            if outcome is _OK and ended.first_attempt:
                self._latency(unit, first_s, per_token_s)
        trace: tuple[str, float] | None = None
        if unit.trail is not None:
            trace = self._observe(
                Over(unit, unit.trail, outcome, ended.duration_s, transcript, answer, first_s, per_token_s,
                     ended.answered_by)
            )  # fmt: skip
        self.instruments.record(
            RequestMeasurement(
                unit.pick.route.traffic.model, unit.pick.revision.version, unit.operation, outcome, ended.duration_s,
                first_s, per_token_s if unit.stream else None, answer.input_tokens, answer.output_tokens, trace,
            )
        )  # fmt: skip
        for listener in self.after_reading:
            try:
                listener.ended(unit, answer, ended.answered_by)
            except Exception:
                logger.exception("whoever hears of ended requests failed; this one it missed")
        return answer

    def _observe(self, over: Over) -> tuple[str, float] | None:
        """Tell the observer, whose failure is no business of the request's."""
        try:
            return self.observer.over(over) if self.observer is not None else None
        except Exception:
            logger.exception("a request could not be traced or logged; it is left out")
            return None

    def _may_look(self, unit: Unit) -> bool:
        """Whether there is time to look at the text of an answer that is no evidence."""
        if not self._look_at_per_s or unit.operation not in GENERATING:
            return False
        now, most = self._monotonic(), max(1.0, self._look_at_per_s)
        self._looks = min(most, self._looks + (now - self._looked_at) * self._look_at_per_s)
        self._looked_at = now
        if self._looks < 1.0:
            return False
        self._looks -= 1.0
        return True

    def _quality(self, unit: Unit, transcript: Transcript, answer: Answer, *, texts: bool) -> RequestOutcome:
        fields = unit.question.fields if unit.question is not None else {}
        signals = signals_in(unit.operation, transcript, answer, texts=texts, fields=fields)
        unit.shown = signals
        wanted = unit.pick.route.traffic.scores
        if wanted and unit.judged and Signal.ERROR not in signals and Signal.ENGINE_4XX not in signals:
            for name, score in scores_in(unit.operation, transcript, answer, fields, wanted).items():
                self.scored(unit, name, score)
        if not signals:
            return _OK
        for signal in signals:
            self._emit(unit, signal)
        if _ERROR in signals:
            return RequestOutcome.ERROR
        return RequestOutcome.CLIENT_ERROR if _ENGINE_4XX in signals else _OK

    def _latency(self, unit: Unit, first_s: float | None, per_token_s: float | None) -> None:
        if per_token_s is not None:
            slowdown = unit.pick.route.traffic.max_slowdown
            for level in exceeded(per_token_s, unit.revision.role, unit.per_token_limits, slowdown):
                self._emit(unit, Signal.SLOW_TOKENS, level=level)
        if unit.no_latency or unit.operation not in GENERATING:
            return
        digest = unit.revision.digest
        if digest not in self._names:
            return
        if first_s is not None:
            self._window(digest, "first").add(first_s)
        if per_token_s is not None:
            self._window(digest, "stream" if unit.stream else "unary").add(per_token_s)

    def _window(self, digest: str, kind: str) -> LatencyWindow:
        window = self._windows.get((digest, kind))
        if window is None:
            window = self._windows[(digest, kind)] = LatencyWindow()
        return window

    # Evidence

    def _settle(self, unit: Unit) -> None:
        self._awaiting_first.pop(id(unit), None)
        self.ledger.settle(unit.ticket, unit.events, self._wall())
        if unit.asked is not None and self.overseer is not None:
            try:
                self.overseer.settled(unit)
            except Exception:
                logger.exception("the overseer failed over a settled request")

    def _emit(self, unit: Unit, signal: SignalName, *, level: str = "", cause: Cause = Cause.VERSION) -> None:
        if not unit.judged:
            return
        unit.events.append(_EVENT_NAMES[signal, level] if isinstance(signal, Signal) else signal)
        now = self._wall()
        if level and isinstance(signal, Signal) and not self._tells(unit, signal, level, now):
            return
        self._tell(unit, str(signal), now, level=level, cause=cause)

    def scored(self, unit: Unit, name: str, score: float) -> None:
        """Tell of a scored answer of a unit, which may have settled before; a score that nobody watches is not told.

        Args:
            unit: Whose first attempt gave the answer.
            name: Of the signal, after `score/`.
            score: Higher is worse.
        """
        traffic = unit.pick.route.traffic
        if unit.ticket.number > 0 and name in traffic.scores and math.isfinite(score) and unit.pick.weight < 100:
            self._tell(unit, f"score/{name}", self._wall(), score=score)

    def _tell(
        self,
        unit: Unit,
        signal: str,
        now: float,
        *,
        level: str = "",
        cause: Cause = Cause.VERSION,
        score: float | None = None,
    ) -> None:
        route = unit.pick.route
        self.outbox.append(
            Event(
                sequence=self.outbox.next_sequence(),
                model=route.model,
                rollout=route.traffic.rollout or "",
                signal=signal,
                level=level,
                cause=cause,
                arm=unit.revision.role,
                digest=unit.revision.digest,
                weight=unit.pick.weight,
                score=score,
                session=session_hash(route.traffic.salt, unit.session) if unit.session is not None else None,
                request_index=unit.request_index,
                admission=unit.ticket.number,
                admitted_at=unit.admitted_at,
                settled_at=now,
            )
        )
        self.on_event()

    def _tells(self, unit: Unit, signal: Signal, level: str, now: float) -> bool:
        """Whether this unit's event at a level of latency goes to the controller."""
        traffic = unit.pick.route.traffic
        return self._apart.told(traffic.model, traffic.rollout or "", signal, level, unit.admitted_at, now)

    def in_flight_by_version(self) -> list[tuple[str, str, int]]:
        """(model, version, answers under way) of all revisions in the table."""
        return [(model, version, self.in_flight.get(d, 0)) for d, (model, version) in self._names.items()]


def _per_token_s(unit: Unit, transcript: Transcript, answer: Answer, duration_s: float) -> float | None:
    if transcript.event_stream:
        if transcript.bodies < MIN_CHUNKS:
            return None
        return (transcript.last_at - transcript.first_at) / (transcript.bodies - 1)
    if unit.operation in GENERATING and answer.output_tokens:
        return duration_s / answer.output_tokens
    return None


def _worked(ended: _Ended) -> str:
    """The version whose engine worked on a request, "" when none did: also for one whose client left, or gave up on."""
    if ended.answered_by is not None:
        return ended.answered_by.version
    given_up = ended.outcome in (RequestOutcome.CLIENT_ABORT, RequestOutcome.TIMEOUT)
    return ended.unit.revision.version if given_up else ""
