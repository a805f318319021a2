"""From resources to commands and back to statuses. Shell around intent.py and telling.py.

For each resource, again and again: what does it ask of the controller (`intent`)? Do that. What does the controller
say of its model now (`tell`)? Write that, if it is not what stands there already. Nothing here decides about traffic:
the controller does, by the same commands that the command line gives on one machine.

Whatever goes wrong with one resource (the registry is away, the API server says no) is told in its status where that
can be written, tried again after a growing pause, and keeps no other resource waiting.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from typing import Any, assert_never

from registry.errors import RegistryError, UnknownModel, UnknownVersion
from rollout.actions import Deployed
from rollout.commands import Command, Target
from rollout.controller import Controller
from rollout.errors import (
    ClusterConflict,
    ClusterError,
    ClusterRejected,
    ClusterUnavailable,
    CommandRefused,
    EventLogUnavailable,
    InsufficientCapacity,
    InvalidSpec,
    NotLeading,
    Quarantined,
    ResourceGone,
    RolloutError,
    UnknownRollout,
)
from rollout.operator.base import ResourceWriter
from rollout.operator.documents import Handled, Outcome, same
from rollout.operator.intent import Ask, Intent, Known, hurries, intent, rivals
from rollout.operator.memory import Memory
from rollout.operator.names import API_VERSION, KIND
from rollout.operator.resource import Key, Resource, read_resource
from rollout.operator.telling import Note, Problem, Seen, notes, tell, without_evidence
from rollout.specs import RolloutSpec
from rollout.status import ModelStatus
from rollout.workloads.base import Owner

log = logging.getLogger(__name__)

EVIDENCE_S = 10.0
"""How often a status is written in which nothing but counts of requests has changed."""
ACTIVE_S = 2.0
"""How often a resource is looked at whose rollout is under way: gateways and workloads change without a decision."""
RESYNC_S = 30.0
"""How often every other one is."""
WORKERS = 8
"""How many resources are looked at at a time; each waits for the API server most of it."""
RESERVED = 2
"""So many of them look at nothing but rollbacks and aborts: a registry that hangs must not hold those up."""
RESOLVE_S = 120.0
"""How long the registry may take for one version."""
MAX_ACTS = 12
"""Acts in one look at a resource; more would be a loop."""
RETRY_S = (0.5, 30.0)
"""The first and the longest pause after the cluster did not do what was asked."""
HOLD_S = 1.0
"""How long to wait while the event log is away or this controller does not lead."""

SETTLING_S = 20.0
"""After a start gateways dial in and workloads are looked at; meanwhile what was known before is not unsaid."""

Resolve = Callable[[RolloutSpec, str], Awaitable[Deployed]]
"""The revision that a spec asks for, in a namespace."""
Aim = Callable[[str, Command], Awaitable[Target | None]]
"""What a verb would have to start, if anything; the same for every door by which commands come in."""


class Reconciler:
    """Carries out the wishes of all resources of one release.

    All methods must be called from the controller's event loop.

    Args:
        controller: whom to tell.
        resolve: turns a spec into a revision; slow.
        aim: turns a verb into what it starts.
        writer: the cluster.
        clock: seconds since the epoch.
        monotonic: seconds that never go back.
        judge: gives the text of the policy that scores a rollout's answers.

    """

    def __init__(
        self,
        *,
        controller: Controller,
        resolve: Resolve,
        aim: Aim,
        writer: ResourceWriter,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
        judge: Callable[[RolloutSpec], str] = lambda _: "",
    ) -> None:
        self._controller = controller
        self._judge = judge
        self._resolve = resolve
        self._aim = aim
        self._writer = writer
        self._clock = clock
        self._monotonic = monotonic
        self._began: float | None = None
        self._resources: dict[Key, Resource] = {}
        self._rivals: dict[str, Resource] = {}
        self._memories: dict[str, Memory] = {}
        self._due: dict[Key, float] = {}
        self._busy: set[Key] = set()
        self._hurried: set[Key] = set()
        """Whom a rollback or an abort waits for."""
        self._unposted = False
        """Whether the last Event was refused."""
        self._wake = asyncio.Event()
        self.message = ""
        """Why the cluster does not take what is written; empty while it does."""
        self.unseen: Callable[[], str] = lambda: ""
        """Says why resources are not watched, where somebody has to do something about it."""

    # -- what is there -------------------------------------------------------------------------------------------------

    @property
    def resources(self) -> tuple[Resource, ...]:
        """Every resource, as it was read last."""
        return tuple(self._resources.values())

    @property
    def backlog(self) -> int:
        """How many resources are to be looked at now."""
        now = self._monotonic()
        return len(self._busy) + sum(at <= now for at in self._due.values())

    def owner_of(self, model: str) -> Owner | None:
        """The resource that has a model; what is made for the model is collected with it."""
        own = (r for r in self._resources.values() if r.model == model and r.uid not in self._rivals)
        return next((_owner(r) for r in own), None)

    def replace_all(self, bodies: Iterable[Mapping[str, Any]], unseen: Collection[str] = ()) -> None:
        """Take a listing: what is not in it is gone, but for namespaces that it can tell nothing of."""
        found = [read_resource(body) for body in bodies]
        kept = {r.key: r for r in found}
        for key in [k for k in self._resources if k not in kept and k.namespace not in unseen]:
            self._forget(key)
        for resource in found:
            self._take(resource)
        self._rivalry()
        for key in self._resources:
            self.wake(key)

    def see(self, body: Mapping[str, Any], *, gone: bool = False) -> None:
        """Take one resource as it is now, or note that it is gone."""
        resource = read_resource(body)
        known = self._resources.get(resource.key)
        if gone:
            self._forget(resource.key)
        else:
            self._take(resource)
        if gone or known is None or (known.model, known.uid) != (resource.model, resource.uid):
            self._rivalry()
        self.wake(resource.key)

    def _take(self, resource: Resource) -> None:
        known = self._resources.get(resource.key)
        # The answer to our own write may have been newer than what the watch tells later.
        if known is not None and known.uid == resource.uid and _older(resource.version, known.version):
            return
        self._resources[resource.key] = resource

    def _forget(self, key: Key) -> None:
        gone = self._resources.pop(key, None)
        self._due.pop(key, None)
        if gone is not None:
            self._memories.pop(gone.uid, None)

    def _rivalry(self) -> None:
        """Who yields to whom; whoever is concerned by a change is looked at again."""
        before, self._rivals = self._rivals, rivals(list(self._resources.values()))
        for resource in self._resources.values():
            was, now = before.get(resource.uid), self._rivals.get(resource.uid)
            if (was is None) != (now is None) or (was is not None and now is not None and was.key != now.key):
                self.wake(resource.key)

    def on_status(self, status: ModelStatus) -> None:
        """A model's status is another one: look at its resource. For `Controller.subscribe`."""
        for resource in self._resources.values():
            if resource.model == status.model:
                self.wake(resource.key)

    def wake(self, key: Key, after_s: float = 0.0) -> None:
        """Look at a resource, at the latest after so long."""
        at = self._monotonic() + after_s
        (self._hurried.add if self._hurries(key) else self._hurried.discard)(key)
        if key in self._resources and at < self._due.get(key, float("inf")):
            self._due[key] = at
            self._wake.set()

    # -- running -------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Look at whatever is due, for ever."""
        async with asyncio.TaskGroup() as tasks:
            for number in range(WORKERS):
                tasks.create_task(self._work(urgent=number < RESERVED))

    async def _work(self, *, urgent: bool) -> None:
        while True:
            key = self._next(urgent=urgent)
            if key is not None:
                await self.look(key)
                continue
            self._wake.clear()
            now = self._monotonic()
            waiting = (at for key, at in self._due.items() if key not in self._busy)
            next_at = now + RESYNC_S if urgent else min(waiting, default=now + RESYNC_S)
            try:
                # Not `wait_for`, which in Python 3.11 may swallow a cancellation that comes with the wake-up.
                async with asyncio.timeout(max(0.01, next_at - now)):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def _next(self, *, urgent: bool = False) -> Key | None:
        """Whom to look at now: rollbacks and aborts first, with `urgent` nobody else."""
        now = self._monotonic()
        ready = [
            (key not in self._hurried, at, key) for key, at in self._due.items() if at <= now and key not in self._busy
        ]
        if urgent:
            ready = [found for found in ready if not found[0]]
        return min(ready)[2] if ready else None

    def _hurries(self, key: Key) -> bool:
        resource = self._resources.get(key)
        return resource is not None and hurries(resource, self._controller.asked(resource.model))

    async def settle(self) -> None:
        """Look at everything that is due now, once. For tests and for a first pass."""
        while (key := self._next()) is not None:
            await self.look(key)

    async def look(self, key: Key) -> None:
        """One look at one resource, with all that follows from it."""
        self._due.pop(key, None)
        self._busy.add(key)
        try:
            after_s = await self._attend(key)
        except ClusterError as error:
            after_s = self._cluster_failed(key, error)
        except (EventLogUnavailable, NotLeading):
            after_s = HOLD_S
        except Exception:  # one resource must not stop the others
            log.exception("looking at %s/%s failed", *key)
            after_s = RETRY_S[1]
        finally:
            self._busy.discard(key)
        self.wake(key, after_s)
        if self._due.get(key, float("inf")) <= self._monotonic():  # asked for while it was busy
            self._wake.set()

    def _cluster_failed(self, key: Key, error: ClusterError) -> float:
        if isinstance(error, ResourceGone):
            self._forget(key)
            return RESYNC_S
        memory = self._memory(key)
        memory.failures += 1
        pause_s = min(RETRY_S[1], RETRY_S[0] * 2.0 ** min(memory.failures - 1, 10))
        match error:
            case ClusterConflict():
                return pause_s  # the watch brings what it is now
            case ClusterUnavailable():
                pause_s = max(pause_s, error.retry_after_s)
            case ClusterRejected():
                pause_s = RETRY_S[1]
        if str(error) != self.message:
            log.warning("%s/%s: %s; trying again", *key, error)
        self.message = str(error)
        return pause_s

    def _memory(self, key: Key) -> Memory:
        resource = self._resources.get(key)
        return self._memories.setdefault(resource.uid, Memory()) if resource is not None else Memory()

    # -- one resource --------------------------------------------------------------------------------------------------

    async def _attend(self, key: Key) -> float:
        """Do what a resource asks for, then tell how it stands; returns when to look again, in seconds."""
        self._controller.require_leadership()
        self._began = self._monotonic() if self._began is None else self._began
        if key not in self._resources:
            return RESYNC_S
        memory = self._memory(key)
        problem: Problem | None = None
        for _ in range(MAX_ACTS):
            resource = self._resources.get(key)
            if resource is None:
                return RESYNC_S
            what = intent(memory.laid_over(resource), self._known(resource, memory))
            again, problem = await self._act(resource, what, memory)
            if not again:
                break
        resource = self._resources.get(key)
        if resource is None:
            return RESYNC_S
        if problem is None and memory.tried is not None and memory.tried.wish == resource.wish:
            problem = memory.tried.problem
        rested_s = await self._tell(memory.laid_over(resource), memory, problem)
        memory.failures, self.message = 0, ""
        return rested_s

    def _known(self, resource: Resource, memory: Memory) -> Known:
        status = self._status(resource.model)
        tried = memory.tried
        if tried is not None and tried.over(self._clock(), status.quarantine if status is not None else ()):
            tried = None
        return Known(
            status=status,
            asked=self._controller.asked(resource.model),
            rival=self._rivals.get(resource.uid),
            tried=tried.wish if tried is not None else "",
        )

    def _status(self, model: str) -> ModelStatus | None:
        try:
            return self._controller.status(model) if model else None
        except UnknownRollout:
            return None

    async def _act(self, resource: Resource, what: Intent, memory: Memory) -> tuple[bool, Problem | None]:
        """Carry an intent out; says whether there may be more to do, and what stands in the way."""
        match what.ask:
            case Ask.NOTHING | Ask.WAIT:
                return False, None
            case Ask.REFUSE_NAME:
                return False, Problem("ModelNameTaken", what.why)
            case Ask.REFUSE_SPEC:
                return False, Problem("InvalidSpec", what.why)
            case Ask.REFUSE_ORDER:
                self._note(memory, what, Outcome.REFUSED, what.why)
                return True, None
            case Ask.HOLD | Ask.RELEASE:
                held = what.ask is Ask.HOLD
                self._back(resource.key, await self._writer.hold(resource, held=held), held=held)
                return held, None
            case Ask.UNDEPLOY | Ask.COMMAND:
                assert what.command is not None
                await self._command(resource, what, what.command, memory)
                return True, None
            case Ask.DEPLOY:
                assert what.command is not None
                await self._deploy(resource, what.command, memory)
                return True, None
            case _:
                assert_never(what.ask)

    async def _command(self, resource: Resource, what: Intent, command: Command, memory: Memory) -> None:
        try:
            target = await self._aim(resource.model, command)
            decision = await self._controller.execute(resource.model, command, target)
        except (CommandRefused, Quarantined, UnknownRollout, InvalidSpec, InsufficientCapacity, RegistryError) as error:
            if isinstance(error, RegistryError) and error.retryable:
                raise ClusterUnavailable(f"the registry did not answer: {error}") from error
            if what.ask is Ask.COMMAND:
                self._note(memory, what, Outcome.REFUSED, str(error))
            return
        if what.ask is Ask.COMMAND:
            self._note(memory, what, Outcome.DONE, decision.reason)

    def _note(self, memory: Memory, what: Intent, outcome: Outcome, message: str) -> None:
        assert what.verb is not None
        memory.handled[what.verb.value] = Handled(
            verb=what.verb.value, id=what.id, outcome=outcome, message=message[:1000]
        )

    async def _deploy(self, resource: Resource, command: Command, memory: Memory) -> None:
        """Deploy what the spec asks for; what stands in the way is remembered, and told."""
        assert resource.spec is not None
        wish, now = command.ask, self._clock()
        spec = resource.spec.model_copy(update={"paused": bool(resource.pause)})
        try:
            async with asyncio.timeout(RESOLVE_S):
                deployed = await self._resolve(spec, resource.key.namespace)
            target = self._controller.new_target(spec, deployed, self._judge(spec))
            await self._controller.execute(resource.model, command, target)
        except (UnknownModel, UnknownVersion) as error:
            memory.failed(wish, Problem("VersionNotFound", f"{error}; register it, it is looked for again"), now)
        except TimeoutError:
            told = f"the registry did not answer for {RESOLVE_S:.0f} s; it is tried again"
            memory.failed(wish, Problem("RegistryUnavailable", told), now)
        except RegistryError as error:
            reason = "RegistryUnavailable" if error.retryable else "VersionUnusable"
            memory.failed(wish, Problem(reason, f"{error}; it is tried again"), now)
        except Quarantined as error:
            memory.failed(wish, Problem("Quarantined", str(error)), now)
            assert memory.tried is not None
            status = self._status(resource.model)
            memory.tried.retry_at = None
            memory.tried.condemned = frozenset(status.quarantine if status is not None else ())
        except CommandRefused as error:  # it is what serves or rolls out already, however the rest of the spec changed
            memory.satisfied, memory.tried = wish, None
            memory.handled["deploy"] = Handled(
                verb="deploy", id=wish, outcome=Outcome.REFUSED, message=str(error)[:1000]
            )
        except (EventLogUnavailable, NotLeading):
            raise
        except RolloutError as error:  # no room, or what a spec can't say of itself: tried again, more and more seldom
            memory.failed(wish, Problem(type(error).__name__, str(error)), now)
        else:
            memory.tried = memory.satisfied = None

    def _back(self, key: Key, body: Mapping[str, Any], *, held: bool) -> None:
        """Take what the API server answered; a resource whose last finalizer was taken off is gone."""
        if body.get("metadata"):
            found = read_resource(body)
            if held or not found.deleting or body["metadata"].get("finalizers"):
                self._take(found)
                return
        self._forget(key)

    # -- telling -------------------------------------------------------------------------------------------------------

    async def _tell(self, resource: Resource, memory: Memory, problem: Problem | None) -> float:
        """Write the status if it is another one than stands there; returns when to look again."""
        now = self._clock()
        after = tell(resource, self._seen(resource, memory, problem), now)
        there = self._resources[resource.key]
        before = there.status
        rollout = self._status(resource.model)
        moving = rollout is not None and (rollout.canary is not None or rollout.retiring or rollout.leaving)
        rest_s = ACTIVE_S if moving else RESYNC_S
        if memory.tried is not None and memory.tried.retry_at is not None:
            rest_s = min(rest_s, max(HOLD_S, memory.tried.retry_at - now))
        written = {name: value for name, value in after.written().items() if name not in self._writer.undeclared}
        if same(written, there.written):
            return rest_s
        only_counts = without_evidence(after) == without_evidence(before) and before.signals != after.signals
        if only_counts and now - memory.written_at < EVIDENCE_S:
            return rest_s
        for note in notes(before, after):
            await self._post(resource, note)
        body = await self._writer.write_status(resource, written)
        memory.written_at = now
        self._back(resource.key, body, held=True)
        return rest_s

    async def _post(self, resource: Resource, note: Note) -> None:
        """Post an Event; one that the cluster does not accept keeps no status from being written."""
        try:
            await self._writer.post(resource, note)
        except ClusterRejected as error:
            if not self._unposted:
                log.warning("%s/%s: %s; statuses tell it all the same", *resource.key, error)
            self._unposted = True
        else:
            self._unposted = False

    def _seen(self, resource: Resource, memory: Memory, problem: Problem | None) -> Seen:
        owns = resource.uid not in self._rivals
        status = self._status(resource.model) if owns else None
        store, workloads = self._controller.store_message, self._controller.workloads_unseen(status)
        holding = (
            f"the event log is away: {store}" if store else f"the workloads are away: {workloads}" if workloads else ""
        )
        if not holding and (unseen := self.unseen()):
            holding = f"changes of resources are not seen: {unseen}"
        return Seen(
            status=status,
            observation=self._controller.observation(resource.model) if status is not None else None,
            waiting=self._controller.waiting_for(resource.model) if status is not None else None,
            holding=holding,
            problem=problem,
            handled=tuple(memory.handled.values()),
            handled_wish=resource.status.handled_wish if resource.status.handled_wish == resource.wish else None,
            owns=owns,
            fresh=self._began is None or self._monotonic() - self._began < SETTLING_S,
        )


def _owner(resource: Resource) -> Owner:
    namespace, name = resource.key
    return Owner(api_version=API_VERSION, kind=KIND, namespace=namespace, name=name, uid=resource.uid)


def _older(version: str, than: str) -> bool:
    """Whether one resourceVersion is before another; those of an API server are numbers that grow."""
    return version.isdigit() and than.isdigit() and int(version) < int(than)
