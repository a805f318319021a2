"""What a path and a method ask for, and the documents by which clients discover resources."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.kubernetes.api_errors import NO_PAGE, NO_RESOURCE, Refused, not_found
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.kinds import VERBS, Kind
from tests.kubernetes.patches import at_path

Object = dict[str, Any]


@dataclass(frozen=True)
class Route:
    """A request's target."""

    kind: Kind
    namespace: str | None
    name: str
    subresource: str
    verb: str

    @property
    def resource(self) -> str:
        return f"{self.kind.plural}/{self.subresource}" if self.subresource else self.kind.plural


def route(cluster: Cluster, method: str, path: str, *, watch: bool) -> Route:
    """Take a path apart.

    Raises:
        Refused: 404 for what no resource is served under.

    """
    parts = path.strip("/").split("/")
    if parts[:2] == ["api", "v1"]:
        group, version, rest = "", "v1", parts[2:]
    elif parts[0] == "apis" and len(parts) > 3:
        group, version, rest = parts[1], parts[2], parts[3:]
    else:
        raise Refused(404, "", NO_PAGE)
    namespace = None
    if rest[0] == "namespaces" and len(rest) > 2 and rest[2] not in ("status", "finalize"):
        namespace, rest = rest[1], rest[2:]
    kind = cluster.kinds.get((group, version, rest[0]))
    if kind is None or (namespace is not None and not kind.namespaced) or len(rest) > 3:
        raise Refused(404, "", NO_PAGE) if group else Refused(404, "NotFound", NO_RESOURCE)
    name, subresource = [*rest[1:], "", ""][:2]
    if subresource and subresource not in kind.subresources:
        raise not_found(kind.full_name, name)
    verb = {"POST": "create", "PUT": "update", "PATCH": "patch"}.get(method)
    if method == "GET":
        verb = "get" if name else ("watch" if watch else "list")
    elif method == "DELETE":
        verb = "delete" if name else "deletecollection"
    if verb is None:
        raise Refused(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
    return Route(kind, namespace, name, subresource, verb)


def discovery(cluster: Cluster, path: str) -> Object | None:
    """`/version`, `/api`, `/apis` and what each version of a group holds; None for anything else."""
    parts = path.strip("/").split("/")
    if parts == ["version"]:
        return {"major": "1", "minor": "33", "gitVersion": "v1.33.0", "platform": "linux/amd64"}
    if parts == ["api"]:
        return {"kind": "APIVersions", "versions": ["v1"]}
    groups: dict[str, list[str]] = {}
    for group, version, _ in cluster.kinds:
        if group and version not in groups.setdefault(group, []):
            groups[group].append(version)
    if parts == ["apis"]:
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [_group(g, v) for g, v in groups.items()]}
    if parts[0] == "apis" and len(parts) == 2 and parts[1] in groups:
        return {"kind": "APIGroup", "apiVersion": "v1", **_group(parts[1], groups[parts[1]])}
    here = {("api", "v1"): ("", "v1")}.get(tuple(parts)) or (  # type: ignore[call-overload]
        (parts[1], parts[2]) if parts[0] == "apis" and len(parts) == 3 else None
    )
    kinds = [k for k in cluster.kinds.values() if here == (k.group, k.version)]
    if not kinds:
        return None
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": kinds[0].api_version,
        "resources": [entry for k in kinds for entry in _resources(k)],
    }


def _group(group: str, versions: list[str]) -> Object:
    named = [{"groupVersion": f"{group}/{v}", "version": v} for v in versions]
    return {"name": group, "versions": named, "preferredVersion": named[0]}


def _resources(kind: Kind) -> list[Object]:
    found: list[Object] = [
        {
            "name": kind.plural,
            "singularName": kind.kind.lower(),
            "namespaced": kind.namespaced,
            "kind": kind.kind,
            "verbs": list(VERBS),
            "shortNames": list(kind.short_names),
        }
    ]
    for subresource in kind.subresources:
        what = "Scale" if subresource == "scale" else kind.kind
        found.append(
            {
                "name": f"{kind.plural}/{subresource}",
                "singularName": "",
                "namespaced": kind.namespaced,
                "kind": what,
                "verbs": ["get", "patch", "update"],
            }
        )
    return found


def open_api(cluster: Cluster, path: str) -> Object | None:
    """As much of `/openapi/v3` as kubectl needs to learn that this server validates fields itself."""
    versions = {f"apis/{k.group}/{k.version}" if k.group else f"api/{k.version}" for k in cluster.kinds.values()}
    if path == "/openapi/v3":
        return {"paths": {v: {"serverRelativeURL": f"/openapi/v3/{v}?hash=1"} for v in sorted(versions)}}
    here = path.removeprefix("/openapi/v3/")
    if here not in versions:
        return None
    paths: Object = {}
    for kind in cluster.kinds.values():
        prefix = f"apis/{kind.group}/{kind.version}" if kind.group else f"api/{kind.version}"
        if prefix != here:
            continue
        where = (
            f"/{prefix}/namespaces/{{namespace}}/{kind.plural}/{{name}}"
            if kind.namespaced
            else f"/{prefix}/{kind.plural}/{{name}}"
        )
        paths[where] = {"patch": {
            "parameters": [{"name": n, "in": "query"} for n in ("fieldValidation", "dryRun", "fieldManager", "force")],
            "x-kubernetes-action": "patch",
            "x-kubernetes-group-version-kind": {"group": kind.group, "version": kind.version, "kind": kind.kind},
        }}  # fmt: skip
    return {"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": "v1.33.0"}, "paths": paths}


def table(kind: Kind, objects: list[Object], age: Any) -> Object:
    """What `kubectl get` prints: the columns of the resource's definition."""
    columns = [{"name": "Name", "type": "string", "format": "name", "description": "", "priority": 0}]
    extra = kind.columns or ({"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},)
    columns += [
        {"name": c["name"], "type": c["type"], "format": c.get("format", ""), "description": c.get("description", ""),
         "priority": c.get("priority", 0)}
        for c in extra
    ]  # fmt: skip
    rows = []
    for found in objects:
        cells = [found["metadata"]["name"]]
        for column in extra:
            value = at_path(found, column["jsonPath"])
            cells.append(age(value) if column["type"] == "date" and value is not None else value)
        rows.append({"cells": cells, "object": {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
                                                "metadata": found["metadata"]}})  # fmt: skip
    return {"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {}, "columnDefinitions": columns, "rows": rows}


def scale_of(kind: Kind, found: Object) -> Object:
    """The `scale` subresource of an object."""
    paths = kind.scale or {}
    selector = at_path(found, paths["labelSelectorPath"]) if "labelSelectorPath" in paths else None
    replicas = at_path(found, paths["statusReplicasPath"]) or 0
    status = {"replicas": replicas, **({"selector": selector} if selector else {})}
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {k: found["metadata"][k] for k in ("name", "namespace", "uid", "resourceVersion")},
        "spec": {"replicas": at_path(found, paths["specReplicasPath"]) or 0},
        "status": status,
    }
