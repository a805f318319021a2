"""What `helm uninstall` asks first: by the chart's own order and rights, against the stand-in of the API server."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import kubernetes
import pytest

from rollout.errors import ClusterRejected
from rollout.operator.api import ResourceApi
from rollout.operator.names import API_VERSION, FINALIZER, KIND
from rollout.operator.uninstall import Mode, Order, Uninstall, main
from tests.kubernetes.cluster import Write
from tests.kubernetes.patches import merge_patch
from tests.kubernetes.rig import NAMESPACE, prepared
from tests.kubernetes.server import ApiServer
from tests.unit.helm.charts import Object, objects, one, render

TEAMS = {"watchNamespaces": ["team"]}


def order_of(found: tuple[Object, ...]) -> Order:
    """What the chart's Job is told."""
    command = one(found, "Job", "r-uninstall")["spec"]["template"]["spec"]["containers"][0]["command"]
    assert command[:3] == ["python", "-m", "rollout.operator.uninstall"]
    return Order.model_validate_json(command[3])


class Rig:
    """A cluster with a release's rights, the hook, and time."""

    def __init__(self, api: ApiServer, values: dict[str, Any]) -> None:
        self.api, self.now, self.said = api, 0.0, list[str]()
        self.while_waiting: Callable[[], None] = lambda: None
        found = objects(values)
        self.order = order_of(found)
        prepared(api, found)
        api.cluster.create("namespaces", None, {"metadata": {"name": "team"}})
        configuration = kubernetes.client.Configuration(host=api.url)
        configuration.api_key = {"BearerToken": f"Bearer system:serviceaccount:{NAMESPACE}:r-uninstall"}
        configuration.retries = False
        self.resources = ResourceApi(configuration)

    def model(self, name: str, namespace: str = NAMESPACE, *, held: bool = True) -> None:
        body = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {"name": name, "finalizers": [FINALIZER] if held else []},
            "spec": {"model": name, "version": "1.0.0"},
        }
        self.api.cluster.create(KIND, namespace, body)

    def let_go(self) -> None:
        """What a controller does when a model is drained."""
        cluster = self.api.cluster
        none = {"metadata": {"finalizers": None}}
        for found in cluster.list(KIND):
            if "deletionTimestamp" in found["metadata"]:
                at = (found["metadata"]["namespace"], found["metadata"]["name"])
                cluster.patch(cluster.kind(KIND), *at, lambda o: merge_patch(o, none), Write("controller"))

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.while_waiting()

    def run(self) -> int:
        hook = Uninstall(self.resources, say=self.said.append, monotonic=lambda: self.now, sleep=self.sleep)
        return hook.run(self.order)


@pytest.fixture
def rig(api: ApiServer) -> Rig:
    return Rig(api, TEAMS)


@pytest.fixture
def draining(api: ApiServer) -> Rig:
    return Rig(api, {**TEAMS, "uninstall": {"modelDeployments": "drain", "withinSeconds": 60}})


def test_it_is_refused_while_a_model_is_served_and_goes_on_when_none_is(rig: Rig) -> None:
    assert (rig.order.mode, set(rig.order.namespaces)) == (Mode.REFUSE, {NAMESPACE, "team"})
    rig.model("free", held=False)  # nobody has to let it go
    assert rig.run() == 0
    rig.model("chat")
    rig.model("code", "team")
    assert rig.run() == 1
    (told,) = rig.said[1:]
    assert "2 ModelDeployments are still served (models/chat, team/code)" in told
    assert "kubectl delete mdep --all -n models && kubectl delete mdep --all -n team" in told
    assert not rig.api.writes()
    assert rig.now == 0.0, "it says so at once"


def test_what_another_release_serves_too_is_not_to_be_deleted_for_it(api: ApiServer) -> None:
    rig = Rig(api, {**TEAMS, "sharedNamespaces": True})
    rig.model("chat")
    assert rig.run() == 1
    (told,) = rig.said
    assert "helm uninstall --no-hooks` leaves that to it" in told
    assert "--all" not in told


