"""Is an answer written in another script than its question? Pure.

Told apart are scripts, not languages: Chinese from English, Russian from Arabic, but not French from English. Whoever
asks for a translation gets an answer in another script and is right to; such requests reach both arms alike, so the
signal compares and does not judge.
"""

from __future__ import annotations

import re
from collections import Counter

from monitoring.drift.features import Cheap, cheap_features

LEAST_LETTERS = 8
"""Fewer say nothing: "ok", a name, a formula."""

CLEAR_SHARE = 0.7
"""Of the letters that must be of one script before a text counts as written in it."""

_PLACES = {name: place for place, name in enumerate(Cheap)}
_SCRIPTS = (Cheap.LATIN, Cheap.HAN, Cheap.KANA, Cheap.HANGUL, Cheap.CYRILLIC, Cheap.ARABIC, Cheap.OTHER_LETTERS)
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|https?://\S+", re.DOTALL)


def script_of(text: str) -> Cheap | None:
    """The script of a text, code and addresses left out; None for a mixed or nearly empty one.

    >>> script_of("What is the capital of France?").value, script_of("法国的首都是哪个城市？").value
    ('latin', 'han')
    >>> script_of("用 Python 写一个 quick sort 函数"), script_of("42")
    (None, None)
    """
    prose = _CODE.sub(" ", text)
    shares = cheap_features(prose)
    looked_at = min(len(prose), 2000)
    letters = Counter({name: round(float(shares[_PLACES[name]]) * looked_at) for name in _SCRIPTS})
    for dense in (Cheap.HAN, Cheap.KANA, Cheap.HANGUL):
        letters[dense] *= 2  # one says about as much as two letters of an alphabet
    if letters[Cheap.KANA]:  # Japanese has both
        letters[Cheap.KANA] += letters.pop(Cheap.HAN)
    total = letters.total()
    script, count = letters.most_common(1)[0]
    return script if total >= LEAST_LETTERS and count >= CLEAR_SHARE * total else None


def is_other_language(prompt: str, answer: str) -> bool:
    """Whether both have a clear script, and not the same one.

    >>> is_other_language("法国的首都是哪个城市？", "The capital of France is Paris.")
    True
    """
    answered = script_of(answer)
    return answered is not None and script_of(prompt) not in (None, answered)
