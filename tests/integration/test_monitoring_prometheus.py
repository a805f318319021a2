"""A real Prometheus collects from a gateway under load: panels and rules have data, and no name is misspelt.

The control plane is stood in for by its own instruments; engines, GPUs and the host by files of what exporters say.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from benchmarks.processes import Processes, free_port, furnish
from monitoring.dashboards.catalogue import EXPORTED, Kind, Source
from monitoring.dashboards.expressions import metric_names
from monitoring.dashboards.panels import MODELS_OF_NAMESPACE
from monitoring.instruments import DriftInstruments, GuardServiceInstruments, RolloutInstruments
from monitoring.measurements import DriftMeasurement, RolloutMeasurement, SignalMeasurement
from monitoring.rules.collection import Targets, prometheus_text
from monitoring.rules.document import rules_document
from monitoring.slo import ServiceLevels
from monitoring.tracing.settings import TracingSettings, Transport
from serving.endpoints import Address
from serving.gateway.config import GatewayConfig
from serving.keys import Quota, write_key
from serving.traffic import Role
from tests.integration.gateway_fakes import Rig, rig, session_on, table
from tests.integration.test_cli_platform import Shell
from tests.integration.test_gateway_protection import SECRET, A, StoreController, keyed, record
from tests.integration.test_request_log import with_policy
from tests.otlp import http_collector
from tests.ports import free_ports
from tests.promtool import require
from tidegate.launcher import clear_leftovers
from tidegate.monitoring_files import dashboards, prepare_prometheus
from tidegate.parts import monitoring_parts
from tidegate.settings import Settings

pytestmark = pytest.mark.integration

EXPORTERS = Path(__file__).with_name("exporters")
PHASES = ("Progressing", "Paused", "Healthy", "Degraded")
SIGNALS = (
    SignalMeasurement("error", "Running", 1.5, 5.3, 0.7, 3.0, 140),
    SignalMeasurement("empty", "Successful", -0.2, 6.7, 3.1, 3.0),
    SignalMeasurement("repetition", "Running", 0.4, 6.7, 0.9, 3.0, 60),
)
ROLLOUT = RolloutMeasurement(
    "chat", "1.1.0", "Progressing", PHASES, 0.5, 0.5, SIGNALS, "models", "1.0.0", "canary", "stepping", "evidence",
    step=2, steps=3, exposed=420, lower_bound=95, started_at=1_700_000_000.0,
)  # fmt: skip
EARLIER = RolloutMeasurement(
    "code", "2.0.0", "Degraded", PHASES, 0.0, 0.0, SIGNALS[:1], "models", "1.9.0", "canary", "withdrawn", "signal",
    exposed=97, started_at=1_700_000_000.0, finished_at=1_700_000_600.0,
)  # fmt: skip
PROMOTED = replace(EARLIER, model="title", phase="Healthy", stable="2.0.0", stage="promoted", cause="", signals=())

BLOCKING = "schema: 1\nname: blocking\nchecks:\n  - {name: secrets, direction: output, action: block}\n"
KEY = "sk-proj-9fK2mQ7xLbT4vN8cR1yW5zA3dE6hJ0pS2uG4iO7kM9nB1qX3 "
"""What those guardrails block."""

EXPORTED_ELSEWHERE = ("vllm", "ray", "dcgm", "node")

SILENT = {
    "ALERTS": "no alert fires",
    "tidegate_mirrored_requests_total": "nothing is mirrored",
    'role="draining"': "nothing drains",
    'verdict="block"': "the policy of a version without one only observes",
}
"""What an expression may hold whose panel rightly stays empty in this rig."""


def control_plane() -> bytes:
    return RolloutInstruments().render([ROLLOUT, EARLIER, PROMOTED], {("chat", "signal"): 1}, "")[0]


DRIFT = [
    DriftMeasurement("chat", "all", name, 2.0, 1e6, active=False, alarms=1) for name in ("embedding", "kernel_window")
]


def drift_watch() -> bytes:
    seen = int(time.time())  # something grows
    return DriftInstruments().render(DRIFT, {("chat", "seen"): seen, ("chat", "embedded"): seen}, seen, "")[0]


GUARD = GuardServiceInstruments()


def guard_models() -> bytes:
    GUARD.requests.labels("toxicity", "ok").inc()
    GUARD.texts.labels("toxicity").inc()
    GUARD.waiting.labels("toxicity").set(0)
    GUARD.duration.labels("toxicity").observe(0.01)
    return GUARD.render("")[0]


class Exporters:
    """One HTTP server per text."""

    def __init__(self) -> None:
        self._servers: list[ThreadingHTTPServer] = []

    def serve(self, text: Any) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = text()
                self.send_response(200)
                self.send_header("content-type", "text/plain; version=0.0.4")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self._servers.append(server)
        return f"127.0.0.1:{server.server_address[1]}"

    def stop(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()


@contextlib.contextmanager
def prometheus(argv: tuple[str, ...], url: str, log: Path) -> Iterator[httpx.Client]:
    with log.open("wb") as out, httpx.Client(base_url=url, timeout=10, trust_env=False) as client:
        process = subprocess.Popen(argv, stdout=out, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + 60
            while True:
                assert process.poll() is None, log.read_text()
                with contextlib.suppress(httpx.HTTPError):
                    if client.get("/-/ready").status_code == 200:
                        break
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
            yield client
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class Asked:
    """Prometheus' answers."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def query(self, expression: str) -> list[dict[str, Any]]:
        answer = self._client.post("/api/v1/query", data={"query": expression}).json()
        assert answer["status"] == "success", f"{expression}: {answer}"
        return answer["data"]["result"]

    def get(self, path: str) -> Any:
        return self._client.get(path).json()["data"]


