"""Pages that promise to name everything do."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from scripts import reference_page
from serving.gateway.config import GatewayConfig
from tests.architecture.source_tree import ROOT
from tidegate.cli.main import app

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "helm" / "tidegate" / "README.md"]
BLOCK = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
IN_BLOCK = re.compile(r"^ *(?:\$ )?(?:[A-Z_]+=\S+ )*(?:kubectl )?tidegate ([a-z][^#|\n]*)", re.MULTILINE)
IN_TEXT = re.compile(r"`(?:kubectl )?tidegate ([a-z][^`]*)`")
COMMANDS = typer.main.get_command(app)


def test_the_reference_says_what_the_code_says() -> None:
    assert reference_page.PAGE.read_text() == reference_page.page(), "run scripts/reference_page.py"


def knobs(config: type, before: str = "") -> Iterator[tuple[str, object]]:
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from knobs(hints[field.name], f"{before}{field.name}.")
        else:
            yield before + field.name, field.default


def told(page: str) -> dict[str, str]:
    """Each knob that a table of a page has, and what is said of its default."""
    found: dict[str, str] = {}
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        names = re.findall(r"`([a-z_.]+)`", cells[0])
        if line.startswith("| `") and len(cells) == 4:
            values = cells[1].split(", ") if len(names) > 1 else [cells[1]]
            found |= dict(zip(names, values if len(values) == len(names) else values * len(names), strict=True))
    return found


def test_the_gateways_page_has_every_knob_with_its_default() -> None:
    page = (ROOT / "docs" / "gateway.md").read_text()
    on_page, real = told(page), dict(knobs(GatewayConfig))
    named = set(re.findall(r"`([a-z_.]+)`", page))
    assert not real.keys() - named, "knobs that the page does not name"
    for name, default in real.items():
        if name in on_page and isinstance(default, bool):
            assert on_page[name] == str(default).lower(), name
        elif name in on_page and isinstance(default, int | float):
            assert float(on_page[name]) == default, name


def unknown_in(text: str) -> Iterator[str]:
    """Commands and options that a page shows and that there are none of."""
    text = text.replace("\\\n", " ")
    for shown in [
        *IN_TEXT.findall(BLOCK.sub("", text)),
        *(c for b in BLOCK.findall(text) for c in IN_BLOCK.findall(b)),
    ]:
        command, words = COMMANDS, shown.split()
        while (inner := getattr(command, "commands", None)) and words and re.fullmatch(r"[a-z0-9-]+", words[0]):
            if words[0] not in inner:
                yield f"{shown}: {words[0]}"
                break
            command = inner[words.pop(0)]
        options = {name for parameter in command.params for name in parameter.opts} | {"--help"}
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]*", " ".join(words)):
            if not inner and flag not in options:
                yield f"{shown}: {flag}"


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_command_that_a_page_shows_is_one(path: Path) -> None:
    assert not list(unknown_in(path.read_text()))


def test_a_command_that_is_none_is_seen() -> None:
    told = "`tidegate rollout frob chat`\n```\n$ tidegate deploy chat@1 --step 5\ntidegate key create x --rpm 5\n```"
    assert list(unknown_in(told)) == ["rollout frob chat: frob", "deploy chat@1 --step 5: --step"]
