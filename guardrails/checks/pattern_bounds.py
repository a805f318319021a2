"""Which regular expressions a policy may bring: those whose cost is bounded before they ever run. Pure.

Python's engine backtracks, so `(a+)+b` takes exponential time on a text of a's. A pattern is accepted when

- every repetition has an upper bound (`{0,64}`, not `*`), the way such things are written for Hyperscan,
- it has no backreference, no lookaround and no condition,
- the number of ways in which it can match at one place, computed over its parse tree, is at most `MAX_PATHS`.

The last is what the engine may try at each character, so time is at most `MAX_PATHS` steps a character. Sums stand for
alternatives, products for sequences, and a repetition of x, m to n times, has sum(paths(x)^k for k = m..n).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from re import _constants, _parser  # type: ignore[attr-defined]
from typing import Any

MAX_PATHS = 5_000


def bounded_pattern(pattern: str) -> str:
    """The pattern, if it is one that a policy may bring.

    >>> bounded_pattern(r"PRJ-[0-9]{4,8}")
    'PRJ-[0-9]{4,8}'

    Raises:
        ValueError: it is no regular expression, or its cost is not bounded; the message says what to write instead.
    """
    try:
        tree = _parser.parse(pattern)
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
    paths = _paths(tree, pattern)
    if paths > MAX_PATHS:
        raise ValueError(
            f"{pattern!r} can match in {'over a million' if paths > 1_000_000 else paths} ways at one place, more than"
            f" {MAX_PATHS}; lower the bounds of its repetitions, or split it into several patterns"
        )
    if re.compile(pattern).match(""):
        raise ValueError(
            f"{pattern!r} matches the empty text, so it would match everywhere; make a part of it required"
        )
    return pattern


def _paths(tree: Sequence[tuple[Any, Any]], pattern: str) -> int:
    total = 1
    for kind, value in tree:
        total = min(total * _ways(kind, value, pattern), 10**9)
    return total


def _ways(kind: Any, value: Any, pattern: str) -> int:  # noqa: ANN401 - the parser's own constants
    if kind in (_constants.MAX_REPEAT, _constants.MIN_REPEAT, _constants.POSSESSIVE_REPEAT):
        least, most, body = value
        if most == _constants.MAXREPEAT:
            raise ValueError(
                f"{pattern!r} repeats something without an upper bound; write {{0,64}} for * and {{1,64}} for +"
            )
        if most > 1000:
            raise ValueError(f"{pattern!r} repeats something up to {most} times; the limit is 1000")
        each = _paths(body, pattern)
        if each == 1:
            return int(most) - int(least) + 1
        ways = sum(min(each**times, 10**9) for times in range(int(least), min(int(most), int(least) + 64) + 1))
        return int(min(ways, 10**9))
    if kind is _constants.BRANCH:
        return sum(_paths(branch, pattern) for branch in value[1])
    if kind is _constants.SUBPATTERN:
        return _paths(value[3], pattern)
    if kind in (
        _constants.LITERAL,
        _constants.NOT_LITERAL,
        _constants.IN,
        _constants.ANY,
        _constants.AT,
        _constants.RANGE,
    ):
        return 1
    raise ValueError(f"{pattern!r} has a backreference, a lookaround or a condition; write it without")
