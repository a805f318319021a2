"""How sure was the engine of its own words? From the log-probabilities of an answer's tokens. Pure.

A model that is damaged, badly quantised or far from what it was trained on gives its own tokens less probability
(measured against itself, so two models of different families can't be compared by it). Only answers whose request asked
for `logprobs` have them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

WORST_NATS = 50.0
"""One token counts at most so much: engines write -9999 or nothing for what they hold impossible."""


class Likelihood(NamedTuple):
    """Negative log-likelihoods in nats. Higher is worse."""

    mean: float
    """Per token; its exponential is the perplexity."""
    worst: float
    """Of the least likely token: one slip in a good answer shows here and hardly in the mean."""


def likelihood(logprobs: Sequence[float]) -> Likelihood | None:
    """Of the tokens of one answer; None for none.

    >>> likelihood([-1.0, -3.0])
    Likelihood(mean=2.0, worst=3.0)
    """
    nats = [min(WORST_NATS, max(0.0, -value)) for value in logprobs if not math.isnan(value)]
    return Likelihood(math.fsum(nats) / len(nats), max(nats)) if nats else None
