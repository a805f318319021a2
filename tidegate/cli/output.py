"""How commands print: tables for people, JSON and YAML for programs, names for pipes."""

from __future__ import annotations

import contextlib
import enum
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import typer

from tidegate.errors import WrongUse


class Format(enum.StrEnum):
    """What `-o` takes."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"
    NAME = "name"


OutputOption = Annotated[Format, typer.Option("-o", "--output", help="How to print: table, wide, json, yaml or name.")]
JsonOption = Annotated[bool, typer.Option("--json", help="The same as -o json.")]
YesOption = Annotated[bool, typer.Option("-y", "--yes", help="Don't ask.")]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why; goes into the event log.")]


def chosen(output: Format, as_json: bool) -> Format:
    """The format in force, `--json` being short for `-o json`."""
    if as_json and output not in (Format.TABLE, Format.JSON):
        raise WrongUse(f"--json and -o {output} contradict each other; give one of them")
    return Format.JSON if as_json else output


def print_data(data: object, output: Format) -> None:
    """Print plain data as JSON or YAML."""
    if output is Format.YAML:
        import yaml

        print(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), end="")
    else:
        print(json.dumps(data, indent=2, ensure_ascii=False))


def print_rows(
    output: Format,
    *,
    data: object,
    names: Sequence[str],
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    wide: Mapping[str, Sequence[object]] | None = None,
    empty: str = "nothing there",
) -> None:
    """Print a list in any of the formats.

    Args:
        output: the format.
        data: what JSON and YAML show.
        names: what `-o name` shows.
        columns: headings of the table.
        rows: its rows.
        wide: further columns of `-o wide`, by heading.
        empty: what a person is told instead of an empty table.
    """
    if output in (Format.JSON, Format.YAML):
        print_data(data, output)
    elif output is Format.NAME:
        for name in names:
            print(name)
    elif not rows:
        print(empty)
    else:
        more = wide if output is Format.WIDE and wide else {}
        cells = [[*row, *(column[i] for column in more.values())] for i, row in enumerate(rows)]
        print_table([*columns, *more], cells)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Aligned columns, headings in capitals; nothing is cut off, so that it can be piped."""
    texts = [[str(c).upper() for c in columns], *([_cell(c) for c in row] for row in rows)]
    widths = [max(len(row[i]) for row in texts) for i in range(len(columns))]
    for row in texts:
        print("   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _cell(value: object) -> str:
    if value is None or value == "":
        return "-"
    return str(value)


def note(message: str) -> None:
    """Tell a person something that is not the result: on stderr, so that pipes stay clean."""
    print(message, file=sys.stderr, flush=True)


def ask(question: str, *, yes: bool) -> bool:
    """Whether to go on. Without a terminal nobody can be asked, so that is wrong use."""
    if yes:
        return True
    if not sys.stdin.isatty():
        raise WrongUse(f"{question} Nobody can be asked here (no terminal); add -y to go on")
    try:
        return typer.confirm(question, err=True)
    except typer.Abort:
        return False


def age(then: float | None, now: float | None = None) -> str:
    """How long ago, in one unit.

    >>> age(0.0, 7300.0)
    '2h'
    """
    if then is None:
        return "-"
    return duration(max(0.0, (time.time() if now is None else now) - then))


def duration(seconds: float) -> str:
    """A duration in the unit that a person would choose.

    >>> duration(0.25), duration(90), duration(7300), duration(200000)
    ('0.2s', '90s', '2h', '2d')
    """
    if seconds < 10:
        return f"{seconds:.1f}".removesuffix(".0") + "s"
    if seconds < 120:
        return f"{seconds:.0f}s"
    if seconds < 7200:
        return f"{seconds / 60:.0f}m"
    if seconds < 172800:
        return f"{seconds / 3600:.0f}h"
    return f"{seconds / 86400:.0f}d"


def plain(data: Any) -> Any:  # noqa: ANN401 - any JSON
    """Numbers that fit JSON and nothing else: infinities become None."""
    if isinstance(data, float) and (data != data or data in (float("inf"), float("-inf"))):
        return None
    if isinstance(data, Mapping):
        return {k: plain(v) for k, v in data.items()}
    if isinstance(data, (list, tuple)):
        return [plain(v) for v in data]
    return data


@contextlib.contextmanager
def busy(what: str) -> Iterator[None]:
    """Tell a person at a terminal what is going on meanwhile."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield


@contextlib.contextmanager
def progress(title: str, *, in_bytes: bool = True) -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar for bytes (or pieces) on a terminal, a line per tenth elsewhere; both on stderr."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn() if in_bytes else MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        with bar:
            task = bar.add_task(title, total=None)
            yield lambda stage, done, total: bar.update(
                task, description=f"{title}: {stage}", completed=done, total=total or None
            )
        return
    shown = ("", -1)

    def line(stage: str, done: int, total: int) -> None:
        nonlocal shown
        tenth = 10 * done // max(total, 1)
        if (stage, tenth) != shown:
            shown = (stage, tenth)
            note(f"{title}: {stage} {10 * tenth} %")

    note(title)
    yield line
