"""A world in virtual time for the controller: engines that load, gateways that assign and report, and crashes.

The controller, the event log, the ledger, the gateway hub and the wire messages are the real ones; only engines and
clients are made up. Gateways here follow serving/outcomes.py to the letter, settlement included.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import random
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rollout.actions import Deployed
from rollout.commands import Command, Verb
from rollout.controller import Controller
from rollout.decide import Decision
from rollout.errors import WorkloadRejected, WorkloadUnavailable
from rollout.event_log.base import EventLog
from rollout.event_log.memory import MemoryEventLog
from rollout.observation import SmokeResult
from rollout.specs import RolloutSpec, parse_spec
from rollout.status import ModelStatus, Stage
from rollout.traffic_routers.gateway import Connection, GatewayRouter
from rollout.workloads.base import Workload, WorkloadState, WorkloadStatus
from serving.outcomes import (
    FROM_CONTROLLER,
    Accepted,
    Ack,
    Cause,
    Event,
    Events,
    Hello,
    Signal,
    TablePush,
    Total,
    Totals,
)
from serving.specs import EngineKind, RevisionSpec
from serving.traffic import Generation, RevisionTraffic, Role, TrafficTable, assigned_role

MODEL = "chat"


def deployed(version: str, model: str = MODEL) -> Deployed:
    """A simulated version; its manifest digest follows from its name."""
    manifest = hashlib.sha256(f"{model}@{version}".encode()).hexdigest()
    revision = RevisionSpec(
        model=model, version=version, manifest_sha256=manifest, engine=EngineKind.SIMULATED, source="sim:?"
    )
    return Deployed(revision=revision)


CANARY_STEPS = {
    "canary": {"steps": [{"weight": 10, "duration": "1s"}, {"weight": 50, "duration": "1s"}, {"weight": 100}]}
}
BETA = {"header": "x-beta", "value": "1"}
SMOKE = [{"name": "greeting", "prompt": "Hello", "expect": {"notMatches": "^$"}}]
BLUE_GREEN = {"blueGreen": {"testers": [BETA], "smoke": SMOKE, "previewDuration": "1s"}}
SHADOW = {"shadow": {"mirrorPercent": 50, "duration": "1s", "pairs": 100, "onPassed": "promote"}}
AB = {"ab": {"weight": 40, "sessions": 300}}
SOAK = {"canary": {**CANARY_STEPS["canary"], "soak": "3s", "testers": [BETA]}}
STRATEGIES: dict[str, dict[str, Any]] = {
    "canary": CANARY_STEPS,
    "soak": SOAK,
    "blue-green": BLUE_GREEN,
    "shadow": SHADOW,
    "ab": AB,
}


def spec(version: str, **changes: Any) -> RolloutSpec:
    """A spec with short steps: 10 and 50 percent, one second each."""
    body: dict[str, Any] = {"model": MODEL, "version": version, "strategy": CANARY_STEPS}
    return parse_spec(body | changes)


class SimulatedWorkloads:
    """Engines that take `load_s` to become ready. What runs survives the controller."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.desired: dict[str, Workload] = {}
        self.started_at: dict[str, float] = {}
        self.failed: dict[str, str] = {}
        self.restarts: dict[str, int] = {}
        self.trouble: dict[str, str] = {}
        """By application: what keeps it from becoming ready."""
        self.hidden: dict[str, str] = {}
        """By application: why nothing can be told of it."""
        self.refusal = ""
        """What is said of a workload of another model that is refused at every write."""
        self.lost: dict[str, int] = {}
        """By application: how many of its replicas do not answer."""
        self.away = False
        self.writes = 0
        self.ever_ready: set[str] = set()

    async def apply(self, desired: Sequence[Workload]) -> None:
        if self.away:
            raise WorkloadUnavailable("Ray is away")
        wanted = {w.application: w for w in desired}
        if wanted != self.desired:
            self.writes += 1
        for application in wanted.keys() - self.desired.keys():
            self.started_at[application] = self._world.now
        for application in self.desired.keys() - wanted.keys():
            self._world.on_removed(application)
            self.ever_ready.discard(application)
        self.desired = wanted
        if self.refusal:
            raise WorkloadRejected(self.refusal)

    async def shortage(self, wanted: Workload) -> str:
        return ""

    async def observe(self) -> Mapping[str, WorkloadStatus]:
        if self.away:
            raise WorkloadUnavailable("Ray is away")
        hidden = {
            a: WorkloadStatus(application=a, state=WorkloadState.UNKNOWN, message=why) for a, why in self.hidden.items()
        }
        return {a: self._status(a) for a in self.desired} | hidden

    def _status(self, application: str) -> WorkloadStatus:
        restarts = self.restarts.get(application, 0)
        if application in self.failed:
            message = self.failed[application]
            return WorkloadStatus(application=application, state=WorkloadState.FAILED, message=message)
        if application in self.trouble:
            message = self.trouble[application]
            return WorkloadStatus(application=application, state=WorkloadState.STARTING, message=message)
        if self._world.now < self.started_at[application] + self._world.load_s:
            return WorkloadStatus(application=application, state=WorkloadState.STARTING, restarts=restarts)
        self.ever_ready.add(application)
        there = self._answering(application)
        state = WorkloadState.READY if there == self.desired[application].replicas else WorkloadState.DEGRADED
        return WorkloadStatus(application=application, state=state, ready_replicas=there, restarts=restarts)

    def _answering(self, application: str) -> int:
        return max(0, self.desired[application].replicas - self.lost.get(application, 0))

    def ready(self, application: str) -> bool:
        """Whether it answers now."""
        if application not in self.desired or application in self.failed or application in self.trouble:
            return False
        ready = self._world.now >= self.started_at[application] + self._world.load_s
        if ready:
            self.ever_ready.add(application)
        return ready and self._answering(application) > 0

    async def close(self) -> None:
        """Nothing to close."""


