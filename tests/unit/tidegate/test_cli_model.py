"""`tidegate model` over the registry in memory."""

import json
from pathlib import Path

import pytest

from registry.stores.memory import MemoryStore
from tidegate import composition
from tidegate.cli.main import run

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    store = MemoryStore(tmp_path / "registry")
    monkeypatch.setenv("TIDEGATE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(composition, "build_registry", lambda _settings: store)


def register(*more: str, source: str = "sim:?tokens=8") -> int:
    return run(["model", "register", "chat", "--source", source, *more])


def test_register_prints_version_and_why(capsys: Capture) -> None:
    assert register("--metric", "f1=0.5", "--commit", "abc", "--engine-arg", "dtype=float32") == 0
    out = capsys.readouterr().out
    assert out.startswith("chat@1.0.0: the first version\n")
    assert "tidegate deploy chat@1.0.0" in out
    assert register(source="sim:?tokens=9") == 0
    assert "chat@1.1.0 (minor): against 1.0.0" in capsys.readouterr().out


def test_register_and_show_as_json(capsys: Capture) -> None:
    assert register("--version", "2.0.0", "--metric", "f1=0.5", "--dataset", "s3://d", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["reference"] == "chat@2.0.0"
    assert found["metrics"] == {"f1": 0.5}
    assert run(["model", "show", "chat@2.0.0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["lineage"]["dataset"] == "s3://d"


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["register", "chat", "--source", "/nowhere"], 1),
        (["register", "chat", "--source", "sim:?nonsense=1"], 1),
        (["register", "chat", "--source", "sim:", "--prompt", "/nowhere"], 2),
        (["show", "chat@9.9.9"], 1),
        (["show", "nobody"], 1),
        (["show", "chat@nothing"], 1),
        (["show", "CHAT"], 2),
        (["list", "nobody"], 1),
        (["verify", "chat@9.9.9"], 1),
        (["alias", "chat", "x"], 2),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else None,
)
def test_errors_of_the_registry_are_one_line(argv: list[str], code: int, capsys: Capture) -> None:
    assert register() == 0
    capsys.readouterr()
    assert run(["model", *argv]) == code
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tidegate: ")]
    assert len(lines) == 1


def test_a_number_that_is_taken_is_refused(capsys: Capture) -> None:
    assert register("--version", "1.0.0") == 0
    assert register("--version", "1.0.0", source="sim:?tokens=9") == 1
    assert "never changes" in capsys.readouterr().err


def test_list_alias_and_verify(capsys: Capture) -> None:
    register()
    register(source="sim:?tokens=9")
    capsys.readouterr()
    assert run(["model", "alias", "chat@1.0.0", "baseline"]) == 0
    assert capsys.readouterr().out == "chat@baseline is chat@1.0.0\n"
    assert run(["model", "list", "-o", "name"]) == 0
    assert capsys.readouterr().out == "chat@1.1.0\nchat@1.0.0\n"
    assert run(["model", "list", "chat", "-o", "wide"]) == 0
    assert "baseline" in capsys.readouterr().out
    assert run(["model", "verify", "chat@baseline", "-o", "name"]) == 0
    assert capsys.readouterr().out == "chat@1.0.0\n"
    assert run(["model", "alias", "chat@1.0.0", "baseline", "--remove"]) == 0
    assert run(["model", "show", "chat@baseline"]) == 1


def test_an_empty_registry_says_what_to_do(capsys: Capture) -> None:
    assert run(["model", "list"]) == 0
    assert "tidegate model register" in capsys.readouterr().out
