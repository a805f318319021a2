"""The command line against a control plane made of canned answers: exit codes, output, error lines, questions."""

import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tidegate import client as client_module
from tidegate.cli.main import main, run
from tidegate.client import ControlClient
from tidegate.settings import Settings

STATUS: dict[str, Any] = {
    "model": "chat",
    "phase": "Progressing",
    "strategy": "canary",
    "stable": "1.0.0",
    "canary": "1.0.1",
    "weight": 5,
    "observed_weight": 5,
    "step": 1,
    "steps": [{"weight": 5, "duration_s": 30}, {"weight": 25, "duration_s": 30}],
    "stage": "stepping",
    "reason": "deploy chat@1.0.1 by alice",
    "waiting_for": "step 1: 4 of at least 30 s",
    "streams_in_flight": {"1.0.0": 7, "1.0.1": 1},
    "signals": [
        {
            "name": "error",
            "canary": {"events": 7, "n": 142},
            "stable": {"events": 30, "n": 2700},
            "log_e": 3.6109,
            "threshold": 4.6052,
            "verdict": "Running",
            "forward_log_e": 0.5,
            "forward_threshold": 2.9957,
            "requests_to_decision": 45,
        }
    ],
    "exposure": {"canary_requests": 142, "lower_bound": 120},
    "started_at": 1700000000.0,
    "updated_at": 1700000010.0,
    "actor": "alice",
    "rollout": "r1",
    "a_field_of_the_future": {"x": 1},
}
HEALTHY = {
    **STATUS,
    "phase": "Healthy",
    "stable": "1.0.1",
    "canary": None,
    "weight": 0,
    "reason": "promoted chat@1.0.1",
}
DONE = {**STATUS, "canary": None, "weight": 0}
DEGRADED = {**DONE, "phase": "Degraded", "reason": "error: canary 7 of 142"}
DECISION = {"cause": "command", "reason": "done by alice", "actions": [{"type": "withdraw"}]}


class Plane:
    """Canned answers by method and path; remembers what was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, dict[str, str], Any]] = []
        self.headers: dict[str, str] = {}
        self.answers: dict[tuple[str, str], Any] = {}
        self.events: list[list[dict[str, Any]]] = []
        self.away = False

    def on(self, method: str, path: str, *answers: Any, status: int = 200) -> None:
        self.answers[(method, path)] = [(status, a) for a in answers]

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if self.away:
            raise httpx.ConnectError("refused", request=request)
        body = json.loads(request.content) if request.content else None
        self.asked.append((request.method, request.url.path, dict(request.url.params), body))
        self.headers = dict(request.headers)
        if request.url.path == "/api/v1/events":  # each stream tells one batch and ends
            batch = self.events.pop(0) if self.events else []
            text = ": alive\n\n" + "".join(f"data: {json.dumps(e)}\n\n" for e in batch)
            return httpx.Response(200, text=text, headers={"content-type": "text/event-stream"})
        queue = self.answers.get((request.method, request.url.path))
        if queue is None:
            error = {"code": "unknown_rollout", "message": "model 'x' was never deployed"}
            return httpx.Response(404, json={"error": error})
        status, answer = queue.pop(0) if len(queue) > 1 else queue[0]
        return httpx.Response(status, json=answer)


@pytest.fixture
def plane(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Plane:
    found = Plane()
    monkeypatch.setenv("TIDEGATE_HOME", str(tmp_path))
    monkeypatch.setattr("tidegate.cli.watch.RETRY_S", 0.0)

    def connect(settings: Settings) -> ControlClient:
        return ControlClient(settings.control_url, "token", "alice", transport=httpx.MockTransport(found))

    monkeypatch.setattr(client_module, "connect", connect)
    return found


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Answer the next question on the terminal."""

    def give(text: str) -> None:
        monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
        monkeypatch.setattr("typer.confirm", lambda *_args, **_kwargs: text == "y")

    return give


def one_line(text: str) -> str:
    assert text.count("\n") == 1, text
    return text.strip()


