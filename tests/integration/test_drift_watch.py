"""A drift watch of its own process behind a real gateway: a planted change of topic, kill -9, and nothing written."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest

from rollout.controller import Controller
from serving.drift.config import DriftConfig
from tests.integration.gateway_fakes import Rig, rig, table, until
from tests.ports import free_ports
from tidegate.composition import build_drift_gate
from tidegate.drift import Drift
from tidegate.settings import Settings

pytestmark = pytest.mark.integration

CANARY_WORD = "xyzzy-plugh"
"""Planted in every prompt: no file may hold it."""

COOKING = (
    ("How do I", "What is the best way to", "怎么", "Can you explain how to"),
    ("bake", "fry", "season", "steam", "慢炖", "marinate", "grill"),
    ("bread", "salmon", "tofu", "dumplings", "红烧肉", "mushroom soup", "a chocolate cake", "rice"),
    ("for four people", "without an oven", "for a child's birthday", "在家", "in half an hour", "on a budget"),
)
LAW = (
    ("Is it legal to", "Which court decides whether I may", "What does the contract say if they", "法院怎么判"),
    ("terminate", "sue over", "appeal against", "诉讼", "register", "inherit"),
    ("a lease", "an unpaid invoice", "a trademark", "a divorce settlement", "劳动合同", "a patent"),
    ("under federal law", "after thirty days", "without a lawyer", "as a tenant", "仲裁之后"),
)
LONGEST_DELAY = 60
"""Requests of a full change of topic until the alarm; the benchmark's median on real text is 18."""


def prompts(words: tuple[tuple[str, ...], ...], seed: int) -> Iterator[str]:
    chance = random.Random(seed)
    while True:
        yield " ".join(chance.choice(part) for part in words)


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Watch]:
    with contextlib.closing(Watch(tmp_path / "h")) as made:
        yield made


class Watch:
    """The process, as the supervisor starts it."""

    def __init__(self, home: Path) -> None:
        self.config = DriftConfig(home=home, port=free_ports(1)[0], embeddings_per_s=10_000, save_every_s=0.5)
        self.settings = Settings(home=home, drift_port=self.config.port)
        self.drift = Drift(self.settings)
        self.told: list[str] = []
        """What the controller is told of a rollout that waits for it: "" when it may go on."""
        self.process: subprocess.Popen[bytes] | None = None
        self._log = home.parent / "watch.log"

    def start(self) -> None:
        argv = [sys.executable, "-m", "serving.drift.main", "--config", self.config.to_json()]
        with self._log.open("ab") as out:
            self.process = subprocess.Popen(argv, stdout=out, stderr=out)

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(20)
            assert self.process.returncode == 0, self._log.read_text()

    def stream(self) -> dict[str, Any]:
        return self.drift.stream("chat", "all")

    async def ask_gate(self) -> str:
        """What a controller learns by the gate of the composition root."""
        signal_ = SimpleNamespace(name="drift/input")
        spec = SimpleNamespace(analysis=SimpleNamespace(signals=[signal_]))
        target = SimpleNamespace(version="1.1.0")
        rollout = SimpleNamespace(id="r1", spec=spec, target=target, active=True, watched=False)
        controller = SimpleNamespace(
            leads=True, statuses=[SimpleNamespace(model="chat", rollout=rollout, stable=None)],
            on_measured=lambda model, increment: self.told.append(increment.counters[0].error),
        )  # fmt: skip
        await build_drift_gate(self.settings, cast("Controller", controller)).once()
        return self.told[-1]

    async def metrics(self) -> str:
        async with httpx.AsyncClient(trust_env=False) as http:
            return (await http.get(f"http://127.0.0.1:{self.config.port}/metrics")).text


@contextlib.asynccontextmanager
async def gateway(watch: Watch) -> AsyncIterator[tuple[Rig, httpx.AsyncClient]]:
    told = {"drift_socket": watch.config.places.socket, "drift_per_s": 1e6}
    async with rig(watch.config.home, first=table(1, None), **told) as r, httpx.AsyncClient(base_url=r.url) as http:
        yield r, http


async def ask(http: httpx.AsyncClient, texts: Iterator[str], count: int) -> None:
    for _ in range(count):
        body = {"model": "chat", "messages": [{"role": "system", "content": "Be kind."},
                                              {"role": "user", "content": f"{next(texts)} {CANARY_WORD}"}]}  # fmt: skip
        assert (await http.post("/v1/chat/completions", json=body)).status_code == 200


def written(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


async def until_connected(r: Rig) -> None:
    await until(lambda: r.gateway.drift is not None and r.gateway.drift._transport is not None, within_s=30)


async def test_a_change_of_topic_is_found_and_survives_kill_9(watch: Watch, tmp_path: Path) -> None:
    data = tmp_path / "cooking.jsonl"
    usual = prompts(COOKING, 1)
    data.write_text("".join(json.dumps({"text": f"{next(usual)} {CANARY_WORD}"}) + "\n" for _ in range(1100)))
    about = await asyncio.to_thread(watch.drift.build_from_dataset, "chat", "all", data)
    assert (about.rows, about.blocks) == (1100, 1)
    data.unlink()
    watch.start()
    async with gateway(watch) as (r, http):
        await until_connected(r)
        await ask(http, usual, 200)
        await until(lambda: watch.stream()["embedded"] == 200, within_s=30)
        assert watch.stream()["alarms"] == []
        assert await watch.ask_gate() == ""

        other, asked = prompts(LAW, 2), 0
        while not watch.stream()["paging"]:
            assert asked < LONGEST_DELAY, "the change of topic was not found in time"
            await ask(http, other, 10)
            asked += 10
            await until(lambda seen=200 + asked: watch.stream()["seen"] >= seen, within_s=30)
        watch.kill()  # at once: an alarm is on disk before it is told
        page = next(a for a in watch.stream()["alarms"] if a["severity"] == "page")
        assert page["request_id"].startswith("req_")
        assert page["explanation"]["gained"]
        assert all(change["label"] for change in page["explanation"]["gained"])

        assert r.gateway.drift is not None
        await until(lambda: r.gateway.drift is not None and r.gateway.drift._transport is None)
        await ask(http, usual, 5)  # nothing waits for a watch that is away
        assert r.gateway.drift.dropped == 5
        assert "does not answer" in await watch.ask_gate()
        started = time.time()
        watch.start()
        await until(lambda: watch.drift.status()["written_at"] > started, within_s=60)
        back = watch.stream()
        assert back["paging"]
        assert 200 < back["seen"] <= 200 + asked
        assert "tidegate drift explain chat" in await watch.ask_gate()
        text = await watch.metrics()
        assert 'tidegate_drift_alarm_active{detector="embedding",model="chat",stream="all"} 1.0' in text

        assert await asyncio.to_thread(watch.drift.acknowledge, "chat", None, "a new customer")
        await until(lambda: not watch.stream()["paging"])
        assert await watch.ask_gate() == ""
        assert all("acknowledged" in a for a in watch.stream()["alarms"])
    watch.close()
    files = written(tmp_path)
    assert any(name.endswith(".vectors") for name in files)
    assert [name for name, content in files.items() if CANARY_WORD.encode() in content] == []
