"""Structural schemas of custom resources: pruning, defaults, validation, and rules in CEL.

Rules are evaluated by Google's own CEL runtime (`cel-expr-python`). Where that is missing they are skipped, and tests
that need them say so (`RULES_RUN`).
"""

from __future__ import annotations

import copy
import functools
import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema

from tests.kubernetes.api_errors import bad_request, invalid
from tests.kubernetes.kinds import Kind

try:
    from cel_expr_python import cel
except ImportError:  # pragma: no cover - depends on what is installed
    cel = None

RULES_RUN = cel is not None

METADATA = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
FORBIDDEN_INSIDE_LOGIC = {"type", "default", "additionalProperties", "nullable", "description", "title"}
FORBIDDEN_ANYWHERE = {
    "$ref", "$defs", "definitions", "dependencies", "deprecated", "discriminator", "id", "patternProperties",
    "readOnly", "writeOnly", "xml", "examples", "const", "if", "then", "else", "prefixItems", "propertyNames",
    "contains",
}  # fmt: skip
KNOWN = {
    "type", "format", "title", "description", "default", "maximum", "exclusiveMaximum", "minimum", "exclusiveMinimum",
    "maxLength", "minLength", "pattern", "maxItems", "minItems", "uniqueItems", "multipleOf", "enum", "maxProperties",
    "minProperties", "required", "items", "allOf", "oneOf", "anyOf", "not", "properties", "additionalProperties",
    "example", "nullable", "externalDocs", "x-kubernetes-preserve-unknown-fields", "x-kubernetes-embedded-resource",
    "x-kubernetes-int-or-string", "x-kubernetes-list-map-keys", "x-kubernetes-list-type", "x-kubernetes-map-type",
    "x-kubernetes-validations",
}  # fmt: skip


def check_structural(schema: dict[str, Any], name: str) -> None:
    """Refuse what a real API server refuses when a CustomResourceDefinition is created."""
    causes = list(_unstructural(schema, "openAPIV3Schema", logic=False))
    if causes:
        raise invalid("CustomResourceDefinition.apiextensions.k8s.io", name, causes)


def _unstructural(schema: dict[str, Any], path: str, *, logic: bool) -> Iterator[tuple[str, str]]:
    for word in sorted(FORBIDDEN_ANYWHERE & schema.keys()):
        yield path, f"Forbidden: {word} is not supported"
    for word in sorted(schema.keys() - KNOWN - FORBIDDEN_ANYWHERE):
        yield path, f"unknown field {word}"
    either = schema.get("x-kubernetes-int-or-string")
    if logic:
        for word in sorted(FORBIDDEN_INSIDE_LOGIC & schema.keys()):
            yield path, f"Forbidden: must not be set inside of a logical junctor: {word}"
    elif not schema.get("type") and not either and not schema.get("x-kubernetes-preserve-unknown-fields"):
        yield f"{path}.type", "Required value: must not be empty for specified object fields"
    if schema.get("type") == "number" or schema.get("format") in ("float", "double"):
        yield f"{path}.type", "a float: Kubernetes' conventions have none in a spec"
    for word in ("exclusiveMinimum", "exclusiveMaximum"):
        if not isinstance(schema.get(word, False), bool):
            yield f"{path}.{word}", "Invalid value: a boolean beside minimum or maximum"
    if schema.get("uniqueItems"):
        yield f"{path}.uniqueItems", "Forbidden: uniqueItems cannot be set to true"
    if "properties" in schema and "additionalProperties" in schema:
        yield path, "Forbidden: additionalProperties and properties are mutually exclusive"
    if schema.get("additionalProperties") is False:
        yield f"{path}.additionalProperties", "Forbidden: additionalProperties cannot be false"
    if "pattern" in schema and re.search(r"\(\?[=!<]|\\[1-9]", schema["pattern"]):
        yield f"{path}.pattern", "Invalid value: look-around and references are not in Go's regular expressions"
    if schema.get("type") == "array" and "items" not in schema and not logic:
        yield f"{path}.items", "Required value: must be specified"
    for key in schema.get("x-kubernetes-list-map-keys") or ():
        items = schema["items"]
        if key not in (items.get("required") or ()) and "default" not in (items.get("properties") or {}).get(key, {}):
            yield (
                f"{path}.items.properties[{key}].default",
                "Required value: this property is in x-kubernetes-list-map-keys, so it must have a default or be "
                "a required property",
            )
    for rule in schema.get("x-kubernetes-validations") or ():
        if not rule.get("rule") or "\n" in rule.get("message", ""):
            yield f"{path}.x-kubernetes-validations", f"Invalid value: {rule}"
        elif hidden := sorted(_undeclared(rule["rule"], schema)):
            yield f"{path}.x-kubernetes-validations", f"Invalid value: undefined fields {hidden} in {rule['rule']}"
        elif cel is not None and (why := _does_not_compile(rule)):
            yield f"{path}.x-kubernetes-validations", f"Invalid value: {rule['rule']}: {why}"
    for word, inner in _below(schema):
        yield from _unstructural(inner, f"{path}.{word}", logic=logic or word.split("[")[0] in LOGIC)
    if "default" in schema and not logic:
        yield from ((f"{path}.default", m) for _, m in errors_of(pruned(schema["default"], schema), schema))


