"""A throwaway PostgreSQL of Debian's packages, in a folder of its own, for tests and benchmarks.

`initdb` and `postgres` refuse to run as root, so root hands them to the user `postgres`, else `nobody`. Nothing is
flushed to the disk unless asked (it outlives the server's death all the same): the folder is gone afterwards.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import psycopg

from tests.ports import free_ports

MISSING = "PostgreSQL's server is not installed; `apt-get install postgresql` (or `make test` as root) does that"
START_S = 60.0
_NOT_FLUSHED = ("fsync=off", "full_page_writes=off")
_PR_SET_PDEATHSIG = 1


def find_binaries() -> Path | None:
    """The folder with `initdb` and `postgres`: on the path, else the newest of Debian's; None when there is none."""
    on_path = [Path(p).resolve().parent for p in (shutil.which("initdb"),) if p]
    packaged = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: p.parts[-2].zfill(4), reverse=True)
    complete = (p for p in [*on_path, *packaged] if (p / "initdb").exists() and (p / "postgres").exists())
    return next(complete, None)


def _unprivileged() -> pwd.struct_passwd | None:
    """Who runs the server: None means whoever we are."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise RuntimeError("PostgreSQL does not run as root, and there is neither a user postgres nor nobody; add one")


def _end_with_parent() -> None:
    """In the child: be interrupted when the tests are killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGINT)


class Postgres:
    """One server. `start`, `stop` and `kill` may be called again and again; `remove` ends it for good."""

    def __init__(self, *, flushed: bool = False) -> None:
        binaries = find_binaries()
        if binaries is None:
            raise FileNotFoundError(MISSING)
        self._binaries = binaries
        self._user = _unprivileged()
        self._settings = () if flushed else _NOT_FLUSHED
        self._process: subprocess.Popen[bytes] | None = None
        self._databases = itertools.count(1)
        self.port = free_ports(1)[0]
        self.folder = self._make_folder()
        command = ["initdb", "-D", "data", "-U", "tidegate", "--auth=trust", "--no-sync", "--no-locale", "-E", "UTF8"]
        done = self._spawn(command)
        output, _ = done.communicate(timeout=120)
        if done.returncode != 0:
            self.remove()
            raise RuntimeError(f"initdb failed: {output.decode(errors='replace')[-2000:]}")

    def _make_folder(self) -> Path:
        folder = Path(tempfile.mkdtemp(prefix="tidegate-pg-"))
        if self._user is not None:
            if not all(p.stat().st_mode & 0o001 for p in folder.parents):  # a folder that only root may pass through
                folder.rmdir()
                folder = Path(tempfile.mkdtemp(prefix="tidegate-pg-", dir="/tmp"))
            os.chown(folder, self._user.pw_uid, self._user.pw_gid)
        return folder

    def _spawn(self, command: list[str]) -> subprocess.Popen[bytes]:
        owner: dict[str, Any] = {} if self._user is None else {"user": self._user.pw_uid, "group": self._user.pw_gid}
        if owner:
            owner["extra_groups"] = []
        return subprocess.Popen(
            [str(self._binaries / command[0]), *command[1:]],
            cwd=self.folder,
            env={"PATH": os.environ.get("PATH", ""), "HOME": str(self.folder), "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if command[0] == "initdb" else (self.folder / "log").open("ab"),
            stderr=subprocess.STDOUT,
            preexec_fn=_end_with_parent,
            **owner,
        )

    def start(self) -> None:
        """Start the server and wait until it answers."""
        settings = [
            "listen_addresses=127.0.0.1",
            f"unix_socket_directories={self.folder}",
            "max_connections=60",
            "shared_buffers=32MB",
            *self._settings,
        ]
        flags = [part for setting in settings for part in ("-c", setting)]
        self._process = self._spawn(["postgres", "-D", "data", "-p", str(self.port), *flags])
        deadline = time.monotonic() + START_S
        while True:
            try:
                psycopg.connect(self.dsn("postgres"), connect_timeout=2).close()
            except psycopg.OperationalError as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    log = (self.folder / "log").read_text(errors="replace")[-2000:]
                    raise RuntimeError(f"PostgreSQL does not come up: {error}\n{log}") from error
                time.sleep(0.05)
            else:
                return

    def stop(self) -> None:
        """Stop it at once and orderly; connections are cut."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """Kill it with all that serve a client; what was committed is found again at the next start."""
        serving = [] if self._process is None else psutil.Process(self._process.pid).children()
        self._end(signal.SIGKILL)
        for process in serving:  # else one may answer for a moment, until it notices that the first one has gone
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(serving, 10)
        (self.folder / "data" / "postmaster.pid").unlink(missing_ok=True)

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(how)
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def dsn(self, database: str) -> str:
        """A URL for clients."""
        return f"postgresql://tidegate@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """Make an empty database; returns its URL."""
        name = f"t{next(self._databases)}"
        with psycopg.connect(self.dsn("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self.dsn(name)

    def remove(self) -> None:
        """Stop the server and delete all of it."""
        self._end(signal.SIGINT)
        shutil.rmtree(self.folder, ignore_errors=True)
