"""Look at the world for one model: router, workloads, evidence. The shell that fills an `Observation`."""

from __future__ import annotations

from collections.abc import Mapping

from rollout.analysis.ledger import Ledger
from rollout.observation import Exposure, Observation
from rollout.traffic_routers.base import RouterView
from rollout.workloads.base import WorkloadStatus


def observe(
    view: RouterView, workloads: Mapping[str, WorkloadStatus] | None, ledger: Ledger | None, applications: set[str]
) -> Observation:
    """Put together what concerns one model.

    Args:
        view: what the router tells.
        workloads: what the workload layer tells; None when it could not be asked.
        ledger: the evidence of the active rollout, if there is one.
        applications: the model's own applications, so that a decision's record holds nothing of other models.

    """
    return Observation(
        workloads=None if workloads is None else {a: w for a, w in workloads.items() if a in applications},
        gateways=view.gateways,
        table_applied=view.applied,
        ready_endpoints={a: n for a, n in view.ready_endpoints.items() if a in applications},
        in_flight=view.in_flight,
        signals=ledger.readings() if ledger is not None else (),
        exposure=ledger.exposure() if ledger is not None else Exposure(),
    )
