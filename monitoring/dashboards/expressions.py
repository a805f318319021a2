"""Read metric names out of PromQL, so that a name misspelt is found before anybody looks at an empty panel. Pure."""

from __future__ import annotations

import re

_STRINGS = re.compile(r'"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'')
_GROUPING = re.compile(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^()]*\)")
_DURATIONS = re.compile(r"\[[^\]]*\]|\boffset\s+\w+")
_MATCHERS = re.compile(r"\{[^{}]*\}")
_NAMES = re.compile(r"(?<![\w:.$])[A-Za-z_:][\w:]*")
_WORDS = frozenset({"and", "or", "unless", "by", "without", "on", "ignoring", "group_left", "group_right", "bool",
                    "offset", "inf", "nan"})  # fmt: skip


def metric_names(expression: str) -> frozenset[str]:
    """The names of all series that an expression reads; Grafana's `$variables` may stand where values do.

    >>> sorted(metric_names('sum by (a) (rate(x_total{b=~"$c"}[5m])) / on (a) y'))
    ['x_total', 'y']
    """
    text = _STRINGS.sub('""', expression)
    text = _GROUPING.sub(" ", _MATCHERS.sub(" ", _DURATIONS.sub(" ", text)))
    found = set()
    for match in _NAMES.finditer(text):
        called = text[match.end() :].lstrip().startswith("(")
        if not called and match[0].lower() not in _WORDS:
            found.add(match[0])
    return frozenset(found)
