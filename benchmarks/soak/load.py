"""Clients of every manner, and what each of them must see: its own answer, whole, from the version it was promised."""

from __future__ import annotations

import asyncio
import enum
import json
import random
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.soak.wire import Broken, Head, Wire
from benchmarks.soak.world import LEAVER, MODEL, SALT, STEADY, TOKENS, VERSIONS, World
from serving.engines.sim_text import count_tokens
from serving.traffic import Role, assigned_role

TIMEOUT_S = 30.0
SLOW_CHOICES = 48
"""Answers at once in a slow reader's stream, so that it is longer than what sockets hold."""
SLOW_PAUSE_S = 0.02
SETTLED_S = 1.0
"""After a weight changed, requests may still have been assigned by the one before."""


PROMPT_TOKENS = count_tokens("[[mark:1-1]] 潮汐 of the harbour")
"""As the simulated engine counts them."""


class Kind(enum.StrEnum):
    """What a client does."""

    UNARY = "unary"
    STREAM = "stream"
    SESSION = "session"
    """A stream or not, of one of some sessions."""
    PINNED = "pinned"
    """Names a version."""
    SLOW = "slow reader"
    LEFT_EARLY = "left before the first byte"
    LEFT = "left in the middle"


SHARES = {Kind.UNARY: 30, Kind.STREAM: 30, Kind.SESSION: 15, Kind.PINNED: 10, Kind.SLOW: 2, Kind.LEFT_EARLY: 5,
          Kind.LEFT: 8}  # fmt: skip


@dataclass
class Sums:
    """What a key used of a version, as its holder saw it."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    unmetered: int = 0


@dataclass
class Seen:
    """What came of one answer."""

    fingerprint: str = ""
    texts: dict[int, str] = field(default_factory=dict)
    finished: set[int] = field(default_factory=set)
    usage: dict[str, int] | None = None
    error: str = ""
    done: bool = False


@dataclass
class Tally:
    """What all clients saw."""

    outcomes: dict[Kind, Counter[str]] = field(default_factory=lambda: {k: Counter() for k in Kind})
    wrong: list[str] = field(default_factory=list)
    """Answers that were not the asker's, not whole, or not of the promised version."""
    unexpected: list[str] = field(default_factory=list)
    """Failures that nothing excuses."""
    broken_streams: Counter[str] = field(default_factory=Counter)
    """Streams that had begun on an engine when it was killed, by its fingerprint."""
    usage: dict[str, Sums] = field(default_factory=dict)
    """By version, of the steady key."""
    under_way: dict[str, set[int]] = field(default_factory=dict)
    """By engine: the streams that have begun there and not ended."""
    begun_when_killed: int = 0
    """Streams that had begun on an engine when it was killed."""

    def engine_dies(self, fingerprint: str) -> None:
        """Count what is under way there."""
        self.begun_when_killed += len(self.under_way.pop(fingerprint, ()))

    @property
    def asked(self) -> int:
        """Requests made."""
        return sum(sum(c.values()) for c in self.outcomes.values())


