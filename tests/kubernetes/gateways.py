"""A simulated Gateway controller and EndpointSlices as Kubernetes writes them, over the stand-in's cluster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.kubernetes.cluster import Cluster, Write

Object = dict[str, Any]

STATUS = Write(manager="gateway-controller", subresource="status")


def a_route(name: str, parents: Sequence[str] = ("public",)) -> Object:
    """A route as its owner wrote it: hosts, one rule, and a backend that is only there for the beginning."""
    rule = {
        "matches": [{"path": {"type": "PathPrefix", "value": "/"}}],
        "timeouts": {"request": "600s"},
        "backendRefs": [{"name": "placeholder", "port": 80}],
    }
    spec = {"parentRefs": [{"name": p} for p in parents], "hostnames": ["chat.example.com"], "rules": [rule]}
    return {"metadata": {"name": name}, "spec": spec}


def take_routes(cluster: Cluster, refused: str = "") -> None:
    """Let every Gateway take the routes as they are now, or refuse them for this reason."""
    for route in cluster.list("httproutes"):
        meta = route["metadata"]
        conditions = [
            {
                "type": kind,
                "status": "False" if refused and kind == "ResolvedRefs" else "True",
                "reason": refused if refused and kind == "ResolvedRefs" else kind,
                "message": "Service does not exist" if refused else "",
                "observedGeneration": meta["generation"],
            }
            for kind in ("Accepted", "ResolvedRefs")
        ]
        parents = [
            {"parentRef": p, "controllerName": "tests.dev/gateway", "conditions": conditions}
            for p in route["spec"]["parentRefs"]
        ]
        body = {**route, "status": {"parents": parents}}
        cluster.update(cluster.kind("httproutes"), meta["namespace"], meta["name"], body, STATUS)


def an_endpoint_slice(service: str, pods: Sequence[str], *, ready: bool = True, port: int = 8000) -> Object:
    """What the control plane writes for a Service with these pods."""
    endpoints = [
        {
            "addresses": [f"10.0.0.{index + 1}"],
            "conditions": {"ready": ready, "serving": ready, "terminating": False},
            "targetRef": {"kind": "Pod", "name": pod, "namespace": "default", "uid": f"uid-{pod}"},
        }
        for index, pod in enumerate(pods)
    ]
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": f"{service}-abcde", "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{"name": "http", "port": port, "protocol": "TCP"}],
    }
