"""A betting e-detector: has the stream of requests left its reference? With a bound on false alarms. Pure.

**Scores that follow the change.** Fixed scores (each principal component by itself) see a change of topic late, since
it moves many of them a little. So the detector keeps running means of the recent coordinates (over about 16, 64 and 256
requests) less the reference's centre: the directions in which the stream seems to have moved. The next requests are
scored by how far along a direction they lie, and compared with the calibration rows *along the same direction*: above
their 20 % or 5 % tail, or not. A direction comes from requests before the scored one and from the fit half alone, so
it is known beforehand and calibration rows lie along it as new requests of the reference do.

**Bets.** The chance to lie in a tail of size a is at most `a + margin` under the null hypothesis, the margin being two
standard errors of a tail counted in that many calibration rows. A bet of part q multiplies by
`1 - q + q * [in the tail] / (a + margin)`: mean at most 1. Three directions, two tails, two parts: 12 bets, each with
its Shiryaev-Roberts statistic `M = (M + 1) * factor` (a start at every request, so a late change is found as soon as an
early one); the evidence is their mean.

**Guarantee.** While the null holds at every request given the past, M_n - n is a supermartingale that starts at 0. So
P(an alarm within n requests) <= n / threshold, and the mean number of requests to a false alarm is at least the
threshold. The default, 10^6, allows at most one false alarm in 100 streams of 10,000 requests. It is a promise about
traffic that is what the reference is of: another hour of the day is not, nor a client that sends one text a thousand
times. Changes finer than the margin are not looked for.

Sources: e-detectors, Shin, Ramdas and Rinaldo, arXiv 2203.03532; bets against a stream with the direction learned from
its past, Shekhar and Ramdas, arXiv 2112.09162, and Podkopaev and Ramdas, arXiv 2305.00070.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monitoring.drift.errors import ForeignState
from monitoring.drift.reference import Floats, Reference

THRESHOLD = 1e6
"""Mean requests to a false alarm, at least; at most 1 % of streams of 10,000 requests raise one."""

WINDOWS = (16, 64, 256)
"""Requests that a running mean remembers, about: short ones find a full change soon, long ones a small one at all."""

TAILS = (0.2, 0.05)
PARTS = (0.15, 0.4)

MARGIN_ERRORS = 2.0
"""Margin of a tail in standard errors."""

WARM_UP = 4
"""Requests before the first bet: before that there is no direction to bet on."""

RENEWED_EVERY = (4, 8, 16)
"""A window's direction is renewed every so many requests, a slow one more seldom; no request pays for two of them."""

_BETS = len(WINDOWS) * len(TAILS) * len(PARTS)
_CEILING = 1e30
"""Evidence above this is cut: more of it says nothing, and cutting keeps a supermartingale one."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one request did to the evidence.

    Attributes:
        evidence: the mean Shiryaev-Roberts statistic; an alarm at the threshold.
        alarm: whether this request raised it: True once, then not before `clear`.

    """

    evidence: float
    alarm: bool


