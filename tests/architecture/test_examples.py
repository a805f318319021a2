"""What people copy from works."""

from __future__ import annotations

import ast

import pytest
import yaml

from rollout.specs import parse_spec
from tests.architecture.source_tree import ROOT

SCRIPTS = sorted((ROOT / "examples").glob("*.py"))


def test_the_example_of_a_rollout_is_valid() -> None:
    spec = parse_spec(yaml.safe_load((ROOT / "examples/rollout.yaml").read_text()))
    assert spec.model == "chat"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_examples_need_the_official_client_and_nothing_of_ours(path) -> None:
    tree = ast.parse(path.read_text())
    modules = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    modules |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module}
    assert "openai" in modules
    assert not any(m.split(".")[0] in {"tidegate", "serving", "rollout", "registry"} for m in modules)