async def load(r: Rig) -> None:
    """Streams and whole answers to both versions; failures of every kind that a client can be told of."""
    limits = httpx.Limits(max_connections=20)
    headers = {"authorization": f"Bearer {write_key(A, SECRET)}"}
    async with httpx.AsyncClient(base_url=r.url, headers=headers, timeout=30, trust_env=False, limits=limits) as client:
        sessions = [session_on(role, 50, i * 100) for i in range(5) for role in (Role.STABLE, Role.CANARY)]
        fakes: list[dict[str, Any]] = [
            {},
            {},
            {"text": ""},
            {"status": 500},
            {"do": "die-mid"},
            {"status": 400},
            {"text": KEY, "piece": KEY},
        ]
        requests = [
            ({"model": "chat", "stream": stream, "fake": fake,
              "messages": [{"role": "user", "content": "你好"}], "mark": "x"}, {"x-session-id": session})
            for session in sessions for stream in (True, False) for fake in fakes
        ]  # fmt: skip
        requests.append(({"model": "nobody", "messages": []}, {}))

        async def one(body: dict[str, Any], headers: dict[str, str]) -> None:
            with contextlib.suppress(httpx.HTTPError):
                answer = await client.post("/v1/chat/completions", json=body, headers=headers)
                vote = {"request_id": answer.headers.get("x-request-id", ""), "rating": "down"}
                await client.post("/v1/feedback", json=vote)

        await asyncio.gather(*(one(body, headers) for body, headers in requests))


