"""What prefix affinity is worth, in virtual time: the gateway's picker over four replicas with the engine's cache."""

from __future__ import annotations

from statistics import mean

import pytest

from benchmarks.prefix_workload import Replay, Shape, Speed, replay
from serving.knobs import LEAST_WORK, ROUND_ROBIN, Picking

SHARED = Shape()
ONE_HOT_PROMPT = Shape(system_prompts=1, conversations_each=48)


def first_token_s(result: Replay) -> float:
    return mean(result.first_token_s)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_conversations_on_shared_prompts_start_at_least_half_as_fast_again(seed: int) -> None:
    affine, around, least = (replay(SHARED, Speed(), p, seed) for p in (Picking(), ROUND_ROBIN, LEAST_WORK))
    assert len(affine.first_token_s) == len(around.first_token_s) == 8 * 6 * 5
    assert first_token_s(around) >= 1.5 * first_token_s(affine)
    assert first_token_s(least) >= 1.5 * first_token_s(affine)
    assert affine.cached_tokens > around.cached_tokens


def test_one_hot_prompt_is_not_piled_on_one_replica() -> None:
    bounded, unbounded, around = (
        replay(ONE_HOT_PROMPT, Speed(), p, 1) for p in (Picking(), Picking(imbalance_percent=None), ROUND_ROBIN)
    )
    assert first_token_s(bounded) < 0.7 * first_token_s(unbounded)
    assert first_token_s(bounded) <= first_token_s(around)
    assert max(bounded.above_bound) <= 0


def test_without_caches_affinity_costs_less_than_it_gains_with_them() -> None:
    speed = Speed(cache_blocks=0, prefill_us_per_token=50)
    affine, least = (replay(SHARED, speed, p, 1) for p in (Picking(), LEAST_WORK))
    assert affine.cached_tokens == 0
    assert first_token_s(affine) < 1.75 * first_token_s(least)


def test_a_replay_is_repeatable() -> None:
    assert replay(SHARED, Speed(), Picking(), 5) == replay(SHARED, Speed(), Picking(), 5)
