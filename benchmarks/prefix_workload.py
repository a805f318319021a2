"""Conversations that share long system prompts, and a replay of them on simulated replicas in virtual time.

The replay uses the gateway's own picker and the simulated engine's own cache; only processes, sockets and the clock are
left out. So it is exact and repeatable, where real processes are subject to what else the machine does.
"""

from __future__ import annotations

import heapq
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from serving.endpoints import Address, Endpoint, EndpointBook, dispatched, finished, pick, progressed, succeeded
from serving.engines.sim_cache import PrefixCache
from serving.engines.sim_text import split_tokens
from serving.knobs import Picking
from serving.openai_protocol import Operation
from serving.scoring import Demand, bound_of, demand_of

_WORDS = (
    "tide", "harbour", "engine", "valve", "pilot", "anchor", "current", "signal", "depth", "bridge", "keeper", "route",
    "cargo", "weather", "record", "system", "answer", "question", "policy", "table", "report", "source", "limit",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Shape:
    """A workload: how many system prompts, conversations on each, turns, and words of each part."""

    system_prompts: int = 8
    conversations_each: int = 6
    turns: int = 5
    system_words: int = 1000
    question_words: int = 80
    answer_tokens: int = 32
    at_once: int = 16
    """Conversations under way at a time."""
    think_s: float = 0.1
    """Between an answer and the next question."""


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast a replica is."""

    ttft_ms: float = 10
    prefill_us_per_token: float = 200
    itl_ms: float = 4
    cache_blocks: int = 1024

    def uri(self, answer_tokens: int) -> str:
        """The source of a simulated engine that is this fast."""
        return (
            f"sim:?ttft_ms={self.ttft_ms:g}&itl_ms={self.itl_ms:g}&tokens={answer_tokens}"
            f"&prefill_us_per_token={self.prefill_us_per_token:g}&cache_blocks={self.cache_blocks}"
        )


@dataclass(slots=True)
class Conversation:
    """One client that asks turn by turn."""

    system: str
    questions: list[str]
    messages: list[dict[str, str]] = field(default_factory=list)

    def ask(self) -> bytes | None:
        """The body of the next request, in the order of fields that OpenAI's SDK sends; None at the end."""
        if not self.questions:
            return None
        self.messages = self.messages or [{"role": "system", "content": self.system}]
        self.messages.append({"role": "user", "content": self.questions.pop(0)})
        return json.dumps({"messages": self.messages, "model": "chat", "stream": True}).encode()

    def answered(self, text: str) -> None:
        """Take an answer into the history."""
        self.messages.append({"role": "assistant", "content": text})

    @property
    def prompt(self) -> str:
        """The prompt as the simulated engine reads it."""
        return "\n".join(m["content"] for m in self.messages)


def conversations(shape: Shape, seed: int, name: str) -> list[Conversation]:
    """All conversations, in the order in which they begin. Other names make prompts that share nothing."""
    rng = random.Random(seed)

    def words(count: int) -> str:
        return " ".join(rng.choices(_WORDS, k=count))

    systems = [f"{name} {seed} {i} {words(shape.system_words)}" for i in range(shape.system_prompts)]
    made = [
        Conversation(system, [words(shape.question_words) for _ in range(shape.turns)])
        for system in systems
        for _ in range(shape.conversations_each)
    ]
    rng.shuffle(made)
    return made


@dataclass(slots=True)
class Replay:
    """What happened in a replay."""

    first_token_s: list[float] = field(default_factory=list)
    cached_tokens: int = 0
    prompt_tokens: int = 0
    above_bound: list[float] = field(default_factory=list)
    """Of each pick: the work of the endpoint that was picked, over the mean of all, in tokens."""


@dataclass(slots=True)
class _Replica:
    endpoint: Endpoint
    cache: PrefixCache
    free_at: float = 0.0


class _World:
    """Replicas that read one prompt after the other, and clients that ask them, in virtual time."""

    def __init__(self, shape: Shape, speed: Speed, picking: Picking, seed: int, replicas: int) -> None:
        self._shape, self._speed, self._picking = shape, speed, picking
        self._rng = random.Random(seed)
        book = EndpointBook()
        book.replace({"a": [Address(f"http://replica:{i + 1}") for i in range(replicas)]})
        self._endpoints = book.of("a")
        for endpoint in self._endpoints:
            endpoint.full = True  # long there: slow start is another matter
        self._replicas = {e.url: _Replica(e, PrefixCache(speed.cache_blocks)) for e in self._endpoints}
        self._waiting = iter(conversations(shape, seed, "virtual"))
        self.result = Replay()

    def run(self) -> Replay:
        """Let all clients run to their end. Each is a generator of the times at which it goes on."""
        due: list[tuple[float, int, Iterator[float]]] = []
        for number in range(self._shape.at_once):
            heapq.heappush(due, (0.0, number, self._client(self._rng.random() * self._shape.think_s)))
        while due:
            _, number, client = heapq.heappop(due)
            at = next(client, None)
            if at is not None:
                heapq.heappush(due, (at, number, client))
        return self.result

    def _client(self, now: float) -> Iterator[float]:
        for conversation in self._waiting:
            while (body := conversation.ask()) is not None:
                yield now
                demand = demand_of(Operation.CHAT, body, {})
                for at in self._request(conversation, demand, now):
                    now = at
                    yield now
                conversation.answered(" ".join(self._rng.choices(_WORDS, k=self._shape.answer_tokens)))
                now += self._shape.think_s * (0.5 + self._rng.random())

    def _request(self, conversation: Conversation, demand: Demand, began: float) -> Iterator[float]:
        endpoint = pick(self._endpoints, began, (), demand, self._picking)
        assert endpoint is not None
        mean = sum(e.work for e in self._endpoints) / len(self._endpoints)
        self.result.above_bound.append(endpoint.work - bound_of([mean], self._picking))
        dispatched(endpoint, began, demand)
        replica = self._replicas[endpoint.url]
        now = began + self._speed.ttft_ms / 1000
        yield now
        while replica.free_at > now:
            now = replica.free_at
            yield now
        tokens = split_tokens(conversation.prompt)
        cached = replica.cache.cached_tokens(tokens)
        now += (len(tokens) - cached) * self._speed.prefill_us_per_token / 1e6
        replica.free_at = now
        yield now
        replica.cache.keep(tokens)
        self.result.first_token_s.append(now - began)
        self.result.cached_tokens += cached
        self.result.prompt_tokens += len(tokens)
        progressed(endpoint, demand, 1)
        for _ in range(self._shape.answer_tokens - 1):
            now += self._speed.itl_ms / 1000
            yield now
            progressed(endpoint, demand, 1)
        succeeded(endpoint)
        finished(endpoint, demand)


def replay(shape: Shape, speed: Speed, picking: Picking, seed: int, replicas: int = 4) -> Replay:
    """Run a workload in virtual time."""
    return _World(shape, speed, picking, seed, replicas).run()
