"""A gateway process in front of simulated engines, or the platform that TIDEGATE_TEST_URL names."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.processes import Engine, Gateway, Processes, free_port, furnish
from serving.gateway.config import GatewayConfig
from serving.keys import KeyRecord, Scope, hash_secret, write_key
from serving.traffic import ModelTraffic, RevisionTraffic, Role, TrafficTable

SECRET = "s" * 43
ENGINES = {
    "chat": "sim:?ttft_ms=5&itl_ms=1&tokens=12",
    "other": "sim:?ttft_ms=5&itl_ms=1&tokens=12",
    "long": "sim:?ttft_ms=5&itl_ms=50&tokens=2000",
    "silent": "sim:?stall_rate=1",
    "cut": "sim:?ttft_ms=1&itl_ms=1&tokens=20&truncate_rate=1",
    "failing": "sim:?error_rate=1",
    "fussy": "sim:?client_error_rate=1",
}


@dataclass(frozen=True)
class Target:
    """What the basic tests talk to."""

    url: str
    model: str
    key: str
    simulated: bool
    """Whether answers begin with the mark of their prompt."""


@dataclass(frozen=True)
class Simulated:
    """The gateway and the engines behind it."""

    gateway: Gateway
    engines: dict[str, Engine]
    keys: dict[str, str]
    """By what the key is for."""

    @property
    def url(self) -> str:
        return self.gateway.url + "/v1"


def _table() -> TrafficTable:
    def model(name: str, number: int) -> ModelTraffic:
        stable = RevisionTraffic(
            digest=f"{number:064x}", version="1.0.0", role=Role.STABLE, weight=100, application=name
        )
        return ModelTraffic(model=name, salt="0123456789abcdef", revisions=(stable,))

    models = tuple(model(name, number) for number, name in enumerate([*ENGINES, "gone"], 1))
    return TrafficTable(fence=1, sequence=1, issued_at=time.time(), models=models)


def _keys() -> dict[str, KeyRecord]:
    def key(number: int, *more: Scope, **rest: object) -> KeyRecord:
        fields = {"name": f"key {number}", "created_at": 0, "secret_sha256": hash_secret(SECRET), **rest}
        return KeyRecord(id=f"key{number:09}", scopes=frozenset({Scope.INFERENCE, *more}), **fields)  # type: ignore[arg-type]

    return {
        "everything": key(1, Scope.PIN_VERSION, Scope.SEE_VERSION),
        "plain": key(2),
        "one model": key(3, models=("other",)),
        "a hundred requests a minute": key(4, requests_per_minute=100),
        "few tokens": key(5, tokens_per_minute=50),
        "one at a time": key(6, concurrency=1),
        "node": key(7, requests_per_minute=100),
        "expired": key(8, expires_at=1.0),
    }


@pytest.fixture(scope="session")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulated]:
    home: Path = tmp_path_factory.mktemp("sdk")
    records = _keys()
    furnish(home, _table(), tuple(records.values()))
    with Processes(home) as processes:
        engines = {name: processes.engine(uri, name) for name, uri in ENGINES.items()}
        endpoints = {name: (engine.url,) for name, engine in engines.items()}
        config = GatewayConfig(
            home=home, port=free_port(), admin_port=free_port(), control_url=None, auth="keys",
            endpoints={**endpoints, "gone": ("http://127.0.0.1:9",)}, max_body_bytes=1024 * 1024,
        )  # fmt: skip
        gateway = processes.gateway(config)
        keys = {what: write_key(record.id, SECRET) for what, record in records.items()}
        yield Simulated(gateway, engines, keys)


@pytest.fixture(scope="session")
def target(request: pytest.FixtureRequest) -> Target:
    url = os.environ.get("TIDEGATE_TEST_URL")
    if url:
        model, key = os.environ.get("TIDEGATE_TEST_MODEL", "chat"), os.environ.get("TIDEGATE_TEST_KEY", "none")
        return Target(url.rstrip("/").removesuffix("/v1") + "/v1", model, key, simulated=False)
    found: Simulated = request.getfixturevalue("simulated")
    return Target(found.url, "chat", found.keys["everything"], simulated=True)
