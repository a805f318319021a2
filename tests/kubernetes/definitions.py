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


OPEN: Object = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
TEXT: Object = {"type": "string"}
TEXTS: Object = {"type": "object", "additionalProperties": TEXT}


def _whole(**more: Any) -> Object:
    return {"type": "integer", "format": "int32", **more}


def _fields(**properties: Object) -> Object:
    return {"type": "object", "properties": properties}


RAY_CLUSTER = _fields(
    rayVersion=TEXT,
    enableInTreeAutoscaling={"type": "boolean"},
    suspend={"type": "boolean"},
    authOptions=_fields(mode={**TEXT, "enum": ["disabled", "token"]}, secretName=TEXT),
    autoscalerOptions=_fields(
        version={**TEXT, "enum": ["v1", "v2"]},
        idleTimeoutSeconds=_whole(),
        upscalingMode={**TEXT, "enum": ["Default", "Aggressive", "Conservative"]},
        resources=OPEN,
        securityContext=OPEN,
    ),
    gcsFaultToleranceOptions=_fields(
        redisAddress=TEXT, externalStorageNamespace=TEXT, redisPassword=_fields(value=TEXT, valueFrom=OPEN)
    ),
    headGroupSpec=_fields(rayStartParams=TEXTS, template=OPEN),
    workerGroupSpecs={
        "type": "array",
        "items": {
            **_fields(
                groupName=TEXT,
                replicas=_whole(default=0),
                minReplicas=_whole(default=0),
                maxReplicas=_whole(default=2147483647),
                numOfHosts=_whole(default=1),
                rayStartParams=TEXTS,
                template=OPEN,
                scaleStrategy=_fields(workersToDelete={"type": "array", "items": TEXT}),
            ),
            "required": ["groupName"],
        },
    },
)
"""`rayClusterConfig` as far as anything of ours writes it, after KubeRay 1.6's types; pod templates are left open."""

RAY_SERVICES = definition(
    "ray.io",
    "rayservices",
    "RayService",
    _fields(
        spec={
            **_fields(
                serveConfigV2=TEXT,
                upgradeStrategy=_fields(type=TEXT),
                rayClusterDeletionDelaySeconds=_whole(minimum=0),
                excludeHeadPodFromServeSvc={"type": "boolean"},
                rayClusterConfig={**RAY_CLUSTER, "required": ["headGroupSpec"]},
            ),
            "required": ["rayClusterConfig"],
        },
        status=OPEN,
    ),
)
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
