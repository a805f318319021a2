"""`$TIDEGATE_HOME/run/supervisor.json`: what the supervisor runs and how far it is.

Written by the supervisor alone, atomically, on every change; read by `up` (to show progress), `down`, `status` and
the next supervisor (to clear away what a killed one left).
"""

from __future__ import annotations

import enum
import json
import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from tidegate.processes import Identity
from tidegate.settings import Settings


class Stage(enum.StrEnum):
    """Where the platform as a whole stands."""

    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"
    """It did not come up, and nothing of it was left running."""


class State(enum.StrEnum):
    """Where one process or one task stands."""

    WAITING = "waiting"
    """A process: before its next start. A task: before its turn."""
    STARTING = "starting"
    READY = "ready"
    """A process answers; a task is done."""
    STOPPED = "stopped"
    FAILED = "failed"


class Line(BaseModel):
    """Base of what is stored here: read tolerantly."""

    model_config = ConfigDict(extra="ignore")


class Progress(Line):
    """What a process and a task have in common. `since` is in seconds since the epoch, 0 before it began."""

    name: str
    title: str
    state: State = State.WAITING
    since: float = 0.0
    message: str = ""
    took_s: float | None = None
    """How long it took: a process until it answered, a task until its end."""


class PartStatus(Progress):
    """One supervised process; `since` is when the present one was started."""

    pid: int | None = None
    pid_started_at: float | None = None
    restarts: int = 0

    @property
    def identity(self) -> Identity | None:
        """The process, or None while there is none."""
        if self.pid is None or self.pid_started_at is None:
            return None
        return Identity(self.pid, self.pid_started_at)


class TaskStatus(Progress):
    """One thing to be done once, after or during the start: registering, deploying, the first answer."""


class PlatformState(Line):
    """All of it. `instance` marks every process of this supervisor."""

    instance: str
    pid: int
    pid_started_at: float
    started_at: float
    stage: Stage = Stage.STARTING
    error: str = ""
    """Why the stage is `failed`, or why a task is: one line."""
    host: str
    gateway_port: int
    admin_port: int
    control_port: int
    serve_port: int
    parts: list[PartStatus] = []
    tasks: list[TaskStatus] = []

    @property
    def identity(self) -> Identity:
        """The supervisor's own process."""
        return Identity(self.pid, self.pid_started_at)

    @property
    def alive(self) -> bool:
        """Whether the supervisor still runs."""
        return self.identity.alive

    @property
    def tasks_done(self) -> bool:
        """Whether every task ended, well or badly."""
        return all(t.state in (State.READY, State.STOPPED, State.FAILED) for t in self.tasks)


def state_file(settings: Settings) -> Path:
    """Where the state lies."""
    return settings.run_dir / "supervisor.json"


def read_state(settings: Settings) -> PlatformState | None:
    """The state as last written, whether or not that supervisor still lives; None when there is none."""
    try:
        return PlatformState.model_validate_json(state_file(settings).read_text())
    except (OSError, ValidationError):
        return None


def write_private(path: Path, text: str) -> None:
    """Replace a file in one step, readable by its owner only."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    temporary.replace(path)


def write_state(settings: Settings, state: PlatformState) -> None:
    """Replace the state file."""
    write_private(state_file(settings), json.dumps(state.model_dump(mode="json"), indent=1) + "\n")
