"""`tidegate up`, `status`, `down` as processes, over stand-ins for Ray, the control plane and the gateway."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.ports import free_ports
from tidegate.launcher import clear_leftovers
from tidegate.settings import Settings

pytestmark = pytest.mark.integration

# Read by Python itself at the start of the command line and of the supervisor; parts run without it (-S).
SITECUSTOMIZE = f"""
import dataclasses, sys
import tidegate.parts, tidegate.startup
real = tidegate.parts.platform_parts
def stand_ins(s):
    script = {str(Path(__file__).with_name("stand_in_parts.py"))!r}
    args = [(str(s.ray_file),), (str(s.control_port),), (str(s.gateway_port), str(s.admin_port))]
    return tuple(
        dataclasses.replace(p, argv=(sys.executable, "-S", script, p.name, *a)) for p, a in zip(real(s), args)
    )
tidegate.parts.platform_parts = stand_ins
tidegate.startup.SEED_ARGV = (sys.executable, "-S", "-c", "print('converting'); print('registered')")
"""


class Shell:
    def __init__(self, folder: Path) -> None:
        (folder / "site").mkdir()
        (folder / "site" / "sitecustomize.py").write_text(SITECUSTOMIZE)
        self.home = folder / "home"
        self.ports = free_ports(4)
        names = ("GATEWAY", "ADMIN", "CONTROL", "SERVE")
        ports = {f"TIDEGATE_{n}_PORT": str(p) for n, p in zip(names, self.ports, strict=True)}
        sites = os.pathsep.join(filter(None, (str(folder / "site"), os.environ.get("PYTHONPATH"))))
        self.env = {**os.environ, **ports, "TIDEGATE_HOME": str(self.home), "PYTHONPATH": sites}

    def start(self, *argv: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "tidegate.cli.main", *argv],
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A shell that runs the tests in the background hands down an ignored SIGINT, which Python would keep.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def __call__(self, *argv: str) -> tuple[int, str, str]:
        process = self.start(*argv)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def status(self) -> dict:
        return json.loads(self("status", "--json")[1])

    def state(self) -> dict:
        return json.loads((self.home / "run" / "supervisor.json").read_text())

    def pids(self) -> list[int]:
        path = self.home / "run" / "supervisor.json"
        if not path.exists():
            return []
        state = json.loads(path.read_text())
        return [state["pid"], *(p["pid"] for p in state["parts"] if p["pid"])]

    def wait_until_up(self) -> list[int]:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            path = self.home / "run" / "supervisor.json"
            if path.exists() and json.loads(path.read_text())["stage"] == "running":
                return self.pids()
            time.sleep(0.05)
        raise AssertionError("not up")


def all_gone(pids: list[int], timeout_s: float = 30.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if not any(psutil.pid_exists(p) and psutil.Process(p).status() != psutil.STATUS_ZOMBIE for p in pids):
            return True
        time.sleep(0.05)
    return False


@pytest.fixture
def tidegate(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path)
    yield shell
    for pid in shell.pids()[:1]:
        if psutil.pid_exists(pid):
            os.kill(pid, signal.SIGKILL)
    clear_leftovers(Settings(home=shell.home))


def test_up_status_kill_up_again_down(tidegate: Shell) -> None:
    code, out, err = tidegate("up", "--detach")
    assert code == 0, err
    assert f"http://127.0.0.1:{tidegate.ports[0]}/v1" in out
    assert "registry: registered" in err or "registry: ready" in err
    assert "model chat@1.0.0: ready after" in err

    found = tidegate.status()
    assert found["running"] is True
    assert [p["state"] for p in found["processes"]] == ["ready"] * 3
    assert found["models"][0]["stable"] == "1.0.0"
    assert oct((tidegate.home / "credentials").stat().st_mode)[-3:] == "600"

    os.kill(next(p["pid"] for p in found["processes"] if p["name"] == "gateway"), signal.SIGKILL)
    deadline = time.monotonic() + 30
    while (gateway := tidegate.state()["parts"][2])["restarts"] == 0 or gateway["state"] != "ready":
        assert time.monotonic() < deadline
        time.sleep(0.05)

    code, out, err = tidegate("up", "--detach")
    assert code == 0
    assert "runs already" in err
    code, _, err = tidegate("up", "--gateway-port", "19999")
    assert code == 1
    assert "tidegate down" in err

    pids = tidegate.pids()
    code, out, err = tidegate("down")
    assert (code, "stopped in" in out) == (0, True)
    assert all_gone(pids, 0.5)
    assert tidegate("down")[1] == "nothing was running\n"


def test_a_version_that_fails_to_load_is_exit_code_1_with_its_reason(tidegate: Shell) -> None:
    code, _, err = tidegate("up", "--detach", "--model", "bad@6.6.6")
    assert code == 1
    assert err.splitlines()[-1] == "tidegate: bad can't be served: it can't be served: out of luck"
    assert len(tidegate.pids()) == 4


def test_ctrl_c_in_the_foreground_stops_everything(tidegate: Shell) -> None:
    process = tidegate.start("up", "--bare")
    pids = tidegate.wait_until_up()
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode in (0, 130)
    assert all_gone(pids, 0.5)


def test_a_killed_foreground_takes_the_platform_with_it(tidegate: Shell) -> None:
    process = tidegate.start("up", "--bare")
    pids = tidegate.wait_until_up()
    process.kill()
    process.communicate()
    assert all_gone(pids)


def test_ctrl_c_with_detach_leaves_it_running(tidegate: Shell) -> None:
    process = tidegate.start("up", "--detach", "--model", "bad@1.0.0")  # deployed, but the gateway never answers
    deadline = time.monotonic() + 30
    while len(tidegate.pids()) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "it goes on starting" in err
    assert not all_gone(tidegate.pids(), 0.3)
