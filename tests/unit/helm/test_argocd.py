"""Argo CD's health of a ModelDeployment, in a real Lua of the version that Argo CD embeds."""

from __future__ import annotations

import os
from typing import Any

import pytest
import yaml

from tests.unit.helm.charts import ROOT

if os.environ.get("CI"):
    import lupa.lua51 as lua
else:
    lua = pytest.importorskip("lupa.lua51")

FOLDER = ROOT / "examples" / "kubernetes" / "argocd"


def health(resource: dict[str, Any]) -> tuple[str, str]:
    """What the script says; Argo CD hands the resource over as `obj` and offers no other library than Lua's own."""
    runtime = lua.LuaRuntime(unpack_returned_tuples=True)
    runtime.globals()["obj"] = runtime.table_from(resource, recursive=True)
    answer = runtime.execute((FOLDER / "health.lua").read_text())
    return answer["status"], answer["message"]


def resource(*, generation: int = 2, observed: int | None = 2, **status: Any) -> dict[str, Any]:
    conditions = [
        {"type": kind, "status": holds, "reason": "Why", "message": f"{kind} is {holds}"}
        for kind, holds in status.pop("conditions", {}).items()
    ]
    seen = {} if observed is None else {"observedGeneration": observed}
    return {"metadata": {"generation": generation}, "status": {**seen, "conditions": conditions, **status}}


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "just applied": ({"metadata": {"generation": 1}}, "Progressing"),
    "never observed": (resource(observed=None), "Progressing"),
    "a newer spec": (resource(observed=1, conditions={"Ready": "True"}), "Progressing"),
    "first rollout": (resource(conditions={"Ready": "False", "Progressing": "True"}), "Progressing"),
    "rolling over a serving one": (resource(conditions={"Ready": "True", "Progressing": "True"}), "Progressing"),
    "after a rollback, again": (resource(conditions={"RolledBack": "True", "Progressing": "True"}), "Progressing"),
    "rolled back": (resource(phase="Degraded", conditions={"Ready": "True", "RolledBack": "True"}), "Degraded"),
    "degraded beats progress": (resource(conditions={"Degraded": "True", "Progressing": "True"}), "Degraded"),
    "paused": (resource(phase="Paused", awaits="promote", conditions={"Progressing": "True"}), "Suspended"),
    "name taken": (resource(conditions={"Ready": "False", "Progressing": "False"}), "Degraded"),
    "healthy": (resource(phase="Healthy", conditions={"Ready": "True", "Progressing": "False"}), "Healthy"),
    "unknown": (resource(conditions={"Ready": "Unknown"}), "Progressing"),
    "no conditions": (resource(), "Progressing"),
}


@pytest.mark.parametrize("name", CASES)
def test_how_argo_cd_sees_it(name: str) -> None:
    given, expected = CASES[name]
    status, message = health(given)
    assert status == expected
    assert message


def test_deletion_comes_first_and_a_pause_says_what_it_waits_for() -> None:
    deleted = resource(conditions={"Degraded": "True"})
    deleted["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert health(deleted)[0] == "Progressing"
    assert "promote" in health(resource(phase="Paused", awaits="promote"))[1]
    assert health(resource(conditions={"Degraded": "True"}))[1] == "Degraded is True"


def test_the_config_map_holds_the_very_script() -> None:
    given = yaml.safe_load((FOLDER / "argocd-cm.yaml").read_text())
    script = given["data"]["resource.customizations.health.tidegate.dev_ModelDeployment"]
    assert script == (FOLDER / "health.lua").read_text()
