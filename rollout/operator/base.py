"""What the operator needs of a cluster: three writes, each of which may be repeated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from rollout.operator.resource import Resource
from rollout.operator.telling import Note


class ResourceWriter(Protocol):
    """Writes to ModelDeployments.

    Raises:
        ClusterUnavailable: (each of them) it may be done or not; ask again.
        ClusterConflict: the resource is another one than was read.
        ClusterRejected: the API server does not accept it; asking again does not help by itself.
        ResourceGone: there is no such resource.

    """

    @property
    def undeclared(self) -> frozenset[str]:
        """Fields of the status that the definition in the cluster does not know, and that are left out therefore."""
        ...

    async def write_status(self, resource: Resource, status: Mapping[str, Any]) -> Mapping[str, Any]:
        """Let the status be this; returns the resource as it is then."""
        ...

    async def hold(self, resource: Resource, *, held: bool) -> Mapping[str, Any]:
        """Put our finalizer on the resource, or take it off; returns the resource as it is then."""
        ...

    async def post(self, resource: Resource, note: Note) -> None:
        """Post an Event about it. The same one again is not posted twice."""
        ...
