"""A version whose answers get worse is taken back by the scores that a real gateway and a real drift watch tell."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from rollout.analysis.ledger import EvidenceIncrement, Ledger
from rollout.observation import SignalReading, Verdict
from rollout.specs import parse_spec
from serving.endpoints import Address
from serving.outcomes import Signal
from serving.resampling import ResampleSettings
from serving.traffic import ModelTraffic, Role, TrafficTable
from tests.integration.gateway_fakes import CANARY_DIGEST, SALT, STABLE_DIGEST, Rig, revision, rig, until
from tests.integration.test_drift_watch import Watch
from tests.integration.test_gateway_mirroring import over
from tests.ports import free_ports

pytestmark = pytest.mark.integration

SCORES = ("nll", "output-drift", "semantic-entropy")
WATCHED = ("error", *(f"score/{name}" for name in SCORES), "refusal")
FAILING = ("score/nll", "score/output-drift", "refusal")
"""What this engine shows; its answers are as varied as the healthy one's, so their entropy is only told."""
WEIGHT = 40


@pytest.fixture
def engines() -> Iterator[tuple[str, str]]:
    """A healthy simulated engine, and one that babbles and declines."""
    ports = free_ports(2)
    faults = ("", "&gibberish_rate=0.8&refusal_rate=1")
    running = [
        subprocess.Popen([sys.executable, "-m", "serving.engines.simulated", "--port", str(port), "--uri",
                          f"sim:?ttft_ms=1&itl_ms=0&tokens=24{fault}"], stdout=subprocess.DEVNULL)
        for port, fault in zip(ports, faults, strict=True)
    ]  # fmt: skip
    yield f"http://127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[1]}"
    for process in running:
        process.terminate()
        process.wait(10)


def watching(weight: int) -> TrafficTable:
    model = ModelTraffic(model="chat", salt=SALT, rollout="r1", scores=SCORES,
                         revisions=(revision(Role.STABLE, 100 - weight), revision(Role.CANARY, weight)))  # fmt: skip
    return TrafficTable(fence=1, sequence=1, issued_at=time.time(), models=(model,))


async def answering(urls: tuple[str, ...]) -> None:
    async with httpx.AsyncClient(trust_env=False) as http:
        for url in urls:
            deadline = time.monotonic() + 30
            while True:
                try:
                    if (await http.get(f"{url}/health")).status_code == 200:
                        break
                except httpx.HTTPError:
                    assert time.monotonic() < deadline
                await asyncio.sleep(0.05)


def readings(r: Rig) -> dict[str, SignalReading]:
    """What the controller makes of everything that it was told."""
    spec = parse_spec({"model": "chat", "version": "1.1.0", "analysis": {"signals": [{"name": n} for n in WATCHED]}})
    ledger = Ledger("r1", spec, canary=CANARY_DIGEST, stable=STABLE_DIGEST)
    ledger.weight = WEIGHT
    ledger.add(EvidenceIncrement(
        rollout="r1", gateway="g", boot="b", events=tuple(r.controller.events),
        totals=tuple(r.controller.totals.values()), settled_through=r.controller.settled_through.get("chat", 0),
    ))  # fmt: skip
    return {str(s.name): s for s in ledger.readings()}


def seen(watch: Watch) -> int:
    """Requests that the watch has taken in: it is slower than a client that does nothing but ask."""
    return sum(row["count"] for row in watch.drift.status()["requests"] if row["result"] == "seen")


async def requests(http: httpx.AsyncClient, count: int) -> AsyncIterator[int]:
    for number in range(count):
        body = {"model": "chat", "logprobs": True, "messages": [{"role": "user", "content": f"Tell me about {number}"}]}
        assert (await http.post("/v1/chat/completions", json=body)).status_code == 200
        yield number


async def test_a_version_that_babbles_is_taken_back_by_its_scores(tmp_path: Path, engines: tuple[str, str]) -> None:
    watch = Watch(tmp_path / "h")
    watch.start()
    await answering(engines)
    told = {
        "drift_socket": watch.config.places.socket, "drift_per_s": 1e6,
        "resample": ResampleSettings(rate=1.0, samples=3, most_in_flight=64),
    }  # fmt: skip
    async with rig(watch.config.home, first=watching(WEIGHT), **told) as r, httpx.AsyncClient(base_url=r.url) as http:
        r.gateway.book.replace({"stable-app": [Address(engines[0])], "canary-app": [Address(engines[1])]})
        r.source.run = None  # type: ignore[assignment, method-assign] # nothing else sets endpoints from now on
        await until(lambda: r.gateway.drift is not None and r.gateway.drift._transport is not None, within_s=30)
        async for number in requests(http, 400):
            if number % 40 == 39:
                await until(lambda told=number + 1: seen(watch) >= told, within_s=60)
                await over(r)
                found = readings(r)
                if all(found[name].verdict is Verdict.FAILED for name in FAILING):
                    break
        found = readings(r)
        assert [name for name in FAILING if found[name].verdict is not Verdict.FAILED] == []
        assert found["error"].canary.events == 0
        assert {e.signal for e in r.controller.events} >= {*WATCHED[1:4], Signal.REFUSAL}
        assert all(e.score is not None for e in r.controller.events if e.signal.startswith("score/"))
    watch.close()
