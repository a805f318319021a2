"""Our controller's process and the chart's rights before a real kube-apiserver (real_server.py says where from).

One server for all tests of this file, which run in the order in which they stand: what one has deployed, the next finds.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rollout.operator.names import FINALIZER, KIND, OPERATOR_MANAGER
from tests.kubernetes.real_rig import NAMESPACE, RealRig

pytestmark = pytest.mark.integration

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
