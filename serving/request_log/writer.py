"""The process that writes a gateway's request log: frames come in through its standard input, lines go to files.

    python -m serving.request_log.writer '{"folder": ..., "secret_file": ..., "format": "parquet", ...}'

A process of its own, so that redacting, writing and compressing cost the gateway nothing but a write to a pipe, and a
gateway that is killed loses no more than what it had not yet written there. It ends when its input does. When the disk
is full or slow, the pipe fills up and the gateway drops what it can't hand over, and counts it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from serving.gateway.logs import configure
from serving.request_log.frames import BrokenFrame, Unpacker
from serving.request_log.lines import LineMaker
from serving.request_log.reading import LOCK, clear_up_after_others, take_out
from serving.request_log.segments import (
    ERASED,
    JSONL,
    MODE,
    Erasure,
    Writing,
    compact_erasures,
    erasures,
    is_erased,
    segments,
)
from serving.request_log.settings import WriterSettings

logger = logging.getLogger("tidegate.request_log")

READ_BYTES = 1 << 18
LINES_HELD_BYTES = 1 << 18
LINES_HELD_S = 0.2
"""How long a line may wait for others: what a killed writer loses."""
TIDY_EVERY_S = 1.0
CLEAR_UP_EVERY_S = 600.0
CONVERT_AGAIN_S = 600.0
"""A segment that could not be turned into columns is left alone for so long: perhaps the disk was full."""


class Writer:
    """Takes bytes, writes lines, closes segments, has them turned into columns, obeys erasures."""

    def __init__(self, settings: WriterSettings) -> None:
        self._settings = settings
        self._writing = Writing(settings.folder, settings.boot, settings.bounds)
        self._unpacker = Unpacker()
        self._maker = LineMaker(settings.secret_file.read_bytes())
        self._held = bytearray()
        self._held_since = 0.0
        self._erased: tuple[Erasure, ...] = ()
        self._erased_size = 0
        self._converting: subprocess.Popen[bytes] | None = None
        self._converted = Path()
        """The segment that it converts, or converted last."""
        self._not_before: dict[Path, float] = {}
        """When a segment that could not be converted is tried again, in monotonic seconds."""
        self._complained = False
        self._cleared_at = time.time()

    def begin(self) -> None:
        """Close what an earlier process left."""
        self._writing.adopt()
        self.tidy(time.time())

    def take(self, data: bytes, now: float) -> None:
        """Make lines of what came."""
        for frame in self._unpacker.feed(data):
            try:
                line = self._maker.line(frame)
            except Exception:
                logger.exception("a request could not be logged; it is left out")
                continue
            if self._erased and is_erased(frame.facts, self._erased):
                continue
            if not self._held:
                self._held_since = now
            self._held += line
            if len(self._held) >= LINES_HELD_BYTES:
                self.flush(now)

    def wait_s(self, now: float) -> float:
        """How long nothing needs to be done. A clock that went back makes no line wait longer."""
        if not self._held:
            return TIDY_EVERY_S
        held_s = now - self._held_since
        return LINES_HELD_S - held_s if 0.0 <= held_s < LINES_HELD_S else 0.0

    def flush(self, now: float) -> None:
        """Write the lines that wait."""
        if not self._held:
            return
        lines, self._held = bytes(self._held), bytearray()
        try:
            self._writing.append(lines, now)
            self._complained = False
        except OSError as error:
            if not self._complained:
                logger.error("the request log can't be written: %s; its lines are lost until it can", error.strerror)  # noqa: TRY400
            self._complained = True

    def tidy(self, now: float) -> None:
        """Close an old segment, remove what is too much, take out who was erased, begin to make columns."""
        if self._writing.due(now):
            self._writing.rotate()
        self._obey_erasures()
        self._writing.prune(now)
        if self._erased:
            left = compact_erasures(self._settings.folder, now, self._erased_size)
            if left is not None:
                self._erased, self._erased_size = left
        if now - self._cleared_at >= CLEAR_UP_EVERY_S:
            self._cleared_at = now
            folder = self._settings.folder
            clear_up_after_others(folder.parent, folder, self._settings.bounds, now)
        if self._converting is not None and self._converting.poll() is not None:
            if self._converting.returncode:
                logger.error("the segment %s could not be turned into columns; it stays as JSON lines for the next "
                             "%g s", self._converted.name, CONVERT_AGAIN_S)  # fmt: skip
                self._not_before[self._converted] = time.monotonic() + CONVERT_AGAIN_S
            self._converting = None
        if self._settings.format == "parquet" and self._converting is None:
            self._convert_next()

    def _convert_next(self) -> None:
        now = time.monotonic()
        closed = [p for p in segments(self._settings.folder) if p.suffix == JSONL and p.stat().st_size > 0]
        self._not_before = {p: at for p, at in self._not_before.items() if p in closed and at > now}
        due = [p for p in closed if p not in self._not_before]
        if due:
            self._converted = due[0]
            argv = [sys.executable, "-m", "serving.request_log.columns", str(due[0])]
            self._converting = subprocess.Popen(argv, stdin=subprocess.DEVNULL)

    def _obey_erasures(self) -> None:
        path = self._settings.folder / ERASED
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            size = 0
        if size == self._erased_size:
            return
        self._erased = erasures(self._settings.folder)
        self.flush(time.time())
        self._writing.rotate()
        if self._converting is not None:  # it may be reading what is about to be written anew
            self._converting.wait()
        take_out(self._settings.folder, self._erased)
        self._erased_size = size

    def end(self) -> None:
        """Write and close everything."""
        self.flush(time.time())
        self._writing.rotate()
        self._obey_erasures()
        if self._converting is not None:
            self._converting.wait()


def take_folder(folder: Path) -> int:
    """Make the gateway's folder and lock it for as long as this process lives.

    The one before may still be closing its segment, and who clears up may be removing what was empty.
    """
    while True:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, MODE)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(lock), os.stat(folder / LOCK)):
                return lock
            os.close(lock)
        except FileNotFoundError:
            continue


def run(settings: WriterSettings, source: int) -> None:
    """Write until the input ends."""
    take_folder(settings.folder)
    writer = Writer(settings)
    writer.begin()
    tidied = time.monotonic()
    while True:
        now = time.time()
        ready, _, _ = select.select([source], [], [], writer.wait_s(now))
        now = time.time()
        if ready:
            data = os.read(source, READ_BYTES)
            if not data:
                break
            try:
                writer.take(data, now)
            except BrokenFrame:
                logger.exception("the pipe from the gateway is broken")
                break
        if writer.wait_s(now) == 0.0:
            writer.flush(now)
        if time.monotonic() - tidied >= TIDY_EVERY_S:
            tidied = time.monotonic()
            try:
                writer.tidy(now)
            except OSError as error:
                logger.error("the request log can't be tidied: %s", error)  # noqa: TRY400
    writer.end()


def main(arguments: list[str]) -> int:
    """The program."""
    configure()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # sent to the whole group; it ends when the gateway has
    os.umask(0o077)
    settings = WriterSettings.model_validate_json(arguments[0])
    try:
        run(settings, sys.stdin.fileno())
    except OSError as error:
        logger.error(  # noqa: TRY400
            "the request log in %s can't be kept: %s; make room or fix the permissions", settings.folder, error
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
