"""Model checks in threads of this process, in batches: for models that let go of Python's lock while they work.

Texts that come while a batch is under way wait and go into the next one: batches grow by themselves under load, and
a lone text never waits for company. The model is one object, called by one thread at a time for each check.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from guardrails.errors import CheckFailed, CheckOverloaded, CheckUnavailable, NonsenseAnswer
from guardrails.model_checks.base import ModelText
from guardrails.verdicts import Hit

Classifier = Callable[[Sequence[ModelText]], Sequence[Sequence[Hit]]]
"""Texts to the hits of each."""


@dataclass(eq=False)
class _Line:
    classifier: Classifier
    waiting: list[tuple[ModelText, asyncio.Future[Sequence[Hit]]]] = field(default_factory=list)
    task: asyncio.Task[None] | None = None


class ThreadModelChecks:
    """Runs classifiers in a pool of threads."""

    def __init__(
        self,
        classifiers: Mapping[str, Classifier],
        *,
        batch_texts: int = 32,
        waiting_texts: int = 512,
        threads: int = 1,
        warm_up: Callable[[Iterable[str]], None] | None = None,
    ) -> None:
        """Begin.

        Args:
            classifiers: by kind of check.
            batch_texts: how many go into one call at most.
            waiting_texts: how many may wait for one kind; one more is refused at once.
            threads: how many calls run at once in all.
            warm_up: loads what some kinds need, called in one of the threads.
        """
        self._lines = {kind: _Line(classifier) for kind, classifier in classifiers.items()}
        self._batch_texts = batch_texts
        self._waiting_texts = waiting_texts
        self._pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="guardrails")
        self._warm_up = warm_up
        self._closed = False

    def waiting(self, kind: str) -> int:
        """How many texts wait for a kind of check."""
        line = self._lines.get(kind)
        return len(line.waiting) if line is not None else 0

    async def warm_up(self, kinds: Iterable[str]) -> None:
        """Load what these kinds need, so that no text waits for it."""
        if self._warm_up is not None:
            await asyncio.get_running_loop().run_in_executor(self._pool, self._warm_up, tuple(kinds))

    async def examine(self, text: ModelText) -> Sequence[Hit]:
        """What the classifier finds, together with whoever waits at the same time."""
        kind = text.active.kind.name
        line = self._lines.get(kind)
        if line is None or self._closed:
            raise CheckUnavailable(f"no model for checks of the kind {kind!r} runs here; configure one")
        if len(line.waiting) >= self._waiting_texts:
            raise CheckOverloaded(
                f"{len(line.waiting)} texts wait for {kind!r}, the limit; add replicas or lower the load"
            )
        answer: asyncio.Future[Sequence[Hit]] = asyncio.get_running_loop().create_future()
        line.waiting.append((text, answer))
        if line.task is None:
            line.task = asyncio.create_task(self._work(kind, line))
        return await answer

    async def _work(self, kind: str, line: _Line) -> None:
        try:
            while line.waiting:
                batch = [entry for entry in line.waiting[: self._batch_texts] if not entry[1].done()]
                del line.waiting[: self._batch_texts]
                if batch:
                    await self._run(kind, line, batch)
        finally:
            line.task = None
            for _, answer in line.waiting:
                if not answer.done():
                    answer.set_exception(CheckUnavailable(f"the model for {kind!r} was stopped"))
            line.waiting.clear()

    async def _run(self, kind: str, line: _Line, batch: list[tuple[ModelText, asyncio.Future[Sequence[Hit]]]]) -> None:
        failure: CheckFailed
        try:
            call = asyncio.get_running_loop().run_in_executor(self._pool, line.classifier, [text for text, _ in batch])
            found = await call
            if len(found) == len(batch):
                for (_, answer), hits in zip(batch, found, strict=True):
                    if not answer.done():
                        answer.set_result(tuple(hits))
                return
            failure = NonsenseAnswer(f"the model for {kind!r} gave {len(found)} verdicts for {len(batch)} texts")
        except asyncio.CancelledError:
            failure = CheckUnavailable(f"the model for {kind!r} was stopped")
        except CheckFailed as error:
            failure = error
        except Exception as error:
            failure = CheckUnavailable(f"the model for {kind!r} raised {type(error).__name__}")
            failure.__cause__ = error
        for _, answer in batch:
            if not answer.done():
                answer.set_exception(failure)

    async def close(self) -> None:
        """Refuse what comes, fail what waits, and stop the threads once their call is over."""
        self._closed = True
        for line in self._lines.values():
            if line.task is not None:
                line.task.cancel()
        await asyncio.sleep(0)
        self._pool.shutdown(wait=False, cancel_futures=True)
