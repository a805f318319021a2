"""Random life of the simulated world, and what must hold whatever happens. Shared by the property and the mutants."""

from __future__ import annotations

import random
from typing import Any

from rollout.commands import Command, Verb
from rollout.errors import RolloutError
from rollout.event_log.base import Entry, Kind
from rollout.observation import Observation, Verdict
from rollout.status import ModelStatus, Stage
from serving.outcomes import Signal
from serving.traffic import ModelTraffic, RevisionTraffic, Role
from tests.simulation.world import MODEL, STRATEGIES, SimulatedGateway, World, deployed

VERSIONS = ("1.0.0", "1.0.1", "1.1.0", "1.2.0")
REPLICAS = 2
LEASE_S = 15.0


class Violated(AssertionError):
    """An invariant does not hold."""


class Chaos:
    """Drives a world and checks it after each move. Moves are methods named `do_*`, each taking a generator.

    `only` restricts deployments to one strategy; None means any.
    """

    def __init__(self, seed: int, only: str | None = None) -> None:
        self.world = World(seed=seed, load_s=1.0, replicas=REPLICAS)
        self.strategies = [only] if only else list(STRATEGIES)
        self.commands = 0
        self.log_checked_to = 0
        self.served_checked_to = 0
        self.fence = 0
        self.spoken = False
        """Whether the present controller has told its gateways anything yet."""
        self.current: dict[str, Any] = {}
        """The last `start` in the log."""
        self.most: dict[str, int] = {}
        """By version that was taken back: the most that it may still carry."""
        self.before = 0
        """What the version that is being rolled out still carried from the time before."""
        self.watched: str | None = None
        """The rollout that must be watched, from the log alone."""

    # -- moves ----------------------------------------------------------------------------------------------------

    def do_step(self, rng: random.Random) -> None:
        self.spoken = True
        for _ in range(rng.choice((1, 1, 4, 12))):
            seconds, requests = rng.choice((0.2, 0.5, 1.0, 1.0, 5.0)), rng.choice((0, 5, 40, 40))
            self.world.step(seconds, requests=requests, doubled=rng.random() < 0.3)
            self.check()
            self._evidence_is_heeded()

    def do_deploy(self, rng: random.Random) -> None:
        changes: dict[str, Any] = {"strategy": STRATEGIES[rng.choice(self.strategies)]}
        engine = {}
        if rng.random() < 0.15:
            changes["emergency"] = True
        if rng.random() < 0.15:
            engine["onShortage"] = "shed"
        if rng.random() < 0.1:
            engine["capacity"] = "replace"
        try:
            self.world.deploy(rng.choice(VERSIONS), drainDeadline="30s", rollbackWindow="20s", engine=engine, **changes)
            self.commands += 1
        except RolloutError:
            pass

    def do_say(self, rng: random.Random) -> None:
        verbs = (Verb.PROMOTE, Verb.PAUSE, Verb.RESUME, Verb.ABORT, Verb.ROLLBACK, Verb.ROLLBACK, Verb.ACK)
        verb = rng.choice(verbs)
        version = rng.choice(VERSIONS) if verb is Verb.ROLLBACK and rng.random() < 0.4 else None
        try:
            self.world.say(verb, full=rng.random() < 0.3, version=version)
            self.commands += 1
        except RolloutError:
            pass

    def do_crash(self, rng: random.Random) -> None:
        before = {s.model: s for s in self.world.controller.statuses}
        self.world.start_controller()
        self.spoken = False
        after = {s.model: s for s in self.world.controller.statuses}
        if before != after:
            raise Violated("a restarted controller stands elsewhere than the one before")

    def do_old_leader(self, rng: random.Random) -> None:
        """A controller that was replaced and does not know it goes on acting."""
        old = self.world.controller
        self.world.start_controller()
        self.spoken = False
        before = [e.id for e in self.world.log.read(after=self.log_checked_to)]
        try:
            self.world.run(old.tick())
            self.world.run(old.execute(MODEL, Command(verb=Verb.ABORT, actor="old")))
        except RolloutError:
            pass
        if [e.id for e in self.world.log.read(after=self.log_checked_to)] != before:
            raise Violated("a controller that had lost its leadership wrote into the log")

    def do_workloads_away(self, rng: random.Random) -> None:
        self.world.workloads.away = rng.random() < 0.3

    def do_lose_replicas(self, rng: random.Random) -> None:
        """Replicas of stable or of something else stop answering, or come back."""
        stable = [s.stable.application for s in self.world.controller.statuses if s.stable is not None]
        there = [*self.world.workloads.desired, *stable, *stable]
        if there:
            self.world.workloads.lost = {rng.choice(there): rng.choice((0, 1, 1, 2))}

    def do_break_version(self, rng: random.Random) -> None:
        rate = rng.choice((0.0, 0.0, 0.02, 0.9))
        signal = rng.choice((Signal.ERROR, Signal.LENGTH_STOP))
        self.world.faults = {rng.choice(VERSIONS): {signal: rate}}

    def do_break_answers(self, rng: random.Random) -> None:
        """A version begins or ceases to fail the smoke suite."""
        self.world.bad_smoke ^= {rng.choice(VERSIONS)}

    def do_skew(self, rng: random.Random) -> None:
        """Gateways begin or cease to lose the units of one arm."""
        self.world.skewed = rng.random() < 0.5

    def do_streams(self, rng: random.Random) -> None:
        """Streams begin on what has traffic, or end."""
        status = self.world.controller.statuses
        running = [d.digest for s in status for d in s.running()]
        if running:
            self.world.streams[rng.choice(running)] = rng.choice((0, 0, 3))

    def do_gateway(self, rng: random.Random) -> None:
        """A gateway comes, is cut off, or comes back."""
        gateways = self.world.gateways
        if len(gateways) < 3 and rng.random() < 0.4:
            gateway = SimulatedGateway(f"gateway-{len(gateways)}", self.world)
            gateways.append(gateway)
            self.world.run(gateway.connect(self.world.hub))
            return
        gateway = next((g for g in gateways if g.cut), None) or rng.choice(gateways)
        gateway.cut = not gateway.cut
        if not gateway.cut:
            self.world.run(gateway.connect(self.world.hub))

    def do_restart_engine(self, rng: random.Random) -> None:
        desired = list(self.world.workloads.desired)
        if desired:
            application = rng.choice(desired)
            self.world.workloads.started_at[application] = self.world.now + rng.choice((0.0, 2.0))

    def do_clock_back(self, rng: random.Random) -> None:
        self.world.now -= rng.choice((0.5, 3.0))

    # -- invariants -----------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise `Violated` when something that must hold does not."""
        self._follow_log()
        for status in self.world.controller.statuses if self.spoken else ():
            for gateway in self.world.gateways:
                if not gateway.cut and gateway.table is not None and (told := gateway.table.model(MODEL)) is not None:
                    self._weights(told, status)
                    self._watch(told)
        self._answers()
        self._nothing_needed_is_removed()
        self._commands_are_logged()

    def _follow_log(self) -> None:
        """What follows from the log alone: what was taken back, what must be watched, which decisions had grounds."""
        for entry in self.world.log.read(after=self.log_checked_to):
            self.log_checked_to = entry.id
            if entry.fence < self.fence:
                raise Violated(f"entry {entry.id} has fence {entry.fence} after {self.fence}")
            self.fence = entry.fence
            if entry.kind is Kind.EVIDENCE:
                continue
            for action in entry.payload["decision"]["actions"]:
                if entry.kind is Kind.DECISION:
                    self._had_grounds(entry, action)
                self._follow_action(action)

    def _had_grounds(self, entry: Entry, action: dict[str, Any]) -> None:
        """The controller by itself goes forward only on what the strategy asks for."""
        first = action["type"] == "set-step" and action["step"] == 0 and not action["soaking"]
        if action["type"] not in ("set-step", "promote") or first:
            return
        seen = Observation.model_validate(entry.payload["observation"])
        spec = self.current["spec"]
        name = next(key for key, part in spec["strategy"].items() if part is not None)
        starting = "is ready" in entry.payload["decision"]["reason"]
        if seen.sample_ratio is not None and seen.sample_ratio.mismatched:
            raise Violated(f"went forward though sessions did not divide as the weights say: {action}")
        if any(s.verdict is Verdict.FAILED for s in seen.signals):
            raise Violated(f"went forward though a signal had failed: {action}")
        if starting:
            return
        if name == "ab":
            raise Violated("an A/B test was promoted by nobody")
        if name == "blue_green" and not (seen.smoke is not None and seen.smoke.passed):
            raise Violated("switched without a smoke suite that passed")
        if name in ("blue_green", "shadow") and action["type"] == "set-step":
            raise Violated(f"{name} got a weight instead of a switch: {action}")
        if name == "shadow" and seen.pairs < spec["strategy"]["shadow"]["pairs"]:
            raise Violated(f"a shadow was promoted after {seen.pairs} pairs")
        if name in ("blue_green", "shadow") and not action["watch"]:
            raise Violated(f"a {name} switch that nobody watches")

    def _follow_action(self, action: dict[str, Any]) -> None:
        if action["type"] == "start":
            self.current = action
            self.watched = None
            self.before = self.most.pop(self._version(action["target"]), 0)
        elif action["type"] == "withdraw":
            self.most[self._version(self.current["target"])] = max(action["keep"], self.before)
        elif action["type"] == "switch-back":
            self.watched = None
            self.most[self._version(self.current["target"])] = action["keep"]
            self.most.pop(self._back_to(action), None)
        elif action["type"] == "shift":
            self.most = {version: min(most, action["weight"]) for version, most in self.most.items()}
            self.before = min(self.before, action["weight"])
        elif action["type"] == "promote":
            self.most.pop(self._version(self.current["target"]), None)
            self.before = 0
            self.watched = self.current["rollout"] if action["watch"] else None
        elif action["type"] in ("end-watch", "retire-previous"):
            self.watched = None

    @staticmethod
    def _version(target: dict[str, Any]) -> str:
        return str(target["revision"]["version"])

    @staticmethod
    def _back_to(action: dict[str, Any]) -> str:
        named = [v for v in VERSIONS if deployed(v).digest == action["to"]]
        return named[0] if named else ""

    def _weights(self, told: ModelTraffic, status: ModelStatus) -> None:
        """A gateway that hears the controller gives each revision what it may have."""
        if sum(r.weight for r in told.revisions) not in (0, 100):
            raise Violated("weights do not sum to 100")
        for revision in told.revisions:
            if not revision.weight:
                continue
            if revision.role is Role.CANARY:
                self._canary(revision, status)
            elif status.stable is not None and revision.application not in self.world.workloads.ever_ready:
                raise Violated(f"{revision.version} has all traffic and was never ready")

    def _canary(self, revision: RevisionTraffic, status: ModelStatus) -> None:
        version, weight, rollout = revision.version, revision.weight, status.rollout
        most = self.most.get(version)
        if most is not None and weight > most:
            raise Violated(f"{version} was taken back, may carry {most} % and has weight {weight}")
        if revision.application not in self.world.workloads.ever_ready:
            raise Violated(f"{version} has weight {weight} and was never ready")
        leaving = status.leaving
        if leaving is not None and leaving.deployed.version == version:
            return
        if rollout is None or rollout.stage is Stage.STARTING or status.canary is None:
            raise Violated(f"{version} has weight {weight} before it was ready")
        if status.canary.version != version:
            raise Violated(f"{version} has weight {weight} and is not what is being rolled out")
        if rollout.spec.strategy.name in ("blue-green", "shadow"):
            raise Violated(f"{version} is a {rollout.spec.strategy.name} candidate and has weight {weight}")

    def _watch(self, told: ModelTraffic) -> None:
        if self.watched is not None and (told.rollout, told.watch) != (self.watched, True):
            raise Violated(f"rollout {self.watched} was switched and its new stable is not watched")

    def _answers(self) -> None:
        """What clients got: never a shadow's or a preview's answer, never a canary's from a gateway that is cut off."""
        for served in self.world.served[self.served_checked_to :]:
            if served.role is Role.CANARY and not served.tester and served.weight == 0:
                raise Violated(f"a client got an answer of {served.version}, which has no weight")
            if served.role is Role.CANARY and served.unheard_s > LEASE_S:
                raise Violated(f"a gateway fed {served.version} {served.unheard_s:.0f} s after the last word")
        self.served_checked_to = len(self.world.served)

    def _evidence_is_heeded(self) -> None:
        """Once the controller has judged, no version with evidence against it still has what it is judged for."""
        for status in self.world.controller.statuses:
            rollout = status.rollout
            if rollout is None or not rollout.judged:
                continue
            failed = [s.name for s in self.world.controller.observation(MODEL).signals if s.verdict is Verdict.FAILED]
            if failed:
                raise Violated(f"{rollout.target.version} goes on in stage {rollout.stage} though {failed} failed")

    def _nothing_needed_is_removed(self) -> None:
        needed = set()
        for gateway in self.world.gateways:
            if gateway.cut or gateway.table is None:
                continue
            traffic = gateway.table.model(MODEL)
            needed |= {r.application for r in traffic.revisions if r.weight} if traffic else set()
        for application in self.world.removed:
            if application in needed and application not in self.world.workloads.desired:
                raise Violated(f"{application} was stopped while a gateway sends it requests")
        for version in VERSIONS:
            there = deployed(version)
            open_streams = self.world.streams.get(there.digest, 0)
            if there.application in self.world.removed and open_streams:
                self._was_cut(there, open_streams)
        self.world.removed.clear()

    def _was_cut(self, there, open_streams: int) -> None:
        """Streams may only be cut by a drain deadline, which says so in the log."""
        last = (0.0, "nobody removed it")
        for entry in self.world.log.read(kinds=[Kind.DECISION]):
            for action in entry.payload["decision"]["actions"]:
                if action["type"] == "remove" and action["digest"] == there.digest:
                    last = (entry.at, entry.payload["decision"]["reason"])
        if "drain deadline" not in last[1]:
            raise Violated(f"{there.version} was stopped with {open_streams} streams open: {last[1]}")
        self.world.streams[there.digest] = 0

    def _commands_are_logged(self) -> None:
        logged = sum(1 for _ in self.world.log.read(kinds=[Kind.COMMAND]))
        if logged != self.commands:
            raise Violated(f"{self.commands} commands were accepted, {logged} are in the log")

    def close(self) -> None:
        """Release the world."""
        self.world.close()


MOVES = [name for name in dir(Chaos) if name.startswith("do_")]
WEIGHTS = {"do_step": 30, "do_deploy": 3, "do_say": 4, "do_lose_replicas": 3, "do_skew": 2}


def live(seed: int, moves: int, only: str | None = None) -> Chaos:
    """One random life; returns what is left of it, closed.

    Raises:
        Violated: an invariant broke.
    """
    rng = random.Random(seed)
    chaos = Chaos(seed, only)
    try:
        chaos.world.first()
        chaos.commands += 1
        names = rng.choices(MOVES, [WEIGHTS.get(m, 1) for m in MOVES], k=moves)
        for name in names:
            getattr(chaos, name)(rng)
            chaos.check()
    finally:
        chaos.close()
    return chaos