@contextlib.asynccontextmanager
async def collected(folder: Path) -> AsyncIterator[tuple[Rig, Asked, set[str]]]:
    """A platform under load and the Prometheus that has looked at it for some seconds."""
    program = require("prometheus")
    exporters = Exporters()
    files = {name: (EXPORTERS / f"{name}.prom").read_bytes() for name in EXPORTED_ELSEWHERE}
    controller = StoreController(record(A))
    first = with_policy(table(1, 50), BLOCKING)
    try:
        async with rig(folder / "home", first=first, controller=controller, auth="keys") as r:
            await keyed(r)
            await controller.push_quotas(
                Quota(namespace=controller.keys[0].namespace, set_at=1.0, requests_per_minute=100_000)
            )
            engine, ray, gpu, host = (exporters.serve(lambda name=name: files[name]) for name in EXPORTED_ELSEWHERE)
            (folder / "ray.json").write_text(json.dumps([{"labels": {"job": "ray"}, "targets": [ray]}]))
            targets = Targets(
                gateways=(f"127.0.0.1:{r.gateway.admin_port}",), controls=(exporters.serve(control_plane),),
                drifts=(exporters.serve(lambda: drift_watch() + guard_models()),),
                engines=(engine,), gpus=(gpu,), hosts=(host,), discovery_files=(str(folder / "ray.json"),),
            )  # fmt: skip
            rules = rules_document(ServiceLevels())
            for group in rules["groups"]:
                group["interval"] = "1s"
            (folder / "rules.yml").write_text(yaml.safe_dump(rules))
            (folder / "prometheus.yml").write_text(prometheus_text(targets, ["rules.yml"], interval_s=1))
            port = free_ports(1)[0]
            argv = (program, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn")  # fmt: skip
            with prometheus(argv, f"http://127.0.0.1:{port}", folder / "prometheus.log") as client:
                asked = Asked(client)
                await load(r)
                deadline = time.monotonic() + 90
                while not await asyncio.to_thread(seen, asked):
                    assert time.monotonic() < deadline, "Prometheus saw no load"
                    await load(r)
                    await asyncio.sleep(1)
                async with httpx.AsyncClient(trust_env=False) as direct:
                    text = (
                        (await direct.get(f"{r.admin_url}/metrics")).text
                        + control_plane().decode()
                        + drift_watch().decode()
                        + guard_models().decode()
                    )
                yield r, asked, {line.split(" ")[2] for line in text.splitlines() if line.startswith("# TYPE ")}
    finally:
        exporters.stop()


def seen(asked: Asked) -> bool:
    """Whether increases of every kind that the load makes have been recorded."""
    wanted = (
        'model_version:tidegate_requests_bad:ratio_rate5m{version="1.1.0"} > 0',
        "model:tidegate_first_tokens_slow:ratio_rate3d >= 0",
        "model:tidegate_requests_bad:ratio_rate3d > 0",
        "sum(rate(tidegate_retries_total[5m])) > 0",
        'sum(rate(tidegate_rejections_total{reason="model_not_found"}[5m])) > 0',
        'model_version_direction:tidegate_tokens:rate5m{direction="output"} > 0',
    )
    return all(asked.query(expression) for expression in wanted)


def in_grafanas_stead(expression: str) -> str:
    values = {"$model": ".*", "$namespace": ".*", "$__rate_interval": "1m", "$__range": "5m"}
    for name, value in values.items():
        expression = expression.replace(name, value)
    assert not re.search(r"\$[a-z_{]", expression)
    return expression


def expressions() -> list[tuple[str, str]]:
    found = [
        (f"{name}: {panel['title']}", in_grafanas_stead(target["expr"]))
        for name, text in dashboards().items()
        for panel in json.loads(text)["panels"]
        for target in panel.get("targets") or ()
    ]
    boards = {name: json.loads(text) for name, text in dashboards().items()}
    found += [
        (f"{name}: mark {mark['name']}", in_grafanas_stead(mark["expr"]))
        for name, board in boards.items()
        for mark in board["annotations"]["list"]
    ]
    found.append(("models to choose from", in_grafanas_stead(MODELS_OF_NAMESPACE)))
    rules = [rule for group in rules_document(ServiceLevels())["groups"] for rule in group["rules"]]
    return found + [(f"rule {rule['record']}", rule["expr"]) for rule in rules if "record" in rule]


async def test_every_panel_and_rule_has_data_and_every_name_is_exported(tmp_path: Path) -> None:
    async with collected(tmp_path) as (_, asked, families):
        empty = {where: expr for where, expr in expressions() if not await asyncio.to_thread(asked.query, expr)}
        unexplained = {w: e for w, e in empty.items() if not any(n in e for n in SILENT)}
        assert unexplained == {}

        groups = (await asyncio.to_thread(asked.get, "/api/v1/rules"))["groups"]
        unhealthy = {r["name"]: r.get("lastError") for g in groups for r in g["rules"] if r["health"] != "ok"}
        assert unhealthy == {}
        targets = (await asyncio.to_thread(asked.get, "/api/v1/targets"))["activeTargets"]
        assert {t["labels"]["job"]: t["health"] for t in targets} == dict.fromkeys(
            ("tidegate-gateway", "tidegate-control", "tidegate-drift", "tidegate-engine", "ray", "dcgm", "node"), "up"
        )

        ours = {m.name.removesuffix("_created") for m in EXPORTED}
        told = {name for name in families if not name.endswith("_created")}
        assert told == ours, "the catalogue and what is exported are the same"

        stored = set(await asyncio.to_thread(asked.get, "/api/v1/label/__name__/values"))
        named = {n for _, e in expressions() for n in metric_names(e)}
        missing = {n for n in named - stored if not any(n.startswith(s) for s in SILENT)}
        assert missing == set()


async def test_labels_are_those_of_the_catalogue_and_no_others(tmp_path: Path) -> None:
    async with collected(tmp_path) as (_, asked, _families):
        added = {"__name__", "instance", "job", "le"}
        for metric in EXPORTED:
            series = metric.name + ("_bucket" if metric.kind is Kind.HISTOGRAM else "")
            for found in await asyncio.to_thread(asked.query, series):
                assert set(found["metric"]) - added <= set(metric.labels), series
        gateway = [m for m in EXPORTED if m.source is Source.GATEWAY]
        assert all("session" not in m.labels and "request_id" not in m.labels for m in gateway)


async def test_engines_are_found_natives_are_stored_and_exemplars_lead_to_traces(tmp_path: Path) -> None:
    program = require("prometheus")
    exporters = Exporters()
    engine = exporters.serve(lambda: b"# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running 2\n")
    try:
        with http_collector() as (endpoint, received):
            tracing = TracingSettings(endpoint, Transport.HTTP, ratio=1.0)
            async with rig(tmp_path / "home", first=table(1, 0), tracing=tracing) as r:
                r.source.set({"stable-app": [r.stable.url], "canary-app": [f"http://{engine}"]})
                admin = f"127.0.0.1:{r.gateway.admin_port}"
                targets = Targets(gateways=(admin,), discovery=(f"http://{admin}/targets",))
                (tmp_path / "prometheus.yml").write_text(prometheus_text(targets, [], interval_s=1))
                port = free_ports(1)[0]
                argv = (program, f"--config.file={tmp_path / 'prometheus.yml'}", "--log.level=warn",
                        f"--storage.tsdb.path={tmp_path / 'data'}", f"--web.listen-address=127.0.0.1:{port}",
                        "--enable-feature=native-histograms,exemplar-storage")  # fmt: skip
                with prometheus(argv, f"http://127.0.0.1:{port}", tmp_path / "log") as client:
                    asked = Asked(client)
                    quantile = "histogram_quantile(0.9, rate(gen_ai_server_request_duration_seconds[30s])) > 0"
                    deadline = time.monotonic() + 60
                    while not await asyncio.to_thread(asked.query, quantile):
                        assert time.monotonic() < deadline
                        await load(r)
                        await asyncio.sleep(0.5)
                    running = 'vllm:num_requests_running{job="tidegate-engines"}'
                    while not (found := await asyncio.to_thread(asked.query, running)):
                        assert time.monotonic() < deadline
                        await asyncio.sleep(0.3)
                    assert (found[0]["metric"]["model"], found[0]["metric"]["version"]) == ("chat", "1.1.0")
                    name = "gen_ai_server_request_duration_seconds"
                    window = f"start={time.time() - 60}&end={time.time() + 1}"
                    seen = await asyncio.to_thread(asked.get, f"/api/v1/query_exemplars?query={name}&{window}")
            kept = {span.trace_id.hex() for span in received.spans}
            linked = {e["labels"]["trace_id"] for series in seen for e in series["exemplars"]}
            assert linked
            assert linked <= kept
    finally:
        exporters.stop()


def test_counters_of_a_gateway_that_was_killed_begin_again_and_their_increase_sees_it(tmp_path: Path) -> None:
    program = require("prometheus")
    furnish(tmp_path, table(1, None).model_copy(update={"fence": 1}), ())
    with Processes(tmp_path) as processes:
        engine = processes.engine("sim:?ttft_ms=1&itl_ms=1&tokens=3", "chat")
        config = GatewayConfig(
            home=tmp_path, port=free_port(), admin_port=free_port(), control_url=None,
            endpoints={"stable-app": (engine.url,)},
        )  # fmt: skip
        targets = Targets(gateways=(f"127.0.0.1:{config.admin_port}",))
        (tmp_path / "prometheus.yml").write_text(prometheus_text(targets, [], interval_s=1))
        port = free_port()
        argv = (program, f"--config.file={tmp_path / 'prometheus.yml'}", f"--storage.tsdb.path={tmp_path / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn")  # fmt: skip
        with prometheus(argv, f"http://127.0.0.1:{port}", tmp_path / "log") as client:
            asked = Asked(client)

            def serve(requests: int) -> Any:
                gateway = processes.gateway(config)
                body = {"model": "chat", "messages": [{"role": "user", "content": "hello"}]}
                with httpx.Client(base_url=gateway.url, trust_env=False, timeout=30) as http:
                    assert {http.post("/v1/chat/completions", json=body).status_code for _ in range(requests)} == {200}
                deadline = time.monotonic() + 30
                while not asked.query(f"sum(tidegate_requests_total) == {requests}"):
                    assert time.monotonic() < deadline
                    time.sleep(0.2)
                return gateway

            first = serve(5)
            first.process.kill()
            first.process.wait()
            serve(3)
            (resets,) = asked.query("resets(tidegate_requests_total[5m])")
            assert resets["value"][1] == "1"
            (increase,) = asked.query("sum(increase(tidegate_requests_total[5m]))")
            assert 3 <= float(increase["value"][1]) < 8


async def test_the_platforms_own_prometheus_starts_collects_and_keeps_below_the_home(tmp_path: Path) -> None:
    require("prometheus")
    async with rig(tmp_path / "gateway", first=table(1, 50)) as r:
        settings = Settings(
            home=tmp_path / "home", monitoring=True, prometheus_port=free_ports(1)[0], admin_port=r.gateway.admin_port
        )
        prepare_prometheus(settings)
        (part,) = monitoring_parts(settings)
        assert not part.ready(time.time())
        with prometheus(part.argv, settings.local_prometheus_url, tmp_path / "log") as client:
            assert part.ready(time.time())
            deadline = time.monotonic() + 60
            while True:
                found = await asyncio.to_thread(Asked(client).query, "tidegate_revision_info")
                if len(found) == 2:
                    break
                assert time.monotonic() < deadline
                await asyncio.sleep(0.3)
            flags = Asked(client).get("/api/v1/status/flags")
            assert flags["storage.tsdb.path"].startswith(str(tmp_path / "home"))
            assert (flags["storage.tsdb.retention.time"], flags["storage.tsdb.retention.size"]) == ("15d", "2GiB")
            assert flags["web.listen-address"].startswith("127.0.0.1:")
            loaded = Asked(client).get("/api/v1/rules")["groups"]
            assert {g["name"] for g in loaded} == {"tidegate-recording", "tidegate-alerts"}


async def test_a_gateway_tells_its_ready_endpoints_and_that_nobody_leads_it(tmp_path: Path) -> None:
    async with rig(tmp_path, first=table(1, 50), lease_s=0.5) as r, httpx.AsyncClient(trust_env=False) as client:

        async def told(line: str) -> bool:
            return line in (await client.get(f"{r.admin_url}/metrics")).text.splitlines()

        async def comes(line: str) -> None:
            deadline = time.monotonic() + 20
            while not await told(line):
                assert time.monotonic() < deadline, line
                await asyncio.sleep(0.05)

        await comes("tidegate_gateway_lease_valid 1.0")
        assert await told('tidegate_endpoints_ready{model="chat",version="1.0.0"} 1.0')
        r.controller.beating = False
        await comes("tidegate_gateway_lease_valid 0.0")
        r.gateway.book.replace({"canary-app": [Address(r.canary.url)]})
        await comes('tidegate_endpoints_ready{model="chat",version="1.0.0"} 0.0')
        assert await told('tidegate_endpoints_ready{model="chat",version="1.1.0"} 1.0')


def test_up_with_monitoring_runs_prometheus_and_down_stops_it(tmp_path: Path) -> None:
    require("prometheus")
    shell = Shell(tmp_path)
    site = tmp_path / "site" / "sitecustomize.py"
    stand_ins = "for p, a in zip(real(s), args)\n    )"
    assert stand_ins in site.read_text()
    site.write_text(site.read_text().replace(stand_ins, stand_ins + " + real(s)[3:]"))
    port = free_ports(1)[0]
    shell.env["TIDEGATE_PROMETHEUS_PORT"] = str(port)
    shell.env["TIDEGATE_DRIFT"] = "false"
    try:
        code, out, err = shell("up", "--bare", "--detach", "--with-monitoring", "--timeout", "60")
        assert code == 0, err
        assert f"http://127.0.0.1:{port}" in out
        assert [p["state"] for p in shell.status()["processes"] if p["name"] == "prometheus"] == ["ready"]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            deadline, jobs = time.monotonic() + 30, set()
            while jobs != {"tidegate-gateway", "tidegate-control"}:
                assert time.monotonic() < deadline, jobs
                time.sleep(0.1)
                jobs = {t["labels"]["job"] for t in Asked(client).get("/api/v1/targets")["activeTargets"]}
        assert (shell.home / "prometheus" / "data").is_dir()
        assert shell("down")[0] == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"http://127.0.0.1:{port}/-/ready", trust_env=False)
    finally:
        shell("down", "--timeout", "5")
        clear_leftovers(Settings(home=shell.home))


def test_without_being_asked_for_there_is_no_prometheus(tmp_path: Path) -> None:
    assert monitoring_parts(Settings(home=tmp_path)) == ()
