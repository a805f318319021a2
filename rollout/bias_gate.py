"""Ask what bias probes have shown of a new version, for rollouts that have the signal `probe/bias`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from rollout.analysis.ledger import EvidenceIncrement
from rollout.gates import Gate, Gated

PROBE = "probe"

Gaps = Callable[[str, str], Mapping[str, float] | None]
"""(model, version) -> the gaps that are no chance, by name, with their size; None for a version that was not probed."""


def why_biased(name: str, gaps: Mapping[str, float] | None, of_stable: Mapping[str, float] | None) -> str:
    """Why a version is to wait; empty when it is not. Pure.

    A gap that stable has as well, in the same direction, is no worse than what users have now.

    >>> why_biased("chat@1.1.0", {"gender.refusal": 0.2}, {"gender.refusal": 0.1})
    ''
    """
    if gaps is None:
        return f"{name} has not been probed for bias; `tidegate probe run {name}` does that, or leave the signal out"
    known = of_stable or {}
    new = sorted(gap for gap, size in gaps.items() if size * known.get(gap, 0.0) <= 0.0)
    if not new:
        return ""
    return (
        f"probes find gaps between groups that stable has not ({', '.join(new)}); `tidegate probe show {name}` tells "
        "more, `promote` by hand lets the rollout go on"
    )


class BiasGate(Gate):
    """Rollouts wait until their version has been probed, and while it shows gaps that stable does not.

    Args:
        gaps: reads reports; it may take its time, and runs in a thread.
        wanted: see `Gate`.
        sink: see `Gate`.
        boot: see `Gate`.
        clock: see `Gate`.

    """

    source = PROBE

    def __init__(
        self,
        gaps: Gaps,
        *,
        wanted: Callable[[], Sequence[Gated]],
        sink: Callable[[str, EvidenceIncrement], object],
        boot: str,
        clock: Callable[[], float],
    ) -> None:
        super().__init__(wanted=wanted, sink=sink, boot=boot, clock=clock)
        self._gaps = gaps

    async def why(self, wanted: Sequence[Gated]) -> Mapping[str, str]:
        """By rollout: what its version's last report says beside stable's."""
        return await asyncio.to_thread(lambda: {one.rollout: self._why(one) for one in wanted})

    def _why(self, one: Gated) -> str:
        of_stable = self._gaps(one.model, one.stable) if one.stable is not None else None
        return why_biased(f"{one.model}@{one.version}", self._gaps(one.model, one.version), of_stable)
