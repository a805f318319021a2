"""What happened in a rollout and why, told from the event log alone. Pure.

The log holds commands, decisions with all that they saw, and increments of evidence; a time line is made of the first
two, of the moments that the third betrays (first and last canary request, first events), and of nothing else.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from tidegate.cli.evidence import e_value, rate

if TYPE_CHECKING:
    from tidegate.replies import HistoryEntry


@dataclasses.dataclass(frozen=True)
class Moment:
    """One line of a time line.

    Attributes:
        at: seconds since the epoch.
        kind: command, decision, evidence or traffic.
        text: what happened and why.
        details: what was seen then, a line each.
        entry: the id in the log, None for what follows from evidence.
    """

    at: float
    kind: str
    text: str
    details: tuple[str, ...] = ()
    entry: int | None = None


@dataclasses.dataclass(frozen=True)
class Story:
    """One rollout: from its start to the last entry before the next one's."""

    rollout: str
    version: str
    moments: tuple[Moment, ...]
    canary_requests: int | None
    lower_bound: int | None


def rollouts_in(entries: Iterable[HistoryEntry]) -> list[tuple[str, str]]:
    """The rollouts in a log, oldest first: id and version."""
    return [(a["rollout"], _version_of(a)) for e in entries for a in e.actions if a.get("type") == "start"]


def tell(entries: Sequence[HistoryEntry], rollout: str) -> Story:
    """The story of one rollout.

    Args:
        entries: the log of one model in order, evidence included.
        rollout: the id to tell; what was logged before its start is left out.
    """
    version = ""
    own: list[HistoryEntry] = []
    inside = False
    for entry in entries:
        started = next((a for a in entry.actions if a.get("type") == "start"), None)
        if started is not None:
            inside = started.get("rollout") == rollout
            version = _version_of(started) if inside else version
        if entry.kind == "evidence":
            if entry.payload.get("rollout") == rollout:
                own.append(entry)
        elif inside:
            own.append(entry)
    moments = [_moment(e) for e in own if e.kind != "evidence"]
    evidence = [e for e in own if e.kind == "evidence"]
    moments += _traffic(evidence) + _first_events(evidence)
    order = {"command": 0, "traffic": 1, "evidence": 2, "decision": 3}
    moments.sort(key=lambda m: (m.at, order.get(m.kind, 9)))
    requests, bound = _exposure(own, evidence)
    return Story(rollout, version, tuple(moments), requests, bound)


def _version_of(start: dict[str, Any]) -> str:
    return str(start.get("spec", {}).get("version") or start.get("target", {}).get("revision", {}).get("version", ""))


def _moment(entry: HistoryEntry) -> Moment:
    did = ", ".join(_action(a) for a in entry.actions)
    cause = f"[{entry.cause}] " if entry.cause and entry.kind == "decision" else ""
    said = entry.payload.get("command") or {}
    why = entry.reason or str(said.get("reason") or "")
    who = f"{entry.actor}: " if entry.kind == "command" and f"by {entry.actor}" not in why else ""
    source = f" (from {entry.source})" if entry.source else ""
    return Moment(entry.at, entry.kind, f"{who}{cause}{why}{source} -> {did or 'nothing'}", _seen(entry), entry.id)


def _action(action: dict[str, Any]) -> str:
    match action.get("type"):
        case "start":
            return f"start {_version_of(action)}"
        case "set-step":
            what = "soak" if action.get("soaking") else f"step {action.get('step', 0) + 1}"
            return f"{what} at {action.get('weight')} %"
        case "withdraw" | "switch-back" as kind:
            condemned = ", condemned until `ack`" if action.get("condemn") else ""
            what = "canary withdrawn" if kind == "withdraw" else "switched back to the previous version"
            return f"{what} ({action.get('trigger')}{condemned})"
        case "remove":
            cut = action.get("streams_cut") or 0
            return "drained and stopped" + (f", {cut} streams cut" if cut else "")
        case "retire-previous":
            return "previous version retires"
        case other:
            return str(other)


def _seen(entry: HistoryEntry) -> tuple[str, ...]:
    """What a decision saw: signals with evidence, then exposure."""
    seen = entry.observation
    if not seen or entry.cause == "drained" or _begins(entry):
        return ()
    lines = []
    for signal in seen.get("signals") or ():
        canary, stable = signal.get("canary") or {}, signal.get("stable") or {}
        if not any(counts.get(key) for counts in (canary, stable) for key in ("events", "n")):
            continue  # nothing was known of it yet
        lines.append(
            f"{signal.get('name')}: canary {_counts(canary)} against stable {_counts(stable)}, "
            f"e = {e_value(signal.get('log_e', 0.0))} of {e_value(signal.get('threshold', 0.0))}, "
            f"for it {e_value(signal.get('forward_log_e', 0.0))} of {e_value(signal.get('forward_threshold', 0.0))}, "
            f"{signal.get('verdict')}"
        )
    exposure = seen.get("exposure") or {}
    if exposure.get("canary_requests"):
        bound = exposure.get("lower_bound")
        lines.append(f"exposure: {exposure['canary_requests']} canary requests, lower bound {bound or 'unknown'}")
    return tuple(lines)


