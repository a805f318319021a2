"""Which commands reach a cluster: none is forgotten, and what does not says what to do instead."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from tidegate.cli.cluster import ClusterCommand, ControlCommand
from tidegate.cli.main import app, run
from tidegate.cli.reach import COMMANDS, Reach, refusal

PAGE = Path(__file__).resolve().parents[3] / "docs/kubernetes.md"


def commands(of: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every command of the program, by its words."""
    if not hasattr(of, "commands"):
        yield " ".join(path), of
    for name, inner in getattr(of, "commands", {}).items():
        yield from commands(inner, (*path, name))


THERE = dict(commands(typer.main.get_command(app)))


def test_the_table_names_every_command_and_no_other() -> None:
    assert set(COMMANDS) == set(THERE)


@pytest.mark.parametrize("name", THERE)
def test_a_command_takes_the_options_of_its_reach(name: str) -> None:
    reach, kind = COMMANDS[name][0], type(THERE[name])
    expected = {Reach.RESOURCES: ClusterCommand, Reach.CONTROLLER: ControlCommand}.get(reach)
    assert kind is expected or (expected is None and not issubclass(kind, ClusterCommand))


@pytest.mark.parametrize("name", [n for n, (reach, _) in COMMANDS.items() if reach is Reach.MACHINE])
def test_what_is_about_this_machine_refuses_a_cluster_in_a_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for argv, plugin in (([*name.split(), "--context", "prod"], False), (name.split(), True)):
        assert run(argv, plugin=plugin) == 2
        told = capsys.readouterr().err
        assert told == f"tidegate: `tidegate {name}` {COMMANDS[name][1]}\n"


# the words, whether as `kubectl tidegate` -> whether they are refused
MEANT = {
    "a number of lines is no namespace": ("logs -n 20 gateway", False, False),
    "as kubectl's plug-in it would be about the cluster": ("logs -n 20 gateway", True, True),
    "a chart's namespace": ("k8s render tidegate -n models", False, False),
    "the registry has no context": ("model list --context=prod", False, True),
    "the registry as ever": ("model list", True, False),
    "a key's namespace": ("key create site -n shop", False, False),
    "help": ("--help", True, False),
    "a group's help": ("drift reference --help", True, False),
    "no such command": ("fly", True, False),
    "three words": ("drift reference list --context x", False, True),
}


@pytest.mark.parametrize(("line", "plugin", "refused"), MEANT.values(), ids=MEANT)
def test_what_a_line_is_taken_to_mean(line: str, plugin: bool, refused: bool) -> None:
    assert (refusal(line.split(), plugin=plugin) is not None) is refused


def test_the_page_has_every_command_in_its_row() -> None:
    section = PAGE.read_text().partition("## The command line on a cluster")[2].partition("\n## ")[0]
    rows = [row.split("|") for row in section.splitlines() if row.startswith("| `")]
    listed = [name for row in rows for name in _expanded(row[1])]
    assert sorted(listed) == sorted(COMMANDS)
    for row in rows:
        assert len({COMMANDS[name][0] for name in _expanded(row[1])}) == 1, row[1]


def _expanded(cell: str) -> list[str]:
    """`rollout get`, `list` stands for rollout get, rollout list: a group holds for the rest of its row."""
    found: list[str] = []
    group = ""
    for name in re.findall(r"`([^`]+)`", cell):
        whole = f"{group} {name}" if f"{group} {name}" in COMMANDS else name
        group = whole.rpartition(" ")[0]
        found.append(whole)
    return found
