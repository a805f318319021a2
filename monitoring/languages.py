"""Is an answer written in another script than its question? Pure.

Told apart are scripts, not languages: Chinese from English, Russian from Arabic, but not French from English. Whoever
asks for a translation gets an answer in another script and is right to; such requests reach both arms alike, so the
signal compares and does not judge.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Final

from monitoring.drift.features import MAX_CHARACTERS, Cheap, kind_of

LEAST_LETTERS: Final = 8
"""Fewer say nothing: "ok", a name, a formula."""

CLEAR_SHARE: Final = 0.7
"""Of the letters that must be of one script before a text counts as written in it."""

_SCRIPTS: Final = (Cheap.LATIN, Cheap.HAN, Cheap.KANA, Cheap.HANGUL, Cheap.CYRILLIC, Cheap.ARABIC, Cheap.OTHER_LETTERS)
_LATIN: Final = Cheap.LATIN
_CODE: Final = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|https?://\S+", re.DOTALL)
_NO_LETTERS: Final = bytes(code for code in range(128) if not chr(code).isalpha())


def script_of(text: str) -> Cheap | None:
    """The script of a text, code and addresses left out; None for a mixed or nearly empty one.

    >>> script_of("What is the capital of France?").value, script_of("法国的首都是哪个城市？").value
    ('latin', 'han')
    >>> script_of("用 Python 写一个 quick sort 函数"), script_of("42")
    (None, None)
    """
    prose = _CODE.sub(" ", text) if "`" in text or "://" in text else text
    half = MAX_CHARACTERS // 2
    seen = prose if len(prose) <= MAX_CHARACTERS else prose[:half] + prose[-half:]
    latin = len(seen.encode("ascii", "ignore").translate(None, _NO_LETTERS))
    if seen.isascii():  # nearly every answer in English: counted without a loop
        return _LATIN if latin >= LEAST_LETTERS else None
    letters: dict[Cheap, int] = dict.fromkeys(_SCRIPTS, 0)
    letters[_LATIN] = latin
    for character, times in Counter(seen).items():
        if character > "\x7f":
            kind = kind_of(character)
            if kind in letters:
                letters[kind] += times
    for dense in (Cheap.HAN, Cheap.KANA, Cheap.HANGUL):
        letters[dense] *= 2  # one says about as much as two letters of an alphabet
    if letters[Cheap.KANA]:  # Japanese has both
        letters[Cheap.KANA] += letters.pop(Cheap.HAN)
    total = sum(letters.values())
    for script, count in letters.items():
        if total >= LEAST_LETTERS and count >= CLEAR_SHARE * total:
            return script
    return None


def is_other_language(prompt: str, answer: str) -> bool:
    """Whether both have a clear script, and not the same one.

    >>> is_other_language("法国的首都是哪个城市？", "The capital of France is Paris.")
    True
    """
    if answer.isascii() and prompt.isascii():  # Latin or nothing, both of them
        return False
    answered = script_of(answer)
    return answered is not None and script_of(prompt) not in (None, answered)
