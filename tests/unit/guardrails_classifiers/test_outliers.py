"""What is unlike normal traffic stands out, and a fitted model can be saved as plain numbers."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load, save

from guardrails.classifiers.outliers import FEWEST_TEXTS, NormalTraffic


def cloud(seed: int, texts: int = 600, shift: float = 0.0) -> np.ndarray:
    dice = np.random.default_rng(seed)
    plane = np.random.default_rng(7).normal(size=(5, 40))
    points = dice.normal(size=(texts, 5)) @ plane + 0.1 * dice.normal(size=(texts, 40)) + shift
    return points.astype(np.float32)


@pytest.fixture(scope="module")
def normal() -> NormalTraffic:
    return NormalTraffic.fit(cloud(1), seed=1)


def test_new_normal_prompts_are_as_rare_as_they_should_be(normal: NormalTraffic) -> None:
    rare = (normal.rarity(cloud(2, 4000)) > 0.95).mean()
    assert 0.01 < rare < 0.12


def test_a_step_out_of_the_usual_plane_stands_out(normal: NormalTraffic) -> None:
    assert (normal.rarity(cloud(3, 200, shift=2.0)) == 1).mean() > 0.95


def test_a_step_too_far_within_the_plane_stands_out(normal: NormalTraffic) -> None:
    assert (normal.rarity(6 * cloud(4, 200)) > 0.99).mean() > 0.8


def test_the_same_seed_fits_the_same_model() -> None:
    one, other = (NormalTraffic.fit(cloud(1), seed=5).arrays() for _ in range(2))
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_a_saved_model_says_the_same(normal: NormalTraffic) -> None:
    again = NormalTraffic.from_arrays(load(save({k: np.ascontiguousarray(v) for k, v in normal.arrays().items()})))
    assert np.array_equal(again.rarity(cloud(2)), normal.rarity(cloud(2)))


def test_too_few_texts_are_refused() -> None:
    with pytest.raises(ValueError, match=str(FEWEST_TEXTS)):
        NormalTraffic.fit(cloud(1, FEWEST_TEXTS - 1), seed=1)


def test_texts_that_are_all_the_same_make_any_other_one_rare() -> None:
    model = NormalTraffic.fit(np.ones((200, 40), np.float32), seed=1)
    assert model.rarity(np.zeros((1, 40), np.float32))[0] == 1
