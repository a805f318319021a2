"""Output drift: do the canary's answers differ from stable's? Turned into scored events for the event test. Pure.

No reference and no window: both arms answer the same traffic at the same time, and each request went to the canary
with a known probability. The past of both arms gives a direction, from stable's mean answer to the canary's; the next
answer's score is how far along it lies: its rank among the past answers of both, of which only the upper half counts
(betting on the answers nearer to stable too finds a change about twice as late). When the canary's answers are like
stable's, a score says nothing about the arm, whatever the direction and however the traffic moves: then
`events.CappedMixture` with the score's grid (`scores.for_score`) is an e-process, exact at the known weight.

Feed it requests whose arm was drawn (a forced one carries no evidence) and whose answers were embedded by a choice that
does not look at the arm; when the arms are embedded at different rates, pass `scores.sampled_weight`.

Worked use, one rollout:

    drift = OutputDrift(reference.coordinates)
    process = CappedMixture(EProcessConfig(alpha=0.001))
    state = process.start()
    event = drift.observe(reference.locate(vector)[0], canary=True, weight=0.1)
    if event is not None:
        state = process.update(state, event.canary, event.weight, thetas=event.thetas())
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from monitoring.drift.errors import ForeignState, UnusableVectors
from monitoring.drift.reference import Floats
from monitoring.sequential.events import THETAS, check_weight
from monitoring.sequential.scores import badness_rank, for_score

PAST = 512
"""Answers of both arms that a score is ranked among."""

LEAST_ANSWERS = 16
"""Answers of each arm before the first event: fewer give no direction."""

MEMORY = 256
"""Answers of an arm that its mean remembers, about."""


@dataclass(frozen=True, slots=True)
class ScoredEvent:
    """One answer's evidence.

    Attributes:
        g: in [0, 1], near 1 when it looks like the canary's answers so far: `max(0, 2 * rank - 1)`.
        canary: its arm.
        weight: the chance with which it went to the canary.

    """

    g: float
    canary: bool
    weight: float

    def thetas(self) -> tuple[float, ...]:
        """The grid for `CappedMixture.update(..., thetas=...)`, with rho0 = 1."""
        return for_score(THETAS, self.g)


class OutputDrift:
    """The scores of one pair of arms; about 130 kB at 65 coordinates. Not for two threads.

    Args:
        coordinates: length of what will be observed: `Reference.locate`'s coordinates of the answer's embedding or
            cheap features, so that all of them have one scale.

    """

    def __init__(self, coordinates: int) -> None:
        self._past = np.zeros((PAST, coordinates), dtype=np.float32)
        self._means = np.zeros((2, coordinates), dtype=np.float32)
        self._answers = [0, 0]

    @property
    def answers(self) -> tuple[int, int]:
        """Answers seen of stable and of the canary."""
        return self._answers[0], self._answers[1]

    def observe(self, coordinates: Floats, *, canary: bool, weight: float) -> ScoredEvent | None:
        """The event of one answer, or None while either arm has fewer than 16.

        Raises:
            UnusableVectors: for another length, or values that are not finite.
            ValueError: for a weight that is not between 0 and 1.

        """
        check_weight(weight)
        if coordinates.shape != self._past.shape[1:] or not np.isfinite(coordinates).all():
            raise UnusableVectors(
                f"coordinates of shape {coordinates.shape}, all finite: {bool(np.isfinite(coordinates).all())}; "
                f"give {self._past.shape[1]} finite values"
            )
        event = None
        seen = sum(self._answers)
        if min(self._answers) >= LEAST_ANSWERS:
            direction = self._means[1] - self._means[0]
            past = np.sort(self._past[: min(seen, PAST)] @ direction)
            rank = badness_rank(past.tolist(), float(coordinates @ direction))
            event = ScoredEvent(max(0.0, 2.0 * rank - 1.0), canary, weight)
        self._past[seen % PAST] = coordinates
        arm = int(canary)
        self._answers[arm] += 1
        self._means[arm] += (coordinates - self._means[arm]) / min(self._answers[arm], MEMORY)
        return event

    def to_json(self) -> dict[str, Any]:
        """Plain values; the past answers are coordinates, from which no text can be read."""
        seen = min(sum(self._answers), PAST)
        return {"past": self._past[:seen].tolist(), "means": self._means.tolist(), "answers": list(self._answers)}

    def restore(self, stored: Mapping[str, Any]) -> None:
        """Go on from what `to_json` gave.

        Raises:
            ForeignState: when it was saved with another number of coordinates.

        """
        means = np.array(stored["means"], dtype=np.float32)
        if means.shape != self._means.shape:
            raise ForeignState(
                f"a state of {means.shape[-1]} coordinates, not {self._means.shape[1]}; start without it"
            )
        past = np.array(stored["past"], dtype=np.float32).reshape(-1, means.shape[1])
        self._past[: len(past)] = past
        self._means = means
        self._answers = [int(count) for count in stored["answers"]]
