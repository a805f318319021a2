"""Drift watch, request log, traces, service levels and the guardrails' models: what is mounted, told and kept."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import helm_python as helm
import pytest
import yaml

from monitoring.rules.collection import DISCOVERED_JOB, RAY_JOB
from monitoring.rules.document import rules_document
from monitoring.slo import Availability, FirstToken, ServiceLevels
from rollout.workloads.base import Workload
from rollout.workloads.engine_pods import EngineCluster
from rollout.workloads.rayservice import rayservice
from serving.drift.config import DriftConfig
from serving.gateway.config import GatewayConfig
from serving.specs import EngineKind, RevisionSpec
from tests.unit.helm.charts import CHART, ROOT, SETS, Object, identity, objects, one, values_of
from tidegate.settings import Settings

EVERY = ("", *SETS)
HOME = "/var/lib/tidegate"


def pod(found: tuple[Object, ...], name: str) -> Any:
    return one(found, "Deployment", f"r-{name}")["spec"]["template"]["spec"]


def environment(found: tuple[Object, ...], name: str) -> Mapping[str, Any]:
    return {v["name"]: v.get("value", v.get("valueFrom")) for v in pod(found, name)["containers"][0]["env"]}


def volume(found: tuple[Object, ...], name: str, mount: str) -> Any:
    """What lies at a place of a pod's first container; None where nothing of its own does."""
    spec = pod(found, name)
    names = [m["name"] for m in spec["containers"][0]["volumeMounts"] if m["mountPath"] == mount]
    return next((v for v in spec["volumes"] if names == [v["name"]]), None)


def gateway(found: tuple[Object, ...]) -> GatewayConfig:
    return GatewayConfig.from_json(one(found, "ConfigMap", "r-gateway")["data"]["gateway.json"])


def workload(namespace: str) -> Workload:
    revision = RevisionSpec(
        model="chat", version="1.3.0", manifest_sha256="ab" * 32, engine=EngineKind.SIMULATED, engine_image="engine:1",
        source="sim:?", accelerator="cpu",
    )  # fmt: skip
    return Workload(revision=revision, replicas=1, namespace=namespace)


# -- drift ------------------------------------------------------------------------------------------------------------


def test_gateways_watch_and_controller_meet_with_one_key() -> None:
    found = objects("")
    deployment = one(found, "Deployment", "r-drift")["spec"]
    command = pod(found, "drift")["containers"][0]["command"]
    watch, told = DriftConfig.from_json(command[-1]), gateway(found)
    assert command[:3] == ["python", "-m", "serving.drift.main"]
    assert (deployment["replicas"], deployment["strategy"]) == (1, {"type": "Recreate"}), "its volume is for one node"
    assert watch.home == Path(HOME)
    assert told.drift_address == f"r-drift.models.svc:{watch.feed_port}"
    env = environment(found, "controller")
    assert env["TIDEGATE_DRIFT_WATCH_URL"] == f"http://r-drift.models.svc:{watch.port}"
    ports = {p["port"]: p["targetPort"] for p in one(found, "Service", "r-drift")["spec"]["ports"]}
    assert ports == {watch.port: "http", watch.feed_port: "feed"}
    assert told.drift_key_file == watch.key_file == Path(env["TIDEGATE_DRIFT_KEY_FILE"])
    for name in ("drift", "gateway", "controller"):
        secret = volume(found, name, str(Path(env["TIDEGATE_DRIFT_KEY_FILE"]).parent))["secret"]
        assert (secret["secretName"], secret["items"]) == ("r-drift", [{"key": "key", "path": "key"}])


@pytest.mark.parametrize("set_", EVERY)
def test_a_user_is_erased_at_the_watch_under_the_mark_that_gateways_make(set_: str) -> None:
    found = objects(set_)
    file = Path(environment(found, "controller")["TIDEGATE_REQUEST_SECRET_FILE"])
    mounted = volume(found, "controller", str(file.parent))["secret"]
    assert mounted["items"] == [{"key": file.name, "path": file.name}]
    assert mounted["secretName"] == volume(found, "gateway", "/etc/tidegate/secrets/gateway")["secret"]["secretName"]
    assert gateway(found).secret_file == Path("/etc/tidegate/secrets/gateway") / file.name


