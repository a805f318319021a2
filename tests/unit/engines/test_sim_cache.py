"""The simulated engine's prefix cache."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from serving.engines.sim_cache import BLOCK_TOKENS, PrefixCache
from serving.engines.sim_text import count_tokens, split_tokens

prompts = st.lists(st.sampled_from("ab"), max_size=80)


def words(count: int, first: str = "w") -> list[str]:
    return [first, *map(str, range(count - 1))]


def test_whole_blocks_of_a_common_beginning_are_cached() -> None:
    cache = PrefixCache(100)
    assert cache.cached_tokens(words(50)) == 0
    cache.keep(words(50))
    assert cache.cached_tokens(words(50)) == 48
    assert cache.cached_tokens([*words(40), "other", *words(20)]) == 32
    assert cache.cached_tokens(words(50, "another")) == 0


def test_the_last_token_is_always_computed() -> None:
    cache = PrefixCache(100)
    cache.keep(words(32))
    assert cache.cached_tokens(words(32)) == 16
    assert cache.cached_tokens(words(33)) == 32


def test_the_longest_unused_goes_first_and_endings_before_beginnings() -> None:
    cache = PrefixCache(4)
    cache.keep(words(33, "a"))
    cache.keep(words(33, "b"))
    cache.keep(words(17, "c"))
    assert [cache.cached_tokens(words(33, first)) for first in "abc"] == [16, 32, 16]


def test_without_blocks_nothing_is_cached() -> None:
    cache = PrefixCache(0)
    cache.keep(words(50))
    assert cache.cached_tokens(words(50)) == len(cache) == 0


@given(st.lists(prompts, max_size=20), st.integers(0, 6))
def test_it_is_bounded_and_never_claims_what_it_was_not_given(seen: list[list[str]], capacity: int) -> None:
    cache = PrefixCache(capacity)
    for i, prompt in enumerate(seen):
        cached = cache.cached_tokens(prompt)
        assert cached % BLOCK_TOKENS == 0
        assert cached < max(1, len(prompt))
        assert cached == 0 or any(prompt[:cached] == earlier[:cached] for earlier in seen[:i])
        cache.keep(prompt)
        assert len(cache) <= capacity


@given(st.text(alphabet="ab 潮汐\n"))
def test_tokens_are_as_many_as_are_counted(text: str) -> None:
    assert len(split_tokens(text)) == count_tokens(text)
