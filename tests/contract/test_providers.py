"""What every metrics store must do for us: four counters of one moment, or an error that says which kind.

The same suite runs on the store in memory, on Prometheus's HTTP API as a stand-in serves it, and on a real Prometheus
that scrapes a real exporter, where Debian's package `prometheus` is installed.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs

import httpx
import pytest

from monitoring.providers.base import (
    BadAnswer,
    Counters,
    Measured,
    NoData,
    ProviderError,
    QueryRefused,
    RevisionQuery,
    SeveralSeries,
    SignalProvider,
    SignalQuery,
    StoreUnavailable,
)
from monitoring.providers.memory import MemoryProvider
from monitoring.providers.prometheus import MAX_ANSWER_BYTES, PrometheusAddress, PrometheusProvider
from tests.ports import free_ports

QUERY = SignalQuery(
    canary=RevisionQuery(events="canary_bad", total="canary_all"),
    stable=RevisionQuery(events="stable_bad", total="stable_all"),
)
VALUES = {"canary_bad": 3.0, "canary_all": 142.0, "stable_bad": 9.0, "stable_all": 1_290.0}


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler], port: int = 0) -> Iterator[str]:
    """A web server on loopback, for as long as the block lasts."""
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Store:
    """A store under test: what it holds, and the provider that reads it."""

    provider: SignalProvider

    def publish(self, name: str, *values: float) -> None:
        """What a name's series are from now on; none for none."""
        raise NotImplementedError

    async def read(self) -> Measured:
        """Read once what was published."""
        return await self.provider.read(QUERY)

    async def settle(self, expected: Callable[[Measured | ProviderError], bool]) -> Measured | ProviderError:
        """Read until what was published can be read; stores that scrape take a moment."""
        until = time.monotonic() + 30.0
        while True:
            try:
                found: Measured | ProviderError = await self.read()
            except ProviderError as error:
                found = error
            if expected(found) or time.monotonic() > until:
                return found
            await asyncio.sleep(0.1)


class InMemory(Store):
    """The store in memory."""

    def __init__(self) -> None:
        self.provider = self.memory = MemoryProvider(time.time)

    def publish(self, name: str, *values: float) -> None:
        self.memory.set(name, *values)


