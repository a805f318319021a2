"""Who of a model's requests starts next when engines have no room. Pure; times are arguments, in monotonic seconds.

A model has room for `bound` requests under way. While there is room and nobody waits, a request starts at once. Beyond
it requests wait in a queue that is bounded in number and in tokens:

- **Order.** Between the priority classes, self-clocked fair queueing (Golestani, INFOCOM 1994) with weights 64 : 8 : 1;
  within a class, start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996) evenly between keys. What is shared is
  tokens (a request's estimated cost), not requests. So interactive requests overtake, unless one is more than 64 times
  as long as a waiting one of batch; and no class starves: batch gets 1/73 of the tokens at the very least.
- **Deadline.** A request that, at the present rate of service, can't start in time is refused at once; one whose time
  is up while it waits never starts. The rate is Little's law on what was served lately: `bound * mean cost / mean
  duration`.
- **Shedding.** Batch may fill half of the queue, standard requests four fifths. In a full queue a newcomer takes the
  place of the newest request of a lower class, or of the key with the longest queue in its own class when its own is
  shorter.
- **Mirrored** requests never wait: they start while there is room to spare, or not at all.

Every operation costs O(log n) in the number of waiting requests (amortised).
"""

from __future__ import annotations

import enum
import heapq
import itertools
import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from serving.keys import Priority

WEIGHTS: Final[Mapping[Priority, int]] = {Priority.INTERACTIVE: 64, Priority.STANDARD: 8, Priority.BATCH: 1}
"""Tokens that a class gets beside the others while all of them wait."""

WATERMARKS: Final[Mapping[Priority, float]] = {Priority.INTERACTIVE: 1.0, Priority.STANDARD: 0.8, Priority.BATCH: 0.5}
"""How full the queue may be for a newcomer of the class to wait in it."""

SPARE_SHARE: Final = 0.5
"""Mirrored requests start only while less than this share of the bound is in use."""

MEMORY: Final = 32
"""The mean cost and duration of served requests look back over about so many."""

_LEAST_RETRY_S, _MOST_RETRY_S = 1, 60
_RANKS: Final = {priority: rank for rank, priority in enumerate(WEIGHTS)}  # 0 goes first


class Place(enum.Enum):
    """Where a ticket is in its life."""

    WAITING = "waiting"
    RUNNING = "running"
    GONE = "gone"


class Refusal(enum.StrEnum):
    """Why a request may neither start nor wait."""

    FULL = "full"
    """The queue is full, and nobody in it should rather go."""
    SHED = "shed"
    """The queue is over the watermark of its class, or a newcomer with a better claim took its place."""
    DEADLINE = "deadline"
    """It can't start in time."""


_RUNNING: Final = Place.RUNNING
_GONE: Final = Place.GONE
_WAITING: Final = Place.WAITING


class Ticket:
    """One request's place. `flow` names whom fairness is for: a key."""

    __slots__ = ("cost", "flow", "place", "priority", "start_by", "started_at")

    def __init__(
        self, flow: str, priority: Priority, cost: int, start_by: float, place: Place = _WAITING,
        started_at: float = 0.0,
    ) -> None:  # fmt: skip
        self.flow = flow
        self.priority = priority
        self.cost = cost
        self.start_by = start_by
        self.place = place
        self.started_at = started_at


@dataclass(frozen=True, slots=True)
class Moved:
    """Tickets that were waiting and are no more. The caller tells those who wait."""

    started: tuple[Ticket, ...] = ()
    refused: tuple[tuple[Ticket, Refusal], ...] = ()


_NOBODY: Final = Moved()


@dataclass(slots=True, eq=False)
class _Flow:
    name: str
    tag: float
    """The virtual time at which its next request starts."""
    waiting: OrderedDict[Ticket, None] = field(default_factory=OrderedDict)
    backlog: int = 0
    """Tokens waiting."""
    turn: int = 0
    """The number of its valid entry in the heap of turns."""


