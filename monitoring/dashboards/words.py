"""What the closed sets of a rollout are called on a dashboard, so that nobody has to know our names. Pure.

The keys are the values of `rollout`'s enumerations; a test holds them together, since nothing here may import those.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

Words = Mapping[str, tuple[str, str]]
"""By value of a label: what is shown, and in which colour."""

PLAIN: Final = "text"
GOOD, WAITS, BAD, NOTE = "green", "yellow", "red", "blue"

PHASES: Words = {
    "Progressing": ("Progressing", NOTE),
    "Paused": ("Paused: waits for somebody", WAITS),
    "Healthy": ("Healthy", GOOD),
    "Degraded": ("Degraded: taken back", BAD),
}

STAGES: Words = {
    "starting": ("coming up, no traffic", NOTE),
    "stepping": ("gets a part of the traffic", NOTE),
    "soaking": ("has most of the traffic", NOTE),
    "previewing": ("previewed by testers alone", NOTE),
    "mirroring": ("gets copies of requests", NOTE),
    "promoted": ("promoted: it is stable now", GOOD),
    "withdrawing": ("being taken back", BAD),
    "withdrawn": ("taken back", BAD),
}

CAUSES: Words = {
    "command": ("done by command", PLAIN),
    "signal-failed": ("a signal speaks against it", BAD),
    "smoke-failed": ("its smoke suite failed", BAD),
    "start-failed": ("it did not start", BAD),
    "progress-deadline": ("its deadline is over", BAD),
    "not-observed": ("waits: the engines can't be observed", WAITS),
    "not-followed": ("waits: a gateway does not follow", WAITS),
    "paused": ("waits: paused", WAITS),
    "starting": ("waits: the engine is starting", NOTE),
    "withdrawing": ("waits: stable can't take all of it yet", WAITS),
    "canary-away": ("waits: the new version does not answer", WAITS),
    "sample-ratio": ("held: sessions do not divide as the weights say", BAD),
    "step-time": ("waits: the step's time is not over", NOTE),
    "smoke": ("waits: the smoke suite runs", NOTE),
    "evidence": ("waits: more evidence is needed", NOTE),
    "capacity": ("waits: room for more replicas", WAITS),
    "progress": ("goes on", GOOD),
    "report": ("its report is done: waits for somebody", WAITS),
    "drained": ("drained", PLAIN),
    "watch-over": ("no longer watched", PLAIN),
    "watching": ("has all traffic and is watched", NOTE),
    "idle": ("nothing to do", PLAIN),
    # Why it was taken back: the triggers of a rollback.
    "signal": ("taken back: a signal spoke against it", BAD),
    "operator": ("taken back by command", BAD),
    "abort": ("aborted by command", BAD),
    "never-ready": ("taken back: it never became ready", BAD),
    "engine-lost": ("taken back: its engine died", BAD),
    "insufficient-evidence": ("the evidence does not suffice either way", BAD),
    "superseded": ("another version was deployed", PLAIN),
}

VERDICTS: Words = {
    "Pending": ("not measured yet", PLAIN),
    "Running": ("still weighing", NOTE),
    "Successful": ("good enough to go on", GOOD),
    "Failed": ("against the new version", BAD),
    "Error": ("can't be measured", WAITS),
    "Inconclusive": ("does not suffice either way", WAITS),
}

SEVERITIES: Words = {"page": ("page", BAD), "ticket": ("ticket", WAITS)}
