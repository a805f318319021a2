"""The resources that a cluster has of its own, and those that a CustomResourceDefinition adds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")


@dataclass(frozen=True)
class Kind:
    """One resource of one API version."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True
    short_names: tuple[str, ...] = ()
    subresources: tuple[str, ...] = ()
    counts_generations: bool = False
    schema: dict[str, Any] | None = field(default=None, compare=False)
    """The structural schema of a custom resource; None means: whatever is sent is kept."""
    columns: tuple[dict[str, Any], ...] = field(default=(), compare=False)
    scale: dict[str, str] | None = field(default=None, compare=False)
    custom: bool = False
    storage_version: str | None = None

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def key(self) -> tuple[str, str]:
        """What objects are stored under: versions of one resource share their objects."""
        return (self.group, self.plural)

    @property
    def full_name(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def full_kind(self) -> str:
        return f"{self.kind}.{self.group}" if self.group else self.kind

    @property
    def has_status(self) -> bool:
        return "status" in self.subresources


def _kind(
    api: str, plural: str, kind: str, *short: str, spec: bool = True, status: bool = False, namespaced: bool = True
) -> Kind:
    group, _, version = api.rpartition("/")
    subresources = ("status",) if status else ()
    if kind in ("Deployment", "StatefulSet"):
        subresources += ("scale",)
    if kind == "Pod":
        subresources += ("portforward",)
    return Kind(
        group, version, plural, kind, namespaced, short, subresources, counts_generations=spec,
        scale={"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"}
        if "scale" in subresources else None,
    )  # fmt: skip


BUILT_IN: tuple[Kind, ...] = (
    _kind("v1", "namespaces", "Namespace", "ns", spec=False, status=True, namespaced=False),
    _kind("v1", "nodes", "Node", "no", spec=False, status=True, namespaced=False),
    _kind("v1", "pods", "Pod", "po", status=True),
    _kind("v1", "services", "Service", "svc", spec=False, status=True),
    _kind("v1", "configmaps", "ConfigMap", "cm", spec=False),
    _kind("v1", "secrets", "Secret", spec=False),
    _kind("v1", "events", "Event", "ev", spec=False),
    _kind("v1", "serviceaccounts", "ServiceAccount", "sa", spec=False),
    _kind("v1", "persistentvolumeclaims", "PersistentVolumeClaim", "pvc", spec=False, status=True),
    _kind("apps/v1", "deployments", "Deployment", "deploy", status=True),
    _kind("apps/v1", "statefulsets", "StatefulSet", "sts", status=True),
    _kind("batch/v1", "jobs", "Job", status=True),
    _kind("coordination.k8s.io/v1", "leases", "Lease", spec=False),
    _kind("discovery.k8s.io/v1", "endpointslices", "EndpointSlice", spec=False),
    _kind("policy/v1", "poddisruptionbudgets", "PodDisruptionBudget", "pdb", status=True),
    _kind("scheduling.k8s.io/v1", "priorityclasses", "PriorityClass", "pc", spec=False, namespaced=False),
    _kind("rbac.authorization.k8s.io/v1", "roles", "Role", spec=False),
    _kind("rbac.authorization.k8s.io/v1", "rolebindings", "RoleBinding", spec=False),
    _kind("rbac.authorization.k8s.io/v1", "clusterroles", "ClusterRole", spec=False, namespaced=False),
    _kind("rbac.authorization.k8s.io/v1", "clusterrolebindings", "ClusterRoleBinding", spec=False, namespaced=False),
    _kind(
        "apiextensions.k8s.io/v1",
        "customresourcedefinitions",
        "CustomResourceDefinition",
        "crd",
        "crds",
        status=True,
        namespaced=False,
    ),
)


def kinds_of_definition(definition: dict[str, Any]) -> list[Kind]:
    """What a CustomResourceDefinition makes known."""
    spec = definition["spec"]
    names = spec["names"]
    stored = next(v["name"] for v in spec["versions"] if v.get("storage"))
    found = []
    for version in spec["versions"]:
        if not version.get("served"):
            continue
        subresources = version.get("subresources") or {}
        found.append(
            Kind(
                group=spec["group"],
                version=version["name"],
                plural=names["plural"],
                kind=names["kind"],
                namespaced=spec["scope"] == "Namespaced",
                short_names=tuple(names.get("shortNames") or ()),
                subresources=tuple(subresources),
                counts_generations=True,
                schema=version["schema"]["openAPIV3Schema"],
                columns=tuple(version.get("additionalPrinterColumns") or ()),
                scale=subresources.get("scale"),
                custom=True,
                storage_version=stored,
            )
        )
    return found
