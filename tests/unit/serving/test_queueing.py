"""Who starts next, who waits and who is turned away: named cases."""

from __future__ import annotations

import pytest

from serving.keys import Priority
from serving.queueing import ModelQueue, Place, Refusal, Ticket

I, S, B = Priority.INTERACTIVE, Priority.STANDARD, Priority.BATCH  # noqa: E741
LATE = 1e9


class Line:
    """A queue before one slot that is taken, and the order in which its requests start."""

    def __init__(self, *, bound: int = 1, most: int = 100, most_tokens: int = 10**9) -> None:
        self.queue = ModelQueue(bound, most, most_tokens)
        self.running = [self.start(10) for _ in range(bound)]
        self.names: dict[Ticket, str] = {}
        self.turned_away: dict[str, Refusal] = {}

    def start(self, cost: int) -> Ticket:
        ticket = self.queue.start_at_once("", S, cost, 0.0)
        assert ticket is not None
        return ticket

    def add(self, name: str, flow: str, priority: Priority = S, cost: int = 10, start_by: float = LATE) -> None:
        assert self.queue.start_at_once(flow, priority, cost, 0.0) is None
        result, moved = self.queue.wait(flow, priority, cost, start_by, 0.0)
        for ticket, refusal in moved.refused:
            self.turned_away[self.names[ticket]] = refusal
        if isinstance(result, Refusal):
            self.turned_away[name] = result
        else:
            self.names[result] = name

    def order(self, now: float = 0.0) -> list[str]:
        started: list[str] = []
        while self.running:
            moved = self.queue.finish(self.running.pop(0), now, served=False)
            self.turned_away |= {self.names[t]: refusal for t, refusal in moved.refused}
            self.running += moved.started
            started += [self.names[t] for t in moved.started]
        return started


def test_while_there_is_room_requests_start_at_once() -> None:
    queue = ModelQueue(2, 10, 1000)
    assert queue.start_at_once("a", S, 1, 0.0) is not None
    assert queue.start_at_once("a", B, 1, 0.0) is not None
    assert queue.start_at_once("a", I, 1, 0.0) is None
    assert (queue.running, queue.waiting) == (2, 0)


def test_without_a_bound_nothing_waits() -> None:
    queue = ModelQueue(None, 0, 0)
    assert all(queue.start_at_once("a", S, 1, 0.0) for _ in range(1000))
    assert queue.expected_wait_s("a", S, 0.0) == 0


def test_higher_classes_overtake() -> None:
    line = Line()
    line.add("b1", "x", B)
    line.add("s1", "x", S)
    line.add("i1", "x", I)
    line.add("i2", "y", I)
    assert line.order() == ["i1", "i2", "s1", "b1"]


def test_no_class_starves() -> None:
    line = Line(most=1000)
    for i in range(5):
        line.add(f"b{i}", "x", B)
    for i in range(200):
        line.add(f"i{i}", "y", I)
    order = line.order()
    # Batch gets one token for 64 of interactive's.
    assert [order.index(f"b{i}") for i in range(4)] == [64, 129, 194, 203]


def test_keys_of_a_class_take_turns() -> None:
    line = Line()
    for i in range(4):
        line.add(f"a{i}", "a")
    for i in range(2):
        line.add(f"b{i}", "b")
    line.add("c0", "c")
    assert line.order() == ["a0", "b0", "c0", "a1", "b1", "a2", "a3"]


def test_what_is_shared_is_tokens_not_requests() -> None:
    line = Line()
    for i in range(3):
        line.add(f"big{i}", "a", cost=40)
    for i in range(8):
        line.add(f"small{i}", "b", cost=10)
    assert line.order() == [
        "big0", "small0", "small1", "small2", "small3",
        "big1", "small4", "small5", "small6", "small7",
        "big2",
    ]  # fmt: skip


