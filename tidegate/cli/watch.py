"""Following a rollout: a live tree on a terminal, a line per change elsewhere."""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tidegate.cli.cluster import hint
from tidegate.cli.evidence import exposure_line, headline, signal_line, step_left_s
from tidegate.cli.output import age, duration, note
from tidegate.errors import ControlError, ControlUnavailable, TidegateError

if TYPE_CHECKING:
    from rich.tree import Tree

    from tidegate.client import ControlClient
    from tidegate.replies import RolloutStatus

RETRY_S = 0.5
AWAY_S = 60.0
"""How long the control plane may be away while somebody watches; the supervisor brings it back in seconds."""

TICK_S = 1.0
SERVICE_UNAVAILABLE = 503

STYLES = {"Healthy": "green", "Degraded": "red", "Paused": "yellow", "Progressing": "cyan"}


def statuses(client: ControlClient, model: str, *, retry_s: float | None = None) -> Iterator[RolloutStatus]:
    """The status now, and then each as the control plane sends it; one that restarts in between is waited for."""
    away_since: float | None = None
    while True:
        try:
            yield client.rollout(model)  # who was never deployed is an error, not a stream without end
            away_since = None
            yield from client.events(model)
        except ControlUnavailable:
            now = time.monotonic()
            away_since = now if away_since is None else away_since
            if now - away_since > AWAY_S:
                raise
        except ControlError as error:
            if error.status != SERVICE_UNAVAILABLE:  # a controller that does not lead yet
                raise
        time.sleep(RETRY_S if retry_s is None else retry_s)


