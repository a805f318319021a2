"""One trace from the client's span to the engine's, over gRPC and HTTP, and what is kept when little is sampled."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.processes import Processes, free_port, furnish
from monitoring.tracing.settings import Told, TracingSettings, Transport
from serving.gateway.config import GatewayConfig
from serving.traffic import ModelTraffic, RevisionTraffic, Role, TrafficTable
from tests.integration.gateway_fakes import CANARY_DIGEST, rig, session_on, table, until
from tests.integration.test_request_log import with_policy
from tests.otlp import Received, attributes, grpc_collector, http_collector

pytestmark = pytest.mark.integration

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE = "0af7651916cd43dd8448eb211c80319c"


def chat(**more: Any) -> dict[str, Any]:
    return {"model": "chat", "messages": [{"role": "user", "content": "hello"}], **more}


def named(received: Received, name: str) -> list[Any]:
    return [span for span in received.spans if span.name == name]


def test_a_streamed_request_through_a_gateway_process_is_one_connected_trace(tmp_path: Path) -> None:
    revision = RevisionTraffic(digest="a" * 64, version="1.0.0", role=Role.STABLE, weight=100, application="chat")
    model = ModelTraffic(model="chat", salt="0123456789abcdef", revisions=(revision,))
    furnish(tmp_path, TrafficTable(fence=1, sequence=1, issued_at=time.time(), models=(model,)), ())
    with grpc_collector() as (endpoint, received), Processes(tmp_path) as processes:
        engine = processes.engine("sim:?ttft_ms=20&itl_ms=1&tokens=12", "chat")
        gateway = processes.gateway(
            GatewayConfig(
                home=tmp_path, port=free_port(), admin_port=free_port(), control_url=None,
                endpoints={"chat": (engine.url,)}, tracing=TracingSettings(endpoint, ratio=0.0),
            )
        )  # fmt: skip
        with httpx.Client(base_url=gateway.url, trust_env=False, timeout=30) as client:
            body = chat(stream=True, temperature=0.5, max_tokens=64, stream_options={"include_usage": True})
            answer = client.post("/v1/chat/completions", json=body, headers={"traceparent": PARENT})
            assert answer.text.endswith("data: [DONE]\n\n")
            unsampled = client.post("/v1/chat/completions", json=chat())
            assert unsampled.status_code == 200
        received.wait(3)
    assert {span.trace_id.hex() for span in received.spans} == {TRACE}
    (request,), (queue,), (attempt,) = (named(received, n) for n in ("chat chat", "queue", "attempt"))
    assert request.parent_span_id.hex() == "b7ad6b7169203331"
    assert queue.parent_span_id == attempt.parent_span_id == request.span_id
    times = [request.start_time_unix_nano, queue.end_time_unix_nano, attempt.start_time_unix_nano]
    first = attempt.events[0].time_unix_nano
    assert times == sorted(times)
    assert attempt.start_time_unix_nano + 20e6 <= first <= attempt.end_time_unix_nano <= request.end_time_unix_nano
    told = attributes(request)
    assert told["gen_ai.operation.name"] == "chat"
    assert told["gen_ai.request.temperature"] == 0.5
    assert told["gen_ai.request.max_tokens"] == 64
    assert told["gen_ai.usage.output_tokens"] == 12
    assert (told["tidegate.version"], told["tidegate.role"]) == ("1.0.0", "stable")
    assert told["tidegate.request.id"] == answer.headers["x-request-id"]
    assert "gen_ai.input.messages" not in told
    assert received.resources[0]["service.name"] == "tidegate-gateway"


async def test_the_engine_is_told_of_its_attempt_and_a_rescued_failure_is_kept(tmp_path: Path) -> None:
    with http_collector() as (endpoint, received):
        tracing = TracingSettings(endpoint, Transport.HTTP, ratio=0.0, canaries_per_s=0.0)
        async with rig(tmp_path, first=table(1, 50), tracing=tracing) as r, httpx.AsyncClient(base_url=r.url) as http:
            r.canary.do = lambda body: {"status": 503}
            session = session_on(Role.CANARY, 50)
            answer = await http.post("/v1/chat/completions", json=chat(), headers={"x-session-id": session})
            assert answer.status_code == 200
            await http.post("/v1/chat/completions", json=chat(), headers={"x-session-id": session_on(Role.STABLE, 50)})
            await r.settled()
            await asyncio.to_thread(received.wait, 4)
            told = [r.canary.requests[0][1]["traceparent"], r.stable.requests[0][1]["traceparent"]]
            metrics = (await http.get(f"{r.admin_url}/metrics", headers={"accept": OPENMETRICS})).text
    (request,) = named(received, "chat chat")
    trace = request.trace_id.hex()
    attempts = named(received, "attempt")
    assert told == [f"00-{trace}-{span.span_id.hex()}-00" for span in attempts], "each is the parent of its engine's"
    assert [attributes(a)["tidegate.version"] for a in attempts] == ["1.1.0", "1.0.0"]
    assert [attributes(a).get("error.type") for a in attempts] == ["status", None]
    assert attributes(request)["tidegate.sampling.reason"] == "error"
    assert attributes(request)["tidegate.outcome"] == "retried"
    assert f'# {{trace_id="{trace}"}}' in metrics
    assert metrics.count("# {trace_id=") == 1 + 2, "of the request that was kept alone: its duration and its tokens"


OPENMETRICS = "application/openmetrics-text; version=1.0.0"


async def test_the_last_requests_of_a_version_that_is_taken_back_are_kept_after_all(tmp_path: Path) -> None:
    with http_collector() as (endpoint, received):
        tracing = TracingSettings(endpoint, Transport.HTTP, ratio=0.0, canaries_per_s=0.0)
        async with rig(tmp_path, first=table(1, 50), tracing=tracing) as r, httpx.AsyncClient(base_url=r.url) as http:
            for role in (Role.CANARY, Role.STABLE, Role.CANARY):
                session = {"x-session-id": session_on(role, 50)}
                assert (await http.post("/v1/chat/completions", json=chat(), headers=session)).status_code == 200
            await r.settled()
            await asyncio.sleep(0.7)
            assert received.spans == []
            await r.apply(table(2, None))
            await asyncio.to_thread(received.wait, 6)
    kept = [attributes(span) for span in named(received, "chat chat")]
    assert [k["tidegate.revision"] for k in kept] == [CANARY_DIGEST[:12]] * 2
    assert {k["tidegate.sampling.reason"] for k in kept} == {"taken-back"}


@pytest.mark.parametrize("engines", [Told.HEAD, Told.ALWAYS])
async def test_canaries_are_sampled_at_the_head_up_to_a_rate_so_that_their_engines_join(
    tmp_path: Path, engines: Told
) -> None:
    with http_collector() as (endpoint, received):
        tracing = TracingSettings(endpoint, Transport.HTTP, ratio=0.0, canaries_per_s=0.01, engines=engines)
        async with rig(tmp_path, first=table(1, 50), tracing=tracing) as r, httpx.AsyncClient(base_url=r.url) as http:
            for role in (Role.STABLE, Role.CANARY, Role.CANARY):
                session = {"x-session-id": session_on(role, 50)}
                assert (await http.post("/v1/chat/completions", json=chat(), headers=session)).status_code == 200
            await r.settled()
            await asyncio.to_thread(received.wait, 3)
            told = [q[1]["traceparent"][-2:] for q in (*r.stable.requests, *r.canary.requests)]
            canarys = r.canary.requests[0][1]["traceparent"]
    (kept,) = named(received, "chat chat")
    assert attributes(kept)["tidegate.sampling.reason"] == "canary"
    (attempt,) = named(received, "attempt")
    assert canarys == f"00-{kept.trace_id.hex()}-{attempt.span_id.hex()}-01"
    assert told == (["00", "01", "00"] if engines is Told.HEAD else ["01", "01", "01"])


async def test_a_collector_that_is_away_costs_nothing_but_its_traces(tmp_path: Path) -> None:
    tracing = TracingSettings(f"http://127.0.0.1:{free_port()}", Transport.HTTP, ratio=1.0)
    async with rig(tmp_path, first=table(1, None), tracing=tracing) as r, httpx.AsyncClient(base_url=r.url) as http:
        assert (await http.post("/v1/chat/completions", json=chat())).status_code == 200
        await until(lambda: r.gateway.telemetry.dropped()["traces"] == 1, within_s=20)
        text = (await http.get(f"{r.admin_url}/metrics")).text
        assert 'tidegate_telemetry_dropped_total{kind="traces"} 1.0' in text


POLICY = "schema: 1\nname: strict\nchecks:\n  - {name: secrets, direction: input, action: block}\n"


async def test_a_prompt_that_the_guardrails_held_has_a_span_of_theirs_and_one_they_refused_no_attempt(
    tmp_path: Path,
) -> None:
    first = with_policy(table(1, None), POLICY)
    with http_collector() as (endpoint, received):
        tracing = TracingSettings(endpoint, Transport.HTTP, ratio=1.0)
        async with rig(tmp_path, first=first, tracing=tracing) as r, httpx.AsyncClient(base_url=r.url) as http:
            await http.post("/v1/chat/completions", json=chat())
            secret = "sk-proj-9fK2mQ7xLbT4vN8cR1yW5zA3dE6hJ0pS2uG4iO7kM9nB1qX3"
            body = {"model": "chat", "messages": [{"role": "user", "content": f"my key is {secret}"}]}
            refused = await http.post("/v1/chat/completions", json=body)
            assert refused.status_code == 400
            await asyncio.to_thread(received.wait, 7)
    passed, blocked = (
        [s for s in received.spans if s.trace_id == trace.trace_id] for trace in named(received, "chat chat")
    )
    assert sorted(s.name for s in passed) == ["attempt", "chat chat", "guardrail", "queue"]
    assert sorted(s.name for s in blocked) == ["chat chat", "guardrail", "queue"]
    verdicts = [attributes(s)["tidegate.guardrail.verdict"] for s in (*passed, *blocked) if s.name == "guardrail"]
    assert verdicts == ["allow", "block"]
    assert secret not in str(received.spans)
