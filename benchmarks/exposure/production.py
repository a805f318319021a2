"""The same streams through the code that ships: event messages into the ledger, verdicts out of its readings."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.exposure.evidence import ALPHA, WEIGHT, Told
from rollout.analysis.ledger import EvidenceIncrement, Ledger
from rollout.observation import Verdict
from rollout.specs import RolloutSpec, parse_spec
from serving.outcomes import LEVELS, Event, Signal
from serving.traffic import Role

CANARY, STABLE = "c" * 64, "5" * 64

SIGNALS = {"error": Signal.ERROR, "latency": Signal.SLOW_TOKENS, "finding": "guardrail/toxicity"}
"""The simulation's signals by the product's names. Slow tokens are told at an answer's end, all levels at once."""

UNITS_AT_ONCE = 64


def spec_of(alpha: float = ALPHA) -> RolloutSpec:
    """A rollout that watches the three signals; half of alpha goes to errors, a quarter to each other."""
    signals = [{"name": str(name)} for name in SIGNALS.values()]
    return parse_spec({"model": "chat", "version": "1.0.1", "analysis": {"alpha": alpha, "signals": signals}})


def new_ledger(alpha: float = ALPHA, weight: float = WEIGHT) -> Ledger:
    """An empty ledger of such a rollout."""
    ledger = Ledger("bench", spec_of(alpha), canary=CANARY, stable=STABLE)
    ledger.weight = round(100 * weight)
    return ledger


def messages(rollout: dict[str, Told], weight: float = WEIGHT) -> Iterator[tuple[float, list[Event]]]:
    """Every unit with an event in the order of telling: when (s), and its events, one for each level exceeded."""
    units = [(float(u.settled_s[i]), name, i) for name, u in rollout.items() for i in range(len(u))]
    sequence = 0
    for at, name, i in sorted(units):
        unit = rollout[name]
        names = LEVELS if name == "latency" else ("",)
        events = []
        for level, there in zip(names, unit.levels[i], strict=True):
            if not there:
                continue
            sequence += 1
            events.append(
                Event(
                    sequence=sequence,
                    model="chat",
                    rollout="bench",
                    signal=SIGNALS[name],
                    level=level,
                    arm=Role.CANARY if unit.canary[i] else Role.STABLE,
                    digest=CANARY if unit.canary[i] else STABLE,
                    weight=round(100 * weight),
                    session=f"{unit.session[i]:x}" if unit.session[i] >= 0 else None,
                    request_index=int(unit.request_index[i]),
                    admission=int(unit.admission[i]),
                    admitted_at=float(unit.admitted_s[i]),
                    settled_at=at,
                )
            )
        yield at, events


def decision(rollout: dict[str, Told], alpha: float = ALPHA, weight: float = WEIGHT) -> tuple[str, float] | None:
    """The signal that the ledger finds failed first and when its deciding unit was told (s), or None.

    Verdicts are read after every 64 units; where one has failed, those 64 are told again one by one.
    """
    waiting = list(messages(rollout, weight))
    ledger = new_ledger(alpha, weight)
    for start in range(0, len(waiting), UNITS_AT_ONCE):
        some = waiting[start : start + UNITS_AT_ONCE]
        for _, events in some:
            ledger.add(_increment(events))
        if _failed(ledger) is None:
            continue
        again = new_ledger(alpha, weight)
        for _, events in waiting[:start]:
            again.add(_increment(events))
        for at, events in some:
            again.add(_increment(events))
            name = _failed(again)
            if name is not None:
                return name, at
    return None


def _increment(events: list[Event]) -> EvidenceIncrement:
    # Each unit settles what came before: a watermark that stands still would keep every event pending.
    return EvidenceIncrement(
        rollout="bench", gateway="gateway", boot="boot", events=tuple(events), settled_through=events[-1].admission
    )


def _failed(ledger: Ledger) -> str | None:
    names = {str(signal): name for name, signal in SIGNALS.items()}
    return next((names[str(r.name)] for r in ledger.readings() if r.verdict is Verdict.FAILED), None)
