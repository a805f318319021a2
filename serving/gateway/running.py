"""Run a coroutine without a task: for the one coroutine per request, where a task costs more than it gives.

A task is registered in a weak set, begins a turn of the loop later, and copies a context: about 5 us, a twentieth of
what a request costs as a whole. This begins at once and knows only how to go on and how to be cancelled. There is no
current task inside, so what needs one (`asyncio.timeout`, say) is awaited as a task of its own, off the hot path.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


class Running:
    """A coroutine under way. It must catch its own exceptions: one that it lets out goes to the loop's handler."""

    __slots__ = ("_awaited", "_cancelled", "_coroutine", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, None]) -> None:
        self._loop = loop
        self._coroutine: Coroutine[Any, Any, None] | None = coroutine
        self._awaited: asyncio.Future[Any] | None = None
        self._cancelled = False

    def step(self, _done: object = None) -> None:
        """Begin, or go on until the coroutine waits for something or is over."""
        coroutine = self._coroutine
        if coroutine is None:
            return
        self._awaited = None
        try:
            if self._cancelled:
                self._cancelled = False
                awaited = coroutine.throw(asyncio.CancelledError())
            else:
                awaited = coroutine.send(None)
        except StopIteration:
            self._coroutine = None
            return
        except BaseException:
            self._coroutine = None
            raise
        if awaited is None:  # asyncio.sleep(0)
            self._loop.call_soon(self.step)
            return
        # The protocol between futures and whoever drives the coroutine, see asyncio.Task.__step.
        awaited._asyncio_future_blocking = False
        self._awaited = awaited
        awaited.add_done_callback(self.step)

    def cancel(self) -> None:
        """Raise CancelledError where the coroutine waits, in the next turn of the loop."""
        if self._coroutine is None:
            return
        if self._awaited is not None:
            if not self._awaited.cancel():
                self._cancelled = True  # it is done already: the step is under way and finds this
        else:
            self._cancelled = True
