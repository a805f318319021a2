"""What the command line tells of itself: help on everything, quickly, and its version."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tidegate.cli.main import run


def test_help_is_light_and_fast() -> None:
    code = (
        "import sys\nfrom tidegate.cli.main import run\nrun(['--help'])\n"
        "heavy = {'mlflow', 'ray', 'httpx', 'pydantic', 'rich', 'yaml', 'psutil', 'torch'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert "deploy" in done.stdout


COMMANDS = [
    [],
    *([c] for c in ("up", "down", "status", "doctor", "deploy", "rollback", "logs", "usage", "schema")),
    *(["key", c] for c in ("create", "list", "revoke")),
    *(["model", c] for c in ("register", "list", "show", "alias", "verify")),
    *(
        ["rollout", c]
        for c in [
            "get",
            "status",
            "list",
            "promote",
            "pause",
            "resume",
            "abort",
            "retry",
            "undo",
            "ack",
            "history",
            "explain",
            "replay",
        ]
    ),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_on_every_option(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*command, "--help"]) == 0
    text = capsys.readouterr().out
    options = text[text.index("Options:") :].split("Commands:")[0].splitlines()[1:]
    for i, line in enumerate(options):
        if line.strip().startswith("-"):
            alone = len(line.split("  ")[-1].split()) <= 2 and "  " not in line.strip()
            follows = options[i + 1].startswith("      ") if i + 1 < len(options) else False
            assert not alone or follows, line


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert re.fullmatch(r"tidegate \d+\.\d+\.\d+\S*\n", capsys.readouterr().out)
