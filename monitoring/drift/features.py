"""Cheap features of a text: length, scripts, kinds of characters. No model is needed. Pure.

They see what an embedding blurs (a client that sends base64, a new language, prompts ten times as long) and cost a
few microseconds, so they are computed for every request, also when embedding is sampled under load.
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from enum import StrEnum
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

MAX_CHARACTERS = 2000
"""Characters that are looked at: the first half of them and the last half; the length counts all."""


class Cheap(StrEnum):
    """The features, in the order of the vector."""

    LOG_LENGTH = "log_length"
    LATIN = "latin"
    HAN = "han"
    KANA = "kana"
    HANGUL = "hangul"
    CYRILLIC = "cyrillic"
    ARABIC = "arabic"
    OTHER_LETTERS = "other_letters"
    DIGITS = "digits"
    PUNCTUATION = "punctuation"
    SPACES = "spaces"
    SYMBOLS = "symbols"
    UPPER_CASE = "upper_case"


NAMES: tuple[str, ...] = tuple(Cheap)

_PLACE = {name: place for place, name in enumerate(Cheap)}

_SCRIPTS = (
    (0x0041, 0x024F, Cheap.LATIN),
    (0x0400, 0x052F, Cheap.CYRILLIC),
    (0x0600, 0x077F, Cheap.ARABIC),
    (0x08A0, 0x08FF, Cheap.ARABIC),
    (0x1100, 0x11FF, Cheap.HANGUL),
    (0x1E00, 0x1EFF, Cheap.LATIN),
    (0x3040, 0x30FF, Cheap.KANA),
    (0x3130, 0x318F, Cheap.HANGUL),
    (0x3400, 0x4DBF, Cheap.HAN),
    (0x4E00, 0x9FFF, Cheap.HAN),
    (0xAC00, 0xD7AF, Cheap.HANGUL),
    (0xF900, 0xFAFF, Cheap.HAN),
    (0xFF21, 0xFF5A, Cheap.LATIN),
    (0x20000, 0x323AF, Cheap.HAN),
)


def _kind(character: str) -> tuple[int, bool]:
    """The place of a character's kind in the vector, and whether it is upper case."""
    category = unicodedata.category(character)
    if category[0] in "LM":
        code = ord(character)
        script = next((name for low, high, name in _SCRIPTS if low <= code <= high), Cheap.OTHER_LETTERS)
        return _PLACE[script], category == "Lu"
    by_category = {"N": Cheap.DIGITS, "P": Cheap.PUNCTUATION, "Z": Cheap.SPACES, "S": Cheap.SYMBOLS}
    return _PLACE[Cheap.SPACES if character in "\t\n\r" else by_category.get(category[0], Cheap.SYMBOLS)], False


_KINDS = {chr(code): _kind(chr(code)) for code in (*range(0x0250), *range(0x3000, 0x3100), *range(0x4E00, 0xA000))}
"""The characters of most texts, looked up once."""


@lru_cache(maxsize=4096)
def kind_of(character: str) -> Cheap:
    """The kind of one character: a script, or what it is instead of a letter.

    >>> kind_of("ж").value, kind_of("7").value
    ('cyrillic', 'digits')
    """
    return Cheap(NAMES[(_KINDS.get(character) or _kind(character))[0]])


def cheap_features(text: str) -> NDArray[np.float32]:
    """The vector of a text, one value per name in `NAMES`.

    `log_length` is log2(1 + characters); `upper_case` is a share of the Latin, Cyrillic and other letters that have
    a case; the others are shares of all characters looked at. An empty text is all zeros.

    >>> dict(zip(NAMES, cheap_features("AB 12").tolist()))["latin"]
    0.4000000059604645
    """
    out = np.zeros(len(NAMES), dtype=np.float32)
    if not text:
        return out
    half = MAX_CHARACTERS // 2
    seen = text if len(text) <= MAX_CHARACTERS else text[:half] + text[-half:]
    upper = cased = 0
    for character, times in Counter(seen).items():
        place, is_upper = _KINDS.get(character) or _kind(character)
        out[place] += times
        upper += times * is_upper
        cased += times * (is_upper or character.islower())
    out /= len(seen)
    out[_PLACE[Cheap.LOG_LENGTH]] = math.log2(1 + len(text))
    out[_PLACE[Cheap.UPPER_CASE]] = upper / cased if cased else 0.0
    return out
