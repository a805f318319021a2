"""CustomResourceDefinitions for tests: a small one of this folder's own, and bare ones of other projects."""

from __future__ import annotations

from typing import Any

Object = dict[str, Any]


def definition(
    group: str, plural: str, kind: str, schema: Object | None = None, version: str = "v1", **version_fields: Any
) -> Object:
    """A definition of one version; without a schema everything is kept as it is sent."""
    open_schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"plural": plural, "singular": kind.lower(), "kind": kind},
            "versions": [
                {
                    "name": version,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": schema or open_schema},
                    "subresources": {"status": {}},
                    **version_fields,
                }
            ],
        },
    }


RAY_SERVICES = definition("ray.io", "rayservices", "RayService")
RAY_CLUSTERS = definition("ray.io", "rayclusters", "RayCluster")
HTTP_ROUTES = definition("gateway.networking.k8s.io", "httproutes", "HTTPRoute")

GATES = definition(
    "tests.dev",
    "gates",
    "Gate",
    {
        "type": "object",
        "required": ["spec"],
        "properties": {
            "spec": {
                "type": "object",
                "required": ["width"],
                "x-kubernetes-validations": [
                    {
                        "rule": "self.width >= self.least",
                        "messageExpression": "'width ' + string(self.width) + ' is less'",
                    }
                ],
                "properties": {
                    "width": {"type": "integer", "minimum": 1},
                    "least": {"type": "integer", "default": 2},
                    "share": {"x-kubernetes-int-or-string": True, "pattern": "^[0-9.]+$"},
                    "locks": {
                        "type": "array",
                        "maxItems": 8,
                        "x-kubernetes-list-type": "map",
                        "x-kubernetes-list-map-keys": ["name"],
                        "items": {
                            "type": "object",
                            "required": ["name"],
                            "properties": {"name": {"type": "string"}, "depth": {"type": "integer"}},
                        },
                    },
                },
            },
            "status": {
                "type": "object",
                "properties": {"open": {"type": "boolean"}, "replicas": {"type": "integer"}},
            },
        },
    },
    subresources={
        "status": {},
        "scale": {"specReplicasPath": ".spec.width", "statusReplicasPath": ".status.replicas"},
    },
    additionalPrinterColumns=[{"name": "Width", "type": "integer", "jsonPath": ".spec.width"}],
)
