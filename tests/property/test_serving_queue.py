"""The queue against a naive model: bounds hold, nobody is lost, order is just, nobody starves."""

from __future__ import annotations

import itertools
import tracemalloc

from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from serving.keys import Priority
from serving.queueing import WEIGHTS, ModelQueue, Moved, Place, Refusal, Ticket

MOST, MOST_TOKENS, LONGEST = 6, 300, 100
FLOWS = ("a", "b", "c", "d")
COSTS = st.integers(1, LONGEST)


class QueueAgainstModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.queue = ModelQueue(2, MOST, MOST_TOKENS)
        self.now = 0.0
        self.waiting: list[Ticket] = []
        self.running: list[Ticket] = []
        self.mirrored = 0
        self.shrunk_to = 0

    def follow(self, moved: Moved) -> None:
        """Take over what the queue says it did, and see that it may have done so."""
        for ticket, refusal in moved.refused:
            assert ticket.place is Place.GONE
            assert refusal is not Refusal.DEADLINE or ticket.start_by <= self.now
            self.waiting.remove(ticket)
        for ticket in moved.started:
            assert ticket.place is Place.RUNNING
            assert ticket.start_by > self.now, "started too late"
            first = next(t for t in self.waiting if (t.flow, t.priority) == (ticket.flow, ticket.priority))
            assert first is ticket or first.start_by <= self.now, "a key's own requests changed their order"
            self.waiting.remove(ticket)
            self.running.append(ticket)

    @rule(flow=st.sampled_from(FLOWS), priority=st.sampled_from(Priority), cost=COSTS, patience=st.floats(0, 20))
    def ask(self, flow: str, priority: Priority, cost: int, patience: float) -> None:
        ticket = self.queue.start_at_once(flow, priority, cost, self.now)
        if ticket is not None:
            assert not self.waiting, "overtook those who wait"
            self.running.append(ticket)
            return
        before = list(self.waiting)
        result, moved = self.queue.wait(flow, priority, cost, self.now + patience, self.now)
        for victim, _ in moved.refused:
            ranks = list(WEIGHTS)
            assert ranks.index(victim.priority) >= ranks.index(priority), "gave way to a lower class"
            if victim.priority is priority:
                mine, theirs = (
                    sum(t.cost for t in before if t.priority is priority and t.flow == f) for f in (flow, victim.flow)
                )
                assert mine + cost < theirs, "took the place of somebody who has no more than it"
        self.follow(moved)
        if isinstance(result, Ticket):
            assert result.place is Place.WAITING
            self.waiting.append(result)
        else:
            assert self.waiting == before, "somebody went for nobody"

    @rule(cost=COSTS)
    def mirror(self, cost: int) -> None:
        ticket = self.queue.start_mirrored(cost, self.now)
        if ticket is not None:
            assert not self.waiting
            self.running.append(ticket)

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 1000), took_s=st.floats(0, 5), served=st.booleans())
    def end(self, which: int, took_s: float, served: bool) -> None:
        self.now += took_s
        self.follow(self.queue.finish(self.running.pop(which % len(self.running)), self.now, served=served))

    @precondition(lambda self: self.waiting)
    @rule(which=st.integers(0, 1000))
    def client_goes(self, which: int) -> None:
        ticket = self.waiting.pop(which % len(self.waiting))
        self.queue.leave(ticket)
        self.queue.leave(ticket)

    @rule(flow=st.sampled_from(FLOWS))
    def key_is_revoked(self, flow: str) -> None:
        gone = self.queue.leave_all(flow)
        assert set(gone) == {t for t in self.waiting if t.flow == flow}
        self.waiting = [t for t in self.waiting if t.flow != flow]

    @rule(bound=st.integers(1, 4))
    def endpoints_change(self, bound: int) -> None:
        self.follow(self.queue.resize(bound, self.now))

    @rule(passed_s=st.floats(0, 30))
    def time_passes(self, passed_s: float) -> None:
        self.now += passed_s

    @invariant()
    def nobody_is_lost_and_bounds_hold(self) -> None:
        queue = self.queue
        assert queue.running == len(self.running)
        assert queue.waiting == len(self.waiting) <= MOST
        assert queue.waiting_tokens == sum(t.cost for t in self.waiting) < MOST_TOKENS + LONGEST
        assert queue.waiting_by_priority() == {p: sum(t.priority is p for t in self.waiting) for p in Priority}
        assert all(t.place is Place.WAITING for t in self.waiting)
        assert not self.waiting or queue.bound is None or queue.running >= queue.bound, "engines idle while some wait"

    def teardown(self) -> None:
        """In the end everybody has had a turn or was told no."""
        while self.running:
            self.follow(self.queue.finish(self.running.pop(), self.now, served=True))
        assert not self.waiting


TestQueueAgainstModel = QueueAgainstModel.TestCase
TestQueueAgainstModel.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)


def full_slot(most: int = 10**6) -> tuple[ModelQueue, Ticket]:
    queue = ModelQueue(1, most, 10**12)
    running = queue.start_at_once("", Priority.BATCH, 1, 0.0)
    assert running is not None
    return queue, running


def put(queue: ModelQueue, flow: str, priority: Priority, cost: int) -> Ticket:
    result, _ = queue.wait(flow, priority, cost, 1e9, 0.0)
    assert isinstance(result, Ticket)
    return result