class Client:
    """Asks one request after the other until it is told to stop."""

    def __init__(self, number: int, world: World, tally: Tally, chance: random.Random) -> None:
        self._number = number
        self._world = world
        self._tally = tally
        self._chance = chance
        self._asked = 0
        self._wires = {key: Wire("127.0.0.1", world.port, world.key(key)) for key in (STEADY, LEAVER)}

    async def run(self, until: float, shares: Mapping[Kind, int] = SHARES) -> None:
        """Ask until then."""
        kinds, weights = zip(*shares.items(), strict=True)
        while time.monotonic() < until:
            await self.one(self._chance.choices(kinds, weights)[0])
        for wire in self._wires.values():
            wire.hang_up()

    async def one(self, kind: Kind) -> None:
        """One request, judged."""
        self._asked += 1
        mark = f"[[mark:{self._number}-{self._asked}]]"
        leaves = kind in (Kind.LEFT, Kind.LEFT_EARLY)
        wire = self._wires[LEAVER if leaves else STEADY]
        stream = kind in (Kind.STREAM, Kind.SLOW, Kind.LEFT) or (
            kind in (Kind.SESSION, Kind.PINNED, Kind.LEFT_EARLY) and self._chance.random() < 0.5
        )
        metered = not stream or self._chance.random() < 0.9
        pinned = self._chance.choice(list(Role)) if kind is Kind.PINNED else None
        session = f"session-{self._chance.randrange(200)}" if kind is Kind.SESSION else ""
        body: dict[str, object] = {
            "model": MODEL if pinned is None else f"{MODEL}@{VERSIONS[pinned]}",
            "messages": [{"role": "user", "content": f"{mark} 潮汐 of the harbour"}],
            "stream": stream,
            "n": SLOW_CHOICES if kind is Kind.SLOW else 1,
        }
        if stream and metered:
            body["stream_options"] = {"include_usage": True}
        headers = {"x-request-timeout": f"{TIMEOUT_S:g}", **({"x-session-id": session} if session else {})}
        began, weight = time.monotonic(), self._world.weight
        if kind is Kind.LEFT_EARLY:
            self._tally.outcomes[kind][await self._leave_early(wire, body, headers)] += 1
            return
        seen = Seen()
        try:
            head = await wire.ask("/v1/chat/completions", body, headers)
            if head.status != 200:
                self._refused(kind, head, await _whole(wire, head), began)
                return
            if session and self._may_not_be(head, session, weight, began):
                self._tally.wrong.append(f"{session} is stable's at weight {weight} and was answered by the canary")
            await self._read(wire, head, seen, leave_after=3 if kind is Kind.LEFT else None,
                             pause_s=SLOW_PAUSE_S if kind is Kind.SLOW else 0.0)  # fmt: skip
        except Broken as error:
            self._tally.outcomes[kind]["cut"] += 1
            self._tally.unexpected.append(f"{kind.value}: the connection broke ({error})")
            return
        finally:
            self._tally.under_way.get(seen.fingerprint, set()).discard(id(seen))
        if kind is Kind.LEFT:
            wire.hang_up()
        self._judge(kind, head, seen, mark, int(str(body["n"])), stream, began,
                    promised=VERSIONS[pinned] if pinned else None, asked=metered)  # fmt: skip

    async def _leave_early(self, wire: Wire, body: dict[str, object], headers: dict[str, str]) -> str:
        try:
            async with asyncio.timeout(self._chance.uniform(0.0, 0.03)):
                head = await wire.ask("/v1/chat/completions", body, headers)
                await _whole(wire, head)
        except TimeoutError:
            wire.hang_up()
            return "left"
        except Broken:
            return "cut"
        return "was faster than its leaving"

    def _may_not_be(self, head: Head, session: str, weight: int, began: float) -> bool:
        """Whether the canary answered a session that the weight, unchanged for long enough, gives to stable."""
        world = self._world
        steady = world.weight == weight and began - world.weighed_at > SETTLED_S and world.obeyed()
        by_canary = head.headers.get("x-tidegate-version") == VERSIONS[Role.CANARY]
        return steady and by_canary and assigned_role(SALT, session, weight) is Role.STABLE

    async def _read(self, wire: Wire, head: Head, seen: Seen, leave_after: int | None, pause_s: float) -> None:
        if not head.headers["content-type"].startswith("text/event-stream"):
            _take(json.loads(await _whole(wire, head)), "message", seen)
            seen.done = True
            return
        left, count = b"", 0
        async for piece in wire.pieces(head, pause_s):
            *events, left = (left + piece).split(b"\n\n")
            for event in events:
                data = event.removeprefix(b"data: ")
                if data == b"[DONE]":
                    seen.done = True
                elif data:
                    _take(json.loads(data), "delta", seen)
                    self._tally.under_way.setdefault(seen.fingerprint, set()).add(id(seen))
                    count += 1
            if leave_after is not None and count > leave_after:
                return

    def _refused(self, kind: Kind, head: Head, data: bytes, began: float) -> None:
        error = json.loads(data)["error"]
        name = f"{head.status} {error['code']}"
        self._tally.outcomes[kind][name] += 1
        # The retry rules: one other engine is tried for a request whose engine died; both may be killed.
        deaths = sum(at >= began for at in self._world.killed.values())
        if head.status == 502 and error["code"] == "engine_connection_lost" and deaths >= 2:
            return
        self._tally.unexpected.append(f"{kind.value}: {name} with {deaths} engines killed meanwhile")

    def _judge(
        self, kind: Kind, head: Head, seen: Seen, mark: str, n: int, stream: bool, began: float, promised: str | None,
        asked: bool,
    ) -> None:  # fmt: skip
        tally = self._tally
        version = head.headers["x-tidegate-version"]
        if kind is not Kind.LEFT:
            sums = tally.usage.setdefault(version, Sums())
            sums.requests += 1
            if not asked and seen.usage is not None:
                tally.wrong.append(f"{kind.value}: the client was shown usage that it had not asked for")
            elif not asked and seen.done and not seen.error:  # the gateway has asked, and must have counted this
                sums.input_tokens += PROMPT_TOKENS
                sums.output_tokens += sum(len(text.split()) for text in seen.texts.values())
            elif seen.usage is None:
                sums.unmetered += 1
            else:
                sums.input_tokens += seen.usage["prompt_tokens"]
                sums.output_tokens += seen.usage["completion_tokens"]
        for text in seen.texts.values():
            if not mark.startswith(text) and (not text.startswith(mark) or text.count("[[mark:") != 1):
                tally.wrong.append(f"{kind.value}: asked with {mark}, got {text[:60]!r}")
        if promised is not None and version != promised:
            tally.wrong.append(f"pinned to {promised}, answered by {version}")
        if kind is Kind.LEFT:
            tally.outcomes[kind]["left"] += 1
            return
        if seen.error:
            killed_at = self._world.killed.get(seen.fingerprint)
            tally.outcomes[kind][f"stream broken: {seen.error}"] += 1
            if stream and killed_at is not None and killed_at >= began and seen.error == "engine_connection_lost":
                tally.broken_streams[seen.fingerprint] += 1
            else:
                tally.unexpected.append(f"{kind.value}: {seen.error} on {seen.fingerprint}, which was not killed")
            return
        lengths = {len(text.split()) for text in seen.texts.values()}
        if not seen.done or len(seen.finished) != n or lengths != {TOKENS[version]}:
            tally.wrong.append(f"{kind.value}: {len(seen.finished)} of {n} answers, of {lengths} words from {version}")
        tally.outcomes[kind]["answered"] += 1


async def _whole(wire: Wire, head: Head) -> bytes:
    return b"".join([piece async for piece in wire.pieces(head)])


def _take(data: dict[str, Any], part: str, seen: Seen) -> None:
    if "error" in data:
        seen.error = str(data["error"]["code"])
        return
    seen.fingerprint = data["system_fingerprint"]
    seen.usage = data.get("usage") or seen.usage
    for choice in data["choices"]:
        text = choice[part].get("content")
        seen.texts[choice["index"]] = seen.texts.get(choice["index"], "") + (text or "")
        if choice["finish_reason"]:
            seen.finished.add(choice["index"])
