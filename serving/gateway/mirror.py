"""Mirrored (shadow) requests: copies that cost their clients nothing (`serving.mirroring` has the rules).

A copy is a task of its own beside the request. Nothing waits for it, its answer is read and thrown away, and whatever
goes wrong with it ends in a counter. It has no key, so it costs no quota and counts for no usage; it does not reach the
clients' metrics; the engine can tell it by the header `x-tidegate-mirror: 1`.

Load. A copy to the canary takes nothing from stable's clients, so it only needs room there and nobody waiting. A copy
to stable takes a place in the model's queue, in its spare half, and is given up the moment that a client would have to
wait for that place (`make_room`). Only such copies are: they are no evidence, but a pair that is given up when its
answer takes long would favour the arm that fails slowly.

A pair is nobody's evidence when its client went away, the table stopped asking for it, or the gateway stops. That is
not quite neutral: a client can leave while a good answer is under way, hardly during an error that comes at once. So
of pairs that show the canary's errors alone some are lost, and errors of a shadow count a little too low, in the
proportion of clients that leave.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

from monitoring.instruments import GatewayInstruments
from monitoring.quality import similarity
from serving.endpoints import EndpointBook, taking
from serving.errors import UpstreamError, UpstreamTimeout
from serving.gateway.attempts import Attempts, Call, Failure, FailureKind, Opened, failure_in
from serving.gateway.connection import Abandoned, Leash
from serving.gateway.judging import read_transcript, scores_in, signals_in
from serving.gateway.ledger import PairTicket
from serving.gateway.overseeing import Judged
from serving.gateway.recorder import Recorder
from serving.gateway.request_ids import fresh_nonce
from serving.gateway.seams import Permit
from serving.gateway.traffic_state import TrafficState
from serving.gateway.transcript import Transcript
from serving.mirroring import (
    MIRRORED_OPERATIONS,
    PAIRED_WEIGHT,
    Discordance,
    MirrorResult,
    MirrorSettings,
    Pairing,
    Shown,
    differing,
    discordances,
    drawn,
    has_room,
    mirrored_body,
    within_budget,
)
from serving.openai_protocol import BYTES_PER_TOKEN, Operation
from serving.outcomes import UNITS, Cause, Event, Signal
from serving.streaming import says_done
from serving.traffic import RevisionTraffic, Role, TrafficTable, unit_interval

logger = logging.getLogger("tidegate.gateway")

MARK = (b"x-tidegate-mirror", b"1")


Compare = Callable[[str, bytes, Sequence[Transcript], Callable[[Judged | None], None]], bool]
"""See `overseeing.Overseer.compare`."""


class Room(Protocol):
    """What the mirror asks of the gatekeeper."""

    make_room: Callable[[str], bool]
    """Called with a model when a client of it would have to wait; says whether a place became free."""

    def waiting(self, model: str) -> int:
        """Requests of this model that wait for their turn."""
        ...

    def enter_mirrored(self, model: str, cost_tokens: int) -> Permit | None:
        """A place among the model's requests under way, in the spare half; None when it is not to be had."""
        ...


class Ended(NamedTuple):
    """How one half of a pair ended."""

    cause: Cause | None = None
    """Of a failure, None for an answer."""
    refused: bool = False
    """The engine answered with a 4xx."""
    transcript: Transcript | None = None


