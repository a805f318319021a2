"""`tidegate usage`: who used how much of what."""

from __future__ import annotations

import enum
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from tidegate.cli import session
from tidegate.cli.cluster import ControlCommand
from tidegate.cli.key import seconds
from tidegate.cli.output import Format, JsonOption, OutputOption, chosen, print_data, print_table

if TYPE_CHECKING:
    from tidegate.replies import UsageRow

COUNTS = ("requests", "input_tokens", "output_tokens", "unmetered")


class By(enum.StrEnum):
    """What the rows are added up by."""

    KEY = "key"
    MODEL = "model"
    VERSION = "version"


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("usage", cls=ControlCommand)(usage)


def usage(
    since: Annotated[str, typer.Option("--since", metavar="24h", help="How far back: 90m, 24h, 30d.")] = "24h",
    key: Annotated[str, typer.Option("--key", metavar="ID|NAME", help="Only this key.")] = "",
    model: Annotated[str, typer.Option("--model", metavar="MODEL", help="Only this model.")] = "",
    by: Annotated[By | None, typer.Option("--by", help="Add up by key, model or version; else each apart.")] = None,
    output: OutputOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """Show requests and tokens by key, model and version, with totals. Whole hours count from their start."""
    output = chosen(output, as_json)
    with session.connect() as client:
        found = client.usage(since=max(0.0, time.time() - seconds("--since", since)), key=key, model=model)
    headings, rows = add_up(found.usage, by)
    totals = [sum(row[len(headings) + i] for row in rows) for i in range(len(COUNTS))]  # type: ignore[misc]
    if output in (Format.JSON, Format.YAML):
        named = [dict(zip([*headings, *COUNTS], row, strict=True)) for row in rows]
        whole = dict(zip(COUNTS, totals, strict=True))
        print_data({"since": found.since, "until": found.until, "usage": named, "total": whole}, output)
    elif output is Format.NAME:
        for row in rows:
            print("/".join(str(cell) for cell in row[: len(headings)]))
    elif not rows:
        print(f"nothing was asked within {since}")
    else:
        last: list[object] = ["total", *[""] * (len(headings) - 1), *totals]
        columns = [*headings, "requests", "tokens in", "tokens out", "unmetered"]
        print_table(columns, [*rows, last])


def add_up(rows: Iterable[UsageRow], by: By | None) -> tuple[list[str], list[Sequence[object]]]:
    """Rows of (names..., counts...) and the names' headings, the most requests first."""
    headings = {None: ["key", "model", "version"], By.KEY: ["key"], By.MODEL: ["model"]}.get(by, ["model", "version"])
    sums: dict[tuple[str, ...], list[int]] = {}
    for row in rows:
        known = {"key": _who(row), "model": row.model, "version": row.version}
        counts = sums.setdefault(tuple(known[h] for h in headings), [0] * len(COUNTS))
        for i, name in enumerate(COUNTS):
            counts[i] += getattr(row, name)
    ordered = sorted(sums.items(), key=lambda item: (-item[1][0], item[0]))
    return headings, [[*names, *counts] for names, counts in ordered]


def _who(row: UsageRow) -> str:
    if not row.key:
        return "(no key)"
    return f"{row.key_name} ({row.key})" if row.key_name else row.key
