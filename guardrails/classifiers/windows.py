"""Cuts a long text into stretches that a sentence classifier can read. Pure.

A stretch ends where a sentence ends, else at a pause or between words; only a run without any is cut anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

_FIRST_WIDE = 0x2E80
_SENTENCE = re.compile(r"[。！？；…\n]+[”’」』）\"')]*|[.!?]+[\"'”’)]*\s+")
_PAUSE = re.compile(r"[，、：,;:—–]+\s*|\s+")


def room(text: str) -> NDArray[np.float64]:
    """About how many tokens the first k characters take, for every k from 0: a Chinese one 1, others 1/3."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    return np.concatenate([[0.0], np.cumsum(np.where(codes >= _FIRST_WIDE, 1.0, 1 / 3))])


def windows(text: str, whole_tokens: float, window_tokens: float) -> Iterator[tuple[int, int]]:
    """Stretches that cover the text: all of it if it takes at most `whole_tokens`, else of at most `window_tokens`.

    >>> list(windows("One two. Three four. Five.", 100, 100))
    [(0, 26)]
    >>> list(windows("One two. Three four. Five.", 4, 4))
    [(0, 9), (9, 21), (21, 26)]
    """
    taken = room(text)
    if taken[-1] <= whole_tokens:
        yield 0, len(text)
        return
    sentences = np.fromiter((match.end() for match in _SENTENCE.finditer(text)), np.int64)
    pauses = np.fromiter((match.end() for match in _PAUSE.finditer(text)), np.int64)
    start = 0
    while start < len(text):
        limit = int(np.searchsorted(taken, taken[start] + window_tokens, side="right")) - 1
        limit = max(limit, start + 1)
        end = limit if limit < len(text) else len(text)
        if end < len(text):
            end = _last_between(sentences, start, limit) or _last_between(pauses, start, limit) or end
        yield start, end
        start = end


def _last_between(places: NDArray[np.int64], after: int, limit: int) -> int | None:
    at = int(np.searchsorted(places, limit, side="right")) - 1
    return int(places[at]) if at >= 0 and places[at] > after else None


def surroundings(text: str, stretches: Sequence[tuple[int, int]], at: int, tokens: float) -> tuple[int, int]:
    """Stretch number `at` with as many neighbours, in turn before and after, as fit into about `tokens` tokens.

    >>> surroundings("One two. Three four. Five.", [(0, 9), (9, 21), (21, 26)], 2, 6)
    (9, 26)
    """
    taken = room(text)
    low = high = at
    grown = True
    while grown:
        grown = False
        for before, after in ((1, 0), (0, 1)):
            first, last = low - before, high + after
            inside = first >= 0 and last < len(stretches)
            if inside and taken[stretches[last][1]] - taken[stretches[first][0]] <= tokens:
                low, high, grown = first, last, True
    return stretches[low][0], stretches[high][1]