def test_a_client_that_has_gone_is_passed_over_at_no_cost() -> None:
    line = Line()
    for name in ("a0", "a1", "b0"):
        line.add(name, name[0], cost=100)
    gone = next(t for t, name in line.names.items() if name == "a0")
    line.queue.leave(gone)
    line.queue.leave(gone)
    assert gone.place is Place.GONE
    assert line.order() == ["a1", "b0"]


def test_a_full_queue_turns_newcomers_away() -> None:
    line = Line(most=3)
    for i in range(4):
        line.add(f"a{i}", "a", I)
    assert line.turned_away == {"a3": Refusal.FULL}


def test_tokens_fill_a_queue_too() -> None:
    line = Line(most_tokens=100)
    line.add("long", "a", I, cost=100)
    line.add("short", "a", I, cost=1)
    assert line.turned_away == {"short": Refusal.FULL}


# (who waits: flow and class, the newcomer, queue's size) -> who is turned away, and why
SHED = {
    "batch may fill half": ([("a", B), ("b", B)], ("c", B), 4, {"new": Refusal.SHED}),
    "standard may fill four fifths": ([(f, S) for f in "abcd"], ("e", S), 5, {"new": Refusal.SHED}),
    "interactive may fill it": ([(f, I) for f in "abcd"], ("e", I), 5, {}),
    "a higher class takes the place of batch": ([("a", B), ("b", I)], ("c", I), 2, {"0": Refusal.SHED}),
    "of batch before standard": ([("a", B), ("b", S), ("c", I)], ("d", I), 3, {"0": Refusal.SHED}),
    "a key with less takes the place of the greediest": (
        [("a", I), ("b", I), ("a", I)],
        ("c", I),
        3,
        {"2": Refusal.SHED},
    ),
    "but not of its equal": ([("a", I), ("b", I)], ("c", I), 2, {"new": Refusal.FULL}),
    "nor of its own": ([("a", I), ("a", I)], ("a", I), 2, {"new": Refusal.FULL}),
    "a lower class takes nobody's place": ([("a", I), ("a", I)], ("b", S), 2, {"new": Refusal.SHED}),
}


@pytest.mark.parametrize(("waiting", "newcomer", "most", "expected"), SHED.values(), ids=SHED)
def test_load_is_shed_from_below(waiting, newcomer, most, expected) -> None:
    line = Line(most=most)
    for i, (flow, priority) in enumerate(waiting):
        line.add(str(i), flow, priority)
    line.add("new", *newcomer)
    assert line.turned_away == expected


