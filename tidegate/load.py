"""Steady traffic through the gateway, counted as its clients felt it. For the demo, the end-to-end test, benchmarks."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx

QUESTIONS: tuple[str, ...] = (
    "What is the capital of France?",
    "What is the capital of Japan?",
    "What is the capital of Germany?",
    "What is the capital of Egypt?",
    "What is 2+2?",
    "What is 5+5?",
    "How many days are in a week?",
    "How many legs does a dog have?",
    "Name an animal that barks.",
    "Name one fruit.",
    "Is the sky blue? Answer yes or no.",
    "What is the largest ocean?",
)
"""Questions that the bundled model answers in a short sentence; a damaged one rambles on."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One request as its client felt it. Times in seconds since the epoch; `error` is "" for a whole answer."""

    started_at: float
    seconds: float
    status: int
    version: str
    role: str
    error: str


@dataclass(slots=True)
class Load:
    """A fixed number of clients, each sending its next request when it has its answer. Runs in a thread of its own.

    Use it as a context manager; `samples` grows while it runs. Every second request streams.
    """

    base_url: str
    model: str
    clients: int = 12
    max_tokens: int = 48
    questions: Sequence[str] = QUESTIONS
    key: str = ""
    """An API key, where the gateway asks for one."""
    samples: list[Sample] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Load:
        """Begin."""
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="load", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop; requests under way are finished and counted."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    @property
    def errors(self) -> list[Sample]:
        """What went wrong for a client."""
        return [s for s in self.samples if s.error]

    async def _run(self) -> None:
        numbers = itertools.count()
        headers = {"authorization": f"Bearer {self.key}"} if self.key else {}
        async with httpx.AsyncClient(base_url=self.base_url, headers=headers, timeout=120, trust_env=False) as http:
            await asyncio.gather(*(self._client(http, numbers) for _ in range(self.clients)))

    async def _client(self, http: httpx.AsyncClient, numbers: itertools.count[int]) -> None:
        while not self._stop.is_set():
            number = next(numbers)
            sample = await self._ask(http, self.questions[number % len(self.questions)], stream=number % 2 == 0)
            self.samples.append(sample)
            if sample.error:
                await asyncio.sleep(0.2)

    async def _ask(self, http: httpx.AsyncClient, question: str, *, stream: bool) -> Sample:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "stream": stream,
        }
        started_at, clock = time.time(), time.monotonic()
        status, version, role = 0, "", ""
        try:
            async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
                status = answer.status_code
                version = answer.headers.get("x-tidegate-version", "")
                role = answer.headers.get("x-tidegate-role", "")
                text = (await answer.aread()).decode(errors="replace")
            error = _fault(status, text, stream=stream)
        except httpx.HTTPError as failed:
            error = type(failed).__name__
        return Sample(started_at, time.monotonic() - clock, status, version, role, error)


def _fault(status: int, text: str, *, stream: bool) -> str:
    """What is wrong with an answer, "" for nothing."""
    if status != httpx.codes.OK:
        return f"HTTP {status}"
    if stream:
        if "data: [DONE]" not in text:
            return "the stream was cut"
        return "an error inside the stream" if '"error":' in text and '"choices"' not in text else ""
    try:
        return "" if json.loads(text)["choices"] else "no choices"
    except (ValueError, KeyError):
        return "not an answer"
