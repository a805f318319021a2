"""Every object against Kubernetes' own OpenAPI schemas, unknown fields refused, for old and new API servers."""

from __future__ import annotations

import functools
import os

import pytest

from tests.unit.helm.charts import SETS, identity, objects

if os.environ.get("CI"):
    import kubernetes_validate
else:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
from kubernetes_validate import utils

VERSIONS = ("1.30", "1.33", "1.37")
NOT_KUBERNETES = {"ServiceMonitor", "PodMonitor", "ScrapeConfig", "PrometheusRule"}
"""Resources of the Prometheus operator: their schemas are in no package."""


@pytest.fixture(autouse=True)
def _read_schemas_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(utils, "schema_contents", _schema_contents)


_schema_contents = functools.cache(utils.schema_contents)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_what_the_api_server_takes(version: str) -> None:
    seen: set[str] = set()
    for name in ("", *SETS):
        for found in objects(name):
            text = repr(found)
            if found["kind"] in NOT_KUBERNETES or text in seen:
                continue
            seen.add(text)
            try:
                kubernetes_validate.validate(found, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                pytest.fail(f"{name} {identity(found)} for {version}: {list(error.path)}: {error.message}")
    assert len(seen) > 50


def test_an_unknown_field_would_be_seen() -> None:
    (service, *_) = (o for o in objects("") if o["kind"] == "Service")
    planted = {**service, "spec": {**service["spec"], "sessionAffinty": "None"}}
    with pytest.raises(kubernetes_validate.ValidationError, match="sessionAffinty"):
        kubernetes_validate.validate(planted, VERSIONS[0], strict=True)
