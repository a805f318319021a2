"""What the chart grants suffices for what its accounts do, and for nothing beside it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import kubernetes
import pytest
from kubernetes.client.exceptions import ApiException

from rollout.operator.first_secrets import ClusterSecrets, Plan, bring_about
from rollout.operator.leader_label import LABEL, ClusterPods, LeaderLabel
from tests.kubernetes.server import ApiServer
from tests.unit.helm.charts import first_secrets, objects

FOUND = objects({"postgresql": {"enabled": True}, "watchNamespaces": ["team-a"]})


@pytest.fixture
def granted(api: ApiServer) -> Iterator[ApiServer]:
    for name in ("models", "team-a"):
        api.cluster.create("namespaces", None, {"metadata": {"name": name}})
    api.grant(dict(found) for found in FOUND)
    return api


def core(api: ApiServer, account: str) -> Any:
    configuration = kubernetes.client.Configuration(host=api.url)
    configuration.api_key = {"BearerToken": f"Bearer system:serviceaccount:models:{account}"}
    configuration.retries = False
    return kubernetes.client.CoreV1Api(kubernetes.client.ApiClient(configuration))


def start_pod(api: ApiServer, name: str) -> None:
    labels = {"app.kubernetes.io/component": "controller", "app.kubernetes.io/instance": "r"}
    body = {"metadata": {"name": name, "labels": labels}, "spec": {"containers": [{"name": "controller"}]}}
    api.cluster.create("pods", "models", body)


def test_the_job_makes_its_secrets_once_and_can_read_no_other(granted: ApiServer) -> None:
    plan = Plan.model_validate(first_secrets(FOUND))
    client = core(granted, "r-first-secrets")
    secrets = ClusterSecrets(client, plan.labels)
    bring_about(plan, secrets)
    made = {(s["metadata"]["namespace"], s["metadata"]["name"]) for s in granted.cluster.list("secrets", None)}
    assert made == {("models", s.name) for s in plan.secrets} | {("team-a", "r-ray-token")}
    store = secrets.read("models", "r-store")
    assert store is not None
    assert store["url"] == f"postgresql://tidegate:{store['password']}@r-postgresql.models.svc:5432/tidegate"
    writes = len(granted.writes())
    bring_about(plan, secrets)
    assert len(granted.writes()) == writes, "an upgrade leaves complete Secrets alone"

    for do in (
        lambda: client.read_namespaced_secret("somebody-elses", "models"),
        lambda: client.list_namespaced_secret("models"),
        lambda: client.read_namespaced_secret("r-control", "elsewhere"),
        lambda: client.delete_namespaced_secret("r-control", "models"),
    ):
        with pytest.raises(ApiException) as refused:
            do()
        assert refused.value.status == 403


def test_the_leader_labels_its_pod_with_the_controllers_rights(granted: ApiServer) -> None:
    for name in ("r-controller-1", "r-controller-2"):
        start_pod(granted, name)
    client = core(granted, "r-controller")
    first, second = (
        LeaderLabel(ClusterPods(client, "models", "r"), name, lambda: True)
        for name in ("r-controller-1", "r-controller-2")
    )

    def labelled() -> set[str]:
        pods = granted.cluster.list("pods", "models")
        return {p["metadata"]["name"] for p in pods if p["metadata"]["labels"].get(LABEL) == "true"}

    assert first.settle(leads=True)
    assert labelled() == {"r-controller-1"}
    assert second.settle(leads=True)
    assert labelled() == {"r-controller-2"}
    assert first.settle(leads=False)
    assert labelled() == {"r-controller-2"}, "a follower touches itself only"
    for account in ("r-gateway", "r-engine", "r-data"):
        pods = ClusterPods(core(granted, account), "models", "r")
        assert not LeaderLabel(pods, "r-controller-1", lambda: True).settle(leads=True)
    assert labelled() == {"r-controller-2"}


def test_with_the_api_server_away_the_label_waits_and_comes_back(granted: ApiServer) -> None:
    start_pod(granted, "c")
    label = LeaderLabel(ClusterPods(core(granted, "r-controller"), "models", "r"), "c", lambda: True)
    with granted.away():
        assert not label.settle(leads=True)
    assert label.settle(leads=True)