class Shares:
    """What each of several parties got since both of a pair have been waiting without a break."""

    def __init__(self, weights: dict[str, float]) -> None:
        self.weights = weights
        self.left = dict.fromkeys(weights, 0)
        self.since: dict[tuple[str, str], tuple[float, float]] = {}
        self.got = dict.fromkeys(weights, 0.0)

    def waits(self, who: str) -> None:
        self.left[who] += 1
        self._pairs()

    def served(self, who: str, cost: int) -> None:
        self.got[who] += cost / self.weights[who]
        self.left[who] -= 1
        for (a, b), (got_a, got_b) in self.since.items():
            apart = (self.got[a] - got_a) - (self.got[b] - got_b)
            assert abs(apart) <= LONGEST / self.weights[a] + LONGEST / self.weights[b] + 1e-6, (a, b)
        self._pairs()

    def _pairs(self) -> None:
        for a, b in itertools.combinations(self.weights, 2):
            if not (self.left[a] and self.left[b]):
                self.since.pop((a, b), None)
            else:
                self.since.setdefault((a, b), (self.got[a], self.got[b]))


# Bursts of equal requests of one party, each followed by some that are served: what random lists rarely show.
BURSTS = st.tuples(st.integers(0, 3), st.sampled_from([1, 7, LONGEST]), st.integers(1, 40), st.integers(0, 60))


def play(
    bursts: list[tuple[int, int, int, int]], names: list[str], weights: dict[str, float], *, classes: bool
) -> None:
    queue, running = full_slot()
    shares = Shares(weights)
    for party, cost, count, serve in [*bursts, (0, 1, 1, 10**6)]:
        name = names[party % len(names)]
        for _ in range(count):
            put(queue, "k" if classes else name, Priority(name) if classes else Priority.STANDARD, cost)
            shares.waits(name)
        for _ in range(min(serve, queue.waiting)):
            (running,) = queue.finish(running, 0.0, served=False).started
            shares.served(running.priority.value if classes else running.flow, running.cost)


@settings(deadline=None)
@given(st.lists(BURSTS, min_size=2, max_size=8))
@example([(0, LONGEST, 40, 0), (1, 1, 1, 32), (1, LONGEST, 40, 0)])  # one that was away comes back
def test_keys_that_wait_get_equal_tokens(bursts: list[tuple[int, int, int, int]]) -> None:
    """As long as two keys both wait, neither gets more than one request of each ahead, whatever was before."""
    play(bursts, list(FLOWS), dict.fromkeys(FLOWS, 1.0), classes=False)


@settings(deadline=None)
@given(st.lists(BURSTS, min_size=2, max_size=8))
@example([(1, LONGEST, 40, 0), (0, 1, 1, 32), (0, LONGEST, 40, 0)])
def test_classes_that_wait_get_tokens_by_weight(bursts: list[tuple[int, int, int, int]]) -> None:
    play(bursts, [p.value for p in Priority], {p.value: float(w) for p, w in WEIGHTS.items()}, classes=True)


@settings(deadline=None)
@given(
    st.integers(1, 20),
    st.lists(st.tuples(st.sampled_from([Priority.INTERACTIVE, Priority.STANDARD]), COSTS), min_size=1, max_size=30),
)
def test_batch_gets_its_turn_however_much_else_comes(cost: int, others: list[tuple[Priority, int]]) -> None:
    """A batch request waits for no more than 72 times its own cost, and one request of each other class."""
    queue, running = full_slot()
    for i in range(3):
        put(queue, "x", *others[i % len(others)])
    patient = put(queue, "y", Priority.BATCH, cost)
    ahead = step = 0
    while patient.place is Place.WAITING:
        for _ in range(2):  # more comes than is served
            put(queue, "x", *others[step % len(others)])
            step += 1
        (running,) = queue.finish(running, 0.0, served=False).started
        ahead += running.cost if running is not patient else 0
        assert ahead <= 72 * cost + 2 * LONGEST


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(FLOWS), COSTS), min_size=2, max_size=60))
def test_in_a_full_queue_a_modest_key_finds_a_place(asked: list[tuple[str, int]]) -> None:
    """A greedy key that fills the queue can't lock others out: one request of each other key always gets in."""
    queue, _ = full_slot(most=10)
    for _ in range(10):
        put(queue, "greedy", Priority.INTERACTIVE, LONGEST)
    first = dict(reversed(asked))
    for flow, cost in first.items():
        result, moved = queue.wait(flow, Priority.INTERACTIVE, cost, 1e9, 0.0)
        assert isinstance(result, Ticket)
        assert [t.flow for t, _ in moved.refused] == ["greedy"]


def test_memory_stays_bounded_when_clients_come_and_go_for_ever() -> None:
    """Nothing that has gone is kept, though the queue is never empty and its head never moves."""

    queue, running = full_slot(most=100)
    for _ in range(2):  # so that the class is never empty, which would forget everything
        put(queue, "stays", Priority.INTERACTIVE, 1)

    def churn(keys: range, running: Ticket) -> Ticket:
        for i in keys:
            queue.leave(put(queue, f"k{i}", Priority.INTERACTIVE, 10))
            if i % 1000 == 0:
                (running,) = queue.finish(running, 0.0, served=True).started
                put(queue, "stays", Priority.INTERACTIVE, 1)
        return running

    running = churn(range(5_000), running)
    tracemalloc.start()
    try:
        churn(range(5_000, 10_000), running)
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert grown < 200_000
