"""`tidegate k8s render`: everything that would be applied, in the order in which it would be."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.helm.charts import CHART, SETS, identity, objects
from tidegate import helm
from tidegate.cli.main import run
from tidegate.helm import Wanted, binary_arguments, images, merged


@pytest.fixture(autouse=True)
def _no_binary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)


def rendered(*files: Path, settings: tuple[str, ...] = ()) -> str:
    return helm.render(Wanted("r", "models", files=files, settings=settings))


def documents(text: str) -> list[dict[str, Any]]:
    return [found for found in yaml.load_all(text, helm.LOADER) if found]


@pytest.mark.parametrize("name", SETS)
def test_it_prints_what_would_be_applied_and_nothing_else(name: str) -> None:
    found = documents(rendered(CHART / "ci" / f"{name}-values.yaml"))
    applied = [o for o in objects(name) if helm.HOOK not in (o["metadata"].get("annotations") or {})]
    crds = [o for o in found if o["kind"] == "CustomResourceDefinition"]
    assert [o["metadata"]["name"] for o in crds] == ["modeldeployments.tidegate.dev"]
    assert found[: len(crds)] == crds, "a definition comes before what uses it"
    key = sorted(map(repr, applied))
    assert sorted(map(repr, found[len(crds) :])) == key


def test_accounts_and_configuration_come_before_who_uses_them() -> None:
    kinds = [o["kind"] for o in documents(rendered(CHART / "ci" / "minimal-values.yaml"))]
    assert kinds.index("ServiceAccount") < kinds.index("Role") < kinds.index("Deployment")
    assert kinds.index("ConfigMap") < kinds.index("Deployment")


def test_values_on_the_command_line_win_over_files(tmp_path: Path) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("gateway: {replicas: 3, drainSeconds: 900}\n")
    second.write_text("gateway: {replicas: 4}\n")
    text = rendered(first, second, settings=("gateway.replicas=5",))
    (gateway,) = (o for o in documents(text) if identity(o) == ("Deployment", "r-gateway", "models"))
    assert gateway["spec"]["replicas"] == 5
    assert gateway["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 940
    assert merged({"a": {"b": 1, "c": [1]}}, {"a": {"c": [2]}, "d": None}) == {"a": {"b": 1, "c": [2]}, "d": None}


def test_the_images_are_all_that_a_mirror_needs() -> None:
    assert images(rendered(CHART / "ci" / "gpu-values.yaml")) == [
        "docker.io/library/postgres:18.1-bookworm",
        "docker.io/library/redis:8.2.1-bookworm",
        "registry.example.com/tidegate-engine:0.1.0-cuda",
        "registry.example.com/vector:0.50.0",
        "tidegate:0.1.0",
    ]
    mirrored = images(
        rendered(CHART / "ci" / "gpu-values.yaml", settings=("global.imageRegistry=mirror.local:5000/x",))
    )
    assert mirrored == [
        "mirror.local:5000/x/library/postgres:18.1-bookworm",
        "mirror.local:5000/x/library/redis:8.2.1-bookworm",
        "mirror.local:5000/x/tidegate-engine:0.1.0-cuda",
        "mirror.local:5000/x/tidegate:0.1.0",
        "registry.example.com/vector:0.50.0",
    ]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--chart", "nowhere"], "is no chart"),
        (["-f", "nowhere.yaml"], "is no file"),
        (["--set", "gateway.replicas=none"], "got string, want integer"),
        (["--set", "gatway.replicas=3"], "additional properties 'gatway' not allowed"),
    ],
)
def test_what_can_not_be_rendered_is_told_in_one_line(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["k8s", "render", *arguments]) == 2
    err = capsys.readouterr().err
    assert told in err
    assert len(err.splitlines()) == 1


def test_without_any_helm_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "helm_python", None)
    assert run(["k8s", "render"]) == 1
    assert "pip install helm-python-sdk" in capsys.readouterr().err


def test_a_binary_is_asked_for_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wanted = Wanted("r", "models", files=(tmp_path / "v.yaml",), settings=("a=b",))
    wanted.files[0].write_text("")
    program = tmp_path / "helm"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda _: str(program))
    assert helm.render(wanted).splitlines() == binary_arguments(wanted)
    program.write_text('#!/bin/sh\necho "Error: values do not fit" >&2\nexit 1\n')
    with pytest.raises(helm.WrongUse, match="helm: values do not fit"):
        helm.render(wanted)
