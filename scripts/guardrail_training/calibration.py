"""Turns log-odds into probabilities and picks thresholds, on rows that no model was fitted on."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

GRID = tuple(round(step * 0.05, 2) for step in range(4, 17))
Array = NDArray[np.float64]


def platt(logits: Array, labels: NDArray[np.int64], sources: NDArray[np.str_]) -> tuple[float, float]:
    """Slope and offset of Platt scaling; every source counts the same, and in it both labels."""
    weights = np.zeros(len(labels))
    for source in sorted(set(sources)):
        for label in (0, 1):
            members = (sources == source) & (labels == label)
            if members.any():
                weights[members] = len(labels) / members.sum()
    fitted = LogisticRegression(C=1e6).fit(logits[:, None], labels, sample_weight=weights)
    return float(fitted.coef_[0, 0]), float(fitted.intercept_[0])


def balanced_accuracy(labels: NDArray[np.int64], flagged: NDArray[np.bool_]) -> float:
    """The mean of the share of toxic texts flagged and of harmless texts left alone, whatever the mix."""
    return float((flagged[labels == 1].mean() + 1 - flagged[labels == 0].mean()) / 2)


def best_threshold(
    sure: Array, labels: NDArray[np.int64], sources: NDArray[np.str_], grid: Iterable[float] = GRID
) -> float:
    """The threshold with the best balanced accuracy on average over sources; the higher of two equals."""
    each = [sources == source for source in sorted(set(sources))]
    means = {
        value: float(np.mean([balanced_accuracy(labels[rows], sure[rows] >= value) for rows in each])) for value in grid
    }
    return max(means, key=lambda value: (round(means[value], 4), value))
