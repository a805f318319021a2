"""Label and field selectors, as list and watch take them."""

from __future__ import annotations

import re
from typing import Any

from tests.kubernetes.api_errors import bad_request
from tests.kubernetes.patches import at_path

_TERM = re.compile(r"\s*(!)?\s*([\w./-]+)\s*(?:(==|=|!=|\bin\b|\bnotin\b)\s*(\([^)]*\)|[^,]*))?\s*(?:,|$)")


def matches(found: dict[str, Any], labels: str, fields: str) -> bool:
    """Whether an object is among those that were asked for."""
    return _labels_match(found["metadata"].get("labels") or {}, labels) and _fields_match(found, fields)


def _labels_match(labels: dict[str, str], selector: str) -> bool:
    position = 0
    while position < len(selector):
        term = _TERM.match(selector, position)
        if term is None:
            raise bad_request(f"unable to parse requirement: {selector[position:]!r}")
        position = term.end()
        absent, key, how, value = term[1], term[2], term[3], (term[4] or "").strip()
        values = {v.strip() for v in value.strip("()").split(",")}
        there = labels.get(key)
        if how is None:
            good = (key not in labels) if absent else (key in labels)
        elif how in ("=", "==", "in"):
            good = there in values
        else:
            good = there not in values
        if not good:
            return False
    return True


def _fields_match(found: dict[str, Any], selector: str) -> bool:
    for term in filter(None, selector.split(",")):
        path, _, value = term.replace("==", "=").partition("=")
        negated = path.endswith("!")
        there = at_path(found, path.rstrip("!"))
        if (str(there if there is not None else "") == value) == negated:
            return False
    return True
