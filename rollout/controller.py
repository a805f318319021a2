"""The controller: load, decide, apply, for every model, again and again. One leader; losing it stops progress only.

What happens to an outcome, from the wire to the weight: `on_events` writes it into the log, folds it into the
ledger and judges the model in the same call; a decision is written into the log before anything acts on it. A
controller that is killed at any point folds the log again and stands where it stood.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable

from rollout import commands
from rollout.actions import Deployed, Start, SwitchBack, Withdraw
from rollout.actuate import TrafficActuator, WorkloadActuator
from rollout.analysis.ledger import EvidenceIncrement, Ledger
from rollout.commands import Command, Target, Verb
from rollout.decide import Decision, decide, housekeeping
from rollout.errors import LogConflict, RolloutError, UnknownRollout
from rollout.event_log.base import Entry, EventLog, Kind, NewEntry
from rollout.observation import Observation
from rollout.observe import observe
from rollout.specs import RolloutSpec
from rollout.status import ModelStatus, apply
from rollout.traffic_routers.gateway import GatewayRouter
from rollout.workloads.base import WorkloadPort
from serving.outcomes import Events, Totals

log = logging.getLogger(__name__)

TICK_S = 0.1
LEASE_S = 10.0
HEARTBEAT_S = 2.0
TOTALS_LOG_S = 1.0
"""Cumulative counters go into the log at most this often, and always before a decision that used them."""

CONTROLLER = "controller"
"""The actor of decisions that nobody asked for."""


class Controller:
    """Holds every model's status and evidence; the only writer of both.

    All methods must be called from one event loop. `on_lost` is called when another controller has taken the
    leadership: the process should end and start again as a follower.
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
    ) -> None:
        self._log = event_log
        self._router = router
        self._holder = holder
        self._clock = clock
        self._new_id = new_id
        self._fence: int | None = None
        self._statuses: dict[str, ModelStatus] = {}
        self._ledgers: dict[str, Ledger] = {}
        self._waiting: dict[str, Decision] = {}
        self._unlogged: dict[tuple[str, str, str], EvidenceIncrement] = {}
        self._accepted: dict[tuple[str, str], int] = {}
        self.rollbacks: Counter[tuple[str, str]] = Counter()
        """By (model, trigger), since the log began."""
        self._traffic = TrafficActuator(router)
        self.workloads = WorkloadActuator(workloads, self._led_statuses, self._wake_up)
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
    def statuses(self) -> tuple[ModelStatus, ...]:
        """Every model's status."""
        return tuple(self._statuses.values())

    @property
    def workload_message(self) -> str:
        """Why the workloads can't be observed or changed; empty when they can."""
        return self.workloads.message if self.workloads.seen is None or self.workloads.message else ""

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
        return self._observe(self.status(model), self._ledgers.get(model))

    def _observe(self, status: ModelStatus, ledger: Ledger | None) -> Observation:
        applications = {d.application for d in status.running()}
        return observe(self._router.view(), self.workloads.seen, ledger, applications)

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
        while not self.try_to_lead():  # noqa: ASYNC110 - the lease lies in the store; nothing here could be awaited
            await asyncio.sleep(LEASE_S / 5)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.workloads.run())
            tasks.create_task(self._keep_leading())
            tasks.create_task(self._tick_for_ever())

    def try_to_lead(self) -> bool:
        """Take the leadership if it is free, and fold the log; False while another controller leads."""
        fence = self._log.acquire(self._holder, self._clock(), LEASE_S)
        if fence is None:
            return False
        self._recover()
        self._fence = fence
        log.info("leading with fence %d, %d models", fence, len(self._statuses))
        return True

    async def _keep_leading(self) -> None:
        while True:
            assert self._fence is not None
            if not self._log.renew(self._holder, self._fence, self._clock(), LEASE_S):
                raise LogConflict("the lease was lost; another controller leads")
            await self._router.heartbeat(self._fence)
            await asyncio.sleep(HEARTBEAT_S)

    def _recover(self) -> None:
        """Fold the whole log: statuses from commands and decisions, ledgers from evidence."""
        for entry in self._log.read():
            if entry.kind is Kind.EVIDENCE:
                self._fold_evidence(entry.model, EvidenceIncrement.model_validate(entry.payload))
            else:
                decision = Decision.model_validate(entry.payload["decision"])
                self._fold(entry.model, decision, at=entry.at, actor=entry.actor)

    def _led_statuses(self) -> tuple[ModelStatus, ...] | None:
        return self.statuses if self._fence is not None else None

    # -- deciding -----------------------------------------------------------------------------------------------

    def _wake_up(self) -> None:
        self._wake.set()

    async def _tick_for_ever(self) -> None:
        while True:
            await self.tick()
            try:
                await asyncio.wait_for(self._wake.wait(), TICK_S)
            except TimeoutError:
                continue
            finally:
                self._wake.clear()

    async def tick(self) -> None:
        """Judge every model once and make the traffic follow."""
        for model in tuple(self._statuses):
            self._judge(model)
        self._log_totals(only_older_than=self._clock() - TOTALS_LOG_S)
        await self._follow()

    async def _follow(self) -> None:
        if self._fence is not None:
            await self._traffic.follow(self.statuses, fence=self._fence, now=self._clock())

    def _judge(self, model: str) -> None:
        status, now = self._statuses[model], self._clock()
        active = status.rollout is not None and status.rollout.active
        seen = self._observe(status, self._ledgers.get(model) if active else None)
        if status.rollout is not None and active:
            decision = decide(status.rollout.spec, status, seen, now)
            if decision.actions:
                self._commit(model, decision, seen, actor=CONTROLLER)
            else:
                self._waiting[model] = decision
        done = housekeeping(self._statuses[model], seen, now)
        if done is not None:
            self._commit(model, done, seen, actor=CONTROLLER)

    def _commit(
        self, model: str, decision: Decision, seen: Observation | None, *, actor: str, command: Command | None = None
    ) -> None:
        assert self._fence is not None
        self._log_totals(only=model)
        at = self._clock()
        payload = {
            "decision": decision.model_dump(mode="json"),
            "observation": None if seen is None else seen.model_dump(mode="json"),
            "command": None if command is None else command.model_dump(mode="json"),
        }
        kind = Kind.DECISION if command is None else Kind.COMMAND
        self._log.append([NewEntry(model=model, at=at, kind=kind, actor=actor, payload=payload)], self._fence)
        self._fold(model, decision, at=at, actor=actor)
        log.info("%s: %s: %s", model, decision.cause, decision.reason)
        self.workloads.wake()
        self._wake_up()
        for listener in tuple(self._listeners):
            listener(self._statuses[model])

    def _fold(self, model: str, decision: Decision, *, at: float, actor: str) -> None:
        status = self._statuses.get(model) or ModelStatus(model=model)
        self._waiting.pop(model, None)
        status = apply(status, decision.actions, at=at, reason=decision.reason, actor=actor)
        self._statuses[model] = status
        for action in decision.actions:
            if isinstance(action, Withdraw | SwitchBack):
                self.rollbacks[(model, action.trigger.value)] += 1
            if isinstance(action, Start):
                stable = status.stable.digest if status.stable is not None else None
                self._ledgers[model] = Ledger(action.rollout, action.spec, canary=action.target.digest, stable=stable)
        if (rollout := status.rollout) is not None and model in self._ledgers:
            self._ledgers[model].weight = rollout.weight

    # -- evidence -----------------------------------------------------------------------------------------------

    def on_events(self, gateway: str, boot: str, message: Events) -> int:
        """Book events in the log and the ledger, then judge at once. Returns the highest sequence that is safe."""
        last = self._accepted.get((gateway, boot), 0)
        if self._fence is None:
            return last
        fresh = tuple(e for e in message.events if e.sequence > last)
        by_model: dict[tuple[str, str], list[int]] = {}
        for index, event in enumerate(fresh):
            by_model.setdefault((event.model, event.rollout), []).append(index)
        for (model, rollout), indexes in by_model.items():
            ledger = self._ledgers.get(model)
            if ledger is None or ledger.rollout != rollout:
                continue  # a rollout that is over: its events came late and change nothing
            chosen = tuple(fresh[i] for i in indexes if ledger.watches(fresh[i].signal))
            if not chosen:
                continue
            increment = EvidenceIncrement(rollout=rollout, gateway=gateway, boot=boot, events=chosen)
            self._append_evidence(model, increment)
            self._fold_evidence(model, increment)
        for model in {model for model, _ in by_model} & self._statuses.keys():
            self._judge(model)
        safe = max([last, *(e.sequence for e in fresh)])
        self._accepted[(gateway, boot)] = safe
        return safe

    def on_totals(self, gateway: str, boot: str, message: Totals) -> None:
        """Fold cumulative counters into the ledgers; they are logged later, since the newest replaces the others."""
        for model, rollout in {(t.model, t.rollout) for t in message.totals if t.rollout}:
            increment = EvidenceIncrement(
                rollout=rollout,
                gateway=gateway,
                boot=boot,
                at=self._clock(),
                totals=tuple(t for t in message.totals if (t.model, t.rollout) == (model, rollout)),
                settled_through=message.settled_through.get(model, 0),
            )
            if self._fold_evidence(model, increment):
                self._unlogged.setdefault((model, gateway, boot), increment)
                first = self._unlogged[(model, gateway, boot)]
                self._unlogged[(model, gateway, boot)] = increment.model_copy(update={"at": first.at})

    def _fold_evidence(self, model: str, increment: EvidenceIncrement) -> bool:
        key = (increment.gateway, increment.boot)
        if increment.events:
            self._accepted[key] = max(self._accepted.get(key, 0), increment.events[-1].sequence)
        ledger = self._ledgers.get(model)
        return ledger is not None and ledger.add(increment)

    def _log_totals(self, *, only: str | None = None, only_older_than: float | None = None) -> None:
        for key, increment in tuple(self._unlogged.items()):
            if only is not None and key[0] != only:
                continue
            if only_older_than is not None and increment.at > only_older_than:
                continue
            del self._unlogged[key]
            self._append_evidence(key[0], increment)

    def _append_evidence(self, model: str, increment: EvidenceIncrement) -> None:
        assert self._fence is not None
        payload = increment.model_dump(mode="json", exclude_defaults=True)
        entry = NewEntry(
            model=model, at=self._clock(), kind=Kind.EVIDENCE, actor=f"gateway/{increment.gateway}", payload=payload
        )
        self._log.append([entry], self._fence)

    # -- commands -----------------------------------------------------------------------------------------------

    def new_target(self, spec: RolloutSpec, deployed: Deployed) -> Target:
        """What a deployment would start: with an id and a secret salt of its own."""
        return Target(rollout=self._new_id(), spec=spec, deployed=deployed, salt=self._new_id() + self._new_id())

    def plan(self, model: str, command: Command, target: Target | None) -> Decision:
        """What a command would do now, without doing it.

        Raises:
            CommandRefused, Quarantined, UnknownRollout: it would be refused.

        """
        if command.verb in (Verb.DEPLOY, Verb.RETRY, Verb.UNDO):
            assert target is not None
            return commands.deploy(self._statuses.get(model) or ModelStatus(model=model), target, command)
        status = self.status(model)
        match command.verb:
            case Verb.PROMOTE:
                return commands.promote(status, command)
            case Verb.PAUSE:
                return commands.pause(status, command)
            case Verb.RESUME:
                return commands.resume(status, command)
            case Verb.ABORT:
                return commands.abort(status, command)
            case Verb.ACK:
                return commands.acknowledge(status, command, tuple(status.quarantine))
            case Verb.ROLLBACK:
                return commands.rollback(status, command, target)
        raise AssertionError(command.verb)

    async def execute(self, model: str, command: Command, target: Target | None = None) -> Decision:
        """Carry out an operator's command: logged, folded, and pushed to the gateways before this returns.

        Raises:
            RolloutError: it was refused, or this controller does not lead.

        """
        self.require_leadership()
        decision = self.plan(model, command, target)
        seen = self.observation(model) if model in self._statuses else None
        self._commit(model, decision, seen, actor=command.actor, command=command)
        await self._follow()
        return decision


class NotLeading(RolloutError):
    """A command reached a controller that does not lead."""

    retryable = True