def follow(
    client: ControlClient,
    model: str,
    *,
    rollout: str | None = None,
    timeout_s: float | None = None,
    quiet: bool = False,
    endless: bool = False,
) -> RolloutStatus:
    """Show a rollout until it ends.

    Args:
        client: the control plane.
        model: whose rollout.
        rollout: its id; None means the one that is active now.
        timeout_s: how long; None means as long as it takes.
        quiet: show nothing.
        endless: go on after the end, until Ctrl-C.

    Raises:
        TidegateError: the time is over, or another rollout took its place.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    view = _Quiet() if quiet else _Live() if sys.stdout.isatty() else _Lines()
    try:
        for status in _ticking(statuses(client, model), deadline):
            view.show(status)
            if rollout is not None and status.rollout not in (None, rollout):
                raise TidegateError(f"another rollout of {model} took its place: {status.reason}")
            if status.finished and not endless:
                return status
            if deadline is not None and time.monotonic() >= deadline:
                raise TidegateError(
                    f"{model} is still {status.phase} after {timeout_s:.0f} s: {status.waiting_for or status.reason}; "
                    f"{hint(f'rollout get {model} --watch')} shows more"
                )
    finally:
        view.close()
    raise AssertionError("statuses never end")


def _ticking(source: Iterator[RolloutStatus], deadline: float | None) -> Iterator[RolloutStatus]:
    """The statuses of `source`, the last one again every second: time left runs down, and a deadline is noticed."""
    newest: queue.SimpleQueue[RolloutStatus | Exception] = queue.SimpleQueue()

    def read() -> None:
        try:
            for status in source:
                newest.put(status)
        except Exception as error:  # raised where the statuses are read
            newest.put(error)

    threading.Thread(target=read, daemon=True, name="statuses").start()
    last: RolloutStatus | None = None
    while True:
        left_s = TICK_S if deadline is None else min(TICK_S, max(0.0, deadline - time.monotonic()))
        try:
            found = newest.get(timeout=left_s if last is not None else None)
        except queue.Empty:
            assert last is not None
            yield last
            continue
        if isinstance(found, Exception):
            raise found
        last = found
        yield last


class _Quiet:
    def show(self, status: RolloutStatus) -> None:
        """Show nothing."""

    def close(self) -> None:
        """Nothing is held."""


class _Lines(_Quiet):
    """For logs and pipes: a line when something changed, on stderr."""

    def __init__(self) -> None:
        self._said: tuple[str, str | None] = ("", "")

    def show(self, status: RolloutStatus) -> None:
        line = headline(status)
        why = status.reason if status.finished else status.waiting_for or status.reason
        # What is waited for counts seconds and requests: it is told with a change, and is none itself.
        if (line, status.reason) != self._said:
            self._said = (line, status.reason)
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
    """A rollout as a tree: where it stands, each signal, exposure, endpoints, streams, what drains."""
    from rich.text import Text
    from rich.tree import Tree

    now = time.time() if now is None else now
    root = Tree(Text.assemble((status.model, "bold"), "  ", (headline(status), STYLES.get(status.phase, ""))))
    if status.reason:
        root.add(Text(f"why: {status.reason}"))
    if status.waiting_for:
        left_s = step_left_s(status, now)
        left = f" (at least {duration(left_s)} left)" if left_s else ""
        root.add(Text(f"waiting: {status.waiting_for}{left}"))
    if status.canary is not None:
        observed = "unknown" if status.observed_weight is None else f"{status.observed_weight} %"
        root.add(Text(f"weight: {status.weight} % desired, {observed} observed at {_gateways(status)}"))
    if status.signals:
        whose = f" of the last rollout, {status.target}" if status.canary is None and status.target else ""
        signals = root.add(f"signals{whose}")
        for signal in status.signals:
            signals.add(Text(signal_line(signal), style="red" if signal.verdict == "Failed" else ""))
    for line in _by_strategy(status):
        root.add(Text(line))
    if status.exposure.canary_requests:
        root.add(Text(f"exposure: {exposure_line(status)}"))
    for title, counts in (("endpoints", status.endpoints), ("streams in flight", status.streams_in_flight)):
        if counts:
            root.add(Text(f"{title}: " + ", ".join(f"{version}: {n}" for version, n in counts.items())))
    for line in _behind(status, now):
        root.add(Text(line))
    for digest, why in status.quarantine.items():
        version = status.quarantined_versions.get(digest, digest[:12])
        root.add(Text(f"condemned {version}: {why}", style="red"))
    if status.started_at:
        root.add(Text(f"started {age(status.started_at, now)} ago; the last word was {status.actor or 'nobody'}'s"))
    return root


def _by_strategy(status: RolloutStatus) -> Iterator[str]:
    """What only some strategies have."""
    if status.canary is None:
        return
    if status.smoke is not None:
        failed = ", ".join(str(name) for name in status.smoke.get("failed") or ())
        passed = "passed" if status.smoke.get("passed") else f"failed: {failed or status.smoke.get('message')}"
        yield f"smoke suite: {status.smoke.get('ran')} cases, {passed}"
    if status.mirror_percent:
        yield f"mirror: {status.mirror_percent} % of stable's requests, {status.pairs or 0} pairs compared"
    wanted = next((s.sessions for s in status.steps if s.sessions), None)
    if wanted:
        yield f"sessions: {status.sessions or 0} of {wanted}"
    for comparison in status.comparisons:
        yield f"effect: {comparison.told}"
    if status.sample_ratio is not None and status.sample_ratio.get("mismatched"):
        yield "sample ratio: the arms did not get their shares of sessions; it can't go on until somebody looks"
    if status.awaits:
        yield f"nothing is left to wait for: {hint(f'rollout {status.awaits} {status.model}')} goes on"


def _gateways(status: RolloutStatus) -> str:
    if status.gateways is None:
        return "the gateways"
    return f"{status.gateways} gateway{'' if status.gateways == 1 else 's'}"


def _behind(status: RolloutStatus, now: float) -> Iterator[str]:
    """What is left of versions that serve no more."""
    if status.leaving is not None:
        leaving = status.leaving
        yield f"{leaving.version} is being taken back and keeps {leaving.weight} % until stable can take it"
    if status.watch is not None and status.watch.until is not None:
        yield f"{status.stable} is still judged for {duration(max(0.0, status.watch.until - now))}"
    for entry in status.retiring:
        left = "unknown" if entry.in_flight is None else entry.in_flight
        deadline = duration(max(0.0, entry.deadline_at - now))
        yield f"draining {entry.version} for {age(entry.since, now)}: {left} streams, deadline in {deadline}"
    if status.previous is not None:
        window = f" for {duration(max(0.0, status.warm_until - now))}" if status.warm_until else ""
        yield f"{status.previous} is kept warm{window}: {hint(f'rollback {status.model}')} goes back at once"
