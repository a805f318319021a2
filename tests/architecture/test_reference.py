"""Pages that promise to name everything do."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterator

from scripts import reference_page
from serving.gateway.config import GatewayConfig
from tests.architecture.source_tree import ROOT


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