def test_references_outlive_the_pod_and_the_release_unless_that_is_not_wanted() -> None:
    found = objects("")
    assert volume(found, "drift", HOME)["persistentVolumeClaim"] == {"claimName": "r-drift"}
    claim = one(found, "PersistentVolumeClaim", "r-drift")
    assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    found = objects({"drift": {"persistence": False}})
    assert "emptyDir" in volume(found, "drift", HOME)
    assert not any(o["kind"] == "PersistentVolumeClaim" and o["metadata"]["name"] == "r-drift" for o in found)


def test_without_a_watch_nobody_speaks_of_one() -> None:
    found = objects({"drift": {"enabled": False}, "monitoring": {"serviceMonitor": {"enabled": True}}})
    assert not [o for o in found if o["metadata"]["name"] == "r-drift"]
    assert gateway(found).drift_address is None
    assert environment(found, "controller")["TIDEGATE_DRIFT"] == "false"
    monitors = [o["spec"]["selector"]["matchLabels"] for o in found if o["kind"] == "ServiceMonitor"]
    assert {"controller", "gateway-admin"} == {m["app.kubernetes.io/component"] for m in monitors}
    (policy,) = (o for o in found if o["kind"] == "NetworkPolicy" and o["metadata"]["name"] == "r-gateway")
    assert 8091 not in {p["port"] for rule in policy["spec"]["egress"] for p in rule.get("ports", [])}


