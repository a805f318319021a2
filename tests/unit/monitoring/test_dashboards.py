"""The dashboards: as generated, valid for Grafana, and without a name that nothing exports."""

from __future__ import annotations

import enum
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard as GrafanaDashboard

from monitoring.dashboards import grafana, words
from monitoring.dashboards.catalogue import EXPORTED, FOREIGN, PROMISED, Source, known_series
from monitoring.dashboards.expressions import metric_names
from monitoring.rules.document import RUNBOOKS, rules_document
from monitoring.slo import ServiceLevels, Severity
from rollout.actions import Trigger
from rollout.decision import Cause
from rollout.observation import Verdict
from rollout.status import Phase, Stage

ROOT = Path(__file__).resolve().parents[3]
UIDS = [d.uid for d in grafana.WRITTEN]


def written(uid: str) -> dict[str, Any]:
    return json.loads((grafana.FOLDER / f"{uid}.json").read_text())


def rules() -> list[dict[str, Any]]:
    return [rule for group in rules_document(ServiceLevels())["groups"] for rule in group["rules"]]


def recorded() -> set[str]:
    return {rule["record"] for rule in rules() if "record" in rule}


def with_rays_names(names: frozenset[str]) -> frozenset[str]:
    return names | {name.replace("vllm:", "ray_vllm_") for name in names if name.startswith("vllm:")}


@pytest.mark.parametrize("dashboard", grafana.WRITTEN, ids=UIDS)
def test_the_file_in_the_package_is_what_the_generator_writes(dashboard: Any) -> None:
    assert (grafana.FOLDER / f"{dashboard.uid}.json").read_text() == grafana.text(dashboard), (
        "run `python -m monitoring.dashboards.grafana`"
    )


def test_there_is_no_file_without_its_dashboard() -> None:
    assert {p.stem for p in grafana.FOLDER.glob("*.json")} == set(UIDS)


@pytest.mark.parametrize("uid", UIDS)
def test_a_file_goes_through_grafanas_schema_unchanged(uid: str) -> None:
    register_default_plugins()
    data = written(uid)
    for mark in data["annotations"]["list"]:  # of Grafana's Prometheus data source, which the SDK does not know
        for field in ("titleFormat", "textFormat", "tagKeys", "useValueForTime", "step"):
            del mark[field]
    assert json.loads(json.dumps(GrafanaDashboard.from_json(data), cls=JSONEncoder)) == data


