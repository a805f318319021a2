"""What a `sim:` URI may say."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.engines.sim_spec import InvalidSimUri, SimSpec, parse_sim_uri
from serving.engines.sim_text import Manner, answer_tokens, cut_at_stop, draw_manner, embedding

PROMISED = (
    "sim:?ttft_ms=50&itl_ms=5&tokens=64&error_rate=0&stall_rate=0&truncate_rate=0&toxic_rate=0&pii_rate=0"
    "&gibberish_rate=0&seed=1"
)


@pytest.mark.parametrize("uri", [PROMISED, "sim:", "sim:?"])
def test_the_promised_defaults(uri: str) -> None:
    assert parse_sim_uri(uri) == SimSpec()


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("http://x", "not a simulated engine"),
        ("sim://host?tokens=1", "not a simulated engine"),
        ("sim:?typo=1", "unknown parameter 'typo'; known are cache_blocks, client_error_rate"),
        ("sim:?error_rate=2", "error_rate='2'"),
        ("sim:?error_rate=often", "error_rate='often'"),
        ("sim:?ttft_ms=-1", "ttft_ms='-1'"),
        ("sim:?cache_blocks=-1", "cache_blocks='-1'"),
        ("sim:?cache_blocks=1.5", "cache_blocks='1.5'"),
        ("sim:?prefill_us_per_token=fast", "prefill_us_per_token='fast'"),
        ("sim:?tokens=1.5", "tokens='1.5'"),
        ("sim:?tokens=1&tokens=2", "'tokens' is given twice"),
        ("sim:?tokens", "tokens=''"),
        ("sim:?error_rate=0.7&stall_rate=0.7", "over 1"),
    ],
)
def test_what_is_wrong_is_said(uri: str, says: str) -> None:
    with pytest.raises(InvalidSimUri) as caught:
        parse_sim_uri(uri)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.sampled_from(Manner), st.integers(0, 200), st.integers())
def test_an_answer_has_the_tokens_asked_for(manner: Manner, count: int, seed: int) -> None:
    tokens = answer_tokens(manner, count, "", random.Random(seed))
    assert len(tokens) == count
    assert "".join(tokens).split() == [token.strip() for token in tokens]


def test_a_mark_comes_first() -> None:
    assert answer_tokens(Manner.PLAIN, 5, "[[mark:x]]", random.Random(1))[0] == "[[mark:x]]"


@given(st.lists(st.text(min_size=1, max_size=5), max_size=20), st.lists(st.text(min_size=1, max_size=3), max_size=3))
def test_nothing_after_a_stop_string_is_said(tokens: list[str], stops: list[str]) -> None:
    kept, stopped = cut_at_stop(tokens, stops)
    text = "".join(kept)
    assert "".join(tokens).startswith(text)
    assert stopped == any(stop in "".join(tokens) for stop in stops)
    assert not any(stop in text for stop in stops)


def test_manners_are_drawn_at_their_rates() -> None:
    rng = random.Random(7)
    drawn = [draw_manner(SimSpec(toxic_rate=0.3), rng) for _ in range(2000)]
    assert 520 < drawn.count(Manner.TOXIC) < 680


def test_embeddings_depend_on_the_text_alone() -> None:
    assert embedding("a") == embedding("a") != embedding("b")
    assert sum(x * x for x in embedding("a")) == pytest.approx(1, abs=1e-4)
