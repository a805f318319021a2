"""The gateway beside other people's, in one run, in front of the same engine.

    python -m benchmarks.gateway_peers [--rounds 3] [--seconds 4] [--concurrency 16 64] [--peers NAME...]

One process with one worker each. Ours has everything on: keys, limits, a 90/10 split, sticky sessions, metrics,
outcome counts and accounting. The others run as their documentation starts them, with what they have of it: Envoy
splits 90/10 too, LiteLLM checks a master key. The load comes from wrk (Debian's package `wrk`) on one thread. Rounds
alternate between all of them and ratios are taken within a round, so that what else the machine does hits all alike.

Then all of them at half of what ours can do, at a fixed rate (`steady_load`): what each adds to the latency of asking
the engine directly. Who is measured then has a core of its own, where there are two; engine and load share another one.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.steady_load import at_rate
from serving.gateway.config import GatewayConfig
from serving.gateway.traffic_state import save_table
from serving.keys import KeyRecord, hash_secret, write_key
from serving.traffic import ModelTraffic, RevisionTraffic, Role, TrafficTable

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / "build" / "peers"
REQUIREMENTS = Path(__file__).with_name("peers") / "requirements.txt"
KEY_ID, SECRET = "benchmark000", "a-secret-that-is-only-used-on-loopback"
KEY = write_key(KEY_ID, SECRET)
BODY = {"model": "chat", "messages": [{"role": "user", "content": "Tell me something about tides."}], "max_tokens": 64}
SESSIONS = 500
ENVOY = "type.googleapis.com/envoy.extensions"
NAMES = ("vllm-router", "envoy", "litellm")


@dataclass
class Contender:
    """Something that listens and answers like OpenAI."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    rates: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)
    fastest: float = 0.0
    """Whole answers per second at the first concurrency."""


def free_ports(count: int) -> list[int]:
    """Ports that are free now."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(s.getsockname()[1]) for s in listeners]
    for s in listeners:
        s.close()
    return ports


def install_peers(names: list[str]) -> None:
    """Put the peers' wheels into an environment of their own, once."""
    marker = PEERS / ".installed"
    wanted = REQUIREMENTS.read_text()
    if not names or (marker.exists() and marker.read_text() == wanted):
        return
    print("installing the peers into build/peers", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(PEERS)], check=True)
    pip = [str(PEERS / "bin" / "pip"), "install", "--quiet", "-r", str(REQUIREMENTS)]
    subprocess.run(pip, check=True)
    marker.write_text(wanted)


