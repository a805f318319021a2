"""Cheap measures of an answer's text: does it repeat itself, is it empty, is it like another one. Pure.

The first two look for *degenerate* output, as a damaged or badly quantised model gives it, not for style. The rule was
tuned so that prose, code, lists, tables and Chinese text pass (tests/unit/serving/test_quality.py).
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from typing import Final

MIN_TOKENS: Final = 24
"""Below this many tokens nothing is said about n-grams: a short answer may well repeat a phrase."""

NGRAM: Final = 4
MIN_DISTINCT_SHARE: Final = 0.5
"""A text fewer than half of whose 4-grams are distinct repeats itself. Prose has 0.9 and more."""

WINDOW_TOKENS: Final = 160
"""The share is taken over the last tokens, so that a loop shows after however long a good beginning."""

CYCLE_REPEATS: Final = 4
CYCLE_MIN_CHARS: Final = 48
CYCLE_SURE_CHARS: Final = 200
"""A cycle at the end counts from 48 characters when it is three quarters of the text, else from 200: a rule of 80
dashes under a paragraph is no loop."""

TAIL_CHARS: Final = 1024
"""How much of the end is searched for a cycle; also bounds the cost, which is linear in it."""

MAX_CHARS: Final = 65_536
"""Of a longer text only the end is looked at."""

# One token per ideograph or kana, else per word. Punctuation is left out, or tables and code would look repetitive, and
# so are digits, or a loop that counts would not.
_TOKEN: Final = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]|[^\\W\\d_]+")
_SPACE_FOR_OTHERS: Final = bytes(code if chr(code).isalpha() and code < 128 else 32 for code in range(256))
"""The same for ASCII: what is no letter becomes a space."""


def is_empty(text: str) -> bool:
    """Whether there is nothing to read in it.

    >>> is_empty(" "), is_empty("ok")
    (True, False)
    """
    return not text.strip()


def is_repetitive(text: str) -> bool:
    """Whether a text repeats itself as degenerate output does.

    True when, over its last 160 tokens and given at least 24 of them, fewer than half of the 4-grams are distinct; or
    when it ends in a cycle: one string at least 4 times in a row, over at least 48 characters that are three
    quarters of the text, or over at least 200 characters.

    Args:
        text: An answer; of more than 65,536 characters only the end is looked at.

    Returns:
        True for a loop. Takes some 5 us for an ordinary answer of 500 characters in English, 20 in Chinese.

    >>> is_repetitive("The cat sat. " * 8), is_repetitive("The cat sat on the mat and looked at the moon.")
    (True, False)
    """
    if len(text) < CYCLE_MIN_CHARS:
        if text.isascii():
            return False  # so many words need twice as many characters
        return len(text) >= MIN_TOKENS and _is_poor(text)
    text = text[-MAX_CHARS:]
    return _is_poor(text) or _ends_in_cycle(text)


def distinct_share(text: str) -> float:
    """The share of distinct 4-grams among the last 160 tokens, 1.0 for fewer than 24 tokens."""
    return _share(_last_tokens(text))


def _last_tokens(text: str) -> list[str]:
    tail = text[-TAIL_CHARS * 2 :]
    if tail.isascii():  # runs of letters, and those in C: nearly every answer in English
        return tail.encode().translate(_SPACE_FOR_OTHERS).decode().split()[-WINDOW_TOKENS:]
    return _TOKEN.findall(tail)[-WINDOW_TOKENS:]


def _share(tokens: list[str]) -> float:
    if len(tokens) < MIN_TOKENS:
        return 1.0
    grams = list(zip(tokens, tokens[1:], tokens[2:], tokens[3:], strict=False))
    return len(set(grams)) / len(grams)


def _is_poor(text: str) -> bool:
    """Whether too few of its 4-grams are distinct; they are not made where the tokens say it already.

    Each token but the last three begins a 4-gram, and those that begin with different tokens are different: so there
    are at least as many distinct ones as distinct tokens less three.
    """
    tokens = _last_tokens(text)
    grams = len(tokens) - NGRAM + 1
    return len(set(tokens)) - NGRAM + 1 < MIN_DISTINCT_SHARE * grams and _share(tokens) < MIN_DISTINCT_SHARE


def _ends_in_cycle(text: str) -> bool:
    text = text.rstrip()
    tail = text[-TAIL_CHARS:]
    needed = CYCLE_MIN_CHARS if len(text) <= 2 * CYCLE_SURE_CHARS else CYCLE_SURE_CHARS
    if len(tail) < needed or tail.count(tail[-12:]) < 3:  # no cycle of that length without its end coming back
        return False
    span = _cycle_span(tail[::-1])
    return span >= CYCLE_SURE_CHARS or (span >= CYCLE_MIN_CHARS and 4 * span >= 3 * len(text))


def _cycle_span(text: str) -> int:
    """The longest prefix of `text` that is one string 4 times or more in a row.

    By the prefix function of Knuth, Morris and Pratt: a prefix of length n whose longest border is b has the period
    n - b. Cost: linear.

    >>> _cycle_span("abababab!")
    8
    """
    border = [0] * len(text)
    longest = 0
    matched = 0
    for i in range(1, len(text)):
        while matched and text[i] != text[matched]:
            matched = border[matched - 1]
        if text[i] == text[matched]:
            matched += 1
        border[i] = matched
        length = i + 1
        if length >= CYCLE_REPEATS * (length - matched):
            longest = length
    return longest


SHINGLE: Final = 3
COMPARED_CHARS: Final = 1024
"""Of a longer text the first and the last so many characters are compared: bounds the cost, and a garbled end shows."""


def similarity(a: str, b: str) -> float:
    """How alike two texts are, by the characters they are written in, whatever the language.

    The Dice coefficient of their multisets of character 3-grams, `2 |A & B| / (|A| + |B|)`, after compatibility
    normalisation (NFKC), case folding and the collapse of white space (Dice, "Measures of the amount of ecologic
    association between species", 1945; on n-grams of characters it needs no words, so it serves Chinese too). It says
    nothing about meaning: an answer put otherwise is as unlike as a wrong one, so it needs a baseline to compare with.

    Args:
        a: A text; of more than 2,048 characters the first and the last 1,024 are compared.
        b: Another one.

    Returns:
        In [0, 1]: 1 for texts that are equal once normalised, 0 for texts without a 3-gram in common. Symmetric. Cost:
        linear, at most about a millisecond.

    >>> similarity("Paris.", "paris. "), similarity("Paris.", "北京"), similarity("abcd", "abce")
    (1.0, 0.0, 0.5)
    """
    left, right = _comparable(a), _comparable(b)
    if left == right:
        return 1.0
    grams, others = _shingles(left), _shingles(right)
    common = (grams & others).total()
    return 2.0 * common / (grams.total() + others.total())


def _comparable(text: str) -> str:
    if len(text) > 2 * COMPARED_CHARS:
        text = text[:COMPARED_CHARS] + text[-COMPARED_CHARS:]
    text = unicodedata.normalize("NFKC", text)[: 3 * COMPARED_CHARS]  # one character may stand for eighteen
    return " ".join(text.casefold().split())


def _shingles(text: str) -> Counter[str]:
    padded = f"\x02{text}\x03"  # so that a text of one character has a 3-gram too
    return Counter([padded[i : i + SHINGLE] for i in range(max(1, len(padded) - SHINGLE + 1))])
