"""Hashed features of many texts at once are those of each text alone."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from guardrails.classifiers.token_features import Tokens, hashed_features

BUCKETS = 2**12
CUT = st.lists(st.lists(st.integers(0, 200), min_size=1, max_size=12), min_size=1, max_size=6)


@given(CUT)
def test_texts_in_one_row_do_not_see_each_other(texts: list[list[int]]) -> None:
    owner, bucket = hashed_features(Tokens.of(texts), BUCKETS)
    for number, ids in enumerate(texts):
        _, alone = hashed_features(Tokens.of([ids]), BUCKETS)
        assert np.array_equal(bucket[owner == number], alone)


@given(st.lists(st.integers(0, 200), min_size=2, max_size=12))
def test_order_matters_to_pairs_and_repetition_does_not_count(ids: list[int]) -> None:
    _, found = hashed_features(Tokens.of([ids]), BUCKETS)
    assert len(found) == len(set(found.tolist())) <= len(set(ids)) + len(set(itertools.pairwise(ids)))


def test_the_hash_is_the_one_the_weights_were_trained_with() -> None:
    _, bucket = hashed_features(Tokens.of([[17, 42, 99_999]]), 2**18)
    assert bucket.tolist() == [49453, 54776, 76335, 83652, 222896]
