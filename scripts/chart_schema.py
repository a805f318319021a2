#!/usr/bin/env python3
"""Make what follows from the chart's values.yaml and its comments; `--check` only compares.

That is values.schema.json, README.md, and files/keys.json, by which the templates tell that a value was set to null.

Every key needs a comment. Types follow from the defaults; a line `# @schema {...}` adds JSON Schema to that, and must
say what the items of a list are and what an empty mapping may hold. A mapping that is written out takes no other keys.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parent.parent / "helm" / "tidegate"
TAG = "@schema "

DEFS: dict[str, Any] = {
    "name": {"type": "string", "pattern": "^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$"},
    "nameOrEmpty": {"type": "string", "pattern": "^([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?)?$"},
    "strings": {"type": "object", "additionalProperties": {"type": "string"}},
    "quantity": {"type": ["string", "integer"], "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$"},
    "intOrPercent": {"type": ["integer", "string"], "minimum": 0, "pattern": "^[0-9]+%$"},
    "resources": {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            kind: {"type": "object", "additionalProperties": {"$ref": "#/$defs/quantity"}}
            for kind in ("requests", "limits")
        },
    },
    "image": {
        "type": "object",
        "additionalProperties": False,
        "required": ["repository"],
        "properties": {
            "repository": {"type": "string", "pattern": "^[a-z0-9.-]+(:[0-9]+)?(/[a-z0-9._-]+)*$"},
            "tag": {
                "type": "string",
                "pattern": "^([A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?$",
                "not": {"const": "latest"},
                "description": "Empty means the chart's appVersion.",
            },
            "digest": {
                "type": "string",
                "pattern": "^(sha256:[a-f0-9]{64})?$",
                "description": "Wins over the tag: what runs is what was tested.",
            },
            "pullPolicy": {"enum": ["Always", "IfNotPresent", "Never"]},
        },
    },
    "storage": {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "size": {"$ref": "#/$defs/quantity"},
            "className": {"type": "string", "description": "Empty means the cluster's default."},
        },
    },
    "toleration": {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "key": {"type": "string"},
            "operator": {"enum": ["Exists", "Equal"]},
            "value": {"type": "string"},
            "effect": {"enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"]},
            "tolerationSeconds": {"type": "integer", "minimum": 0},
        },
    },
    "peer": {
        "type": "object",
        "additionalProperties": False,
        "minProperties": 1,
        "properties": {
            "namespaceSelector": {"type": "object"},
            "podSelector": {"type": "object"},
            "ipBlock": {"type": "object", "required": ["cidr"]},
        },
    },
    "egress": {
        "type": "object",
        "additionalProperties": False,
        "minProperties": 1,
        "properties": {
            "to": {"type": "array", "items": {"$ref": "#/$defs/peer"}},
            "ports": {"type": "array", "items": {"type": "object"}},
        },
    },
    "webhook": {
        "type": "object",
        "additionalProperties": False,
        "required": ["name", "url", "existingSecret"],
        "properties": {
            "name": {"type": "string", "pattern": "^[a-z0-9]([a-z0-9-]{0,40}[a-z0-9])?$"},
            "url": {"type": "string", "pattern": "^https?://"},
            "existingSecret": {"$ref": "#/$defs/name"},
            "events": {"type": "array", "items": {"type": "string"}, "minItems": 1},
        },
    },
}
"""Forms that occur more than once."""

DEFS["imageName"] = {
    **DEFS["image"],
    "properties": {name: form for name, form in DEFS["image"]["properties"].items() if name != "pullPolicy"},
}


class Undescribed(Exception):
    """A key whose comment does not say enough."""


def comment_above(lines: list[str], line: int) -> tuple[str, dict[str, Any]]:
    """What the comment right above a line says, and what its `@schema` lines add."""
    said: list[str] = []
    added: dict[str, Any] = {}
    at = line - 1
    block: list[str] = []
    while at >= 0 and lines[at].lstrip().startswith("#"):
        block.insert(0, lines[at].strip().lstrip("#").strip())
        at -= 1
    for text in block:
        if text.startswith(TAG):
            added |= yaml.safe_load(text.removeprefix(TAG))
        else:
            said.append(text)
    return " ".join(said), added


def schema_of(node: yaml.Node, lines: list[str], path: str = "") -> dict[str, Any]:
    """The schema of a mapping that is written out.

    Raises:
        Undescribed: a key of it lacks a comment, or what a comment must say.
    """
    assert isinstance(node, yaml.MappingNode)
    properties: dict[str, Any] = {}
    for key, value in node.value:
        name = f"{path}{key.value}"
        said, added = comment_above(lines, key.start_mark.line)
        if not said:
            raise Undescribed(f"{name} has no comment; write above it what it is for")
        properties[key.value] = {"description": said} | _inferred(value, added, lines, name)
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _inferred(value: yaml.Node, added: dict[str, Any], lines: list[str], name: str) -> dict[str, Any]:
    if "$ref" in added:
        return added
    if isinstance(value, yaml.MappingNode):
        if "additionalProperties" in added:
            return added
        if not value.value:
            raise Undescribed(f"{name} is an empty mapping; say with @schema what it may hold")
        return schema_of(value, lines, f"{name}.") | added
    if isinstance(value, yaml.SequenceNode):
        if "items" not in added:
            raise Undescribed(f"{name} is a list; say with @schema what its items are")
        return {"type": "array"} | added
    kinds = {"str": "string", "int": "integer", "float": "number", "bool": "boolean", "null": "null"}
    kind = kinds[value.tag.rpartition(":")[2]]
    if kind == "null" and "type" not in added:
        raise Undescribed(f"{name} is null; say with @schema of which type it is otherwise")
    return ({} if "enum" in added else {"type": kind}) | added


def make_schema(text: str) -> str:
    """values.schema.json for a values.yaml."""
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    if node is None:
        raise Undescribed("values.yaml is empty")
    top = schema_of(node, text.splitlines())
    document = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Values of the chart tidegate"}
    return json.dumps(document | top | {"$defs": DEFS}, indent=2) + "\n"


def make_readme(text: str, schema: dict[str, Any]) -> str:
    """README.md: every value with its default."""
    rows = list(_rows(yaml.safe_load(text), schema, ""))
    table = "\n".join(f"| `{name}` | `{default}` | {said} |" for name, default, said in rows)
    return (
        "# Chart tidegate\n\n"
        "Made of values.yaml by `python scripts/chart_schema.py`. "
        "[docs/kubernetes.md](../../docs/kubernetes.md) tells how to install, upgrade and operate it.\n\n"
        f"| value | default | what for |\n|---|---|---|\n{table}\n"
    )


def _rows(values: dict[str, Any], schema: dict[str, Any], path: str) -> Any:  # noqa: ANN401 - a generator of rows
    for key, value in values.items():
        about = schema["properties"][key]
        if "properties" in about:
            yield from _rows(value, about, f"{path}{key}.")
        else:
            said = re.sub(r"\|", r"\\|", about["description"])
            yield f"{path}{key}", json.dumps(value), said


def make_keys(values: dict[str, Any], schema: dict[str, Any]) -> str:
    """files/keys.json: every key that must not be null, with its default.

    Null is a value where the schema says so. Resources of containers are taken away by it, in whole or in part.
    """
    return json.dumps(_keys(values, schema), indent=1) + "\n"


def _keys(values: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        about = schema["properties"][key]
        form = about.get("$ref", "").rpartition("/")[2]
        about = DEFS[form] | about if form else about
        if value is None or form == "resources":
            continue
        found[key] = _keys(value, about) if isinstance(value, dict) and "properties" in about else value
    return found


def main(arguments: list[str]) -> int:
    """Write both files, or with `--check` tell whether they are what they should be."""
    text = (CHART / "values.yaml").read_text(encoding="utf-8")
    try:
        schema = make_schema(text)
    except Undescribed as error:
        print(f"chart_schema: {error}", file=sys.stderr)
        return 1
    made = {
        "values.schema.json": schema,
        "README.md": make_readme(text, json.loads(schema)),
        "files/keys.json": make_keys(yaml.safe_load(text), json.loads(schema)),
    }
    if "--check" not in arguments:
        for name, content in made.items():
            (CHART / name).write_text(content, encoding="utf-8")
        return 0
    stale = [name for name, content in made.items() if (CHART / name).read_text(encoding="utf-8") != content]
    for name in stale:
        print(
            f"chart_schema: helm/tidegate/{name} is not what values.yaml says; run scripts/chart_schema.py",
            file=sys.stderr,
        )
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
