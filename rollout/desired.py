"""From status to what the world should look like. Pure, and a function of the statuses alone.

The controller never says "change this"; it says "this is how it should be", again and again, so that a crash
between any two steps costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

from rollout.actions import Deployed
from rollout.capacity import wanted_replicas
from rollout.status import ModelStatus, RolloutState, Stage
from rollout.strategy_specs import BlueGreenStrategy, CanaryStrategy
from rollout.workloads.base import Workload
from serving.specs import digest_of_text
from serving.traffic import ModelTraffic, RevisionTraffic, Role, Tester, TrafficTable


def desired_table(statuses: Iterable[ModelStatus], *, fence: int, sequence: int, now: float) -> TrafficTable:
    """The traffic table for these statuses, at this generation."""
    statuses = sorted(statuses, key=lambda s: s.model)
    models = tuple(t for t in map(_traffic, statuses) if t is not None)
    policies = desired_policies(statuses)
    return TrafficTable(fence=fence, sequence=sequence, issued_at=now, models=models, policies=policies)


def desired_policies(statuses: Iterable[ModelStatus]) -> dict[str, str]:
    """The text of every guardrail policy that these statuses' traffic names, by its SHA-256."""
    texts: set[str] = set()
    for status in statuses:
        texts |= {d.policy for d in status.running()}
        texts.add(status.rollout.judge if status.rollout is not None else "")
    return {digest_of_text(text): text for text in sorted(texts - {""})}


def desired_workloads(statuses: Iterable[ModelStatus]) -> tuple[Workload, ...]:
    """Every workload that should exist, sorted by application so that an unchanged set compares equal."""
    wanted: list[Workload] = []
    for status in statuses:
        replicas = wanted_replicas(status)
        wanted += [workload_of(d, replicas[d.digest]) for d in status.running()]
    return tuple(sorted(wanted, key=lambda w: w.application))


def workload_of(deployed: Deployed, replicas: int) -> Workload:
    """A revision as the workload layer is asked for it."""
    return Workload(
        revision=deployed.revision,
        replicas=replicas,
        graceful_shutdown_s=30.0,
        engine=deployed.engine,
        namespace=deployed.namespace,
        longest_stream_s=deployed.longest_stream_s,
    )


def _traffic(status: ModelStatus) -> ModelTraffic | None:
    revisions = _revisions(status)
    kept = {r.digest for r in revisions}
    if not revisions and not status.running():
        return None
    rollout = status.rollout
    if rollout is None:
        return ModelTraffic(model=status.model, salt="", revisions=revisions, namespace=status.namespace)
    mirroring = rollout.stage is Stage.MIRRORING
    return ModelTraffic(
        model=status.model,
        salt=rollout.salt,
        rollout=rollout.id if rollout.judged or rollout.watched else None,
        revisions=revisions,
        namespace=status.namespace,
        # Whatever else runs is known to the gateways, so that they see its endpoints and end its answers.
        drains=tuple(_entry(d, Role.CANARY, 0) for d in status.running() if d.digest not in kept),
        mirror_percent=rollout.mirror_percent if mirroring else 0,
        # Before a switch it is stable that is watched, as the baseline; after it, the new stable.
        watch=rollout.stage is Stage.PREVIEWING or rollout.watched,
        max_slowdown=rollout.spec.analysis.max_slowdown,
        testers=_testers(rollout),
        scores=tuple(
            s.name.removeprefix("score/") for s in rollout.spec.analysis.signals if s.name.startswith("score/")
        ),
        # Already while the canary starts: gateways load what the judge needs before there is something to judge.
        judge=digest_of_text(rollout.judge) if rollout.judge and (rollout.active or rollout.watched) else "",
    )


def _revisions(status: ModelStatus) -> tuple[RevisionTraffic, ...]:
    """Who gets new requests: stable, and beside it either what is leaving or the canary."""
    canary, rollout, leaving = status.canary, status.rollout, status.leaving
    if status.stable is None:
        # A first deployment has nobody to share with. Gateways answer 503 until it has an endpoint.
        return (_entry(canary, Role.STABLE, 100),) if canary is not None else ()
    if leaving is not None:
        stays = _entry(status.stable, Role.STABLE, 100 - leaving.weight)
        return (stays, _entry(leaving.deployed, Role.CANARY, leaving.weight))
    weight = rollout.weight if rollout is not None and canary is not None else 0
    stable = _entry(status.stable, Role.STABLE, 100 - weight)
    return (stable, _entry(canary, Role.CANARY, weight)) if canary is not None else (stable,)


def _testers(rollout: RolloutState) -> tuple[Tester, ...]:
    """Whose requests go to the canary now: nobody's before it is ready or after it was taken back."""
    plan = rollout.spec.strategy.chosen
    if rollout.judged and isinstance(plan, CanaryStrategy | BlueGreenStrategy):
        return tuple(t.tester() for t in plan.testers)
    return ()


def _entry(deployed: Deployed, role: Role, weight: int) -> RevisionTraffic:
    return RevisionTraffic(
        digest=deployed.digest,
        version=deployed.version,
        role=role,
        weight=weight,
        application=deployed.application,
        endpoints=deployed.endpoints,
        policy=deployed.revision.policy_sha256,
    )