@dataclass
class Served:
    """One request, as the world saw it."""

    version: str | None
    role: Role
    at: float
    forced: bool
    tester: bool = False
    weight: int = 0
    """The canary's, as the gateway's table said."""
    unheard_s: float = 0.0
    """How long that gateway had heard nothing from a controller."""


@dataclass
class SimulatedGateway:
    """One gateway process: obeys the newest table, counts, and reports as serving/outcomes.py says."""

    name: str
    world: World
    boot: str = "boot-1"
    table: TrafficTable | None = None
    connection: Connection | None = None
    events: list[Event] = field(default_factory=list)
    accepted: int = 0
    sequence: int = 0
    admissions: int = 0
    totals: dict[tuple[str, str, int], Total] = field(default_factory=dict)
    last_heard: float = 0.0
    cut: bool = False

    async def connect(self, hub: GatewayRouter) -> None:
        """Dial the controller."""
        generation = self.table.generation if self.table else Generation(0, 0)
        hello = Hello(gateway=self.name, boot=self.boot, fence=generation.fence, sequence=generation.sequence)
        self.connection = await hub.attach(hello, self.on_message)

    async def on_message(self, text: str) -> None:
        """Take a message of the controller."""
        if self.cut:
            raise ConnectionError("cut off")
        message = FROM_CONTROLLER.validate_json(text)
        self.last_heard = self.world.now
        if isinstance(message, TablePush) and (self.table is None or message.table.generation > self.table.generation):
            self.table = message.table
            self.world.pending_acks.append(self)
        elif isinstance(message, Accepted):
            self.accepted = max(self.accepted, message.through)
            self.events = [e for e in self.events if e.sequence > self.accepted]

    def request(self, rng: random.Random, *, tester: bool = False) -> Served:
        """Answer one request and book its outcome at once. `tester`: it carries the testers' header."""
        now, unheard_s = self.world.now, self.world.now - self.last_heard
        traffic = self.table.model(MODEL) if self.table else None
        if traffic is None or not traffic.revisions:
            return Served(None, Role.STABLE, now, True)
        stable, canary = traffic.by_role(Role.STABLE), traffic.by_role(Role.CANARY)
        weight = 0 if canary is None or unheard_s > 15.0 else canary.weight
        can_canary = canary is not None and self.world.workloads.ready(canary.application)
        pinned = tester and can_canary and unheard_s <= 15.0 and any(t.header == "x-beta" for t in traffic.testers)
        forced = pinned or not (0 < weight < 100 and can_canary)
        if pinned:
            role = Role.CANARY
        else:
            role = Role.STABLE if forced else assigned_role(traffic.salt, str(rng.random()), weight)
        revision = canary if role is Role.CANARY else stable
        assert revision is not None
        self.admissions += 1
        rollout = traffic.rollout or ""
        watched = traffic.watch and role is Role.STABLE and forced and rollout != ""
        if watched:
            self._book(rollout, revision, role, 100, "watched", rng)
        else:
            self._book(rollout, revision, role, weight, "forced" if forced else "compared", rng)
        mirrored = traffic.mirror_percent and rollout and role is Role.STABLE and can_canary
        if mirrored and rng.random() * 100 < traffic.mirror_percent:
            assert canary is not None
            assert stable is not None
            self._mirror(rollout, stable, canary, rng)
        return Served(revision.version, role, now, forced, pinned, weight, unheard_s)

    def _happened(self, version: str, rng: random.Random) -> set[Signal]:
        return {s for s, p in self.world.faults.get(version, {}).items() if rng.random() < p}

    def _book(
        self, rollout: str, revision: RevisionTraffic, role: Role, weight: int, how: str, rng: random.Random
    ) -> None:
        """Count one request: `compared` and `watched` ones are evidence, `forced` ones are not."""
        happened = self._happened(revision.version, rng) if how != "forced" and rollout else set()
        for signal in happened:
            self._tell(rollout, revision, role, weight, signal, paired=False)
        skew = 3 if self.world.skewed and role is Role.CANARY else 1
        self._count(
            rollout, revision, role, weight, happened, forced=how == "forced", sights=skew * (how == "compared")
        )

    def _mirror(self, rollout: str, stable: RevisionTraffic, canary: RevisionTraffic, rng: random.Random) -> None:
        """A pair of answers: an event only where exactly one of them shows it."""
        answers = {r.digest: self._happened(r.version, rng) for r in (stable, canary)}
        for revision, other, role in ((stable, canary, Role.STABLE), (canary, stable, Role.CANARY)):
            alone = answers[revision.digest] - answers[other.digest]
            for signal in alone:
                self._tell(rollout, revision, role, 50, signal, paired=True)
            self._count(rollout, revision, role, 50, alone, forced=False, sights=0)

    def _tell(
        self, rollout: str, revision: RevisionTraffic, role: Role, weight: int, signal: Signal, *, paired: bool
    ) -> None:
        self.sequence += 1
        self.events.append(
            Event(
                sequence=self.sequence, model=MODEL, rollout=rollout, signal=signal, cause=Cause.VERSION, arm=role,
                digest=revision.digest, weight=weight, paired=paired, admission=self.admissions,
                admitted_at=self.world.now, settled_at=self.world.now,
            )
        )  # fmt: skip

    def _count(
        self,
        rollout: str,
        revision: RevisionTraffic,
        role: Role,
        weight: int,
        happened: set[Signal],
        *,
        forced: bool,
        sights: int,
    ) -> None:
        key = (rollout, revision.digest, weight)
        now = self.world.now
        total = self.totals.get(key) or Total(
            model=MODEL, rollout=rollout, digest=revision.digest, role=role, weight=weight, first_admitted_at=now
        )
        counted = dict(total.settled_events)
        for signal in happened:
            counted[signal.value] = counted.get(signal.value, 0) + 1
        self.totals[key] = total.model_copy(
            update={
                "admitted": total.admitted + (not forced),
                "settled": total.settled + (not forced),
                "forced": total.forced + forced,
                "first_sights": total.first_sights + sights,
                "settled_events": counted,
                "last_admitted_at": now,
            }
        )

    async def report(self, hub: GatewayRouter, *, doubled: bool = False) -> None:
        """Send what is unsent; `doubled` sends it twice, as a reconnect may."""
        if self.connection is None or self.cut or self.connection not in hub.connections:
            return
        for _ in range(2 if doubled else 1):
            if self.events:
                await hub.receive(self.connection, Events(events=tuple(self.events)).model_dump_json())
            totals = Totals(
                sent_at=self.world.now,
                totals=tuple(self.totals.values()),
                settled_through={MODEL: self.admissions},
                endpoints_ready={a: 1 for a in self.world.workloads.desired if self.world.workloads.ready(a)},
                in_flight={d: n for d, n in self.world.streams.items() if n},
            )
            await hub.receive(self.connection, totals.model_dump_json())

    async def acknowledge(self, hub: GatewayRouter) -> None:
        """Tell that the newest table is in force."""
        if self.connection is None or self.table is None or self.cut or self.connection not in hub.connections:
            return
        ack = Ack(fence=self.table.fence, sequence=self.table.sequence, applied_at=self.world.now)
        await hub.receive(self.connection, ack.model_dump_json())


