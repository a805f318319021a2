"""The line to the controller: tables, leases, evidence, restarts; and the whole process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import httpx
import pytest

from monitoring.instruments import LATE_SERIES_S
from serving.errors import EndpointsUnavailable
from serving.gateway.config import GatewayConfig, InvalidConfig
from serving.gateway.discovery_ray import RayServeEndpoints
from serving.gateway.latency import QUIET_S
from serving.gateway.main import PortTaken, bind
from serving.gateway.traffic_state import load_table, save_table
from serving.outcomes import Signal
from serving.traffic import Role, Tester, assigned_role
from tests.integration.gateway_fakes import (
    CANARY_DIGEST,
    STABLE_DIGEST,
    TOKEN,
    FakeController,
    FakeEngine,
    Rig,
    rig,
    session_on,
    table,
    until,
)

pytestmark = pytest.mark.integration

CHAT = {"model": "chat", "messages": [{"role": "user", "content": "hi"}]}
PATH = "/v1/chat/completions"


async def send(r: Rig, http: httpx.AsyncClient, session: str | None = None) -> str:
    headers = {"x-session-id": session} if session else {}
    answer = await http.post(r.url + PATH, json=CHAT, headers=headers)
    assert answer.status_code == 200, answer.text
    return str(answer.headers["x-tidegate-role"])


async def test_table_is_applied_saved_and_acknowledged_quickly(tmp_path: Path) -> None:
    async with rig(tmp_path, first=table(1, None)) as r:
        assert r.controller.tokens == [f"Bearer {TOKEN}"]
        delays = []
        for sequence in range(2, 12):
            pushed = time.monotonic()
            await r.controller.push(table(sequence, 10 * (sequence % 5)))
            await until(lambda s=sequence: r.controller.acks and r.controller.acks[-1][2] == s)
            delays.append(r.controller.acks[-1][0] - pushed)
            saved = load_table(tmp_path / "gateway" / "table.json")
            assert saved is not None
            assert saved.sequence == sequence
        assert sorted(delays)[5] < 0.5, delays
        assert stat.S_IMODE((tmp_path / "gateway" / "table.json").stat().st_mode) == 0o600
        assert stat.S_IMODE((tmp_path / "gateway" / "secret").stat().st_mode) == 0o600


async def test_older_table_is_refused(tmp_path: Path) -> None:
    async with rig(tmp_path, first=table(5, 10, fence=3)) as r:
        for old in (table(4, 50, fence=3), table(9, 50, fence=2), table(5, 50, fence=3)):
            seen = len(r.controller.acks)
            await r.controller.push(old)
            await until(lambda seen=seen: len(r.controller.acks) > seen)
            assert r.controller.acks[-1][1:] == (3, 5)  # it says what is in force
            assert r.gateway.state.routes["chat"].weight == 10
        await r.controller.push(table(1, 50, fence=4))
        await until(lambda: r.controller.acks[-1][1:] == (4, 1))


async def test_start_without_controller_serves_the_table_on_disk(tmp_path: Path) -> None:
    save_table(tmp_path / "gateway" / "table.json", table(7, 50))
    async with rig(tmp_path, control_url=None) as r, httpx.AsyncClient() as http:
        assert r.gateway.state.generation == (1, 7)
        # Nobody renews the lease, so the canary gets nothing.
        assert {await send(r, http) for _ in range(20)} == {"stable"}
        ready = (await http.get(r.admin_url + "/readyz")).json()
        assert (ready["ready"], ready["lease_valid"], ready["controller_connected"]) == (True, False, False)


async def test_prometheus_is_told_no_list_of_engines_by_a_gateway_that_has_none(tmp_path: Path) -> None:
    async with rig(tmp_path / "alone", control_url=None) as r, httpx.AsyncClient() as http:
        answer = await http.get(r.admin_url + "/targets")
        assert (answer.status_code, "no traffic table yet" in answer.text) == (503, True)
    async with rig(tmp_path / "fresh") as r, httpx.AsyncClient() as http:
        assert (await http.get(r.admin_url + "/targets")).json() == [], "its controller has no model"


async def test_unreadable_table_on_disk_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "gateway").mkdir(parents=True)
    (tmp_path / "gateway" / "table.json").write_text('{"fence": 1')
    async with rig(tmp_path, first=table(1, None)) as r, httpx.AsyncClient() as http:
        assert await send(r, http) == "stable"


async def test_lease_expires_and_returns(tmp_path: Path) -> None:
    async with rig(tmp_path, first=table(1, 50), lease_s=0.4) as r, httpx.AsyncClient() as http:
        session = session_on(Role.CANARY, 50)
        assert await send(r, http, session) == "canary"
        r.controller.beating = False
        await asyncio.sleep(0.6)
        assert await send(r, http, session) == "stable"
        r.source.set({"canary-app": [r.canary.url]})  # stable is not ready: then the canary serves after all
        assert await send(r, http, session) == "canary"
        r.source.set({"stable-app": [r.stable.url], "canary-app": [r.canary.url]})
        r.controller.beating = True
        await asyncio.sleep(0.3)
        assert await send(r, http, session) == "canary"
        await r.settled()
        assert r.controller.totals[("chat", "r1", STABLE_DIGEST, 50)].forced == 1
        canary = r.controller.totals[("chat", "r1", CANARY_DIGEST, 50)]
        assert (canary.admitted, canary.forced) == (2, 1)


async def test_events_are_sent_again_until_accepted(tmp_path: Path) -> None:
    async with rig(tmp_path, first=table(1, 50)) as r, httpx.AsyncClient() as http:
        r.controller.accepting = False
        r.canary.do = lambda body: {"status": 500}
        session = session_on(Role.CANARY, 50)
        for _ in range(3):
            await send(r, http, session)
        await until(lambda: len(r.controller.events) == 3)
        await r.controller.drop()
        await until(lambda: len(r.controller.events) == 6)
        assert [e.sequence for e in r.controller.events] == [1, 2, 3, 1, 2, 3]
        assert r.controller.events[:3] == r.controller.events[3:]
        assert [h.sequence for h in r.controller.hellos] == [0, 1]
        assert len({h.boot for h in r.controller.hellos}) == 1
        r.controller.accepting = True
        await r.controller.drop()
        await until(lambda: len(r.controller.hellos) == 3 and len(r.gateway.recorder.outbox) == 0)
        assert [e.sequence for e in r.controller.events] == [1, 2, 3] * 3
        assert r.controller.totals[("chat", "r1", CANARY_DIGEST, 50)].settled_events == {"error": 3}


async def test_event_arrives_at_once(tmp_path: Path) -> None:
    async with rig(tmp_path, first=table(1, 50)) as r, httpx.AsyncClient() as http:
        r.canary.do = lambda body: {"status": 500}
        r.stable.do = lambda body: {"before_s": 0.5}
        pending = asyncio.create_task(send(r, http, session_on(Role.CANARY, 50)))
        await until(lambda: len(r.controller.events) == 1, within_s=0.4)  # long before the client has its answer
        assert await pending == "stable"


async def test_weights_hold_and_sessions_stick_when_they_change(tmp_path: Path) -> None:
    async with rig(tmp_path, first=table(1, 20)) as r, httpx.AsyncClient() as http:
        gate = asyncio.Semaphore(20)

        async def one(session: str | None) -> str:
            async with gate:
                return await send(r, http, session)

        sessions = [f"s{i}" for i in range(60)]
        for sequence, weight in ((2, 20), (3, 50), (4, 0), (5, 100)):
            await r.apply(table(sequence, weight))
            roles = await asyncio.gather(*map(one, sessions))
            expected = [assigned_role("0123456789abcdef", s, weight).value for s in sessions]
            assert roles == expected
        await r.apply(table(6, 30))
        roles = await asyncio.gather(*(one(None) for _ in range(400)))
        assert 85 <= roles.count("canary") <= 155  # 120 +- 3.8 standard deviations
        await r.settled()
        counts = r.controller.totals
        assert counts[("chat", "r1", CANARY_DIGEST, 100)].forced == 60
        assert counts[("chat", "r1", STABLE_DIGEST, 0)].forced == 60
        both = [counts[("chat", "r1", d, 30)] for d in (STABLE_DIGEST, CANARY_DIGEST)]
        assert sum(t.settled for t in both) == sum(t.admitted for t in both) == 400
        assert r.controller.settled_through["chat"] == 400 + 60 + 60  # forced ones are not numbered
        assert r.controller.endpoints_ready == {"stable-app": 1, "canary-app": 1}


async def test_slow_canary_is_seen_and_hang_is_an_event_before_it_ends(tmp_path: Path) -> None:
    async with rig(tmp_path, first=table(1, 50)) as r, httpx.AsyncClient() as http:
        stable, canary = session_on(Role.STABLE, 50), session_on(Role.CANARY, 50)

        async def stream(session: str, within_s: float = 5.0) -> None:
            body = {**CHAT, "stream": True}
            await http.post(r.url + PATH, json=body, headers={"x-session-id": session}, timeout=within_s)

        r.stable.do = lambda body: {"delay_s": 0.002}
        for _ in range(25):
            await stream(stable)
        await r.settled()
        await asyncio.sleep(2 * QUIET_S)  # slow units are told one by one, with quiet between them
        r.controller.events.clear()
        r.canary.do = lambda body: {"delay_s": 0.05}
        await stream(canary)
        await r.settled()
        slow = [e for e in r.controller.events if e.signal == Signal.SLOW_TOKENS]
        assert [e.level for e in slow] == ["p50", "p80", "p95", "p99"]
        await asyncio.sleep(2 * QUIET_S)
        r.controller.events.clear()
        r.canary.do = lambda body: {"do": "hang"}
        task = asyncio.create_task(stream(canary))
        await until(lambda: len(r.controller.events) == 4, within_s=2.0)
        assert [(e.signal, e.level) for e in r.controller.events] == [
            (Signal.SLOW_FIRST_TOKEN, level) for level in ("p50", "p80", "p95", "p99")
        ]
        task.cancel()


async def test_sessions_are_first_seen_once_and_only_by_chance(tmp_path: Path) -> None:
    async with rig(tmp_path, first=table(1, 0)) as r, httpx.AsyncClient() as http:
        for name in ("a", "b"):
            await send(r, http, name)  # no choice of arm: no sight of them
        await r.apply(table(2, 50))
        for name in ("a", "a", "b", "c", "c", None, None):
            await send(r, http, name)
        await r.settled()
        both = [t for (_, _, _, weight), t in r.controller.totals.items() if weight == 50]
        assert sum(t.first_sights for t in both) == 5  # a, b, c and two requests without a session
        assert sum(t.admitted for t in both) == 7
        assert all(t.first_sights == 0 for (_, _, _, weight), t in r.controller.totals.items() if weight == 0)


async def test_watched_revision_is_told_under_weight_100(tmp_path: Path) -> None:
    async with rig(tmp_path) as r, httpx.AsyncClient() as http:
        for sequence, (weight, rollout) in enumerate(((None, "r1"), (0, "r1")), 1):
            made = table(sequence, weight)
            model = made.models[0].model_copy(update={"watch": True, "rollout": rollout})
            await r.apply(made.model_copy(update={"models": (model,)}))
            assert await send(r, http, "session") == "stable"
        r.stable.do = lambda body: {"status": 500}
        assert (await http.post(r.url + PATH, json=CHAT)).status_code == 500
        await r.settled()
        total = r.controller.totals[("chat", "r1", STABLE_DIGEST, 100)]
        assert (total.admitted, total.settled, total.forced, total.first_sights) == (3, 3, 0, 0)
        assert total.settled_events == {"error": 1}
        (event,) = r.controller.events
        assert (event.weight, event.arm, event.admission) == (100, Role.STABLE, 3)


async def test_testers_meet_the_canary_before_it_has_any_weight(tmp_path: Path) -> None:
    async with rig(tmp_path) as r, httpx.AsyncClient() as http:
        made = table(1, 0)
        model = made.models[0].model_copy(update={"testers": (Tester(header="x-tester", value="yes"),)})
        await r.apply(made.model_copy(update={"models": (model,)}))
        for value, expected in (("yes", "canary"), ("no", "stable")):
            answer = await http.post(r.url + PATH, json=CHAT, headers={"x-tester": value})
            assert answer.headers["x-tidegate-role"] == expected
        r.canary.do = lambda body: {"status": 500}
        answer = await http.post(r.url + PATH, json=CHAT, headers={"x-tester": "yes"})
        assert (answer.status_code, answer.headers["x-tidegate-role"]) == (200, "stable")  # rescued like any other
        await r.settled()
        assert r.controller.events == []
        assert r.controller.totals[("chat", "r1", CANARY_DIGEST, 0)].forced == 2


async def test_few_latency_events_leave_however_many_answers_are_slow(tmp_path: Path) -> None:
    async with rig(tmp_path, first=table(1, 50)) as r, httpx.AsyncClient() as http:
        began = time.monotonic()
        for _ in range(60):
            await asyncio.gather(*(send(r, http) for _ in range(5)))
        took = time.monotonic() - began
        await r.settled()
        told = Counter(e.level for e in r.controller.events if e.signal == Signal.SLOW_TOKENS)
        slow = sum(n for t in r.controller.totals.values() for name, n in t.settled_events.items() if "p50" in name)
        assert slow > 50  # the counts are whole
        assert told["p50"] >= 1
        assert all(n <= took / QUIET_S + 1 for n in told.values()), told


async def test_retired_revision_leaves_no_series(tmp_path: Path) -> None:
    async with rig(tmp_path, first=table(1, 50)) as r, httpx.AsyncClient() as http:
        await send(r, http, session_on(Role.CANARY, 50))
        await r.settled()
        assert 'version="1.1.0"' in (await http.get(r.admin_url + "/metrics")).text
        await r.apply(table(2, None))
        instruments = r.gateway.recorder.instruments
        async with asyncio.timeout(5):
            while 'version="1.1.0"' in (await http.get(r.admin_url + "/metrics")).text:
                for wait_s in (0.0, LATE_SERIES_S):  # what observes the answer may speak after the table came
                    instruments.sweep(time.monotonic() + wait_s)


async def test_endpoints_from_ray_serve(tmp_path: Path) -> None:
    """The shapes of Ray 2.60: one application with a replica, one without, whose target is Serve's proxy."""
    engine = {"url": "http://127.0.0.1:41233", "boot": "b1", "ready": False}
    asked: list[str] = []
    state = {"down": False}

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        if request.url.path == "/api/serve/applications/":
            if state["down"]:
                raise httpx.ConnectError("down")
            assert request.headers["authorization"] == "Bearer t1"
            group = {"protocol": "HTTP", "ingress_request_router_targets": [], "ingress_deployment_name": "d"}
            return httpx.Response(200, json={
                "applications": {"a": {"status": "RUNNING"}, "b": {"status": "DEPLOYING"}},
                "target_groups": [
                    {**group, "app_name": "a", "route_prefix": "/a",
                     "targets": [{"ip": "127.0.0.1", "port": 30000, "instance_id": "", "name": "r"}]},
                    {**group, "app_name": "b", "route_prefix": "/b",
                     "targets": [{"ip": "127.0.0.1", "port": 8100, "instance_id": "", "name": "p"}]},
                    {**group, "app_name": "a", "route_prefix": "/a", "protocol": "gRPC",
                     "targets": [{"ip": "127.0.0.1", "port": 31000, "instance_id": "", "name": "r"}]},
                ],
            })  # fmt: skip
        assert str(request.url) == "http://127.0.0.1:30000/a/-/engine"
        return httpx.Response(200, json=engine)

    ray_file = tmp_path / "ray.json"
    source = RayServeEndpoints(ray_file, serve_port=8100)
    published: list[dict[str, list[str]]] = []

    def publish(found: object) -> None:
        published.append({a: [x.url for x in xs] for a, xs in found.items()})  # type: ignore[attr-defined]

    async def poll(http: httpx.AsyncClient) -> None:
        with contextlib.suppress(EndpointsUnavailable):
            await source.poll(http, publish)

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
        await poll(http)
        assert asked == []  # no file yet
        ray_file.write_text(json.dumps({"dashboard_url": "http://127.0.0.1:8265", "token": "t1"}))
        await poll(http)
        assert published == [{}]
        engine["ready"] = True
        await poll(http)
        assert published[-1] == {"a": ["http://127.0.0.1:41233"]}
        count = len(asked)
        await poll(http)
        assert len(asked) == count + 1  # a ready replica is not asked again at once
        state["down"] = True
        await poll(http)
        assert len(published) == 2  # the last set stays
        state["down"] = False
        engine["url"] = "http://127.0.0.1:5"
        source.suspect("http://127.0.0.1:41233")
        await poll(http)
        assert published[-1] == {"a": ["http://127.0.0.1:5"]}
        ray_file.write_text("{}")
        await poll(http)
        assert len(published) == 3


