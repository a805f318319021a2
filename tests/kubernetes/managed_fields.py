"""Who owns which field: server-side apply, and what every other write does to ownership.

A path is a tuple of steps as FieldsV1 writes them: `f:name` for a field, `k:{"name":"a"}` for an item of a list that is
a map, `v:"x"` for an item of a list that is a set. A list that is neither is owned as a whole.
"""

from __future__ import annotations

import copy
import itertools
import json
from typing import Any

from tests.kubernetes.api_errors import Refused

Path = tuple[str, ...]

UNOWNED = {
    "name", "namespace", "uid", "resourceVersion", "generation", "creationTimestamp", "managedFields",
    "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "generateName",
}  # fmt: skip
"""Fields of metadata that belong to the server."""

LIST_KEYS = {
    "ownerReferences": ("uid",),
    "containers": ("name",),
    "initContainers": ("name",),
    "env": ("name",),
    "volumes": ("name",),
    "volumeMounts": ("mountPath",),
    "conditions": ("type",),
    "subsets": (),
}
"""How the lists of built-in kinds are keyed, as far as these tests go; an empty tuple means atomic."""
LIST_SETS = {"finalizers"}


class Shape:
    """How the value at one place is merged: by the structural schema, or by what is known of built-in kinds."""

    def __init__(self, schema: dict[str, Any] | None, name: str = "", *, inside_metadata: bool = False) -> None:
        self.schema = schema
        self.name = name
        self.inside_metadata = inside_metadata

    def field(self, name: str) -> Shape:
        if self.inside_metadata or (name == "metadata" and self.name == ""):
            return Shape(None, name, inside_metadata=True)
        if self.schema is None:
            return Shape(None, name)
        properties = self.schema.get("properties") or {}
        extra = self.schema.get("additionalProperties")
        found = properties.get(name, extra if isinstance(extra, dict) else {})
        return Shape(found, name)

    def item(self) -> Shape:
        if self.schema is None:
            return Shape(None, "item", inside_metadata=self.inside_metadata)
        return Shape(self.schema.get("items") or {}, "item")

    @property
    def atomic_map(self) -> bool:
        return (self.schema or {}).get("x-kubernetes-map-type") == "atomic"

    @property
    def list_type(self) -> str:
        if self.schema is not None:
            return str(self.schema.get("x-kubernetes-list-type", "atomic"))
        if self.name in LIST_SETS:
            return "set"
        return "map" if LIST_KEYS.get(self.name) else "atomic"

    @property
    def keys(self) -> tuple[str, ...]:
        if self.schema is not None:
            return tuple(self.schema.get("x-kubernetes-list-map-keys") or ())
        return LIST_KEYS.get(self.name, ())

    def step(self, item: Any) -> str:
        if self.list_type == "set":
            return "v:" + json.dumps(item, sort_keys=True, separators=(",", ":"))
        chosen = {k: item[k] for k in self.keys if k in item}
        return "k:" + json.dumps(chosen, sort_keys=True, separators=(",", ":"))


def leaves(value: Any, shape: Shape, path: Path = ()) -> dict[Path, Any]:
    """Every owned path in a value, with what stands there."""
    if isinstance(value, dict) and value and not shape.atomic_map:
        found: dict[Path, Any] = {}
        for name, part in value.items():
            if not path and name in ("apiVersion", "kind"):
                continue
            if path == ("f:metadata",) and name in UNOWNED:
                continue
            found |= leaves(part, shape.field(name), (*path, f"f:{name}"))
        return found
    if isinstance(value, list) and shape.list_type != "atomic":
        found = {}
        for item in value:
            inner = (*path, shape.step(item))
            found[inner] = item if shape.list_type == "set" else None
            if isinstance(item, dict):
                found |= leaves(item, shape.item(), inner)
        return found
    return {path: value} if path and path != ("f:metadata",) else {}


def merged(live: Any, applied: Any, shape: Shape) -> Any:
    """The applied configuration laid over what is there."""
    if isinstance(applied, dict) and isinstance(live, dict) and not shape.atomic_map:
        return {**live, **{k: merged(live.get(k), v, shape.field(k)) for k, v in applied.items()}}
    if isinstance(applied, list) and isinstance(live, list) and shape.list_type != "atomic":
        there = {shape.step(item): item for item in live}
        for item in applied:
            step = shape.step(item)
            there[step] = merged(there.get(step), item, shape.item())
        return list(there.values())
    return copy.deepcopy(applied)


def without(value: Any, shape: Shape, paths: set[Path], path: Path = ()) -> Any:
    """The value without these paths; a map that becomes empty goes too, None means that nothing is left."""
    if isinstance(value, dict) and not shape.atomic_map:
        kept = {}
        for name, part in value.items():
            inner = (*path, f"f:{name}")
            if inner in paths:
                continue
            rest = without(part, shape.field(name), paths, inner)
            if rest is not None or part is None:
                kept[name] = rest
        return kept if kept or not value else None
    if isinstance(value, list) and shape.list_type != "atomic":
        items = []
        for item in value:
            inner = (*path, shape.step(item))
            if inner not in paths:
                items.append(without(item, shape.item(), paths, inner) if isinstance(item, dict) else item)
        return items or None
    return value