@dataclass(slots=True, eq=False)
class MirroredPair:
    """One request and its copy. As the witness of the request it hears how that went."""

    call: Call
    """The copy's."""
    target: RevisionTraffic
    ticket: PairTicket | None
    """None when the copy goes to stable: that is no evidence."""
    permit: Permit | None
    concluded: Callable[[MirroredPair], object]
    given_up: Callable[[MirroredPair], object]
    pairing: Pairing[Ended] = field(default_factory=Pairing)
    task: asyncio.Task[None] | None = None

    @property
    def model(self) -> str:
        """The registered model."""
        return self.call.unit.pick.route.model

    @property
    def rollout(self) -> str:
        """The rollout that it is evidence for."""
        return self.call.unit.pick.route.traffic.rollout or ""

    @property
    def operation(self) -> Operation:
        """What is asked for."""
        return self.call.unit.operation

    def tell(self, half: Role, ended: Ended) -> None:
        """How a half ended: `Role.CANARY` is the copy, wherever it went."""
        if self.pairing.tell(half, ended):
            self.concluded(self)

    def give_up(self) -> None:
        """End it as nobody's evidence."""
        if self.pairing.give_up():
            self.given_up(self)

    # The request's witness

    def failed(self, cause: Cause) -> None:
        """See `seams.Witness`."""
        self.tell(Role.STABLE, Ended(cause))

    def refused(self) -> None:
        """See `seams.Witness`."""
        self.tell(Role.STABLE, Ended(refused=True))

    def left(self) -> None:
        """See `seams.Witness`. Once the first attempt has its outcome, its client's leaving changes nothing."""
        if self.pairing.stable is None:
            self.give_up()

    def over(self, transcript: Transcript | None) -> None:
        """See `seams.Witness`. A client that reads slower than the limit makes stable late: against stable, if ever."""
        late = time.monotonic() > self.call.deadline
        self.tell(Role.STABLE, Ended(Cause.TIMEOUT) if late else Ended(transcript=transcript))


