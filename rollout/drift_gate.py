"""Ask the drift watch whether requests have drifted, for rollouts that have the signal `drift/input`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from rollout.analysis.gate import why_held
from rollout.analysis.ledger import EvidenceIncrement
from rollout.gates import Gate, Gated

DRIFT = "drift"


class DriftUnavailable(Exception):
    """The drift watch does not answer. The message is for people."""


class DriftGate(Gate):
    """Rollouts wait while requests have drifted, or while nobody can say.

    Args:
        read: the watch's status; raises `DriftUnavailable`.
        wanted: see `Gate`.
        sink: see `Gate`.
        boot: see `Gate`.
        clock: see `Gate`.

    """

    source = DRIFT

    def __init__(
        self,
        read: Callable[[], Awaitable[Mapping[str, Any]]],
        *,
        wanted: Callable[[], Sequence[Gated]],
        sink: Callable[[str, EvidenceIncrement], object],
        boot: str,
        clock: Callable[[], float],
    ) -> None:
        super().__init__(wanted=wanted, sink=sink, boot=boot, clock=clock)
        self._read = read

    async def why(self, wanted: Sequence[Gated]) -> Mapping[str, str]:
        """By rollout: what the watch says of its model's requests."""
        try:
            status = await self._read()
        except DriftUnavailable as error:
            return {one.rollout: str(error) for one in wanted}
        return {one.rollout: why_held(status, one.model, self._clock()) for one in wanted}