def _undeclared(rule: str, schema: dict[str, Any]) -> set[str]:
    """Fields that a rule reads although the schema does not declare them with a type, which CEL could not know then."""
    known = {
        name
        for name, inner in (schema.get("properties") or {}).items()
        if inner.get("type") or inner.get("x-kubernetes-int-or-string")
    }
    return set(re.findall(r"\bself\.([A-Za-z]\w*)(?!\w*\()", rule)) - known


LOGIC = {"allOf", "anyOf", "oneOf", "not"}


def _below(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, inner in (schema.get("properties") or {}).items():
        yield f"properties[{name}]", inner
    for word in ("items", "additionalProperties", "not"):
        if isinstance(schema.get(word), dict):
            yield word, schema[word]
    for word in ("allOf", "anyOf", "oneOf"):
        for index, inner in enumerate(schema.get(word) or ()):
            yield f"{word}[{index}]", inner


def pruned(value: Any, schema: dict[str, Any], unknown: list[str] | None = None, path: str = "") -> Any:
    """The value without fields that the schema does not know; their paths are put into `unknown`."""
    if schema.get("x-kubernetes-preserve-unknown-fields"):
        return value
    if isinstance(value, dict):
        properties = schema.get("properties") or {}
        extra = schema.get("additionalProperties")
        kept = {}
        for name, part in value.items():
            where = f"{path}.{name}" if path else name
            if name in properties:
                kept[name] = pruned(part, properties[name], unknown, where)
            elif extra is not None:
                kept[name] = pruned(part, extra if isinstance(extra, dict) else {}, unknown, where)
            elif unknown is not None:
                unknown.append(where)
        return kept
    if isinstance(value, list) and isinstance(schema.get("items"), dict):
        return [pruned(part, schema["items"], unknown, f"{path}[{i}]") for i, part in enumerate(value)]
    return value


def mistyped(value: Any, schema: dict[str, Any], path: str = "") -> list[str]:
    """Scalars of another type than the schema's, as whoever merges an apply complains of them."""
    scalars = {"string": str, "boolean": bool, "integer": int}
    wanted = schema.get("type", "")
    if isinstance(value, dict):
        properties, extra = schema.get("properties") or {}, schema.get("additionalProperties")
        inner = {name: properties.get(name, extra if isinstance(extra, dict) else {}) for name in value}
        return [said for name, part in value.items() for said in mistyped(part, inner[name], f"{path}.{name}")]
    if isinstance(value, list):
        items = schema.get("items") or {}
        return [said for index, part in enumerate(value) for said in mistyped(part, items, f"{path}[{index}]")]
    if value is None or wanted not in scalars or schema.get("x-kubernetes-int-or-string"):
        return []
    fits = isinstance(value, scalars[wanted]) and (wanted == "boolean" or not isinstance(value, bool))
    return [] if fits else [f"{path}: expected {wanted}, got &value.valueUnstructured{{Value:{value}}}"]


def with_defaults(value: Any, schema: dict[str, Any]) -> Any:
    """The value with the schema's defaults where a field is missing, or null and not nullable."""
    if isinstance(value, dict):
        filled = {}
        properties = schema.get("properties") or {}
        extra = schema.get("additionalProperties")
        for name, part in value.items():
            inner = properties.get(name, extra if isinstance(extra, dict) else {})
            if part is None and not inner.get("nullable") and ("default" in inner or name in properties):
                continue
            filled[name] = with_defaults(part, inner)
        for name, inner in properties.items():
            if name not in filled and "default" in inner:
                filled[name] = with_defaults(copy.deepcopy(inner["default"]), inner)
        return filled
    if isinstance(value, list):
        return [with_defaults(part, schema.get("items") or {}) for part in value]
    return value


@functools.lru_cache(maxsize=1)
def _validator_class() -> Any:
    def either(_: Any, wanted: Any, value: Any, __: Any) -> Iterator[jsonschema.ValidationError]:
        if wanted and (isinstance(value, bool) or not isinstance(value, int | str)):
            yield jsonschema.ValidationError(f"{value!r} is neither an integer nor a string")

    def list_type(validator: Any, wanted: Any, value: Any, schema: Any) -> Iterator[jsonschema.ValidationError]:
        if wanted not in ("map", "set") or not isinstance(value, list):
            return
        keys = schema.get("x-kubernetes-list-map-keys") or ()
        seen = [tuple(i.get(k) for k in keys) if wanted == "map" else i for i in value]
        for index, key in enumerate(seen):
            if key in seen[:index]:
                yield jsonschema.ValidationError(f"Duplicate value: {key!r}")

    return jsonschema.validators.extend(
        jsonschema.Draft4Validator, {"x-kubernetes-int-or-string": either, "x-kubernetes-list-type": list_type}
    )


def errors_of(value: Any, schema: dict[str, Any]) -> list[tuple[str, str]]:
    """What the schema has against a value: (field, message)."""
    found = []
    for error in _validator_class()(schema).iter_errors(value):
        where = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in error.absolute_path).lstrip(".")
        found.append(_in_its_words(error, where))
    return found


