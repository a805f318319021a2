"""The ledger against a naive model that recounts everything from the whole history, in any order of completion."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from serving.gateway.latency import MIN_COMPLETIONS, PROBABILITIES, WINDOW, LatencyWindow
from serving.gateway.ledger import RETIRED_KEPT_S, Ledger, Ticket
from serving.gateway.outbox import Outbox
from serving.outcomes import Event, Signal
from serving.traffic import Role

DIGESTS = {Role.STABLE: "a" * 64, Role.CANARY: "b" * 64}


@dataclass
class Admitted:
    model: str
    rollout: str
    role: Role
    weight: int
    evidence: bool
    ticket: Ticket
    events: tuple[str, ...] | None = None


class LedgerAgainstHistory(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger()
        self.history: list[Admitted] = []
        self.told: dict[tuple[str, str, str, int], object] = {}
        self.now = 0.0

    @rule(
        model=st.sampled_from(["m", "n"]),
        rollout=st.sampled_from(["", "r1", "r2"]),
        role=st.sampled_from(Role),
        weight=st.sampled_from([5, 50]),
        evidence=st.booleans(),
    )
    def admit(self, model: str, rollout: str, role: Role, weight: int, evidence: bool) -> None:
        self.now += 1
        ticket = self.ledger.admit(model, rollout, DIGESTS[role], role, weight, evidence=evidence, now=self.now)
        self.history.append(Admitted(model, rollout, role, weight, evidence, ticket))

    @rule(which=st.integers(0, 10**6), events=st.lists(st.sampled_from(["error", "slow-tokens:p50"]), max_size=2))
    def settle(self, which: int, events: list[str]) -> None:
        if self.history:
            entry = self.history[which % len(self.history)]  # also one that is settled already
            self.ledger.settle(entry.ticket, events, self.now)
            if entry.events is None:
                entry.events = tuple(events)

    @rule()
    def tell(self) -> None:
        for t in self.ledger.changed():
            self.told[(t.model, t.rollout, t.digest, t.weight)] = t

    @rule()
    def prune_what_lives(self) -> None:
        self.ledger.prune({(h.model, h.rollout) for h in self.history}, self.now + 10**6)

    @invariant()
    def counts_are_those_of_the_history(self) -> None:
        through: dict[str, int] = {}
        settled: set[int] = set()
        for model in ("m", "n"):
            numbered = [h for h in self.history if h.model == model and h.evidence]
            done = 0
            while done < len(numbered) and numbered[done].events is not None:
                done += 1
            if numbered:
                through[model] = done
            settled |= {id(h) for h in numbered[:done]}
        assert self.ledger.settled_through() == through
        told = dict(self.told)
        totals = {(t.model, t.rollout, t.digest, t.weight): t for t in self.ledger.changed(everything=True)}
        self.told = dict(totals)
        assert told.keys() <= totals.keys()
        for (model, rollout, digest, weight), total in totals.items():
            mine = [
                h for h in self.history
                if (h.model, h.rollout, DIGESTS[h.role], h.weight) == (model, rollout, digest, weight)
            ]  # fmt: skip
            assert total.admitted == sum(h.evidence for h in mine)
            assert total.forced == sum(not h.evidence for h in mine)
            assert total.in_flight == sum(h.events is None for h in mine)
            below = [h for h in mine if id(h) in settled]
            assert total.settled == len(below)
            names = [name for h in below for name in h.events or ()]
            assert total.settled_events == {name: names.count(name) for name in set(names)}


TestLedgerAgainstHistory = LedgerAgainstHistory.TestCase
TestLedgerAgainstHistory.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=40))
def test_only_changes_are_told_and_they_add_up(steps: list[tuple[bool, bool]]) -> None:
    """What a controller keeps from the changes alone equals everything."""
    ledger, kept, open_tickets = Ledger(), {}, []
    for canary, admit in steps:
        role = Role.CANARY if canary else Role.STABLE
        if admit or not open_tickets:
            open_tickets.append(ledger.admit("m", "r", DIGESTS[role], role, 10, evidence=True, now=0))
        else:
            ledger.settle(open_tickets.pop(0 if canary else -1), ["error"], 0)
        kept |= {t.digest: t for t in ledger.changed()}
    assert kept == {t.digest: t for t in ledger.changed(everything=True)}


def test_ended_rollouts_are_forgotten_once_settled_and_told() -> None:
    ledger = Ledger()
    ticket = ledger.admit("m", "r1", "a" * 64, Role.STABLE, 10, evidence=True, now=0)
    late = RETIRED_KEPT_S * 3
    ledger.changed()
    ledger.prune(set(), late)
    assert len(ledger) == 1  # still under way
    ledger.settle(ticket, [], 10)
    ledger.prune(set(), late)
    assert len(ledger) == 1  # not told
    ledger.changed()
    ledger.prune({("m", "r1")}, late)
    ledger.prune(set(), 10 + RETIRED_KEPT_S / 2)
    assert len(ledger) == 1  # named by the table; then too young
    ledger.prune(set(), late)
    assert len(ledger) == 0


@given(st.lists(st.floats(0, 100, allow_nan=False), max_size=WINDOW + 200))
def test_window_is_the_quantiles_of_the_last(values: list[float]) -> None:
    window = LatencyWindow()
    for value in values:
        window.add(value)
    last = sorted(values[-WINDOW:])
    if len(last) < MIN_COMPLETIONS:
        assert window.thresholds() is None
    else:
        for p, c in zip(PROBABILITIES, window.thresholds() or (), strict=True):
            assert sum(v <= c for v in last) >= p * len(last)
            assert sum(v < c for v in last) < p * len(last)


def event(sequence: int) -> Event:
    return Event(
        sequence=sequence, model="m", rollout="r", signal=Signal.ERROR, arm=Role.CANARY, digest="a" * 64, weight=10,
        admission=1, admitted_at=0, settled_at=0,
    )  # fmt: skip


@given(st.lists(st.one_of(st.just("event"), st.just("send"), st.just("lose"), st.integers(0, 30)), max_size=60))
def test_outbox_delivers_everything_in_order(steps: list[object]) -> None:
    """Whatever is lost or accepted late, the log ends up with every event, in order."""
    outbox, log, made, accepted = Outbox(capacity=1000), [], 0, 0
    for step in [*steps, "lose", "send"]:
        if step == "event":
            made += 1
            outbox.append(event(outbox.next_sequence()))
        elif step == "lose":
            outbox.reconnected()
        elif step == "send":
            for e in outbox.unsent(most=1000):
                outbox.sent(e.sequence)
                if e.sequence == len(log) + 1:
                    log.append(e.sequence)
                assert e.sequence <= len(log)
        else:
            accepted = max(accepted, min(int(str(step)), len(log)))
            outbox.accepted(accepted)
    assert log == list(range(1, made + 1))
    assert len(outbox) == made - accepted


def test_outbox_is_bounded() -> None:
    outbox = Outbox(capacity=3)
    for _ in range(5):
        outbox.append(event(outbox.next_sequence()))
    assert [e.sequence for e in outbox.unsent()] == [3, 4, 5]
    assert outbox.dropped == 2
