"""The thread that embeds and detects, beside the event loop that talks to gateways and operators."""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from serving.drift.book import Book, replace
from serving.sightings import Scored, Sighting

logger = logging.getLogger("tidegate.drift")

WAITING = 2048
"""Sightings that wait; further ones are dropped and counted, whichever version they are of."""
BATCH = 32
"""Texts are embedded together: 1.4 ms each instead of 5.3."""
TICK_S = 0.5
PRUNE_EVERY_S = 600.0

Answer = Callable[[Scored], object]


class Worker:
    """Feeds a book from a bounded queue. `offer` may be called by any thread; the book belongs to the worker's own."""

    def __init__(self, book: Book) -> None:
        self._book = book
        self._queue: queue.Queue[tuple[Sighting, Answer]] = queue.Queue(WAITING)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="drift", daemon=True)
        self.ready = threading.Event()
        """Set once every stream has its state back, or nothing will come of it."""
        self._saved_at = self._pruned_at = 0.0
        self.dropped = 0
        """Sightings that came while too many waited."""
        self.status: dict[str, Any] = {"written_at": 0.0, "streams": [], "requests": [], "dropped": 0}
        """What the book knew at the last tick; replaced as a whole."""
        self.failed = False
        """Whether the thread ended by an error; the process should end then and be started anew."""

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def offer(self, seen: Sighting, answer: Answer) -> None:
        """Take a sighting; its scores are told by `answer`, from the worker's thread."""
        try:
            self._queue.put_nowait((seen, answer))
        except queue.Full:
            self.dropped += 1

    def stop(self) -> None:
        """Take in what waits, write everything, end."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._tick(force=True)
            self.ready.set()
            while not (self._stopping.is_set() and self._queue.empty()):
                batch = self._next()
                if batch:
                    replies = self._book.take([seen for seen, _ in batch], time.monotonic())
                    for reply in replies:
                        batch[reply.place][1](reply.scored)
                self._tick()
            self._book.close()
            self._tick(force=True)
        except Exception:
            self.failed = True
            self.ready.set()
            logger.exception("the drift watch failed; it starts anew from what it has saved")

    def _next(self) -> list[tuple[Sighting, Answer]]:
        batch: list[tuple[Sighting, Answer]] = []
        try:
            batch.append(self._queue.get(timeout=TICK_S / 2))
            while len(batch) < BATCH:
                batch.append(self._queue.get_nowait())
        except queue.Empty:
            pass
        return batch

    def _tick(self, *, force: bool = False) -> None:
        now = time.time()
        if not force and abs(now - self.status["written_at"]) < TICK_S:
            return
        self._book.follow()
        if abs(now - self._saved_at) >= self._book.config.save_every_s:
            self._saved_at = now
            self._book.save()
        if abs(now - self._pruned_at) >= PRUNE_EVERY_S:
            self._pruned_at = now
            self._book.prune(now)
        self.status = {**self._book.status(now), "dropped": self.dropped}
        try:
            replace(self._book.config.places.status, json.dumps(self.status, allow_nan=False))
        except OSError as error:
            logger.error("the status can't be written: %s", error.strerror)  # noqa: TRY400
