"""Which requests are embedded when there are more than the machine can embed. Pure.

The choice looks at the arrival rate and at chance, never at the request: a detector that saw only short prompts under
load would call the load a drift.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

MEMORY_S = 10.0
"""Seconds over which the arrival rate is averaged."""


@dataclass(frozen=True, slots=True)
class SamplingState:
    """What the sampler remembers, and its counters, which only ever grow.

    Attributes:
        at_s: when the last request came, on the caller's monotonic clock; None before the first.
        arrivals_per_s: the averaged arrival rate.
        allowance: embeddings that may be started at once.
        chosen: requests that were to be embedded.
        skipped: those that were not.

    """

    at_s: float | None = None
    arrivals_per_s: float = 0.0
    allowance: float = 1.0
    chosen: int = 0
    skipped: int = 0


def sampling_rate(arrivals_per_s: float, max_embeds_per_s: float) -> float:
    """The share of requests to embed, so that no more than the limit are.

    >>> sampling_rate(50.0, 100.0), sampling_rate(400.0, 100.0)
    (1.0, 0.25)
    """
    if max_embeds_per_s <= 0.0:
        return 0.0
    return min(1.0, max_embeds_per_s / arrivals_per_s) if arrivals_per_s > 0.0 else 1.0


def choose(state: SamplingState, now_s: float, max_embeds_per_s: float, u: float) -> tuple[SamplingState, bool]:
    """Whether to embed this request, and the state after it.

    Thinned to the share that the averaged rate allows, so that the choice is even over time; and within an allowance
    that fills at the limit and holds a second of it, so that a burst can't exceed it before the average has seen it.

    Args:
        state: before the request.
        now_s: a monotonic clock; one that goes back counts as standing still.
        max_embeds_per_s: the limit; 0 turns embedding off.
        u: a uniform random number in [0, 1) of this request.

    """
    elapsed = 0.0 if state.at_s is None else max(0.0, now_s - state.at_s)
    kept = math.exp(-elapsed / MEMORY_S)
    rate = state.arrivals_per_s * kept + 1.0 / MEMORY_S
    full = max(max_embeds_per_s, 1.0)
    allowance = min(full, state.allowance + elapsed * max_embeds_per_s)
    embed = max_embeds_per_s > 0.0 and u < sampling_rate(rate, max_embeds_per_s) and allowance >= 1.0
    at_s = now_s if state.at_s is None else max(now_s, state.at_s)
    after = SamplingState(
        at_s, rate, allowance - 1.0 if embed else allowance, state.chosen + embed, state.skipped + (not embed)
    )
    return after, embed
