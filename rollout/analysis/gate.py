"""A signal that only ever holds: while requests have drifted, or a version was not probed, a rollout waits. Pure.

It never takes a version back: drifted requests are the same on both arms, and probes are no users. What is said
travels as readings in the event log, like counters, so a fold of the log holds at the same moments again.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from rollout.analysis.counter_signal import CounterReading
from rollout.observation import Counts, SignalReading, Verdict
from rollout.specs import SignalSpec

STALE_S = 15.0
"""A status older than this says nothing about now: the watch writes one twice a second."""

NOT_ASKED: Mapping[str, str] = {
    "drift": "the drift watch has not been asked yet",
    "probe": "the reports of probes have not been read yet",
}
"""By family: why nothing goes on before the first reading."""


class GateSignal:
    """Everything known of one gate of one rollout.

    Args:
        spec: what was asked for.

    """

    def __init__(self, spec: SignalSpec) -> None:
        self._spec = spec
        self._error = NOT_ASKED[spec.name.partition("/")[0]]

    def add(self, reading: CounterReading, boot: str) -> None:
        """Take in one reading, in the order of the log: an error closes the gate, none opens it."""
        self._error = reading.error

    def reading(self, weight: float) -> SignalReading:
        """The gate as it stands now. It takes no part of alpha, so its evidence is nothing of a threshold of 1."""
        return SignalReading(
            name=self._spec.name,
            canary=Counts(),
            stable=Counts(),
            log_e=0.0,
            threshold=1.0,
            gating=self._spec.gating,
            verdict=Verdict.ERROR if self._error else Verdict.SUCCESSFUL,
            error=self._error,
        )


def why_held(status: Mapping[str, Any], model: str, now: float) -> str:
    """Why a model's rollout is to wait, by the drift watch's status; empty when it is not.

    Args:
        status: as the watch tells it.
        model: the registered model.
        now: wall-clock seconds.

    """
    written_at = float(status["written_at"])
    if now - written_at > STALE_S:
        # No age, which would be another reason, and another line of the log, each time.
        since = f"since {datetime.fromtimestamp(written_at, UTC):%Y-%m-%d %H:%M:%S} UTC" if written_at > 0 else "yet"
        return f"the drift watch has said nothing {since} (limit {STALE_S:.0f} s); see `tidegate status`"
    streams = [stream for stream in status["streams"] if stream["model"] == model]
    if not streams:
        return f"{model} has no reference; `tidegate drift reference build {model}` makes one, or leave the signal out"
    drifted = [str(stream["stream"]) for stream in streams if stream["paging"]]
    if not drifted:
        return ""
    return (
        f"requests are not what the reference is of ({', '.join(drifted)}); `tidegate drift explain {model}` says what "
        f"changed, `tidegate drift ack {model}` lets the rollout go on"
    )
