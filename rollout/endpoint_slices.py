"""What the EndpointSlices of a Service say: which of its pods get requests. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

SERVICE_NAME = "kubernetes.io/service-name"


def slices_path(namespace: str) -> str:
    """The path of a namespace's slices."""
    return f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"


def ready_addresses(slices: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """The addresses that get requests, over all slices; `ready` left out means that they do."""
    return frozenset(address for endpoint in _ready(slices) for address in endpoint.get("addresses") or ())


def ready_pods(slices: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """The names of the pods that get requests."""
    named = (endpoint.get("targetRef") or {} for endpoint in _ready(slices))
    return frozenset(str(ref["name"]) for ref in named if ref.get("kind") == "Pod" and ref.get("name"))


def _ready(slices: Iterable[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
    for part in slices:
        for endpoint in part.get("endpoints") or ():
            if (endpoint.get("conditions") or {}).get("ready") is not False:
                yield endpoint
