"""Evidence for ledgers, one line each: what a gateway would have sent."""

from __future__ import annotations

from typing import Any

from rollout.analysis.counter_signal import ArmCounters, CounterReading
from rollout.analysis.ledger import EvidenceIncrement, Ledger
from rollout.observation import SignalReading
from rollout.specs import parse_spec
from serving.outcomes import Event, Signal, Total
from serving.traffic import Role

CANARY, STABLE = "c" * 64, "5" * 64


def make(*signals: dict[str, Any], weight: int = 10, stable: str | None = STABLE, **spec: Any) -> Ledger:
    """A ledger of rollout `r`; without signals the defaults are watched."""
    body: dict[str, Any] = {"model": "chat", "version": "1.0.1"} | spec
    if signals:
        body["analysis"] = {"signals": list(signals)}
    ledger = Ledger("r", parse_spec(body), canary=CANARY, stable=stable)
    ledger.weight = weight
    return ledger


def event(sequence: int, signal: str = Signal.ERROR, arm: Role = Role.CANARY, **changes: Any) -> Event:
    base = {"sequence": sequence, "model": "chat", "rollout": "r", "signal": signal, "arm": arm, "weight": 10,
            "digest": CANARY if arm is Role.CANARY else STABLE, "admission": sequence,
            "admitted_at": float(sequence), "settled_at": sequence + 0.5}  # fmt: skip
    return Event(**(base | changes))


def total(digest: str = CANARY, settled: int = 0, events: dict[str, int] | None = None, **changes: Any) -> Total:
    role = Role.CANARY if digest == CANARY else Role.STABLE
    base = {"model": "chat", "rollout": "r", "digest": digest, "role": role, "weight": 10,
            "admitted": settled, "settled": settled, "settled_events": events or {}}  # fmt: skip
    return Total(**(base | changes))


def increment(*events: Event, gateway: str = "g", boot: str = "b", rollout: str = "r", **changes: Any):
    return EvidenceIncrement(rollout=rollout, gateway=gateway, boot=boot, events=events, **changes)


def counters(number: int, canary: tuple[int, int] | None, stable: tuple[int, int] | None, **changes: Any):
    """A reading of `prometheus/x`, each arm as (events, units)."""
    base = {"signal": "prometheus/x", "number": number, "at": float(number), "weight": 10,
            "canary": None if canary is None else ArmCounters(events=canary[0], units=canary[1]),
            "stable": None if stable is None else ArmCounters(events=stable[0], units=stable[1])}  # fmt: skip
    boot = changes.pop("boot", "b")
    reading = CounterReading(**(base | changes))
    return EvidenceIncrement(rollout="r", gateway="counters", boot=boot, counters=(reading,))


def read(ledger: Ledger, signal: str = Signal.ERROR) -> SignalReading:
    return next(r for r in ledger.readings() if r.name == signal)
