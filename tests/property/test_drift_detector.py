"""What must hold of drift detection whatever the traffic: its promise, restarts, damaged files, load."""

from __future__ import annotations

import contextlib
import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitoring.drift.detector import DriftDetector
from monitoring.drift.errors import DamagedReference
from monitoring.drift.features import NAMES, Cheap, cheap_features
from monitoring.drift.reference import load_reference, save_reference
from monitoring.drift.sampling import SamplingState, choose
from tests.unit.monitoring_drift.streams import cheap_reference, cloud, reference

REFERENCES = [reference(seed) for seed in range(6)]
FILE = io.BytesIO()
save_reference(cheap_reference(), FILE)


def test_healthy_streams_reach_a_threshold_no_more_often_than_promised() -> None:
    requests, highest = 1000, []
    for seed in range(60):
        detector = DriftDetector(REFERENCES[seed % len(REFERENCES)])
        steps = [detector.observe(detector.reference.locate(row)[0]).evidence for row in cloud(requests, 1000 + seed)]
        highest.append(max(steps))
    for threshold in (5_000, 10_000, 50_000, 1_000_000):
        assert np.mean(np.array(highest) >= threshold) <= requests / threshold


def test_the_mean_of_the_statistic_grows_by_at_most_one_a_request() -> None:
    """M_n - n is a supermartingale: the mean over many healthy streams stays below n, early, where it varies little."""
    reached = {20: [], 60: []}
    for seed in range(200):
        detector = DriftDetector(REFERENCES[seed % len(REFERENCES)])
        for number, row in enumerate(cloud(60, 5000 + seed), 1):
            evidence = detector.observe(detector.reference.locate(row)[0]).evidence
            if number in reached:
                reached[number].append(evidence)
    for number, values in reached.items():
        assert np.mean(values) <= number + 3 * np.std(values) / len(values) ** 0.5


@settings(max_examples=25, deadline=None)
@given(cut=st.integers(0, 80), seed=st.integers(0, 1000), topics=st.sampled_from([(0, 1, 2), (0,), (5,)]))
def test_a_restart_changes_nothing(cut: int, seed: int, topics: tuple[int, ...]) -> None:
    of = REFERENCES[0]
    rows = [of.locate(row)[0] for row in cloud(80, seed, topics)]
    whole, first, second = (DriftDetector(of) for _ in range(3))
    expected = [whole.observe(row) for row in rows]
    told = [first.observe(row) for row in rows[:cut]]
    second.restore(json.loads(json.dumps(first.to_json())))
    assert told + [second.observe(row) for row in rows[cut:]] == expected
    assert second.to_json() == whole.to_json()


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_damaged_reference_is_refused_or_is_still_the_same(data: st.DataObject) -> None:
    content = bytearray(FILE.getvalue())
    from_start = data.draw(st.booleans(), label="near the start, else near the end")  # headers and the index lie there
    place = data.draw(st.integers(0, 2000))
    content[place if from_start else len(content) - 1 - place] ^= 1 << data.draw(st.integers(0, 7))
    with contextlib.suppress(DamagedReference):
        assert load_reference(io.BytesIO(bytes(content))).digest == load_reference(io.BytesIO(FILE.getvalue())).digest


@settings(max_examples=50, deadline=None)
@given(kept=st.floats(0.0, 0.999))
def test_half_a_reference_is_refused(kept: float) -> None:
    content = FILE.getvalue()
    with pytest.raises(DamagedReference):
        load_reference(io.BytesIO(content[: int(kept * len(content))]))


@given(st.text(max_size=300))
def test_the_kinds_of_characters_share_a_text_among_them(text: str) -> None:
    found = dict(zip(NAMES, cheap_features(text).tolist(), strict=True))
    shares = [value for name, value in found.items() if name not in {Cheap.LOG_LENGTH, Cheap.UPPER_CASE}]
    assert sum(shares) == pytest.approx(1.0 if text else 0.0, abs=1e-5)
    assert all(0.0 <= share <= 1.0 for share in (*shares, found[Cheap.UPPER_CASE]))


@settings(deadline=None)
@given(
    gaps=st.lists(st.floats(0.0, 0.5), min_size=1, max_size=300),
    us=st.lists(st.floats(0.0, 0.999), min_size=1, max_size=300),
    limit=st.floats(1.0, 50.0),
)
def test_no_second_has_more_embeddings_than_the_limit_and_one_second_s_burst(
    gaps: list[float], us: list[float], limit: float
) -> None:
    state, now, chosen = SamplingState(), 0.0, []
    for number, (gap, u) in enumerate(zip(gaps, us, strict=False), 1):
        now += gap
        before = state
        state, embed = choose(state, now, limit, u)
        chosen += [now] * embed
        assert state.chosen + state.skipped == number
        assert state.chosen >= before.chosen
        assert state.skipped >= before.skipped
    for start in chosen:
        assert sum(start <= at < start + 1.0 for at in chosen) <= 2 * limit + 1e-6
