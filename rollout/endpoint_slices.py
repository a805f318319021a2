"""What the EndpointSlices of a Service say: which of its pods get requests. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

SERVICE_NAME = "kubernetes.io/service-name"


def slices_path(namespace: str) -> str:
    """The path of a namespace's slices."""
    return f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"


def ready_addresses(slices: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """An address of each pod that gets requests; `ready` left out means that it does.

    A Service of two families of addresses has slices of each, with the same pods: IPv4 counts where there is any.

    >>> six = {"addressType": "IPv6", "endpoints": [{"addresses": ["fd00::1"]}]}
    >>> four = {"addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}]}
    >>> sorted(ready_addresses([six, four])), sorted(ready_addresses([six]))
    (['10.0.0.1'], ['fd00::1'])
    """
    listed = list(slices)
    first = [part for part in listed if part.get("addressType") == "IPv4" and part.get("endpoints")]
    return frozenset(a for endpoint in _ready(first or listed) for a in (endpoint.get("addresses") or ())[:1])


def ready_pods(slices: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """The names of the pods that get requests."""
    named = (endpoint.get("targetRef") or {} for endpoint in _ready(slices))
    return frozenset(str(ref["name"]) for ref in named if ref.get("kind") == "Pod" and ref.get("name"))


def _ready(slices: Iterable[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
    for part in slices:
        for endpoint in part.get("endpoints") or ():
            if (endpoint.get("conditions") or {}).get("ready") is not False:
                yield endpoint
