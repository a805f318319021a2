"""The controller: load, decide, apply, for every model, again and again. One leader; losing it stops progress only.

What happens to an outcome, from the wire to the weight: `on_events` takes it in and wakes the tick, which writes all
that has arrived into the log, folds it into the ledgers and judges their models; a decision is written into the log
before anything acts on it. A controller that is killed at any point folds the log again and stands where it stood.

While the log can't be written, nothing is decided: the controller holds, gateways go on by their last table, and what
they report is not acknowledged. No heartbeat is sent either, so that a canary that nobody could take back gets no new
requests after 15 s. When the log is back, the controller reads on from the last entry that it knows (a write whose
reply was lost may be there), folds what it finds, and goes on by itself.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable

from rollout import commands
from rollout.accounting import Accounting
from rollout.accounts.base import AccountStore
from rollout.accounts.memory import MemoryAccountStore
from rollout.actions import Deployed
from rollout.actuate import TrafficActuator, WorkloadActuator
from rollout.analysis.ledger import EvidenceIncrement, Ledger
from rollout.asks import Asked
from rollout.commands import Command, Target, Verb
from rollout.decide import Decision, decide, housekeeping
from rollout.errors import EventLogUnavailable, RolloutError, UnknownRollout
from rollout.errors import NotLeading as NotLeading
from rollout.event_log.base import Entry, EventLog, Kind, NewEntry
from rollout.fold import Fold, Unlogged, is_live
from rollout.intake import Batch, Intake
from rollout.leadership import AWAY_S, LEASE_S, Leadership
from rollout.observation import Observation, SmokeResult
from rollout.specs import RolloutSpec
from rollout.status import ModelStatus
from rollout.traffic_routers.gateway import GatewayRouter
from rollout.watching import Watching
from rollout.workloads.base import WorkloadPort
from serving.outcomes import Events, Totals, UsageReport

log = logging.getLogger(__name__)

TICK_S = 0.1
TICK_BUDGET_S = 0.05
"""Judging stops for this tick when it took as long; what is left comes next, after the loop has served the others."""
REST_S = 0.02
ROUND_S = 1.0
"""Every model is judged at least this often, whether or not anything was heard of it: time passes for it too."""
AT_LEAST = 10
"""Models judged in every tick: with so few, each is judged ten times a second."""
TAKE_S = 1.0
"""How often a follower asks for the leadership."""
TOTALS_LOG_S = 1.0
"""Cumulative counters go into the log at most this often, and always before a decision that used them."""
TOTALS_PER_TICK = 5
"""Counters logged at most per tick, so that a hundred gateways don't fill the log: the newest one holds them all."""
KEEP_EVIDENCE_S = 30 * 86_400.0
"""Evidence of rollouts that ended longer ago leaves the log; their decisions, with all that they saw, stay."""
TIDY_S = 86_400.0
TIDY_FIRST_S = 300.0

CONTROLLER = "controller"
"""The actor of decisions that nobody asked for."""

Smoke = Callable[[ModelStatus], SmokeResult | None]


