"""The peers of the drift benchmark, against what their papers and definitions say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import ks_2samp

from benchmarks.drift import peers
from benchmarks.drift.texts import Change, Texts, changed, healthy, split


def normal(rows: int, columns: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def test_adwin_s_histogram_keeps_at_most_five_buckets_of_a_size_and_loses_no_row() -> None:
    rows: list[list[tuple[int, int]]] = [[]]
    for width in range(1, 1001):
        peers._insert(rows, width)
        flat = [bucket for buckets in reversed(rows) for bucket in buckets]
        assert [start for start, _ in flat] == [0, *[end for _, end in flat[:-1]]]
        assert flat[-1][1] == width
        assert all(end - start == 2**power for power, own in enumerate(rows) for start, end in own)
        assert max(map(len, rows)) <= peers.ADWIN_MAX_BUCKETS


def test_adwin_cuts_at_the_first_check_at_which_the_bound_of_the_paper_is_passed() -> None:
    table = np.concatenate([np.zeros((320, 1)), np.ones((320, 1))]).astype(np.float32)
    (found,) = peers.adwin(table)

    def passes(width: int) -> bool:
        new = width - 320
        variance = (320 / width) * (new / width)
        log_term = math.log(2 * math.log(width) / 0.002)
        inverse = 1 / (320 - 4) + 1 / (new - 4)
        return math.sqrt(2 * inverse * variance * log_term) + 2 / 3 * log_term * inverse < 1.0

    assert found == next(width for width in range(352, 641, 32) if passes(width)) - 1


def test_adwin_is_quiet_on_noise() -> None:
    assert (peers.adwin(normal(3000, 20, 1)) == peers.NEVER).mean() >= 0.95


@pytest.mark.parametrize("sign", [1, -1])
def test_page_hinkley_sums_up_what_is_above_the_mean(sign: int) -> None:
    table = sign * np.concatenate([np.zeros((1000, 1)), np.ones((200, 1))]).astype(np.float32)
    (found,) = peers.page_hinkley(table)
    # After k ones the mean is k/(1000+k), so that each adds a little less than 1: just over 50 of them.
    assert 1050 <= found <= 1053


def test_ks_finds_what_scipy_s_finds() -> None:
    reference = normal(1000, 3, 1)
    table = np.concatenate([normal(200, 3, 2), normal(200, 3, 3) + np.array([0.0, 0.15, 0.5], dtype=np.float32)])
    table = np.round(table, 1)
    found = peers.ks_batches(table, np.round(reference, 1), scores=3, alpha=0.05)
    for column in range(3):
        alarms = [
            ks_2samp(table[start : start + 200, column], np.round(reference, 1)[:, column], method="asymp").pvalue
            < 0.05 / 3
            for start in (0, 200)
        ]
        expected = 200 * alarms.index(True) + 199 if any(alarms) else peers.NEVER
        assert found[column] == expected


def test_no_row_of_a_stream_is_the_reference_s() -> None:
    count = 3000
    texts = Texts(normal(count, 4, 1), normal(count, 2, 1), np.arange(count) % 3, np.arange(count) % 2 == 0)
    rng = np.random.default_rng(1)
    dealt = split(texts, 1, 500, rng)
    stream = changed(dealt, Change("half", 0.5), 400, 1000, rng)
    assert not set(dealt.reference) & {*healthy(dealt, 1500, rng), *stream}
    assert (texts.topics[stream[:400]] != 1).all()
    assert 200 < (texts.topics[stream[400:]] == 1).sum() < 400
    toxic = changed(dealt, Change("toxic", toxic_only=True), 400, 1000, rng)
    assert texts.toxic[toxic[400:]].all()
