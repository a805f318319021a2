"""uvicorn as a process of a platform runs it: told to end, it closes in order and returns."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Iterator

import uvicorn


class OrderlyServer(uvicorn.Server):
    """Leaves signals to the process.

    uvicorn's own handling sends itself the signal once more when it has closed, which ends the process before what has
    to be given back is: a controller's lease, for instance, whose end the next one would wait for with each update.
    """

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """See `uvicorn.Server.capture_signals`."""
        yield

    def stop_on(self, *numbers: signal.Signals) -> None:
        """Close orderly when one of these comes."""
        loop = asyncio.get_running_loop()
        for number in numbers:
            loop.add_signal_handler(number, self.handle_exit, number, None)
