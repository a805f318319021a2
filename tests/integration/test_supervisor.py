"""The supervisor over stand-in processes: it brings back what dies and leaves nothing behind."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tidegate import launcher, processes
from tidegate.errors import AlreadyRunning, StartFailed
from tidegate.processes import Identity
from tidegate.runfile import PartStatus, PlatformState, Stage, State, read_state, write_state
from tidegate.settings import Settings
from tidegate.startup import Wish

pytestmark = pytest.mark.integration

STAND_IN = Path(__file__).with_name("stand_in_platform.py")


def eventually(what: Callable[[], object], timeout_s: float = 30.0) -> object:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = what()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"not within {timeout_s} s")


class Platform:
    """One stand-in platform in one home."""

    def __init__(self, home: Path) -> None:
        self.settings = Settings(home=home)
        self.folder = home / "stand-in"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, scenario: str) -> subprocess.Popen[bytes]:
        env = {**os.environ, "TIDEGATE_HOME": str(self.settings.home), "STAND_IN_FOLDER": str(self.folder)}
        self.process = subprocess.Popen([sys.executable, str(STAND_IN), scenario], env=env, start_new_session=True)
        return self.process

    def state(self) -> PlatformState | None:
        state = read_state(self.settings)
        return state if state and self.process and state.pid == self.process.pid else None

    def part(self, name: str) -> PartStatus:
        state = self.state()
        assert state is not None
        return next(p for p in state.parts if p.name == name)

    def all_ready(self) -> bool:
        state = self.state()
        return bool(state and state.parts and all(p.state is State.READY for p in state.parts))

    def pids(self) -> list[int]:
        state = self.state()
        return [p.pid for p in state.parts if p.pid] if state else []

    def grandchildren(self) -> list[int]:
        path = self.folder / "grandchildren"
        return [int(line) for line in path.read_text().split()] if path.exists() else []


@pytest.fixture
def platform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Platform]:
    monkeypatch.setattr(launcher, "LEFTOVER_GRACE_S", 0.2)
    found = Platform(tmp_path / "home")
    yield found
    launcher.clear_leftovers(found.settings)
    if found.process is not None:
        found.process.kill()
        found.process.wait()


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_part_killed_comes_back_at_once_and_is_counted(platform: Platform, capfd: pytest.CaptureFixture[str]) -> None:
    platform.start("plain")
    eventually(platform.all_ready)
    before = platform.part("gateway")
    os.kill(before.pid or 0, signal.SIGKILL)
    eventually(lambda: platform.part("gateway").restarts == 1 and platform.all_ready())
    assert "gateway was killed by SIGKILL" in (said := capfd.readouterr().out)
    assert "starting again in 0.0 s" in said
    after = platform.part("gateway")
    assert after.pid != before.pid
    assert platform.part("controller").restarts == 0


def test_a_part_that_keeps_dying_is_started_ever_more_slowly(
    platform: Platform, capfd: pytest.CaptureFixture[str]
) -> None:
    platform.start("plain")
    eventually(platform.all_ready)
    times = []
    for n in range(1, 4):
        os.kill(platform.part("controller").pid or 0, signal.SIGKILL)
        killed_at = time.monotonic()
        eventually(lambda n=n: platform.part("controller").restarts == n and platform.all_ready())
        times.append(time.monotonic() - killed_at)
    assert times[1] >= 0.5
    assert times[2] >= 1.0
    pauses = re.findall(r"starting again in (\S+) s", capfd.readouterr().out)
    assert pauses == ["0.0", "0.5", "1.0"]


def test_sigterm_stops_the_gateway_first_and_leaves_nothing(platform: Platform) -> None:
    process = platform.start("plain")
    eventually(platform.all_ready)
    pids = platform.pids()
    process.terminate()
    assert process.wait(30) == 0
    assert all(gone(pid) for pid in pids)
    assert (platform.folder / "stopped").read_text().split() == ["gateway", "controller", "ray"]
    state = read_state(platform.settings)
    assert state is not None
    assert state.stage is Stage.STOPPED


def test_a_grandchild_in_its_own_session_does_not_outlive_the_platform(platform: Platform) -> None:
    process = platform.start("grandchild")
    eventually(platform.all_ready)
    process.terminate()
    process.wait(30)
    assert platform.grandchildren()
    assert all(gone(pid) for pid in platform.grandchildren())


def test_what_a_killed_part_left_is_ended_before_it_starts_again(platform: Platform) -> None:
    platform.start("grandchild")
    eventually(platform.all_ready)
    (old,) = platform.grandchildren()
    os.kill(platform.part("ray").pid or 0, signal.SIGKILL)
    eventually(lambda: platform.part("ray").restarts == 1 and platform.all_ready())
    assert gone(old)
    assert len(platform.grandchildren()) == 2


def test_a_part_deaf_to_sigterm_is_killed_after_its_grace(platform: Platform) -> None:
    process = platform.start("deaf")
    eventually(platform.all_ready)
    (pid,) = platform.pids()
    process.terminate()
    process.wait(30)
    assert gone(pid)


def test_a_part_that_never_comes_up_ends_the_start_with_its_last_words(platform: Platform) -> None:
    process = platform.start("broken")
    assert process.wait(30) == 1
    reason = launcher.ended_badly(platform.settings, process.pid)
    assert "Ray ended 3 times" in reason
    assert "no GPU here, and no hope" in reason
    assert "\n" not in reason
    state = read_state(platform.settings)
    assert state is not None
    assert all(p.pid is None for p in state.parts)


def test_a_part_that_is_not_vital_is_tried_again_and_stops_nothing(platform: Platform) -> None:
    process = platform.start("drift-broken")
    eventually(lambda: platform.state() is not None and platform.part("drift").restarts > 3)
    assert platform.part("gateway").state is State.READY
    assert platform.part("gateway").restarts == 0
    assert process.poll() is None


def test_children_die_with_a_killed_supervisor_and_the_rest_is_cleared(platform: Platform) -> None:
    process = platform.start("grandchild")
    eventually(platform.all_ready)
    pids = platform.pids()
    process.kill()
    process.wait()
    eventually(lambda: all(gone(pid) for pid in pids))
    (orphan,) = platform.grandchildren()
    assert not gone(orphan)
    launcher.clear_leftovers(platform.settings)
    assert gone(orphan)
    platform.start("plain")
    eventually(platform.all_ready)


def test_a_second_supervisor_is_refused(platform: Platform) -> None:
    platform.start("plain")
    eventually(platform.all_ready)
    assert launcher.is_locked(platform.settings)
    second = Platform(platform.settings.home)
    assert second.start("plain").wait(30) == 3
    assert platform.all_ready()


def test_up_beside_a_running_one_is_idempotent_and_refuses_other_ports(platform: Platform) -> None:
    platform.start("plain")
    eventually(platform.all_ready)
    assert launcher.launch(platform.settings, Wish(), detach=True) is None
    other = platform.settings.model_copy(update={"gateway_port": 18123})
    with pytest.raises(AlreadyRunning, match=r"gateway port 8000.*tidegate down"):
        launcher.launch(other, Wish(), detach=True)


def test_down_stops_it_and_tells_whether_anything_ran(platform: Platform) -> None:
    platform.start("plain")
    eventually(platform.all_ready)
    pids = platform.pids()
    seen: list[Stage] = []
    assert launcher.stop(platform.settings, lambda state: seen.append(state.stage))
    assert all(gone(pid) for pid in pids)
    assert not launcher.stop(platform.settings, lambda _: None)
    assert Stage.STOPPED in seen or Stage.STOPPING in seen


def test_a_port_in_use_names_its_holder_and_the_flag(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        settings = Settings(home=tmp_path / "home", gateway_port=port)
        with pytest.raises(StartFailed) as caught:
            launcher.launch(settings, Wish(bare=True), detach=True)
    message = str(caught.value)
    assert str(port) in message
    assert str(os.getpid()) in message
    assert "--gateway-port" in message
    assert not launcher.is_locked(settings)


def test_a_pid_that_was_used_again_is_left_alone(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    bystander = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
    try:
        stale = PartStatus(name="gateway", title="gateway", pid=bystander.pid, pid_started_at=time.time() - 5000)
        write_state(
            settings,
            PlatformState(
                instance="0" * 32,
                pid=bystander.pid,
                pid_started_at=time.time() - 5000,
                started_at=0.0,
                host="127.0.0.1",
                gateway_port=8000,
                admin_port=8001,
                control_port=8080,
                serve_port=8100,
                parts=[stale],
            ),
        )
        assert launcher.running_state(settings) is None
        assert launcher.clear_leftovers(settings) == 0
        assert not launcher.stop(settings, lambda _: None)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_an_identity_is_a_pid_and_a_start_time() -> None:
    own = Identity.of(os.getpid())
    assert own.alive
    assert not Identity(own.pid, own.started_at + 5).alive


def test_a_process_that_is_started_carries_no_foreign_descriptors(tmp_path: Path) -> None:
    log = tmp_path / "child.log"
    with socket.socket():
        child = processes.start(
            [sys.executable, "-S", "-c", "import os; print(sorted(os.listdir('/proc/self/fd')))"],
            log=log,
            env=dict(os.environ),
        )
        child.wait()
    assert log.read_text().strip() == "['0', '1', '2', '3']"  # 3 is the listing itself
