"""What matters in what the chart makes: security, rights, probes, grace periods, secrets, and that parts fit."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from monitoring.instruments import GatewayInstruments
from serving.gateway.config import GatewayConfig
from tests.unit.helm.charts import ROOT, SETS, Object, first_secrets, identity, objects, one, pods
from tidegate.settings import Settings

EVERY = ["", *SETS]
CLUSTER_SCOPED = {"ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition", "Namespace", "PriorityClass"}


# -- pods ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_every_pod_keeps_the_level_restricted(name: str) -> None:
    """The pod security standards' rules, and a root file system that can't be written beside them."""
    for owner, _, spec in pods(objects(name)):
        pod = spec["securityContext"]
        assert pod["runAsNonRoot"] is True, owner
        assert pod["runAsUser"] > 0, owner
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}, owner
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys(), owner
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False, owner
            assert own["readOnlyRootFilesystem"] is True, owner
            assert own["capabilities"] == {"drop": ["ALL"]}, owner
            assert not any("hostPort" in port for port in container.get("ports", [])), owner
        allowed = {"configMap", "secret", "emptyDir", "persistentVolumeClaim", "projected", "downwardAPI"}
        for volume in spec["volumes"]:
            assert volume.keys() - {"name"} <= allowed, owner


@pytest.mark.parametrize("name", EVERY)
def test_every_pod_says_what_it_needs_and_takes_nothing_by_accident(name: str) -> None:
    for owner, about, spec in pods(objects(name)):
        assert spec["enableServiceLinks"] is False, f"{owner}: Service tidegate-gateway would set a setting of ours"
        assert "automountServiceAccountToken" in spec, owner
        assert about["labels"]["app.kubernetes.io/instance"] == "r", owner
        mounted = {m["name"] for c in spec["containers"] for m in c["volumeMounts"]}
        declared = {v["name"] for v in spec["volumes"]} | ({"data"} if owner.startswith("StatefulSet") else set())
        assert mounted == declared, owner
        for container in spec["containers"]:
            assert container["resources"]["requests"].keys() >= {"cpu", "memory"}, owner
            assert "memory" in container["resources"]["limits"], owner
            assert re.fullmatch(r"[^@]+:(?!latest)[\w.-]+|[^@]+@sha256:[0-9a-f]{64}", container["image"]), owner


@pytest.mark.parametrize("name", EVERY)
def test_who_has_a_token_of_the_api_server(name: str) -> None:
    given = {
        owner.partition("secrets-")[0] for owner, _, spec in pods(objects(name)) if spec["automountServiceAccountToken"]
    }
    expected = {"Deployment/r-controller", "Job/r-uninstall"}
    if first_secrets(objects(name)) is not None:
        expected.add("Job/r-first-")
    if name == "ha":  # engine.workloadRef: they follow EndpointSlices
        expected.add("Deployment/r-gateway")
    assert given == expected


@pytest.mark.parametrize("name", EVERY)
def test_what_serves_is_probed_before_during_and_after_its_start(name: str) -> None:
    for owner, _, spec in pods(objects(name)):
        if owner.startswith(("Job/", "r-test", "Deployment/r-probes")):
            continue
        for container in spec["containers"]:
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                assert probe in container, f"{owner}: {probe}"
            # A liveness probe that waits for others would restart what only waits.
            assert container["livenessProbe"].get("httpGet", {}).get("path") in (None, "/healthz", "/health"), owner


# -- gateway and controller -------------------------------------------------------------------------------------------


def gateway_config(found: tuple[Object, ...]) -> GatewayConfig:
    return GatewayConfig.from_json(one(found, "ConfigMap", "r-gateway")["data"]["gateway.json"])


@pytest.mark.parametrize("name", EVERY)
def test_the_gateway_takes_its_file_and_has_time_to_drain(name: str) -> None:
    found = objects(name)
    config = gateway_config(found)
    spec = one(found, "Deployment", "r-gateway")["spec"]
    pod = spec["template"]["spec"]
    assert config.auth == "keys"
    assert config.show_version is False
    assert pod["terminationGracePeriodSeconds"] >= config.drain_delay_s + config.drain_s + 20
    assert config.drain_s >= config.request_timeout_s, "the longest stream may end"
    probe = pod["containers"][0]["readinessProbe"]
    assert probe["httpGet"]["path"] == "/readyz/pod"
    noticed_s = probe["periodSeconds"] * probe["failureThreshold"]
    assert config.drain_delay_s > noticed_s, "a balancer must have seen the no before connections are refused"
    assert spec["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert spec["progressDeadlineSeconds"] > pod["terminationGracePeriodSeconds"]
    mounts = {m["mountPath"] for m in pod["containers"][0]["volumeMounts"]}
    assert config.cluster
    for path in (config.secret_file, config.credentials_file, config.tls_cert_file, config.ray_token_file):
        assert path is None or str(path.parent) in mounts


def test_a_changed_configuration_replaces_the_gateways() -> None:
    def checksum(values: Mapping[str, Any]) -> str:
        template = one(objects(values), "Deployment", "r-gateway")["spec"]["template"]
        told: str = template["metadata"]["annotations"]["checksum/config"]
        return told

    assert checksum({}) == checksum({"gateway": {"replicas": 2}})
    assert checksum({}) != checksum({"gateway": {"config": {"connect_timeout_s": 5.0}}})


@pytest.mark.parametrize(
    ("gateway", "share"),
    [
        ({"replicas": 4}, 0.25),
        ({"autoscaling": {"enabled": True, "minReplicas": 2, "maxReplicas": 8}}, 0.5),
        ({"limitShare": 0.1}, 0.1),
    ],
)
def test_limits_of_keys_are_shared_out(gateway: Mapping[str, Any], share: float) -> None:
    assert gateway_config(objects({"gateway": gateway})).limit_share == pytest.approx(share)


KEYS: Mapping[str, tuple[str, ...]] = {
    "containers": ("name",), "initContainers": ("name",), "env": ("name",), "volumes": ("name",),
    "volumeMounts": ("mountPath",), "imagePullSecrets": ("name",), "topologySpreadConstraints": ("topologyKey",),
    "ports": ("containerPort", "port", "endPort", "protocol"),
}  # fmt: skip
"""What the items of a list are told apart by in a server-side apply, which is how Helm 4 installs."""


def repeated(found: Any, path: str = "") -> Iterator[str]:
    """Items of lists that stand there twice; an API server refuses the object for one of them."""
    for name, part in found.items() if isinstance(found, Mapping) else ():
        if isinstance(part, list) and name in KEYS:
            keys = [tuple(item.get(key) for key in KEYS[name]) for item in part]
            yield from (f"{path}.{name}: {key}" for index, key in enumerate(keys) if key in keys[:index])
        yield from repeated(part, f"{path}.{name}")
    for item in found if isinstance(found, list) else ():
        yield from repeated(item, path)


@pytest.mark.parametrize("name", EVERY)
def test_no_list_that_a_server_merges_names_an_item_twice(name: str) -> None:
    assert [where for o in objects(name) for where in repeated(o, o["kind"])] == []


def test_an_environment_that_is_given_wins_over_the_charts_own() -> None:
    found = objects({"controller": {"env": {"TIDEGATE_HOST": "::1", "OTHER": "1"}}})
    env = one(found, "Deployment", "r-controller")["spec"]["template"]["spec"]["containers"][0]["env"]
    assert [e["value"] for e in env if e["name"] in ("TIDEGATE_HOST", "OTHER")] == ["1", "::1"]
    assert list(repeated({"env": env})) == []


@pytest.mark.parametrize("name", EVERY)
def test_the_controllers_environment_is_good_for_its_settings(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = objects(name)
    container = one(found, "Deployment", "r-controller")["spec"]["template"]["spec"]["containers"][0]
    for variable in container["env"]:
        field_ref = variable.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
        monkeypatch.setenv(
            variable["name"], variable.get("value", {"metadata.namespace": "models"}.get(field_ref, "p"))
        )
    settings = Settings()
    known = {f"TIDEGATE_{field.upper()}" for field in Settings.model_fields}
    assert {v["name"] for v in container["env"]} - {"PYTHONUNBUFFERED"} <= known, (
        "pydantic ignores what it does not know"
    )
    assert settings.auth == "keys"
    assert (settings.platform, settings.release, settings.namespace) == ("kubernetes", "r", "models")
    assert settings.own_gateway_url.partition("://")[2].startswith("r-gateway.models.svc:")
    mounts = tuple(m["mountPath"] + "/" for m in container["volumeMounts"])
    files = [settings.control_token_file, settings.gateway_key_file, settings.store_url_file, settings.tls_cert_file,
             settings.prometheus_token_file, settings.ray_token_file]  # fmt: skip
    files += [webhook.secret_file for webhook in settings.webhooks]
    for path in files:
        assert path is None or str(path).startswith(mounts), path
    assert settings.tracking_uri
    assert len({v["name"] for v in container["env"]}) == len(container["env"]), "a variable is set twice"


def test_traces_go_where_they_should_and_nowhere_unless_asked() -> None:
    assert gateway_config(objects("")).tracing.endpoint == ""
    tracing = gateway_config(objects("ha")).tracing
    assert (tracing.endpoint, tracing.ratio) == ("http://collector.observability.svc:4317", 0.05)
    assert (tracing.canaries_per_s, tracing.engines) == (10.0, "head")


@pytest.mark.parametrize("policy", ["default", "standard", "none"])
def test_gateways_and_controllers_know_one_policy_for_versions_without_one(policy: str) -> None:
    found = objects({"guardrails": {"defaultPolicy": policy}})
    assert gateway_config(found).guard.default_policy == policy
    (container,) = one(found, "Deployment", "r-controller")["spec"]["template"]["spec"]["containers"]
    assert {"name": "TIDEGATE_DEFAULT_POLICY", "value": policy} in container["env"]


@pytest.mark.parametrize("name", EVERY)
def test_controllers_roll_without_a_gap_and_only_the_leader_is_dialled(name: str) -> None:
    found = objects(name)
    spec = one(found, "Deployment", "r-controller")["spec"]
    assert spec["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}
    assert one(found, "Service", "r-controller")["spec"]["selector"]["tidegate.dev/leader"] == "true"
    assert "tidegate.dev/leader" not in spec["template"]["metadata"]["labels"], "else everybody would lead at birth"
    budgets = [o for o in found if o["kind"] == "PodDisruptionBudget" and o["metadata"]["name"] == "r-controller"]
    assert len(budgets) == (spec["replicas"] > 1), "a budget of one pod blocks every drain"


def test_gateways_scale_on_metrics_that_they_have() -> None:
    found = objects("ha")
    scaler = one(found, "HorizontalPodAutoscaler", "r-gateway")["spec"]
    names = {m["pods"]["metric"]["name"] for m in scaler["metrics"]}
    exposed = {family.name for family in GatewayInstruments().registry.collect()}
    assert names == {"tidegate_queue_depth", "tidegate_streams_in_flight"}
    assert names <= exposed
    assert "replicas" not in one(found, "Deployment", "r-gateway")["spec"], "two would fight over the number"
    assert "replicas" in one(objects(""), "Deployment", "r-gateway")["spec"]


def test_prometheus_finds_the_jobs_that_alerts_ask_for() -> None:
    found = objects("gpu")
    monitors = [o for o in found if o["kind"] == "ServiceMonitor"]
    jobs = {r["replacement"] for m in monitors for e in m["spec"]["endpoints"] for r in e["relabelings"]}
    rules = json.dumps(one(found, "PrometheusRule", "r")["spec"])
    asked = set(re.findall(r'job=\\\\?"(tidegate-[a-z]+)', rules))
    assert jobs - asked == {"tidegate-guardrails"}, "that one is missed at the gateways, as verdicts `error`"
    assert asked <= jobs
    for monitor in monitors:
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        (service,) = (o for o in found if o["kind"] == "Service" and wanted <= o["metadata"]["labels"].items())
        assert {e["port"] for e in monitor["spec"]["endpoints"]} <= {p["name"] for p in service["spec"]["ports"]}
    boards = [o for o in found if o["kind"] == "ConfigMap" and o["metadata"]["labels"].get("grafana_dashboard") == "1"]
    assert len(boards) == len(list((ROOT / "monitoring" / "dashboards").glob("*.json")))
    assert all(json.loads(text)["panels"] for board in boards for text in board["data"].values())


# -- secrets ------------------------------------------------------------------------------------------------------


def secret_entries(found: tuple[Object, ...]) -> Iterator[tuple[str, str]]:
    """Every (Secret, entry) that a pod asks for; the entry is empty where it takes all."""
    for _, _, spec in pods(found):
        for volume in spec["volumes"]:
            if "secret" in volume:
                for item in volume["secret"].get("items", [{"key": ""}]):
                    yield volume["secret"]["secretName"], item["key"]
        for container in spec["containers"]:
            for variable in container.get("env", []):
                reference = variable.get("valueFrom", {}).get("secretKeyRef")
                if reference:
                    yield reference["name"], reference["key"]


def named_in_values(name: str) -> set[str]:
    text = (ROOT / "helm" / "tidegate" / "ci" / f"{name}-values.yaml").read_text() if name else ""
    return set(re.findall(r"(?:existingSecret|credentialsSecret|headersSecret): ([a-z-]+)", text))


@pytest.mark.parametrize("name", EVERY)
def test_every_secret_is_made_by_the_job_or_named_by_the_user(name: str) -> None:
    found = objects(name)
    plan = first_secrets(found)
    made = {s["name"]: {*s["make"], *s.get("compose", {})} for s in plan["secrets"]} if plan else {}
    brought = named_in_values(name) | ({"r-store"} if name == "" else set())
    for secret, entry in secret_entries(found):
        assert secret in made or secret in brought, f"nobody makes {secret}"
        assert secret not in made or not entry or entry in made[secret], f"{secret} has no {entry}"
    assert not made.keys() & brought, "the Job must not write into a Secret that the user has brought"
    assert not any(o["kind"] == "Secret" for o in found), "a rendered Secret is a secret in the release's record"


@pytest.mark.parametrize("name", EVERY)
def test_the_job_may_touch_its_own_secrets_only(name: str) -> None:
    found = objects(name)
    plan = first_secrets(found)
    roles = [o for o in found if o["kind"] == "Role" and o["metadata"]["name"] == "r-first-secrets"]
    if plan is None:
        assert not roles
        return
    namespaces = {"models", *(n for s in plan["secrets"] for n in s.get("copy_to", []))}
    assert {r["metadata"]["namespace"] for r in roles} == namespaces
    for role in roles:
        reads, creates = role["rules"]
        assert set(reads["resourceNames"]) == {s["name"] for s in plan["secrets"]}
        assert reads["verbs"] == ["get", "patch"]
        assert creates["verbs"] == ["create"]


def test_the_job_runs_anew_when_there_is_something_new_to_make_and_is_never_changed() -> None:
    def job(values: Mapping[str, Any]) -> Object:
        (found,) = (o for o in objects(values) if o["kind"] == "Job" and "first-secrets" in o["metadata"]["name"])
        return found

    same = job({"gateway": {"replicas": 5}})
    assert job({}) == same, "an upgrade that makes no other Secrets applies the same Job"
    others = [job({"postgresql": {"enabled": True}}), job({"image": {"repository": "tidegate", "tag": "0.1.1"}})]
    names = {o["metadata"]["name"] for o in (same, *others)}
    assert len(names) == 3, "what is in a Job can't be changed, so another one needs another name"
    assert not any("helm.sh/hook" in note for note in same["metadata"].get("annotations", {}))


# -- rights -------------------------------------------------------------------------------------------------------


def test_the_controllers_rights_are_those_of_the_documents_table() -> None:
    """docs/kubernetes.md has a line for each verb and says why; here it is compared with what is granted."""
    granted = set()
    for name in EVERY:
        for role in (o for o in objects(name) if o["kind"] in ("Role", "ClusterRole")):
            if role["metadata"]["name"].endswith(("first-secrets", "uninstall")):
                continue
            last = re.split("[:-]", role["metadata"]["name"])[-1]
            who = last if last in ("gateway", "view", "edit") else "controller"
            for rule in role["rules"]:
                for resource in rule["resources"]:
                    group = rule["apiGroups"][0]
                    granted |= {(who, f"{resource}.{group}" if group else resource, verb) for verb in rule["verbs"]}
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    table = page.partition("| who | resource | verbs |")[2].partition("\n\n")[0]
    told = set()
    for line in table.splitlines()[2:]:
        who, resource, verbs, why = (cell.strip() for cell in line.strip("|").split("|"))
        assert why
        told |= {(who, resource.strip("`"), verb.strip()) for verb in verbs.split(",")}
    assert granted - told == set(), "granted without a reason in the documents"
    assert told - granted == set(), "told of in the documents, not granted"


@pytest.mark.parametrize("name", EVERY)
def test_nobody_may_do_everything_and_nothing_is_cluster_wide_by_default(name: str) -> None:
    for o in objects(name):
        for rule in o.get("rules", []) if o["kind"] in ("Role", "ClusterRole") else []:
            assert "*" not in [*rule["verbs"], *rule["resources"], *rule["apiGroups"]]
            assert not {"escalate", "bind", "impersonate", "deletecollection"} & set(rule["verbs"])
            if "secrets" in rule["resources"]:
                assert rule["verbs"] == ["create"] or rule["resourceNames"], "secrets are read by name only"
        if o["kind"] in CLUSTER_SCOPED:
            assert name == "gpu", "only engine.checkRoom and userRoles.aggregate ask for it"


@pytest.mark.parametrize("name", EVERY)
def test_two_releases_in_two_namespaces_share_nothing(name: str) -> None:
    first, second = ({identity(o) for o in objects(name, namespace=space)} for space in ("one", "two"))
    shared = {(kind, about, space) for kind, about, space in first & second if space in ("", "one", "two")}
    assert shared == set()
    also, other = ({identity(o) for o in objects(name, release=release)} for release in ("a", "b"))
    assert also & other == set()


@pytest.mark.parametrize("name", EVERY)
def test_bindings_bind_roles_and_accounts_that_there_are(name: str) -> None:
    found = objects(name)
    there = {identity(o) for o in found}
    for o in found:
        if o["kind"] in ("RoleBinding", "ClusterRoleBinding"):
            assert (o["roleRef"]["kind"], o["roleRef"]["name"], o["metadata"].get("namespace", "")) in there
            for subject in o["subjects"]:
                assert (subject["kind"], subject["name"], subject["namespace"]) in there
    for owner, _, spec in pods(found):
        assert ("ServiceAccount", spec["serviceAccountName"], "models") in there, owner
