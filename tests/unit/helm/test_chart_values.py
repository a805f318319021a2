"""What the chart takes and what it refuses, and that schema, README and copied files follow what they are made of."""

from __future__ import annotations

import importlib.util
import json
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import helm_python as helm
import pytest
import yaml

from tests.unit.helm.charts import CHART, ROOT, SETS, render, values_of


@pytest.fixture(scope="module")
def chart_schema() -> ModuleType:
    spec = importlib.util.spec_from_file_location("chart_schema", ROOT / "scripts" / "chart_schema.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_schema_and_readme_are_what_the_values_say(
    chart_schema: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chart_schema.main(["--check"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: 1\n", "a has no comment"),
        ("# Says.\na:\n  b: 1\n", "a.b has no comment"),
        ("# Says.\na: []\n", "a is a list; say with @schema what its items are"),
        ("# Says.\na: {}\n", "a is an empty mapping"),
        ("# Says.\na: null\n", "a is null"),
    ],
)
def test_a_key_that_its_comment_does_not_explain_is_named(chart_schema: ModuleType, text: str, told: str) -> None:
    with pytest.raises(chart_schema.Undescribed, match=told):
        chart_schema.make_schema(text)


def test_no_mapping_of_the_schema_is_open_by_accident(chart_schema: ModuleType) -> None:
    """What has listed properties takes no others, all the way down."""

    def walk(node: object, path: str) -> list[str]:
        found: list[str] = []
        if isinstance(node, dict):
            if "properties" in node and node.get("additionalProperties") is not False and "ipBlock" not in path:
                found.append(path)
            for key, value in node.items():
                found += walk(value, f"{path}/{key}")
        return found

    schema = json.loads(chart_schema.make_schema((CHART / "values.yaml").read_text()))
    assert walk(schema, "") == []


@pytest.mark.parametrize("name", ["", *SETS])
def test_helm_lint_finds_nothing(name: str) -> None:
    report = helm.lint(CHART, values_of(name), strict=True, kube_version="v1.33.0")
    assert report["errors"] == []
    assert [m for m in report["messages"] if m["severity"] > 1] == []


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"gatway": {"replicas": 3}}, "additional properties 'gatway' not allowed"),
        ({"gateway": {"replica": 3}}, "additional properties 'replica' not allowed"),
        ({"gateway": {"replicas": 0}}, "minimum: got 0, want 1"),
        ({"gateway": {"replicas": "two"}}, "got string, want integer"),
        ({"gateway": {"resources": {"limit": {"cpu": "1"}}}}, "additional properties 'limit' not allowed"),
        ({"gateway": {"limitShare": 2}}, "maximum: got 2, want 1"),
        ({"gateway": {"bindAddress": "127.0.0.1"}}, "value must be one of '0.0.0.0', '::'"),
        ({"image": {"repository": "tidegate", "tag": "latest"}}, "'not' failed"),
        ({"image": {"repository": "tidegate", "digest": "sha256:abc"}}, "does not match pattern"),
        ({"global": {"imageRegistry": "https://mirror.example.com"}}, "does not match pattern"),
        ({"trafficRouter": {"kind": "istio"}}, "value must be one of 'gateway', 'gateway-api'"),
        ({"controller": {"token": "hunter2"}}, "got string, want object"),
        ({"controller": {"webhooks": [{"name": "ops", "url": "https://x"}]}}, "missing property 'existingSecret'"),
        ({"watchNamespaces": ["a", "a"]}, "items at 0 and 1 are equal"),
        ({"postgresql": {"enabled": True, "password": "hunter2"}}, "additional properties 'password' not allowed"),
    ],
)
def test_the_schema_refuses_with_the_place_and_the_reason(values: Mapping[str, Any], told: str) -> None:
    with pytest.raises(helm.HelmError) as refused:
        render(values)
    assert told in str(refused.value)
    assert f"/{next(iter(values))}" in str(refused.value) or next(iter(values)) in told
    assert "hunter2" not in str(refused.value)


def null_at(path: str, value: object = None) -> dict[str, Any]:
    """Values with one in them."""
    for name in reversed(path.split(".")):
        value = {name: value}
    assert isinstance(value, dict)
    return value


