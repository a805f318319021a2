"""Our controller's process and the chart's rights before a real kube-apiserver (real_server.py says where from).

One server for all tests of this file, which run in the order in which they stand: what one has deployed, the next finds.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from rollout.operator.names import API_VERSION, FINALIZER, KIND, OPERATOR_MANAGER
from tests.kubernetes.api_errors import Refused
from tests.kubernetes.cluster import Write
from tests.kubernetes.real_rig import NAMESPACE, RealRig

pytestmark = pytest.mark.integration

AWAY_S = 5.0
STEPS = {"canary": {"steps": [{"weight": 5, "duration": "1h"}, {"weight": 50, "duration": "1h"}]}}


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealRig]:
    with RealRig(tmp_path_factory.mktemp("real")) as found:
        yield found


def test_a_model_is_deployed_with_the_chart_s_rights(rig: RealRig) -> None:
    for pod in ("r-controller-0", "r-controller-1"):
        rig.start_pod(pod)
    rig.apply("1.0.0")
    rig.until(lambda: rig.serving("1.0.0"))
    found = rig.found()
    assert FINALIZER in found["metadata"]["finalizers"]
    managers = {(m["manager"], m.get("subresource", "")) for m in found["metadata"]["managedFields"]}
    assert managers == {("kubectl", ""), (OPERATOR_MANAGER, ""), (OPERATOR_MANAGER, "status")}
    (service,) = rig.objects.list("rayservices", NAMESPACE)
    assert service["metadata"]["ownerReferences"][0]["uid"] == found["metadata"]["uid"]
    one = rig.found()["metadata"]["resourceVersion"]
    rig.apply("1.0.0")
    assert rig.found()["metadata"]["resourceVersion"] == one, "the same apply again writes nothing"


def test_a_rollout_is_paused_promoted_and_taken_back_by_annotations(rig: RealRig) -> None:
    rig.apply("1.1.0", strategy=STEPS)
    rig.until(lambda: rig.told().get("weight") == 5)
    assert rig.told()["canary"] == "1.1.0"
    rig.annotate("pause", "a look at it")
    rig.until(lambda: rig.condition("Progressing") == "Paused")
    rig.annotate("pause", "")
    rig.until(lambda: rig.condition("Progressing") != "Paused")
    rig.annotate("promote", "full")
    rig.until(lambda: rig.serving("1.1.0"))
    rig.annotate("rollback", "answers in verse")
    rig.until(lambda: rig.serving("1.0.0") and rig.condition("RolledBack") == "Condemned")
    assert rig.told()["commands"][0]["outcome"] == "Done"
    posted = {e["reason"] for e in rig.objects.list("events", NAMESPACE) if e["involvedObject"]["kind"] == KIND}
    assert posted >= {"RolloutStarted", "Promoted", "RolledBack"}


def test_one_controller_leads_and_the_other_takes_over(rig: RealRig) -> None:
    def leader() -> str:
        return str(rig.objects.get("leases", NAMESPACE, "r-controller")["spec"]["holderIdentity"])

    def labelled() -> set[str]:
        return {p["metadata"]["name"] for p in rig.objects.list("pods", NAMESPACE, labels="tidegate.dev/leader=true")}

    first = leader()
    (other,) = set(rig.controllers.running) - {first}
    rig.until(lambda: labelled() == {first})
    rig.controllers.kill(first)
    took_s = rig.until(lambda: leader() == other and labelled() == {other})
    print(f"\nthe other controller led {took_s:.1f} s after kill -9")
    rig.apply("1.0.0", "other")
    rig.until(lambda: rig.serving("1.0.0", "other"))
    rig.controllers.start(first)


def test_an_unchanged_resource_is_never_written(rig: RealRig) -> None:
    def versions() -> dict[str, str]:
        return {o["metadata"]["name"]: o["metadata"]["resourceVersion"] for o in rig.objects.list(KIND, NAMESPACE)}

    before = versions()
    time.sleep(5)
    assert versions() == before


def test_the_api_server_away_and_back(rig: RealRig) -> None:
    rig.server.leave()
    time.sleep(AWAY_S)
    rig.server.come_back()
    rig.apply("1.1.0", "other", emergency=True)
    took_s = rig.until(lambda: rig.serving("1.1.0", "other"))
    print(f"\nserved {took_s:.1f} s after the API server was back")


def test_a_spec_that_cannot_be_is_refused(rig: RealRig) -> None:
    with pytest.raises(Refused) as refused:
        rig.apply("1.0.0", "wrong", strategy={"canary": {"steps": [{"weight": 50, "duration": "1h"}, {"weight": 5}]}})
    print("\n", refused.value.code, refused.value.message)
    assert refused.value.code == 422
    with pytest.raises(Refused) as refused:
        rig.apply("1.0.0", "wrong", wieght=5)
    print("\n", refused.value.code, refused.value.message)
    assert "wieght: field not declared in schema" in refused.value.message


def test_what_somebody_else_owns_is_not_taken_without_a_word(rig: RealRig) -> None:
    spec = {"model": "chat", "version": "9.9.9"}
    body = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "chat"}, "spec": spec}
    with pytest.raises(Refused) as refused:
        rig.objects.apply(KIND, NAMESPACE, "chat", body, Write("somebody"))
    print("\n", refused.value.message)
    assert refused.value.code == 409
    status = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "chat"}, "status": {"phase": "Degraded"}}
    with pytest.raises(Refused) as refused:
        rig.objects.apply(KIND, NAMESPACE, "chat", status, Write("somebody", "status"))
    print("\n", refused.value.message)


def test_a_deleted_model_is_drained_before_it_goes(rig: RealRig) -> None:
    rig.objects.delete(KIND, NAMESPACE, "other")
    rig.until(lambda: not rig.found("other"))
    rig.until(
        lambda: (
            {s["metadata"]["labels"]["tidegate.dev/model"] for s in rig.objects.list("rayservices", NAMESPACE)}
            == {"chat"}
        )
    )


def test_nothing_was_denied_and_every_right_of_the_table_that_is_needed_was_used(rig: RealRig) -> None:
    asked = list(rig.asked())
    denied = [
        (e["verb"], e["requestURI"], e["responseStatus"]["code"])
        for e in asked
        if e.get("responseStatus", {}).get("code") in (401, 403)
    ]
    used = sorted(
        {
            (e["objectRef"]["resource"] + "/" + e["objectRef"].get("subresource", ""), e["verb"])
            for e in asked
            if "objectRef" in e
        }
    )
    print("\n", used, "\n", rig.trouble)
    assert denied == []
    assert rig.trouble == []
