"""Stretches of a long text: they cover it, in order, and none is too long."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from guardrails.classifiers.windows import room, windows

TEXTS = st.text(st.sampled_from("ab .!?\n，。愚蠢中文é😀"), max_size=400)


@given(TEXTS, st.integers(1, 60), st.integers(1, 60))
@example("", 1, 1)
def test_windows_cover_the_text_in_order_and_stay_small(text: str, whole: int, small: int) -> None:
    found = list(windows(text, whole, small))
    assert "".join(text[start:end] for start, end in found) == text
    assert all(end > start for start, end in found) or text == ""
    taken = room(text)
    if len(found) > 1:
        assert all(taken[end] - taken[start] <= small + 1e-6 or end - start == 1 for start, end in found)
    else:
        assert taken[-1] <= max(whole, small) + 1e-6 or len(text) <= 1


@given(TEXTS)
def test_sentences_that_fit_are_not_torn(text: str) -> None:
    sentence = "Nothing else is here. "
    ends = {end for _, end in windows(sentence * 30 + text.replace(".", ""), 10, 30)}
    assert {end for end in ends if end <= len(sentence) * 30} <= {len(sentence) * k for k in range(31)}