def _begins(entry: HistoryEntry) -> bool:
    """Whether a rollout starts here. What was seen then is the evidence of the one before it."""
    return any(action.get("type") == "start" for action in entry.actions)


def _counts(counts: dict[str, Any]) -> str:
    events, n = int(counts.get("events", 0)), int(counts.get("n", 0))
    return f"{events} of {n} ({rate(events, n)})" if n else f"{events} of 0"


def _canary_totals(evidence: Iterable[HistoryEntry]) -> list[dict[str, Any]]:
    return [t for e in evidence for t in e.payload.get("totals") or () if t.get("role") == "canary"]


def _traffic(evidence: Sequence[HistoryEntry]) -> list[Moment]:
    totals = _canary_totals(evidence)
    first = [t["first_admitted_at"] for t in totals if t.get("first_admitted_at")]
    last = [t["last_admitted_at"] for t in totals if t.get("last_admitted_at")]
    moments = []
    if first:
        moments.append(Moment(min(first), "traffic", "first canary request"))
    if last:
        moments.append(Moment(max(last), "traffic", "last canary request"))
    return moments


def _first_events(evidence: Iterable[HistoryEntry]) -> list[Moment]:
    """The first event of each signal on the canary, with how many there were in all on both arms."""
    first: dict[str, float] = {}
    counts: dict[str, dict[str, int]] = {}
    for entry in evidence:
        for event in entry.payload.get("events") or ():
            signal, arm = str(event.get("signal")), str(event.get("arm"))
            if event.get("level"):
                signal = f"{signal} ({event['level']})"
            by_arm = counts.setdefault(signal, {})
            by_arm[arm] = by_arm.get(arm, 0) + 1
            if arm == "canary":
                at = float(event.get("settled_at") or entry.at)
                first[signal] = min(at, first.get(signal, at))
    return [
        Moment(
            at,
            "evidence",
            f"first {signal} on the canary ({counts[signal].get('canary', 0)} in all, "
            f"{counts[signal].get('stable', 0)} on stable)",
        )
        for signal, at in first.items()
    ]


def _exposure(own: Iterable[HistoryEntry], evidence: Iterable[HistoryEntry]) -> tuple[int | None, int | None]:
    """All canary requests admitted (the newest cumulative counters), and the lower bound the last decision saw."""
    newest: dict[tuple[Any, ...], int] = {}
    for entry in evidence:
        for total in entry.payload.get("totals") or ():
            if total.get("role") == "canary":
                key = (
                    entry.payload.get("gateway"),
                    entry.payload.get("boot"),
                    total.get("digest"),
                    total.get("weight"),
                )
                admitted = int(total.get("admitted", 0)) + int(total.get("forced", 0))
                newest[key] = max(newest.get(key, 0), admitted)
    bounds = [
        e.observation["exposure"]["lower_bound"]
        for e in own
        if e.observation and not _begins(e) and (e.observation.get("exposure") or {}).get("lower_bound") is not None
    ]
    return (sum(newest.values()) if newest else None), (bounds[-1] if bounds else None)


def render(story: Story) -> list[str]:
    """The story as lines: local time, seconds since the start, what happened and why; what was seen below it."""
    if not story.moments:
        return [f"rollout {story.rollout}: nothing in the log"]
    start = story.moments[0].at
    began = dt.datetime.fromtimestamp(start).astimezone()
    lines = [f"rollout {story.rollout} of {story.version}, started {began:%Y-%m-%d %H:%M:%S %Z}"]
    for moment in story.moments:
        clock = dt.datetime.fromtimestamp(moment.at).astimezone()
        lines.append(f"{clock:%H:%M:%S}.{clock.microsecond // 1000:03d}  +{moment.at - start:8.2f} s  {moment.text}")
        lines.extend(f"{' ' * 28}{detail}" for detail in moment.details)
    if story.canary_requests is not None:
        bound = f"; at least {story.lower_bound} were needed to tell" if story.lower_bound is not None else ""
        lines.append(f"canary requests in all: {story.canary_requests}{bound}")
    return lines
