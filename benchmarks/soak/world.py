"""Two gateways on one port, engines of two versions behind them, and what happens to the engines."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from benchmarks.processes import Engine, Gateway, Processes, free_port
from benchmarks.soak.stand_ins import Controller, ReplicaList
from serving.gateway.config import GatewayConfig
from serving.keys import KeyRecord, Scope, hash_secret, write_key
from serving.knobs import QueueSettings
from serving.traffic import ModelTraffic, RevisionTraffic, Role, TrafficTable

MODEL = "chat"
SALT = "0123456789abcdef"
VERSIONS = {Role.STABLE: "1.0.0", Role.CANARY: "1.1.0"}
TOKENS = {"1.0.0": 24, "1.1.0": 30}
"""So that an answer's length tells which version gave it, whatever the headers say."""
WEIGHTS = (0, 5, 25, 50, 75, 100)
TROUBLE = {"kill": 4, "hold": 2, "weigh": 3, "add": 1, "retire": 1}
"""What may happen, and how often next to the others."""
LEAST = {Role.STABLE: 2, Role.CANARY: 2}
MOST = {Role.STABLE: 4, Role.CANARY: 3}
STEADY, LEAVER = "steady000000", "leaver000000"
SECRET = "a-secret-that-is-only-used-on-loopback"


@dataclass(frozen=True)
class Shape:
    """How the engines behave."""

    first_token_ms: float = 40
    between_tokens_ms: float = 8