class OverHttp(Store):
    """Prometheus's API as its documentation describes it, served by a stand-in, over a real connection."""

    def __init__(self) -> None:
        self.series: dict[str, tuple[float, ...]] = {}
        self.times: list[str | None] = []
        outer = self

        class Api(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                form = parse_qs(self.rfile.read(int(self.headers["content-length"])).decode())
                outer.times.append(form.get("time", [None])[0])
                at = float(outer.times[-1] or time.time())
                result = [
                    {"metric": {"series": str(i)}, "value": [at, f"{value:g}"]}
                    for i, value in enumerate(outer.series.get(form["query"][0], ()))
                ]
                body = json.dumps({"status": "success", "data": {"resultType": "vector", "result": result}}).encode()
                self.send_response(200 if self.path == "/api/v1/query" else 404)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.handler = Api

    def publish(self, name: str, *values: float) -> None:
        self.series[name] = values


class Real(Store):
    """A real Prometheus, scraping a real exporter twice a second."""

    def __init__(self) -> None:
        self.series: dict[str, tuple[float, ...]] = {}
        outer = self

        class Exporter(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                lines = [
                    f'{name}{{series="{i}"}} {value}'
                    for name, values in outer.series.items()
                    for i, value in enumerate(values)
                ]
                self.send_response(200)
                self.send_header("content-type", "text/plain; version=0.0.4")
                self.end_headers()
                self.wfile.write(("\n".join(lines) + "\n").encode())

            def log_message(self, *_: object) -> None:
                pass

        self.handler = Exporter

    def publish(self, name: str, *values: float) -> None:
        self.series[name] = values


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Real, str]]:
    """One real Prometheus for all tests, with its exporter."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not installed (Debian: apt-get install prometheus)")
    made = Real()
    with serving(made.handler) as exporter, started(program, tmp_path_factory.mktemp("tsdb"), exporter) as url:
        yield made, url


@pytest.fixture(params=["memory", "stand-in", "prometheus"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    made: Store
    if request.param == "memory":
        made = InMemory()
        yield made
        await made.provider.close()
    elif request.param == "stand-in":
        made = OverHttp()
        with serving(made.handler) as url:
            made.provider = PrometheusProvider(PrometheusAddress(url))
            yield made
            await made.provider.close()
    else:
        made, url = request.getfixturevalue("prometheus")
        made.provider = PrometheusProvider(PrometheusAddress(url))
        yield made
        await made.provider.close()


@contextmanager
def started(program: str, folder: Path, exporter: str) -> Iterator[str]:
    """A Prometheus on a port of its own."""
    (port,) = free_ports(1)
    config = folder / "prometheus.yml"
    config.write_text(
        "global: {scrape_interval: 500ms, scrape_timeout: 500ms}\n"
        f"scrape_configs: [{{job_name: test, static_configs: [{{targets: ['{exporter.removeprefix('http://')}']}}]}}]\n"
    )
    process = subprocess.Popen(
        [program, f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}", "--log.level=error",
         f"--web.listen-address=127.0.0.1:{port}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        url = f"http://127.0.0.1:{port}"
        until = time.monotonic() + 30.0
        while time.monotonic() < until:
            try:
                if httpx.get(f"{url}/-/ready", timeout=1.0).status_code == 200:
                    break
            except httpx.HTTPError:
                pass
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=20)


def publish(store: Store, **values: float) -> None:
    for name, value in (VALUES | values).items():
        store.publish(name, value)


# -- every store ------------------------------------------------------------------------------------------------------


async def test_four_counters_are_read_for_one_moment(store):
    publish(store)
    found = await store.settle(lambda f: isinstance(f, Measured))
    assert isinstance(found, Measured), found
    assert found.canary == Counters(events=3, total=142)
    assert found.stable == Counters(events=9, total=1_290)
    assert abs(found.at - time.time()) < 60.0


async def test_counters_that_grew_or_were_reset_are_told_as_they_are(store):
    publish(store)
    for canary_bad in (7.0, 0.0):
        publish(store, canary_bad=canary_bad)
        found = await store.settle(lambda f, v=canary_bad: isinstance(f, Measured) and f.canary.events == v)
        assert isinstance(found, Measured), found
        assert found.canary.events == canary_bad


async def test_without_a_stable_only_the_canary_is_read(store):
    publish(store)
    await store.settle(lambda f: isinstance(f, Measured))
    found = await store.provider.read(SignalQuery(canary=QUERY.canary))
    assert found.stable is None
    assert found.canary.total == 142


@pytest.mark.parametrize(
    ("values", "error"),
    [((), NoData), ((float("nan"),), NoData), ((1.0, 2.0), SeveralSeries)],
    ids=["nothing", "NaN", "two series"],
)
async def test_what_is_not_one_number_is_an_error_of_its_kind(store, values, error):
    publish(store)
    store.publish("stable_bad", *values)
    found = await store.settle(lambda f: isinstance(f, error) and "stable_bad" in str(f))
    assert isinstance(found, error), found
    assert "stable_bad" in str(found)
    assert not found.retryable


async def test_closing_twice_does_no_harm(store):
    await store.provider.close()
    await store.provider.close()


# -- Prometheus's API -------------------------------------------------------------------------------------------------


async def test_a_real_prometheus_refuses_a_query_it_cannot_read(prometheus):
    _, url = prometheus
    provider = PrometheusProvider(PrometheusAddress(url))
    with pytest.raises(QueryRefused, match="parse error"):
        await provider.read(SignalQuery(canary=RevisionQuery(events="sum(", total="up")))
    with pytest.raises(BadAnswer, match="matrix"):
        await provider.read(SignalQuery(canary=RevisionQuery(events="up[1m]", total="up")))
    found = await provider.read(SignalQuery(canary=RevisionQuery(events="vector(2)", total="scalar(vector(5))")))
    assert found.canary == Counters(events=2, total=5)
    await provider.close()


async def test_all_queries_of_a_reading_ask_for_the_moment_of_the_first():
    stand_in = OverHttp()
    publish(stand_in)
    with serving(stand_in.handler) as url:
        provider = PrometheusProvider(PrometheusAddress(url))
        found = await provider.read(QUERY)
        await provider.close()
    assert stand_in.times[0] is None
    assert [float(t) for t in stand_in.times[1:]] == pytest.approx([found.at] * 3, abs=0.001)


def answering(*answers: tuple[int, str]) -> tuple[PrometheusProvider, list[httpx.Request]]:
    """A provider whose store gives these answers in turn, the last one for ever; and what it was asked."""
    asked: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        status, body = answers[min(len(asked), len(answers)) - 1]
        return httpx.Response(status, text=body)

    transport = httpx.MockTransport(handle)
    address = PrometheusAddress("http://store", bearer_token="geheim")
    return PrometheusProvider(address, transport=transport, retry_wait_s=0.001), asked


def vector(*values: object) -> str:
    rows = [{"metric": {}, "value": [1_000.5, value]} for value in values]
    return json.dumps({"status": "success", "data": {"resultType": "vector", "result": rows}})


@pytest.mark.parametrize(
    ("answers", "error", "tries"),
    [
        ([(503, "overloaded")], StoreUnavailable, 3),
        ([(429, "slow down")], StoreUnavailable, 3),
        ([(401, "who are you")], QueryRefused, 1),
        ([(400, '{"status": "error", "error": "bad_data: 中文"}')], QueryRefused, 1),
        ([(302, "elsewhere")], QueryRefused, 1),
        ([(200, "<html>login</html>")], BadAnswer, 1),
        ([(200, '{"data": {"resultType": "vector", "result": [{"value": [1]}]}}')], BadAnswer, 1),
        ([(200, '{"data": {"resultType": "vector", "result": [{}]}}')], BadAnswer, 1),
        ([(200, "[]")], BadAnswer, 1),
        ([(200, vector("-3"))], BadAnswer, 1),
        ([(200, vector("+Inf"))], NoData, 1),
        ([(200, vector("many"))], BadAnswer, 1),
        ([(200, " " * (MAX_ANSWER_BYTES + 1))], SeveralSeries, 1),
    ],
)
async def test_every_odd_answer_is_one_of_our_errors_and_tried_again_only_where_that_may_help(answers, error, tries):
    provider, asked = answering(*answers)
    with pytest.raises(error) as raised:
        await provider.read(QUERY)
    assert len(asked) == tries
    assert "geheim" not in str(raised.value)
    assert len(str(raised.value)) < 500


async def test_a_store_that_comes_back_is_read():
    provider, asked = answering((503, ""), (502, ""), (200, vector("4")))
    found = await provider.read(QUERY)
    assert found.canary == Counters(events=4, total=4)
    assert len(asked) == 2 + 4
    assert asked[0].headers["authorization"] == "Bearer geheim"


async def test_a_user_name_and_password_are_sent_as_basic_authentication():
    seen: list[str] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["authorization"])
        return httpx.Response(200, text=vector("1"))

    address = PrometheusAddress("http://store", username="ada", password="geheim")
    provider = PrometheusProvider(address, transport=httpx.MockTransport(handle))
    await provider.read(QUERY)
    assert seen[0].startswith("Basic ")
    assert "geheim" not in repr(address)


async def test_a_store_that_is_not_there_and_one_that_hangs_are_unavailable():
    (port,) = free_ports(1)
    provider = PrometheusProvider(PrometheusAddress(f"http://127.0.0.1:{port}", attempts=2), retry_wait_s=0.01)
    with pytest.raises(StoreUnavailable, match="ConnectError"):
        await provider.read(QUERY)

    class Silent(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            time.sleep(1.0)

        def log_message(self, *_: object) -> None:
            pass

    with serving(Silent) as url:
        provider = PrometheusProvider(PrometheusAddress(url, timeout_s=0.1, attempts=2), retry_wait_s=0.01)
        with pytest.raises(StoreUnavailable, match="Timeout"):
            await provider.read(QUERY)


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"url": "prometheus:9090"}, "http://"), ({"bearer_token": "a", "username": "b"}, "one of the two")],
)
def test_an_address_that_cannot_be_meant_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        PrometheusAddress(**({"url": "http://store"} | changes))
