"""Values of a form: what a simulated engine says where JSON of a given JSON Schema is asked for. Pure.

A real engine lets its sampler choose among what a grammar allows. Here one value is made that the schema allows, from
the keywords that tools and response formats are written with; a schema with any other one is refused, not ignored.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

DEEPEST = 24
"""Levels of a value: a schema that refers to itself without a way out ends here."""

OPTIONAL_UNTIL = 3
"""Below so many levels only what is required is given, so that recursive forms end."""

LONGEST_CHARS = 10_000
MOST_ITEMS = 100

_UNSUPPORTED = (
    "pattern", "patternProperties", "not", "if", "contains", "propertyNames", "dependentRequired", "dependentSchemas",
    "unevaluatedProperties", "unevaluatedItems", "$dynamicRef",
)  # fmt: skip
_FORMATS = {
    "date-time": "2030-01-02T03:04:05Z",
    "date": "2030-01-02",
    "time": "03:04:05Z",
    "email": "somebody@example.com",
    "uuid": "123e4567-e89b-42d3-a456-426614174000",
    "uri": "https://example.com/",
}
_WORDS = ("tide", "harbour", "boat", "light", "shore", "bridge", "river", "gull")
_TOKENS = re.compile(r"\s*(?:\w+|[^\w\s])|\s+")


class UnsupportedSchema(ValueError):
    """A JSON Schema that no value can be made for here; the message says which part of it."""


def json_tokens(value: object) -> list[str]:
    """A value as JSON, cut into tokens: joined they are the text again.

    >>> json_tokens({"a": 1})
    ['{', '"', 'a', '"', ':', ' 1', '}']
    """
    return _TOKENS.findall(json.dumps(value, ensure_ascii=False))


def make_value(schema: Mapping[str, Any] | bool, rng: random.Random, mark: str = "") -> Any:  # noqa: ANN401 - JSON
    """Make a value that a JSON Schema allows.

    Args:
        schema: The schema, draft 2020-12.
        rng: Source of chance.
        mark: The first free text is this, where it is not too long for it.

    Raises:
        UnsupportedSchema: it uses a keyword that is not understood here, or allows nothing.
    """
    return _Maker(schema, rng, mark).make(schema, 0)


class _Maker:
    def __init__(self, root: Mapping[str, Any] | bool, rng: random.Random, mark: str) -> None:
        self._root = root
        self._rng = rng
        self._mark = mark

    def make(self, given: Any, depth: int) -> Any:  # noqa: ANN401 - JSON
        if depth > DEEPEST:
            raise UnsupportedSchema(f"the schema goes deeper than {DEEPEST} levels")
        if given is True:
            given = {}
        if not isinstance(given, Mapping):
            raise UnsupportedSchema("a schema is neither an object nor true")
        schema = self._flat(given, 0)
        unknown = [word for word in _UNSUPPORTED if word in schema]
        if unknown:
            raise UnsupportedSchema(f"the simulated engine does not understand {unknown[0]!r} in a schema")
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return self._rng.choice(_listed(schema["enum"], "enum"))
        match _type_of(schema):
            case "object":
                return self._object(schema, depth)
            case "array":
                return self._array(schema, depth)
            case "string":
                return self._string(schema)
            case "integer":
                return self._integer(schema)
            case "number":
                return self._number(schema)
            case "boolean":
                return self._rng.random() < 0.5
            case "null":
                return None
            case other:
                raise UnsupportedSchema(f"{str(other)[:32]!r} is no JSON type")

    def _flat(self, schema: Mapping[str, Any], hops: int) -> dict[str, Any]:
        """The schema with references and alternatives put in their places."""
        flat = {k: v for k, v in schema.items() if k not in ("$ref", "allOf", "anyOf", "oneOf")}
        parts: list[Any] = []
        if "$ref" in schema:
            parts.append(self._resolve(str(schema["$ref"])))
        parts += _listed(schema["allOf"], "allOf") if "allOf" in schema else []
        parts += [self._rng.choice(_listed(schema[k], k)) for k in ("anyOf", "oneOf") if k in schema]
        for part in parts:
            if hops > DEEPEST:
                raise UnsupportedSchema("a reference leads back to itself")
            if part is True:
                continue
            if not isinstance(part, Mapping):
                raise UnsupportedSchema("a schema is neither an object nor true")
            for key, value in self._flat(part, hops + 1).items():
                flat[key] = _merged(key, flat[key], value) if key in flat else value
        return flat

    def _resolve(self, reference: str) -> Any:  # noqa: ANN401 - JSON
        if not reference.startswith("#"):
            raise UnsupportedSchema("a $ref leads out of the schema")
        found: Any = self._root
        for step in reference[1:].split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, Mapping) or step not in found:
                raise UnsupportedSchema("a $ref leads nowhere")
            found = found[step]
        return found

    def _object(self, schema: Mapping[str, Any], depth: int) -> dict[str, Any]:
        properties = schema.get("properties") or {}
        required = schema.get("required") or []
        rest = schema.get("additionalProperties", True)
        if not isinstance(properties, Mapping) or not isinstance(required, Sequence):
            raise UnsupportedSchema("`properties` must be an object and `required` a list")
        names = [n for n in properties if n in required or depth < OPTIONAL_UNTIL]
        names += [n for n in required if n not in properties]
        least = _bound(schema, "minProperties", 0)
        names += [f"more{i}" for i in range(max(0, least - len(names)))]
        most = schema.get("maxProperties")
        if most is not None and len(names) > most:
            names = [n for n in names if n in required]
            if len(names) > most or len(names) < least:
                raise UnsupportedSchema("an object must have more properties than it may have")
        if rest is False and not all(n in properties for n in names):
            raise UnsupportedSchema("an object requires a property that it may not have")
        return {str(n): self.make(properties.get(n, rest), depth + 1) for n in names}

    def _array(self, schema: Mapping[str, Any], depth: int) -> list[Any]:
        least = _bound(schema, "minItems", 0)
        most = _bound(schema, "maxItems", MOST_ITEMS)
        if least > min(most, MOST_ITEMS):
            raise UnsupportedSchema(f"an array must have {least} items and may have {min(most, MOST_ITEMS)}")
        first = schema.get("prefixItems") or []
        count = min(most, max(least, len(first) or (2 if depth < OPTIONAL_UNTIL else 0)))
        if schema.get("uniqueItems"):
            count = max(least, min(count, 1))
        others = schema.get("items", True)
        if others is False:
            count = min(count, len(first))
        made = [self.make(first[i] if i < len(first) else others, depth + 1) for i in range(count)]
        distinct = {json.dumps(item, sort_keys=True) for item in made}
        if len(made) < least or (schema.get("uniqueItems") and len(distinct) < len(made)):
            raise UnsupportedSchema("the simulated engine could not make enough different items for an array")
        return made

    def _string(self, schema: Mapping[str, Any]) -> str:
        least = _bound(schema, "minLength", 0)
        most = _bound(schema, "maxLength", LONGEST_CHARS)
        if least > min(most, LONGEST_CHARS):
            raise UnsupportedSchema(f"a string must have {least} characters and may have {min(most, LONGEST_CHARS)}")
        known = _FORMATS.get(str(schema.get("format")), "")
        if known and least <= len(known) <= most:
            return known
        text = " ".join(self._rng.choices(_WORDS, k=3))
        if self._mark and len(self._mark) <= most:
            text, self._mark = self._mark, ""
        while len(text) < least:
            text += " " + self._rng.choice(_WORDS)
        return text[:most]

    def _integer(self, schema: Mapping[str, Any]) -> int:
        low, high = _limits(schema)
        step = schema.get("multipleOf", 1)
        if not isinstance(step, int) or isinstance(step, bool) or step < 1:
            raise UnsupportedSchema("`multipleOf` of an integer must be an integer above 0")
        first = math.ceil(low) if low != -math.inf else math.floor(min(0, high)) - step
        first += "exclusiveMinimum" in schema and first <= schema["exclusiveMinimum"]
        last = math.floor(high) if high != math.inf else first + 100 + step
        last -= "exclusiveMaximum" in schema and last >= schema["exclusiveMaximum"]
        first, last = -(-first // step), last // step
        if first > last:
            raise UnsupportedSchema("no integer lies between the schema's bounds")
        return self._rng.randint(first, last) * step

    def _number(self, schema: Mapping[str, Any]) -> float:
        if "multipleOf" in schema:
            return self._integer(schema)
        low, high = _limits(schema)
        if low == -math.inf:
            low = min(0.0, high - 1)
        if high == math.inf:
            high = low + 100
        value = low + (high - low) / 2
        inside = low <= value <= high and value > schema.get("exclusiveMinimum", -math.inf)
        if not inside or value >= schema.get("exclusiveMaximum", math.inf):
            raise UnsupportedSchema("no number lies between the schema's bounds")
        return value


def _type_of(schema: Mapping[str, Any]) -> object:
    """The type that is asked for; where none is said, the one whose keywords are used."""
    named = schema.get("type")
    if isinstance(named, list):
        named = next((t for t in named if t != "null"), "null")
    if named is not None:
        return named
    if "properties" in schema or "required" in schema or "additionalProperties" in schema:
        return "object"
    if "items" in schema or "prefixItems" in schema:
        return "array"
    return "number" if {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"} & schema.keys() else "string"


def _merged(key: str, ours: Any, theirs: Any) -> Any:  # noqa: ANN401 - JSON
    if key == "required" and isinstance(ours, list) and isinstance(theirs, list):
        return [*ours, *(n for n in theirs if n not in ours)]
    if key in ("properties", "$defs", "definitions") and isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        both = sorted(ours.keys() & theirs.keys())
        return {**ours, **theirs, **{n: {"allOf": [ours[n], theirs[n]]} for n in both}}
    if key in ("title", "description", "default", "examples") or ours == theirs:
        return ours
    raise UnsupportedSchema(f"the simulated engine can't join two values of {key[:32]!r} in a schema")


def _listed(value: object, word: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise UnsupportedSchema(f"`{word}` must be a list with at least one entry")
    return value


def _bound(schema: Mapping[str, Any], word: str, otherwise: int) -> int:
    value = schema.get(word, otherwise)
    if not isinstance(value, int | float) or value < 0 or value != int(value):
        raise UnsupportedSchema(f"`{word}` must be a whole number of at least 0")
    return int(value)


def _limits(schema: Mapping[str, Any]) -> tuple[float, float]:
    words = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
    if any(isinstance(schema.get(w, 0), bool) or not isinstance(schema.get(w, 0), int | float) for w in words):
        raise UnsupportedSchema("a bound of a number is not a number")
    low = max(schema.get("minimum", -math.inf), schema.get("exclusiveMinimum", -math.inf))
    high = min(schema.get("maximum", math.inf), schema.get("exclusiveMaximum", math.inf))
    return low, high