class World:
    """All processes of a soak. Used as an asynchronous context."""

    def __init__(self, folder: Path, chance: random.Random, shape: Shape, replicas: dict[Role, int]) -> None:
        self.folder = folder
        self.chance = chance
        self.shape = shape
        self.processes = Processes(folder)
        keys = tuple(
            KeyRecord(
                id=key, secret_sha256=hash_secret(SECRET), name=key, created_at=0,
                scopes=frozenset({Scope.INFERENCE, Scope.PIN_VERSION, Scope.SEE_VERSION}),
                requests_per_minute=10_000_000, tokens_per_minute=10_000_000_000, concurrency=100_000,
            )
            for key in (STEADY, LEAVER)
        )  # fmt: skip
        self.controller = Controller(keys)
        self.ray = ReplicaList()
        self.gateways: list[Gateway] = []
        self.engines: dict[str, tuple[Role, Engine]] = {}
        """Those that live, by the fingerprint of their answers."""
        self.killed: dict[str, float] = {}
        """Fingerprint -> when it was killed, in monotonic seconds."""
        self.on_kill: Callable[[str], None] = lambda fingerprint: None
        """Told just before an engine is killed."""
        self.done: Counter[str] = Counter()
        """What happened to engines and tables, by name."""
        self.retries: Counter[str] = Counter()
        """By cause, as the gateways tell at the end."""
        self.weight = 25
        self.weighed_at = 0.0
        """When the weight was last changed, in monotonic seconds."""
        self._replicas = replicas
        self._sequence = 0
        self._made = 0

    async def __aenter__(self) -> Self:
        """Start everything."""
        try:
            await self.controller.start()
            await self.ray.start()
            for role, count in self._replicas.items():
                await asyncio.gather(*(self.add(role) for _ in range(count)))
            await self.weigh(self.weight)
            await self._start_gateways()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop everything."""
        for gateway in self.gateways:
            await asyncio.to_thread(gateway.end)
        self.processes.__exit__(None, None, None)
        await self.ray.stop()
        await self.controller.stop()

    async def _start_gateways(self) -> None:
        (self.folder / "ray.json").write_text(json.dumps({"dashboard_url": f"http://127.0.0.1:{self.ray.port}"}))
        (self.folder / "credentials").write_text("soak")
        config = GatewayConfig(
            home=self.folder, port=free_port(), admin_port=free_port(), auth="keys",
            control_url=f"http://127.0.0.1:{self.controller.port}", ray_file=self.folder / "ray.json",
            queue=QueueSettings(endpoint_concurrency=100_000),
        )  # fmt: skip
        for index in range(2):
            self.gateways.append(await asyncio.to_thread(self.processes.gateway, config, process=index))
        self.port = config.port

    @staticmethod
    def key(name: str) -> str:
        """How the holder of a key writes it."""
        return write_key(name, SECRET)

    def fingerprints(self, role: Role) -> list[str]:
        """Of the engines of a role that live."""
        return [f for f, (r, _) in self.engines.items() if r is role]

    # What happens

    async def add(self, role: Role) -> str:
        """One more engine; returns its fingerprint once gateways may use it."""
        self._made += 1
        seed = self._made
        s = self.shape
        uri = (
            f"sim:?ttft_ms={s.first_token_ms}&itl_ms={s.between_tokens_ms}&tokens={TOKENS[VERSIONS[role]]}&seed={seed}"
        )
        engine = await asyncio.to_thread(self.processes.engine, uri, MODEL)
        fingerprint = f"sim-{seed}"
        self.engines[fingerprint] = (role, engine)
        self.ray.listed[f"replica-{seed}"] = (role.value, engine.url)
        return fingerprint

    def kill(self, fingerprint: str) -> None:
        """Kill -9 it. The list of replicas goes on naming it for a while, as Ray's does."""
        _, engine = self.engines.pop(fingerprint)
        self.on_kill(fingerprint)
        self.killed[fingerprint] = time.monotonic()
        engine.kill()
        asyncio.get_running_loop().call_later(1.0, self._unlist, fingerprint)

    def _unlist(self, fingerprint: str) -> None:
        self.ray.listed.pop(f"replica-{fingerprint.removeprefix('sim-')}", None)

    async def retire(self, fingerprint: str) -> None:
        """Take an engine off the list, and ask it to end once gateways know: it ends its answers first."""
        _, engine = self.engines.pop(fingerprint)
        self._unlist(fingerprint)
        await asyncio.sleep(1.5)
        await asyncio.to_thread(engine.end, 60.0)

    async def slow(self, fingerprint: str, for_s: float) -> None:
        """Hold an engine for a while: connected, and silent."""
        _, engine = self.engines[fingerprint]
        engine.hold()
        await asyncio.sleep(for_s)
        if engine.alive:
            engine.go_on()

    async def weigh(self, weight: int) -> None:
        """Give the canary this weight in percent."""
        self._sequence += 1
        self.weight, self.weighed_at = weight, time.monotonic()
        revisions = tuple(
            RevisionTraffic(
                digest=("a" if role is Role.STABLE else "b") * 64, version=VERSIONS[role], role=role,
                weight=weight if role is Role.CANARY else 100 - weight, application=role.value,
            )
            for role in Role
        )  # fmt: skip
        model = ModelTraffic(model=MODEL, salt=SALT, rollout="soak", revisions=revisions)
        await self.controller.push(
            TrafficTable(fence=1, sequence=self._sequence, issued_at=time.time(), models=(model,))
        )

    def obeyed(self) -> bool:
        """Whether all gateways obey the newest table."""
        return len(self.controller.acknowledged) == 2 and set(self.controller.acknowledged.values()) == {self._sequence}

    async def trouble(self, until: float, every_s: float, kinds: Mapping[str, int] = TROUBLE) -> None:
        """Let things happen until then, one after the other."""
        pending: list[asyncio.Task[None]] = []
        while time.monotonic() < until:
            await asyncio.sleep(every_s * self.chance.uniform(0.5, 1.5))
            what = self.chance.choices(list(kinds), list(kinds.values()))[0]
            pending.append(asyncio.create_task(self._happens(what)))
        await asyncio.gather(*pending)

    async def _happens(self, what: str) -> None:
        role = self.chance.choice([r for r in Role if self.fingerprints(r)])
        there = [f for f in self.fingerprints(role) if not self.engines[f][1].stopped]
        spare, room = len(there) > LEAST[role], len(self.fingerprints(role)) < MOST[role]
        match what:
            case "kill" if spare:
                self.done["engines killed (-9)"] += 1
                self.kill(self.chance.choice(there))
                await asyncio.sleep(0.5)
                await self.add(role)  # whoever watches over replicas starts another one
            case "hold" if spare:
                self.done["engines held (SIGSTOP)"] += 1
                await self.slow(self.chance.choice(there), self.chance.uniform(0.5, 2.5))
            case "retire" if spare:
                self.done["engines retired (SIGTERM)"] += 1
                await self.retire(self.chance.choice(there))
            case "weigh":
                self.done["weights changed"] += 1
                await self.weigh(self.chance.choice([w for w in WEIGHTS if w != self.weight]))
            case "add" | "retire" if room:
                self.done["engines added"] += 1
                await self.add(role)
            case _:
                pass  # too few engines are left for it at the moment
