"""`tidegate key` and `tidegate usage` against canned answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tidegate import client as client_module
from tidegate.cli.main import run
from tidegate.client import ControlClient, read_token
from tidegate.settings import Settings

KEY = "tg-abcdefghijkl-secret"
RECORD: dict[str, Any] = {
    "id": "abcdefghijkl",
    "name": "应用",
    "namespace": "team-a",
    "scopes": ["inference"],
    "models": ["chat"],
    "roles": [],
    "priority": "standard",
    "created_at": 1.0,
    "state": "active",
}
QUOTA = {"namespace": "team-a", "requests_per_minute": 6000, "concurrency": 4, "set_at": 1.0}
OLD = {**RECORD, "id": "000000000000", "state": "revoked", "revoked_at": 2.0}
OPS = {**RECORD, "id": "mnopqrstuvwx", "name": "ops", "namespace": "default", "scopes": [], "roles": ["operator"]}


class Plane:
    """Keys and usage as a control plane tells them."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, Any]] = []
        self.keys = [OLD, RECORD, OPS]
        self.usage: list[dict[str, Any]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content) if request.content else dict(request.url.params)
        self.asked.append((request.method, request.url.path, body))
        match request.method, request.url.path.removeprefix("/api/v1/").split("/"):
            case "POST", ["keys"]:
                return httpx.Response(201, json={"key": KEY, "record": RECORD, "warning": "not deployed yet: chat"})
            case "GET", ["keys"]:
                return httpx.Response(200, json={"keys": self.keys})
            case "POST", ["keys", key_id, "revoke"]:
                found = next(k for k in self.keys if k["id"] == key_id)
                return httpx.Response(200, json={"record": {**found, "state": "revoked"}})
            case "PUT" | "DELETE", ["quotas", _]:
                return httpx.Response(200, json={"quota": QUOTA})
            case "GET", ["quotas"]:
                return httpx.Response(200, json={"quotas": [QUOTA]})
            case _:
                return httpx.Response(200, json={"since": 0, "until": 1, "usage": self.usage})


