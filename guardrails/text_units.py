"""Where a text may be cut: between sentences, words and whole characters as people see them; and its language. Pure.

Positions are found from the text alone, never from how it arrived. A position is only reported once the character after
it is known (or the text is complete), so that one found in a prefix is the same in every longer text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from guardrails.verdicts import Language

TOKEN_CHARACTERS = 4
"""Characters of alphabetic text that count as one token; a Chinese, Japanese or Korean character counts as one itself.

Both are on the safe side: tokenizers of current models make 3.5 to 4.5 characters of English a token, and 1.3 to 1.8 of
Chinese, so that text is let go a little before N real tokens of English have come, and well before for Chinese.
"""

CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003134f"
_CJK = re.compile(f"[{CJK}]")
_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f]")
_KANA_OR_HANGUL = re.compile(r"[\u3040-\u30ff\uac00-\ud7af]")
_LATIN = re.compile(r"[A-Za-zÀ-ɏ]")
_SENTENCE_END = re.compile(
    r"[。！？；…｡]+[”’」』）】》\"')\]]*"  # Chinese and Japanese: the mark is enough
    r"|[.!?]+[\"'”’)\]*_]*\s"  # elsewhere a space must follow, which goes with the sentence
    r"|[！？]+|\n+"
)
_ABBREVIATION = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|etc|e\.g|i\.e|cf|No|Inc|Ltd|approx|Fig|al)|\b[A-Z]|\b\d{1,2})$"
)
_SKIN_TONES = range(0x1F3FB, 0x1F400)
_TAGS = range(0xE0020, 0xE0080)
_REGIONAL = range(0x1F1E6, 0x1F200)
_ZWJ = "\u200d"
MAX_CLUSTER = 64
"""Characters after which a run of combining marks is cut all the same."""


@lru_cache(maxsize=4096)
def _extends(char: str) -> bool:
    """Whether a character belongs to the one before it: marks, variation selectors, joiners, skin tones, tags."""
    if char < "\u0300":
        return False
    code = ord(char)
    return (
        char in ("\u200c", _ZWJ)
        or code in _SKIN_TONES
        or code in _TAGS
        or unicodedata.category(char) in ("Mn", "Mc", "Me")
        or 0x1160 <= code <= 0x11FF  # vowels and finals of decomposed Korean
    )


def is_boundary(text: str, at: int) -> bool:
    """Whether text may be cut before position `at` without taking a visible character apart.

    After Unicode's UAX 29, without the parts that chat never meets (Indic conjuncts, prepended marks).

    >>> [is_boundary("👩\u200d💻!", at) for at in range(5)]
    [True, False, False, True, True]
    """
    if at <= 0 or at >= len(text):
        return True
    before, after = text[at - 1], text[at]
    if before < "\u0300" and after < "\u0300":
        return not (before == "\r" and after == "\n")
    if _extends(after) or before == _ZWJ:
        return False
    if ord(after) in _REGIONAL and ord(before) in _REGIONAL:
        first = at
        while first > 0 and at - first < MAX_CLUSTER and ord(text[first - 1]) in _REGIONAL:
            first -= 1
        return (at - first) % 2 == 0
    return True


def _in_word(text: str, at: int) -> bool:
    """Whether a cut before `at` would split a word of an alphabet; Chinese has no spaces, so it may be cut anywhere."""
    if at <= 0 or at >= len(text):
        return False
    before, after = text[at - 1], text[at]
    return _is_word(before) and _is_word(after)


def _is_word(char: str) -> bool:
    return (char.isalnum() or char in "_'’") and not _CJK.match(char)


def cut_before(text: str, at: int, floor: int) -> int:
    """The last position in [floor, at] that splits neither a word nor a visible character.

    A word longer than that is cut between characters, and a cluster longer than `MAX_CLUSTER` anywhere.

    >>> cut_before("hello world", 8, 0), cut_before("helloworld", 8, 0)
    (6, 8)
    """
    for position in range(at, floor, -1):
        if not _in_word(text, position) and is_boundary(text, position):
            return position
    for position in range(at, max(floor, at - MAX_CLUSTER), -1):
        if is_boundary(text, position):
            return position
    return at


def word_boundary(text: str, at: int) -> int:
    """The last position up to `at`, not far before it, that splits neither a word nor a visible character.

    Of a longer word, the last position between two characters. It rises with `at`.
    """
    floor = max(0, at - MAX_CLUSTER)
    for position in range(at, floor, -1):
        if not _in_word(text, position) and is_boundary(text, position):
            return position
    if floor == 0:
        return 0
    return next((position for position in range(at, floor, -1) if is_boundary(text, position)), at)


@dataclass(frozen=True, slots=True)
class Stretch:
    """How much text is taken together: up to the end of a sentence, and no more than this many characters or tokens.

    `whole_sentences` False ignores sentences as long as the stretch isn't full, and then ends at the last one within.
    """

    max_characters: int
    max_tokens: int | None = None
    whole_sentences: bool = True

    @property
    def _shortest(self) -> int:
        """Fewer characters than this never fill it."""
        return self.max_characters if self.max_tokens is None else min(self.max_tokens, self.max_characters)


def next_cut(text: str, start: int, stretch: Stretch, *, least: int = 1) -> int | None:
    """Where the stretch of text that begins at `start` ends, or None while that can't be known from what is there.

    Never the end of the text: the character after a cut must be known. `least` is the number of characters that a
    stretch has at least.
    """
    end = len(text)
    if end - start <= least:
        return None
    limit = _full_at(text, start, stretch)
    if limit is not None and limit < start + least:
        limit = start + least if start + least < end else None
    sentences = _sentence_ends(text, start, least, end if limit is None else limit)
    if stretch.whole_sentences:
        found = next(sentences, None)
        if found is not None:
            return found
    if limit is None:
        return None
    if not stretch.whole_sentences:
        found = max(sentences, default=None)
        if found is not None and found > start + (limit - start) // 2:
            return found
    cut = cut_before(text, limit, start + max(least - 1, (limit - start) // 2))
    return cut if cut > start else limit


def _sentence_ends(text: str, start: int, least: int, limit: int) -> Iterator[int]:
    for found in _SENTENCE_END.finditer(text, start):
        at = found.end()
        if at > limit or at >= len(text):
            return
        if at < start + least or (found[0][0] == "." and _ABBREVIATION.search(text, start, found.start())):
            continue
        if is_boundary(text, at):
            yield at


def _full_at(text: str, start: int, stretch: Stretch) -> int | None:
    """The position at which the stretch is full, if there is text beyond it."""
    end = len(text)
    if end - start <= stretch._shortest:
        return None
    limit = start + stretch.max_characters
    if stretch.max_tokens is not None:
        weight = 0
        budget = stretch.max_tokens * TOKEN_CHARACTERS
        if text[start : start + budget].isascii():
            limit = min(limit, start + budget)
            return limit if limit < end else None
        for at in range(start, min(end, limit)):
            weight += TOKEN_CHARACTERS if text[at] >= "\u3040" and _CJK.match(text[at]) else 1
            if weight > budget:
                limit = at
                break
    return limit if limit < end else None


def last_sentence_start(text: str, within: int) -> int:
    """Where the sentence that the text ends with begins, looked for in the last `within` characters."""
    floor = max(0, len(text) - within)
    start = floor
    for found in _SENTENCE_END.finditer(text, floor):
        if found.end() >= len(text) and not (found[0].startswith(("。", "！", "？")) or found[0][-1].isspace()):
            break
        start = found.end()
    return start


def language_of(text: str) -> Language:
    """English, Chinese or another, by the share of the two scripts: a Chinese character says as much as three letters.

    >>> language_of("How are you?"), language_of("请用 Python 写一个函数"), language_of("12345")
    (<Language.EN: 'en'>, <Language.ZH: 'zh'>, <Language.OTHER: 'default'>)
    """
    if text.isascii():
        return Language.EN if _LATIN.search(text) else Language.OTHER
    sample = text[:2000]
    latin, han = len(_LATIN.findall(sample)), len(_HAN.findall(sample))
    others = sum(map(str.isalpha, sample)) - latin - han
    if 3 * han >= latin and 3 * han >= others and han:
        return Language.OTHER if 5 * len(_KANA_OR_HANGUL.findall(sample)) > han else Language.ZH
    return Language.EN if latin > others else Language.OTHER
