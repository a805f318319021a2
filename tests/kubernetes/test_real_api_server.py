"""Our controller's process and the chart's rights before a real kube-apiserver (see real_server.py).

One server for all tests of this file, which run in their order: what one has deployed, the next finds.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from rollout.operator.api import Address, ResourceApi
from rollout.operator.names import API_VERSION, FINALIZER, KIND, OPERATOR_MANAGER
from rollout.operator.uninstall import Uninstall
from tests.kubectl import require
from tests.kubernetes.api_errors import Refused
from tests.kubernetes.cluster import Write
from tests.kubernetes.real_rig import NAMESPACE, RealRig
from tests.kubernetes.test_uninstall import order_of
from tests.unit.helm.charts import objects, one

pytestmark = pytest.mark.integration

AWAY_S = float(os.environ.get("TIDEGATE_TEST_AWAY_S", "5"))
MANY = 200
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

    def nothing_is_written() -> bool:
        before = rig.found()["metadata"]["resourceVersion"]
        rig.apply("1.0.0")
        return bool(rig.found()["metadata"]["resourceVersion"] == before)

    rig.until(nothing_is_written, patience_s=10)  # the operator may have had something to add to the status


def test_a_rollout_is_paused_promoted_and_taken_back_by_annotations(rig: RealRig) -> None:
    rig.apply("1.1.0", strategy=STEPS)
    rig.until(lambda: rig.told().get("weight") == 5)
    assert rig.told()["canary"] == "1.1.0"
    rig.annotate("pause", "a look at it")
    rig.until(lambda: rig.condition("Progressing") == "Paused")
    rig.annotate("pause", None)
    rig.until(lambda: rig.condition("Progressing") != "Paused")
    rig.annotate("promote", "full")
    rig.until(lambda: rig.serving("1.1.0"))
    rig.annotate("rollback", "answers in verse")
    rig.until(lambda: rig.serving("1.0.0") and rig.condition("RolledBack") == "Condemned")
    assert rig.told()["commands"][0]["outcome"] == "Done"
    posted = {e["reason"] for e in rig.objects.list("events", NAMESPACE) if e["involvedObject"]["kind"] == KIND}
    assert posted >= {"RolloutStarted", "RolledBack"}


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
    before = rig.versions()
    time.sleep(5)
    assert rig.versions() == before


def test_the_api_server_away_and_back(rig: RealRig) -> None:
    rig.server.leave()
    time.sleep(AWAY_S)
    rig.server.come_back()
    rig.apply("1.1.0", "other", emergency=True)
    took_s = rig.until(lambda: rig.serving("1.1.0", "other"))
    print(f"\nserved {took_s:.1f} s after the API server was back")


def test_a_spec_that_cannot_be_is_refused(rig: RealRig) -> None:
    falls = {"canary": {"steps": [{"weight": 50, "duration": "1h"}, {"weight": 5, "duration": "1h"}]}}
    with pytest.raises(Refused, match="the weights of steps must rise") as refused:
        rig.apply("1.0.0", "wrong", strategy=falls)
    assert refused.value.code == 422
    with pytest.raises(Refused, match=r"\.spec\.wieght: field not declared in schema"):
        rig.apply("1.0.0", "wrong", wieght=5)


def test_what_somebody_else_owns_is_not_taken_without_a_word(rig: RealRig) -> None:
    spec = {"model": "chat", "version": "9.9.9"}
    body = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "chat"}, "spec": spec}
    with pytest.raises(Refused, match=r'conflict with "kubectl": \.spec\.version') as refused:
        rig.objects.apply(KIND, NAMESPACE, "chat", body, Write("somebody"))
    assert refused.value.code == 409
    status = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "chat"}, "status": {"phase": "Progressing"}}
    with pytest.raises(Refused, match=r'conflict with "tidegate-operator" with subresource "status": \.status\.phase'):
        rig.objects.apply(KIND, NAMESPACE, "chat", status, Write("somebody", "status"))


def test_kubectl_and_the_command_line_show_it(rig: RealRig) -> None:
    def said(*command: str) -> str:
        env = {**os.environ, "KUBECONFIG": str(rig.kubeconfig()), "COLUMNS": "300"}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
        return done.stdout + done.stderr

    heads, *rows = said(require(), "get", "mdep").splitlines()
    assert heads.split() == ["NAME", "STABLE", "CANARY", "WEIGHT", "PHASE", "REASON", "AGE"], (heads, rows)
    assert [row.split()[:2] for row in rows] == [["chat", "1.0.0"], ["other", "1.1.0"]]
    assert "RolledBack" in said(require(), "describe", "mdep", "chat"), "Events are shown with their resource"
    program = "from tidegate.cli.main import main; main()"
    listed = said(sys.executable, "-c", program, "rollout", "list", "-n", NAMESPACE)
    assert [line.split()[:2] for line in listed.splitlines()[1:]] == [["chat", "1.0.0"], ["other", "1.1.0"]], listed
    print("\n".join(["", heads, *rows, listed]))


def test_many_resources_are_told_soon_and_then_left_alone(rig: RealRig) -> None:
    """They all claim a name that another one has: what is measured is the operator and the API server, no engines."""
    names = [f"claims-{number}" for number in range(MANY)]
    began = time.monotonic()
    for name in names:
        rig.apply("1.0.0", name, model="chat")

    def told() -> list[str]:
        return [
            o["metadata"]["name"]
            for o in rig.objects.list(KIND, NAMESPACE)
            if any(c["reason"] == "ModelNameTaken" for c in o.get("status", {}).get("conditions", ()))
        ]

    rig.until(lambda: set(told()) == set(names))
    print(f"\n{MANY} resources were applied and told in {time.monotonic() - began:.1f} s")
    before, led = rig.versions(), rig.controllers.times_led()
    for name in tuple(rig.controllers.running):
        rig.controllers.kill(name)
        rig.controllers.start(name)
    rig.until(lambda: rig.controllers.times_led() > led)
    time.sleep(10)
    assert rig.versions() == before, "a new leader that finds nothing changed writes nothing"
    for name in names:
        rig.objects.delete(KIND, NAMESPACE, name)
    rig.until(lambda: len(rig.versions()) == 2)


def test_a_deleted_model_is_drained_before_it_goes(rig: RealRig) -> None:
    rig.objects.delete(KIND, NAMESPACE, "other")
    rig.until(lambda: not rig.found("other"))
    rig.until(
        lambda: (
            {s["metadata"]["labels"]["tidegate.dev/model"] for s in rig.objects.list("rayservices", NAMESPACE)}
            == {"chat"}
        )
    )


def test_an_uninstall_is_refused_until_it_may_drain(rig: RealRig, tmp_path: Path) -> None:
    """The hook, with the rights of its own account under either value."""

    def asked(values: dict[str, Any]) -> tuple[int, str]:
        found = objects(values)
        role = one(found, "Role", "r-uninstall")
        rig.objects.merge("roles", NAMESPACE, "r-uninstall", {"rules": role["rules"]})
        config = tmp_path / "uninstall"
        config.write_text(yaml.safe_dump(rig.server.kubeconfig(rig.server.token(NAMESPACE, "r-uninstall"), NAMESPACE)))
        said: list[str] = []
        resources = ResourceApi(Address(kubeconfig=config).configuration())
        hook = Uninstall(resources, say=said.append, monotonic=time.monotonic, sleep=time.sleep)
        return hook.run(order_of(found)), "\n".join(said)

    code, said = asked({})
    assert code != 0, said
    assert "chat" in said
    code, said = asked({"uninstall": {"modelDeployments": "drain"}})
    assert code == 0, said
    assert rig.versions() == {}
    rig.until(lambda: rig.objects.list("rayservices", NAMESPACE) == [])


def test_nothing_was_denied(rig: RealRig) -> None:
    """By the API server's audit log, in which every request of the ServiceAccount stands with its answer."""
    asked = list(rig.asked())
    refused = [(e["verb"], e["requestURI"]) for e in asked if e.get("responseStatus", {}).get("code") in (401, 403)]
    assert refused == []
    used: dict[str, set[str]] = {}
    for about, verb in ((e["objectRef"], e["verb"]) for e in asked if "objectRef" in e):
        used.setdefault("/".join(filter(None, (about["resource"], about.get("subresource")))), set()).add(verb)
    print(f"\n{len(asked)} requests: {used}")
    assert used["modeldeployments"] == {"list", "watch", "patch"}
    assert used["modeldeployments/status"] == {"patch"}
    assert used["leases"] == {"create", "get", "update"}
    assert used["rayservices"] >= {"list", "patch", "delete"}
    assert used["events"] == {"create"}
    assert rig.trouble == [], "what the API server holds against pods and RayServices as we make them"
