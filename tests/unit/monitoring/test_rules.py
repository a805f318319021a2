"""Every alert fires when it should and is silent when it should be, as Prometheus' own promtool says."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from monitoring.rules.alerts import AUTOMATIC_TRIGGERS, alert_rules
from monitoring.rules.collection import ALERTMANAGER_EXAMPLE, Targets, prometheus_text
from monitoring.rules.document import RULES_FILE, rules_document, rules_text
from monitoring.slo import Availability, FirstToken, ServiceLevels
from rollout.actions import Trigger
from rollout.status import Phase
from tests.promtool import require

RUNBOOKS = Path(__file__).resolve().parents[3] / "docs/runbooks"

OK, ERROR = (f'tidegate_requests_total{{model="chat",version="1.0.0",outcome="{o}"}}' for o in ("ok", "error"))
NOT_READY = 'tidegate_rejections_total{model="chat",reason="model_not_ready"}'
QUEUE_FULL, OVERLOADED = (NOT_READY.replace("model_not_ready", r) for r in ("queue_full", "overloaded"))
KEYLESS = 'tidegate_rejections_total{model="",reason="keys_unavailable",instance="g:8001"}'
GATEWAY_UP = 'up{job="tidegate-gateway",instance="g:8001"}'
CONTROL_UP = 'up{job="tidegate-control",instance="c:8080"}'
LEASE = 'tidegate_gateway_lease_valid{instance="g:8001"}'
DRIFT_UP = 'up{job="tidegate-drift",instance="d:8090"}'
DRIFTED = 'tidegate_drift_alarm_active{model="chat",stream="all",detector="%s"}'
DROPPED = 'tidegate_gateway_events_dropped_total{instance="g:8001"}'
UNTOLD = 'tidegate_telemetry_dropped_total{instance="g:8001",kind="traces"}'
COUNT = 'gen_ai_server_time_to_first_token_seconds_count{model="chat",version="1.0.0"}'
IN_TIME = 'gen_ai_server_time_to_first_token_seconds_bucket{model="chat",version="1.0.0",le="2.5"}'
READY = 'tidegate_endpoints_ready{model="chat",version="%s",instance="g:8001"}'
ROLE = 'tidegate_revision_info{model="chat",version="%s",role="%s",instance="g:8001"}'
PHASE = 'tidegate_rollout_phase{model="chat",phase="%s"}'
DEGRADED = PHASE % "Degraded"
WEIGHT = 'tidegate_rollout_weight_ratio{model="chat",state="%s"}'
ROLLBACKS = 'tidegate_rollbacks_total{model="chat",trigger="%s"}'


@dataclass(frozen=True)
class Case:
    """Series (Prometheus' notation of tests, one value each `step`), and whether an alert fires `at` minutes."""

    alert: str
    why: str
    fires: bool
    series: dict[str, str]
    at: int
    kind: str = ""
    step: int = 1
    labels: dict[str, str] = field(default_factory=dict)


def burning(kind: str, step: int, count: int, good: int, bad: int, *, fires: bool, why: str) -> Case:
    series = {OK: f"0+{good}x{count}", ERROR: f"0+{bad}x{count}"}
    return Case("TidegateAvailabilityBurn", why, fires, series, count * step, kind, step)


def late(kind: str, step: int, count: int, in_time: int, *, fires: bool, why: str) -> Case:
    series = {COUNT: f"0+100x{count}", IN_TIME: f"0+{in_time}x{count}"}
    return Case("TidegateFirstTokenBurn", why, fires, series, count * step, kind, step)


FAST, SLOW, TICKET = "14.4x over 1h", "6x over 6h", "1x over 3d"

CASES = [
    burning(FAST, 1, 70, 980, 20, fires=True, why="2 % fail for an hour"),
    burning(FAST, 1, 70, 990, 10, fires=False, why="1 % is below 14.4 times the budget"),
    Case("TidegateAvailabilityBurn", "it was over ten minutes ago", False,
         {OK: "0+980x80", ERROR: "0+20x60 1200x20"}, 75, FAST),
    Case("TidegateAvailabilityBurn", "fewer requests than are needed to say", False,
         {OK: "0+1x70", ERROR: "0+0x30 0+0x5 1+0x34"}, 70, FAST),
    Case("TidegateAvailabilityBurn", "no endpoint to send requests to is a failure", True,
         {OK: "0+980x70", NOT_READY: "0+20x70"}, 70, FAST),
    Case("TidegateAvailabilityBurn", "every request fails and none was ever good", True, {ERROR: "0+100x70"}, 70, FAST),
    Case("TidegateAvailabilityBurn", "what is excluded is no failure", False,
         {OK: "0+980x70"} | {OK.replace('"ok"', f'"{o}"'): "0+900x70"
                             for o in ("client_error", "client_abort", "retried")}
         | {NOT_READY.replace("model_not_ready", r): "0+900x70" for r in ("queue_full", "rate_limited")}, 70, FAST),
    burning(SLOW, 5, 80, 990, 10, fires=True, why="1 % fail for six hours"),
    burning(SLOW, 5, 80, 996, 4, fires=False, why="0.4 % is below six times the budget"),
    burning(TICKET, 30, 150, 998, 2, fires=True, why="0.2 % fail for three days"),
    burning(TICKET, 30, 150, 9995, 5, fires=False, why="0.05 % is within the budget"),
    late(FAST, 1, 70, 20, fires=True, why="80 % come late for an hour"),
    late(FAST, 1, 70, 40, fires=False, why="60 % is below 14.4 times the budget"),
    late(SLOW, 5, 80, 60, fires=True, why="40 % come late for six hours"),
    late(SLOW, 5, 80, 80, fires=False, why="20 % is below six times the budget"),
    late(TICKET, 30, 150, 90, fires=True, why="10 % come late for three days"),
    late(TICKET, 30, 150, 97, fires=False, why="3 % is within the budget"),
    Case("TidegateGatewayDown", "it does not answer", True, {GATEWAY_UP: "1x5 0x10"},
         10, labels={"instance": "g:8001", "job": "tidegate-gateway"}),
    Case("TidegateGatewayDown", "one scrape was missed", False,
         {GATEWAY_UP: "1x5 0 1x10"}, 7),
    Case("TidegateNoReadyEndpoint", "stable has none", True,
         {READY % "1.0.0": "1x5 0x10", ROLE % ("1.0.0", "stable"): "1x15"}, 10,
         labels={"model": "chat", "version": "1.0.0", "instance": "g:8001"}),
    Case("TidegateNoReadyEndpoint", "only the canary has none", False,
         {READY % "1.0.0": "1x15", READY % "1.1.0": "0x15", ROLE % ("1.0.0", "stable"): "1x15",
          ROLE % ("1.1.0", "canary"): "1x15"}, 10),
    Case("TidegateQueueShedding", "a third is shed", True, {OK: "0+20x30", OVERLOADED: "0+10x30"},
         20, "above 20 %", labels={"model": "chat"}),
    Case("TidegateQueueShedding", "everything is shed", True, {QUEUE_FULL: "0+10x30"},
         20, "above 20 %", labels={"model": "chat"}),
    Case("TidegateQueueShedding", "a tenth is no page", False, {OK: "0+90x30", OVERLOADED: "0+10x30"},
         20, "above 20 %"),
    Case("TidegateQueueShedding", "a tenth is a ticket", True, {OK: "0+90x30", OVERLOADED: "0+10x30"},
         25, "above 1 %", labels={"model": "chat"}),
    Case("TidegateQueueShedding", "nothing was shed", False, {OK: "0+90x30"}, 25, "above 1 %"),
    Case("TidegateKeysUnavailable", "requests are rejected for want of keys", True,
         {KEYLESS: "0+5x20"}, 15,
         labels={"instance": "g:8001"}),
    Case("TidegateKeysUnavailable", "a wrong key is the caller's fault", False,
         {'tidegate_rejections_total{model="",reason="invalid_api_key",instance="g:8001"}': "0+5x20"}, 15),
    Case("TidegateGatewayRefusing", "it fails itself", True,
         {'tidegate_rejections_total{model="",reason="internal_error",instance="g:8001"}': "0+5x20"}, 15,
         labels={"instance": "g:8001", "reason": "internal_error"}),
    Case("TidegateGatewayRefusing", "what HTTP forbids is the caller's fault", False,
         {'tidegate_rejections_total{model="",reason="malformed_http",instance="g:8001"}': "0+5x20"}, 15),
    Case("TidegateControlPlaneDown", "it does not answer", True, {CONTROL_UP: "1x5 0x20"},
         15, labels={"instance": "c:8080", "job": "tidegate-control"}),
    Case("TidegateControlPlaneDown", "it was restarted", False,
         {CONTROL_UP: "1x5 0x2 1x20"}, 15),
    Case("TidegateGatewayWithoutController", "nobody is heard", True, {LEASE: "1x5 0x20"},
         15, labels={"instance": "g:8001"}),
    Case("TidegateGatewayWithoutController", "somebody is heard again", False,
         {LEASE: "1x5 0x3 1x20"}, 15),
    Case("TidegateStaleTable", "what was decided is not confirmed", True,
         {WEIGHT % "desired": "0.1x20", WEIGHT % "observed": "0.1x5 stale"}, 15, labels={"model": "chat"}),
    Case("TidegateStaleTable", "every gateway follows", False,
         {WEIGHT % "desired": "0.1x20", WEIGHT % "observed": "0.1x20"}, 15),
    Case("TidegateRolloutStuck", "three hours at one weight", True,
         {PHASE % "Progressing": "1x200", WEIGHT % "desired": "0.1x200"}, 180, labels={"model": "chat"}),
    Case("TidegateRolloutStuck", "it moved an hour ago", False,
         {PHASE % "Progressing": "1x200", WEIGHT % "desired": "0.1x120 0.5x80"}, 180),
    Case("TidegateRolloutStuck", "it began an hour ago", False,
         {PHASE % "Progressing": "0x120 1x80", WEIGHT % "desired": "0x120 0.1x80"}, 180),
    Case("TidegateRolloutStuck", "Prometheus has looked for half an hour only", False,
         {PHASE % "Progressing": "1x40", WEIGHT % "desired": "0.1x40"}, 35),
    Case("TidegateRolloutWaiting", "paused for forty minutes", True, {PHASE % "Paused": "1x60"}, 40,
         labels={"model": "chat"}),
    Case("TidegateRolloutWaiting", "resumed after ten minutes", False, {PHASE % "Paused": "1x10 0x60"}, 40),
    Case("TidegateRolledBack", "the first rollback ever, whose counter begins at 1", True,
         {DEGRADED: "0x60", ROLLBACKS % "signal": "_x30 1x30"}, 32,
         labels={"model": "chat", "trigger": "signal"}),
    Case("TidegateRolledBack", "another rollback", True, {DEGRADED: "0x60", ROLLBACKS % "signal": "3x30 4x30"},
         32, labels={"model": "chat", "trigger": "signal"}),
    Case("TidegateRolledBack", "it was yesterday", False, {DEGRADED: "0x60", ROLLBACKS % "signal": "4x60"}, 32),
    Case("TidegateRolledBack", "an operator did it", False,
         {DEGRADED: "0x60", ROLLBACKS % "operator": "0x30 1x30"}, 32),
    Case("TidegateRolledBack", "Prometheus has just started and sees old ones", False,
         {DEGRADED: "0x10", ROLLBACKS % "signal": "4x10"}, 5),
    Case("TidegateEvidenceLost", "events were dropped", True, {DROPPED: "0x10 5x20"},
         15, labels={"instance": "g:8001"}),
    Case("TidegateEvidenceLost", "none were", False, {DROPPED: "0x30"}, 15),
    Case("TidegateInputDrift", "requests are about something else", True, {DRIFTED % "embedding": "0x10 1x20"}, 15,
         "alarm", labels={"model": "chat", "stream": "all", "detector": "embedding"}),
    Case("TidegateInputDrift", "somebody has acknowledged it", False,
         {DRIFTED % "embedding": "1x10 0x20"}, 15, "alarm"),
    Case("TidegateInputDrift", "the kernel window warns and goes on warning", True,
         {DRIFTED % "kernel_window": "0x10 1x30"}, 30, "warning",
         labels={"model": "chat", "stream": "all", "detector": "kernel_window"}),
    Case("TidegateInputDrift", "a warning that is over soon", False,
         {DRIFTED % "kernel_window": "0x10 1x5 0x20"}, 30, "warning"),
    Case("TidegateDriftWatchDown", "the watch does not answer", True, {DRIFT_UP: "1x5 0x20"}, 20,
         labels={"job": "tidegate-drift", "instance": "d:8090"}),
    Case("TidegateDriftWatchDown", "it was started anew", False, {DRIFT_UP: "1x5 0x2 1x20"}, 20),
    Case("TidegateTelemetryLost", "traces were dropped", True, {UNTOLD: "0x10 5x20"},
         15, labels={"instance": "g:8001", "kind": "traces"}),
    Case("TidegateTelemetryLost", "none were", False, {UNTOLD: "0x30"}, 15),
]  # fmt: skip


def severity(case: Case) -> str:
    found = {a.severity.value for a in alert_rules(ServiceLevels()) if (a.name, a.kind) == (case.alert, case.kind)}
    assert len(found) == 1, "the case names one rule"
    return found.pop()


def as_test(case: Case) -> dict[str, object]:
    labels = {"alertname": case.alert, "alertstate": "firing", "severity": severity(case)}
    labels |= {"kind": case.kind} if case.kind else {}
    asked = ",".join(f'{k}="{v}"' for k, v in labels.items())
    shown = labels | (case.labels or {"model": "chat"})
    sample = "ALERTS{" + ",".join(f'{k}="{v}"' for k, v in shown.items()) + "}"
    return {
        "interval": f"{case.step}m",
        "input_series": [{"series": name, "values": values} for name, values in case.series.items()],
        "promql_expr_test": [
            {
                "expr": f"ALERTS{{{asked}}}",
                "eval_time": f"{case.at}m",
                "exp_samples": [{"labels": sample, "value": 1}] if case.fires else [],
            }
        ],
    }


def document_of(case: Case) -> dict[str, object]:
    order = [group["name"] for group in rules_document(ServiceLevels())["groups"]]  # promtool's own order is by chance
    interval = {"evaluation_interval": f"{case.step}m", "group_eval_order": order}
    return {"rule_files": ["rules.yml"], **interval, "tests": [as_test(case)]}


def promtool(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([require("promtool"), *arguments], cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("rules")
    (found / "rules.yml").write_text(rules_text(ServiceLevels()))
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.alert}-{c.kind}-{c.why}".replace(" ", "_"))
def test_an_alert_fires_or_stays_silent(case: Case, folder: Path) -> None:
    document = document_of(case)
    (folder / "case.yml").write_text(yaml.safe_dump(document))
    result = promtool("test", "rules", "case.yml", cwd=folder)
    assert result.returncode == 0, f"{case.why}\n{result.stdout}{result.stderr}"


@pytest.mark.parametrize("fires", [True, False])
def test_every_rule_has_a_case_that_fires_and_one_that_does_not(fires: bool) -> None:
    rules = {(a.name, a.kind) for a in alert_rules(ServiceLevels())}
    assert {(c.alert, c.kind) for c in CASES if c.fires is fires} == rules


def test_a_case_that_is_wrong_is_noticed(folder: Path) -> None:
    wrong = Case("TidegateEvidenceLost", "", True, {'tidegate_gateway_events_dropped_total{instance="g"}': "0x30"}, 15)
    document = document_of(wrong)
    (folder / "case.yml").write_text(yaml.safe_dump(document))
    assert promtool("test", "rules", "case.yml", cwd=folder).returncode != 0


LEVELS = {
    "as shipped": ServiceLevels(),
    "stricter": ServiceLevels(availability=Availability(objective=0.9999), first_token=FirstToken(within_s=0.25)),
    "without bad rejections": ServiceLevels(availability=Availability(bad_rejections=())),
}


@pytest.mark.parametrize("name", LEVELS)
def test_rules_of_other_service_levels_are_valid(name: str, tmp_path: Path) -> None:
    (tmp_path / "rules.yml").write_text(rules_text(LEVELS[name]))
    result = promtool("check", "rules", "rules.yml", cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_file_in_the_package_is_what_the_generator_writes() -> None:
    assert RULES_FILE.read_text() == rules_text(ServiceLevels()), "run `python -m monitoring.rules.document`"


@pytest.mark.parametrize("alert", sorted({a.name for a in alert_rules(ServiceLevels())}))
def test_every_alert_has_a_runbook_that_says_what_to_do(alert: str) -> None:
    text = (RUNBOOKS / f"{alert}.md").read_text()
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert headings == ["What it means", "What to look at", "What to do"]


def test_there_is_no_runbook_without_its_alert() -> None:
    names = {path.stem for path in RUNBOOKS.glob("*.md")} - {"README"}
    assert names == {a.name for a in alert_rules(ServiceLevels())}


def test_runbook_links_begin_with_the_address_that_was_given() -> None:
    groups = rules_document(ServiceLevels(), "https://wiki.example/runbooks/")["groups"]
    links = {r["annotations"]["runbook_url"] for g in groups for r in g["rules"] if "alert" in r}
    assert "https://wiki.example/runbooks/TidegateGatewayDown.md" in links


def test_a_rollback_that_worked_is_a_ticket_and_no_page() -> None:
    assert {a.severity.value for a in alert_rules(ServiceLevels()) if a.name == "TidegateRolledBack"} == {"ticket"}


def test_triggers_and_phases_that_rules_name_exist() -> None:
    assert set(AUTOMATIC_TRIGGERS) == {t.value for t in Trigger} - {"operator", "abort", "superseded"}
    named = {p for a in alert_rules(ServiceLevels()) for p in re.findall(r'phase="(\w+)"', a.expr)}
    assert named <= {phase.value for phase in Phase}


def test_a_configuration_names_only_what_there_is_to_collect(tmp_path: Path) -> None:
    text = prometheus_text(Targets(gateways=("127.0.0.1:8001",), controls=("[::1]:8080",), gpus=("gpu:9400",)), [])
    (tmp_path / "prometheus.yml").write_text(text)
    assert promtool("check", "config", "prometheus.yml", cwd=tmp_path).returncode == 0
    jobs = {c["job_name"]: c["static_configs"][0]["targets"] for c in yaml.safe_load(text)["scrape_configs"]}
    assert jobs == {"tidegate-gateway": ["127.0.0.1:8001"], "tidegate-control": ["[::1]:8080"], "dcgm": ["gpu:9400"]}


def test_the_example_for_alertmanager_routes_both_severities() -> None:
    found = yaml.safe_load(ALERTMANAGER_EXAMPLE)
    receivers = {r["name"] for r in found["receivers"]}
    assert {found["route"]["receiver"], found["route"]["routes"][0]["receiver"]} == receivers