class TestDeadline:
    def served(self, *, duration_s: float, bound: int = 2, cost: int = 100) -> ModelQueue:
        """A queue whose slots are taken again after as many requests as it takes to know the rate."""
        queue = ModelQueue(bound, 1000, 10**9)
        for _ in range(10):
            ticket = queue.start_at_once("z", S, cost, 0.0)
            assert ticket is not None
            queue.finish(ticket, duration_s, served=True)
        for _ in range(bound):
            assert queue.start_at_once("z", S, cost, duration_s) is not None
        return queue

    def test_a_request_that_cannot_start_in_time_is_refused_at_once(self) -> None:
        queue = self.served(duration_s=10.0)  # two slots: one request every 5 s
        now = 10.0
        assert queue.wait("a", S, 100, now + 4.9, now)[0] is Refusal.DEADLINE
        assert isinstance(queue.wait("a", S, 100, now + 5.1, now)[0], Ticket)
        assert queue.wait("a", S, 100, now + 9.9, now)[0] is Refusal.DEADLINE
        assert isinstance(queue.wait("a", S, 100, now + 10.1, now)[0], Ticket)

    def test_a_key_of_its_own_does_not_wait_behind_a_long_queue_of_another(self) -> None:
        queue = self.served(duration_s=10.0)
        now = 10.0
        for _ in range(50):
            assert isinstance(queue.wait("greedy", S, 100, LATE, now)[0], Ticket)
        assert queue.expected_wait_s("greedy", S, now) == pytest.approx(255)
        assert queue.expected_wait_s("modest", S, now) == pytest.approx(10)
        assert queue.expected_wait_s("modest", I, now) == pytest.approx(5)

    def test_before_anything_was_served_nobody_is_refused_for_lateness(self) -> None:
        queue = ModelQueue(1, 10, 10**9)
        queue.start_at_once("a", S, 1, 0.0)
        assert isinstance(queue.wait("a", S, 1, 0.001, 0.0)[0], Ticket)

    def test_a_deadline_that_is_over_is_refused(self) -> None:
        queue = ModelQueue(1, 10, 10**9)
        queue.start_at_once("a", S, 1, 5.0)
        assert queue.wait("a", S, 1, 4.0, 5.0)[0] is Refusal.DEADLINE

    def test_engines_that_have_stalled_are_not_believed_to_be_fast(self) -> None:
        queue = self.served(duration_s=1.0)
        assert queue.expected_wait_s("a", S, 1.1) == pytest.approx(0.5)
        assert queue.expected_wait_s("a", S, 101.0) == pytest.approx(50)

    def test_a_quiet_night_is_no_stall(self) -> None:
        queue = ModelQueue(1, 10, 10**9)
        ticket = queue.start_at_once("a", S, 100, 0.0)
        assert ticket is not None
        queue.finish(ticket, 1.0, served=True)
        queue.start_at_once("a", S, 100, 30_000.0)
        assert queue.expected_wait_s("a", S, 30_000.0) == pytest.approx(1)

    def test_one_whose_time_is_up_never_starts(self) -> None:
        line = Line()
        line.add("late", "a", start_by=5.0)
        line.add("patient", "b")
        assert line.order(now=5.0) == ["patient"]
        assert line.turned_away == {"late": Refusal.DEADLINE}

    def test_clients_are_told_when_the_queue_will_be_through(self) -> None:
        queue = self.served(duration_s=10.0)
        assert queue.retry_after_s(10.0) == 1
        for _ in range(4):
            queue.wait("a", S, 100, LATE, 10.0)
        assert queue.retry_after_s(10.0) == 20
        for _ in range(50):
            queue.wait("a", S, 100, LATE, 10.0)
        assert queue.retry_after_s(10.0) == 60


def test_mirrored_requests_start_only_while_there_is_room_to_spare() -> None:
    queue = ModelQueue(4, 10, 1000)
    assert queue.start_mirrored(1, 0.0) is not None
    assert queue.start_mirrored(1, 0.0) is not None
    assert queue.start_mirrored(1, 0.0) is None
    assert queue.start_at_once("a", S, 1, 0.0) is not None


def test_more_endpoints_start_who_waits_and_fewer_stop_nobody() -> None:
    line = Line(bound=2)
    for i in range(4):
        line.add(str(i), "a")
    assert [line.names[t] for t in line.queue.resize(4, 0.0).started] == ["0", "1"]
    assert line.queue.resize(1, 0.0).started == ()
    assert line.queue.running == 4
    assert line.queue.finish(line.running[0], 0.0, served=False).started == ()
    assert [line.names[t] for t in line.queue.resize(None, 0.0).started] == ["2", "3"]


def test_a_request_ends_once() -> None:
    queue = ModelQueue(1, 10, 1000)
    ticket = queue.start_at_once("a", S, 1, 0.0)
    assert ticket is not None
    queue.finish(ticket, 1.0, served=True)
    queue.finish(ticket, 1.0, served=True)
    assert queue.running == 0


def test_a_revoked_key_leaves_with_all_that_waits() -> None:
    line = Line()
    line.add("a0", "a", B)
    line.add("a1", "a", S)
    line.add("b0", "b", S)
    assert {line.names[t] for t in line.queue.leave_all("a")} == {"a0", "a1"}
    assert line.queue.leave_all("nobody") == []
    assert line.order() == ["b0"]