# --------------------------------------------------------------------------------------------------------- shape


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["deploy"], "NAME@VERSION"),
        (["deploy", "chat"], "'chat' names no version"),
        (
            ["deploy", "chat@1.0.1", "--mirror", "10"],
            "--mirror means nothing to canary; it belongs to --strategy shadow",
        ),
        (["deploy", "chat@1.0.1", "--strategy", "ab", "--steps", "5,25"], "--steps means nothing to ab"),
        (["deploy", "chat@1.0.1", "--strategy", "ab", "--weight", "100"], "99"),
        (["deploy", "chat@1.0.1", "--tester", "x-team"], "write it as NAME=VALUE"),
        (["deploy", "chat@1.0.1", "--strategy", "blue-green", "--smoke", "/nowhere.yaml"], "no such file"),
        (["key", "create", "app", "--scope", "everything"], "--scope 'everything' is unknown"),
        (["key", "create", "app", "--role", "root"], "--role 'root' is unknown"),
        (["key", "create", "app", "--expires", "soon"], "no duration"),
        (["key", "create", "app", "--expires", "0d"], "no duration above 0"),
        (["key", "create", "app", "--rpm", "0"], "--rpm"),
        (["usage", "--since", "yesterday"], "no duration"),
        (["usage", "--by", "mood"], "mood"),
        (["schema", "-o", "wide"], "json or yaml"),
        (["deploy", "chat@1.0.1", "--strategy", "yolo"], "unknown"),
        (["deploy", "chat@1.0.1", "--steps", "a,b"], "5,25,50,100"),
        (["deploy", "chat@1.0.1", "--steps", "50,25"], "must rise"),
        (["deploy", "chat@1.0.1", "--step-duration", "soon"], "not a duration"),
        (["deploy", "-f", "/nowhere.yaml"], "no such file"),
        (["rollout", "list", "--json", "-o", "yaml"], "contradict"),
        (["rollout", "get", "chat", "--watch", "--json"], "--watch"),
        (["rollout", "get"], "NAME"),
        (["rollout", "fly"], "fly"),
        (["up", "--bare", "--model", "chat@1.0.0"], "--bare"),
        (["up", "--gateway-port", "99999"], "99999"),
        (["model", "register", "chat", "--source", "sim:", "--version", "1.0.0", "--bump", "auto"], "give one of them"),
        (["model", "register", "chat", "--source", "sim:", "--metric", "f1=good"], "not a number"),
        (["model", "register", "Chat!", "--source", "sim:"], "lower-case"),
        (["logs", "nobody"], "no log of 'nobody'"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else None,
)
def test_wrong_use_is_one_line_and_exit_code_2(
    argv: list[str], said: str, plane: Plane, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(argv) == 2
    assert said in one_line(capsys.readouterr().err)
    assert plane.asked == []


def test_an_unknown_field_in_a_spec_names_the_fields_there_are(
    plane: Plane, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r.yaml").write_text("model: chat\nversion: 1.0.1\nstrategy: {canary: {stepz: []}}\n")
    assert run(["deploy", "-f", str(tmp_path / "r.yaml")]) == 2
    assert "strategy.canary.stepz: unknown field" in one_line(capsys.readouterr().err)


def test_a_setting_that_cannot_be_used_is_named(
    plane: Plane, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TIDEGATE_CONTROL_PORT", "eighty")
    assert run(["rollout", "list"]) == 2
    assert "control_port" in one_line(capsys.readouterr().err)


def test_a_control_plane_that_is_away_is_one_line(plane: Plane, capsys: pytest.CaptureFixture[str]) -> None:
    plane.away = True
    assert run(["rollout", "list"]) == 1
    line = one_line(capsys.readouterr().err)
    assert "http://127.0.0.1:8080 does not answer" in line
    assert "tidegate up" in line
    assert "tidegate logs controller" in line


def test_an_error_of_the_control_plane_is_passed_on(plane: Plane, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["rollout", "get", "x"]) == 1
    assert "model 'x' was never deployed" in one_line(capsys.readouterr().err)


def test_what_is_not_a_control_plane_is_said_so(plane: Plane, capsys: pytest.CaptureFixture[str]) -> None:
    plane.on("GET", "/api/v1/rollouts/chat", {"phase": 3})
    assert run(["rollout", "get", "chat"]) == 1
    assert "is not of this version" in one_line(capsys.readouterr().err)


# ------------------------------------------------------------------------------------------------------- rollout


def test_get_shows_the_evidence(plane: Plane, capsys: pytest.CaptureFixture[str]) -> None:
    plane.on("GET", "/api/v1/rollouts/chat", STATUS)
    assert run(["rollout", "get", "chat"]) == 0
    text = capsys.readouterr().out
    assert "error  canary 4.9 % against stable 1.1 %, e = 37 of 100, n = 142" in text
    assert "about 45 more requests" in text
    assert "1.0.1 at 5 %, step 1 of 2" in text
    assert "142 canary requests; at least 120 were needed" in text
    assert "1.0.0: 7, 1.0.1: 1" in text


@pytest.mark.parametrize("flags", [["--json"], ["-o", "json"]])
def test_json_is_the_status_document(flags: list[str], plane: Plane, capsys: pytest.CaptureFixture[str]) -> None:
    plane.on("GET", "/api/v1/rollouts/chat", STATUS)
    assert run(["rollout", "get", "chat", *flags]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["signals"][0]["canary"] == {"events": 7, "n": 142}
    assert found["weight"] == 5


def test_list_in_every_format(plane: Plane, capsys: pytest.CaptureFixture[str]) -> None:
    plane.on("GET", "/api/v1/rollouts", {"rollouts": [STATUS]})
    outputs = {}
    for name in ("table", "wide", "json", "yaml", "name"):
        assert run(["rollout", "list", "-o", name]) == 0
        outputs[name] = capsys.readouterr().out
    assert outputs["name"] == "chat\n"
    assert "MODEL" in outputs["table"]
    assert "REQUESTS" in outputs["wide"]
    assert outputs["yaml"].startswith("- model: chat")
    assert json.loads(outputs["json"])[0]["model"] == "chat"


@pytest.mark.parametrize(("last", "code"), [(HEALTHY, 0), (DEGRADED, 1)])
def test_status_waits_and_its_exit_code_tells(
    last: dict[str, Any], code: int, plane: Plane, capsys: pytest.CaptureFixture[str]
) -> None:
    plane.on("GET", "/api/v1/rollouts/chat", STATUS, STATUS, last)
    assert run(["rollout", "status", "chat"]) == code
    assert last["reason"] in capsys.readouterr().out
    assert len([a for a in plane.asked if a[1] == "/api/v1/rollouts/chat"]) >= 3


@pytest.mark.parametrize(("last", "code"), [(HEALTHY, 0), (DEGRADED, 1)])
def test_status_hears_the_end_from_the_stream_of_events(
    last: dict[str, Any], code: int, plane: Plane, capsys: pytest.CaptureFixture[str]
) -> None:
    plane.on("GET", "/api/v1/rollouts/chat", STATUS)
    plane.events = [[STATUS, {**STATUS, "weight": 25, "observed_weight": 25, "step": 2}, last]]
    assert run(["rollout", "status", "chat"]) == code
    told = capsys.readouterr()
    assert last["reason"] in told.out
    assert [line.split(",")[1] for line in told.err.splitlines()[:2]] == [" 1.0.1 at 5 %", " 1.0.1 at 25 %"]
    heard = [a[2] for a in plane.asked if a[1] == "/api/v1/events"]
    assert heard
    assert all(asked == {"model": "chat"} for asked in heard)  # more than once where a busy machine made it dial again


def test_get_tells_weights_step_time_endpoints_and_what_is_left_behind(
    plane: Plane, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tidegate.cli.watch.time.time", lambda: 1700000020.0)
    more = {
        "observed_weight": None,
        "gateways": 2,
        "endpoints": {"1.0.0": 2, "1.0.1": 1},
        "step_started_at": 1700000010.0,
        "previous": "0.9.0",
        "warm_until": 1700000320.0,
        "retiring": [{"version": "0.8.0", "since": 1700000000.0, "deadline_at": 1700000620.0, "in_flight": 3}],
        "quarantine": {"ab" * 32: "error: canary 9 of 50"},
        "quarantined_versions": {"ab" * 32: "1.0.7"},
    }
    plane.on("GET", "/api/v1/rollouts/chat", {**STATUS, **more})
    assert run(["rollout", "get", "chat"]) == 0
    text = capsys.readouterr().out
    for part in (
        "not yet at every gateway",
        "at least 20s left",
        "weight: 5 % desired, unknown observed at 2 gateways",
        "endpoints: 1.0.0: 2, 1.0.1: 1",
        "0.9.0 is kept warm for 5m",
        "draining 0.8.0 for 20s: 3 streams, deadline in 10m",
        "condemned 1.0.7: error: canary 9 of 50",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("argv", "strategy"),
    [
        (["--strategy", "shadow", "--mirror", "20"], {"shadow": {"mirrorPercent": 20}}),
        (["--strategy", "ab", "--weight", "30", "--sessions", "500"], {"ab": {"weight": 30, "sessions": 500}}),
        (
            ["--strategy", "blue-green", "--tester", "x-team=qa"],
            {"blueGreen": {"testers": [{"header": "x-team", "value": "qa"}]}},
        ),
        (
            ["--steps", "5,100", "--tester", "x-team=qa"],
            {"canary": {"steps": [{"weight": 5}, {"weight": 100}], "testers": [{"header": "x-team", "value": "qa"}]}},
        ),
    ],
    ids=["shadow", "ab", "blue-green", "canary"],
)
def test_deploy_says_each_strategy_in_the_specs_words(
    argv: list[str], strategy: dict[str, Any], plane: Plane, capsys: pytest.CaptureFixture[str]
) -> None:
    plane.on("GET", "/api/v1/rollouts/chat", {**HEALTHY, "stable": "1.0.0"})
    plane.on("POST", "/api/v1/rollouts", {"plan": DECISION}, {"decision": DECISION, "status": STATUS})
    assert run(["deploy", "chat@1.0.1", "-y", *argv]) == 0
    assert plane.asked[-1][3]["spec"]["strategy"] == strategy
    name = {"blueGreen": "blue-green"}.get(next(iter(strategy)), next(iter(strategy)))
    assert f"strategy     {name}" in capsys.readouterr().err


def test_a_smoke_suite_comes_from_a_file_of_its_own(plane: Plane, tmp_path: Path) -> None:
    (tmp_path / "smoke.yaml").write_text("- {name: sum, prompt: 'What is 2 + 2?', expect: {contains: '4'}}\n")
    plane.on("POST", "/api/v1/rollouts", {"plan": DECISION}, {"decision": DECISION, "status": STATUS})
    argv = ["deploy", "chat@1.0.1", "-y", "--strategy", "blue-green", "--smoke", str(tmp_path / "smoke.yaml")]
    assert run(argv) == 0
    cases = plane.asked[-1][3]["spec"]["strategy"]["blueGreen"]["smoke"]
    assert cases == [{"name": "sum", "prompt": "What is 2 + 2?", "expect": {"contains": "4"}}]


def test_schema_needs_no_platform(plane: Plane, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["schema"]) == 0
    assert {"model", "version", "strategy"} <= set(json.loads(capsys.readouterr().out)["properties"])
    assert plane.asked == []


def test_status_gives_up_after_its_time(plane: Plane, capsys: pytest.CaptureFixture[str]) -> None:
    plane.on("GET", "/api/v1/rollouts/chat", STATUS)
    assert run(["rollout", "status", "chat", "--timeout", "0"]) == 1
    assert "still Progressing" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("verb", ["pause", "resume", "abort", "retry", "undo", "ack"])
def test_verbs_carry_reason_and_actor(verb: str, plane: Plane, capsys: pytest.CaptureFixture[str]) -> None:
    plane.on("POST", f"/api/v1/rollouts/chat/{verb}", {"decision": DECISION, "status": STATUS}, status=202)
    assert run(["rollout", verb, "chat", "--reason", "because"]) == 0
    assert capsys.readouterr().out == "done by alice\n"
    assert plane.asked[0][3]["reason"] == "because"
    assert plane.headers["x-tidegate-actor"] == "alice"
    assert plane.headers["authorization"] == "Bearer token"


def test_promote_full_asks(plane: Plane, answer: Callable[[str], None]) -> None:
    answer("n")
    assert run(["rollout", "promote", "chat", "--full"]) == 1
    assert plane.asked == []
    plane.on("POST", "/api/v1/rollouts/chat/promote", {"decision": DECISION, "status": STATUS})
    assert run(["rollout", "promote", "chat", "--full", "-y"]) == 0
    assert plane.asked[0][3]["full"] is True


def test_replay_tells_by_exit_code_and_shows_what_differs_side_by_side(
    plane: Plane, capsys: pytest.CaptureFixture[str]
) -> None:
    same = {"id": 3, "same": True, "recorded": DECISION, "today": DECISION}
    today = {**DECISION, "actions": [{"type": "pause"}]}
    other = {"id": 4, "same": False, "recorded": DECISION, "today": today}
    plane.on("GET", "/api/v1/rollouts/chat/replay", {"decisions": [same]}, {"decisions": [same, other]})
    assert run(["rollout", "replay", "chat"]) == 0
    assert "1 of 1 decisions come out the same today" in capsys.readouterr().out
    assert run(["rollout", "replay", "chat"]) == 1
    told = capsys.readouterr()
    assert "1 of 2 decisions would be taken otherwise" in told.err
    rows = [line.split() for line in told.out.splitlines()]
    assert ["*", "action", "withdraw", "pause"] in rows
    assert ["4", "DIFFERS"] in rows


def test_history_says_who_and_from_where(plane: Plane, capsys: pytest.CaptureFixture[str]) -> None:
    entry = {
        "id": 7,
        "at": 1700000000.0,
        "kind": "command",
        "actor": "ops (abcdefghijkl)",
        "cause": "command",
        "reason": "paused",
        "payload": {"command": {"verb": "pause", "source": "203.0.113.7"}},
    }
    page = {"entries": [entry], "next_after": 7}
    plane.on("GET", "/api/v1/rollouts/chat/history", page, {"entries": [{**entry, "id": 8}], "next_after": None})
    assert run(["rollout", "history", "chat"]) == 0
    rows = capsys.readouterr().out.splitlines()[1:]
    assert [row.split()[0] for row in rows] == ["7", "8"]
    assert all("ops (abcdefghijkl)   203.0.113.7" in row for row in rows)
    assert [a[2]["after"] for a in plane.asked] == ["0", "7"]


# -------------------------------------------------------------------------------------------- deploy and rollback


def test_deploy_shows_the_plan_and_asks(
    plane: Plane, answer: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    plane.on("GET", "/api/v1/rollouts/chat", {**HEALTHY, "stable": "1.0.0"})
    plan = {**DECISION, "changes": ["prompt changed"]}
    plane.on("POST", "/api/v1/rollouts", {"plan": plan}, {"decision": DECISION, "status": STATUS})
    answer("n")
    assert run(["deploy", "chat@1.0.1", "--steps", "10,50,100", "--step-duration", "5s"]) == 1
    text = capsys.readouterr().err
    assert "stable now   1.0.0" in text
    assert "prompt changed" in text
    assert "10 % for 5s -> 50 % for 5s -> 100 %" in text
    assert "alpha        0.01" in text
    assert "stays warm for 30m" in text
    posts = [a for a in plane.asked if a[0] == "POST"]
    assert [p[2] for p in posts] == [{"dryRun": "true"}]
    answer("y")
    assert run(["deploy", "chat@1.0.1", "--steps", "10,50,100"]) == 0
    assert plane.asked[-1][3]["spec"]["strategy"]["canary"]["steps"] == [
        {"weight": 10},
        {"weight": 50},
        {"weight": 100},
    ]


def test_deploy_without_a_terminal_wants_yes(plane: Plane, capsys: pytest.CaptureFixture[str]) -> None:
    plane.on("POST", "/api/v1/rollouts", {"plan": DECISION})
    assert run(["deploy", "chat@1.0.1"]) == 2
    assert "add -y" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(("last", "code"), [(HEALTHY, 0), (DEGRADED, 1)])
def test_deploy_wait_ends_with_the_rollout(last: dict[str, Any], code: int, plane: Plane) -> None:
    plane.on("POST", "/api/v1/rollouts", {"plan": DECISION}, {"decision": DECISION, "status": STATUS})
    plane.on("GET", "/api/v1/rollouts/chat", STATUS, STATUS, last)
    assert run(["deploy", "chat@1.0.1", "-y", "--wait"]) == code


def test_deploy_wait_notices_that_another_took_its_place(plane: Plane, capsys: pytest.CaptureFixture[str]) -> None:
    plane.on("POST", "/api/v1/rollouts", {"plan": DECISION}, {"decision": DECISION, "status": STATUS})
    plane.on("GET", "/api/v1/rollouts/chat", STATUS, {**STATUS, "rollout": "r2"})
    assert run(["deploy", "chat@1.0.1", "-y", "--wait"]) == 1
    assert "another rollout" in capsys.readouterr().err


def test_deploy_json_is_one_document(plane: Plane, capsys: pytest.CaptureFixture[str]) -> None:
    plane.on("POST", "/api/v1/rollouts", {"decision": DECISION, "status": STATUS})
    assert run(["deploy", "chat@1.0.1", "-y", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["status"]["rollout"] == "r1"
    assert run(["deploy", "chat@1.0.1", "-y", "-o", "name"]) == 0
    assert capsys.readouterr().out == "chat\n"


def test_the_command_line_wins_over_the_file(plane: Plane, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        "apiVersion: tidegate.dev/v1alpha1\nkind: ModelDeployment\nspec:\n  model: chat\n  version: 1.0.0\n"
        "  analysis: {alpha: '0.02'}\n  strategy: {canary: {steps: [{weight: 3}], soak: 5m}}\n"
    )
    plane.on("POST", "/api/v1/rollouts", {"plan": DECISION}, {"decision": DECISION, "status": STATUS})
    argv = ["deploy", "chat@1.0.1", "-f", str(tmp_path / "r.yaml"), "-y", "--replicas", "2", "--step-duration", "9s"]
    assert run(argv) == 0
    spec = plane.asked[-1][3]["spec"]
    assert spec["version"] == "1.0.1"
    assert spec["engine"] == {"minReplicas": 2}
    assert spec["strategy"]["canary"] == {"steps": [{"weight": 3, "duration": "9s"}], "soak": "5m"}
    assert spec["analysis"] == {"alpha": "0.02"}


def test_rollback_shows_the_plan_asks_and_acts(
    plane: Plane, answer: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    plan = {"plan": {**DECISION, "reason": "would go to 1.0.0"}}
    plane.on("POST", "/api/v1/rollouts/chat/rollback", plan, {"decision": DECISION, "status": STATUS})
    answer("y")
    assert run(["rollback", "chat", "--to", "1.0.0", "--reason", "pager"]) == 0
    assert [a[3]["dry_run"] for a in plane.asked] == [True, False]
    assert plane.asked[1][3]["version"] == "1.0.0"
    assert "would go to 1.0.0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("confirmed", "said"),
    [
        ({"all": True, "gateways": 1, "weight": 0, "after_s": 0.0031}, "the gateway confirmed weight 0 after 3.1 ms"),
        ({"all": True, "gateways": 3, "weight": 0, "after_s": 0.05}, "all 3 gateways confirmed weight 0 after 50.0 ms"),
        ({"all": True, "gateways": 2, "weight": 20, "after_s": 0.004}, "confirmed weight 20 after 4.0 ms"),
        ({"all": False, "gateways": 2, "after_s": None}, "not every gateway has confirmed yet"),
        ({"all": False, "gateways": 0, "after_s": None}, "no gateway is connected"),
    ],
    ids=["one", "three", "stable can't take all of it", "not all", "none"],
)
def test_rollback_with_yes_is_one_call_and_tells_when_traffic_had_left(
    confirmed: dict[str, Any], said: str, plane: Plane, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = {"decision": DECISION, "status": STATUS, "confirmed": confirmed}
    plane.on("POST", "/api/v1/rollouts/chat/rollback", answer)
    assert run(["rollback", "chat", "-y"]) == 0
    assert len(plane.asked) == 1
    assert plane.asked[0][3]["wait_s"] > 0
    assert said in capsys.readouterr().out


def test_rollback_dry_run_does_nothing(plane: Plane, capsys: pytest.CaptureFixture[str]) -> None:
    plane.on("POST", "/api/v1/rollouts/chat/rollback", {"plan": DECISION})
    assert run(["rollback", "chat", "--dry-run"]) == 0
    assert plane.asked[0][3]["dry_run"] is True
    assert "would: withdraw" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------ platform


def test_status_of_nothing_is_exit_code_1(plane: Plane, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status"]) == 1
    assert "tidegate up" in capsys.readouterr().out
    assert run(["status", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["running"] is False


def test_down_without_anything_is_fine(plane: Plane, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["down"]) == 0
    assert "nothing was running" in capsys.readouterr().out


def test_logs_shows_the_last_lines(plane: Plane, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "gateway.log").write_text("one\ntwo\nthree\n")
    assert run(["logs"]) == 0
    assert capsys.readouterr().out == "gateway\n"
    assert run(["logs", "gateway", "-n", "2"]) == 0
    assert capsys.readouterr().out == "two\nthree\n"


def test_a_home_that_cannot_be_made_is_one_line(
    plane: Plane, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TIDEGATE_HOME", str(tmp_path / "file" / "home"))
    assert run(["up", "--bare"]) == 1
    assert "TIDEGATE_HOME" in one_line(capsys.readouterr().err)
    assert not os.path.exists(tmp_path / "home")


@pytest.mark.parametrize("home", ["家 with space", "not \udcff UTF-8"], ids=["Chinese", "bytes"])
def test_a_terminal_that_lacks_a_character_gets_it_escaped(
    home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIDEGATE_HOME", str(tmp_path / home))
    monkeypatch.setattr(sys, "argv", ["tidegate", "status"])
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding="ascii", write_through=True))
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert b"not running" in out.getvalue()
