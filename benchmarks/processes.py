"""Simulated engines and gateways as processes of their own, each with its log, stopped whatever happens."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from serving.gateway.config import GatewayConfig
from serving.gateway.keyring import save_keys
from serving.gateway.traffic_state import save_table
from serving.keys import KeyRecord
from serving.outcomes import KeysPush
from serving.traffic import TrafficTable

ROOT = Path(__file__).resolve().parents[1]
START_WITHIN_S = 60.0
_LISTENS = re.compile(r"on (http://\S+)")


class NotStarted(Exception):
    """A process did not come up; the message ends with the last lines of its log."""


def free_port() -> int:
    """A port of loopback that nobody listens on, below the range that the kernel hands out by itself."""
    chance = random.SystemRandom()
    while True:
        port = chance.randrange(15_000, 29_000)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def answers(url: str) -> bool:
    """Whether a GET of this URL gives 200 at once."""
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


class Child:
    """One process."""

    def __init__(self, name: str, command: list[str], log: Path) -> None:
        self.name = name
        self.log = log
        with log.open("ab") as out:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out, env={**os.environ})
        self.stopped = False
        """Whether SIGSTOP holds it."""

    @property
    def alive(self) -> bool:
        """Whether it runs, or is held."""
        return self.process.poll() is None

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Wait until it is ready.

        Raises:
            NotStarted: it ended, or took too long.
        """
        deadline = time.monotonic() + START_WITHIN_S
        while not ready():
            if not self.alive or time.monotonic() > deadline:
                state = f"ended with {self.process.returncode}" if not self.alive else "is not ready"
                tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])
                raise NotStarted(f"{self.name} {state} after at most {START_WITHIN_S:g} s:\n{tail}")
            time.sleep(0.02)

    def kill(self) -> None:
        """End it at once, as `kill -9` does."""
        self.process.kill()
        self.process.wait()

    def hold(self) -> None:
        """Let it do nothing more until `go_on` (SIGSTOP): its sockets stay open, nobody reads them."""
        self.process.send_signal(signal.SIGSTOP)
        self.stopped = True

    def go_on(self) -> None:
        """Let it go on (SIGCONT)."""
        self.process.send_signal(signal.SIGCONT)
        self.stopped = False

    def end(self, within_s: float = 20.0) -> int:
        """Ask it to end (SIGTERM) and return its exit code; it is killed when it does not in time."""
        if self.alive:
            if self.stopped:
                self.go_on()
            self.process.terminate()
            try:
                self.process.wait(within_s)
            except subprocess.TimeoutExpired:
                self.kill()
        return self.process.returncode


class Engine(Child):
    """A simulated engine."""

    url: str


class Gateway(Child):
    """A gateway."""

    url: str
    admin_url: str


class Processes:
    """Starts processes, and kills what still runs at the end of the `with`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.children: list[Child] = []
        self._numbers = itertools.count()

    def __enter__(self) -> Self:
        """Nothing runs yet."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing runs any more."""
        for child in self.children:
            if child.alive:
                child.kill()

    def engine(self, uri: str = "sim:", model: str = "chat", *, port: int = 0) -> Engine:
        """Start a simulated engine, and wait until it listens."""
        name = f"engine-{next(self._numbers)}"
        log = self.folder / f"{name}.log"
        command = [sys.executable, "-m", "serving.engines.simulated", "--uri", uri, "--model", model]
        engine = Engine(name, [*command, "--port", str(port)], log)
        self.children.append(engine)
        engine.wait_until(lambda: _LISTENS.search(log.read_text(errors="replace")) is not None)
        found = _LISTENS.search(log.read_text(errors="replace"))
        assert found is not None
        engine.url = found.group(1)
        engine.wait_until(lambda: answers(engine.url + "/health"))
        return engine

    def gateway(self, config: GatewayConfig, *, process: int | None = None) -> Gateway:
        """Start a gateway (one of several on its port, with `process`), and wait until it is ready."""
        which = [] if process is None else ["--process", str(process)]
        command = [sys.executable, "-m", "serving.gateway.main", "--config", config.to_json(), *which]
        gateway = Gateway(f"gateway-{process or 0}", command, self.folder / f"gateway-{process or 0}.log")
        self.children.append(gateway)
        gateway.url = f"http://{config.host}:{config.port}"
        gateway.admin_url = f"http://{config.admin_host}:{config.admin_port + (process or 0)}"
        gateway.wait_until(lambda: answers(gateway.admin_url + "/readyz"))
        return gateway


def furnish(home: Path, table: TrafficTable, keys: tuple[KeyRecord, ...] = ()) -> None:
    """Give a home the table and the keys of a last run, so that a gateway serves without a controller."""
    (home / "gateway").mkdir(parents=True, exist_ok=True)
    save_table(home / "gateway" / "table.json", table)
    if keys:
        save_keys(home / "gateway" / "keys.json", KeysPush(keys=keys))
