"""Mirrored pairs are counted exactly once in whatever order they end; draws, bodies, similarity keep their bounds."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from orjson import dumps, loads

from monitoring.quality import similarity
from serving.gateway.ledger import Ledger, PairTicket, Ticket
from serving.mirroring import PAIRED_WEIGHT, Pairing, Shown, discordances, drawn, mirrored_body
from serving.openai_protocol import Operation
from serving.outcomes import Cause, Signal
from serving.traffic import Role

STABLE, CANARY = "a" * 64, "b" * 64
EVENTS = st.lists(st.sampled_from(["error", "empty", "length-stop"]), max_size=2, unique=True)


# The two halves of a pair

WORDS = st.lists(
    st.one_of(st.tuples(st.sampled_from(Role), st.integers(0, 9)), st.just("give up")), max_size=12
)  # fmt: skip


@given(WORDS)
def test_a_pair_ends_once_and_with_the_first_word_of_each_half(words: list) -> None:
    pairing: Pairing[int] = Pairing()
    ends: list[str] = []
    for word in words:
        if word == "give up":
            ends += ["given up"] * pairing.give_up()
        else:
            ends += ["complete"] * pairing.tell(*word)
    told = words[: words.index("give up")] if "give up" in words else words
    first = {role: next((w for r, w in told if r is role), None) for role in Role}
    if None not in first.values():
        assert ends == ["complete"]
        assert (pairing.stable, pairing.canary) == (first[Role.STABLE], first[Role.CANARY])
    else:
        assert ends == ["given up"] * ("give up" in words)


# Pairs in the ledger, among other units


@dataclass
class Admitted:
    model: str
    ticket: PairTicket | Ticket
    outcome: object = "open"
    events: tuple[list[str], list[str]] = field(default_factory=lambda: ([], []))


class PairsAmongUnits(RuleBasedStateMachine):
    """Against a model that recounts everything from the history."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger()
        self.history: list[Admitted] = []
        self.now = 0.0

    def _open(self, which: int, pairs: bool) -> Admitted | None:
        found = [h for h in self.history if isinstance(h.ticket, PairTicket) is pairs]
        return found[which % len(found)] if found else None

    @rule(model=st.sampled_from(["m", "n"]), pair=st.booleans())
    def admit(self, model: str, pair: bool) -> None:
        self.now += 1
        if pair:
            ticket: PairTicket | Ticket = self.ledger.admit_pair(model, "r", STABLE, CANARY, self.now)
        else:
            ticket = self.ledger.admit(model, "r", STABLE, Role.STABLE, 100, evidence=True, now=self.now)
        self.history.append(Admitted(model, ticket))

    @rule(which=st.integers(0, 10**6), on_stable=EVENTS, on_canary=EVENTS)
    def settle_pair(self, which: int, on_stable: list[str], on_canary: list[str]) -> None:
        entry = self._open(which, pairs=True)  # perhaps one that has ended before
        if entry is not None:
            assert isinstance(entry.ticket, PairTicket)
            self.ledger.settle_pair(entry.ticket, (on_stable, on_canary), self.now)
            if entry.outcome == "open":
                entry.outcome, entry.events = "counted", (on_stable, on_canary)

    @rule(which=st.integers(0, 10**6))
    def give_up_pair(self, which: int) -> None:
        entry = self._open(which, pairs=True)
        if entry is not None:
            assert isinstance(entry.ticket, PairTicket)
            self.ledger.settle_pair(entry.ticket, None, self.now)
            entry.outcome = "given up" if entry.outcome == "open" else entry.outcome

    @rule(which=st.integers(0, 10**6))
    def settle_unit(self, which: int) -> None:
        entry = self._open(which, pairs=False)
        if entry is not None:
            assert isinstance(entry.ticket, Ticket)
            self.ledger.settle(entry.ticket, ["error"], self.now)
            entry.outcome = "counted"

    @invariant()
    def counts_are_those_of_the_history(self) -> None:
        totals = {(t.model, t.digest, t.weight): t for t in self.ledger.changed(everything=True)}
        for model in ("m", "n"):
            mine = [h for h in self.history if h.model == model]
            through = next((i for i, h in enumerate(mine) if h.outcome == "open"), len(mine))
            assert self.ledger.settled_through().get(model, 0) == through
            pairs = [h for h in mine if isinstance(h.ticket, PairTicket)]
            settled = [h for h in mine[:through] if isinstance(h.ticket, PairTicket) and h.outcome == "counted"]
            if not pairs:
                continue
            for half, digest in enumerate((STABLE, CANARY)):
                total = totals[(model, digest, PAIRED_WEIGHT)]
                assert total.in_flight == sum(h.outcome == "open" for h in pairs)
                assert total.admitted == sum(h.outcome == "counted" for h in pairs)
                assert total.forced == sum(h.outcome == "given up" for h in pairs)
                assert total.settled == len(settled)
                names = [name for h in settled for name in h.events[half]]
                assert total.settled_events == {name: names.count(name) for name in set(names)}
                counted = [h.ticket.admitted_at for h in pairs if h.outcome == "counted"]
                assert total.first_admitted_at == min(counted, default=None)
                assert total.last_admitted_at == max(counted, default=None)