def test_with_drain_they_are_deleted_once_and_waited_for(draining: Rig) -> None:
    draining.model("chat")
    draining.model("code", "team")
    looks = iter([lambda: None, lambda: None, draining.let_go])
    draining.while_waiting = lambda: next(looks)()
    assert draining.run() == 0
    assert len(draining.api.writes()) == 2
    assert draining.api.cluster.list(KIND) == []
    assert draining.said[:2] == ["draining models/chat", "draining team/code"]


def test_a_drain_takes_what_no_controller_holds_yet_and_looks_again(draining: Rig) -> None:
    draining.model("new", held=False)
    assert draining.run() == 0
    assert draining.api.cluster.list(KIND) == []
    assert draining.now > 0.0, "it might have been held before it was deleted"


def test_a_drain_that_does_not_end_leaves_the_release_as_it_is(draining: Rig) -> None:
    draining.model("chat")
    assert draining.run() == 1
    assert "after 60 s 1 ModelDeployment is not drained (models/chat); do the controllers run?" in draining.said[-1]


def test_a_namespace_that_is_gone_and_a_definition_that_is_gone_keep_nothing(rig: Rig) -> None:
    rig.api.access.grants = [g for g in rig.api.access.grants if g.namespace != "team"]
    assert rig.run() == 0
    assert rig.said[0].startswith("namespace team can't be read, so nothing there is waited for")
    cluster = rig.api.cluster
    cluster.delete("customresourcedefinitions", None, "modeldeployments.tidegate.dev")
    assert rig.run() == 0


def test_without_rights_in_its_own_namespace_nothing_is_known_of_the_models_there(rig: Rig) -> None:
    rig.model("chat")
    rig.api.access.grants = [g for g in rig.api.access.grants if g.namespace == "team"]
    with pytest.raises(ClusterRejected, match=f"list modeldeployments in {NAMESPACE}"):
        rig.run()  # `main` says so, and ends with 1


def test_an_api_server_that_is_away_is_waited_for_and_then_nothing_is_uninstalled(rig: Rig) -> None:
    with rig.api.away():
        assert rig.run() == 1
    assert rig.now >= rig.order.within_s
    assert rig.said[-1].startswith("nothing is uninstalled: list modeldeployments in ")
    assert rig.run() == 0


def test_the_account_may_delete_only_where_it_is_told_to_drain(rig: Rig) -> None:
    rig.model("chat")
    rig.order = rig.order.model_copy(update={"mode": Mode.DRAIN, "within_s": 3.0})
    with pytest.raises(Exception, match="cannot delete"):
        rig.run()


def test_the_job_alone_is_a_hook_runs_once_and_can_be_left_out() -> None:
    hooks = [
        (o["kind"], o["metadata"]["name"])
        for o in objects(TEAMS)
        if o["metadata"].get("annotations", {}).get("helm.sh/hook") == "pre-delete"
    ]
    assert hooks == [("Job", "r-uninstall")]
    job = one(objects(TEAMS), "Job", "r-uninstall")
    assert (job["spec"]["backoffLimit"], job["spec"]["template"]["spec"]["restartPolicy"]) == (0, "Never")
    assert job["spec"]["activeDeadlineSeconds"] > order_of(objects(TEAMS)).within_s
    without = objects({"uninstall": {"modelDeployments": "ignore"}})
    assert not [o for o in without if o["metadata"]["name"] == "r-uninstall"]
    assert "uninstall" not in json.dumps([o for o in without if o["kind"] != "NetworkPolicy"])
    assert render(TEAMS)


@pytest.mark.parametrize("given", ["", '{"namespaces": []}', '{"namespaces": ["a"], "mode": "burn"}'])
def test_an_order_that_is_none_is_refused(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([given] if given else []) == 2
    assert capsys.readouterr().err.startswith("uninstall: ")