# -- bias probes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpu", "ha"])
def test_probes_ask_the_leader_and_the_gateways_by_their_names_and_with_the_bootstrap_token(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = objects(name)
    env = environment(found, "probes")
    for variable, value in env.items():
        monkeypatch.setenv(variable, value)
    settings = Settings()
    service = one(found, "Service", "r-controller")["spec"]["ports"]
    assert settings.control_url == f"http://r-controller.models.svc:{service[0]['port']}"
    assert (settings.auth, settings.probe_every_h) == ("keys", values_of(name)["probes"].get("everyHours", 24))
    told = environment(found, "controller")
    for same in ("GATEWAY_INTERNAL_URL", "TRACKING_URI", "TLS_CERT_FILE", "CONTROL_TOKEN_FILE"):
        assert env.get(f"TIDEGATE_{same}") == told.get(f"TIDEGATE_{same}")
    for file in filter(None, (settings.credentials_file, settings.tls_cert_file)):
        mounted = volume(found, "probes", str(file.parent))["secret"]
        assert mounted == volume(found, "controller", str(file.parent))["secret"]
        assert file.name in {item["path"] for item in mounted["items"]}
    assert not [o for o in objects("") if o["metadata"]["name"] == "r-probes"]


# -- engines' metrics --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpu", "ha"])
def test_prometheus_finds_engines_where_gateways_list_them_and_ray_by_the_labels_of_its_pods(name: str) -> None:
    found = objects(name)
    spec = one(found, "ScrapeConfig", "r-engines")["spec"]
    (source,) = spec["httpSDConfigs"]
    url = urlsplit(source["url"])
    ports = {p["port"] for p in one(found, "Service", "r-gateway-admin")["spec"]["ports"]}
    assert (url.hostname, url.path) == ("r-gateway-admin.models.svc", "/targets")
    assert url.port in ports
    assert spec["relabelings"] == [{"targetLabel": "job", "replacement": DISCOVERED_JOB}]

    watched = json.loads(environment(found, "controller")["TIDEGATE_WATCH_NAMESPACES"])
    spec = one(found, "PodMonitor", "r-ray")["spec"]
    assert spec["namespaceSelector"] == {"matchNames": watched}
    cluster = EngineCluster(release="r", ray_version="2.60.0", ray_auth_secret="s")
    ray = rayservice(workload(namespace=watched[-1]), cluster, None)["spec"]["rayClusterConfig"]
    (endpoint,) = spec["podMetricsEndpoints"]
    told = {r["targetLabel"]: r.get("replacement") for r in endpoint["relabelings"]}
    assert told == {"job": RAY_JOB, "model": None, "version": None}
    for group in (ray["headGroupSpec"], *ray["workerGroupSpecs"]):
        pod = group["template"]
        assert spec["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
        known = {re.sub(r"[^a-zA-Z0-9_]", "_", label) for label in pod["metadata"]["labels"]}
        for rule in endpoint["relabelings"]:
            assert {s.removeprefix("__meta_kubernetes_pod_label_") for s in rule.get("sourceLabels", ())} <= known
        ports = {p["name"]: p["containerPort"] for p in pod["spec"]["containers"][0]["ports"]}
        assert str(ports[endpoint["port"]]) == group["rayStartParams"]["metrics-export-port"]


def test_nothing_is_made_for_an_operator_that_nobody_named() -> None:
    assert not {o["kind"] for o in objects("")} & {"ServiceMonitor", "PodMonitor", "ScrapeConfig", "PrometheusRule"}


# -- request log ------------------------------------------------------------------------------------------------------


def test_nothing_is_logged_of_requests_unless_asked() -> None:
    found = objects("")
    assert gateway(found).request_log.ratio == 0
    assert volume(found, "gateway", f"{HOME}/requests") is None
    assert volume(found, "controller", f"{HOME}/requests") is None


@pytest.mark.parametrize(("name", "claim"), [("ha", "r-request-log"), ("external-everything", "request-logs")])
def test_what_gateways_log_the_control_plane_reads_and_can_erase(name: str, claim: str) -> None:
    found = objects(name)
    for part in ("gateway", "controller"):
        assert volume(found, part, f"{HOME}/requests")["persistentVolumeClaim"] == {"claimName": claim}
    secrets = {
        part: volume(found, part, f"/etc/tidegate/secrets/{mount}")["secret"]["secretName"]
        for part, mount in (("gateway", "gateway"), ("controller", "requests"))
    }
    assert secrets["gateway"] == secrets["controller"], "users stand in the log under a mark made with it"
    assert environment(found, "controller")["TIDEGATE_REQUEST_SECRET_FILE"].endswith("requests/request-id-secret")
    assert (
        pod(found, "gateway")["securityContext"]["runAsUser"]
        == pod(found, "controller")["securityContext"]["runAsUser"]
    )
    made = [o for o in found if o["kind"] == "PersistentVolumeClaim" and o["metadata"]["name"] == "r-request-log"]
    assert [o["spec"]["accessModes"] for o in made] == ([["ReadWriteMany"]] if name == "ha" else [])


def test_on_its_own_disk_a_gateways_log_has_room_and_shippers_see_the_last_line() -> None:
    found = objects("gpu")
    settings, disk = gateway(found).request_log, volume(found, "gateway", f"{HOME}/requests")["emptyDir"]
    assert (settings.ratio, settings.mib) == (0.01, 1024)
    assert int(disk["sizeLimit"].removesuffix("Mi")) >= settings.mib + 3 * settings.segment_mib
    (shipper,) = pod(found, "gateway")["initContainers"]
    assert shipper["restartPolicy"] == "Always", "it starts before the gateway and ends after it"
    assert shipper["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert volume(found, "controller", f"{HOME}/requests") is None


# -- traces and service levels ----------------------------------------------------------------------------------------


def test_a_collector_that_asks_who_is_there_is_told_by_gateways() -> None:
    found = objects("external-everything")
    reference = {"secretKeyRef": {"name": "otlp-login", "key": "headers"}}
    assert environment(found, "gateway")["OTEL_EXPORTER_OTLP_HEADERS"] == reference
    assert gateway(found).tracing.endpoint == "https://otlp.example.com:14318"
    assert "OTEL_EXPORTER_OTLP_HEADERS" not in environment(objects("ha"), "gateway")
    (engines,) = (o for o in found if o["kind"] == "NetworkPolicy" and o["metadata"]["name"] == "r-engines")
    ports = [p["port"] for rule in engines["spec"]["egress"] for p in rule.get("ports", []) if "to" in rule]
    assert {4317, 4318, 14318} <= set(ports), "vLLM sends its spans itself"


def rules(**levels: float) -> Any:
    values = {"monitoring": {"prometheusRule": {"enabled": True, "levels": levels}}}
    return one(objects(values), "PrometheusRule", "r")["spec"]


@pytest.mark.parametrize(
    ("availability", "first_token", "seconds"),
    [(0.999, 0.95, 2.5), (0.9995, 0.99, 1), (0.99, 0.9, 0.25), (0.99999, 0.5, 10)],
)
def test_alerts_are_those_of_the_levels_that_are_promised(
    availability: float, first_token: float, seconds: float
) -> None:
    levels = ServiceLevels(
        availability=Availability(objective=availability),
        first_token=FirstToken(objective=first_token, within_s=seconds),
    )
    made = rules(availability=availability, firstToken=first_token, firstTokenSeconds=seconds)
    assert made == rules_document(levels)


def test_the_defaults_are_the_projects_own_and_runbooks_may_be_elsewhere() -> None:
    assert rules() == rules_document(ServiceLevels())
    values = {"monitoring": {"prometheusRule": {"enabled": True, "runbooks": "https://wiki.example.com/tidegate/"}}}
    spec = one(objects(values), "PrometheusRule", "r")["spec"]
    assert spec == rules_document(ServiceLevels(), "https://wiki.example.com/tidegate/")


# -- the guardrails' models -------------------------------------------------------------------------------------------


def test_gateways_ask_the_models_service_where_there_is_one() -> None:
    assert gateway(objects("")).guard.models == "threads"
    found = objects("gpu")
    told, service = gateway(found).guard, one(found, "Service", "r-guardrails")["spec"]
    assert (told.models, told.service) == ("service", "r-guardrails.models.svc:8092")
    assert service["clusterIP"] == "None", "gateways ask each replica, and leave out one that fails"
    command = pod(found, "guardrails")["containers"][0]["command"]
    assert command[1:3] == ["-m", "serving.guard_service.main"]
    assert command[-1] == str(service["ports"][0]["port"])
    scaler = one(objects("ha"), "HorizontalPodAutoscaler", "r-guardrails")["spec"]
    assert scaler["metrics"][0]["resource"]["name"] == "cpu"
    assert "replicas" not in one(objects("ha"), "Deployment", "r-guardrails")["spec"]


def test_the_models_service_is_collected_where_there_is_one() -> None:
    monitoring = {"serviceMonitor": {"enabled": True}}
    peer = {"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}
    found = objects({**values_of("gpu"), "monitoring": monitoring, "networkPolicy": {"monitoringFrom": [peer]}})
    endpoint = one(found, "ServiceMonitor", "r-guardrails")["spec"]["endpoints"][0]
    assert endpoint["port"] in {p["name"] for p in one(found, "Service", "r-guardrails")["spec"]["ports"]}
    assert endpoint["relabelings"] == [{"targetLabel": "job", "replacement": "tidegate-guardrails"}]
    (rule,) = one(found, "NetworkPolicy", "r-guardrails")["spec"]["ingress"]
    assert peer in rule["from"]


def test_mlflow_starts_nothing_beside_its_server() -> None:
    """Seven runners of 235 MB each (measured, 3.17) and the server are more than the container may take."""
    assert environment(objects("minimal"), "mlflow")["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"


def test_gateways_environment_can_be_added_to_and_not_taken_over() -> None:
    found = objects({"gateway": {"env": {"OTEL_EXPORTER_OTLP_COMPRESSION": "gzip"}}})
    assert environment(found, "gateway")["OTEL_EXPORTER_OTLP_COMPRESSION"] == "gzip"
    own = {v for name in EVERY for v in environment(objects(name), "gateway")}
    for name in own:
        values = {**values_of("external-everything"), "gateway": {"env": {name: "x"}}}
        with pytest.raises(helm.HelmError, match=name):
            objects(values)


def test_the_adapters_rule_in_the_documents_serves_what_the_scaler_asks_for() -> None:
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    (text,) = re.findall(r"```yaml\n(  rules:\n.*?)```", page, flags=re.DOTALL)
    (rule,) = yaml.safe_load(text)["rules"]["custom"]
    names, labels = re.fullmatch(r'\{__name__=~"([^"]+)",(.*)\}', rule["seriesQuery"]).groups()  # type: ignore[union-attr]
    scaler = one(objects("ha"), "HorizontalPodAutoscaler", "r-gateway")["spec"]
    assert set(names.split("|")) == {m["pods"]["metric"]["name"] for m in scaler["metrics"]}
    assert set(rule["resources"]["overrides"]) == {"namespace", "pod"}, "what a Pods metric is looked up by"
    assert labels == 'namespace!="",pod!=""'
    assert "<<.LabelMatchers>>" in rule["metricsQuery"]
    assert rule["metricsQuery"].startswith("sum by (<<.GroupBy>>)"), "a gateway has one series for each model"


# -- people and neighbours --------------------------------------------------------------------------------------------


def test_kubernetes_own_roles_take_up_who_may_deploy() -> None:
    def label(role: Object) -> set[str]:
        start = "rbac.authorization.k8s.io/aggregate-to-"
        return {name.removeprefix(start) for name in role["metadata"]["labels"] if name.startswith(start)}

    roles = {o["metadata"]["name"]: o for o in objects("gpu") if o["kind"] == "ClusterRole"}
    assert label(roles["tidegate:models:r:view"]) == {"view", "edit", "admin"}
    assert label(roles["tidegate:models:r:edit"]) == {"edit", "admin"}
    verbs = {v for rule in roles["tidegate:models:r:view"]["rules"] for v in rule["verbs"]}
    assert verbs == {"get", "list", "watch"}
    assert not any("status" in r for rule in roles["tidegate:models:r:edit"]["rules"] for r in rule["resources"])


def chart_that_finds(folder: Path, roles: list[dict[str, Any]]) -> helm.Chart:
    """The chart on a cluster that holds these Roles: a template rendered offline looks nothing up."""
    shutil.copytree(CHART, folder / "tidegate")
    file = folder / "tidegate" / "templates" / "validate.yaml"
    text = file.read_text()
    looked = 'lookup "rbac.authorization.k8s.io/v1" "Role" $namespace ""'
    assert text.count(looked) == 1
    file.write_text(text.replace(looked, f"fromJson `{json.dumps({'items': roles})}`"))
    return helm.Chart.load(folder / "tidegate")


@pytest.mark.parametrize("shared", [False, True])
def test_a_namespace_that_another_release_serves_is_refused(tmp_path: Path, shared: bool) -> None:
    others = [dict(o) for o in objects("", release="other") if o["kind"] == "Role"]
    stranger = {"metadata": {"name": "b-controller"}}
    chart = chart_that_finds(tmp_path, [stranger, *others])
    if shared:
        chart.render({"sharedNamespaces": True}, name="r", namespace="models")
        return
    with pytest.raises(helm.HelmError, match=r"served by the release .*other.* already.*sharedNamespaces=true"):
        chart.render({}, name="r", namespace="models")


def test_an_upgrade_of_the_release_itself_is_none_of_somebody_else(tmp_path: Path) -> None:
    own = [dict(o) for o in objects("ha", release="r") if o["kind"] == "Role"]
    chart_that_finds(tmp_path, own).render({"watchNamespaces": ["team-a"]}, name="r", namespace="models")


def test_no_two_releases_of_one_namespace_can_make_objects_of_one_name() -> None:
    """Also not `a` and `a-gateway`: no ending of a name is another one behind a dash."""
    endings = {
        (o["kind"], o["metadata"]["name"].removeprefix("r"))
        for values in ("gpu", "ha", "minimal", "external-everything")
        for o in objects(values)
        if o["metadata"]["name"].startswith("r")
    }
    for kind, ending in endings:
        for other_kind, other in endings:
            between = ending.removesuffix(other)
            assert kind != other_kind or ending == other or not ending.endswith(other) or not between.startswith("-"), (
                f"release a{between} makes {kind} a{ending}, as release a does"
            )


def test_objects_are_told_apart_by_their_release() -> None:
    for o in objects("ha", release="a"):
        labels = o["metadata"]["labels"]
        assert labels["app.kubernetes.io/instance"] == "a", identity(o)
        selector = o.get("spec", {}).get("selector")
        if o["kind"] in ("Deployment", "StatefulSet", "PodDisruptionBudget", "ServiceMonitor"):
            selector = selector["matchLabels"]
        if o["kind"] == "PodMonitor":  # its pods are the controller's, with labels of their own
            assert selector["matchLabels"]["tidegate.dev/release"] == "a"
        elif isinstance(selector, dict) and o["kind"] != "PersistentVolumeClaim":
            assert selector["app.kubernetes.io/instance"] == "a", identity(o)


def test_the_chart_names_its_rules_file_from_the_generator() -> None:
    text = (ROOT / "scripts" / "chart_rules.py").read_text()
    scope: dict[str, Any] = {"__file__": str(ROOT / "scripts" / "chart_rules.py"), "__name__": "chart_rules"}
    exec(compile(text, "chart_rules.py", "exec"), scope)
    assert (CHART / "files" / "tidegate.rules.yml").read_text() == scope["marked"](), "run scripts/chart_files.sh"
