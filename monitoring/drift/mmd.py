"""An early warning: how far the last requests' distribution is from the reference's, by random features. Pure.

The maximum mean discrepancy of a Gaussian kernel, with random Fourier features (Rahimi and Recht, 2007): each request
becomes a vector of D cosines and sines, and the statistic is the distance between the mean of the last 128 of them and
the reference's mean. A request costs O(D): one is added, the oldest taken away. It sees any kind of change, sooner than
the e-detector when the change is partial, but its threshold promises little: bootstrapped streams of 2,000 requests
exceed it in 5 of 100 cases, and again and again in a longer stream. So it warns and never pages or gates.

The window is not saved over a restart: it is full again after 128 requests.
"""

from __future__ import annotations

import numpy as np

from monitoring.drift.reference import Block, Floats, Reference

WINDOW = 128
FREQUENCIES = 128
"""Half of D: each has a cosine and a sine."""

HORIZON = 2000
"""Requests of a bootstrapped stream."""

STREAMS = 100
FALSE_WARNINGS = 0.05
"""Share of bootstrapped streams that exceed the threshold somewhere."""


class KernelWindow:
    """The sliding window of one stream against one reference; about 150 kB. Not for two threads.

    Args:
        reference: as the detector's.
        rng: draws the frequencies and the bootstrapped streams; the same seed gives the same thresholds.

    """

    def __init__(self, reference: Reference, rng: np.random.Generator) -> None:
        self._weights = reference.weights
        sample = np.concatenate([block.calibration for block in reference.blocks])[: 20 * FREQUENCIES] * self._weights
        pairs = rng.integers(0, len(sample), size=(2, 1000))
        apart = np.linalg.norm(sample[pairs[0]] - sample[pairs[1]], axis=1)
        bandwidth = max(float(np.median(apart)), 1e-6)
        drawn = rng.standard_normal((reference.coordinates, FREQUENCIES)) / bandwidth
        self._frequencies = (self._weights[:, None] * drawn).astype(np.float32)
        self._centres = [block.centre for block in reference.blocks]
        # The reference's mean and the bootstrap take every other row each: rows that made the mean are nearer to it.
        self._expected = [self._features(block.calibration[::2]).mean(axis=0) for block in reference.blocks]
        self.thresholds = tuple(
            self._bootstrap(block, expected, rng)
            for block, expected in zip(reference.blocks, self._expected, strict=True)
        )
        self._ring = np.zeros((WINDOW, 2 * FREQUENCIES), dtype=np.float32)
        self._sum = np.zeros(2 * FREQUENCIES)
        self.block = 0
        self.seen = 0
        self.statistic = 0.0
        self.warning = False
        """Whether the statistic is above its block's threshold now."""

    def observe(self, coordinates: Floats, block: int = 0) -> bool:
        """Take in one request; whether the statistic is above the threshold with it.

        When another block of the day begins, the window is emptied: it would mix two references.
        """
        if block != self.block:
            self.clear()
            self.block = block
        place = self.seen % WINDOW
        new = self._features((coordinates - self._centres[block])[None, :])[0]
        self._sum += new
        self._sum -= self._ring[place]
        self._ring[place] = new
        self.seen += 1
        if place == WINDOW - 1:
            self._sum = self._ring.sum(axis=0, dtype=np.float64)  # takes away what rounding has left
        if self.seen >= WINDOW:
            apart = self._sum / WINDOW - self._expected[block]
            self.statistic = float(apart @ apart) ** 0.5
            self.warning = self.statistic > self.thresholds[block]
        return self.warning

    def clear(self) -> None:
        """Empty the window."""
        self._ring[:] = 0.0
        self._sum[:] = 0.0
        self.seen = 0
        self.statistic = 0.0
        self.warning = False

    def _features(self, centred: Floats) -> Floats:
        angles = centred @ self._frequencies
        out: Floats = np.concatenate([np.cos(angles), np.sin(angles)], axis=1) / np.float32(FREQUENCIES**0.5)
        return out

    def _bootstrap(self, block: Block, expected: Floats, rng: np.random.Generator) -> float:
        features = self._features(block.calibration[1::2])
        highest = np.empty(STREAMS)
        for stream in range(STREAMS):
            drawn = features[rng.integers(0, len(features), size=HORIZON)] - expected
            sums = np.cumsum(drawn, axis=0, dtype=np.float64)
            windows = sums[WINDOW - 1 :].copy()
            windows[1:] -= sums[:-WINDOW]
            highest[stream] = np.einsum("ij,ij->i", windows, windows).max() ** 0.5 / WINDOW
        return float(np.quantile(highest, 1.0 - FALSE_WARNINGS))