@pytest.mark.parametrize("uid", UIDS)
def test_panels_have_ids_of_their_own_and_do_not_overlap(uid: str) -> None:
    panels = written(uid)["panels"]
    assert len({p["id"] for p in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24, panel["title"]
        assert not cells & taken, panel["title"]
        taken |= cells


@pytest.mark.parametrize("uid", UIDS)
def test_a_panel_says_what_it_shows_and_links_lead_to_dashboards(uid: str) -> None:
    for panel in written(uid)["panels"]:
        if panel["type"] == "row":
            continue
        assert panel["description"]
        assert panel["targets"]
        for link in panel.get("links") or ():
            assert link["url"].split("/d/")[1].split("?")[0] in UIDS


@pytest.mark.parametrize("uid", UIDS)
def test_panels_name_only_metrics_that_exist(uid: str) -> None:
    known = with_rays_names(known_series((*EXPORTED, *FOREIGN))) | recorded()
    data = written(uid)
    expressions = [t["expr"] for p in data["panels"] for t in p.get("targets") or ()]
    expressions += [mark["expr"] for mark in data["annotations"]["list"]]
    assert expressions
    assert {name for e in expressions for name in metric_names(e)} - known == set()


def test_rules_name_only_metrics_that_exist() -> None:
    known = known_series((*EXPORTED, *FOREIGN)) | recorded()
    assert {name for rule in rules() for name in metric_names(rule["expr"])} - known == set()


def test_no_metric_is_both_there_and_promised() -> None:
    assert not known_series(EXPORTED) & known_series(PROMISED)


def test_promised_metrics_are_said_to_come_later() -> None:
    later = (ROOT / "docs/monitoring.md").read_text().split("## What comes later")[1]
    assert [m.name for m in PROMISED if f"`{m.name}`" not in later] == []


def test_what_waits_for_a_metric_is_left_out_and_listed_in_the_documentation() -> None:
    text = (ROOT / "docs/monitoring.md").read_text()
    assert grafana.left_out() or not PROMISED
    for dashboard, title, metrics in grafana.left_out():
        uid = next(d.uid for d in grafana.WRITTEN if d.title == dashboard)
        assert title not in {p["title"] for p in written(uid)["panels"]}
        assert f"| {title} | {', '.join(f'`{m}`' for m in metrics)} |" in text


def test_every_metric_is_in_the_documentation() -> None:
    text = (ROOT / "docs/monitoring.md").read_text()
    assert [m.name for m in (*EXPORTED, *FOREIGN) if f"`{m.name}`" not in text] == []


def rows(uid: str) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for panel in sorted(written(uid)["panels"], key=lambda p: (p["gridPos"]["y"], p["gridPos"]["x"])):
        if panel["type"] == "row":
            under = found.setdefault(panel["title"], [])
        else:
            under.append(panel)
    return found


def shown(panel: dict[str, Any]) -> list[str]:
    """What a table has for headings, from left to right."""
    told = next(t for t in panel["transformations"] if t["id"] == "organize")["options"]
    return [told["renameByName"][source] for source in sorted(told["indexByName"], key=told["indexByName"].get)]


ASKED = {
    "Which version is rolling out": {
        "Rollouts, one line for each model": ["Namespace", "Model", "Phase", "Stable version", "New version",
                                              "The new version", "Its part of traffic", "Step", "of", "Why",
                                              "Strategy", "Began"],
        "Canary's part of new requests": None,
        "Requests that met the new version": None,
    },
    "Do users feel it": {
        "Alerts that fire": ["Severity", "Alert", "Model"],
        "Bad requests, stable against canary": None, "Time to first token, p95": None, "Shed requests": None,
        "Requests per second": None, "Ready endpoints of stable": None, "Gateways that hear a controller": None,
    },
    "What the evidence says": {
        "Evidence against the new version, by signal": None,
        "Verdicts, by signal": ["Model", "Version", "Signal", "Verdict", "Against it", "For it",
                                "About so many more requests"],
        "Evidence against the new version, over time": None, "Rollbacks by why": None,
    },
}  # fmt: skip
"""The overview as the person on call reads it, from top to bottom."""


def test_the_overview_answers_its_three_questions_from_top_to_bottom() -> None:
    read = {
        title: {p["title"]: shown(p) if p["type"] == "table" else None for p in panels}
        for title, panels in rows("tidegate-overview").items()
    }
    assert list(read) == list(ASKED)
    assert read == ASKED


def test_lines_of_users_name_the_model_the_version_and_its_role() -> None:
    for panel in rows("tidegate-overview")["Do users feel it"]:
        legends = [t.get("legendFormat", "") for t in panel["targets"]]
        if panel["title"] in ("Bad requests, stable against canary", "Time to first token, p95", "Requests per second"):
            assert legends == ["{{model}} stable {{version}}", "{{model}} canary {{version}}"]


def test_limits_on_the_overview_are_those_of_the_service_levels() -> None:
    levels = ServiceLevels()
    by_title = {p["title"]: p for p in written("tidegate-overview")["panels"]}
    steps = {t: by_title[t]["fieldConfig"]["defaults"]["thresholds"]["steps"][1]["value"] for t in by_title
             if "thresholds" in by_title[t].get("fieldConfig", {}).get("defaults", {})}  # fmt: skip
    assert steps["Bad requests, stable against canary"] == pytest.approx(1 - levels.availability.objective)
    assert steps["Time to first token, p95"] == levels.first_token.within_s
    drawn = by_title["Time to first token, p95"]["fieldConfig"]["defaults"]["custom"]["thresholdsStyle"]
    assert drawn == {"mode": "line"}


def test_from_the_overview_one_gets_to_the_rollout_and_to_the_runbook_of_an_alert() -> None:
    data = json.dumps(written("tidegate-overview"))
    assert "/d/tidegate-rollout?${__url_time_range}&${datasource:queryparam}&var-model=${__value.raw}" in data
    assert "${runbooks}/${__value.raw}.md" in data
    variables = {v["name"]: v for v in written("tidegate-overview")["templating"]["list"]}
    assert list(variables) == ["datasource", "namespace", "model", "runbooks"]
    assert variables["runbooks"]["query"] == RUNBOOKS


@pytest.mark.parametrize("uid", UIDS)
def test_every_graph_is_marked_when_a_rollout_begins_and_ends(uid: str) -> None:
    marks = {m["name"]: m for m in written(uid)["annotations"]["list"]}
    assert list(marks) == ["Rollout began", "Promoted", "Taken back"]
    assert all(m["useValueForTime"] and m["expr"].startswith("1000 * ") for m in marks.values())


WORDED = (
    (words.PHASES, Phase), (words.STAGES, Stage), (words.CAUSES, Cause), (words.CAUSES, Trigger),
    (words.VERDICTS, Verdict), (words.SEVERITIES, Severity),
)  # fmt: skip


@pytest.mark.parametrize(("said", "values"), WORDED, ids=lambda v: getattr(v, "__name__", ""))
def test_nobody_has_to_know_our_names(said: words.Words, values: type[enum.StrEnum]) -> None:
    assert {v.value for v in values} - set(said) == set()


def test_there_is_no_word_for_what_does_not_exist() -> None:
    existing = {v.value for values in (Phase, Stage, Cause, Trigger, Verdict, Severity) for v in values}
    assert {key for said, _ in WORDED for key in said} == existing


def test_vllms_names_are_in_the_source_of_the_vllm_that_is_installed() -> None:
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        pytest.skip("vLLM is not installed; `make venv` does that")
    source = (Path(spec.origin).parent / "v1/metrics/loggers.py").read_text()
    names = [m.name.removesuffix("_total") for m in FOREIGN if m.source is Source.ENGINE]
    assert [name for name in names if f'"{name}"' not in source] == []


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ("up", {"up"}),
        ('rate(a_total{x="b_total", y=~"c|d"}[5m])', {"a_total"}),
        ("sum by (model, le) (rate(a_bucket[$__rate_interval]))", {"a_bucket"}),
        ("a / on (model) group_left (role) b", {"a", "b"}),
        ("x:y:rate5m > 0.5 and on () count(z offset 15m)", {"x:y:rate5m", "z"}),
        ("(a or 0 * b) unless c", {"a", "b", "c"}),
        ("sum(vllm:num_requests_running) or sum(ray_vllm_num)", {"vllm:num_requests_running", "ray_vllm_num"}),
        ('a{model=~"$model",b="{}"} == 1e3', {"a"}),
        ("histogram_quantile(0.95, sum without (pod) (a_bucket))", {"a_bucket"}),
    ],
)
def test_names_are_found_in_an_expression(expression: str, names: set[str]) -> None:
    assert metric_names(expression) == names