def test_every_value_that_is_set_to_null_is_named_with_the_way_out() -> None:
    """Helm takes the key away then; the templates would stumble, or write a null into an object."""
    keys = json.loads((CHART / "files" / "keys.json").read_text())

    def paths(part: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
        for name, default in part.items():
            yield f"{before}{name}", default
            if isinstance(default, dict):
                yield from paths(default, f"{before}{name}.")

    found = dict(paths(keys))
    assert {path.partition(".")[0] for path in found} == set(yaml.safe_load((CHART / "values.yaml").read_text()))
    required = {p for p in found if p.endswith("image.repository")}  # of which the schema says `missing property`
    sections = {path for path, default in found.items() if isinstance(default, dict) and default}
    leaves = sorted(found.keys() - sections - required)
    for path in [*sections, *leaves[:: len(leaves) // 12]]:
        with pytest.raises(helm.HelmError) as refused:
            render(null_at(path))
        told = str(refused.value)
        assert f"{path} is null; " in told
        way_out = "leave it out to keep its defaults" if path in sections else "leave it out for its default, "
        assert way_out in told


@pytest.mark.parametrize("path", ["gateway.limitShare", "gateway.resources", "controller.resources.limits"])
def test_null_is_a_value_where_it_means_something(path: str) -> None:
    assert render(null_at(path))


@pytest.mark.parametrize("section", ["gateway", "gateway.autoscaling", "mlflow.storage", "global", "watchNamespaces"])
@pytest.mark.parametrize(("value", "kind"), [(5, "number"), ("on", "string"), (True, "boolean")])
def test_a_section_of_another_type_is_named_with_the_type_that_it_has(section: str, value: object, kind: str) -> None:
    wanted = "array" if section == "watchNamespaces" else "object"
    with pytest.raises(helm.HelmError, match=f"at '/{section.replace('.', '/')}': got {kind}, want {wanted}"):
        render(null_at(section, value))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"mlflow": {"enabled": False}}, "mlflow.trackingUri is empty; name the tracking server there"),
        ({"postgresql": {"enabled": True}, "store": {"existingSecret": "x"}}, "so give one of the two"),
        ({"redis": {"enabled": True, "address": "redis:6379"}}, "give one of the two"),
        (
            {"gateway": {"autoscaling": {"enabled": True, "minReplicas": 9, "maxReplicas": 3}}},
            "minReplicas is 9, above maxReplicas 3",
        ),
        (
            {"guardrails": {"service": {"autoscaling": {"enabled": True, "minReplicas": 9}}}},
            "guardrails.service.autoscaling.minReplicas is 9, above maxReplicas 8",
        ),
        ({"gateway": {"ingress": {"enabled": True}}}, "gateway.ingress.host is empty"),
        ({"engine": {"modelCache": {"claim": "a", "path": "/b"}}}, "keep weights in one place"),
        ({"requestLog": {"storage": {"claim": "a", "create": True}}}, "bring a claim, or have one made"),
        ({"gateway": {"env": {"TIDEGATE_GATEWAY_NAME": "me"}}}, "which the chart sets itself"),
    ],
)
def test_what_contradicts_itself_is_refused_with_the_way_out(values: Mapping[str, Any], told: str) -> None:
    with pytest.raises(helm.HelmError) as refused:
        render(values)
    assert told in str(refused.value)


def test_a_releases_name_leaves_room_for_those_made_of_it() -> None:
    render({}, release="r" * 40)
    with pytest.raises(helm.HelmError, match="give it at most 40"):
        render({}, release="r" * 41)


@pytest.mark.parametrize("release", ["2nd", "tide.gate"])
def test_a_releases_name_must_do_for_a_service(release: str) -> None:
    with pytest.raises(helm.HelmError, match="can't begin the name of a Service"):
        render({}, release=release)


def test_copied_dashboards_are_what_monitoring_says() -> None:
    originals = sorted(ROOT.glob("monitoring/dashboards/*.json"))
    copies = sorted((CHART / "files" / "dashboards").glob("*.json"))
    assert [c.name for c in copies] == [o.name for o in originals], "copy them: see scripts/chart_files.sh"
    for original, copy in zip(originals, copies, strict=True):
        assert copy.read_bytes() == original.read_bytes(), f"{copy} differs from {original}: run scripts/chart_files.sh"


def test_a_package_holds_all_that_an_air_gapped_cluster_needs(tmp_path: Path) -> None:
    with tarfile.open(helm.package(CHART, destination=tmp_path)) as archive:
        names = set(archive.getnames())
    for needed in (
        "values.schema.json",
        "files/tidegate.rules.yml",
        "files/check.py",
        "templates/NOTES.txt",
        "README.md",
    ):
        assert f"tidegate/{needed}" in names
    assert not any(name.startswith("tidegate/ci/") for name in names)
    assert not any("charts/" in name for name in names), "no chart of somebody else's, so nothing to fetch"


@pytest.mark.parametrize("name", ["", *SETS])
def test_the_notes_say_the_next_command(name: str) -> None:
    notes = render(name)["tidegate/templates/NOTES.txt"]
    assert "kubectl get crd rayservices.ray.io" in notes
    assert "helm -n models test r" in notes
    assert ("create secret generic r-store" in notes) == (name == ""), "only who has brought no store is told of it"