class World:
    """Everything at once. Time moves only when told."""

    def __init__(
        self, *, seed: int = 0, load_s: float = 1.0, replicas: int = 1, event_log: EventLog | None = None
    ) -> None:
        self.now = 1_000_000.0
        self.load_s = load_s
        self.replicas = replicas
        self.rng = random.Random(seed)
        self.log: EventLog = event_log or MemoryEventLog()
        self.faults: dict[str, dict[Signal, float]] = {}
        self.bad_smoke: set[str] = set()
        """Versions that fail the smoke suite."""
        self.skewed = False
        """Whether gateways miscount the first sights of sessions."""
        self.streams: dict[str, int] = {}
        self.served: list[Served] = []
        self.removed: list[str] = []
        self.pending_acks: list[SimulatedGateway] = []
        self._ids = itertools.count(1)
        self._loop = asyncio.new_event_loop()
        self.workloads = SimulatedWorkloads(self)
        self.gateways = [SimulatedGateway("gateway-0", self)]
        self.start_controller()

    # -- the controller's process ---------------------------------------------------------------------------------

    def start_controller(self) -> None:
        """Start a controller on the same log; the old one, if any, is simply gone."""
        self.hub = GatewayRouter(lambda: self.now)
        self.controller = Controller(
            event_log=self.log,
            workloads=self.workloads,
            router=self.hub,
            holder="world",
            clock=lambda: self.now,
            new_id=lambda: f"{next(self._ids):08x}",
        )
        assert self.controller.try_to_lead()
        for gateway in self.gateways:
            self.run(gateway.connect(self.hub))

    def run(self, action: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine to its end."""
        return self._loop.run_until_complete(action)

    def close(self) -> None:
        """Release the event loop."""
        self._loop.close()

    def on_removed(self, application: str) -> None:
        """The workload layer has stopped an application."""
        self.removed.append(application)

    # -- time -----------------------------------------------------------------------------------------------------

    def step(self, seconds: float = 0.5, *, requests: int = 0, doubled: bool = False) -> None:
        """Let time pass, serve requests, report, decide, follow."""
        self.now += seconds
        for _ in range(requests):
            tester = self.rng.random() < 0.1
            self.served.append(self.rng.choice(self.gateways).request(self.rng, tester=tester))
        self._run_smoke_suite()
        for gateway in self.gateways:
            self.run(gateway.report(self.hub, doubled=doubled))
        self.run(self.controller.workloads.once())
        self.run(self.controller.tick())
        acks, self.pending_acks = self.pending_acks, []
        for gateway in acks:
            self.run(gateway.acknowledge(self.hub))
        self.run(self._loop_heartbeat())

    def _run_smoke_suite(self) -> None:
        for status in self.controller.statuses:
            rollout = status.rollout
            if rollout is None or rollout.stage is not Stage.PREVIEWING:
                continue
            if not self.workloads.ready(rollout.target.application):
                continue
            bad = rollout.target.version in self.bad_smoke
            failed = ("greeting",) if bad else ()
            self.controller.note_smoke(rollout.id, SmokeResult(passed=not bad, ran=1, failed=failed))

    async def _loop_heartbeat(self) -> None:
        await self.hub.heartbeat(1)

    def until(self, condition: Any, *, steps: int = 400, requests: int = 20) -> None:
        """Step until a condition holds.

        Raises:
            AssertionError: it never did; the message tells where the model stands.
        """
        for _ in range(steps):
            if condition():
                return
            self.step(requests=requests)
        waiting = self.controller.waiting_for(MODEL)
        raise AssertionError(f"never: phase {self.status.phase}, {self.status.reason}; waits for {waiting}")

    # -- people ---------------------------------------------------------------------------------------------------

    @property
    def status(self) -> ModelStatus:
        """The model's status."""
        return self.controller.status(MODEL)

    def deploy(self, version: str, **changes: Any) -> Decision:
        """Ask for a rollout."""
        engine = {"minReplicas": self.replicas, **changes.pop("engine", {})}
        asked = spec(version, engine=engine, **changes)
        wanted = deployed(version).model_copy(update={"replicas": asked.engine.min_replicas})
        target = self.controller.new_target(asked, wanted)
        command = Command(verb=Verb.DEPLOY, actor="ada")
        decision: Decision = self.run(self.controller.execute(MODEL, command, target))
        return decision

    def say(self, verb: Verb, **arguments: Any) -> Decision:
        """Say a verb without a target."""
        decision: Decision = self.run(self.controller.execute(MODEL, Command(verb=verb, actor="ada", **arguments)))
        return decision

    def first(self, version: str = "1.0.0") -> None:
        """Deploy a first version and wait until it is stable."""
        self.deploy(version)
        self.until(lambda: self.status.stable is not None)
