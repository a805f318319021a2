"""The port to whatever runs the engines. Setting is not verifying: `apply` asks, `observe` tells.

Adapters are idempotent and level-triggered: `apply` receives the *whole* set of revisions that should exist and
may be called again with the same set at any time, also after a crash half-way.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Protocol

from pydantic import Field

from rollout.engine_specs import EngineSpec
from serving.specs import Frozen, RevisionSpec


class WorkloadState(enum.StrEnum):
    """Where a revision's workload stands."""

    MISSING = "missing"
    STARTING = "starting"
    READY = "ready"
    """Every wanted replica answers."""
    DEGRADED = "degraded"
    """It was ready; now fewer replicas answer than wanted, or none."""
    FAILED = "failed"
    """It will not become ready without a change; `message` says why."""
    STOPPING = "stopping"
    UNKNOWN = "unknown"
    """It can't be told now, `message` says why, and nothing may be concluded from that. Others may be seen."""


CALM = frozenset({WorkloadState.READY, WorkloadState.UNKNOWN})
"""States that need no close watching: as wanted, or out of sight until somebody puts something right."""


class Workload(Frozen):
    """A revision that should run, with the capacity that the rollout's spec gives it."""

    revision: RevisionSpec
    replicas: int = Field(default=1, ge=1)
    max_ongoing_requests: int = Field(default=256, ge=1)
    graceful_shutdown_s: float = Field(default=30.0, ge=0)
    engine: EngineSpec = EngineSpec()
    """What each replica needs and where it may run. The local platform has one machine, and ignores it."""
    namespace: str = ""
    """Where on a cluster it lives; empty on the local platform."""
    longest_stream_s: float = Field(default=30.0, ge=0)
    """How long an answer may take: a replica that must leave its node is given as long."""

    @property
    def application(self) -> str:
        """The Serve application's name."""
        return self.revision.application


class Owner(Frozen):
    """The object on a cluster that asked for a model's workloads: they are collected with it."""

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str


class WorkloadStatus(Frozen):
    """What was seen of one application."""

    application: str
    state: WorkloadState
    ready_replicas: int = 0
    restarts: int = 0
    """Replicas that died and were replaced since the application was created, as far as can be seen."""
    message: str = ""


class WorkloadPort(Protocol):
    """Runs revisions."""

    async def apply(self, desired: Sequence[Workload]) -> None:
        """Make the set of running revisions equal to `desired`; what is not listed is drained and removed.

        Raises:
            WorkloadUnavailable: the layer below could not be reached; try again.
            WorkloadRejected: it refused; trying again changes nothing.

        """
        ...

    async def observe(self) -> Mapping[str, WorkloadStatus]:
        """Tell the state of every application that exists, by its name.

        One that is wanted where nothing can be seen (a namespace whose rights are gone) is UNKNOWN.

        Raises:
            WorkloadUnavailable: it can't be told of any; nothing may be concluded from that.

        """
        ...

    async def shortage(self, wanted: Workload) -> str:
        """Tell why there is no room to run this beside all that runs now, with the way out; empty when there is.

        It is an estimate, asked before anything is started: what it can't tell, it does not refuse.

        Raises:
            WorkloadUnavailable: the layer below could not be asked.

        """
        ...

    async def close(self) -> None:
        """Release connections. What runs goes on running."""
        ...