class DriftDetector:
    """The e-detector of one stream against one reference. Holds a few kB beside the reference; not for two threads.

    Args:
        reference: of the same features as what will be observed.
        threshold: evidence that raises the alarm, above 1.

    Raises:
        ValueError: for a threshold that is not above 1.

    """

    def __init__(self, reference: Reference, threshold: float = THRESHOLD) -> None:
        if not 1.0 < threshold <= _CEILING:
            raise ValueError(f"threshold is {threshold}; give the mean requests to a false alarm, such as 1000000")
        self.reference = reference
        self.threshold = threshold
        self.seen = 0
        self.active = False
        shape = (len(WINDOWS), reference.coordinates)
        self._means = np.zeros(shape, dtype=np.float32)
        self._directions = np.zeros(shape, dtype=np.float32)
        # Plain lists: of a dozen numbers numpy would take four times as long.
        self._cuts = [[math.inf] * len(TAILS) for _ in WINDOWS]
        self._bets = [0.0] * _BETS
        self._cut_block = 0
        self._rates = np.array([[1.0 / window] for window in WINDOWS], dtype=np.float32)
        self._odds = [_factors(len(block.calibration)) for block in reference.blocks]

    @property
    def evidence(self) -> float:
        """The mean Shiryaev-Roberts statistic."""
        return sum(self._bets) / _BETS

    def observe(self, coordinates: Floats, block: int = 0) -> Step:
        """Take in one request.

        Args:
            coordinates: of `Reference.locate`.
            block: of `Reference.block_of`, for a reference with several.

        """
        centred = coordinates - self.reference.blocks[block].centre
        if self.seen >= WARM_UP:
            self._renew(block)
            self._bet((self._directions @ centred).tolist(), *self._odds[block])
        self._means += self._rates * (centred - self._means)
        self.seen += 1
        evidence = self.evidence
        alarm = evidence >= self.threshold and not self.active
        self.active = self.active or alarm
        return Step(evidence, alarm)

    def _bet(self, scores: list[float], won: list[float], lost: list[float]) -> None:
        """Move every bet by one request; `won` and `lost` are the factors of a window's bets."""
        bets, place, each = self._bets, 0, len(PARTS)
        for score, cuts in zip(scores, self._cuts, strict=True):
            for tail, cut in enumerate(cuts):
                factors = won if score > cut else lost
                for own in range(tail * each, tail * each + each):
                    moved = (bets[place] + 1.0) * factors[own]
                    bets[place] = moved if moved < _CEILING else _CEILING
                    place += 1

    def moved(self) -> tuple[Floats, int]:
        """Where the stream has moved to, in standard deviations per coordinate, and the requests that this is over.

        By the window whose bets have won most.
        """
        best = int(self._by_window().sum(axis=(1, 2)).argmax())
        return self._means[best].copy(), min(WINDOWS[best], self.seen)

    def clear(self) -> None:
        """Forget all evidence and the alarm: the operator has seen it. The reference stays."""
        self.active = False
        self.seen = 0
        self._bets = [0.0] * _BETS
        self._means[:] = 0.0
        self._directions[:] = 0.0
        self._cuts = [[math.inf] * len(TAILS) for _ in WINDOWS]

    def to_json(self) -> dict[str, Any]:
        """The state as plain values; floats survive `json.dumps` and `json.loads` exactly."""
        return {
            "reference": self.reference.digest,
            "seen": self.seen,
            "active": self.active,
            "cut_block": self._cut_block,
            "means": self._means.tolist(),
            "directions": self._directions.tolist(),
            "cuts": [[None if math.isinf(cut) else cut for cut in row] for row in self._cuts],
            "bets": self._by_window().tolist(),
        }

    def restore(self, stored: Mapping[str, Any]) -> None:
        """Go on from what `to_json` gave, as if there had been no restart.

        Raises:
            ForeignState: when it was saved with another reference, or by another version of the detector.

        """
        if stored["reference"] != self.reference.digest:
            raise ForeignState(
                f"the state belongs to reference {str(stored['reference'])[:12]}, this detector has "
                f"{self.reference.digest[:12]}; start without it"
            )
        cuts = [[math.inf if cut is None else cut for cut in row] for row in stored["cuts"]]
        means, directions = (np.array(stored[name], dtype=np.float32) for name in ("means", "directions"))
        found = {"means": means, "directions": directions, "cuts": np.array(cuts), "bets": np.array(stored["bets"])}
        wanted = {"means": self._means, "directions": self._means, "cuts": np.array(self._cuts)}
        wanted["bets"] = self._by_window()
        for name, array in found.items():
            if array.shape != wanted[name].shape:
                raise ForeignState(f"{name} of shape {array.shape}, not {wanted[name].shape}; start without the state")
        self._means, self._directions, self._cuts = means, directions, cuts
        self._bets = found["bets"].astype(np.float64).ravel().tolist()
        self.seen, self.active = int(stored["seen"]), bool(stored["active"])
        self._cut_block = int(stored["cut_block"])

    def _by_window(self) -> NDArray[np.float64]:
        return np.array(self._bets).reshape(len(WINDOWS), len(TAILS), len(PARTS))

    def _renew(self, block: int) -> None:
        """Turn one window to its present mean and look up where the calibration's tails begin along it.

        At the first bet, and when the block has changed, all of them: a cut is of one block's calibration.
        """
        every = self.seen == WARM_UP or block != self._cut_block
        calibration = self.reference.blocks[block].calibration
        rows = len(calibration)
        places = [rows - int(tail * (rows + 1)) for tail in TAILS]
        for window in range(len(WINDOWS)):
            if every or self.seen % RENEWED_EVERY[window] == window:
                self._directions[window] = self._means[window] * self.reference.weights
                along = calibration @ self._directions[window]
                along.partition(places)
                self._cuts[window] = along[places].tolist()
        self._cut_block = block


def _factors(rows: int) -> tuple[list[float], list[float]]:
    """Factors of a bet that is won and of one that is lost, by tail and part."""
    bounds = [tail + MARGIN_ERRORS * math.sqrt(tail * (1.0 - tail) / rows) for tail in TAILS]
    return [1.0 - part + part / bound for bound in bounds for part in PARTS], [
        1.0 - part for _ in TAILS for part in PARTS
    ]
