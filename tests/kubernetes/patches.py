"""RFC 7386 merge patches and RFC 6902 JSON patches, and how fields of an object are addressed."""

from __future__ import annotations

import copy
from typing import Any

import jsonpatch
import jsonpointer

from tests.kubernetes.api_errors import Refused, bad_request


def merge_patch(target: Any, patch: Any) -> Any:
    """RFC 7386: null takes a field away, a list replaces a list."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    merged = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge_patch(merged.get(key), value)
    return merged


def json_patch(target: Any, operations: Any) -> Any:
    """RFC 6902; a failing `test` is 422, as the API server has it."""
    if not isinstance(operations, list):
        raise bad_request("a JSON patch is a list of operations")
    try:
        return jsonpatch.JsonPatch(operations).apply(copy.deepcopy(target))
    except (jsonpatch.JsonPatchException, jsonpointer.JsonPointerException):
        raise Refused(422, "Invalid", "the server rejected our request due to an error in our request") from None


def at_path(value: Any, dotted: str) -> Any:
    """What `.spec.strategy.replicas` names, or None; enough of JSONPath for printer columns and `scale`."""
    for part in dotted.strip(".").split("."):
        name, _, rest = part.partition("[")
        if name:
            value = value.get(name) if isinstance(value, dict) else None
        if rest and value is not None:
            value = _chosen(value, rest.rstrip("]"))
        if value is None:
            return None
    return value


def _chosen(items: Any, selector: str) -> Any:
    if selector.startswith("?(@."):
        field, _, wanted = selector[4:].rstrip(")").partition("==")
        wanted = wanted.strip("\"'")
        return next((i for i in items if str(i.get(field)) == wanted), None)
    index = int(selector)
    return items[index] if index < len(items) else None


def set_at_path(value: dict[str, Any], dotted: str, new: Any) -> None:
    *parents, last = dotted.strip(".").split(".")
    for part in parents:
        value = value.setdefault(part, {})
    value[last] = new
