"""The request log through a real gateway and its writer: what is in it, what never is, and what a kill leaves."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.processes import Processes, free_port, furnish
from monitoring.tracing.settings import TracingSettings, Transport
from serving.gateway.config import GatewayConfig
from serving.gateway.request_ids import load_secret
from serving.request_log.marks import mark_of
from serving.request_log.reading import RequestLog, Wanted
from serving.request_log.settings import RequestLogSettings
from serving.specs import digest_of_text
from serving.traffic import ModelTraffic, RevisionTraffic, Role, TrafficTable
from tests.integration.gateway_fakes import Rig, rig, session_on, table, until
from tests.otlp import attributes, http_collector

pytestmark = pytest.mark.integration

SECRETS = {
    "card": "4111 1111 1111 1111",
    "key": "sk-proj-9fK2mQ7xLbT4vN8cR1yW5zA3dE6hJ0pS2uG4iO7kM9nB1qX3",
    "mail": "jane.roe.planted@example.com",
    "phone": "+44 20 7946 0958",
    "aws": "AKIAIOSFODNN7EXAMPLE",
}
LOGGED = "schema: 1\nname: logged\nlog_text: true\nchecks: []\n"
SILENT = "schema: 1\nname: silent\nchecks: []\n"


def with_policy(base: TrafficTable, text: str) -> TrafficTable:
    digest = digest_of_text(text)
    models = tuple(
        m.model_copy(update={"revisions": tuple(r.model_copy(update={"policy": digest}) for r in m.revisions)})
        for m in base.models
    )
    return base.model_copy(update={"models": models, "policies": {digest: text}})


def chat(content: str = "hello", **more: Any) -> dict[str, Any]:
    return {"model": "chat", "messages": [{"role": "user", "content": content}], **more}


async def logged(r: Rig, count: int) -> list[dict[str, Any]]:
    """The requests that are in the log once there are so many."""
    log = RequestLog(r.home / "requests")
    await until(lambda: sum(line["kind"] == "request" for line in log.lines()) >= count, within_s=20)
    return log.search(Wanted(), 1000)


def everything_below(folder: Path) -> bytes:
    return b"".join(p.read_bytes() for p in folder.rglob("*") if p.is_file() and not p.is_symlink())


def log_of(**settings: Any) -> dict[str, Any]:
    return {"request_log": RequestLogSettings(ratio=1.0, **settings)}


async def test_a_line_says_what_is_known_of_a_request_and_of_its_text_only_where_that_may_be(tmp_path: Path) -> None:
    first = with_policy(table(1, 50), SILENT)
    async with rig(tmp_path, first=first, **log_of()) as r, httpx.AsyncClient(base_url=r.url) as http:
        r.canary.do = lambda body: {"status": 503}
        session = session_on(Role.CANARY, 50)
        body = chat(user="jane", logprobs=True)
        answer = await http.post("/v1/chat/completions", json=body, headers={"x-session-id": session})
        request_id = answer.headers["x-request-id"]
        await http.post("/v1/feedback", json={"request_id": request_id, "rating": "down", "comment": "hm"})
        (line,) = await logged(r, 1)
        log = RequestLog(r.home / "requests")
        await until(lambda: bool((log.find(request_id) or {}).get("feedback")), within_s=20)
        found = log.find(request_id)
    assert found is not None
    assert {k: found[k] for k in ("request_id", "model", "version", "role", "outcome", "answered_by", "weight")} == {
        "request_id": request_id, "model": "chat", "version": "1.1.0", "role": "canary", "outcome": "retried",
        "answered_by": "1.0.0", "weight": 50,
    }  # fmt: skip
    assert found["signals"] == ["error"]
    assert [a["failure"] for a in found["attempts"]] == ["status", None]
    assert found["user"] == mark_of(load_secret(r.home / "gateway" / "secret"), "jane")
    assert [v["rating"] for v in found["feedback"]] == ["down"]
    assert "comment" not in found["feedback"][0]
    assert {"prompt", "answers"} & found.keys() == set()
    assert log.find(line["engine_request_id"]) == found
    assert {p.stat().st_mode & 0o077 for p in (r.home / "requests").rglob("*.*")} == {0}


def calls_of(planted: str) -> dict[str, Any]:
    """An answer that wants functions called, whole and as events; a secret of it comes in pieces, and escaped."""
    escaped = json.dumps({"to": planted}).replace("@", "\\u0040")
    call = {"index": 0, "id": "1", "type": "function", "function": {"name": "send", "arguments": escaped}}
    other = {"index": 1, "id": "2", "type": "function", "function": {"name": f"f {planted}", "arguments": planted[:-3]}}
    message = {"role": "assistant", "content": f"you said {planted}", "tool_calls": [call, other]}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
    pieces = [{"index": 0, "function": {"arguments": escaped[i : i + 7]}} for i in range(0, len(escaped), 7)]
    deltas = [{**call, "function": {"name": "send", "arguments": ""}}, *pieces, other]
    events = [{"choices": [{"index": 0, "delta": {"tool_calls": [d]}, "finish_reason": None}]} for d in deltas]
    return {"body": {"choices": [choice]}, "events": events, "piece": planted + " ", "chunks": 3}


@pytest.mark.parametrize("stream", [False, True])
async def test_text_is_kept_where_the_policy_allows_it_and_nothing_redacted_is_ever_written_or_sent(
    tmp_path: Path, stream: bool
) -> None:
    first = with_policy(table(1, None), LOGGED)
    planted = " and ".join(SECRETS.values())
    with http_collector() as (endpoint, received):
        tracing = TracingSettings(endpoint, Transport.HTTP, ratio=1.0, content=True)
        async with (
            rig(tmp_path, first=first, tracing=tracing, **log_of()) as r,
            httpx.AsyncClient(base_url=r.url) as http,
        ):
            r.stable.do = lambda body: calls_of(planted)
            body = chat(
                f"我的邮箱是 {planted}",
                stream=stream, user=SECRETS["mail"], metadata={"who": SECRETS["mail"]},
                tools=[{"type": "function", "function": {"name": "f", "description": planted}}],
            )  # fmt: skip
            body["messages"] += [
                {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": {
                    "name": "f", "arguments": json.dumps({"x": planted})}}]},
                {"role": "tool", "tool_call_id": "1", "content": planted},
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": f"data:x,{planted}"}}]},
            ]  # fmt: skip
            headers = {"x-session-id": SECRETS["mail"], "x-client-request-id": SECRETS["card"], "x-own": planted}
            answer = await http.post("/v1/chat/completions", json=body, headers=headers)
            assert SECRETS["key"] in answer.text, "what the client gets is not the log's business"
            vote = {"request_id": answer.headers["x-request-id"], "rating": "down", "comment": planted}
            await http.post("/v1/feedback", json=vote)
            refused = chat(planted, user=SECRETS["mail"]) | {"model": SECRETS["mail"]}
            assert (await http.post(f"/v1/chat/completions?{SECRETS['aws']}", json=refused)).status_code == 404
            await logged(r, 2)
            await asyncio.to_thread(received.wait, 5)
    found = RequestLog(tmp_path / "requests").find(answer.headers["x-request-id"])
    assert found is not None
    assert "我的邮箱是" in found["prompt"]["messages"][0]["content"]
    assert found["prompt"]["model"] == "chat"
    assert (" and " if stream else "you said") in found["answers"][0]
    assert [call["name"][:4] for call in found["tool_calls"]] == ["send", "f **"]
    assert " and " in json.loads(found["tool_calls"][0]["arguments"])["to"]
    assert " and " in found["feedback"][0]["comment"]
    told = next(attributes(span) for span in received.spans if span.name == "chat chat")
    assert '"name":"send"' in told["gen_ai.output.messages"]
    assert "我的邮箱是" in told["gen_ai.input.messages"]
    on_disk = everything_below(tmp_path)
    assert on_disk
    sent = b"".join(span.SerializeToString() for span in received.spans)
    escaped = SECRETS | {"mail, escaped": SECRETS["mail"].replace("@", "\\u0040")}
    assert [what for what, secret in escaped.items() if secret.encode() in on_disk] == []
    assert [what for what, secret in escaped.items() if secret.encode() in sent] == []


async def test_refused_requests_are_traced_and_logged_and_a_flood_of_them_only_counted(tmp_path: Path) -> None:
    with http_collector() as (endpoint, received):
        tracing = TracingSettings(endpoint, Transport.HTTP, ratio=0.0)
        async with (
            rig(tmp_path, first=table(1, None), tracing=tracing, max_body_bytes=2000, **log_of()) as r,
            httpx.AsyncClient(base_url=r.url) as http,
        ):
            parent = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"}
            unknown = await http.post("/v1/chat/completions", json=chat() | {"model": "made-up"}, headers=parent)
            too_large = await http.post("/v1/chat/completions", json=chat("x" * 3000))
            flood = await asyncio.gather(*(http.get("/nowhere") for _ in range(100)))
            assert {answer.status_code for answer in flood} == {404}
            metrics = (await http.get(f"{r.admin_url}/metrics")).text
            unkept = int(float(metrics.partition("\ntidegate_rejections_unkept_total ")[2].partition("\n")[0]))
            assert unkept > 0
            lines = await logged(r, 102 - unkept)
            await asyncio.to_thread(received.wait, 102 - unkept)
    assert (unknown.status_code, too_large.status_code) == (404, 413)
    by_id = {line["request_id"]: line for line in lines}
    one = by_id[unknown.headers["x-request-id"]]
    assert {k: one[k] for k in ("outcome", "reason", "status", "operation", "trace_id")} == {
        "outcome": "rejected", "reason": "model_not_found", "status": 404, "operation": "chat",
        "trace_id": "0af7651916cd43dd8448eb211c80319c",
    }  # fmt: skip
    assert "made-up" not in json.dumps(lines), "what a client makes up is not repeated"
    assert by_id[too_large.headers["x-request-id"]]["reason"] == "body_too_large"
    told = {a["tidegate.request.id"]: a for a in map(attributes, received.spans)}
    span = told[unknown.headers["x-request-id"]]
    assert (span["error.type"], span["http.response.status_code"]) == ("model_not_found", 404)
    assert len(lines) == len(told) == 102 - unkept, "what is not kept is counted"


async def test_a_killed_writer_leaves_whole_lines_and_has_a_successor(tmp_path: Path) -> None:
    async with rig(tmp_path, first=table(1, None), **log_of()) as r, httpx.AsyncClient(base_url=r.url) as http:
        for _ in range(5):
            await http.post("/v1/chat/completions", json=chat())
        await logged(r, 5)
        sink = r.gateway.telemetry.sink
        assert sink is not None
        assert sink._process is not None
        pid = sink._process.pid
        os.kill(pid, signal.SIGKILL)
        (part,) = (r.home / "requests").rglob("*.part")
        with part.open("ab") as file:
            file.write(b'{"kind":"request","torn')
        await until(lambda: sink._process is not None and sink._process.pid != pid, within_s=20)
        for _ in range(3):
            await http.post("/v1/chat/completions", json=chat())
        found = await logged(r, 8)
    assert len(found) == 8
    assert len({line["request_id"] for line in found}) == 8


def test_a_killed_gateway_loses_no_more_than_its_last_moment(tmp_path: Path) -> None:
    revision = RevisionTraffic(digest="a" * 64, version="1.0.0", role=Role.STABLE, weight=100, application="chat")
    model = ModelTraffic(model="chat", salt="0123456789abcdef", revisions=(revision,))
    furnish(tmp_path, TrafficTable(fence=1, sequence=1, issued_at=time.time(), models=(model,)), ())
    with Processes(tmp_path) as processes:
        engine = processes.engine("sim:?ttft_ms=1&itl_ms=1&tokens=3", "chat")
        gateway = processes.gateway(
            GatewayConfig(
                home=tmp_path, port=free_port(), admin_port=free_port(), control_url=None,
                endpoints={"chat": (engine.url,)}, **log_of(format="jsonl"),
            )
        )  # fmt: skip
        with httpx.Client(base_url=gateway.url, trust_env=False, timeout=30) as client:
            ids = [client.post("/v1/chat/completions", json=chat()).headers["x-request-id"] for _ in range(20)]
        time.sleep(0.5)  # far more than a finished request waits to be handed over
        gateway.process.kill()
        gateway.process.wait()
        log, deadline = RequestLog(tmp_path / "requests"), time.monotonic() + 20
        while not list((tmp_path / "requests").rglob("1*.jsonl")):
            assert time.monotonic() < deadline, "its writer closes the segment"
            time.sleep(0.05)
        assert [line["request_id"] for line in log.search(Wanted(), 99)] == ids


async def test_segments_become_columns_and_a_user_is_erased_from_all_of_them_while_it_runs(tmp_path: Path) -> None:
    first = with_policy(table(1, None), LOGGED)
    async with rig(tmp_path, first=first, **log_of(segment_s=0.5)) as r, httpx.AsyncClient(base_url=r.url) as http:
        ids: dict[str, list[str]] = {"jane": [], "joe": []}
        for _ in range(3):
            for user in ids:
                answer = await http.post("/v1/chat/completions", json=chat(f"I am {user}", user=user))
                ids[user].append(answer.headers["x-request-id"])
            await asyncio.sleep(0.6)
        vote = {"request_id": ids["jane"][0], "rating": "down", "comment": "jane says no"}
        await http.post("/v1/feedback", json=vote)
        await logged(r, 6)
        await until(lambda: bool(list(r.home.rglob("*.parquet"))), within_s=30)
        log = RequestLog(r.home / "requests")
        await until(lambda: bool((log.find(ids["jane"][0]) or {}).get("feedback")), within_s=30)
        mark = mark_of(load_secret(r.home / "gateway" / "secret"), "jane")
        gone = await asyncio.to_thread(log.erase, mark, time.time(), 20.0)
        assert gone == 4, "three requests and the vote on one of them"
        assert [log.find(i) for i in ids["jane"]] == [None] * 3
        assert all(log.find(i) is not None for i in ids["joe"])
        answer = await http.post("/v1/chat/completions", json=chat("I am jane again", user="jane"))
        await logged(r, 4)
        assert log.find(answer.headers["x-request-id"]) is not None, "what comes later stays"
    assert b"jane says no" not in everything_below(r.home / "requests")
    names = [line["prompt"]["messages"][0]["content"] for line in RequestLog(r.home / "requests").search(Wanted(), 9)]
    assert sorted(names) == ["I am jane again", "I am joe", "I am joe", "I am joe"]


async def test_a_writer_that_stands_still_costs_lines_and_no_answers(tmp_path: Path) -> None:
    async with rig(tmp_path, first=table(1, None), **log_of()) as r, httpx.AsyncClient(base_url=r.url) as http:
        sink = r.gateway.telemetry.sink
        assert sink is not None
        assert sink._process is not None
        sink._most_waiting = 200_000
        os.kill(sink._process.pid, signal.SIGSTOP)
        try:
            r.gateway.texts._allowed[""] = True  # so that lines are large
            for _ in range(12):
                assert (await http.post("/v1/chat/completions", json=chat("x" * 60_000))).status_code == 200
            await until(lambda: sink.dropped > 0, within_s=20)
            text = (await http.get(f"{r.admin_url}/metrics")).text
            assert 'tidegate_telemetry_dropped_total{kind="request-log"}' in text
        finally:
            os.kill(sink._process.pid, signal.SIGCONT)