class Controller:
    """Holds every model's status and evidence; the only writer of both.

    All methods must be called from one event loop, but for `try_to_lead`, before it runs.

    Args:
        event_log: the truth.
        workloads: runs revisions.
        router: the gateways.
        holder: who this is, the same one after a restart, and different for two that run at once.
        clock: seconds since the epoch.
        new_id: makes ids and secrets.
        accounts: keys and usage; in memory when left out.
        smoke: what the smoke suite found about a model's rollout so far, or None while it found nothing.
        lease_s: how long this controller waits for one that does not renew its lease.

    """

    def __init__(
        self,
        *,
        event_log: EventLog,
        workloads: WorkloadPort,
        router: GatewayRouter,
        holder: str,
        clock: Callable[[], float],
        new_id: Callable[[], str],
        accounts: AccountStore | None = None,
        smoke: Smoke | None = None,
        lease_s: float = LEASE_S,
    ) -> None:
        self._log = event_log
        self._router = router
        self._clock = clock
        self._new_id = new_id
        self._leadership = Leadership(event_log, holder, clock, lease_s)
        self._fold_of_log = Fold()
        self._waiting: dict[str, Decision] = {}
        self._unlogged = Unlogged()
        self._intake = Intake()
        self._urgent: dict[str, None] = {}
        self._round: deque[str] = deque()
        self._traffic_due = False
        self._look_around = False
        self._traffic = TrafficActuator(router)
        self.workloads = WorkloadActuator(workloads, self._led_statuses, self._wake_up)
        self.accounting = Accounting(accounts or MemoryAccountStore(), router, clock)
        self._watching = Watching(router, self.workloads, clock, smoke)
        self._wake = asyncio.Event()
        self._listeners: list[Callable[[ModelStatus], None]] = []
        router.sink = self
        router.on_change = self._wake_up

    # -- what others may see ------------------------------------------------------------------------------------

    @property
    def leads(self) -> bool:
        """Whether this controller holds the leadership."""
        return self._fence is not None

    @property
    def _fence(self) -> int | None:
        return self._leadership.fence

    @property
    def _statuses(self) -> dict[str, ModelStatus]:
        return self._fold_of_log.statuses

    @property
    def _ledgers(self) -> dict[str, Ledger]:
        return self._fold_of_log.ledgers

    @property
    def statuses(self) -> tuple[ModelStatus, ...]:
        """Every model's status."""
        return tuple(self._statuses.values())

    @property
    def folded(self) -> Fold:
        """What the log says so far; nobody else may change it."""
        return self._fold_of_log

    @property
    def store_message(self) -> str:
        """Why nothing can be decided now, when the event log can't be reached; empty when it can."""
        return self._leadership.away

    @property
    def workload_message(self) -> str:
        """Why the workloads can't be observed or changed; empty when they can."""
        return self.workloads.message if self.workloads.seen is None or self.workloads.message else ""

    def workloads_unseen(self, status: ModelStatus | None) -> str:
        """Why nothing can be told of a model's workloads now, or of any when it has none; empty when it can."""
        return self.workloads.unseen(d.application for d in (status.running() if status is not None else ()))

    def require_leadership(self) -> None:
        """Refuse to speak for a log that has not been folded.

        Raises:
            NotLeading: this controller does not lead.
        """
        if self._fence is None:
            raise NotLeading("this controller does not lead (yet), so it can't tell; try again in a moment")

    def status(self, model: str) -> ModelStatus:
        """One model's status.

        Raises:
            UnknownRollout: nothing of that name was ever deployed.

        """
        self.require_leadership()
        if model not in self._statuses:
            known = ", ".join(sorted(self._statuses)) or "none yet"
            raise UnknownRollout(f"model {model!r} was never deployed (deployed: {known}); `tidegate deploy` does that")
        return self._statuses[model]

    def observation(self, model: str) -> Observation:
        """What is seen of a model right now, the evidence of its last rollout included."""
        status = self.status(model)
        ledger = self._ledgers.get(model)
        ended = None if ledger is not None else self._fold_of_log.last_seen.get(model)
        self._watching.look()
        return self._watching.observe(status, ledger, ended=ended)

    def note_smoke(self, rollout: str, result: SmokeResult) -> None:
        """Take what a rollout's smoke suite found. Not kept over a restart: the suite is then run again."""
        self._watching.note_smoke(rollout, result)
        self._wake_up()

    def asked(self, model: str) -> Asked:
        """Which wishes of a model's custom resource are in the log."""
        return self._fold_of_log.asked.get(model, Asked())

    def waiting_for(self, model: str) -> Decision | None:
        """The last judgement that led to no action: what the rollout waits for."""
        return self._waiting.get(model)

    def subscribe(self, listener: Callable[[ModelStatus], None]) -> Callable[[], None]:
        """Call `listener` after each change of a status; returns how to stop that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def entries(self, model: str, *, evidence: bool) -> Iterable[Entry]:
        """The log of one model."""
        kinds = None if evidence else (Kind.COMMAND, Kind.DECISION)
        return self._log.read(model=model, kinds=kinds)

    # -- leadership ---------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Lead when possible, and act while leading.

        Raises:
            LogConflict: the leadership was lost; the process should start again.

        """
        while not await self._led_at_last():  # noqa: ASYNC110 - the lease lies in the store; nothing could be awaited
            await asyncio.sleep(TAKE_S)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self.workloads.run())
                tasks.create_task(self._keep_leading())
                tasks.create_task(self._tick_for_ever())
                tasks.create_task(self._tidy_for_ever())
                tasks.create_task(self.accounting.follow_keys())
                tasks.create_task(self.accounting.book_usage())
        finally:
            await self._leadership.give_back()

    async def _led_at_last(self) -> bool:
        try:
            return await asyncio.to_thread(self.try_to_lead)
        except EventLogUnavailable as error:
            log.warning("can't ask for the leadership: %s", error)
            return False

    def try_to_lead(self) -> bool:
        """Take the leadership if it is free, and fold the log; False while another controller leads.

        Raises:
            EventLogUnavailable: the log can't be reached.
            LogConflict: the leadership was lost again meanwhile.

        """
        fence = self._leadership.take()
        if fence is None:
            return False
        self._recover()
        self.accounting.load()
        self._traffic_due = True
        self._leadership.fence = fence
        log.info("leading with fence %d, %d models", fence, len(self._statuses))
        return True

    async def _keep_leading(self) -> None:
        while True:
            if not await self._leadership.renew():
                await asyncio.sleep(AWAY_S)
                continue
            if self._fence is not None and not self._leadership.away:
                await self._router.heartbeat(self._fence)
            await asyncio.sleep(self._leadership.renew_s)

    def _recover(self) -> None:
        """Fold the log: statuses from commands and decisions, ledgers from the evidence that is still judged."""
        fold = Fold()
        for entry in self._leadership.kept_while(self._log.read(kinds=(Kind.COMMAND, Kind.DECISION))):
            fold.entry(entry)
        fold.forget(self._clock())
        judged = sorted(fold.remembered(self._clock()))
        for entry in self._leadership.kept_while(self._log.read(rollouts=judged)):
            fold.entry(entry)
        self._fold_of_log = fold
        self._watching.forget_all()

    def _led_statuses(self) -> tuple[ModelStatus, ...] | None:
        return self.statuses if self._fence is not None else None

    # -- what is written, and what else there is to do --------------------------------------------------------------

    def _append(self, entries: list[NewEntry]) -> None:
        self._fold_of_log.last_id = self._leadership.append(entries)

    async def _catch_up(self) -> bool:
        """Fold what the log holds beyond what is known; False while it can't be reached."""
        missed = await self._leadership.read_on(self._fold_of_log.last_id)
        if missed is None:
            return False
        for entry in missed:
            self._fold_of_log.entry(entry)
            if entry.kind is not Kind.EVIDENCE:
                self._changed(entry.model)
        log.info("the event log is back, with %d entries whose reply was lost", len(missed))
        self._intake.drop()
        await self._router.ask_again()
        return True

    async def _tidy_for_ever(self) -> None:
        """Once a day drop what nobody reads any more, in a thread."""
        pause_s = TIDY_FIRST_S
        while True:
            await asyncio.sleep(pause_s)
            pause_s = TIDY_S
            try:
                await self.tidy()
            except EventLogUnavailable as error:
                log.warning("the store was not tidied, which can wait: %s", error)
                pause_s = TIDY_FIRST_S

    async def tidy(self) -> None:
        """Drop the evidence of rollouts that ended long ago, and fold old usage.

        Raises:
            EventLogUnavailable: not all of it was done; it can be done later.
            LogConflict: another controller leads.

        """
        self.require_leadership()
        assert self._fence is not None
        now, fence = self._clock(), self._fence
        self._fold_of_log.forget(now)
        keep = {s.rollout.id for s in self.statuses if s.rollout is not None and is_live(s.rollout)}
        gone = await asyncio.to_thread(self._log.compact, now - KEEP_EVIDENCE_S, keep=keep, fence=fence)
        folded = await asyncio.to_thread(self.accounting.fold_old_usage, now)
        if gone or folded:
            log.info("tidied: %d entries of evidence and %d rows of usage went", gone, folded)

    # -- deciding -----------------------------------------------------------------------------------------------

    def _wake_up(self) -> None:
        self._look_around = True
        self._wake.set()

    async def _tick_for_ever(self) -> None:
        loop = asyncio.get_running_loop()
        looked_at = float("-inf")
        while True:
            began = loop.time()
            everybody = self._look_around or began - looked_at >= TICK_S
            if everybody:
                looked_at, self._look_around = began, False
            await self.tick(everybody=everybody)
            # However much there is to judge, half of the time is left for what comes in.
            await asyncio.sleep(min(REST_S, loop.time() - began))
            pause_s = 0.0 if self._urgent or self._intake.urgent else max(0.0, began + TICK_S - loop.time())
            try:
                # Not `wait_for`, which in Python 3.11 may swallow a cancellation that comes with the wake-up.
                async with asyncio.timeout(pause_s):
                    await self._wake.wait()
            except TimeoutError:
                continue
            finally:
                self._wake.clear()

    async def tick(self, *, everybody: bool = True) -> None:
        """Judge the models of which something was heard, with `everybody` some others too, and make traffic follow.

        Raises:
            LogConflict: the leadership was lost.

        """
        if self._fence is None or (self._leadership.away and not await self._catch_up()):
            return
        began = time.perf_counter()
        self._watching.look()
        booked: Batch | None = None
        try:
            booked = self._take_in()
            for model in self._due(everybody=everybody):
                self._judge(model)
                if self._traffic_due:
                    await self._follow()
                    self._watching.look()
                if time.perf_counter() - began > TICK_BUDGET_S:
                    break
            if everybody:
                self._log_totals()
        except EventLogUnavailable:
            pass  # held: what was decided before is in force, the rest waits
        else:
            await self._follow()
        finally:
            if booked is not None:
                booked.tell(booked=True)

    def _due(self, *, everybody: bool) -> Iterable[str]:
        """Whom to judge now: first those with new events, then the next of the round, a part of it in each tick."""
        while self._urgent:
            model = next(iter(self._urgent))
            del self._urgent[model]
            yield model
        if not everybody:
            return
        if len(self._round) != len(self._statuses):
            self._round = deque(self._statuses)
        for _ in range(min(len(self._round), max(AT_LEAST, int(len(self._round) * TICK_S / ROUND_S) + 1))):
            self._round.rotate(-1)
            yield self._round[-1]

    async def _follow(self) -> None:
        if self._fence is not None and self._traffic_due:
            self._traffic_due = False
            await self._traffic.follow(self.statuses, fence=self._fence, now=self._clock())

    def _judge(self, model: str) -> None:
        status, now = self._statuses[model], self._clock()
        judged = is_live(status.rollout)
        seen = self._watching.observe(status, self._ledgers.get(model) if judged else None)
        if status.rollout is not None and judged:
            decision = decide(status.rollout.spec, status, seen, now)
            if decision.actions:
                # What was seen is older than what this decision changes, so clearing up waits for the next look.
                self._commit(model, decision, seen, actor=CONTROLLER)
                return
            self._waiting[model] = decision
        done = housekeeping(self._statuses[model], seen, now)
        if done is not None:
            self._commit(model, done, seen, actor=CONTROLLER)

    def _commit(
        self, model: str, decision: Decision, seen: Observation | None, *, actor: str, command: Command | None = None
    ) -> None:
        at = self._clock()
        observed = None if seen is None else seen.model_dump(mode="json")
        said = None if command is None else command.model_dump(mode="json")
        payload = {"decision": decision.model_dump(mode="json"), "observation": observed, "command": said}
        kind = Kind.DECISION if command is None else Kind.COMMAND
        decided = NewEntry(model=model, at=at, kind=kind, actor=actor, payload=payload)
        # In one transaction: a decision is never without the evidence that it used.
        counters = self._unlogged.of(model)
        self._append([*(self._evidence(*each) for each in counters), decided])
        self._unlogged.logged(counters)
        self._fold_of_log.decision(model, decision, at=at, actor=actor, seen=observed, command=command)
        log.info("%s: %s: %s", model, decision.cause, decision.reason)
        self._changed(model)

    def _changed(self, model: str) -> None:
        """A status is another one: look again at once, make everything follow, and tell who listens."""
        self._waiting.pop(model, None)
        self._watching.forget(model)
        self._traffic_due = True
        self.workloads.wake()
        self._wake_up()
        for listener in tuple(self._listeners):
            listener(self._statuses[model])

    # -- evidence -----------------------------------------------------------------------------------------------

    def on_events(self, gateway: str, boot: str, message: Events, done: Callable[[int | None], None]) -> None:
        """Take events in; the next tick, which this wakes, books them. See `Sink.on_events`."""
        if self._fence is None or self._leadership.away or self._intake.full:
            done(None)
            return
        self._intake.events(gateway, boot, message, done)
        self._wake.set()

    def on_totals(self, gateway: str, boot: str, message: Totals) -> None:
        """Take cumulative counters in; the next tick books them.

        What is not taken in (while the log is away) is told again when the gateway has dialled again.
        """
        if self._fence is not None and not self._leadership.away:
            self._intake.totals(gateway, boot, message, self._clock())

    def _take_in(self) -> Batch:
        """Book all that has arrived, events in one transaction.

        Raises:
            EventLogUnavailable: nothing is booked, and the gateways were told to send their events again.

        """
        batch = self._intake.take(self._fold_of_log, self._clock())
        try:
            if batch.events:
                self._append([self._evidence(*each) for each in batch.events])
        except RolloutError:
            batch.tell(booked=False)
            raise
        for model, increment in batch.increments:
            self._book(model, increment)
        for (gateway, boot), last in batch.through.items():
            self._fold_of_log.accept(gateway, boot, last)
        return batch

    def on_measured(self, model: str, increment: EvidenceIncrement) -> None:
        """Book evidence that was not told by a gateway but measured otherwise, and have the model judged next.

        Raises:
            EventLogUnavailable: it is not booked.
            NotLeading: this controller does not lead.

        """
        self.require_leadership()
        ledger = self._ledgers.get(model)
        if ledger is not None and ledger.rollout == increment.rollout:
            self._append([self._evidence(model, increment)])
            self._book(model, increment)

    def _book(self, model: str, increment: EvidenceIncrement) -> None:
        """Fold. Events are judged at once; counters are logged later, since the newest replaces the others."""
        if not self._fold_of_log.evidence(model, increment):
            return
        if increment.totals:
            self._unlogged.add(model, increment)
            self._watching.touch(model)
        else:
            self._watching.forget(model)
            self._urgent[model] = None
            self._wake.set()

    def on_usage(self, report: UsageReport, accepted: Callable[[], Awaitable[None]]) -> None:
        """Have usage booked; see `Sink.on_usage`."""
        self.accounting.on_usage(report, accepted)

    def _log_totals(self) -> None:
        """Log the counters that have waited long enough, the oldest first, some in each tick."""
        due = self._unlogged.due(self._clock() - TOTALS_LOG_S, TOTALS_PER_TICK)
        if due:
            self._append([self._evidence(*each) for each in due])
            self._unlogged.logged(due)

    def _evidence(self, model: str, increment: EvidenceIncrement) -> NewEntry:
        return NewEntry(
            model=model,
            at=self._clock(),
            kind=Kind.EVIDENCE,
            actor=f"gateway/{increment.gateway}",
            rollout=increment.rollout,
            payload=increment.model_dump(mode="json", exclude_defaults=True),
        )

    # -- commands -----------------------------------------------------------------------------------------------

    def new_target(self, spec: RolloutSpec, deployed: Deployed, judge: str = "") -> Target:
        """What a deployment would start: with an id and a secret salt of its own."""
        salt = self._new_id() + self._new_id()
        return Target(rollout=self._new_id(), spec=spec, deployed=deployed, salt=salt, judge=judge)

    def plan(self, model: str, command: Command, target: Target | None) -> Decision:
        """What a command would do now, without doing it; it may be refused, as by `execute`."""
        seen = self.observation(model) if model in self._statuses else None
        if command.verb in commands.STARTS:
            assert target is not None
            return commands.deploy(self._statuses.get(model) or ModelStatus(model=model), target, command, seen)
        status = self.status(model)
        match command.verb:
            case Verb.PROMOTE:
                return commands.promote(status, command, seen)
            case Verb.PAUSE:
                return commands.pause(status, command)
            case Verb.RESUME:
                return commands.resume(status, command)
            case Verb.ABORT:
                return commands.abort(status, command, seen)
            case Verb.ACK:
                return commands.acknowledge(status, command, tuple(status.quarantine))
            case Verb.ROLLBACK:
                return commands.rollback(status, command, target, seen)
            case Verb.SCALE:
                return commands.scale(status, command)
            case Verb.UNDEPLOY:
                return commands.undeploy(status, command)
        raise AssertionError(command.verb)

    async def execute(self, model: str, command: Command, target: Target | None = None) -> Decision:
        """Carry out an operator's command: logged, folded, and pushed to the gateways before this returns.

        Raises:
            RolloutError: it was refused (InsufficientCapacity: for want of room), this controller does not lead, or the
                log can't be reached. In the last case the command may be in the log or not; the history tells.

        """
        self.require_leadership()
        if target is not None and command.verb in commands.STARTS:
            self.plan(model, command, target)  # what is refused anyway is told so first
            await self.workloads.check_room(target.deployed)
            self.require_leadership()
        decision = self.plan(model, command, target)
        seen = self.observation(model) if model in self._statuses else None
        self._commit(model, decision, seen, actor=command.actor, command=command)
        await self._follow()
        return decision
