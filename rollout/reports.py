"""A model's status as the control plane tells it. Pure. The names are interface.md's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monitoring.measurements import RolloutMeasurement
from rollout.decide import Decision
from rollout.event_log.base import Entry
from rollout.observation import Observation
from rollout.status import ModelStatus, Phase

SECRETS = frozenset({"salt"})
"""What is in the log and must not leave the controller: with a rollout's salt a client could aim at the canary."""


def report(status: ModelStatus, seen: Observation, waiting: Decision | None) -> dict[str, Any]:
    """The status document of one model."""
    rollout = status.rollout
    active = rollout if rollout is not None and rollout.active else None
    steps = active.spec.strategy.canary.steps if active is not None else ()
    streams = seen.in_flight or {}
    return {
        "model": status.model,
        "phase": status.phase,
        "strategy": "canary",
        "stable": status.stable.version if status.stable is not None else None,
        "canary": active.target.version if active is not None else None,
        "weight": active.weight if active is not None else 0,
        "step": active.step + 1 if active is not None else 0,
        "steps": [{"weight": s.weight, "duration_s": s.duration} for s in steps],
        "stage": rollout.stage if rollout is not None else None,
        "reason": status.reason,
        "cause": waiting.cause if waiting is not None else None,
        "waiting_for": waiting.reason if waiting is not None else "",
        "observed_weight": active.weight if active is not None and seen.table_applied else None,
        "streams_in_flight": {d.version: streams.get(d.digest, 0) for d in status.running()},
        "signals": [s.model_dump(mode="json") for s in seen.signals],
        "exposure": seen.exposure.model_dump(mode="json"),
        "rollout": rollout.id if rollout is not None else None,
        "target": rollout.target.version if rollout is not None else None,
        "started_at": rollout.started_at if rollout is not None else None,
        "finished_at": rollout.finished_at if rollout is not None else None,
        "updated_at": status.updated_at,
        "actor": status.actor,
        "previous": status.previous.version if status.previous is not None else None,
        "warm_until": status.warm_until,
        "retiring": [
            {
                "version": r.deployed.version,
                "since": r.since,
                "deadline_at": r.deadline_at,
                "in_flight": streams.get(r.deployed.digest) if seen.in_flight is not None else None,
            }
            for r in status.retiring
        ],
        "quarantine": dict(status.quarantine),
        "revisions": {d.version: d.digest for d in status.running()},
    }


def measurement(status: ModelStatus, seen: Observation) -> RolloutMeasurement:
    """A model's rollout as Prometheus is told."""
    rollout = status.rollout if status.rollout is not None and status.rollout.active else None
    weight = rollout.weight / 100.0 if rollout is not None else 0.0
    return RolloutMeasurement(
        model=status.model,
        version=rollout.target.version if rollout is not None else "",
        phase=status.phase.value,
        phases=tuple(p.value for p in Phase),
        desired_weight_ratio=weight,
        observed_weight_ratio=weight if seen.table_applied else None,
        signals=tuple((s.name.value, s.log_e, s.threshold) for s in seen.signals) if rollout is not None else (),
    )


def history_entry(entry: Entry) -> dict[str, Any]:
    """One entry of the log, without secrets, flattened for people and scripts."""
    payload = _without_secrets(entry.payload)
    decision = payload.get("decision") or {}
    return {
        "id": entry.id,
        "at": entry.at,
        "kind": entry.kind,
        "actor": entry.actor,
        "cause": decision.get("cause"),
        "reason": decision.get("reason", ""),
        "actions": decision.get("actions", []),
        "observation": payload.get("observation"),
        "payload": {k: v for k, v in payload.items() if k not in ("decision", "observation")},
    }


def _without_secrets(value: Any) -> Any:  # noqa: ANN401 - JSON of any shape
    if isinstance(value, Mapping):
        return {k: _without_secrets(v) for k, v in value.items() if k not in SECRETS}
    if isinstance(value, list | tuple):
        return [_without_secrets(v) for v in value]
    return value
