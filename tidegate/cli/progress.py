"""Progress of the local platform's start and stop: lines that change on a terminal, lines that follow elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from tidegate.runfile import PlatformState, Progress, State

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

MARKS = {
    State.WAITING: ("·", "dim"),
    State.STARTING: ("…", "yellow"),
    State.READY: ("✓", "green"),
    State.STOPPED: ("–", "dim"),
    State.FAILED: ("✗", "red"),
}


def took_s(line: Progress, now: float) -> float | None:
    """How long it took, or has been taking so far; None before it began."""
    if line.took_s is not None:
        return line.took_s
    return max(0.0, now - line.since) if line.since and line.state is State.STARTING else None


def _lines(state: PlatformState) -> list[Progress]:
    return [*state.parts, *state.tasks]


class StartView:
    """Shows a start. Call `show` with each new state, `close` at the end."""

    def __init__(self) -> None:
        self._live: Live | None = None
        self._said: dict[str, str] = {}
        self._terminal = sys.stderr.isatty()

    def show(self, state: PlatformState) -> None:
        """Show this state."""
        if self._terminal:
            self._show_live(state)
            return
        now = time.time()
        for line in _lines(state):
            if line.state is State.WAITING and not line.message:
                continue
            text = f"{line.title}: {line.message or line.state}"
            if line.state in (State.READY, State.FAILED):
                seconds = took_s(line, now)
                text = f"{line.title}: {'failed' if line.state is State.FAILED else 'ready'} after {seconds or 0:.1f} s"
            if self._said.get(line.name) != text:
                self._said[line.name] = text
                print(text, file=sys.stderr, flush=True)

    def _show_live(self, state: PlatformState) -> None:
        from rich.console import Console
        from rich.live import Live

        if self._live is None:
            self._live = Live(console=Console(stderr=True), auto_refresh=False)
            self._live.start()
        self._live.update(_table(state, time.time()), refresh=True)

    def close(self) -> None:
        """Leave the last state on the screen."""
        if self._live is not None:
            self._live.stop()
            self._live = None


def _table(state: PlatformState, now: float) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for line in _lines(state):
        mark, style = MARKS[line.state]
        seconds = took_s(line, now)
        elapsed = f"{seconds:.1f} s" if seconds is not None else ""
        message = "" if line.state is State.READY else line.message
        table.add_row(Text(mark, style=style), line.title, Text(elapsed, style="dim", justify="right"), Text(message))
    return table


class StopView:
    """Shows a stop: one line per part as it ends."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def show(self, state: PlatformState) -> None:
        """Tell which parts have ended since the last call."""
        for part in reversed(state.parts):
            if part.state is State.STOPPED and part.name not in self._said:
                self._said.add(part.name)
                print(f"{part.title} has stopped", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Nothing is held."""