def start(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a process whose words go to a file."""
    environment = {
        "PATH": f"{PEERS / 'bin'}:/usr/local/bin:/usr/bin:/bin", "HOME": str(log.parent), "TOKIO_WORKER_THREADS": "1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "DISABLE_ADMIN_UI": "True",
    }  # fmt: skip
    return subprocess.Popen(arguments, cwd=ROOT, env=environment, stdout=log.open("wb"), stderr=subprocess.STDOUT)


def ours(home: Path, port: int, admin_port: int, control_port: int, engine: str) -> subprocess.Popen[bytes]:
    """The gateway with all its features on."""

    def revision(role: Role, weight: int) -> RevisionTraffic:
        digest = ("a" if role is Role.STABLE else "b") * 64
        return RevisionTraffic(digest=digest, version="1.0.0", role=role, weight=weight, application=role.value)

    revisions = (revision(Role.STABLE, 90), revision(Role.CANARY, 10))
    model = ModelTraffic(model="chat", salt="s" * 16, rollout="r", revisions=revisions)
    save_table(
        home / "gateway" / "table.json", TrafficTable(fence=1, sequence=1, issued_at=time.time(), models=(model,))
    )
    config = GatewayConfig(
        home=home, port=port, admin_port=admin_port, control_url=f"http://127.0.0.1:{control_port}", auth="keys",
        endpoints={"stable": (engine,), "canary": (engine,)},
    )  # fmt: skip
    return start([sys.executable, "-m", "serving.gateway.main", "--config", config.to_json()], home / "gateway.log")


def envoy_config(port: int, engine_port: int) -> str:
    """Envoy: 90/10 over two clusters, pooled connections, no time-out."""

    def cluster(name: str) -> dict[str, object]:
        address = {"address": {"socket_address": {"address": "127.0.0.1", "port_value": engine_port}}}
        return {
            "name": name, "type": "STATIC", "connect_timeout": "2s",
            "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": address}]}]},
        }  # fmt: skip

    weighted = {"clusters": [{"name": "stable", "weight": 90}, {"name": "canary", "weight": 10}]}
    routes = [{"match": {"prefix": "/"}, "route": {"timeout": "0s", "weighted_clusters": weighted}}]
    manager = {
        "@type": f"{ENVOY}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {
            "@type": f"{ENVOY}.filters.http.router.v3.Router"}}],
    }  # fmt: skip
    listener = {
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{"filters": [{
            "name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}],
    }  # fmt: skip
    return json.dumps(
        {"static_resources": {"listeners": [listener], "clusters": [cluster("stable"), cluster("canary")]}}
    )


def peer(name: str, home: Path, port: int, engine_port: int) -> subprocess.Popen[bytes]:
    """One of the others, with one worker."""
    engine, log = f"http://127.0.0.1:{engine_port}", home / f"{name}.log"
    match name:
        case "vllm-router":
            command = [str(PEERS / "bin" / "vllm-router"), "--worker-urls", engine, "--host", "127.0.0.1",
                       "--port", str(port), "--policy", "round_robin", "--log-level", "error",
                       "--prometheus-port", str(free_ports(1)[0])]  # fmt: skip
            return start(command, log)
        case "envoy":
            file = home / "envoy.json"
            file.write_text(envoy_config(port, engine_port))
            command = [str(PEERS / "bin" / "envoy"), "-c", str(file), "--concurrency", "1", "-l", "error",
                       "--use-dynamic-base-id"]  # fmt: skip
            return start(command, log)
        case "litellm":
            file = home / "litellm.yaml"
            parameters = {"model": "openai/chat", "api_base": f"{engine}/v1", "api_key": "none"}
            document = {
                "model_list": [{"model_name": "chat", "litellm_params": parameters}],
                "general_settings": {"master_key": KEY}, "litellm_settings": {"set_verbose": False, "telemetry": False},
            }  # fmt: skip
            file.write_text(json.dumps(document))
            command = [str(PEERS / "bin" / "litellm"), "--config", str(file), "--host", "127.0.0.1",
                       "--port", str(port), "--num_workers", "1", "--telemetry", "False"]  # fmt: skip
            return start(command, log)
    raise SystemExit(f"no peer named {name}; there are {', '.join(NAMES)}")


def wrk_script(stream: bool) -> str:
    """Requests of 500 sessions in turn, prepared before the load begins."""
    body = json.dumps({**BODY, "stream": stream}, separators=(",", ":"))
    return f"""
local requests, i = {{}}, 0
function init()
  for s = 1, {SESSIONS} do
    requests[s] = wrk.format("POST", "/v1/chat/completions", {{
      ["content-type"] = "application/json", ["authorization"] = "Bearer {KEY}", ["x-session-id"] = "session-" .. s,
      ["Host"] = "bench" }}, [[{body}]])
  end
end
function request()
  i = i % {SESSIONS} + 1
  return requests[i]
end
"""


def cpu_s(process: subprocess.Popen[bytes]) -> float:
    """CPU time of a process and its children so far."""
    root = psutil.Process(process.pid)
    return sum(sum(p.cpu_times()[:2]) for p in [root, *root.children(recursive=True)])


def load(contender: Contender, stream: bool, concurrency: int, seconds: float, home: Path) -> None:
    """One run of wrk, booked."""
    script = home / "load.lua"
    script.write_text(wrk_script(stream))
    before = cpu_s(contender.process)
    command = ["wrk", "-t1", f"-c{concurrency}", f"-d{seconds:g}s", "--timeout", "10s", "-s", str(script),
               f"http://127.0.0.1:{contender.port}"]  # fmt: skip
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found, count = re.search(r"Requests/sec:\s+([\d.]+)", text), re.search(r"(\d+) requests in", text)
    if not found or not count or "Non-2xx" in text or "Socket errors" in text:
        raise SystemExit(f"{contender.name}: the load met errors:\n{text}")
    contender.rates.append(float(found[1]))
    contender.cpu_us.append((cpu_s(contender.process) - before) * 1e6 / max(1, int(count[1])))


def wait_for(url: str, what: str, within_s: float = 60.0) -> None:
    """Wait until a chat request is answered."""
    headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
    request = urllib.request.Request(url + "/v1/chat/completions", json.dumps(BODY).encode(), headers)
    until = time.monotonic() + within_s
    error = ""
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                if json.load(answer)["choices"][0]["message"]["content"]:
                    return
        except OSError as e:
            error = str(e)
        time.sleep(0.1)
    raise SystemExit(f"{what} did not answer within {within_s:.0f} s: {error}")


def cell(values: list[float], digits: int = 0) -> str:
    """Median and spread."""
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f}-{max(values):,.{digits}f})"


def compare(contenders: list[Contender], args: argparse.Namespace, home: Path) -> None:
    """All rounds of all loads."""
    print(f"{'':8} {'c':>3} {'':12} {'per second':>24} {'CPU us':>18}  ours / it")
    for stream in (False, True):
        for c in args.concurrency:
            for contender in contenders:
                contender.rates.clear()
                contender.cpu_us.clear()
            for _ in range(args.rounds):
                for contender in contenders:
                    load(contender, stream, c, args.seconds, home)
            mine = contenders[0].rates
            for contender in contenders:
                contender.fastest = contender.fastest or statistics.median(contender.rates)
                ended = all(contender.rates)  # LiteLLM's 64 streams take longer than a short round
                ratio = cell([m / t for m, t in zip(mine, contender.rates, strict=True)], 2) if ended else "none ended"
                print(
                    f"{'streams' if stream else 'unary':8} {c:3} {contender.name:12} {cell(contender.rates):>24} "
                    f"{cell(contender.cpu_us):>18}  {'' if contender is contenders[0] else ratio}",
                    flush=True,
                )


def apart(contender: Contender, engine: Contender, cores: list[int]) -> None:
    """Give who is measured a core of its own; engine and load share another one.

    Without that the kernel puts two of the three on one core every now and then, and what is measured is how it
    schedules.
    """
    if len(cores) < 2:
        return
    os.sched_setaffinity(0, {cores[-1]})
    for process, core in ((engine.process, cores[-1]), (contender.process, cores[0])):
        root = psutil.Process(process.pid)
        for thread in [t.id for p in [root, *root.children(recursive=True)] for t in p.threads()]:
            os.sched_setaffinity(thread, {core})


def half_load(contenders: list[Contender], args: argparse.Namespace) -> None:
    """What each adds to latency at half of what ours can do, beside asking the engine directly at the same rate."""
    engine, rate = contenders[1], contenders[0].fastest / 2
    body = json.dumps(BODY, separators=(",", ":")).encode()
    start = f"POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {KEY}\r\nx-session-id: "
    rest = f"\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body
    requests = [f"{start}session-{i}".encode() + rest for i in range(SESSIONS)]
    able = [c for c in contenders if c.fastest > rate]
    took: dict[str, dict[int, list[float]]] = {c.name: {50: [], 99: []} for c in able}
    others: dict[str, list[float]] = {c.name: [] for c in able}
    cores = sorted(os.sched_getaffinity(0))
    for _ in range(args.rounds):
        for contender in [engine, *(c for c in able if c is not engine)]:
            apart(contender, engine, cores)
            processes = {contender.name: contender.process, engine.name: engine.process}
            before, begun = _busy_s(list(processes.values())), time.monotonic()
            cuts = statistics.quantiles(at_rate(contender.port, requests, rate, args.seconds), n=100)
            spent = _busy_s(list(processes.values())) - before
            others[contender.name].append(100 * spent / (time.monotonic() - begun) / (psutil.cpu_count() or 1))
            for q, values in took[contender.name].items():
                values.append(cuts[q - 1] * 1000)
    print(f"\nwhole answers at {rate:,.0f} requests/s, half of what ours can do: ms, and what is added to no gateway")
    print(f"{'':12} {'p50':>18} {'p99':>18} {'added p50':>20} {'added p99':>20}  rest of the machine busy %")
    for contender in able:
        mine, bare = took[contender.name], took[engine.name]
        added = [cell([m - b for m, b in zip(mine[q], bare[q], strict=True)], 2) for q in (50, 99)]
        shown = ("", "") if contender is engine else added
        print(
            f"{contender.name:12} {cell(mine[50], 2):>18} {cell(mine[99], 2):>18} {shown[0]:>20} {shown[1]:>20}  "
            f"{cell(others[contender.name])}"
        )
    for contender in contenders:
        if contender not in able:
            print(f"{contender.name:12} can't do so many")


def _busy_s(processes: list[subprocess.Popen[bytes]]) -> float:
    """CPU seconds of everything that is neither these processes nor this one."""
    machine = psutil.cpu_times()
    busy = float(machine.user + machine.nice + machine.system + machine.irq + machine.softirq)
    return busy - sum(map(cpu_s, processes)) - sum(psutil.Process().cpu_times()[:2])


def main() -> None:
    """Start everything, measure, stop everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--peers", nargs="*", default=list(NAMES), choices=NAMES)
    args = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is not installed; `apt-get install wrk` (Debian's package) gives it")
    install_peers(args.peers)
    record = KeyRecord(
        id=KEY_ID, secret_sha256=hash_secret(SECRET), name="benchmark", created_at=time.time(),
        requests_per_minute=100_000_000, tokens_per_minute=10_000_000_000, concurrency=10_000,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="tidegate-peers-") as folder:
        home = Path(folder)
        (home / "keys.json").write_text(f"[{record.model_dump_json()}]")
        engine_port, control_port, admin_port, our_port, *rest = free_ports(4 + len(args.peers))
        engine = [sys.executable, "-m", "benchmarks.fake_engine", str(engine_port), str(control_port)]
        processes = [start([*engine, str(home / "keys.json")], home / "engine.log")]
        try:
            wait_for(f"http://127.0.0.1:{engine_port}", "the fake engine")
            gateway = ours(home, our_port, admin_port, control_port, f"http://127.0.0.1:{engine_port}")
            contenders = [Contender("tidegate", our_port, gateway)]
            processes.append(gateway)
            for name, port in zip(args.peers, rest, strict=True):
                contenders.append(Contender(name, port, peer(name, home, port, engine_port)))
                processes.append(contenders[-1].process)
            contenders.insert(1, Contender("no gateway", engine_port, processes[0]))
            for contender in contenders:
                wait_for(f"http://127.0.0.1:{contender.port}", contender.name)
            compare(contenders, args, home)
            half_load(contenders, args)
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait(15)


if __name__ == "__main__":
    main()
