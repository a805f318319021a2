"""`tidegate logs`: what a process of the local platform wrote."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from tidegate.cli import session
from tidegate.errors import TidegateError, WrongUse

POLL_S = 0.2


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("logs")(logs)


def logs(
    process: Annotated[
        str, typer.Argument(help="Whose log, for instance gateway, controller or ray; none lists them.")
    ] = "",
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on as more is written; Ctrl-C ends it.")] = False,
    lines: Annotated[int, typer.Option("-n", "--lines", min=0, help="How many of the last lines to show.")] = 100,
) -> None:
    """Show what a process of the local platform wrote."""
    folder = session.settings().log_dir
    known = sorted(path.stem for path in folder.glob("*.log")) if folder.is_dir() else []
    if not process:
        if not known:
            raise TidegateError(f"there are no logs in {folder}; `tidegate up` writes them")
        print("\n".join(known))
        return
    if process not in known:
        raise WrongUse(f"there is no log of {process!r}; there are {', '.join(known) or 'none yet'}")
    path = folder / f"{process}.log"
    from tidegate.processes import last_lines

    for line in last_lines(path, lines, window_bytes=1 << 22) if lines else []:
        print(line)
    if follow:
        _follow(path)


def _follow(path: Path) -> None:
    """Write what is appended; a log that was put aside is left for the new one."""
    file = path.open("rb")
    try:
        file.seek(0, 2)
        while True:
            chunk = file.read()
            if chunk:
                sys.stdout.write(chunk.decode(errors="replace"))
                sys.stdout.flush()
                continue
            time.sleep(POLL_S)
            if path.exists() and path.stat().st_ino != _inode(file.fileno()):
                file.close()
                file = path.open("rb")
    finally:
        file.close()


def _inode(descriptor: int) -> int:
    return os.fstat(descriptor).st_ino
