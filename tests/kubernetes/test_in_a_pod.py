"""As in a pod: the service account's files, HTTPS with the cluster's own authority, the chart's rights, and no more."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from kubernetes.config import incluster_config

from rollout.cluster_api import connected
from rollout.operator.api import Address, ResourceApi
from rollout.operator.crd import definition
from rollout.operator.election import Election
from rollout.operator.leader_label import LABEL, leader_label
from rollout.operator.names import API_VERSION, KIND
from rollout.operator.watcher import Watcher
from tests.kubernetes.cluster import Write
from tests.kubernetes.rig import ACCOUNT, NAMESPACE
from tests.kubernetes.server import ApiServer
from tests.unit.helm.charts import objects

pytestmark = pytest.mark.integration

POD = "r-controller-0"


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    authority = trustme.CA()
    with ApiServer(authority=authority) as api:
        (tmp_path / "token").write_text(ACCOUNT)
        authority.cert_pem.write_to_path(tmp_path / "ca.crt")
        monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
        monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(api.port))
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
        api.cluster.create("customresourcedefinitions", None, definition())
        api.cluster.create("namespaces", None, {"metadata": {"name": NAMESPACE}})
        api.grant(dict(found) for found in objects())
        labels = {"app.kubernetes.io/component": "controller", "app.kubernetes.io/instance": "r"}
        api.cluster.create("pods", NAMESPACE, {"metadata": {"name": POD, "labels": labels}})
        yield api


async def test_everything_that_a_controller_asks_is_asked_as_its_account(cluster: ApiServer) -> None:
    seen: asyncio.Queue[tuple[str, str]] = asyncio.Queue()

    def changed(body: Any, gone: bool) -> None:
        seen.put_nowait((body["metadata"]["name"], "gone" if gone else "there"))

    watcher = Watcher(
        address=Address(),
        namespaces=(NAMESPACE,),
        listed=lambda bodies, unseen: seen.put_nowait((f"{len(bodies)} listed", f"{len(unseen)} unseen")),
        changed=changed,
    )
    watching = asyncio.create_task(watcher.run())
    try:
        async with asyncio.timeout(20):
            assert await seen.get() == ("0 listed", "0 unseen")
            body = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "chat"}}
            body["spec"] = {"model": "chat", "version": "1.0.0"}  # type: ignore[assignment]
            kind = cluster.cluster.kind(KIND)
            cluster.cluster.apply(kind, NAMESPACE, "chat", body, Write("kubectl"))
            assert await seen.get() == ("chat", "there")
            cluster.cluster.delete(KIND, NAMESPACE, "chat")
            while await seen.get() != ("chat", "gone"):
                continue
    finally:
        watching.cancel()
    configuration = Address().configuration()
    election = Election(
        ResourceApi(configuration), namespace=NAMESPACE, name="r-controller", holder=POD, clock=lambda: 1e6,
        monotonic=lambda: 1e6,
    )  # fmt: skip
    await asyncio.wait_for(election.elected(), 10)
    label = leader_label(configuration, namespace=NAMESPACE, release="r", me=POD, leads=lambda: True)
    assert await asyncio.to_thread(label.settle, leads=True)
    assert cluster.cluster.get("pods", NAMESPACE, POD)["metadata"]["labels"][LABEL] == "true"
    api = connected(Address().configuration())
    assert await api.every(f"/api/v1/namespaces/{NAMESPACE}/pods")
    api.close()
    assert {a.user for a, _ in cluster.asked if a.resource} == {ACCOUNT}
    assert [a for a, code in cluster.asked if code == 403] == []
