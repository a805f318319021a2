"""What the operator writes where it finds the cluster other than it would have left it.

A definition that is older than the operator, since Helm upgrades none by itself; a resource that a backup brought
back.
"""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from rollout.errors import ClusterConflict, UndeclaredFields
from rollout.operator.api import ResourceApi
from rollout.operator.crd import definition
from rollout.operator.names import API_VERSION, FINALIZER, KIND
from rollout.operator.resource import Key, Resource, read_resource
from rollout.operator.writer import UNDECLARED_S, ApiWriter
from tests.kubernetes.cluster import Write
from tests.kubernetes.rig import NAMESPACE, address
from tests.kubernetes.server import ApiServer

pytestmark = pytest.mark.integration

STATUS = {"phase": "Healthy", "stable": "1.0.0", "handledWish": "abc"}
BODY = {
    "apiVersion": API_VERSION,
    "kind": KIND,
    "metadata": {"name": "chat"},
    "spec": {"model": "chat", "version": "1"},
}


class Older:
    """A cluster whose definition lacks `status.handledWish`, and a writer with a clock of the test's own."""

    def __init__(self, api: ApiServer, folder: Path) -> None:
        self.cluster, self.now = api.cluster, 1_000_000.0
        older = copy.deepcopy(definition())
        del older["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"][
            "handledWish"
        ]
        self.cluster.create("customresourcedefinitions", None, older)
        self.cluster.create("namespaces", None, {"metadata": {"name": NAMESPACE}})
        self.cluster.apply(self.cluster.kind(KIND), NAMESPACE, "chat", BODY, Write("kubectl"))
        self.api = ResourceApi(address(api, folder, "admin").configuration())
        self.writer = ApiWriter(self.api, instance="pod", clock=lambda: self.now)

    @property
    def resource(self) -> Resource:
        return read_resource(self.cluster.get(KIND, NAMESPACE, "chat"))


@pytest.fixture
def older(api: ApiServer, tmp_path: Path) -> Older:
    return Older(api, tmp_path)


async def test_the_status_is_told_without_what_the_definition_does_not_know(older: Older) -> None:
    for _ in range(2):
        written = await older.writer.write_status(older.resource, STATUS)
        assert written["status"] == {"phase": "Healthy", "stable": "1.0.0"}
        assert older.writer.undeclared == {"handledWish"}
    newer = {**definition(), "metadata": {**definition()["metadata"]}}
    older.cluster.apply(older.cluster.kind("customresourcedefinitions"), None, newer["metadata"]["name"], newer,
                        Write("kubectl"), force=True)  # fmt: skip
    older.now += UNDECLARED_S + 1
    assert (await older.writer.write_status(older.resource, STATUS))["status"] == STATUS


def test_a_wish_that_the_definition_does_not_know_is_told_with_the_way_out(older: Older) -> None:
    key = Key(NAMESPACE, "chat")
    with pytest.raises(UndeclaredFields, match=r"apply --server-side -f helm/tidegate/crds/") as told:
        older.api.apply(key, {"spec": {**BODY["spec"], "newer": 1, "engine": {"also": 2}}}, manager="tidegate")  # type: ignore[dict-item]
    assert told.value.fields == {"newer", "engine"}


async def test_a_finalizer_that_somebody_else_owns_too_is_taken_off(older: Older) -> None:
    """A restored backup owns all that it wrote, so leaving the finalizer out of an apply takes nothing off."""
    restored = {**BODY, "metadata": {"name": "back", "finalizers": ["other.dev/keeps", FINALIZER]}}
    older.cluster.create(older.cluster.kind(KIND), NAMESPACE, restored, Write("velero"))
    older.cluster.delete(KIND, NAMESPACE, "back")
    found = read_resource(older.cluster.get(KIND, NAMESPACE, "back"))
    body = await older.writer.hold(found, held=False)
    assert body["metadata"]["finalizers"] == ["other.dev/keeps"]


async def test_a_resource_that_was_made_anew_gets_nothing_of_the_one_before(api: ApiServer, tmp_path: Path) -> None:
    """An API server does not look at a status's uid, and calls that of any other patch a wrong field."""
    api.cluster.create("customresourcedefinitions", None, definition())
    api.cluster.create("namespaces", None, {"metadata": {"name": NAMESPACE}})
    kind = api.cluster.kind(KIND)
    before = read_resource(api.cluster.apply(kind, NAMESPACE, "chat", BODY, Write("kubectl")))
    api.cluster.delete(KIND, NAMESPACE, "chat")
    after = api.cluster.apply(kind, NAMESPACE, "chat", BODY, Write("kubectl"))
    writer = ApiWriter(ResourceApi(address(api, tmp_path, "admin").configuration()), instance="pod", clock=lambda: 1e6)
    with pytest.raises(ClusterConflict):
        await writer.write_status(before, STATUS)
    for held in (True, False):
        with pytest.raises(ClusterConflict, match="field is immutable"):
            await writer.hold(before, held=held)
    assert api.cluster.get(KIND, NAMESPACE, "chat") == after
    assert (await writer.write_status(read_resource(after), STATUS))["status"] == STATUS
