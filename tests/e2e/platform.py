"""A whole local platform for the end-to-end tests: its own home, its own ports, stopped with nothing left behind."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from tests.ports import free_ports
from tidegate.client import ControlClient, connect
from tidegate.settings import Settings


class Platform:
    """`tidegate` on a home of its own."""

    def __init__(self, home: Path, **changes: str) -> None:
        gateway, admin, control, serve, drift, prometheus = free_ports(6)
        own = {f"TIDEGATE_{name.upper()}": value for name, value in changes.items()}
        self.environment = (
            os.environ
            | own
            | {
                "TIDEGATE_HOME": str(home),
                "TIDEGATE_GATEWAY_PORT": str(gateway),
                "TIDEGATE_ADMIN_PORT": str(admin),
                "TIDEGATE_CONTROL_PORT": str(control),
                "TIDEGATE_SERVE_PORT": str(serve),
                "TIDEGATE_DRIFT_PORT": str(drift),
                "TIDEGATE_PROMETHEUS_PORT": str(prometheus),
            }
        )
        self.settings = Settings(
            home=home, gateway_port=gateway, admin_port=admin, control_port=control, serve_port=serve,
            prometheus_port=prometheus,
        )  # fmt: skip

    def tidegate(self, *arguments: str, check: bool = True, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        """Run the command line."""
        command = [sys.executable, "-m", "tidegate.cli.main", *arguments]
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=timeout, check=False
        )
        if check and done.returncode != 0:
            raise AssertionError(
                f"tidegate {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
            )
        return done

    def control(self) -> ControlClient:
        """A client of its control plane."""
        return connect(self.settings)

    def processes(self) -> list[psutil.Process]:
        """Every process that belongs to this home, by its environment."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("TIDEGATE_HOME") == str(self.settings.home) and process.pid != os.getpid():
                    found.append(process)
        return found

    def logs(self) -> str:
        """The ends of all logs, for a failing test's report."""
        paths = sorted(self.settings.log_dir.glob("*.log"))
        return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-4000:]}" for path in paths)


@contextlib.contextmanager
def running(home: Path, *arguments: str, **changes: str) -> Iterator[Platform]:
    """Start a platform, and stop it whatever happens; it must leave no process behind. `changes` are settings."""
    platform = Platform(home, **changes)
    try:
        started = platform.tidegate("up", "--detach", *arguments)
        print(started.stdout)
        yield platform
    except BaseException:
        print(platform.logs())
        raise
    finally:
        platform.tidegate("down", check=False, timeout=120)
        until = time.monotonic() + 20
        while (left := platform.processes()) and time.monotonic() < until:
            time.sleep(0.5)
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
    assert not left, f"left behind: {[(p.pid, p.name()) for p in left]}"
