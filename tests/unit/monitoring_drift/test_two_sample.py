from __future__ import annotations

import json

import numpy as np
import pytest

from monitoring.drift.errors import ForeignState, UnusableVectors
from monitoring.drift.two_sample import LEAST_ANSWERS, OutputDrift
from monitoring.sequential.events import CappedMixture, EProcessConfig
from tests.unit.monitoring_drift.streams import cloud, reference

REFERENCE = reference()
WEIGHT = 0.2


def answers(seed: int, requests: int, canary_topics=(0, 1, 2)):
    """Coordinates and arm of each answer."""
    arms = np.random.default_rng(seed).random(requests) < WEIGHT
    rows = np.where(arms[:, None], cloud(requests, seed + 1, canary_topics), cloud(requests, seed + 2))
    return [(REFERENCE.locate(row)[0], bool(arm)) for row, arm in zip(rows, arms, strict=True)]


def crosses(stream, alpha: float) -> int | None:
    """Requests until the evidence reaches 1/alpha."""
    drift, process = OutputDrift(REFERENCE.coordinates), CappedMixture(EProcessConfig(alpha=alpha))
    state = process.start()
    for number, (row, arm) in enumerate(stream, 1):
        event = drift.observe(row, canary=arm, weight=WEIGHT)
        if event is not None:
            state = process.update(state, event.canary, event.weight, thetas=event.thetas())
            if process.crossed(state):
                return number
    return None


def test_a_canary_that_answers_otherwise_is_found() -> None:
    found = [crosses(answers(seed, 1500, canary_topics=(5,)), alpha=0.001) for seed in range(0, 30, 3)]
    assert all(found)
    assert np.median(found) < 500


def test_a_canary_that_answers_alike_is_seldom_accused() -> None:
    assert sum(crosses(answers(seed, 600), alpha=0.1) is not None for seed in range(100, 220, 3)) <= 8


def test_there_is_no_event_before_both_arms_have_answered() -> None:
    drift = OutputDrift(REFERENCE.coordinates)
    row = REFERENCE.locate(cloud(1, 1)[0])[0]
    assert all(drift.observe(row, canary=False, weight=WEIGHT) is None for _ in range(100))
    assert all(drift.observe(row, canary=True, weight=WEIGHT) is None for _ in range(LEAST_ANSWERS))
    assert drift.observe(row, canary=True, weight=WEIGHT) is not None


def test_a_restart_goes_on_where_it_stopped() -> None:
    whole, first, second = (OutputDrift(REFERENCE.coordinates) for _ in range(3))
    stream = answers(5, 900)
    expected = [whole.observe(row, canary=arm, weight=WEIGHT) for row, arm in stream]
    told = [first.observe(row, canary=arm, weight=WEIGHT) for row, arm in stream[:700]]
    second.restore(json.loads(json.dumps(first.to_json())))
    assert told + [second.observe(row, canary=arm, weight=WEIGHT) for row, arm in stream[700:]] == expected


def test_what_does_not_fit_is_refused() -> None:
    drift = OutputDrift(3)
    with pytest.raises(UnusableVectors, match="3 finite values"):
        drift.observe(np.ones(4, dtype=np.float32), canary=True, weight=0.5)
    with pytest.raises(UnusableVectors, match="finite"):
        drift.observe(np.full(3, np.nan, dtype=np.float32), canary=True, weight=0.5)
    with pytest.raises(ValueError, match="weight"):
        drift.observe(np.ones(3, dtype=np.float32), canary=True, weight=1.0)
    with pytest.raises(ForeignState, match="start without"):
        drift.restore(OutputDrift(4).to_json())
    assert drift.answers == (0, 0)
