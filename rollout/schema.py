"""The spec as JSON Schema (draft 2020-12), for editors, for the chart's custom resource and for other people's tools.

It is made from the same classes that read a spec, docstrings included. What it can't say is what two fields must have
in common (weights that rise, `maxDuration` not below `duration`), the range of a number written as a string, and
whether a regular expression is one: those the reader alone complains about.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rollout.specs import RolloutSpec

DRAFT = "https://json-schema.org/draft/2020-12/schema"
ID = "https://tidegate.dev/schemas/rollout-v1alpha1.json"


def json_schema() -> dict[str, Any]:
    """The published schema of a rollout spec: what stands in `rollout.yaml`, or under a ModelDeployment's `spec`."""
    made = RolloutSpec.model_json_schema(by_alias=True, mode="validation")
    return {"$schema": DRAFT, "$id": ID, **_tidy(made)}


def _tidy(node: Any) -> Any:  # noqa: ANN401 - JSON of any shape
    """Leave out what a writer of specs has no use for: null (an empty key is refused) and made-up titles."""
    if isinstance(node, list):
        return [_tidy(part) for part in node]
    if not isinstance(node, Mapping):
        return node
    kept: dict[str, Any] = {}
    for key, value in node.items():
        if key in ("properties", "$defs"):
            kept[key] = {name: _tidy(part) for name, part in value.items()}
        elif key == "default":
            kept |= {} if value is None else {key: _without_nulls_inside(value)}
        elif key == "title" and isinstance(value, str):
            if "properties" in node:
                kept[key] = value
        else:
            kept[key] = _tidy(value)
    return _without_null(kept)


def _without_null(node: dict[str, Any]) -> dict[str, Any]:
    choices = [c for c in node.get("anyOf", ()) if c != {"type": "null"}]
    if not choices or len(choices) == len(node["anyOf"]):
        return node
    rest = {key: value for key, value in node.items() if key != "anyOf"}
    return {**rest, **choices[0]} if len(choices) == 1 else {**rest, "anyOf": choices}


def _without_nulls_inside(value: Any) -> Any:  # noqa: ANN401 - JSON of any shape
    """A default as somebody could write it."""
    if isinstance(value, list):
        return [_without_nulls_inside(part) for part in value]
    if isinstance(value, Mapping):
        return {key: _without_nulls_inside(part) for key, part in value.items() if part is not None}
    return value
