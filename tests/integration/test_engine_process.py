"""The supervisor of an engine, with real processes that die in every way."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from serving.engines import simulated
from serving.engines.base import EngineCommand, EngineProcess, bind_listener
from serving.errors import EngineStartFailed
from serving.specs import EngineKind, RevisionSpec

pytestmark = pytest.mark.integration


def sim(uri: str, log_file: Path, port: int = 0) -> EngineProcess:
    spec = RevisionSpec(
        model="chat", version="1.0.0", manifest_sha256="0" * 64, engine=EngineKind.SIMULATED, source=uri
    )
    return EngineProcess(
        "simulated engine of chat@1.0.0",
        lambda at: simulated.command(spec, at),
        host="127.0.0.1",
        port=port,
        log_file=log_file,
    )


def script(code: str, log_file: Path) -> EngineProcess:
    command = EngineCommand((sys.executable, "-c", textwrap.dedent(code)))
    return EngineProcess("engine", lambda _: command, host="127.0.0.1", log_file=log_file)


async def gone(pid: int, timeout_s: float = 5) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        await asyncio.sleep(0.05)
    return False


async def test_life_of_an_engine(tmp_path: Path) -> None:
    engine = sim("sim:?load_s=0.3", tmp_path / "log")
    assert not engine.alive()
    assert not await engine.healthy()
    await engine.start()
    assert engine.alive()
    assert await engine.wait_ready(20) > 0.2
    assert await engine.healthy()
    await engine.stop(5)
    await engine.stop(5)
    assert engine.exit_code == 0
    assert not await engine.healthy()


async def test_a_port_is_refused_until_the_engine_listens(tmp_path: Path) -> None:
    engine = sim("sim:?load_s=30", tmp_path / "log")
    await engine.start()
    port = int(engine.url.rpartition(":")[2])
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)
    with pytest.raises(EngineStartFailed, match=f"can't bind 127.0.0.1:{port}"):
        await sim("sim:", tmp_path / "log", port=port).start()
    await engine.stop(0)


async def test_failure_to_load_is_one_clear_line(tmp_path: Path) -> None:
    engine = sim("sim:?fail_load=1", tmp_path / "log")
    await engine.start()
    with pytest.raises(EngineStartFailed) as caught:
        await engine.wait_ready(20)
    line = str(caught.value)
    assert line.startswith("simulated engine of chat@1.0.0 exited with code 1: ValueError: simulated failure to load")
    assert line.endswith("[permanent]")
    assert "\n" not in line


async def test_too_slow(tmp_path: Path) -> None:
    engine = sim("sim:?load_s=60", tmp_path / "log")
    await engine.start()
    heard: list[float] = []
    with pytest.raises(EngineStartFailed, match=r"not ready within 1\.5 s"):
        await engine.wait_ready(1.5, progress=heard.append)
    assert heard
    assert await gone(engine.pid)


async def test_a_command_that_does_not_exist(tmp_path: Path) -> None:
    engine = EngineProcess("x", lambda _: EngineCommand(("/nonexistent",)), host="127.0.0.1", log_file=tmp_path / "log")
    with pytest.raises(EngineStartFailed, match="can't run /nonexistent"):
        await engine.start()


async def test_an_end_by_itself_is_told_and_a_stop_is_not(tmp_path: Path) -> None:
    first, second = sim("sim:", tmp_path / "1"), sim("sim:", tmp_path / "2")
    for engine in (first, second):
        await engine.start()
        await engine.wait_ready(20)
    told = [asyncio.create_task(engine.ended_by_itself()) for engine in (first, second)]
    os.kill(first.pid, signal.SIGKILL)
    assert "was ended by signal 9" in await asyncio.wait_for(told[0], 5)
    await second.stop(5)
    await asyncio.sleep(0.3)
    assert not told[1].done()
    told[1].cancel()


async def test_stop_kills_what_ignores_sigterm_and_its_children(tmp_path: Path) -> None:
    engine = script(
        """
        import signal, subprocess, sys, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
        print("child", child.pid, flush=True)
        time.sleep(100)
        """,
        tmp_path / "log",
    )
    await engine.start()
    while not engine.log_tail():  # noqa: ASYNC110 - a file
        await asyncio.sleep(0.05)
    child = int(engine.log_tail()[0].split()[1])
    await engine.stop(0.3)
    assert engine.exit_code == -signal.SIGKILL
    assert await gone(child)


async def test_kill_of_the_supervisor_leaves_no_orphan(tmp_path: Path) -> None:
    """The supervisor is killed with -9, also while the engine is hardly started."""
    code = """
        import asyncio, sys
        from pathlib import Path
        from tests.integration.test_engine_process import sim

        async def main():
            engine = sim("sim:", Path(sys.argv[1]))
            await engine.start()
            if sys.argv[2] == "ready":
                await engine.wait_ready(20)
            print(engine.pid, flush=True)
            await asyncio.sleep(100)

        asyncio.run(main())
    """
    for when in ("ready", "started"):
        supervisor = subprocess.Popen(  # noqa: ASYNC220 - it is killed with -9 below
            [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "log"), when],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert supervisor.stdout is not None
        pid = int(await asyncio.to_thread(supervisor.stdout.readline))
        supervisor.kill()
        supervisor.wait()
        supervisor.stdout.close()
        assert await gone(pid), when


def test_a_port_in_use_says_so() -> None:
    first = bind_listener("127.0.0.1")
    try:
        with pytest.raises(EngineStartFailed, match="choose another port"):
            bind_listener("127.0.0.1", first.port)
    finally:
        first.sock.close()
