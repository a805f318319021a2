"""The dashboards: as generated, valid for Grafana, and without a name that nothing exports."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard as GrafanaDashboard

from monitoring.dashboards import grafana
from monitoring.dashboards.catalogue import EXPORTED, FOREIGN, PROMISED, Source, known_series
from monitoring.dashboards.expressions import metric_names
from monitoring.rules.document import rules_document
from monitoring.slo import ServiceLevels

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
    expressions = [t["expr"] for p in written(uid)["panels"] for t in p.get("targets") or ()]
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


def test_the_overview_alone_shows_the_version_the_users_and_the_evidence() -> None:
    expressions = " ".join(t["expr"] for p in written("tidegate-overview")["panels"] for t in p.get("targets") or ())
    for needed in (
        "tidegate_revision_info", "tidegate_rollout_phase", "tidegate_rollout_weight_ratio",
        "model_version:tidegate_requests_bad:ratio_rate5m", "model_version:tidegate_first_token_seconds:p95_5m",
        "tidegate_rollout_log_evidence", "tidegate_rollout_evidence_threshold", "ALERTS",
    ):  # fmt: skip
        assert needed in expressions


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
