"""A model's status as the control plane tells it. Pure. The names are interface.md's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, assert_never

from monitoring.measurements import RolloutMeasurement, SignalMeasurement
from rollout.actions import Trigger
from rollout.decision import Decision
from rollout.event_log.base import Entry
from rollout.observation import Observation, SignalReading
from rollout.specs import GATES
from rollout.status import ModelStatus, Phase, RolloutState, kept_versions
from rollout.strategy_specs import AbStrategy, AnyStrategy, BlueGreenStrategy, CanaryStrategy, ShadowStrategy
from rollout.wording import describe, describe_effect

SECRETS = frozenset({"salt"})
"""What is in the log and must not leave the controller: with a rollout's salt a client could aim at the canary."""


def report(status: ModelStatus, seen: Observation, waiting: Decision | None) -> dict[str, Any]:
    """The status document of one model."""
    rollout = status.rollout
    active = rollout if rollout is not None and rollout.active else None
    streams = seen.in_flight or {}
    return {
        "model": status.model,
        "phase": status.phase,
        "strategy": rollout.spec.strategy.name if rollout is not None else None,
        "stable": status.stable.version if status.stable is not None else None,
        "canary": active.target.version if active is not None else None,
        "weight": active.weight if active is not None else 0,
        "step": active.step + 1 if active is not None else 0,
        "steps": _steps(active.spec.strategy.chosen) if active is not None else [],
        "stage": rollout.stage if rollout is not None else None,
        "reason": status.reason,
        "cause": waiting.cause if waiting is not None else None,
        "waiting_for": waiting.reason if waiting is not None else "",
        "observed_weight": active.weight if active is not None and seen.table_applied else None,
        "streams_in_flight": {d.version: streams.get(d.digest, 0) for d in status.running()},
        "rollout": rollout.id if rollout is not None else None,
        "target": rollout.target.version if rollout is not None else None,
        "started_at": rollout.started_at if rollout is not None else None,
        "finished_at": rollout.finished_at if rollout is not None else None,
        "updated_at": status.updated_at,
        "actor": status.actor,
        **_evidence(rollout, seen),
        **_ways_back(status, seen),
    }


def _evidence(rollout: RolloutState | None, seen: Observation) -> dict[str, Any]:
    """What is known of the new version, by strategy; None where it does not apply or was not measured yet."""
    ratio = seen.sample_ratio
    return {
        "signals": [{**s.model_dump(mode="json"), "told": describe(s)} for s in seen.signals],
        "exposure": seen.exposure.model_dump(mode="json"),
        "sample_ratio": {**ratio.model_dump(mode="json"), "mismatched": ratio.mismatched}
        if ratio is not None
        else None,
        "sessions": seen.sessions,
        "comparisons": [{**c.model_dump(mode="json"), "told": describe_effect(c)} for c in seen.comparisons],
        "pairs": seen.pairs,
        "mirror_percent": rollout.mirror_percent if rollout is not None else 0,
        "similarity": seen.similarity.model_dump(mode="json") if seen.similarity is not None else None,
        "smoke": seen.smoke.model_dump(mode="json") if seen.smoke is not None else None,
        "watch": {"until": rollout.watch_until} if rollout is not None and rollout.watched else None,
        "awaits": "promote" if rollout is not None and rollout.active and rollout.at_end else None,
    }


def _ways_back(status: ModelStatus, seen: Observation) -> dict[str, Any]:
    """What is being left, kept, drained and held back."""
    streams, leaving = seen.in_flight or {}, status.leaving
    return {
        "leaving": {"version": leaving.deployed.version, "weight": leaving.weight, "since": leaving.since}
        if leaving is not None
        else None,
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
        "kept": list(kept_versions(status)),
        "quarantine": dict(status.quarantine),
        "quarantined_versions": dict(status.condemned),
        "revisions": {d.version: d.digest for d in status.running()},
    }