class _Class:
    """The waiting requests of one priority, shared evenly between flows."""

    def __init__(self, weight: int) -> None:
        self.weight = weight
        self.tag = 0.0
        self.count = 0
        self.backlog = 0
        self.active = 0
        """Flows with waiting requests."""
        self._virtual = 0.0
        self._flows: dict[str, _Flow] = {}
        self._turns: list[tuple[float, int, _Flow]] = []
        self._longest: list[tuple[int, int, _Flow]] = []
        self._numbers = itertools.count(1)
        self._sweep_at = 64

    def backlog_of(self, name: str) -> int:
        """Tokens that wait for one flow."""
        flow = self._flows.get(name)
        return flow.backlog if flow is not None else 0

    def add(self, ticket: Ticket) -> None:
        flow = self._flows.get(ticket.flow)
        if flow is None:
            if len(self._flows) >= self._sweep_at:
                self._forget_idle()
            flow = self._flows[ticket.flow] = _Flow(ticket.flow, self._virtual)
        if not flow.waiting:
            flow.tag = max(flow.tag, self._virtual)
            self.active += 1
            self._queue_turn(flow)
        flow.waiting[ticket] = None
        flow.backlog += ticket.cost
        self.count += 1
        self.backlog += ticket.cost
        heapq.heappush(self._longest, (-flow.backlog, next(self._numbers), flow))
        if len(self._longest) > 4 * self.active + 64:
            self._longest = [(-f.backlog, next(self._numbers), f) for f in self._flows.values() if f.waiting]
            heapq.heapify(self._longest)

    def head(self) -> Ticket:
        """The ticket whose turn it is. The class must not be empty."""
        while True:
            _, turn, flow = self._turns[0]
            if flow.turn == turn and flow.waiting:
                return next(iter(flow.waiting))
            heapq.heappop(self._turns)

    def next_finish(self) -> float:
        """The virtual time at which its next request would be through. The class must not be empty."""
        return self.tag + self.head().cost / self.weight

    def serve(self, ticket: Ticket) -> None:
        """Take the head out, at its flow's expense."""
        flow = self._flows[ticket.flow]
        self._virtual = flow.tag
        flow.tag += ticket.cost
        heapq.heappop(self._turns)
        self._take_out(flow, ticket)
        if flow.waiting:
            self._queue_turn(flow)

    def remove(self, ticket: Ticket) -> None:
        """Take any ticket out, at nobody's expense."""
        self._take_out(self._flows[ticket.flow], ticket)

    def newest_of_longest(self) -> tuple[Ticket, int]:
        """The last ticket of the flow with the greatest backlog, and that backlog. The class must not be empty."""
        while True:
            negative, _, flow = self._longest[0]
            if not flow.waiting:
                heapq.heappop(self._longest)
            elif flow.backlog != -negative:  # an old entry is never below the truth, so correcting it is enough
                heapq.heapreplace(self._longest, (-flow.backlog, next(self._numbers), flow))
            else:
                return next(reversed(flow.waiting)), flow.backlog

    def of_flow(self, name: str) -> list[Ticket]:
        flow = self._flows.get(name)
        return list(flow.waiting) if flow is not None else []

    def _queue_turn(self, flow: _Flow) -> None:
        flow.turn = next(self._numbers)
        heapq.heappush(self._turns, (flow.tag, flow.turn, flow))
        if len(self._turns) > 4 * self.active + 64:
            self._turns = [e for e in self._turns if e[2].turn == e[1] and (e[2].waiting or e[2] is flow)]
            heapq.heapify(self._turns)

    def _take_out(self, flow: _Flow, ticket: Ticket) -> None:
        del flow.waiting[ticket]
        flow.backlog -= ticket.cost
        self.count -= 1
        self.backlog -= ticket.cost
        if not flow.waiting:
            self.active -= 1
            if self.count == 0:  # the end of a busy period: the past is settled
                self._virtual = max(self._virtual, max(f.tag for f in self._flows.values()))
                self._flows.clear()
                self._turns.clear()
                self._longest.clear()

    def _forget_idle(self) -> None:
        """Forget flows without waiting requests that owe nothing."""
        self._flows = {n: f for n, f in self._flows.items() if f.waiting or f.tag > self._virtual}
        self._sweep_at = max(64, 2 * len(self._flows))


