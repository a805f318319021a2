"""Whatever the network does to deliveries, each thing is booked once, and the same log gives the same readings."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from rollout.analysis.ledger import EvidenceIncrement, Ledger
from serving.outcomes import Signal
from serving.traffic import Role
from tests.unit.rollout.evidence import STABLE, event, increment, make, total

SIGNALS = ({"name": "error"}, {"name": "length-stop"}, {"name": "slow-tokens"}, {"name": "score/nll"})


@st.composite
def deliveries(draw: st.DrawFn) -> list[EvidenceIncrement]:
    """What two gateways send, each in its own order: events with growing numbers, totals that only grow."""
    found: list[EvidenceIncrement] = []
    for gateway in ("a", "b"):
        admitted = [0, 0]
        failed = [0, 0]
        for sequence in range(1, draw(st.integers(0, 12)) + 1):
            arm = draw(st.sampled_from(Role))
            name = draw(st.sampled_from([Signal.ERROR, Signal.LENGTH_STOP, Signal.SLOW_TOKENS, "score/nll"]))
            session = draw(st.sampled_from([None, "s1", "s2", "s3"]))
            own = {"level": "p95"} if name == Signal.SLOW_TOKENS else {}
            own |= {"score": draw(st.floats(0, 1))} if name == "score/nll" else {}
            if session is not None:
                session = f"{gateway}{session}"  # a session that two gateways see is first where it is told first
            one = event(sequence, name, arm, session=session, request_index=draw(st.integers(1, 9)), **own)
            admitted[arm is Role.STABLE] += draw(st.integers(1, 30))
            failed[arm is Role.STABLE] += name == Signal.ERROR
            rows = tuple(
                total(settled=n, events={"error": k}, first_sights=n) if not stable
                else total(STABLE, settled=n, events={"error": k}, first_sights=n)
                for stable, (n, k) in enumerate(zip(admitted, failed, strict=True))
            )  # fmt: skip
            found.append(increment(one, gateway=gateway))
            found.append(increment(totals=rows, settled_through=sequence, gateway=gateway))
    return found


def fold(increments: list[EvidenceIncrement]) -> Ledger:
    ledger = make(*SIGNALS)
    for one in increments:
        ledger.add(one)
    return ledger


def outcome(ledger: Ledger) -> tuple[object, ...]:
    return ledger.readings(), ledger.exposure(), ledger.sample_ratio(), ledger.sessions


@given(sent=deliveries())
def test_the_same_log_gives_the_same_readings(sent):
    assert outcome(fold(sent)) == outcome(fold(sent))


@given(sent=deliveries())
def test_what_survived_the_log_as_json_gives_the_same_readings(sent):
    stored = [EvidenceIncrement.model_validate_json(s.model_dump_json(exclude_defaults=True)) for s in sent]
    assert outcome(fold(stored)) == outcome(fold(sent))


@given(sent=deliveries(), seed=st.integers(0, 1_000))
def test_doubled_and_late_deliveries_change_nothing(sent, seed):
    rng = random.Random(seed)
    received: list[EvidenceIncrement] = []
    for one in sent:
        received.append(one)
        received += rng.choices(received, k=rng.randrange(3))
    assert outcome(fold(received)) == outcome(fold(sent))


@given(sent=deliveries(), seed=st.integers(0, 1_000))
@settings(max_examples=60)
def test_how_gateways_interleave_changes_no_count_and_no_forward_evidence(sent, seed):
    """Rollback evidence depends on the order of events (its cap and its restarts do); what lets go forward does not."""
    rng = random.Random(seed)
    queues = {name: [s for s in sent if s.gateway == name] for name in ("a", "b")}
    received: list[EvidenceIncrement] = []
    while any(queues.values()):
        received.append(queues[rng.choice([n for n, q in queues.items() if q])].pop(0))
    here, there = fold(sent), fold(received)
    assert here.exposure().canary_requests == there.exposure().canary_requests
    assert here.sessions == there.sessions
    for one, other in zip(here.readings(), there.readings(), strict=True):
        if one.name in (Signal.ERROR, Signal.LENGTH_STOP):
            assert (one.canary, one.stable) == (other.canary, other.stable)
            assert abs(one.forward_log_e - other.forward_log_e) < 1e-9
            assert one.objective_log_e == other.objective_log_e


@given(sent=deliveries())
def test_events_without_totals_and_totals_without_events_are_booked_alike_in_any_mix(sent):
    """A report may carry both at once: the log may have put them together."""
    merged: list[EvidenceIncrement] = []
    for events, totals in zip(sent[::2], sent[1::2], strict=True):
        merged.append(events.model_copy(update={"totals": totals.totals, "settled_through": totals.settled_through}))
    assert outcome(fold(merged)) == outcome(fold(sent))
