"""Workloads in memory and virtual time, for tests, dry runs and demos. Nothing happens between two ticks.

An application is STARTING for `load_ticks`, then READY; one that is no longer desired is STOPPING for `drain_ticks`,
then gone. Failures are planted by calling the methods below `observe`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rollout.errors import WorkloadRejected, WorkloadUnavailable
from rollout.workloads.base import Workload, WorkloadState, WorkloadStatus


@dataclass(slots=True)
class _Application:
    workload: Workload
    loading: list[int]
    """Per replica: ticks until it is ready; 0 when it is."""
    restarts: int = 0
    failure: str = ""
    was_ready: bool = False
    draining: int | None = None


@dataclass(slots=True)
class _Plan:
    unavailable: str = ""
    rejection: str = ""
    lost_writes: int = 0
    shortage: str = ""
    failing: dict[str, str] = field(default_factory=dict)


class MemoryWorkloads:
    """WorkloadPort over a dictionary."""

    def __init__(self, *, load_ticks: int = 2, drain_ticks: int = 1) -> None:
        """Start empty.

        Args:
            load_ticks: Ticks from start until a replica is ready.
            drain_ticks: Ticks from removal until an application is gone.
        """
        self._load_ticks = load_ticks
        self._drain_ticks = drain_ticks
        self._applications: dict[str, _Application] = {}
        self._plan = _Plan()
        self.writes = 0
        """How many times `apply` changed something."""

    async def apply(self, desired: Sequence[Workload]) -> None:
        """See `WorkloadPort`."""
        self._reachable()
        if self._plan.rejection:
            message, self._plan.rejection = self._plan.rejection, ""
            raise WorkloadRejected(message)
        if self._plan.lost_writes:
            self._plan.lost_writes -= 1
            return
        wanted = {workload.application: workload for workload in desired}
        changed = [self._want(name, workload) for name, workload in wanted.items()]
        changed += [self._drop(name) for name in list(self._applications) if name not in wanted]
        self.writes += any(changed)

    async def observe(self) -> Mapping[str, WorkloadStatus]:
        """See `WorkloadPort`."""
        self._reachable()
        return {name: _status(name, application) for name, application in self._applications.items()}

    async def shortage(self, wanted: Workload) -> str:
        """See `WorkloadPort`: what `fill_up` planted, for whatever does not run yet."""
        self._reachable()
        return "" if wanted.application in self._applications else self._plan.shortage

    async def close(self) -> None:
        """Nothing to release."""

    def tick(self, count: int = 1) -> None:
        """Let time pass."""
        for _ in range(count):
            for name, application in list(self._applications.items()):
                self._tick_one(name, application)

    def fail_load(self, application: str, message: str = "simulated failure to load") -> None:
        """Let an application fail instead of becoming ready, now or when it comes into being."""
        self._plan.failing[application] = message

    def kill_replica(self, application: str) -> None:
        """Kill one ready replica; it starts anew."""
        found = self._applications[application]
        found.loading[found.loading.index(0)] = self._load_ticks
        found.restarts += 1

    def kill_everything(self) -> None:
        """Lose the whole layer with all that ran there, as when Ray's head dies; `apply` builds it anew."""
        self._applications.clear()

    def make_unavailable(self, message: str = "simulated outage") -> None:
        """Let every call raise WorkloadUnavailable until `make_available`."""
        self._plan.unavailable = message

    def make_available(self) -> None:
        """End an outage."""
        self._plan.unavailable = ""

    def fill_up(self, message: str = "simulated: no node has room; make some") -> None:
        """Let there be no room for anything new; an empty message makes room again."""
        self._plan.shortage = message

    def reject_next_write(self, message: str = "simulated rejection") -> None:
        """Let the next `apply` raise WorkloadRejected."""
        self._plan.rejection = message

    def lose_writes(self, count: int = 1) -> None:
        """Let the next writes be accepted and forgotten."""
        self._plan.lost_writes = count

    def _reachable(self) -> None:
        if self._plan.unavailable:
            raise WorkloadUnavailable(self._plan.unavailable)

    def _want(self, name: str, workload: Workload) -> bool:
        known = self._applications.get(name)
        if known is None or known.draining is not None:
            self._applications[name] = _Application(workload, [self._load_ticks] * workload.replicas)
            return True
        if known.workload == workload:
            return False
        more = workload.replicas - len(known.loading)
        known.loading = known.loading[: workload.replicas] + [self._load_ticks] * max(more, 0)
        known.workload = workload
        return True

    def _drop(self, name: str) -> bool:
        found = self._applications[name]
        if found.draining is not None:
            return False
        found.draining = self._drain_ticks
        if self._drain_ticks == 0:
            del self._applications[name]
        return True

    def _tick_one(self, name: str, application: _Application) -> None:
        if application.draining is not None:
            application.draining -= 1
            if application.draining <= 0:
                del self._applications[name]
            return
        if name in self._plan.failing and any(application.loading):
            application.failure = self._plan.failing[name]
            return
        application.failure = ""
        application.loading = [max(left - 1, 0) for left in application.loading]
        application.was_ready = application.was_ready or not any(application.loading)


def _status(name: str, application: _Application) -> WorkloadStatus:
    ready = sum(left == 0 for left in application.loading)
    if application.draining is not None:
        state = WorkloadState.STOPPING
    elif ready == len(application.loading):
        state = WorkloadState.READY
    elif application.failure and not ready and not application.was_ready:
        state = WorkloadState.FAILED
    else:
        state = WorkloadState.DEGRADED if application.was_ready else WorkloadState.STARTING
    message = "" if state is WorkloadState.READY else application.failure
    return WorkloadStatus(
        application=name, state=state, ready_replicas=ready, restarts=application.restarts, message=message
    )
