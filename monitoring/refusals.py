"""Does an answer decline to answer? By its first words, in English and Chinese. Pure.

A rule for comparing two versions on the same traffic, not for judging one answer: it misses refusals that are put in
unusual words, and takes an answer that quotes a refusal at its beginning for one. Both arms are read alike, so neither
does harm there.
"""

from __future__ import annotations

import re
from typing import Final

LOOKED_AT: Final = 240
"""Characters from the beginning: who declines says so first."""

_ENGLISH: Final = re.compile(
    r"""^\W*(?:
      (?:(?:i['’]?m|i\ am)\s+)?(?:really\s+|very\s+|so\s+)?(?:sorry|afraid)\b[^.!?\n]{0,60}?
        \b(?:can(?:['’]?t|not|\ not)|won['’]?t|unable|not\ able|not\ allowed)\b
    | (?:i\ apologi[sz]e|my\ apologies|unfortunately|regrettably|sorry)\b[^.!?\n]{0,60}?
        \bi\b[^.!?\n]{0,20}\b(?:can(?:['’]?t|not|\ not)|won['’]?t|unable|not\ able|not\ allowed)\b
    | i\s+(?:can(?:['’]?t|not|\ not)|won['’]?t|will\ not)\s+
        (?:help|assist|provide|comply|fulfil+|answer|support|engage|create|generate|write|share|give|do|discuss|continue)
    | i\ (?:must|have\ to)\ (?:respectfully\ )?(?:decline|refuse)\b
    | i(?:['’]?m|\ am)\s+(?:unable|not\ able|not\ allowed|not\ comfortable|not\ permitted)\s+
    | as\ an?\ (?:ai|artificial\ intelligence|(?:large\ )?language\ model)\b[^.!?\n]{0,40},?\s*i\s+
        (?:can(?:['’]?t|not|\ not)|am\ (?:unable|not\ able|not)|do\ not|don['’]?t)
    )""",
    re.VERBOSE | re.IGNORECASE,
)
_CHINESE: Final = re.compile(
    "^[\\W_]*(?:"
    "(?:很|非常|十分|真的)?(?:抱歉|对不起|遗憾)[^。！？\n]{0,24}?(?:无法|不能|没办法|不可以|无权|不便)"
    "|我(?:无法|不能|没办法|不可以|不便|拒绝)[^。！？\n]{0,12}?(?:提供|回答|帮助|协助|满足|讨论|生成|完成|继续|支持|处理)"
    "|作为(?:一个|一名|一款)?(?:人工智能|AI|语言模型|智能助手|大模型)[^。！？\n]{0,24}?(?:无法|不能|没有办法|不会)"
    ")",
    re.IGNORECASE,
)


def is_refusal(text: str) -> bool:
    """Whether a text begins by declining.

    >>> is_refusal("I'm sorry, but I can't help with that."), is_refusal("很抱歉，我无法回答这个问题。")
    (True, True)
    >>> is_refusal("I can't believe how good this soup is!"), is_refusal("抱歉久等了，答案是四。")
    (False, False)
    """
    beginning = text[:LOOKED_AT]
    if _ENGLISH.match(beginning) is not None:
        return True
    return not beginning.isascii() and _CHINESE.match(beginning) is not None