def test_configuration_is_checked(tmp_path: Path) -> None:
    config = GatewayConfig(home=tmp_path, endpoints={"a": ("http://127.0.0.1:1",)})
    assert GatewayConfig.from_json(config.to_json()) == config
    for text, told in (
        ('{"home": "/x", "host": "0.0.0.0"}', "beyond loopback"),
        ('{"home": "/x", "prot": 1}', "prot"),
        ('{"home": "/x", "port": "many"}', "port"),
        ("{}", "home"),
        ("nope", "JSON"),
    ):
        with pytest.raises(InvalidConfig, match=told):
            GatewayConfig.from_json(text)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(PortTaken, match="--gateway-port"):
        bind("127.0.0.1", taken.getsockname()[1], "--gateway-port")


def _start(command: list[str], log_file: Path) -> subprocess.Popen[bytes]:
    with log_file.open("wb") as log:
        return subprocess.Popen(command, stderr=log, cwd=Path(__file__).parents[2], env={**os.environ})


async def test_process_serves_and_drains_on_sigterm(tmp_path: Path) -> None:
    """The real process on uvloop: a stream that is under way at SIGTERM ends whole, then it exits with 0."""
    engine, controller = await FakeEngine().start(), await FakeController().start()
    with socket.create_server(("127.0.0.1", 0)) as a, socket.create_server(("127.0.0.1", 0)) as b:
        port, admin_port = a.getsockname()[1], b.getsockname()[1]
    config = GatewayConfig(
        home=tmp_path, port=port, admin_port=admin_port, control_url=f"http://127.0.0.1:{controller.port}",
        endpoints={"stable-app": (engine.url,)}, drain_s=5.0,
    )  # fmt: skip
    command = [sys.executable, "-m", "serving.gateway.main", "--name", "g7", "--config", config.to_json()]
    process = _start(command, tmp_path / "log")
    try:
        await until(lambda: bool(controller.hellos), within_s=15)
        assert controller.hellos[0].gateway == "g7"
        await controller.push(table(1, None))
        await until(lambda: bool(controller.acks))
        engine.do = lambda body: {"chunks": 20, "delay_s": 0.05}
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
            pending = asyncio.create_task(http.post(PATH, json={**CHAT, "stream": True}))
            await until(lambda: bool(engine.busy))
            process.send_signal(signal.SIGTERM)
            answer = await pending
        assert answer.text.endswith("data: [DONE]\n\n")
        await until(lambda: process.poll() is not None)
        assert process.returncode == 0
        assert controller.totals[("chat", "", STABLE_DIGEST, 0)].in_flight == 0
        lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
        assert [x["event"] for x in lines if x["event"].startswith("gateway-")] == [
            "gateway-started", "gateway-draining", "gateway-stopped"]  # fmt: skip
        applied = next(x for x in lines if x["event"] == "table-applied")
        assert applied["weights"] == {"chat": {"1.0.0": 100}}
    finally:
        process.kill()
        await engine.stop()
        await controller.stop()
