"""Following a rollout: a live tree on a terminal, a line per change elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tidegate.cli.evidence import exposure_line, headline, signal_line
from tidegate.cli.output import age, duration, note
from tidegate.errors import ControlUnavailable, TidegateError

if TYPE_CHECKING:
    from rich.tree import Tree

    from tidegate.client import ControlClient, RolloutStatus

POLL_S = 0.5
AWAY_S = 60.0
"""How long the control plane may be away while somebody watches; the supervisor brings it back in seconds."""

STYLES = {"Healthy": "green", "Degraded": "red", "Paused": "yellow", "Progressing": "cyan"}


def statuses(client: ControlClient, model: str, *, poll_s: float | None = None) -> Iterator[RolloutStatus]:
    """The status again and again; a control plane that restarts in between is waited for."""
    away_since: float | None = None
    while True:
        try:
            yield client.rollout(model)
            away_since = None
        except ControlUnavailable:
            now = time.monotonic()
            away_since = now if away_since is None else away_since
            if now - away_since > AWAY_S:
                raise
        time.sleep(POLL_S if poll_s is None else poll_s)


def follow(
    client: ControlClient,
    model: str,
    *,
    rollout: str | None = None,
    timeout_s: float | None = None,
    quiet: bool = False,
    endless: bool = False,
    poll_s: float | None = None,
) -> RolloutStatus:
    """Show a rollout until it ends.

    Args:
        client: the control plane.
        model: whose rollout.
        rollout: its id; None means the one that is active now.
        timeout_s: how long; None means as long as it takes.
        quiet: show nothing.
        endless: go on after the end, until Ctrl-C.
        poll_s: between two looks.

    Raises:
        TidegateError: the time is over, or another rollout took its place.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    view = _Quiet() if quiet else _Live() if sys.stdout.isatty() else _Lines()
    try:
        for status in statuses(client, model, poll_s=poll_s):
            view.show(status)
            if rollout is not None and status.rollout not in (None, rollout):
                raise TidegateError(f"another rollout of {model} took its place: {status.reason}")
            if status.finished and not endless:
                return status
            if deadline is not None and time.monotonic() >= deadline:
                raise TidegateError(
                    f"{model} is still {status.phase} after {timeout_s:.0f} s: {status.waiting_for or status.reason}; "
                    f"`tidegate rollout get {model} --watch` shows more"
                )
    finally:
        view.close()
    raise AssertionError("statuses never end")


class _Quiet:
    def show(self, status: RolloutStatus) -> None:
        """Show nothing."""

    def close(self) -> None:
        """Nothing is held."""


class _Lines(_Quiet):
    """For logs and pipes: a line when something changed, on stderr."""

    def __init__(self) -> None:
        self._said = ""

    def show(self, status: RolloutStatus) -> None:
        line = headline(status)
        why = status.reason if status.finished else status.waiting_for or status.reason
        if line != self._said:
            self._said = line
            note(f"{line}: {why}" if why else line)


class _Live(_Quiet):
    def __init__(self) -> None:
        from rich.live import Live

        self._live = Live(auto_refresh=False)
        self._live.start()

    def show(self, status: RolloutStatus) -> None:
        self._live.update(tree(status), refresh=True)

    def close(self) -> None:
        self._live.stop()


def tree(status: RolloutStatus, now: float | None = None) -> Tree:
    """A rollout as a tree: where it stands, each signal, exposure, streams, what drains."""
    from rich.text import Text
    from rich.tree import Tree

    now = time.time() if now is None else now
    root = Tree(Text.assemble((status.model, "bold"), "  ", (headline(status), STYLES.get(status.phase, ""))))
    if status.reason:
        root.add(Text(f"why: {status.reason}"))
    if status.waiting_for:
        root.add(Text(f"waiting: {status.waiting_for}"))
    if status.signals:
        signals = root.add("signals")
        for signal in status.signals:
            signals.add(Text(signal_line(signal), style="red" if signal.verdict == "Failed" else ""))
    if status.exposure.canary_requests:
        root.add(Text(f"exposure: {exposure_line(status)}"))
    streams = ", ".join(f"{version}: {n}" for version, n in status.streams_in_flight.items())
    if streams:
        root.add(Text(f"streams in flight: {streams}"))
    for entry in status.retiring:
        left = "unknown" if entry.in_flight is None else entry.in_flight
        deadline = duration(max(0.0, entry.deadline_at - now))
        root.add(Text(f"draining {entry.version} for {age(entry.since, now)}: {left} streams, deadline in {deadline}"))
    if status.previous is not None:
        window = f" for {duration(max(0.0, status.warm_until - now))}" if status.warm_until else ""
        root.add(Text(f"{status.previous} is kept warm{window}: `tidegate rollback {status.model}` goes back at once"))
    for what, why in status.quarantine.items():
        root.add(Text(f"condemned {what[:12]}: {why}", style="red"))
    if status.started_at:
        root.add(Text(f"started {age(status.started_at, now)} ago by {status.actor or '?'}"))
    return root
