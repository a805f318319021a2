"""What the controller saw, as plain values: the whole input of a decision beside spec and status. Pure."""

from __future__ import annotations

import enum
from collections.abc import Mapping

from pydantic import Field

from rollout.workloads.base import WorkloadStatus
from serving.outcomes import SignalName
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

    All evidence is in natural logarithms. `log_e` is the comparison's against the canary, `threshold` the value at
    which it is taken back; `absolute_log_e` and `absolute_threshold` the same of the canary's own rate, for a
    revision that is watched without a stable beside it (both 0 where that is not judged). `forward_log_e` is the
    best of non-inferiority and objective on settled units, against `forward_threshold`; `objective_log_e` the
    objective's alone, None where the signal has none. `error` says why it could not be measured (`Verdict.ERROR`).
    """

    name: SignalName
    canary: Counts
    stable: Counts
    log_e: float
    threshold: float
    forward_log_e: float = 0.0
    forward_threshold: float = 0.0
    forward_by: str = ""
    objective_log_e: float | None = None
    absolute_log_e: float = 0.0
    absolute_threshold: float = 0.0
    gating: bool = True
    verdict: Verdict
    error: str = ""
    requests_to_decision: int | None = None


class Exposure(Frozen):
    """How many users the canary has met, and the fewest that could have shown the worst signal."""

    canary_requests: int = 0
    forced: int = 0
    """Canary requests that had no choice of arm, so carry no evidence: testers', pinned versions."""
    lower_bound: int | None = None
    first_admitted_at: float | None = None
    last_admitted_at: float | None = None


class SampleRatio(Frozen):
    """First sights of sessions against the weights: did each arm get its share? Blocks going forward, never rolls back.

    `canary` and `stable` count first sights at all weights together.
    """

    log_e: float
    threshold: float
    canary: int
    stable: int

    @property
    def mismatched(self) -> bool:
        """Whether something between admission and outcome drops units of one arm."""
        return self.log_e >= self.threshold


class Comparison(Frozen):
    """One signal's report of an A/B test: canary's rate over stable's, with an always-valid interval.

    `ratio_low` and `ratio_high` are None where the evidence bounds that side not at all.
    """

    name: SignalName
    canary: Counts
    stable: Counts
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None
    log_e: float


class Similarity(Frozen):
    """Shadow: how alike the canary's answers are to stable's, beside how alike stable's are to its own.

    Informs, never gates. Means over `pairs` and `baseline_pairs`; None without any.
    """

    pairs: int = 0
    to_stable: float | None = None
    baseline_pairs: int = 0
    baseline: float | None = None


class SmokeResult(Frozen):
    """What the smoke suite found when it was run against the candidate."""

    passed: bool
    ran: int
    failed: tuple[str, ...] = ()
    message: str = ""


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
    sample_ratio: SampleRatio | None = None
    comparisons: tuple[Comparison, ...] = ()
    similarity: Similarity | None = None
    sessions: int = 0
    """First sights of sessions with evidence, over both arms; a request without a session is its own."""
    pairs: int = 0
    """Mirrored pairs whose outcomes have settled."""
    smoke: SmokeResult | None = None

    def workload(self, application: str) -> WorkloadStatus | None:
        """The status of an application, or None when it does not exist or nothing is known."""
        return None if self.workloads is None else self.workloads.get(application)

    def answers(self, application: str) -> bool:
        """Whether every connected gateway has an endpoint of this application that it could use now."""
        return self.gateways > 0 and self.ready_endpoints.get(application, 0) > 0