TestPairsAmongUnits = PairsAmongUnits.TestCase
TestPairsAmongUnits.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1))))
def test_similarities_are_summed_where_they_are_read(values: list[tuple[bool, float]]) -> None:
    ledger = Ledger()
    ticket = ledger.admit_pair("m", "r", STABLE, CANARY, 0)
    for again, value in values:
        if again:
            ledger.compared_again("m", "r", STABLE, value, 0)
        else:
            ledger.compared(ticket, value)
    totals = {t.digest: t for t in ledger.changed()}
    baseline, pairs = [v for again, v in values if again], [v for again, v in values if not again]
    assert (totals[STABLE].baseline_n, totals[STABLE].baseline_sum) == (len(baseline), sum(baseline))
    assert (totals[CANARY].similarity_n, totals[CANARY].similarity_sum) == (len(pairs), sum(pairs))
    assert totals[STABLE].similarity_n == totals[CANARY].baseline_n == 0


# What a pair says

SHOWN = st.builds(
    Shown,
    st.lists(st.sampled_from(Signal), unique=True).map(tuple),
    st.sampled_from(Cause),
    st.one_of(st.none(), st.text(max_size=3)),
)


@given(SHOWN, SHOWN)
def test_an_event_needs_exactly_one_answer_and_the_arms_are_treated_alike(a: Shown, b: Shown) -> None:
    found = discordances(a, b)
    assert len({signal for _, signal, _ in found}) == len(found)
    for arm, signal, cause in found:
        shows, other = (b, a) if arm is Role.CANARY else (a, b)
        assert signal in shows.signals
        assert signal not in other.signals
        assert cause is shows.cause
    exchanged = {Role.STABLE: Role.CANARY, Role.CANARY: Role.STABLE}
    assert {(exchanged[arm], signal, cause) for arm, signal, cause in found} == set(discordances(b, a))
    assert discordances(a, a) == ()


# Draws and bodies


@given(st.floats(0, 1, exclude_max=True), st.integers(0, 100), st.floats(0, 1))
def test_draws_follow_their_odds(u: float, percent: int, share: float) -> None:
    role = drawn(u, percent, share)
    assert (role is not None) is (u * 100.0 < percent)
    assert role is not Role.STABLE or u * 100.0 < percent * share
    if percent < 100:
        assert drawn(u, percent + 1, share) is not None or role is None  # who is mirrored stays so as the rate grows


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
TOOL = st.fixed_dictionaries({"type": st.sampled_from(["function", "custom", "web_search", "mcp", "new"])}) | JSON
BODY = st.fixed_dictionaries(
    {"messages": JSON},
    optional={
        "store": st.sampled_from([True, False, None]),
        "background": st.sampled_from([True, False, None]),
        "previous_response_id": st.sampled_from(["resp_1", None]),
        "conversation": JSON,
        "tools": st.lists(TOOL, max_size=3) | JSON,
        "user": st.text(max_size=3),
    },
)


@given(st.sampled_from(Operation), BODY)
def test_a_copy_stores_nothing_runs_nothing_and_changes_nothing_else(operation: Operation, fields: dict) -> None:
    copied = mirrored_body(operation, dumps(fields), fields)
    if copied is None:
        return
    copy = loads(copied)
    assert operation in (Operation.CHAT, Operation.COMPLETIONS, Operation.RESPONSES)
    assert copy.get("store") is False if operation is Operation.RESPONSES else not copy.get("store")
    assert not copy.get("background")
    assert copy.get("previous_response_id") is None
    tools = copy.get("tools")
    for tool in tools if isinstance(tools, list) else ():
        assert tool.get("type", "function") in ("function", "custom")
    copy.pop("store", None)
    assert copy == {name: value for name, value in fields.items() if name != "store"}


# Similarity


@given(st.text(max_size=60), st.text(max_size=60))
@example("", "")
@example("ﷺ" * 3000, "ﷺ" * 2999)
@example("x" * 5000, "北" * 5000)
@example("a", "a\x03")
def test_similarity_is_symmetric_bounded_and_1_for_equal_texts(a: str, b: str) -> None:
    value = similarity(a, b)
    assert 0.0 <= value <= 1.0
    assert value == similarity(b, a)
    assert similarity(a, a) == 1.0


@given(st.text(alphabet="abcdef ", min_size=3, max_size=40), st.text(alphabet="uvwxyz", min_size=1, max_size=40))
def test_similarity_falls_as_strange_text_is_added(text: str, strange: str) -> None:
    assert similarity(text, text + strange) <= 1.0
    assert similarity(text, text + strange + strange) <= similarity(text, text + strange) + 1e-9 or not text.strip()
    assert similarity(text, text + strange) < 1.0
