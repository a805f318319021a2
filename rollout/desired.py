"""From status to what the world should look like. Pure, and a function of the statuses alone.

The controller never says "change this"; it says "this is how it should be", again and again, so that a crash
between any two steps costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

from rollout.actions import Deployed
from rollout.status import ModelStatus
from rollout.workloads.base import Workload
from serving.traffic import ModelTraffic, RevisionTraffic, Role, TrafficTable


def desired_table(statuses: Iterable[ModelStatus], *, fence: int, sequence: int, now: float) -> TrafficTable:
    """The traffic table for these statuses, at this generation."""
    models = tuple(t for t in (_traffic(s) for s in sorted(statuses, key=lambda s: s.model)) if t is not None)
    return TrafficTable(fence=fence, sequence=sequence, issued_at=now, models=models)


def desired_workloads(statuses: Iterable[ModelStatus]) -> tuple[Workload, ...]:
    """Every workload that should exist, sorted by application so that an unchanged set compares equal."""
    wanted = [
        Workload(revision=d.revision, replicas=d.replicas, graceful_shutdown_s=30.0)
        for status in statuses
        for d in status.running()
    ]
    return tuple(sorted(wanted, key=lambda w: w.application))


def _traffic(status: ModelStatus) -> ModelTraffic | None:
    canary, rollout = status.canary, status.rollout
    revisions: list[RevisionTraffic] = []
    weight = rollout.weight if rollout is not None and canary is not None else 0
    if status.stable is not None:
        revisions.append(_entry(status.stable, Role.STABLE, 100 - weight))
        if canary is not None:
            revisions.append(_entry(canary, Role.CANARY, weight))
    elif canary is not None:
        # A first deployment has nobody to share with. Gateways answer 503 until it has an endpoint.
        revisions.append(_entry(canary, Role.STABLE, 100))
    kept = {r.digest for r in revisions}
    drains = [r.deployed for r in status.retiring]
    if status.previous is not None:
        drains.append(status.previous)
    if not revisions and not drains:
        return None
    return ModelTraffic(
        model=status.model,
        salt=rollout.salt if rollout is not None else "",
        rollout=rollout.id if rollout is not None and rollout.has_traffic else None,
        revisions=tuple(revisions),
        drains=tuple(_entry(d, Role.CANARY, 0) for d in drains if d.digest not in kept),
    )


def _entry(deployed: Deployed, role: Role, weight: int) -> RevisionTraffic:
    return RevisionTraffic(
        digest=deployed.digest,
        version=deployed.version,
        role=role,
        weight=weight,
        application=deployed.application,
    )
