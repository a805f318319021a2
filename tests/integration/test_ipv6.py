"""A cluster of IPv6 alone, and one of both families: engine, its pod's hooks, gateway and models' service."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import httpx
import pytest

from serving.engines import pod, simulated
from serving.engines.base import EngineProcess
from serving.gateway.listening import bind
from serving.guard_service.main import Models, serve
from serving.keys import write_key
from serving.specs import EngineKind, RevisionSpec
from tests.integration.gateway_fakes import rig, table
from tests.integration.test_gateway_protection import SECRET, A, StoreController, keyed, record
from tests.ports import free_ports
from tidegate import doctor


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


pytestmark = [pytest.mark.integration, pytest.mark.skipif(not has_ipv6(), reason="this machine has no ::1")]
REVISION = RevisionSpec(
    model="chat", version="1.0.0", manifest_sha256="0" * 64, engine=EngineKind.SIMULATED, source="sim:?ttft_ms=1"
)
BOTH = ("127.0.0.1", "[::1]")


async def test_a_request_comes_in_by_either_family_and_goes_to_an_engine_of_ipv6(tmp_path: Path) -> None:
    engine = EngineProcess(
        "sim", lambda at: simulated.command(REVISION, at), host="::1", log_file=tmp_path / "engine.log"
    )
    key = {"authorization": f"Bearer {write_key(A, SECRET)}"}
    await engine.start()
    try:
        await engine.wait_ready(20)
        assert engine.url.startswith("http://[::1]:")
        pod.announce(tmp_path, engine.url, engine.boot)
        assert await asyncio.to_thread(pod.ready, tmp_path), "the probe of its pod"
        async with (
            rig(
                tmp_path / "home", first=table(1, 0), host="::", admin_host="::", auth="keys",
                controller=StoreController(record(A)),
            ) as r,
            httpx.AsyncClient(trust_env=False, timeout=10, headers=key) as client,
        ):  # fmt: skip
            await keyed(r)
            r.source.set({"stable-app": [engine.url]})
            for host in BOTH:
                assert (await client.get(f"http://{host}:{r.gateway.admin_port}/metrics")).status_code == 200
                body = {"model": "chat", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
                answer = await client.post(f"http://{host}:{r.gateway.port}/v1/chat/completions", json=body)
                assert answer.status_code == 200, answer.text
                assert r.stable.requests == [], "the engine of IPv6 has answered"
    finally:
        await engine.stop(0)


async def test_the_models_service_takes_both_families() -> None:
    (port,) = free_ports(1)

    class Nothing(Models):
        async def warm_up(self) -> None:
            await asyncio.sleep(0)

    serving = asyncio.create_task(serve("::", port, Nothing()))
    try:
        async with httpx.AsyncClient(trust_env=False, timeout=5) as client:
            for host in BOTH:
                for _ in range(100):
                    try:
                        answer = await client.get(f"http://{host}:{port}/healthz")
                        break
                    except httpx.ConnectError:
                        await asyncio.sleep(0.02)
                assert answer.status_code == 200
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


def test_a_socket_on_everything_takes_both_families() -> None:
    with bind("::", 0, "--port") as listener:
        listener.listen()
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, listener.getsockname()[1]), timeout=5).close()


def test_the_doctor_looks_at_ports_of_ipv6() -> None:
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind(("::1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert not doctor._can_bind("::1", port)
    assert doctor._can_bind("::1", port)
