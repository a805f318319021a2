"""`tidegate drift`: references of a window, what is told of alarms, and what each refusal says."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.drift.archive import Archive
from serving.drift.config import Places
from serving.sightings import Sighting
from tidegate.cli.main import run
from tidegate.drift import EMBEDDING_VALUES

ALARM = {
    "detector": "embedding", "severity": "page", "statistic": 3.1e6, "threshold": 2e6, "request_id": "req_7",
    "at": time.time() - 7300, "reference": "0a1b", "source": "data set good.jsonl",
    "explanation": {
        "requests": 64, "features": [{"name": "axis_3", "deviations": 1.4}],
        "gained": [{"cluster": 5, "before_percent": 1.0, "now_percent": 40.0, "reference_ids": ["req_1"],
                    "recent_ids": ["req_9", "req_8"], "label": "Chinese, about 40 characters"}],
        "lost": [],
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TIDEGATE_HOME", str(tmp_path))
    monkeypatch.setattr("tidegate.drift.ACK_WAIT_S", 0.1)
    return tmp_path


def keep_vectors(home: Path, count: int) -> None:
    rng = np.random.default_rng(1)
    archive = Archive(Places(home).archive, EMBEDDING_VALUES, count, 8, rng)
    now = time.time()
    for number in range(count):
        seen = Sighting("chat", f"req_{number}", now - 60.0, "acme", "chat", "x", 1)
        archive.add(seen, rng.random(13).astype(np.float32), rng.standard_normal(EMBEDDING_VALUES).astype(np.float32))
    archive.close()


def write_status(home: Path, *alarms: dict[str, Any], paging: bool = False) -> None:
    one = {"statistic": 3.1e6, "threshold": 2e6, "active": paging, "alarms": len(alarms)}
    stream = {"model": "chat", "stream": "all", "seen": 500, "paging": paging, "detectors": {"embedding": one},
              "alarms": list(alarms), "reference": {"built_at": time.time() - 90}}  # fmt: skip
    Places(home).folder.mkdir(exist_ok=True)
    Places(home).status.write_text(json.dumps({"written_at": time.time(), "streams": [stream], "requests": []}))


def test_a_reference_is_built_shown_listed_refreshed_and_removed(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep_vectors(home, 1100)
    assert run(["drift", "reference", "build", "chat", "--window", "1h"]) == 0
    built = capsys.readouterr().out
    assert "of 1100 requests" in built
    assert run(["drift", "reference", "build", "chat", "--window", "1h", "--stream", "tenant=acme"]) == 0
    assert run(["drift", "reference", "list", "-o", "name"]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == ["chat/all", "chat/tenant=acme"]
    assert run(["drift", "reference", "show", "chat"]) == 0
    assert "group 0:" in capsys.readouterr().out
    assert run(["drift", "reference", "refresh", "chat"]) == 0
    assert run(["drift", "reference", "remove", "chat", "--stream", "tenant=acme", "-y"]) == 0
    capsys.readouterr()
    assert run(["drift", "reference", "list", "--json"]) == 0
    (left,) = json.loads(capsys.readouterr().out)
    assert (left["scope"], left["window_s"], left["rows"]) == ("all", 3600.0, 1100)


@pytest.mark.parametrize(
    ("argv", "code", "why"),
    [
        ("status", 1, "no drift watch has run"),
        ("explain chat", 1, "no drift watch has run"),
        ("ack chat", 1, "chat (any stream) is not watched"),
        ("explain chat --stream user=me", 2, "write all, tenant=NAMESPACE or route=OPERATION"),
        ("reference build chat", 2, "give either --window"),
        ("reference build chat --window soon", 2, "--window"),
        ("reference build chat --window 1h", 1, "at least 1024 are needed; take a longer window or a data set"),
        ("reference build chat --dataset /nowhere", 2, "give a file of JSON lines"),
        ("reference show chat", 1, "has no reference"),
        ("reference refresh chat", 1, "has no reference"),
        ("reference remove chat -y", 1, "has no reference"),
    ],
)
def test_each_refusal_says_the_way_out(argv: str, code: int, why: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["drift", *argv.split()]) == code
    assert why in " ".join(capsys.readouterr().err.split())


def test_a_data_set_with_a_line_that_is_none_is_refused_by_its_number(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "x.jsonl").write_text('{"text": "fine"}\n"also fine"\n[1]\n')
    assert run(["drift", "reference", "build", "chat", "--dataset", str(home / "x.jsonl")]) == 2
    assert "line 3: no JSON string or object" in capsys.readouterr().err


def test_status_and_explain_tell_what_changed(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_status(home)
    assert run(["drift", "explain", "chat"]) == 0
    assert "never had an alarm" in capsys.readouterr().out
    write_status(home, ALARM, paging=True)
    assert run(["drift", "status"]) == 0
    assert "ALARM" in capsys.readouterr().out
    assert run(["drift", "explain", "chat"]) == 0
    told = capsys.readouterr().out
    group = "more of group 5 (Chinese, about 40 characters): 1.0 % before, 40.0 % now; for instance req_9, req_8"
    for part in ("page by embedding, 2h ago", "tipped by req_7", "axis_3: +1.4 standard deviations", group):
        assert part in told


def test_a_reference_is_not_built_over_an_alarm_unasked(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep_vectors(home, 1100)
    write_status(home, ALARM, paging=True)
    assert run(["drift", "reference", "build", "chat", "--window", "1h"]) == 2
    assert "hides the drift" in capsys.readouterr().err
    assert run(["drift", "reference", "build", "chat", "--window", "1h", "-y"]) == 0
    assert run(["drift", "ack", "chat", "--reason", "a campaign"]) == 0
    assert "does not run" in capsys.readouterr().err
    (asked,) = Places(home).acknowledgements.iterdir()
    said = json.loads(asked.read_text())
    assert (said["model"], said["scope"], said["reason"]) == ("chat", None, "a campaign")
