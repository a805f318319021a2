"""Random life of the simulated world, and what must hold whatever happens. Shared by the property and the mutants."""

from __future__ import annotations

import random

from rollout.actions import Withdraw
from rollout.commands import Verb
from rollout.errors import RolloutError
from rollout.event_log.base import Kind
from rollout.status import Stage
from serving.outcomes import Signal
from tests.simulation.world import MODEL, SimulatedGateway, World, deployed

VERSIONS = ("1.0.0", "1.0.1", "1.1.0", "1.2.0")


class Violated(AssertionError):
    """An invariant does not hold."""


class Chaos:
    """Drives a world and checks it after each move. Moves are methods named `do_*`, each taking a generator."""

    def __init__(self, seed: int) -> None:
        self.world = World(seed=seed, load_s=1.0)
        self.commands = 0
        self.withdrawn: set[str] = set()
        self.log_checked_to = 0

    # -- moves ----------------------------------------------------------------------------------------------------

    def do_step(self, rng: random.Random) -> None:
        self.world.step(rng.choice((0.2, 1.0, 5.0)), requests=rng.choice((0, 5, 40)), doubled=rng.random() < 0.3)

    def do_deploy(self, rng: random.Random) -> None:
        changes = {"emergency": True} if rng.random() < 0.2 else {}
        try:
            self.world.deploy(rng.choice(VERSIONS), drainDeadline="30s", rollbackWindow="20s", **changes)
            self.commands += 1
        except RolloutError:
            pass

    def do_say(self, rng: random.Random) -> None:
        verb = rng.choice((Verb.PROMOTE, Verb.PAUSE, Verb.RESUME, Verb.ABORT, Verb.ROLLBACK, Verb.ACK))
        try:
            self.world.say(verb, full=rng.random() < 0.3)
            self.commands += 1
        except RolloutError:
            pass

    def do_crash(self, rng: random.Random) -> None:
        before = {s.model: s for s in self.world.controller.statuses}
        self.world.start_controller()
        after = {s.model: s for s in self.world.controller.statuses}
        if before != after:
            raise Violated("a restarted controller stands elsewhere than the one before")

    def do_workloads_away(self, rng: random.Random) -> None:
        self.world.workloads.away = rng.random() < 0.5

    def do_break_version(self, rng: random.Random) -> None:
        rate = rng.choice((0.0, 0.02, 0.9))
        self.world.faults[rng.choice(VERSIONS)] = {rng.choice((Signal.ERROR, Signal.LENGTH_STOP)): rate}

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
        gateway = rng.choice(gateways)
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
        self._traffic()
        self._nothing_needed_is_removed()
        self._commands_are_logged()

    def _follow_log(self) -> None:
        """Which revisions are taken back, from the log alone; condemned ones must not start again without an ack."""
        for entry in self.world.log.read(after=self.log_checked_to):
            self.log_checked_to = entry.id
            if entry.kind is Kind.EVIDENCE:
                continue
            for action in entry.payload["decision"]["actions"]:
                self._follow_action(action)

    def _follow_action(self, action: dict) -> None:
        if action["type"] == "start":
            version = action["target"]["revision"]["version"]
            self.current = version
            self.withdrawn.discard(version)
        elif action["type"] == "withdraw":
            Withdraw.model_validate(action)
            self.withdrawn.add(self.current)
        elif action["type"] == "promote":
            self.withdrawn.discard(self.current)

    def _traffic(self) -> None:
        for status in self.world.controller.statuses:
            for gateway in self.world.gateways:
                self._canary_at(gateway, status.canary.version if status.canary else None, status.rollout)

    def _canary_at(self, gateway: SimulatedGateway, canary: str | None, rollout) -> None:
        """A gateway that hears the controller gives nothing to a withdrawn canary."""
        traffic = gateway.table.model(MODEL) if gateway.table and not gateway.cut else None
        if traffic is None:
            return
        if sum(r.weight for r in traffic.revisions) not in (0, 100):
            raise Violated("weights do not sum to 100")
        for revision in traffic.revisions:
            if revision.weight and revision.role == "canary":
                if revision.version in self.withdrawn:
                    raise Violated(f"{revision.version} was taken back and has weight {revision.weight}")
                if revision.application not in self.world.workloads.ever_ready:
                    raise Violated(f"{revision.version} has weight {revision.weight} and was never ready")
                if rollout is None or rollout.stage is Stage.STARTING or canary != revision.version:
                    raise Violated(f"{revision.version} has weight {revision.weight} before it was ready")

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
WEIGHTS = {"do_step": 12, "do_deploy": 3, "do_say": 2}


def live(seed: int, moves: int) -> None:
    """One random life.

    Raises:
        Violated: an invariant broke.
    """
    rng = random.Random(seed)
    chaos = Chaos(seed)
    try:
        chaos.world.first()
        chaos.commands += 1
        names = rng.choices(MOVES, [WEIGHTS.get(m, 1) for m in MOVES], k=moves)
        for name in names:
            getattr(chaos, name)(rng)
            chaos.check()
    finally:
        chaos.close()
