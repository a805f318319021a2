"""Statuses as server-sent events: every change, and while something moves the evidence twice a second.

Readers get the newest document of each model, not every one there was: a reader that is slow, or stuck, skips what
lies between and never the last one. It costs no memory beyond one document per model, and holds up nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field

from rollout.control_api.plane import ControlPlane
from rollout.errors import RolloutError
from rollout.status import ModelStatus

EVIDENCE_S = 0.5
"""The least time between two documents of a model that differ in their evidence only."""
ALIVE_S = 15.0
"""A comment goes out this often, so that proxies keep a silent stream and dead readers are noticed."""
MAX_READERS = 256


class TooManyReaders(RolloutError):
    """Nobody else can follow."""

    retryable = True


@dataclass(eq=False)
class Reader:
    """Somebody who follows one model, or all."""

    model: str | None
    seen: dict[str, int] = field(default_factory=dict)
    """By model: the number of the last document it got."""
    news: asyncio.Event = field(default_factory=asyncio.Event)


class Feed:
    """Keeps the newest document of each model that somebody follows, and wakes its readers."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        self._documents: dict[str, tuple[int, str]] = {}
        self._readers: set[Reader] = set()
        self._watching: asyncio.Task[None] | None = None
        self._stop_listening: Callable[[], None] | None = None

    async def follow(
        self, model: str | None, *, good: Callable[[], bool], sees: Callable[[str], bool]
    ) -> AsyncIterator[str]:
        """The frames for one reader, beginning with what is now.

        Args:
            model: whom to follow; None means every model.
            good: whether the reader may go on; asked before every frame.
            sees: whether it may see a model, as things are now; the others' frames are passed over.

        """
        reader = Reader(model)
        self._enter(reader)
        try:
            self._refresh(s for s in self._plane.controller.statuses)
            while good():
                reader.news.clear()
                for name, (number, document) in tuple(self._documents.items()):
                    if reader.seen.get(name) != number and model in (None, name) and sees(name):
                        reader.seen[name] = number
                        yield f"data: {document}\n\n"
                try:
                    # Not wait_for: on Python 3.11 it may swallow the cancellation that ends a reader.
                    async with asyncio.timeout(ALIVE_S):
                        await reader.news.wait()
                except TimeoutError:
                    yield ": alive\n\n"
        finally:
            self._leave(reader)

    def check_room(self) -> None:
        """Refuse a reader before its answer has begun.

        Raises:
            TooManyReaders: there are as many as there may be.

        """
        if len(self._readers) >= MAX_READERS:
            raise TooManyReaders(f"{MAX_READERS} readers follow already, which is the limit; close one, or poll")

    def _enter(self, reader: Reader) -> None:
        self._readers.add(reader)
        if self._watching is None:
            self._stop_listening = self._plane.controller.subscribe(self._on_change)
            self._watching = asyncio.create_task(self._watch())

    def _leave(self, reader: Reader) -> None:
        self._readers.discard(reader)
        if not self._readers and self._watching is not None:
            self._watching.cancel()
            self._watching = None
            self._documents.clear()
            if self._stop_listening is not None:
                self._stop_listening()

    def _on_change(self, status: ModelStatus) -> None:
        self._refresh((status,))

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(EVIDENCE_S)
            # Losing the leadership ends the process; until then the last documents stand.
            with contextlib.suppress(RolloutError):
                self._refresh(s for s in self._plane.controller.statuses if _moves(s))

    def _refresh(self, statuses: Iterable[ModelStatus]) -> None:
        followed = {r.model for r in self._readers}
        for status in statuses:
            if None not in followed and status.model not in followed:
                continue
            document = json.dumps(self._plane.report(status), ensure_ascii=False)
            number, known = self._documents.get(status.model, (0, ""))
            if document != known:
                self._documents[status.model] = (number + 1, document)
                for reader in self._readers:
                    if reader.model in (None, status.model):
                        reader.news.set()


def _moves(status: ModelStatus) -> bool:
    """Whether something changes without a decision: evidence, streams, endpoints."""
    return bool(status.retiring) or (status.rollout is not None and status.rollout.active)
