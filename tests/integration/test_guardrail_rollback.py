"""The whole way of a guardrail signal: a real controller, a real gateway, simulated engines, the judge of the rollout.

A version that says what it should not is taken back by `guardrail/<check>`, though every answer of it is a good one to
HTTP; one that doesn't is let go on by the answers that were judged.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from registry.models import RegisterRequest
from rollout.status import Phase, Stage
from serving.engines.sim_spec import parse_sim_uri
from serving.engines.simulated import Connection, Engine
from serving.gateway.config import GatewayConfig
from serving.gateway.discovery import StaticEndpoints
from serving.gateway.main import Gateway
from tests.integration.control_rig import TOKEN, Rig, running, until

pytestmark = pytest.mark.integration

WITHIN_S = 60.0
"""By time and not by requests: a soak takes its seconds, however many requests the machine does in them."""
SHORT = "sim:?ttft_ms=0&itl_ms=0&tokens=24"
STRATEGY = {"canary": {"steps": [{"weight": 50, "duration": "1s"}], "soak": "1s"}}


def register(rig: Rig, version: str, source: str, policy: Path | None = None) -> None:
    store = rig.plane.versions._store
    store.register(RegisterRequest(model="chat", source=source, version=version, policy_file=policy))


def _write_credentials(home: Path) -> None:
    home.mkdir(parents=True, exist_ok=True)
    (home / "credentials").write_text(TOKEN)


@contextlib.asynccontextmanager
async def platform(home: Path, sources: dict[str, str]) -> AsyncIterator[tuple[Rig, Gateway]]:
    """A control plane whose gateway is a real one, with an engine for each version that a table names."""
    _write_credentials(home)
    async with running(gateways=0) as rig:
        source = StaticEndpoints()
        gateway = Gateway(
            GatewayConfig(home=home, port=0, admin_port=0, control_url=rig.url, drain_s=0.5), source
        )  # fmt: skip
        servers: dict[str, asyncio.Server] = {}

        async def follow() -> None:
            """Start what the controller's workload layer would have started."""
            while True:
                for _, revision, _ in gateway.state.revisions():
                    if revision.application not in servers:
                        engine = Engine(parse_sim_uri(sources[revision.version]), "chat")
                        engine.ready = True
                        made = await asyncio.get_running_loop().create_server(
                            lambda engine=engine: Connection(engine), "127.0.0.1", 0
                        )
                        servers[revision.application] = made
                        ports = {a: s.sockets[0].getsockname()[1] for a, s in servers.items()}
                        source.set({a: (f"http://127.0.0.1:{port}",) for a, port in ports.items()})
                await asyncio.sleep(0.02)

        await gateway.start()
        following = asyncio.create_task(follow())
        try:
            await until(lambda: rig.router.connections)
            yield rig, gateway
        finally:
            following.cancel()
            await gateway.stop()
            for server in servers.values():
                server.close()


async def ask_until(rig: Rig, gateway: Gateway, over: Any) -> int:
    """Ask until the rollout has come to that; how often was asked."""
    body = {"model": "chat", "messages": [{"role": "user", "content": "Tell me of the harbour."}]}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{gateway.port}", trust_env=False) as http:
        asked, end = 0, time.monotonic() + WITHIN_S
        while time.monotonic() < end:
            answers = await asyncio.gather(*(http.post("/v1/chat/completions", json=body) for _ in range(4)))
            assert {answer.status_code for answer in answers} == {200}
            if over(rig.controller.status("chat")):
                return asked + 4
            asked += 4
            await asyncio.sleep(0.01)
    raise AssertionError(f"nothing came of {asked} requests: {rig.controller.status('chat').reason}")


@pytest.mark.parametrize(
    ("signal", "fault"),
    [("toxicity", "toxic_rate=0.7"), ("pii", "pii_rate=0.7")],
)
async def test_a_version_that_turned_bad_is_taken_back_by_what_its_answers_say(
    tmp_path: Path, signal: str, fault: str
) -> None:
    sources = {"2.0.0": SHORT, "2.1.0": f"{SHORT}&{fault}&seed=2"}
    policy = tmp_path / "strict.yaml"  # the good version's own policy is the stricter one: that must not count
    policy.write_text("schema: 1\nname: strict\nchecks: [{name: pii, direction: output, action: block}]\n")
    async with platform(tmp_path / "home", sources) as (rig, gateway):
        register(rig, "2.0.0", sources["2.0.0"], policy)
        register(rig, "2.1.0", sources["2.1.0"])
        assert (await rig.deploy("2.0.0")).status_code == 202
        await until(lambda: rig.controller.status("chat").stable is not None)
        if signal == "toxicity":
            await gateway.guard_models.warm_up(frozenset({signal}))  # real versions take longer to load than models
        analysis = {"signals": [{"name": "error"}, {"name": f"guardrail/{signal}"}]}
        deployed = await rig.deploy("2.1.0", strategy=STRATEGY, analysis=analysis)
        assert deployed.status_code == 202, deployed.text
        await until(lambda: rig.controller.status("chat").rollout.weight == 50)
        asked = await ask_until(rig, gateway, lambda s: s.rollout.stage in (Stage.WITHDRAWING, Stage.WITHDRAWN))
        status = rig.controller.status("chat")
        assert (status.phase, status.stable.version) == (Phase.DEGRADED, "2.0.0")
        assert f"guardrail/{signal}" in status.reason
        assert asked <= 200, "some forty requests suffice"


async def test_a_version_that_behaves_is_promoted_on_the_answers_that_were_judged(tmp_path: Path) -> None:
    sources = {"2.0.0": SHORT, "2.1.0": f"{SHORT}&seed=2"}
    async with platform(tmp_path / "home", sources) as (rig, gateway):
        for version, source in sources.items():
            register(rig, version, source)
        assert (await rig.deploy("2.0.0")).status_code == 202
        await until(lambda: rig.controller.status("chat").stable is not None)
        analysis = {"signals": [{"name": "error"}, {"name": "guardrail/pii", "maxRate": 0.1}]}
        assert (await rig.deploy("2.1.0", strategy=STRATEGY, analysis=analysis)).status_code == 202
        await until(lambda: rig.controller.status("chat").rollout.weight == 50)
        await ask_until(rig, gateway, lambda s: s.rollout.stage is Stage.PROMOTED)
        assert rig.controller.status("chat").stable.version == "2.1.0"


async def test_a_signal_of_a_check_that_the_judge_does_not_have_is_refused(tmp_path: Path) -> None:
    async with running(gateways=0) as rig:
        refused = await rig.deploy("1.0.1", analysis={"signals": [{"name": "guardrail/vibes"}]})
        assert refused.status_code == 400, refused.text
        assert "guardrail/vibes" in refused.text
        assert "toxicity" in refused.text
