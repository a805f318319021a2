"""Ask what bias probes have shown of a new version, for rollouts that have the signal `probe/bias`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from rollout.errors import EventLogUnavailable
from rollout.gates import Gated, Reasons

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
        return (
            f"{name} has not been probed for bias; `tidegate probe run {name}` does that (on a cluster the chart's "
            "probes.enabled), or leave the signal out"
        )
    known = of_stable or {}
    new = sorted(gap for gap, size in gaps.items() if size * known.get(gap, 0.0) <= 0.0)
    if not new:
        return ""
    return (
        f"probes find gaps between groups that stable has not ({', '.join(new)}); `tidegate probe show {name}` tells "
        "more, `promote` by hand lets the rollout go on"
    )


def bias_reasons(gaps: Gaps) -> Reasons:
    """Why rollouts wait: their version was not probed, or its last report has gaps that stable's has not.

    Args:
        gaps: reads reports; it may take its time, and runs in a thread.
    """

    def why(one: Gated) -> str:
        try:
            return compared(one)
        except EventLogUnavailable:
            return "the store of probes' reports does not answer; it is asked again"

    def compared(one: Gated) -> str:
        of_stable = gaps(one.model, one.stable) if one.stable is not None else None
        return why_biased(f"{one.model}@{one.version}", gaps(one.model, one.version), of_stable)

    async def reasons(wanted: Sequence[Gated]) -> Mapping[str, str]:
        return await asyncio.to_thread(lambda: {one.rollout: why(one) for one in wanted})

    return reasons
