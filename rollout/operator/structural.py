"""From the published JSON Schema to the structural schema that a CustomResourceDefinition may have. Pure.

What Kubernetes does not allow is said otherwise: a reference is written out; a number that may come as a string is
either a whole number, or int-or-string where it may have a fraction (a resource has no floats); a closed mapping is
one by nature, since unknown fields are refused or pruned; a bound that excludes its value is a flag beside it.

Defaults are left out: what is not given must stay so, or what somebody wrote could not be told from what was filled
in, and a new release could not change what it means.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rollout.spec_types import DURATION_PATTERN, WHOLE_PATTERN

Schema = dict[str, Any]

MAX_TEXT = 16_384
"""Characters of a text that the spec itself does not bound."""
MAX_ITEMS = 100
MAX_ENTRIES = 64
MAX_NUMBER = 32
"""Characters of a number that is written as a string."""

LIST_KEYS = {"signals": ["name"], "smoke": ["name"], "conditions": ["type"], "commands": ["verb"]}
"""Lists whose items have a name: they are merged by it, and it may not stand there twice."""

_KEPT = (
    "type", "title", "description", "enum", "pattern", "minLength", "maxLength", "minItems", "maxItems", "minimum",
    "maximum", "required", "format", "minProperties",
)  # fmt: skip


def structural(schema: Mapping[str, Any]) -> Schema:
    """The structural form of a whole JSON Schema document, definitions written out."""
    return _converted(schema, schema.get("$defs") or {}, "")


def _converted(node: Mapping[str, Any], definitions: Mapping[str, Any], name: str) -> Schema:
    if "$ref" in node:
        target = definitions[str(node["$ref"]).rpartition("/")[2]]
        node = {**target, **{k: v for k, v in node.items() if k != "$ref"}}
    choices = list(node.get("anyOf") or ())
    if {"type": "null"} in choices:
        rest = [c for c in choices if c != {"type": "null"}]
        alone = rest[0] if len(rest) == 1 else {"anyOf": rest}
        kept = {k: v for k, v in node.items() if k not in ("anyOf", "default")}
        return _converted({**kept, **alone}, definitions, name)
    made = _choice(node, choices) if choices else _plain(node, definitions, name)
    if "description" in node:
        made["description"] = _one_paragraph(str(node["description"]))
    return dict(sorted(made.items()))


def _choice(node: Mapping[str, Any], choices: list[Mapping[str, Any]]) -> Schema:
    """A value that may have one of two forms."""
    number = next((c for c in choices if c.get("type") in ("integer", "number")), None)
    text = next((c for c in choices if c.get("type") == "string"), None)
    if number is None or text is None:
        return {"x-kubernetes-preserve-unknown-fields": True}
    if number["type"] == "integer" and text["pattern"] == WHOLE_PATTERN:
        return {"type": "integer", "format": "int32", **_bounds(number)}
    made: Schema = {"x-kubernetes-int-or-string": True, "maxLength": MAX_NUMBER, "pattern": text["pattern"]}
    if text["pattern"] == DURATION_PATTERN or number["type"] == "integer":
        made |= _bounds(number)  # what a fraction is bounded by, a rule says, for the string as for the number
    return made


def _bounds(number: Mapping[str, Any]) -> Schema:
    made: Schema = {}
    for edge, word in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if edge in number:
            made[edge] = number[edge]
        if word in number:
            made |= {edge: number[word], word: True}
    return made


def _plain(node: Mapping[str, Any], definitions: Mapping[str, Any], name: str) -> Schema:
    made: Schema = {key: node[key] for key in _KEPT if key in node and key != "title"}
    if "const" in node:
        made["enum"] = [node["const"]]
    match node.get("type"):
        case "object":
            made |= _mapping(node, definitions)
        case "array":
            made["items"] = _converted(node.get("items") or {}, definitions, "item")
            made.setdefault("maxItems", MAX_ITEMS)
            made |= _list_type(name)
        case "string" if "enum" not in made:
            made.setdefault("maxLength", MAX_TEXT)
        case "integer":
            # What counts without a bound (requests, generations) would be refused above two thousand million.
            made.setdefault("format", "int32" if "maximum" in made else "int64")
    return made


def _mapping(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> Schema:
    made: Schema = {}
    extra = node.get("additionalProperties")
    if len(patterned := node.get("patternProperties") or {}) == 1:
        (extra,) = patterned.values()  # what its keys must be like no structural schema can say
    if "properties" in node:
        made["properties"] = {
            key: _converted(part, definitions, key) for key, part in sorted(node["properties"].items())
        }
    elif isinstance(extra, Mapping):
        made |= {"additionalProperties": _converted(extra, definitions, "")}
        made["maxProperties"] = MAX_ENTRIES
    else:
        made["x-kubernetes-preserve-unknown-fields"] = True
    return made


def _list_type(name: str) -> Schema:
    if keys := LIST_KEYS.get(name):
        return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": keys}
    return {"x-kubernetes-list-type": "atomic"}


def _one_paragraph(text: str) -> str:
    return " ".join(text.split()).replace("`", "")