def encoded(paths: set[Path]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path in sorted(paths):
        here = tree
        for step in path:
            here = here.setdefault(step, {})
        if path[-1].startswith("k:"):
            here["."] = {}
    return tree


def decoded(tree: dict[str, Any], path: Path = ()) -> set[Path]:
    found: set[Path] = set()
    for step, below in tree.items():
        if step == ".":
            found.add(path)
        elif not below:
            found.add((*path, step))
        else:
            found |= decoded(below, (*path, step))
    return found


class Ledger:
    """The managedFields of one object, opened for one write."""

    def __init__(self, entries: list[dict[str, Any]]) -> None:
        self.owned: dict[tuple[str, str, str], set[Path]] = {}
        self.meta: dict[tuple[str, str, str], dict[str, Any]] = {}
        for entry in entries:
            key = (entry["manager"], entry["operation"], entry.get("subresource", ""))
            self.owned[key] = decoded(entry.get("fieldsV1") or {})
            self.meta[key] = entry

    def entries(self) -> list[dict[str, Any]]:
        return [{**self.meta[key], "fieldsV1": encoded(paths)} for key, paths in sorted(self.owned.items()) if paths]

    def take(self, key: tuple[str, str, str], api_version: str, now: str, paths: set[Path]) -> None:
        manager, operation, subresource = key
        entry = {
            "manager": manager,
            "operation": operation,
            "apiVersion": api_version,
            "time": now,
            "fieldsType": "FieldsV1",
        }
        if subresource:
            entry["subresource"] = subresource
        if self.owned.get(key) != paths or key not in self.meta:
            self.meta[key] = entry
        self.owned[key] = paths

    def lose(self, paths: set[Path], but: tuple[str, str, str] | None = None) -> None:
        for key in self.owned:
            if key != but:
                self.owned[key] = self.owned[key] - paths


def apply(
    live: dict[str, Any] | None,
    applied: dict[str, Any],
    shape: Shape,
    manager: str,
    subresource: str,
    now: str,
    *,
    force: bool,
) -> dict[str, Any]:
    """Server-side apply: the object that results, with its managedFields.

    Raises:
        Refused: 409 with one cause per field that somebody else owns and has set otherwise.

    """
    key = (manager, "Apply", subresource)
    before = live or {"metadata": {}}
    ledger = Ledger(before["metadata"].get("managedFields") or [])
    wanted = leaves(applied, shape)
    there = leaves(before, shape)
    fought = {
        path: other
        for other, paths in ledger.owned.items()
        if other != key
        for path in paths & wanted.keys()
        if there.get(path) != wanted[path]
    }
    if fought and not force:
        raise _fought(fought, applied["apiVersion"])
    ledger.lose(set(fought), but=key)
    mine_before = ledger.owned.get(key, set())
    dropped = mine_before - wanted.keys()
    dropped -= set().union(*(p for k, p in ledger.owned.items() if k != key))
    rest = without({k: v for k, v in before.items() if k != "metadata"}, shape, dropped) or {}
    kept_metadata = {k: v for k, v in before["metadata"].items() if k in UNOWNED}
    owned_metadata = {k: v for k, v in before["metadata"].items() if k not in UNOWNED}
    owned_metadata = (
        without(owned_metadata, Shape(None, "metadata", inside_metadata=True), _below_metadata(dropped)) or {}
    )
    result = merged({**rest, "metadata": {**owned_metadata, **kept_metadata}}, applied, shape)
    ledger.take(key, applied["apiVersion"], now, set(wanted))
    result["metadata"]["managedFields"] = ledger.entries()
    return result


def _below_metadata(paths: set[Path]) -> set[Path]:
    return {path[1:] for path in paths if path[0] == "f:metadata"}


def _fought(fought: dict[Path, tuple[str, str, str]], version: str) -> Refused:
    causes = [
        {
            "reason": "FieldManagerConflict",
            "message": f'conflict with "{manager}"'
            + (f' with subresource "{sub}"' if sub else "")
            + (f" using {version}" if how != "Apply" else ""),
            "field": "." + ".".join(step[2:] for step in path),
        }
        for path, (manager, how, sub) in sorted(fought.items())
    ]
    if len(causes) == 1:
        said = f"Apply failed with 1 conflict: {causes[0]['message']}: {causes[0]['field']}"
    else:
        said = f"Apply failed with {len(causes)} conflicts: "
        by_whom = itertools.groupby(sorted(causes, key=lambda c: c["message"]), key=lambda c: c["message"])
        for message, theirs in by_whom:
            fields = "".join(f"\n- {cause['field']}" for cause in theirs)
            said += f"{message.replace('conflict', 'conflicts', 1)}:{fields}\n"
        said = said.rstrip("\n")
    return Refused(409, "Conflict", said, causes=causes)


def updated(
    live: dict[str, Any] | None, new: dict[str, Any], shape: Shape, manager: str, subresource: str, now: str
) -> list[dict[str, Any]]:
    """The managedFields after a write that is no apply: what changed is owned by whoever changed it."""
    ledger = Ledger((live or new)["metadata"].get("managedFields") or [])
    before = leaves(live, shape) if live is not None else {}
    after = leaves(new, shape)
    changed = {path for path, value in after.items() if path not in before or before[path] != value}
    lost = before.keys() - after.keys()
    ledger.lose(changed | lost)
    if changed:
        key = (manager, "Update", subresource)
        ledger.take(key, new["apiVersion"], now, ledger.owned.get(key, set()) | changed)
    return ledger.entries()
