"""What the controller saw, as plain values: the whole input of a decision beside spec and status. Pure."""

from __future__ import annotations

import enum
from collections.abc import Mapping

from pydantic import Field

from rollout.workloads.base import WorkloadStatus
from serving.outcomes import Signal
from serving.specs import Frozen


class Verdict(enum.StrEnum):
    """The state of an analysis, in Argo Rollouts' words. Error (could not measure) is not Failed."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUCCESSFUL = "Successful"
    FAILED = "Failed"
    ERROR = "Error"
    INCONCLUSIVE = "Inconclusive"


class Counts(Frozen):
    """Events among units of one arm. `n` counts units with evidence; None where only events are known."""

    events: int = 0
    n: int = 0


class SignalReading(Frozen):
    """One signal, as judged now.

    `log_e` is the logarithm of the rollback test's evidence, `threshold` the value it must reach (both natural
    logarithms). `forward_log_e` is the best of non-inferiority and objective on settled units, against
    `forward_threshold`.
    """

    name: Signal
    canary: Counts
    stable: Counts
    log_e: float
    threshold: float
    forward_log_e: float = 0.0
    forward_threshold: float = 0.0
    forward_by: str = ""
    gating: bool = True
    verdict: Verdict
    requests_to_decision: int | None = None


class Exposure(Frozen):
    """How many users the canary has met, and the fewest that could have shown the worst signal."""

    canary_requests: int = 0
    lower_bound: int | None = None
    first_admitted_at: float | None = None
    last_admitted_at: float | None = None


class Observation(Frozen):
    """One look at the world. `workloads` is None when it could not be looked at, which is not the same as bad."""

    workloads: Mapping[str, WorkloadStatus] | None = None
    """By application."""
    gateways: int = 0
    """Gateways connected now."""
    table_applied: bool = False
    """Every connected gateway has acknowledged the newest table, and there is at least one."""
    ready_endpoints: Mapping[str, int] = Field(default_factory=dict)
    """By application: the fewest endpoints that any connected gateway could use."""
    in_flight: Mapping[str, int] | None = None
    """By digest: answers under way over all gateways; None when no gateway told."""
    signals: tuple[SignalReading, ...] = ()
    exposure: Exposure = Exposure()

    def workload(self, application: str) -> WorkloadStatus | None:
        """The status of an application, or None when it does not exist or nothing is known."""
        return None if self.workloads is None else self.workloads.get(application)

    def answers(self, application: str) -> bool:
        """Whether every connected gateway has an endpoint of this application that it could use now."""
        return self.gateways > 0 and self.ready_endpoints.get(application, 0) > 0
