"""What people copy: the model of the documents, the overlay for Kustomize, the application for Argo CD."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import yaml

from rollout.specs import parse_spec
from tests.kubectl import require
from tests.unit.helm.charts import ROOT, SETS, identity
from tidegate import helm

FOLDER = ROOT / "examples" / "kubernetes"


def test_the_model_of_the_documents_is_a_rollout() -> None:
    given = yaml.safe_load((FOLDER / "chat.yaml").read_text())
    assert given["apiVersion"] == "tidegate.dev/v1alpha1"
    assert parse_spec(given["spec"]).model == "chat"


def test_the_application_names_what_there_is() -> None:
    source = yaml.safe_load((FOLDER / "argocd" / "application.yaml").read_text())["spec"]["source"]
    assert (ROOT / source["path"] / "Chart.yaml").exists()
    assert {f"ci/{name}-values.yaml" for name in SETS} >= set(source["helm"]["valueFiles"])


def test_the_overlay_changes_what_it_says_and_nothing_else(tmp_path: Path) -> None:
    kubectl = require()  # carries Kustomize
    shutil.copytree(FOLDER / "kustomize", tmp_path / "k")
    base = helm.render(helm.Wanted("tidegate", "tidegate", files=(FOLDER / "kustomize" / "base" / "values.yaml",)))
    assert "helm.sh/hook:" not in base, "Kustomize runs no hooks"
    (tmp_path / "k" / "base" / "tidegate.yaml").write_text(base)
    command = [kubectl, "kustomize", str(tmp_path / "k" / "overlays" / "production")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    before = {identity(o): o for o in yaml.load_all(base, helm.LOADER) if o}
    after = {identity(o): o for o in yaml.load_all(done.stdout, helm.LOADER)}
    assert after.keys() == before.keys()
    gateway = after["Deployment", "tidegate-gateway", "tidegate"]["spec"]
    assert gateway["replicas"] == 6
    assert gateway["template"]["spec"]["nodeSelector"] == {"pool": "serving"}
    image = gateway["template"]["spec"]["containers"][0]["image"]
    assert image == "mirror.example.com/tidegate@sha256:" + "1" * 64
    policies = [key for key in before if key[0] == "NetworkPolicy"]
    assert all(after[key]["spec"] == before[key]["spec"] for key in policies)