TYPES = {dict: "object", list: "array", str: "string", bool: "boolean", int: "integer", float: "number"}


def _in_its_words(error: jsonschema.ValidationError, where: str) -> tuple[str, str]:
    """A violation as an API server tells it: the field, and what is wrong with it."""
    value, wanted = error.instance, error.validator_value
    shown = json.dumps(value) if isinstance(value, str | int) else "object"
    match error.validator:
        case "required":
            missing = next((name for name in wanted if name not in value), "")
            return f"{where}.{missing}".lstrip("."), "Required value"
        case "type":
            kind = TYPES.get(type(value), "null")
            return where, f'Invalid value: "{kind}": {where} in body must be of type {wanted}: "{kind}"'
        case "enum":
            known = ", ".join(json.dumps(one) for one in wanted)
            return where, f"Unsupported value: {shown}: supported values: {known}"
        case "pattern":
            return where, f"Invalid value: {shown}: {where} in body should match '{wanted}'"
        case "minimum":
            return where, f"Invalid value: {shown}: {where} in body should be greater than or equal to {wanted}"
        case "maximum":
            return where, f"Invalid value: {shown}: {where} in body should be less than or equal to {wanted}"
        case _:
            return where, f"Invalid value: {error.message}"


def broken_rules(value: Any, old: Any, schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """The CEL rules that a value breaks, deepest last: (field, message)."""
    if cel is None:
        return
    for rule in schema.get("x-kubernetes-validations") or ():
        if "oldSelf" in rule["rule"] and old is None:
            continue
        if (said := _broken(rule, value, old)) is not None:
            where = path + (rule.get("fieldPath") or "")
            yield where, said
    if isinstance(value, dict):
        properties = schema.get("properties") or {}
        extra = schema.get("additionalProperties")
        for name, part in value.items():
            inner = properties.get(name, extra)
            if isinstance(inner, dict):
                before = old.get(name) if isinstance(old, dict) else None
                yield from broken_rules(part, before, inner, f"{path}.{name}".lstrip("."))
    elif isinstance(value, list) and isinstance(schema.get("items"), dict):
        for index, part in enumerate(value):
            yield from broken_rules(part, None, schema["items"], f"{path}[{index}]")


@functools.lru_cache(maxsize=512)
def _compiled(rule: str) -> Any:
    from cel_expr_python.ext import ext_strings

    variables = {"self": cel.Type.DYN, "oldSelf": cel.Type.DYN}
    return cel.NewEnv(variables=variables, extensions=[ext_strings.ExtStrings()], functions=_lists()).compile(rule)


@functools.lru_cache(maxsize=1)
def _lists() -> Any:
    """What Kubernetes adds to CEL for lists, as far as it is used."""

    def is_sorted(items: Any) -> bool:
        values = [item.value() if hasattr(item, "value") else item for item in items]
        return values == sorted(values)

    of_any = cel.Type.List(cel.Type.DYN)
    overload = cel.Overload("list_is_sorted", cel.Type.BOOL, [of_any], is_member=True, impl=is_sorted)
    return [cel.FunctionDecl("isSorted", [overload])]


def _does_not_compile(rule: dict[str, Any]) -> str:
    try:
        _compiled(rule["rule"])
        if rule.get("messageExpression"):
            _compiled(rule["messageExpression"])
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return ""


def _broken(rule: dict[str, Any], value: Any, old: Any) -> str | None:
    data = {"self": value} if old is None else {"self": value, "oldSelf": old}
    result = _compiled(rule["rule"]).eval(data=data)
    if result.value() is True:
        return None
    if result.type() == cel.Type.ERROR:
        return f"Invalid value: rule {rule['rule']!r} could not be evaluated: {result.value()}"
    if rule.get("messageExpression"):
        said = _compiled(rule["messageExpression"]).eval(data=data)
        if said.type() == cel.Type.STRING:
            return f"Invalid value: {said.value()}"
    return f"Invalid value: {rule.get('message') or 'failed rule: ' + rule['rule']}"


def _at(value: Any, path: str) -> Any:
    """What stands at a field's path, as the messages write it."""
    for part in re.findall(r"[^.\[\]]+", path):
        if isinstance(value, list):
            value = value[int(part)] if int(part) < len(value) else None
        elif isinstance(value, dict):
            value = value.get(part)
    return value


def admitted(
    kind: Kind, name: str, new: dict[str, Any], old: dict[str, Any] | None, schema: dict[str, Any], strictness: str
) -> dict[str, Any]:
    """The object as it would be stored.

    Raises:
        Refused: 422 with every field that is wrong; 400 for unknown fields, where the client asked for strictness.

    """
    full = {**schema, "properties": {**(schema.get("properties") or {}), "metadata": METADATA}}
    full["properties"].setdefault("apiVersion", {"type": "string"})
    full["properties"].setdefault("kind", {"type": "string"})
    unknown: list[str] = []
    kept = with_defaults(pruned(new, full, unknown), full)
    if unknown and strictness == "Strict":
        fields = ", ".join(f'unknown field "{u}"' for u in unknown)
        raise bad_request(f'{kind.kind} in version "{kind.version}" cannot be handled as a {kind.kind}: '
                          f"strict decoding error: {fields}")  # fmt: skip
    causes = errors_of(kept, full) or list(broken_rules(kept, old, full))
    causes = [c for c in causes if old is None or _at(kept, c[0]) != _at(old, c[0])]  # what was let in once may stay
    if causes:
        raise invalid(kind.full_kind, name, causes)
    return dict(kept)