def _steps(plan: AnyStrategy) -> list[dict[str, Any]]:
    """The weights that a strategy goes through, in percent, each with its least duration in seconds."""
    match plan:
        case CanaryStrategy():
            steps = [{"weight": s.weight, "duration_s": s.duration} for s in plan.steps]
            if not plan.soaks:
                return steps
            parts, last = plan.holdbacks, [s for s in steps if s["weight"] == 100]
            soak = [{"weight": 100 - p, "duration_s": plan.soak / len(parts), "soak": True} for p in parts]
            return [s for s in steps if s["weight"] < 100] + soak + last
        case BlueGreenStrategy():
            return [{"weight": 0, "duration_s": plan.preview_duration}, {"weight": 100, "duration_s": 0.0}]
        case ShadowStrategy():
            return [{"weight": 0, "duration_s": plan.duration, "mirror_percent": plan.mirror_percent}]
        case AbStrategy():
            return [{"weight": plan.weight, "duration_s": 0.0, "sessions": plan.sessions}]
        case _:
            assert_never(plan)


def step_count(plan: AnyStrategy) -> int:
    """How many steps a strategy goes through, as its reasons count them: neither the soak nor the end of it."""
    return sum(step["weight"] < 100 and not step.get("soak") for step in _steps(plan))


def measurement(
    status: ModelStatus, seen: Observation, waiting: Decision | None = None, taken_back: Trigger | None = None
) -> RolloutMeasurement:
    """A model's rollout as Prometheus is told. What a rollback could not move yet is the weight of its version.

    Evidence is told while it is gathered, and of a version that was taken back until the next rollout begins: whoever
    comes after a rollback asks what spoke against it.

    Args:
        status: the model's.
        seen: what is observed of it.
        waiting: what the rollout waits for.
        taken_back: why the last one was taken back.
    """
    last = status.rollout
    active = last if last is not None and last.active else None
    carrying, percent = (last.target if last is not None else None), (active.weight if active is not None else 0)
    if status.leaving is not None:
        carrying, percent = status.leaving.deployed, status.leaving.weight
    told = last is not None and (last.active or last.watched or status.phase is Phase.DEGRADED)
    cause = waiting.cause.value if waiting is not None and last is not None and (last.active or last.watched) else ""
    return RolloutMeasurement(
        model=status.model,
        version=carrying.version if carrying is not None else "",
        phase=status.phase.value,
        phases=tuple(p.value for p in Phase),
        desired_weight_ratio=percent / 100.0,
        observed_weight_ratio=percent / 100.0 if seen.table_applied else None,
        signals=tuple(_measured(s) for s in seen.signals) if told else (),
        namespace=status.namespace,
        stable=status.stable.version if status.stable is not None else "",
        strategy=last.spec.strategy.name if last is not None else "",
        stage=last.stage.value if last is not None else "",
        cause=taken_back.value if taken_back is not None else cause,
        step=active.step + 1 if active is not None else 0,
        steps=step_count(active.spec.strategy.chosen) if active is not None else 0,
        exposed=seen.exposure.canary_requests if told else None,
        lower_bound=seen.exposure.lower_bound if told else None,
        started_at=last.started_at if last is not None else None,
        finished_at=last.finished_at if last is not None else None,
    )


def _measured(signal: SignalReading) -> SignalMeasurement:
    """A signal's evidence; of the two that can take a watched version back, the one that is nearer to do so."""
    log_e, threshold = signal.log_e, signal.threshold
    if signal.absolute_threshold > 0 and (
        threshold <= 0 or signal.absolute_log_e / signal.absolute_threshold > log_e / threshold
    ):
        log_e, threshold = signal.absolute_log_e, signal.absolute_threshold
    gate = signal.name in GATES
    return SignalMeasurement(
        name=signal.name,
        verdict=signal.verdict.value,
        log_e=0.0 if gate else log_e,
        threshold=0.0 if gate else threshold,
        forward_log_e=signal.forward_log_e,
        forward_threshold=0.0 if gate else signal.forward_threshold,
        requests_to_decision=signal.requests_to_decision,
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
