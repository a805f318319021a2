from __future__ import annotations

import json

import numpy as np
import pytest

from monitoring.drift.detector import DriftDetector
from monitoring.drift.errors import ForeignState
from monitoring.drift.reference import build_reference
from tests.unit.monitoring_drift.streams import SPEC, cheap_reference, cloud, ids, reference

REFERENCE = reference()


def delay(detector: DriftDetector, vectors) -> int | None:
    """Requests until the alarm."""
    for number, vector in enumerate(vectors, 1):
        if detector.observe(detector.reference.locate(vector)[0]).alarm:
            return number
    return None


@pytest.mark.parametrize(
    ("name", "rows", "at_most"),
    [
        ("a new topic", cloud(400, 7, topics=(5,)), 80),
        ("one of three topics alone", cloud(400, 7, topics=(0,)), 60),
        ("all twice as far out", cloud(400, 7) * 2.0, 60),
        ("all in the middle", cloud(400, 7) * 0.2, 100),
    ],
)
def test_a_change_is_found_soon(name: str, rows, at_most: int) -> None:
    detector = DriftDetector(REFERENCE)
    assert delay(detector, cloud(500, 8)) is None
    found = delay(detector, rows)
    assert found is not None
    assert found <= at_most


def test_a_change_that_comes_late_is_found_as_soon() -> None:
    delays = []
    for before in (50, 5000):
        detector = DriftDetector(REFERENCE)
        assert delay(detector, cloud(before, 8)) is None
        delays.append(delay(detector, cloud(400, 7, topics=(5,))))
    assert abs(delays[0] - delays[1]) <= 40


def test_a_small_reference_in_many_dimensions_raises_no_false_alarm() -> None:
    """Calibrated on the rows that made the axes and clusters, every stream would look farther out than they do."""
    rng = np.random.default_rng(3)
    table = rng.standard_normal((1100, 256)).astype(np.float32)
    of = build_reference(table, ids(1100), source="x", rng=rng)
    for _ in range(4):
        assert delay(DriftDetector(of), rng.standard_normal((1000, 256)).astype(np.float32)) is None


def test_an_alarm_is_told_once_and_again_after_it_was_cleared() -> None:
    detector = DriftDetector(REFERENCE)
    new = cloud(300, 7, topics=(5,))
    assert delay(detector, new) is not None
    assert delay(detector, new) is None
    assert detector.active
    detector.clear()
    assert (detector.active, detector.evidence) == (False, 0.0)
    assert delay(detector, new) is not None


def test_evidence_stays_finite_in_an_endless_drift() -> None:
    detector = DriftDetector(REFERENCE)
    for vector in np.tile(cloud(50, 7, topics=(5,)), (80, 1)):
        step = detector.observe(REFERENCE.locate(vector)[0])
        assert np.isfinite(step.evidence)


def test_a_constant_feature_that_moves_is_found() -> None:
    of = cheap_reference()
    fixed = of.mean.copy()
    detector = DriftDetector(of)
    assert delay(detector, [fixed + np.float32(0.3) * (np.arange(len(fixed)) == 5)] * 200) is not None


def test_a_state_of_another_reference_is_refused() -> None:
    state = DriftDetector(reference(seed=2)).to_json()
    with pytest.raises(ForeignState, match="start without it"):
        DriftDetector(REFERENCE).restore(state)


def test_a_state_is_small() -> None:
    detector = DriftDetector(REFERENCE)
    delay(detector, cloud(300, 8))
    assert len(json.dumps(detector.to_json())) < 20_000


@pytest.mark.parametrize("threshold", [1.0, 0.0, -5.0, float("nan"), float("inf")])
def test_a_threshold_must_be_above_one(threshold: float) -> None:
    with pytest.raises(ValueError, match="mean requests to a false alarm"):
        DriftDetector(REFERENCE, threshold)


class TestADailyCycle:
    """Topic 0 at night, topic 1 by day."""

    rows, hours = 4800, np.arange(4800) % 24
    night = hours < 12
    vectors = np.where(night[:, None], cloud(4800, 1, topics=(0,)), cloud(4800, 2, topics=(1,)))

    def stream(self, days: int):
        for day in range(days):
            for hour in range(24):
                yield from ((vector, hour) for vector in cloud(20, 100 * day + hour, topics=(int(hour >= 12),)))

    def alarms(self, blocks: int) -> int:
        of = build_reference(
            self.vectors, ids(self.rows), source="x", rng=np.random.default_rng(1), spec=SPEC, hours=self.hours,
            blocks=blocks,
        )  # fmt: skip
        detector = DriftDetector(of)
        return sum(detector.observe(of.locate(v)[0], of.block_of(hour)).alarm for v, hour in self.stream(4))

    def test_is_an_alarm_for_one_reference(self) -> None:
        assert self.alarms(blocks=1) == 1

    def test_is_none_with_a_calibration_per_part_of_the_day(self) -> None:
        assert self.alarms(blocks=2) == 0

    def test_swapped_is_found(self) -> None:
        of = build_reference(
            self.vectors,
            ids(self.rows),
            source="x",
            rng=np.random.default_rng(1),
            spec=SPEC,
            hours=self.hours,
            blocks=2,
        )
        detector = DriftDetector(of)
        assert any(detector.observe(of.locate(v)[0], 1 - of.block_of(hour)).alarm for v, hour in self.stream(1))

    @pytest.mark.parametrize("hour", [-1, 24])
    def test_knows_24_hours(self, hour: int) -> None:
        with pytest.raises(ValueError, match="0 to 23"):
            REFERENCE.block_of(hour)
