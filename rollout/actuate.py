"""Make the world follow the statuses: traffic at once, workloads behind it. Idempotent, level-triggered.

Order matters in one direction only: traffic leaves a revision before its workload goes, and a workload answers
before traffic comes. The first is kept by `housekeeping` (a revision is removed from the desired set only when it
is drained), the second by `decide` (no weight before the gateways have seen an endpoint).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Generic, TypeVar

from rollout.actions import Deployed
from rollout.desired import desired_policies, desired_table, desired_workloads, workload_of
from rollout.errors import InsufficientCapacity, WorkloadRejected, WorkloadUnavailable
from rollout.status import ModelStatus
from rollout.traffic_routers.base import TrafficRouter
from rollout.workloads.base import CALM, Workload, WorkloadPort, WorkloadState, WorkloadStatus
from serving.traffic import ModelTraffic, TrafficTable

log = logging.getLogger(__name__)

CALM_S = 2.0
"""Interval of looking at the workloads while all of them are as they should be: each look costs Ray some work."""

RETRY_S = 2.0
"""Pause after a failed attempt to change the workloads."""


T = TypeVar("T")


class _PerStatus(Generic[T]):
    """What was derived from each model's status, derived anew only where the status is another one."""

    def __init__(self, derive: Callable[[ModelStatus], tuple[T, ...]]) -> None:
        self._derive = derive
        self._known: dict[str, tuple[ModelStatus, tuple[T, ...]]] = {}

    def all(self, statuses: Iterable[ModelStatus]) -> tuple[T, ...]:
        """Of all models, in the order given."""
        found: dict[str, tuple[ModelStatus, tuple[T, ...]]] = {}
        for status in statuses:
            known = self._known.get(status.model)
            fresh = known is not None and known[0] is status
            found[status.model] = known if known is not None and fresh else (status, self._derive(status))
        self._known = found
        return tuple(derived for _, each in found.values() for derived in each)


class TrafficActuator:
    """Sends a new table whenever the desired one differs from the last one sent."""

    def __init__(self, router: TrafficRouter) -> None:
        self._router = router
        self._traffic = _PerStatus(lambda status: desired_table((status,), fence=0, sequence=0, now=0.0).models)
        self._sent: tuple[ModelTraffic, ...] | None = None
        self._sequence = 0
        self._fence = 0

    async def follow(self, statuses: Iterable[ModelStatus], *, fence: int, now: float) -> None:
        """Push the table of these statuses, if it is not in force already."""
        if fence != self._fence:
            self._fence, self._sequence, self._sent = fence, 0, None
        statuses = tuple(statuses)
        models = tuple(sorted(self._traffic.all(statuses), key=lambda traffic: traffic.model))
        if models != self._sent:
            self._sequence += 1
            self._sent = models
            policies = desired_policies(statuses)  # named by digest in what was compared
            await self._router.set(
                TrafficTable(fence=fence, sequence=self._sequence, issued_at=now, models=models, policies=policies)
            )


class WorkloadActuator:
    """Applies the desired set of workloads and watches what becomes of it, in a task of its own."""

    def __init__(
        self,
        port: WorkloadPort,
        desired: Callable[[], Iterable[ModelStatus] | None],
        on_change: Callable[[], None],
        interval_s: float = 0.5,
    ) -> None:
        self._port = port
        self._desired = desired
        self._on_change = on_change
        self._interval_s = interval_s
        self._wanted = _PerStatus(
            lambda status: tuple((w.application, w) for w in desired_workloads((status,)))
        )  # fmt: skip
        self._wake = asyncio.Event()
        self.seen: Mapping[str, WorkloadStatus] | None = None
        """By application; None while it can't be observed."""
        self.message = ""
        """Why it can't be observed or changed, for people."""

    def unseen(self, applications: Iterable[str]) -> str:
        """Why nothing can be told of these applications; empty when something can."""
        if self.seen is None:
            return self.message
        found = (self.seen[a] for a in applications if a in self.seen)
        return next((w.message for w in found if w.state is WorkloadState.UNKNOWN), "")

    def wake(self) -> None:
        """The desired set may have changed."""
        self._wake.set()

    async def run(self) -> None:
        """Apply and observe, for ever."""
        while True:
            pause_s = await self.once()
            try:
                # Not `wait_for`, which in Python 3.11 may swallow a cancellation that comes with the wake-up.
                async with asyncio.timeout(pause_s):
                    await self._wake.wait()
            except TimeoutError:
                continue
            finally:
                self._wake.clear()

    async def check_room(self, deployed: Deployed) -> None:
        """Refuse to start what there is no room for. A layer that can't be asked refuses nothing.

        Raises:
            InsufficientCapacity: why there is none, and the way out.

        """
        try:
            shortage = await self._port.shortage(workload_of(deployed, deployed.replicas))
        except WorkloadUnavailable as error:
            log.warning("room for %s is not known: %s", deployed.application, error)
            return
        if shortage:
            raise InsufficientCapacity(shortage)

    async def once(self) -> float:
        """Apply and observe once; returns how long to wait before the next time, in seconds."""
        statuses = self._desired()
        if statuses is None:  # somebody else leads: look, don't touch
            return self._interval_s
        named = sorted(self._wanted.all(statuses), key=lambda pair: pair[0])
        wanted = tuple(workload for _, workload in named)
        try:
            await self._port.apply(wanted)
            self._set(await self._port.observe(), "")
        except WorkloadUnavailable as error:
            self._set(None, str(error))
            return RETRY_S
        except WorkloadRejected as error:
            if str(error) not in self.message:
                log.warning("the workload layer refused: %s", error)
            await self._look_after_refusal(wanted, str(error))
            return RETRY_S
        calm = self.seen is not None and set(self.seen) == {application for application, _ in named}
        calm = calm and all(w.state in CALM for w in (self.seen or {}).values())
        return CALM_S if calm else self._interval_s

    async def _look_after_refusal(self, wanted: tuple[Workload, ...], message: str) -> None:
        try:
            self._set(await self._port.observe(), message)
        except WorkloadUnavailable as error:
            self._set(None, f"{message}; {error}")
        log.debug("wanted were %s", [w.application for w in wanted])

    def _set(self, seen: Mapping[str, WorkloadStatus] | None, message: str) -> None:
        changed = seen != self.seen or message != self.message
        self.seen, self.message = seen, message
        if changed:
            self._on_change()
