"""What is sent to the cluster for a revision, held against Kubernetes' own models, Ray's schema and KubeRay's rules."""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kubernetes.client import V1ObjectMeta, V1PodDisruptionBudget, V1PodTemplateSpec

from rollout.engine_specs import EngineSpec
from rollout.workloads.base import Owner, Workload, WorkloadState
from rollout.workloads.engine_pods import EngineCluster
from rollout.workloads.rayservice import MADE_OF, bounds_of, budget, contains, rayservice, resized
from rollout.workloads.rayservice_status import status_of_service
from rollout.workloads.serve_account import Deaths
from serving.specs import EngineKind, RevisionSpec, application_name, object_name
from tests.kubernetes.kuberay import LABEL_1035, cluster_hash, validated

PLAIN = EngineCluster(
    release="tide", ray_version="2.60.0", ray_auth_secret="tide-ray-token", tracking_uri="http://m:5000"
)
FULL = EngineCluster(
    release="tide", ray_version="2.60.0", ray_auth_secret="tide-ray-token", tracking_uri="http://m:5000",
    credentials_secret="buckets", cache_path="/var/models", pull_secrets=("pull",), redis_address="redis:6379",
    redis_secret="redis", service_account="tide-engine",
)  # fmt: skip
GPU = {"resources": {"limits": {"nvidia.com/gpu": 2, "memory": "80Gi"}}}
EVERYTHING = GPU | {
    "minReplicas": 2,
    "nodeSelector": {"pool": "gpu"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "priorityClassName": "serving",
    "runtimeClassName": "nvidia",
    "weights": {"credentialsSecret": "mine", "cache": {"persistentVolumeClaim": "models"}},
}
ENGINES = {
    "plain": {},
    "everything": EVERYTHING,
    "elastic": GPU | {"minReplicas": 1, "maxReplicas": 4},
    "replace": GPU | {"minReplicas": 3, "capacity": "replace"},
    "queued": GPU | {"queueName": "gpus"},
}
OWNER = Owner(api_version="tidegate.dev/v1alpha1", kind="ModelDeployment", namespace="team", name="chat", uid="u-1")


def workload(engine: dict | None = None, kind: EngineKind = EngineKind.VLLM, replicas: int | None = None) -> Workload:
    spec = EngineSpec.model_validate(engine or {})
    tensor = next(iter(spec.resources.accelerators.values()), 1)
    revision = RevisionSpec(
        model="chat", version="1.3.0", manifest_sha256="ab" * 32, engine=kind, engine_image="engine:1",
        source="/models/" + "ab" * 32 if kind is EngineKind.VLLM else "sim:?", accelerator="gpu",
        engine_args={"tensor_parallel_size": str(tensor)},
    )  # fmt: skip
    return Workload(
        revision=revision, replicas=replicas or spec.min_replicas, engine=spec, namespace="team", longest_stream_s=600
    )  # fmt: skip


def config_of(service: dict) -> dict:
    return service["spec"]["rayClusterConfig"]


def templates(service: dict) -> Iterator[dict]:
    yield config_of(service)["headGroupSpec"]["template"]
    yield config_of(service)["workerGroupSpecs"][0]["template"]


KUBERAY_FIELDS = {
    "spec": {"serveConfigV2", "upgradeStrategy", "rayClusterDeletionDelaySeconds", "excludeHeadPodFromServeSvc",
             "rayClusterConfig"},
    "cluster": {"rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec",
                "workerGroupSpecs", "gcsFaultToleranceOptions"},
    "head": {"rayStartParams", "template"},
    "worker": {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"},
    "autoscaler": {"version", "idleTimeoutSeconds", "upscalingMode", "resources", "securityContext"},
    "fault tolerance": {"redisAddress", "redisPassword"},
    "auth": {"mode", "secretName"},
}  # fmt: skip
"""The fields of ray.io/v1 at KubeRay 1.6 that are used here (rayservice_types.go, raycluster_types.go)."""


@pytest.fixture(scope="module")
def serve_schema() -> Any:
    """Ray's own schema of what Serve is sent; importing it takes seconds and warns of its own use of pydantic."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("ray.serve.schema").ServeDeploySchema


@pytest.mark.parametrize("cluster", [PLAIN, FULL], ids=["plain cluster", "full cluster"])
@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_whatever_is_sent_is_valid(engine: dict, cluster: EngineCluster, serve_schema: Any) -> None:
    service = rayservice(workload(engine), cluster, OWNER)
    config = config_of(service)
    V1ObjectMeta.model_validate(service["metadata"])
    for template in templates(service):
        V1PodTemplateSpec.model_validate(template)
    V1PodDisruptionBudget.model_validate(budget(workload(engine), cluster, "u-2"))
    serve_schema.model_validate_json(service["spec"]["serveConfigV2"])
    assert validated(service) == ""
    assert service["spec"].keys() <= KUBERAY_FIELDS["spec"]
    assert config.keys() <= KUBERAY_FIELDS["cluster"]
    assert config["headGroupSpec"].keys() <= KUBERAY_FIELDS["head"]
    assert config["workerGroupSpecs"][0].keys() <= KUBERAY_FIELDS["worker"]
    assert config.get("autoscalerOptions", {}).keys() <= KUBERAY_FIELDS["autoscaler"]
    assert config.get("gcsFaultToleranceOptions", {}).keys() <= KUBERAY_FIELDS["fault tolerance"]
    assert config["authOptions"].keys() == KUBERAY_FIELDS["auth"]
    assert json.loads(json.dumps(service)) == service, "no floats that would come back as something else, no tuples"


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_every_pod_is_restricted(engine: dict) -> None:
    """The pod security level `restricted`, field by field; and no token but for an elastic head."""
    service = rayservice(workload(engine), FULL, OWNER)
    head, worker = templates(service)
    for template in (head, worker):
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        for container in (*pod.get("initContainers", ()), *pod["containers"]):
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert context["runAsNonRoot"] is True
            assert not any("hostPort" in port for port in container.get("ports", ()))
    elastic = config_of(service)["enableInTreeAutoscaling"]
    assert head["spec"]["automountServiceAccountToken"] is elastic
    assert worker["spec"]["automountServiceAccountToken"] is False
    assert ("serviceAccountName" in head["spec"]) is not elastic


def test_no_secret_is_in_a_manifest() -> None:
    """Only names of Secrets: whatever takes a password takes a reference."""
    config = config_of(rayservice(workload(EVERYTHING), FULL, OWNER))
    assert config["gcsFaultToleranceOptions"]["redisPassword"] == {
        "valueFrom": {"secretKeyRef": {"name": "redis", "key": "password"}}
    }
    assert config["authOptions"] == {"mode": "token", "secretName": "tide-ray-token"}
    weights = config["workerGroupSpecs"][0]["template"]["spec"]["initContainers"][0]
    assert weights["envFrom"] == [{"secretRef": {"name": "mine"}}]
    assert weights["args"][-1] == "ab" * 32, "what is fetched is compared with the manifest's digest"


def test_a_pod_is_given_as_long_as_its_longest_answer() -> None:
    service = rayservice(workload(), PLAIN, OWNER)
    _, worker = templates(service)
    stop = worker["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert float(stop[-1]) == 600
    assert worker["spec"]["terminationGracePeriodSeconds"] > 600
    assert service["spec"]["rayClusterDeletionDelaySeconds"] == 600


def test_a_simulated_version_fetches_nothing() -> None:
    _, worker = templates(rayservice(workload(kind=EngineKind.SIMULATED), PLAIN, OWNER))
    assert "initContainers" not in worker["spec"]


@pytest.mark.parametrize(
    ("engine", "bounds", "least"),
    [
        ({}, (1, 1), 1),
        ({"minReplicas": 3}, (3, 3), 2),
        ({"minReplicas": 1, "maxReplicas": 4}, (1, 4), 1),
        ({"minReplicas": 2, "maxReplicas": 4}, (2, 4), 1),
        ({"minReplicas": 3, "capacity": "replace"}, (1, 3), 1),
    ],
)
def test_bounds_and_what_a_drain_of_nodes_must_leave(engine: dict, bounds: tuple[int, int], least: int) -> None:
    assert bounds_of(workload(engine)) == bounds
    assert budget(workload(engine), PLAIN, "u")["spec"]["minAvailable"] == least


def test_what_reaches_a_running_cluster_and_what_makes_another() -> None:
    """KubeRay leaves the numbers of pods out of its hash; they reach Serve by its configuration, and Ray by a patch."""
    replace = GPU | {"minReplicas": 3, "capacity": "replace"}
    one, three = (rayservice(workload(replace, replicas=n), PLAIN, OWNER) for n in (1, 3))
    assert cluster_hash(one) == cluster_hash(three)
    assert one["spec"]["serveConfigV2"] != three["spec"]["serveConfigV2"]
    fixed = [rayservice(workload(GPU | {"minReplicas": n}), PLAIN, OWNER) for n in (1, 2)]
    assert cluster_hash(fixed[0]) == cluster_hash(fixed[1])
    elastic = rayservice(workload(GPU | {"minReplicas": 1, "maxReplicas": 2}), PLAIN, OWNER)
    assert cluster_hash(fixed[0]) != cluster_hash(elastic), "it needs an autoscaler"
    assert fixed[0]["spec"]["upgradeStrategy"] == {"type": "NewCluster"}, "whatever the operator's default is"


QUOTA = "exceeded quota: gpus, requested: requests.nvidia.com/gpu=2, used: requests.nvidia.com/gpu=7, limited: 8"


@pytest.mark.parametrize(
    ("told", "parts"),
    [
        (
            {"rayClusterStatus": {"conditions": [
                {"type": "HeadPodReady", "status": "True"},
                {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreateWorkerPod",
                 "message": f'failed to create worker pod:\npods "chat-x" is forbidden: {QUOTA}'},
            ]}},
            (QUOTA, "raise the ResourceQuota of the namespace, or ask for less"),
        ),
        (
            {"rayClusterStatus": {"conditions": [
                {"type": "ReplicaFailure", "status": "True", "message": "admission webhook says no"},
            ]}},
            ("the cluster refuses a pod: admission webhook says no; put right what it names",),
        ),
        (
            {"rayClusterStatus": {"conditions": [{"type": "ReplicaFailure", "status": "False", "message": "past"}]}},
            ("KubeRay has made no pod yet; `kubectl describe rayclusters -n team` says why",),
        ),
    ],
    ids=["quota", "webhook", "nothing told"],
)  # fmt: skip
def test_a_pod_that_the_cluster_refuses_is_told_with_the_way_out(told: dict[str, Any], parts: tuple[str, ...]) -> None:
    service = rayservice(workload(GPU), PLAIN, None) | {"status": {"pendingServiceStatus": told}}
    seen = status_of_service(service, [], None, Deaths())
    assert seen.state is WorkloadState.STARTING, "a quota can be raised; the deadline decides when waiting is over"
    assert all(part in seen.message for part in parts), seen.message
    assert len(seen.message) <= 600


def test_on_ipv6_ray_serve_and_engines_listen_there_and_what_runs_stays_where_it_is() -> None:
    def heard(cluster: EngineCluster, made_of: str = "") -> tuple[str, str, str, str]:
        made = rayservice(workload(), cluster, None, made_of)
        serve = json.loads(made["spec"]["serveConfigV2"])
        head = made["spec"]["rayClusterConfig"]["headGroupSpec"]["rayStartParams"]["dashboard-host"]
        application = serve["applications"][0]["args"]["host"]
        return head, serve["http_options"]["host"], application, made["metadata"]["annotations"][MADE_OF]

    six = PLAIN.model_copy(update={"bind_address": "::"})
    *four, record = heard(PLAIN)
    assert four == ["0.0.0.0"] * 3
    assert heard(six)[:3] == ("::",) * 3
    assert heard(six, record)[:3] == tuple(four), "a Serve that runs takes no other address"


def test_what_serves_is_not_restarted_by_a_newer_control_plane_or_setting() -> None:
    made = rayservice(workload(EVERYTHING), PLAIN, OWNER)
    record = made["metadata"]["annotations"][MADE_OF]
    other = FULL.model_copy(update={"head_memory": "8Gi", "load_timeout_s": 60.0})
    again = rayservice(workload(EVERYTHING, replicas=3), other, OWNER, record)
    assert cluster_hash(again) == cluster_hash(made)
    assert again["metadata"]["annotations"][MADE_OF] == record
    arguments = [json.loads(s["spec"]["serveConfigV2"])["applications"][0]["args"] for s in (made, again)]
    assert arguments[0] == arguments[1]
    assert config_of(again)["workerGroupSpecs"][0]["replicas"] == 3
    fresh = rayservice(workload(EVERYTHING), other, OWNER)
    assert cluster_hash(fresh) != cluster_hash(made), "the next revision has the new settings"
    assert rayservice(workload(EVERYTHING), other, OWNER, "{broken")["spec"] == fresh["spec"]


RUNNING = {"rayClusterName": "c-1", "rayClusterStatus": {
    "desiredWorkerReplicas": 3, "minWorkerReplicas": 3, "maxWorkerReplicas": 3,
}}  # fmt: skip
ADD = "/spec/workerGroupSpecs/0/"


@pytest.mark.parametrize(
    ("engine", "spare", "wanted"),
    [
        ({"minReplicas": 3}, [], None),
        ({"minReplicas": 4}, [], {"minReplicas": 4, "maxReplicas": 4, "replicas": 4}),
        ({"minReplicas": 2}, [], None),  # Serve has not stopped a replica yet
        ({"minReplicas": 2}, ["b", "a"], {
            "minReplicas": 2, "maxReplicas": 2, "replicas": 2, "scaleStrategy": {"workersToDelete": ["a"]}}),
        ({"minReplicas": 1, "maxReplicas": 2}, [], {"minReplicas": 1, "maxReplicas": 2}),
    ],
)  # fmt: skip
def test_a_running_cluster_gets_its_number_of_pods(engine: dict, spare: list[str], wanted: dict | None) -> None:
    found = resized(workload(engine), {"status": {"activeServiceStatus": RUNNING}}, spare)
    if wanted is None:
        assert found is None
        return
    assert found is not None
    name, patch = found
    assert name == "c-1"
    assert patch[0]["op"] == "test"
    assert {o["path"].removeprefix(ADD): o["value"] for o in patch[1:]} == wanted


def test_a_cluster_that_is_not_there_yet_gets_no_patch() -> None:
    assert resized(workload({"minReplicas": 9}), {}, []) is None


def test_an_owner_elsewhere_is_none() -> None:
    elsewhere = OWNER.model_copy(update={"namespace": "other"})
    assert "ownerReferences" not in rayservice(workload(), PLAIN, elsewhere)["metadata"]
    assert rayservice(workload(), PLAIN, OWNER)["metadata"]["ownerReferences"][0]["uid"] == "u-1"


versions = st.from_regex(r"\A[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}(-[0-9A-Za-z.-]{1,20})?(\+[0-9A-Za-z.-]{1,20})?\Z")
models = st.from_regex(r"\A[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z")


@given(models, versions, st.text("0123456789abcdef", min_size=64, max_size=64))
def test_every_application_has_a_name_that_kuberay_takes(model: str, version: str, digest: str) -> None:
    name = object_name(application_name(model, version, digest))
    assert len(name) <= 47
    assert LABEL_1035.match(name)
    assert name.endswith(digest[:8])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=8,
)


@given(json_values, st.data())
def test_an_object_holds_what_was_written_whatever_was_added(wanted: object, data: st.DataObject) -> None:
    def with_additions(value: object) -> object:
        if isinstance(value, dict):
            added = {f"added-{n}": n for n in range(data.draw(st.integers(0, 2)))}
            return {**{k: with_additions(v) for k, v in value.items()}, **added}
        return [with_additions(v) for v in value] if isinstance(value, list) else value

    assert contains(with_additions(wanted), wanted)


@pytest.mark.parametrize(
    ("live", "wanted"),
    [
        ({"a": 1}, {"a": 2}),
        ({}, {"a": 1}),
        ({"a": [1, 2]}, {"a": [1]}),
        ({"a": [1]}, {"a": []}),
        ({"a": {"b": 1}}, {"a": {"b": {}}} | {"a": {"b": {"c": 1}}}),
        ({"a": "x"}, {"a": {"b": 1}}),
        (None, 0),
    ],
)
def test_what_differs_is_seen(live: object, wanted: object) -> None:
    assert not contains(live, wanted)
