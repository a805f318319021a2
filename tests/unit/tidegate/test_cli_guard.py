"""`tidegate guard`, and policies at registration."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from registry.stores.memory import MemoryStore
from tidegate import composition
from tidegate.cli.main import run

Capture = pytest.CaptureFixture[str]
POLICY = """
schema: 1
name: mine
checks:
  - {name: pii, action: redact}
  - {name: words, check: banned-words, action: block, options: {words: [damnation]}}
"""


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> MemoryStore:
    made = MemoryStore(tmp_path / "registry", check_policy=composition._check_policy)
    monkeypatch.setenv("TIDEGATE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(composition, "build_registry", lambda _settings: made)
    return made


@pytest.fixture
def policy(tmp_path: Path) -> str:
    file = tmp_path / "mine.yaml"
    file.write_text(POLICY)
    return str(file)


def register(*more: str) -> int:
    return run(["model", "register", "chat", "--source", "sim:?tokens=8", *more])


def test_a_text_is_tried_both_ways(policy: str, capsys: Capture) -> None:
    assert run(["guard", "test", "I am jane@example.com", "--policy", policy]) == 0
    out = capsys.readouterr().out
    assert "as a prompt: redact" in out
    assert "becomes: I am j***@e******.com" in out
    assert run(["guard", "test", "damnation", "--policy", policy, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [d["verdict"] for d in told["directions"]] == ["block", "block"]
    assert told["directions"][0]["findings"][0]["check"] == "words"


def test_the_policy_of_a_version_is_the_one_in_force(policy: str, capsys: Capture) -> None:
    assert register("--policy", policy) == 0
    assert register("--policy", "judge") == 0
    assert "chat@1.0.1 (patch): against 1.0.0: the guardrail policy changed" in capsys.readouterr().out
    assert run(["guard", "test", "damnation", "--model", "chat@1.0.0"]) == 0
    assert "policy mine" in capsys.readouterr().out
    assert run(["guard", "test", "hello", "--model", "chat@1.0.1"]) == 0
    assert "policy judge" in capsys.readouterr().out
    assert run(["guard", "test", "hello"]) == 0
    assert "policy default" in capsys.readouterr().out


def test_a_policy_with_faults_is_refused_with_field_and_reason(tmp_path: Path, capsys: Capture) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("schema: 1\nname: x\nchecks: [{name: vibes}, {name: pii, action: shout}]\n")
    assert register("--policy", str(bad)) == 2
    err = capsys.readouterr().err
    assert "no check named 'vibes'" in err
    assert "checks[1] 'pii': action" in err
    assert run(["guard", "test", "x", "--policy", str(bad)]) == 2
    assert run(["model", "show", "chat@1.0.0"]) == 1, "nothing was registered"


@pytest.mark.parametrize(
    ("command", "content", "code", "told"),
    [
        ("guard eval FILE", b"\x7fELF\xd0\x00", 2, "is not UTF-8 text"),
        ("guard eval FILE.gz", b"no gzip", 2, "is not gzipped, or cut short"),
        (
            "guard eval FILE.gz",
            gzip.compress(b'{"text": "x", "toxic": 1}' * 99)[:-20],
            2,
            "is not gzipped, or cut short",
        ),
        ("guard eval FILE", b"[" * 100_000, 1, "line 1: it is no JSON object"),
        ("guard eval NOWHERE", b"", 1, "NOWHERE: no such file or directory; check the path"),
        ("guard test x --policy NOWHERE", b"", 1, "NOWHERE: no such file or directory; check the path"),
        ("guard test x --policy none", b"", 2, "the policy none checks nothing"),
        ("deploy chat@1.0.0 -f FILE", b"[" * 100_000, 2, "is nested too deep to be read"),
    ],
)
def test_files_that_are_none_get_one_line(
    command: str, content: bytes, code: int, told: str, tmp_path: Path, capsys: Capture
) -> None:
    words = [str(tmp_path / word) if word.startswith("FILE") else word for word in command.split()]
    for word in words:
        if word.startswith(str(tmp_path)):
            Path(word).write_bytes(content)
    assert run(words) == code
    assert told in capsys.readouterr().err


def test_labelled_texts_are_measured_by_source_and_language(policy: str, tmp_path: Path, capsys: Capture) -> None:
    rows = [
        {"text": "mail jane@example.com", "toxic": True, "source": "a", "lang": "en"},
        {"text": "nothing here", "toxic": False, "source": "a", "lang": "en"},
        {"text": "damnation", "label": 1, "source": "b", "lang": "en"},
        {"text": "你好", "label": 0, "source": "b", "lang": "zh"},
    ]
    file, report = tmp_path / "rows.jsonl.gz", tmp_path / "report.html"
    with gzip.open(file, "wt", encoding="utf-8") as out:
        out.writelines(json.dumps(row) + "\n" for row in rows)
    command = ["guard", "eval", str(file), "--policy", policy, "--report", str(report)]
    assert run([*command, "--json"]) == 0
    groups = json.loads(capsys.readouterr().out)["groups"]
    assert list(groups) == ["a", "b", "all in en", "all in zh", "all"]
    assert (groups["all"]["precision"], groups["all"]["recall"], groups["all"]["auc"]) == (1.0, 1.0, 1.0)
    assert groups["all in zh"]["recall"] is None
    page = report.read_text()
    assert "<svg" in page
    assert "jane" not in page, "no judged text leaves the machine with a report"
    assert run([*command, "--check", "pii"]) == 0
    assert "0.500" in capsys.readouterr().out
    assert run([*command, "--check", "vibes"]) == 2
    file.write_bytes(gzip.compress(b'{"text": "no label"}\n'))
    assert run(command) == 1
    assert "line 1" in capsys.readouterr().err
