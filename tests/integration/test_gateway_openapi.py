"""The data plane against its own OpenAPI document: schemathesis makes requests that fit it, and ones that don't."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from benchmarks.processes import Gateway, Processes, free_port, furnish
from serving.gateway.config import GatewayConfig
from serving.openapi import document
from serving.traffic import ModelTraffic, RevisionTraffic, Role, TrafficTable

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
    negative_data_rejection,
]
"""Not that all that fits is accepted: JSON Schema can't say that `top_logprobs` needs `logprobs`, and the like."""

EXAMPLES = int(os.environ.get("TIDEGATE_FUZZ_EXAMPLES", "25"))
"""Requests made for each operation; a night's run may ask for thousands."""

schema = schemathesis.openapi.from_dict(document())
schema.config.checks.negative_data_rejection.expected_statuses += ["413"]
"""A body that is too large is refused before anybody looks at what is wrong with it."""


@schema.hook
def map_body(context: Any, body: Any) -> Any:
    """Ask the model that there is: otherwise nearly every request would end with 404."""
    if isinstance(body, dict) and isinstance(body.get("model"), str) and body["model"]:
        body = {**body, "model": "chat"}
    return body


@schema.hook
def map_headers(context: Any, headers: Any) -> Any:
    """Give the engine time to answer: who asks for an answer within a microsecond gets 504, as it should be."""
    try:
        hurried = 0 < float(headers["x-request-timeout"]) < 30
    except (KeyError, TypeError, ValueError):
        return headers
    return {**headers, "x-request-timeout": "30"} if hurried else headers


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    home = tmp_path_factory.mktemp("openapi")
    stable = RevisionTraffic(digest="a" * 64, version="1.0.0", role=Role.STABLE, weight=100, application="chat")
    model = ModelTraffic(model="chat", salt="0123456789abcdef", revisions=(stable,))
    furnish(home, TrafficTable(fence=1, sequence=1, issued_at=time.time(), models=(model,)))
    with Processes(home) as processes:
        engine = processes.engine("sim:?ttft_ms=0&itl_ms=0&tokens=5")
        config = GatewayConfig(
            home=home, port=free_port(), admin_port=free_port(), control_url=None, endpoints={"chat": (engine.url,)}
        )
        yield processes.gateway(config)
        assert engine.alive


def test_the_gateway_serves_its_document(gateway: Gateway) -> None:
    served = httpx.get(gateway.url + "/openapi.json")
    assert served.headers["content-type"] == "application/json"
    assert served.json() == document()


@schema.parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_nothing_breaks_the_gateway_and_answers_fit(case: schemathesis.Case, gateway: Gateway) -> None:
    case.call_and_validate(base_url=gateway.url, checks=CHECKS, timeout=30)


def test_the_gateway_is_well_after_all_that(gateway: Gateway) -> None:
    body = {"model": "chat", "messages": [{"role": "user", "content": "hello"}]}
    assert httpx.post(gateway.url + "/v1/chat/completions", json=body).status_code == 200
    metrics = httpx.get(gateway.admin_url + "/metrics").text
    assert 'tidegate_streams_in_flight{model="chat",version="1.0.0"} 0.0' in metrics