class Mirroring:
    """The mirror of one gateway. Made inside a running event loop."""

    def __init__(
        self,
        settings: MirrorSettings,
        state: TrafficState,
        book: EndpointBook,
        recorder: Recorder,
        instruments: GatewayInstruments,
        attempts: Attempts,
        room: Room | None = None,
        endpoint_concurrency: int | None = None,
    ) -> None:
        """Make one that has mirrored nothing yet.

        Args:
            settings: The budget.
            state: The traffic table in force.
            book: The endpoints.
            recorder: Where evidence is counted and told.
            instruments: Where copies are counted.
            attempts: For copies alone: a prompt that kills a canary must not be refused to a client.
            room: The gatekeeper's queues; None where nothing ever waits.
            endpoint_concurrency: Requests that an endpoint may have under way; None for any number.
        """
        self._settings = settings
        self._state = state
        self._book = book
        self._recorder = recorder
        self._instruments = instruments
        self._attempts = attempts
        self._room = room
        self._endpoint_concurrency = endpoint_concurrency
        self._loop = asyncio.get_running_loop()
        self._pairs: set[MirroredPair] = set()
        self._complete: deque[MirroredPair] = deque()
        self._stopped = False
        self.compare: Compare | None = None
        """Lets the judge of a rollout look at both answers of a pair; None where there is none."""
        if room is not None:
            room.make_room = self.make_room

    # Before the request is sent

    def offer(self, call: Call, fields: Mapping[str, Any]) -> None:
        """See `seams.Mirror`."""
        try:
            target = self._target(call)
            if target is None:
                return
            result = self._begin(call, fields, target)
            if result is not None:
                self._count(call, target, result)
        except Exception:
            logger.exception("a request could not be mirrored; its client does not notice")

    def _target(self, call: Call) -> RevisionTraffic | None:
        """The revision that gets a copy, decided by what was known before anything was asked."""
        unit = call.unit
        route = unit.pick.route
        stable, canary = route.stable, route.canary
        # A rollout that has given the canary some weight compares requests; without a rollout nobody compares anything.
        if stable is None or canary is None or canary.weight or route.traffic.rollout is None or self._stopped:
            return None
        if unit.revision is not stable or unit.pick.pinned or unit.operation not in MIRRORED_OPERATIONS:
            return None
        now = time.monotonic()
        if call.leash.pulled or not self._state.lease_valid(now) or not self._book.ready(canary.application, now):
            return None
        u = unit_interval(route.traffic.salt, "mirror:" + call.nonce.hex())
        role = drawn(u, route.traffic.mirror_percent, self._settings.baseline_share)
        if role is None:
            return None
        return canary if role is Role.CANARY else stable

    def _begin(self, call: Call, fields: Mapping[str, Any], target: RevisionTraffic) -> MirrorResult | None:
        """Send the copy of a drawn request, or say why there is none."""
        unit, traffic = call.unit, call.unit.pick.route.traffic
        body = None
        if len(call.body) <= self._settings.most_body_bytes:
            body = mirrored_body(unit.operation, call.body, fields)
        if body is None:
            return MirrorResult.SKIPPED
        if not self._has_room(call, target):
            return MirrorResult.DROPPED
        permit = None
        if target.role is Role.STABLE and self._room is not None:
            permit = self._room.enter_mirrored(traffic.model, len(body) // BYTES_PER_TOKEN)
            if permit is None:
                return MirrorResult.DROPPED
        copy = replace(
            call,
            headers=[*(h for h in call.headers if h[0] != MARK[0]), MARK],
            passed_on=call.passed_on + b"%b: %b\r\n" % MARK,
            body=body,
            prompt=body,
            nonce=fresh_nonce(),
            own_id=None,
            deadline=min(call.deadline, time.monotonic() + self._settings.timeout_s),
            own_lines=b"",
            demand=call.demand.again(),
            leash=Leash(),
            tried=set(),
            first_attempt=False,  # it is none of its unit's attempts
            copied=True,
        )
        ticket = None
        if target.role is Role.CANARY:
            stable = unit.revision.digest
            ticket = self._recorder.ledger.admit_pair(
                traffic.model, traffic.rollout or "", stable, target.digest, time.time()
            )
        pair = MirroredPair(copy, target, ticket, permit, self._concluded, self._given_up)
        self._pairs.add(pair)
        unit.witness = pair
        pair.task = self._loop.create_task(self._copy(pair))  # begins once the request itself was handed to its engine
        return None

    def _has_room(self, call: Call, target: RevisionTraffic) -> bool:
        """Whether one more copy fits the budget and its target, and no client waits."""
        model = call.unit.pick.route.model
        in_flight = self._recorder.in_flight.get(call.unit.revision.digest, 0)
        of_model = sum(p.model == model for p in self._pairs)
        if not within_budget(len(self._pairs), of_model, in_flight, self._settings):
            return False
        endpoints = taking(self._book.of(target.application), time.monotonic())
        outstanding = sum(e.outstanding for e in endpoints)
        if not has_room(outstanding, len(endpoints), self._endpoint_concurrency):
            return False
        return self._room is None or self._room.waiting(model) == 0

    # The copy

    async def _copy(self, pair: MirroredPair) -> None:
        try:
            ended = await self._answered(pair)
        except Exception:
            logger.exception("a mirrored request failed in the gateway; it counts for nobody")
            ended = None
        if ended is None:
            pair.give_up()
            return
        if not pair.pairing.ended:
            self._count(pair.call, pair.target, MirrorResult.SENT if ended.cause is None else MirrorResult.FAILED)
            self._release(pair)
        pair.tell(Role.CANARY, ended)

    async def _answered(self, pair: MirroredPair) -> Ended | None:
        """Send the copy once and take its whole answer; None when it was given up.

        What counts as a failure is what does for a client's request (`pipeline`).
        """
        call = pair.call
        result = await self._attempts.open(call, pair.target)
        if isinstance(result, Failure):
            return None if result.kind is FailureKind.ABANDONED else Ended(result.cause)
        try:
            failure = failure_in(result, pair.operation)
            if failure is not None:
                return Ended(failure.cause)
            return await self._read(call, result)
        except Abandoned:
            return None
        except UpstreamTimeout:
            return Ended(Cause.TIMEOUT)
        except UpstreamError:
            return Ended(Failure(await self._attempts.post_mortem(call, result.endpoint)).cause)
        finally:
            self._attempts.close(call, result)

    @staticmethod
    async def _read(call: Call, opened: Opened) -> Ended:
        transcript = opened.transcript
        if opened.first:
            transcript.add(opened.first)
        if not opened.whole:
            await opened.connection.relay(transcript.add)
        if opened.status >= 400:
            return Ended(refused=True)
        if transcript.event_stream and not says_done(call.unit.operation, transcript.tail):
            return Ended(Cause.VERSION)
        return Ended(transcript=transcript)

    # The end of a pair

    def _concluded(self, pair: MirroredPair) -> None:
        """Both answers are known. They are read later, one pair in a turn of the loop, after the client has its own."""
        self._complete.append(pair)
        if len(self._complete) == 1:
            self._loop.call_soon(self._work)

    def _work(self) -> None:
        self._judge(self._complete[0])
        self._complete.popleft()
        if self._complete:
            self._loop.call_soon(self._work)

    def _judge(self, pair: MirroredPair) -> None:
        ledger = self._recorder.ledger
        self._pairs.discard(pair)
        events: tuple[tuple[str, ...], tuple[str, ...]] | None = None
        later = False
        try:
            assert pair.pairing.stable is not None
            assert pair.pairing.canary is not None
            real = self._shown(pair, pair.pairing.stable)
            copy = self._shown(pair, pair.pairing.canary)
            alike = similarity(real.text, copy.text) if real.text is not None and copy.text is not None else None
            if alike is not None and not (real.text or copy.text):
                alike = None  # tool calls alone, say: there is nothing to compare
            if pair.ticket is None:
                if alike is not None:
                    ledger.compared_again(pair.model, pair.rollout, pair.target.digest, alike, time.time())
                return
            if alike is not None:
                ledger.compared(pair.ticket, alike)
            self._tell(pair, pair.ticket, discordances(real, copy))
            self._tell_scores(pair, pair.ticket, pair.pairing.stable.transcript, pair.pairing.canary.transcript)
            events = (real.signals, copy.signals)
            if real.text is not None and copy.text is not None:
                later = self._judge_texts(pair, pair.ticket, events)
        except Exception:
            logger.exception("judging a mirrored pair failed; it counts for nobody")
        finally:
            if pair.ticket is not None and not later:
                ledger.settle_pair(pair.ticket, events, time.time())

    def _judge_texts(
        self, pair: MirroredPair, ticket: PairTicket, events: tuple[tuple[str, ...], tuple[str, ...]]
    ) -> bool:
        """Let the rollout's judge look at both answers; True when the pair is settled once it has."""
        judge = pair.call.unit.pick.route.traffic.judge
        halves = (pair.pairing.stable, pair.pairing.canary)
        transcripts = [half.transcript for half in halves if half is not None and half.transcript is not None]
        if not judge or self.compare is None or len(transcripts) != 2:
            return False

        def done(found: Judged | None) -> None:
            both = events
            if found is not None:
                (on_stable, measured), (on_canary, also) = found
                names = [name for name in measured if name in also]
                self._tell(pair, ticket, differing(names, on_stable, on_canary))
                units = tuple(f"{name}{UNITS}" for name in names)
                shown = [tuple(name for name in names if name in side) for side in (on_stable, on_canary)]
                both = (events[0] + shown[0] + units, events[1] + shown[1] + units)
            self._recorder.ledger.settle_pair(ticket, both, time.time())

        return self.compare(judge, pair.call.prompt, transcripts, done)

    @staticmethod
    def _shown(pair: MirroredPair, ended: Ended) -> Shown:
        """What a half shows, by the rule that all answers are judged by."""
        if ended.cause is not None:
            return Shown((Signal.ERROR,), ended.cause)
        if ended.refused:
            return Shown((Signal.ENGINE_4XX,))
        if ended.transcript is None or ended.transcript.compressed:
            return Shown()
        answer = read_transcript(pair.operation, ended.transcript)
        asked = pair.call.unit.question
        fields = asked.fields if asked is not None else {}
        signals = signals_in(pair.operation, ended.transcript, answer, texts=True, fields=fields)
        failed = Signal.ERROR in signals or Signal.ENGINE_4XX in signals
        return Shown(signals, text=None if failed else "\n".join(answer.texts))

    def _tell(self, pair: MirroredPair, ticket: PairTicket, found: Sequence[Discordance]) -> None:
        outbox, now = self._recorder.outbox, time.time()
        for arm, signal, cause in found:
            on_canary = arm is Role.CANARY
            outbox.append(
                Event(
                    sequence=outbox.next_sequence(), model=pair.model, rollout=pair.rollout, signal=signal, cause=cause,
                    arm=arm, digest=pair.target.digest if on_canary else pair.call.unit.revision.digest,
                    weight=PAIRED_WEIGHT, paired=True, admission=ticket.number,
                    admitted_at=ticket.admitted_at, settled_at=now,
                )
            )  # fmt: skip
        if found:
            self._recorder.on_event()

    def _tell_scores(
        self, pair: MirroredPair, ticket: PairTicket, real: Transcript | None, copy: Transcript | None
    ) -> None:
        """Tell the scores that both answers have: a pair is judged by their difference."""
        asked, wanted = pair.call.unit.question, pair.call.unit.pick.route.traffic.scores
        if not wanted or asked is None or real is None or copy is None:
            return
        found = [
            scores_in(pair.operation, transcript, read_transcript(pair.operation, transcript), asked.fields, wanted)
            for transcript in (real, copy)
        ]
        outbox, now = self._recorder.outbox, time.time()
        for name in found[0].keys() & found[1].keys():
            for arm, scores in zip((Role.STABLE, Role.CANARY), found, strict=True):
                outbox.append(
                    Event(
                        sequence=outbox.next_sequence(), model=pair.model, rollout=pair.rollout, signal=f"score/{name}",
                        arm=arm, weight=PAIRED_WEIGHT, paired=True, score=scores[name], admission=ticket.number,
                        digest=pair.target.digest if arm is Role.CANARY else pair.call.unit.revision.digest,
                        admitted_at=ticket.admitted_at, settled_at=now,
                    )
                )  # fmt: skip
            self._recorder.on_event()

    def _given_up(self, pair: MirroredPair) -> None:
        self._pairs.discard(pair)
        if pair.pairing.canary is None:  # its copy is still under way
            self._count(pair.call, pair.target, MirrorResult.ABANDONED)
            self._release(pair)
            pair.call.leash.pull()  # which ends its task, wherever that waits
        if pair.ticket is not None:
            self._recorder.ledger.settle_pair(pair.ticket, None, time.time())

    @staticmethod
    def _release(pair: MirroredPair) -> None:
        permit, pair.permit = pair.permit, None
        if permit is not None:
            permit.settle("", None, None)  # its tokens are nobody's, and it says nothing about the pace of clients'

    def _count(self, call: Call, target: RevisionTraffic, result: MirrorResult) -> None:
        self._instruments.mirrored_request(call.unit.pick.route.model, target.version, result.value)

    # What ends pairs early

    def table_applied(self, table: TrafficTable) -> None:
        """See `seams.Mirror`."""
        for pair in list(self._pairs):
            traffic = table.model(pair.model)
            canary = traffic.by_role(Role.CANARY) if traffic is not None else None
            asked = (
                traffic is not None
                and traffic.mirror_percent > 0
                and traffic.rollout == pair.rollout
                and canary is not None
                and canary.weight == 0
                and (pair.ticket is None or canary.digest == pair.target.digest)
            )
            if not asked:
                pair.give_up()

    def make_room(self, model: str) -> bool:
        """Give up copies that take places of this model's clients. Returns whether there were any."""
        found = [p for p in self._pairs if p.permit is not None and p.model == model]
        for pair in found:
            pair.give_up()
        return bool(found)

    def stop(self) -> None:
        """See `seams.Mirror`."""
        self._stopped = True
        for pair in list(self._pairs):
            pair.give_up()

    @property
    def in_flight(self) -> int:
        """Pairs under way: a copy is, or its request."""
        return len(self._pairs)