class _Service:
    """How fast requests are served, by those that ended lately."""

    def __init__(self) -> None:
        self._ended = 0
        self._mean_s = 0.0
        self._mean_cost = 0.0
        self.last_move = -math.inf
        """When a request last ended, or started without waiting."""

    def ended(self, ticket: Ticket, now: float) -> None:
        self._ended += 1
        part = 1 / min(self._ended, MEMORY)
        self._mean_s += part * (max(0.0, now - ticket.started_at) - self._mean_s)
        self._mean_cost += part * (ticket.cost - self._mean_cost)
        self.last_move = now

    def tokens_per_s(self, bound: int, now: float) -> float | None:
        """Cost that is served per second while `bound` requests are under way; None before any has ended."""
        if not self._ended:
            return None
        gap_s = self._mean_s / bound  # between two ends, by Little's law
        # Nothing ended for much longer than that: engines have slowed down, and the mean does not know it yet.
        stalled_s = (now - self.last_move) / 2
        return self._mean_cost / max(gap_s, stalled_s, 1e-9)

    @property
    def mean_cost(self) -> float:
        return self._mean_cost


class ModelQueue:
    """Admits requests of one model. Nothing in here waits: the caller does, and is told whom to wake."""

    def __init__(self, bound: int | None, most_waiting: int, most_waiting_tokens: int) -> None:
        """Make an empty queue.

        Args:
            bound: Requests that may be under way; None for any number.
            most_waiting: Requests that may wait.
            most_waiting_tokens: Their cost; the one that reaches it is the last that is let in.
        """
        self.bound = bound
        self.running = 0
        self._most_waiting = most_waiting
        self._most_tokens = most_waiting_tokens
        self._classes = {priority: _Class(weight) for priority, weight in WEIGHTS.items()}
        self._virtual = 0.0
        self._service = _Service()
        self.waiting = 0
        """Requests that wait."""
        self.waiting_tokens = 0
        """Their estimated cost."""

    def waiting_by_priority(self) -> dict[Priority, int]:
        """Requests that wait, by class."""
        return {priority: c.count for priority, c in self._classes.items()}

    @property
    def room(self) -> bool:
        """Whether a request would start at once."""
        return not self.waiting and (self.bound is None or self.running < self.bound)

    def start_at_once(self, flow: str, priority: Priority, cost: int, now: float) -> Ticket | None:
        """Start a request for which there is room, past nobody who waits; None when it must queue."""
        if (self.bound is not None and self.running >= self.bound) or self.waiting:
            return None
        self.running += 1
        self._service.last_move = now
        return Ticket(flow, priority, max(1, cost), math.inf, _RUNNING, now)

    def start_mirrored(self, cost: int, now: float) -> Ticket | None:
        """Start a mirrored request while there is room to spare, else None."""
        if self.waiting or (self.bound is not None and self.running >= SPARE_SHARE * self.bound):
            return None
        self.running += 1
        return Ticket("", Priority.BATCH, max(1, cost), math.inf, _RUNNING, now)

    def wait(
        self, flow: str, priority: Priority, cost: int, start_by: float, now: float
    ) -> tuple[Ticket | Refusal, Moved]:
        """Queue a request that could not start at once.

        Args:
            flow: Whose it is.
            priority: Its class.
            cost: Its estimated tokens.
            start_by: The latest time at which starting it still makes sense.
            now: Seconds.

        Returns:
            Its ticket or why it may not wait, and whom it displaced.
        """
        ticket = Ticket(flow, priority, max(1, cost), start_by)
        moved = _NOBODY
        if self.expected_wait_s(flow, priority, now) > start_by - now:
            return Refusal.DEADLINE, moved
        watermark = WATERMARKS[priority]
        if watermark < 1 and self.waiting >= math.ceil(watermark * self._most_waiting):
            return Refusal.SHED, moved
        if not self._has_place(self.waiting, self.waiting_tokens):
            victim = self._victim_for(ticket)
            if victim is None or not self._has_place(self.waiting - 1, self.waiting_tokens - victim.cost):
                return Refusal.FULL, moved
            self._drop(victim)
            moved = Moved(refused=((victim, Refusal.SHED),))
        lane = self._classes[priority]
        if not self.waiting:  # the end of a busy period: the past is settled
            self._virtual = max(c.tag for c in self._classes.values())
        if not lane.count:
            lane.tag = max(lane.tag, self._virtual)
        lane.add(ticket)
        self.waiting += 1
        self.waiting_tokens += ticket.cost
        return ticket, moved

    def leave(self, ticket: Ticket) -> None:
        """The client of a waiting request has gone, or its time is up."""
        if ticket.place is _WAITING:
            self._drop(ticket)

    def leave_all(self, flow: str) -> list[Ticket]:
        """All waiting requests of a flow leave; its key was revoked, say."""
        found = [t for c in self._classes.values() for t in c.of_flow(flow)]
        for ticket in found:
            self._drop(ticket)
        return found

    def finish(self, ticket: Ticket, now: float, *, served: bool) -> Moved:
        """A request under way is over; whose turn it is starts.

        Args:
            ticket: The request. Twice makes no difference.
            now: Seconds.
            served: Whether an engine worked on it: others say nothing about how long a request takes.
        """
        if ticket.place is not _RUNNING:
            return _NOBODY
        ticket.place = _GONE
        self.running -= 1
        if served:
            self._service.ended(ticket, now)
        return self._fill(now)

    def resize(self, bound: int | None, now: float) -> Moved:
        """Change the room: endpoints have come or gone."""
        self.bound = bound
        return self._fill(now)

    def expected_wait_s(self, flow: str, priority: Priority, now: float) -> float:
        """How long a newcomer would wait, at the present rate of service; 0 while that is unknown.

        Before it come, of its own class, as many tokens of every key as its own key has waiting and a request more, and
        of other classes what their weights give them; but never more than everything that waits.
        """
        if self.bound is None:
            return 0.0
        rate = self._service.tokens_per_s(max(1, self.bound), now)
        if rate is None:
            return 0.0
        lane, one = self._classes[priority], self._service.mean_cost
        own = lane.backlog_of(flow)
        others = lane.active - (1 if own else 0)
        ahead = min(lane.backlog, own + others * (own + one))
        weights = sum(c.weight for c in self._classes.values() if c.count or c is lane)
        return (min(self.waiting_tokens, ahead * weights / lane.weight) + one) / rate

    def retry_after_s(self, now: float) -> int:
        """When a refused client should come back: once what waits now is through, within 1 to 60 s."""
        rate = self._service.tokens_per_s(max(1, self.bound), now) if self.bound is not None else None
        drained_s = self.waiting_tokens / rate if rate else 0.0
        return max(_LEAST_RETRY_S, min(_MOST_RETRY_S, math.ceil(drained_s)))

    def _fill(self, now: float) -> Moved:
        if not self.waiting:
            return _NOBODY
        started: list[Ticket] = []
        refused: list[tuple[Ticket, Refusal]] = []
        while self.waiting and (self.bound is None or self.running < self.bound):
            # The class whose next request would be through first; of equals the higher one.
            lane = min((c for c in self._classes.values() if c.count), key=_Class.next_finish)
            ticket = lane.head()
            if now >= ticket.start_by:
                self._drop(ticket)
                refused.append((ticket, Refusal.DEADLINE))
                continue
            lane.serve(ticket)
            self.waiting -= 1
            self.waiting_tokens -= ticket.cost
            lane.tag += ticket.cost / lane.weight
            self._virtual = lane.tag
            ticket.place, ticket.started_at = _RUNNING, now
            self.running += 1
            started.append(ticket)
        return Moved(tuple(started), tuple(refused))

    def _drop(self, ticket: Ticket) -> None:
        ticket.place = _GONE
        self._classes[ticket.priority].remove(ticket)
        self.waiting -= 1
        self.waiting_tokens -= ticket.cost

    def _has_place(self, waiting: int, waiting_tokens: int) -> bool:
        return waiting < self._most_waiting and waiting_tokens < self._most_tokens

    def _victim_for(self, newcomer: Ticket) -> Ticket | None:
        """Who should rather go than the newcomer: somebody of a lower class, or of a longer queue in its own."""
        for priority in reversed(self._classes):
            lane = self._classes[priority]
            if not lane.count:
                continue
            if _RANKS[priority] < _RANKS[newcomer.priority]:
                return None
            victim, backlog = lane.newest_of_longest()
            if priority is not newcomer.priority:
                return victim
            own = lane.backlog_of(newcomer.flow) + newcomer.cost
            return victim if victim.flow != newcomer.flow and own < backlog else None
        return None
