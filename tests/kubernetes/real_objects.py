"""The objects of a real API server behind the words of the stand-in's `Cluster`, so that what simulates KubeRay and
kubelets over the one does so over the other.
"""

from __future__ import annotations

from typing import Any

import httpx

from tests.kubernetes.api_errors import Refused
from tests.kubernetes.cluster import Write
from tests.kubernetes.kinds import BUILT_IN, Kind, kinds_of_definition

Object = dict[str, Any]

APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
MORE: tuple[Kind, ...] = (
    Kind("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy"),
    Kind("scheduling.k8s.io", "v1", "priorityclasses", "PriorityClass", namespaced=False),
)


class RealObjects:
    """Reads and writes by an administrator; what is refused is raised as the stand-in raises it."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client
        self._kinds = [*BUILT_IN, *MORE]

    def close(self) -> None:
        self._client.close()

    def kind(self, name: str | Kind) -> Kind:
        """By its plural or its kind's name."""
        if isinstance(name, Kind):
            return name
        return next(k for k in self._kinds if name in (k.plural, k.kind))

    def _path(self, kind: Kind, namespace: str | None, name: str = "", subresource: str = "") -> str:
        base = f"/apis/{kind.api_version}" if kind.group else f"/api/{kind.version}"
        where = f"/namespaces/{namespace}" if kind.namespaced and namespace else ""
        return (
            base + where + f"/{kind.plural}" + (f"/{name}" if name else "") + (f"/{subresource}" if subresource else "")
        )

    def _ask(
        self, method: str, path: str, body: Object | None = None, content_type: str = "application/json", **query: str
    ) -> Object:
        headers = {"Content-Type": content_type}
        answer = self._client.request(method, path, json=body, params=query, headers=headers)
        found: Object = answer.json()
        if answer.status_code >= 300:
            raise Refused(
                answer.status_code, found.get("reason", ""), found.get("message", ""), **(found.get("details") or {})
            )
        return found

    # -- reading --

    def get(self, kind: Kind | str, namespace: str | None, name: str) -> Object:
        return self._ask("GET", self._path(self.kind(kind), namespace, name))

    def find(self, kind: Kind | str, namespace: str | None, name: str) -> Object | None:
        try:
            return self.get(kind, namespace, name)
        except Refused as refused:
            if refused.code == 404:
                return None
            raise

    def list(self, kind: Kind | str, namespace: str | None = None, labels: str = "") -> list[Object]:
        found = self.kind(kind)
        query = {"labelSelector": labels} if labels else {}
        items = self._ask("GET", self._path(found, namespace), **query)["items"]
        return [{"apiVersion": found.api_version, "kind": found.kind, **item} for item in items]

    # -- writing --

    def create(self, kind: Kind | str, namespace: str | None, body: Object, write: Write | None = None) -> Object:
        found = self.kind(kind)
        body = {"apiVersion": found.api_version, "kind": found.kind, **body}
        write = write or Write("tests")
        made = self._ask("POST", self._path(found, namespace), body, fieldManager=write.manager)
        if found.plural == "customresourcedefinitions":
            self._kinds = [*kinds_of_definition(body), *self._kinds]
        return made

    def apply(
        self, kind: Kind | str, namespace: str | None, name: str, body: Object, write: Write, *, force: bool = False
    ) -> Object:
        query = {"fieldManager": write.manager, "force": str(force).lower()}
        return self._ask("PATCH", self._path(self.kind(kind), namespace, name, write.subresource), body, APPLY, **query)

    def merge(self, kind: Kind | str, namespace: str | None, name: str, patch: Object) -> Object:
        return self._ask("PATCH", self._path(self.kind(kind), namespace, name), patch, MERGE)

    def update(self, kind: Kind, namespace: str | None, name: str, body: Object, write: Write) -> Object:
        if kind.plural == "pods" and not write.subresource:
            return self._update_pod(kind, str(namespace), name, body, write)
        return self._put(kind, namespace, name, body, write)

    def _put(self, kind: Kind, namespace: str | None, name: str, body: Object, write: Write) -> Object:
        path = self._path(kind, namespace, name, write.subresource)
        return self._ask("PUT", path, body, fieldManager=write.manager)

    def _update_pod(self, kind: Kind, namespace: str, name: str, body: Object, write: Write) -> Object:
        """A pod comes to its node by a binding, and goes when its kubelet deletes it without grace."""
        node = body["spec"].get("nodeName")
        live = self.get(kind, namespace, name)
        if node and not live["spec"].get("nodeName"):
            target = {"apiVersion": "v1", "kind": "Node", "name": node}
            binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": target}
            self._ask("POST", self._path(kind, namespace, name, "binding"), binding)
            return self.get(kind, namespace, name)
        done = self._put(kind, namespace, name, body, write)
        if done["metadata"].get("deletionTimestamp"):
            self._ask("DELETE", self._path(kind, namespace, name), gracePeriodSeconds="0")
        return done

    def delete(self, kind: Kind | str, namespace: str | None, name: str) -> Object:
        return self._ask("DELETE", self._path(self.kind(kind), namespace, name))
