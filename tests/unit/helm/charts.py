"""Renders the chart with a real Helm (its SDK), once per set of values, and finds things in what came out."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import helm_python as helm
import yaml

ROOT = Path(__file__).parents[3]
CHART = ROOT / "helm" / "tidegate"
SETS = tuple(sorted(path.name.removesuffix("-values.yaml") for path in (CHART / "ci").glob("*-values.yaml")))
Object = Mapping[str, Any]


def values_of(name: str) -> dict[str, Any]:
    """One of the sets of values in ci/; "" is the chart's defaults."""
    if not name:
        return {}
    found: dict[str, Any] = yaml.safe_load((CHART / "ci" / f"{name}-values.yaml").read_text())
    return found


@functools.cache
def _chart() -> helm.Chart:
    return helm.Chart.load(CHART)


@functools.cache
def _rendered(values: str, release: str, namespace: str) -> Mapping[str, str]:
    return _chart().render(json.loads(values), name=release, namespace=namespace)


def render(values: Mapping[str, Any] | str = "", release: str = "r", namespace: str = "models") -> Mapping[str, str]:
    """Template -> text; `values` is a mapping or the name of a set in ci/."""
    given = values_of(values) if isinstance(values, str) else values
    return _rendered(json.dumps(given, sort_keys=True), release, namespace)


def objects(values: Mapping[str, Any] | str = "", release: str = "r", namespace: str = "models") -> tuple[Object, ...]:
    """Everything that would be applied, hooks and tests included."""
    texts = (text for name, text in render(values, release, namespace).items() if name.endswith(".yaml"))
    return tuple(found for text in texts for found in yaml.load_all(text, yaml.CSafeLoader) if found)


def identity(found: Object, default_namespace: str = "") -> tuple[str, str, str]:
    """Kind, name and namespace of an object."""
    about = found["metadata"]
    return found["kind"], about["name"], about.get("namespace", default_namespace)


def one(found: tuple[Object, ...], kind: str, name: str, namespace: str = "models") -> Object:
    """The only object of that kind and name."""
    wanted = (kind, name, namespace)
    (match,) = (o for o in found if identity(o, namespace) == wanted)
    return match


def pods(found: tuple[Object, ...]) -> Iterator[tuple[str, Object, Object]]:
    """Name of the owner, metadata and spec of every pod."""
    for o in found:
        if o["kind"] == "Pod":
            yield o["metadata"]["name"], o["metadata"], o["spec"]
        elif "template" in o.get("spec", {}) and "containers" in o["spec"]["template"].get("spec", {}):
            template = o["spec"]["template"]
            yield f"{o['kind']}/{o['metadata']['name']}", template["metadata"], template["spec"]


def first_secrets(found: tuple[Object, ...]) -> Mapping[str, Any] | None:
    """The plan of the Job that makes Secrets; None when there is nothing to make."""
    for o in found:
        if o["kind"] == "ConfigMap" and o["metadata"]["name"].endswith("-first-secrets"):
            plan: dict[str, Any] = json.loads(o["data"]["plan.json"])
            return plan
    return None
