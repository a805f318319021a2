"""A pod's hooks: ready when the model answers, a drain that ends with the last answer. A real server on loopback."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from serving.engines import pod
from serving.ray_app.scaling import LOAD, ReplicasForLoad


class Engine:
    """Answers /health and /metrics."""

    def __init__(self) -> None:
        self.health, self.running, self.waiting = 200, 0, 0
        engine = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                metrics = (
                    f'vllm:num_requests_running{{model_name="chat"}} {engine.running}.0\n'
                    f'vllm:num_requests_waiting{{model_name="chat"}} {engine.waiting}.0\n'
                )
                self.send_response(engine.health if self.path == "/health" else 200)
                self.end_headers()
                self.wfile.write(metrics.encode() if self.path == "/metrics" else b"")

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def engine() -> Iterator[Engine]:
    found = Engine()
    yield found
    found.server.shutdown()
    found.server.server_close()


class Time:
    """Virtual seconds; something may happen at one of them."""

    def __init__(self) -> None:
        self.now = 0.0
        self.then: dict[float, object] = {}

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for at in [at for at in self.then if at <= self.now]:
            self.then.pop(at)()


def test_ready_is_what_the_engine_says(engine: Engine, tmp_path: Path) -> None:
    folder = tmp_path / "pod"
    hook = ["ready", "--folder", str(folder)]
    assert pod.main(hook) == 1, "before the model is loaded"
    pod.announce(folder, engine.url, "boot")
    assert pod.main(hook) == 0
    engine.health = 503
    assert pod.main(hook) == 1
    (folder / pod.ENGINE_FILE).write_text("half a fi")
    assert pod.main(hook) == 1


def test_a_drain_ends_with_the_last_answer(engine: Engine, tmp_path: Path) -> None:
    pod.announce(tmp_path, engine.url, "boot")
    engine.running = 2
    time = Time()

    def finish() -> None:
        engine.running = 0

    time.then[30.0] = finish
    assert pod.drain(tmp_path, 600, lambda: time.now, time.sleep)
    assert 30 <= time.now <= 31
    assert pod.is_leaving(tmp_path), "the replica tells gateways of it"


def test_gateways_have_time_to_look_before_an_idle_engine_goes(engine: Engine, tmp_path: Path) -> None:
    pod.announce(tmp_path, engine.url, "boot")
    time = Time()
    assert pod.drain(tmp_path, 600, lambda: time.now, time.sleep)
    assert time.now >= pod.NOTICE_S


def test_a_drain_gives_up_at_its_deadline(engine: Engine, tmp_path: Path) -> None:
    pod.announce(tmp_path, engine.url, "boot")
    engine.waiting = 1
    time = Time()
    assert not pod.drain(tmp_path, 20, lambda: time.now, time.sleep)
    assert 20 <= time.now <= 21


def test_an_engine_that_is_gone_has_nothing_to_finish(tmp_path: Path) -> None:
    time = Time()
    assert pod.drain(tmp_path, 600, lambda: time.now, time.sleep)
    assert time.now <= pod.NOTICE_S + pod.POLL_S


def test_the_load_of_an_engine(engine: Engine) -> None:
    engine.running, engine.waiting = 3, 4
    assert pod.load_of(engine.url) == 7
    assert pod.load_of("http://127.0.0.1:1") is None


@pytest.mark.parametrize(
    ("told", "target", "wanted"),
    [
        ({}, 2, 2),  # nobody has told yet
        ({"a": 10.0}, 1, 1),
        ({"a": 32.0, "b": 1.0}, 1, 2),
        ({"a": 100.0, "b": 100.0}, 2, 7),
        ({"a": 0.0, "b": 0.0, "c": 0.0}, 3, 2),  # one at a time
        ({"a": 0.0}, 1, 1),
    ],
)
def test_replicas_follow_the_load(told: dict[str, float], target: int, wanted: int) -> None:
    seen = SimpleNamespace(
        aggregated_metrics={LOAD: told}, target_num_replicas=target, capacity_adjusted_min_replicas=1
    )  # fmt: skip
    assert ReplicasForLoad(per_replica=32)(seen) == (wanted, {})