@pytest.fixture
def plane(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Plane:
    found = Plane()
    monkeypatch.setenv("TIDEGATE_HOME", str(tmp_path))

    def connect(settings: Settings) -> ControlClient:
        return ControlClient(settings.control_url, "token", "alice", transport=httpx.MockTransport(found))

    monkeypatch.setattr(client_module, "connect", connect)
    return found


def test_a_new_key_is_alone_on_stdout(plane: Plane, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--scope", "inference", "--scope", "pin-version", "--model", "chat", "--rpm", "60", "--tpm", "9000"]
    argv += ["--concurrency", "4", "--priority", "batch", "--expires", "30d", "-n", "team-a", "--role", "viewer"]
    assert run(["key", "create", "应用", *argv]) == 0
    told = capsys.readouterr()
    assert told.out == KEY + "\n"
    assert "not deployed yet: chat" in told.err
    assert "shown this once" in told.err
    assert plane.asked[0][2] == {
        "name": "应用",
        "scopes": ["inference", "pin-version"],
        "models": ["chat"],
        "roles": ["viewer"],
        "requests_per_minute": 60,
        "tokens_per_minute": 9000,
        "concurrency": 4,
        "priority": "batch",
        "expires_in": 2592000.0,
        "namespace": "team-a",
    }


def test_what_is_not_said_is_not_sent(plane: Plane) -> None:
    assert run(["key", "create", "app"]) == 0
    assert plane.asked[0][2] == {"name": "app", "namespace": "default"}


def test_a_list_shows_what_is_in_force_unless_all_are_wanted(plane: Plane, capsys: pytest.CaptureFixture[str]) -> None:
    names = []
    for argv in ([], ["--all"], ["-n", "team-a"]):
        assert run(["key", "list", "-o", "name", *argv]) == 0
        names.append(capsys.readouterr().out.split())
    assert names == [
        ["abcdefghijkl", "mnopqrstuvwx"],
        ["000000000000", "abcdefghijkl", "mnopqrstuvwx"],
        ["abcdefghijkl"],
    ]
    assert run(["key", "list"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert [r.split()[4] for r in rows[1:]] == ["inference", "operator"]


@pytest.mark.parametrize(
    ("which", "revoked"),
    [("mnopqrstuvwx", "mnopqrstuvwx"), ("ops", "mnopqrstuvwx"), ("应用", "abcdefghijkl"), ("000000000000",) * 2],
    ids=["by id", "by name", "the one in force of a name", "one that is revoked already"],
)
def test_a_key_is_revoked_by_id_or_name(which: str, revoked: str, plane: Plane) -> None:
    assert run(["key", "revoke", which]) == 0
    assert plane.asked[-1][1] == f"/api/v1/keys/{revoked}/revoke"


def test_a_name_that_two_keys_have_is_not_guessed(plane: Plane, capsys: pytest.CaptureFixture[str]) -> None:
    plane.keys = [RECORD, {**OPS, "name": "应用"}]
    assert run(["key", "revoke", "应用"]) == 1
    assert "abcdefghijkl, mnopqrstuvwx; give an id" in capsys.readouterr().err
    assert run(["key", "revoke", "nobody"]) == 1
    assert all(method == "GET" for method, _, _ in plane.asked)


def test_quotas_are_set_shown_and_removed(plane: Plane, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["quota", "set", "team-a", "--rpm", "6000", "--concurrency", "4"]) == 0
    assert plane.asked[-1] == (
        "PUT", "/api/v1/quotas/team-a", {"requests_per_minute": 6000, "tokens_per_minute": None, "concurrency": 4}
    )  # fmt: skip
    assert capsys.readouterr().out == "the keys of team-a have together 6,000 requests/min, 4 requests at once\n"
    assert run(["quota", "list"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:4] == ["team-a", "6000", "-", "4"]
    assert run(["quota", "remove", "*"]) == 0
    assert plane.asked[-1][:2] == ("DELETE", "/api/v1/quotas/*")
    assert run(["quota", "set", "team-a"]) == 2


def test_usage_adds_up_and_has_totals(plane: Plane, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"key": "abcdefghijkl", "key_name": "app", "model": "chat", "version": "1.0.0", "requests": 3}
    plane.usage = [
        {**row, "input_tokens": 30, "output_tokens": 5},
        {**row, "version": "1.0.1", "requests": 4, "input_tokens": 40},
        {**row, "key": "", "key_name": None, "requests": 1, "unmetered": 1},
    ]
    tables = {}
    for by in ("key", "model", "version"):
        assert run(["usage", "--by", by]) == 0
        tables[by] = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert tables["model"][1:] == [["chat", "8", "70", "5", "1"], ["total", "8", "70", "5", "1"]]
    assert [r[:4] for r in tables["key"][1:]] == [
        ["app", "(abcdefghijkl)", "7", "70"],
        ["(no", "key)", "1", "0"],
        ["total", "8", "70", "5"],
    ]
    assert [r[:3] for r in tables["version"][1:]] == [
        ["chat", "1.0.0", "4"],
        ["chat", "1.0.1", "4"],
        ["total", "-", "8"],
    ]
    assert run(["usage", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["total"] == {"requests": 8, "input_tokens": 70, "output_tokens": 5, "unmetered": 1}
    assert len(document["usage"]) == 3


def test_usage_of_nothing_says_so(plane: Plane, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["usage", "--since", "90m", "--key", "app"]) == 0
    assert "within 90m" in capsys.readouterr().out
    assert plane.asked[0][2]["key"] == "app"


def test_a_key_in_the_environment_comes_before_the_bootstrap_token(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = Settings(home=tmp_path)
    settings.credentials_file.write_text("bootstrap\n")
    assert read_token(settings) == "bootstrap"
    monkeypatch.setenv("TIDEGATE_KEY", KEY)
    assert read_token(settings) == KEY
