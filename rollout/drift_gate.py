"""Ask the drift watch whether requests have drifted, for rollouts that have the signal `drift/input`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from rollout.analysis.gate import why_held
from rollout.gates import Gated, Reasons

DRIFT = "drift"


class DriftUnavailable(Exception):
    """The drift watch does not answer. The message is for people."""


def drift_reasons(read: Callable[[], Awaitable[Mapping[str, Any]]], clock: Callable[[], float]) -> Reasons:
    """Why rollouts wait: their model's requests have drifted, or nobody can say.

    Args:
        read: the watch's status; raises `DriftUnavailable`.
        clock: seconds since the epoch.
    """

    async def reasons(wanted: Sequence[Gated]) -> Mapping[str, str]:
        try:
            status = await read()
        except DriftUnavailable as error:
            return {one.rollout: str(error) for one in wanted}
        return {one.rollout: why_held(status, one.model, clock()) for one in wanted}

    return reasons
