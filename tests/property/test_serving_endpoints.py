"""Picking an endpoint, under any order of requests, failures, probes, new sets and time: what must always hold."""

from __future__ import annotations

import random
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from serving.affinity import BLOCK_BYTES, BlockMemory, hash_chain
from serving.endpoints import (
    EJECTION_MOST_S,
    PROBE_LEASE_S,
    Address,
    Endpoint,
    EndpointBook,
    connect_failed,
    connected,
    dispatched,
    failed,
    finished,
    first_token_came,
    pick,
    progressed,
    succeeded,
    usable,
)
from serving.knobs import LEAST_WORK, ROUND_ROBIN, Picking
from serving.scoring import Demand, bound_of

PICKINGS = (
    Picking(),
    LEAST_WORK,
    ROUND_ROBIN,
    Picking(imbalance_percent=0, slack_tokens=0, failures_to_eject=1),
    Picking(prefix_weight=50, slack_tokens=100, max_ejection_percent=100, failures_to_eject=2),
)
MEMORY = 24

chains = st.lists(st.integers(0, 3), max_size=8).map(
    lambda path: tuple(hash(tuple(path[: i + 1])) for i in range(len(path)))
)


class Traffic(RuleBasedStateMachine):
    """One application under traffic. `log` holds the requests under way."""

    @initialize(count=st.integers(1, 20), picking=st.sampled_from(PICKINGS), sampled=st.booleans())
    def begin(self, count: int, picking: Picking, sampled: bool) -> None:
        self.now = 0.0
        self.book = EndpointBook()
        self.picking = picking
        self.chance = random.Random(count) if sampled else None
        self.log: list[tuple[Endpoint, Demand | None]] = []
        self.left: list[Endpoint] = []
        self.replace(set(range(1, count + 1)))

    def replace(self, ports: set[int], draining: frozenset[int] = frozenset()) -> None:
        before = self.endpoints
        addresses = [Address(f"http://h:{p}", draining=p in draining) for p in sorted(ports)]
        self.book.replace({"a": addresses})
        self.left += [e for e in before if e not in self.endpoints]
        for endpoint in self.endpoints:
            if endpoint not in before:
                endpoint.memory = BlockMemory(MEMORY)

    @property
    def endpoints(self) -> Sequence[Endpoint]:
        return self.book.of("a")

    @rule(seconds=st.sampled_from((0.0, 0.01, 1.0, 12.0, 40.0)))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(ports=st.sets(st.integers(1, 20), min_size=1), draining=st.frozensets(st.integers(1, 20), max_size=3))
    def the_set_changes(self, ports: set[int], draining: frozenset[int]) -> None:
        self.replace(ports, draining)

    @rule(
        chain=chains,
        tokens=st.integers(0, 40_000),
        limit=st.none() | st.integers(0, 5000),
        known=st.booleans(),
        tried=st.sets(st.integers(1, 20), max_size=3),
    )
    def a_request_comes(
        self, chain: tuple[int, ...], tokens: int, limit: int | None, known: bool, tried: set[int]
    ) -> None:
        demand = Demand(tokens, limit, chain, len(chain)) if known else None
        exclude = {f"http://h:{p}" for p in tried}
        allowed = [e for e in self.endpoints if e.url not in exclude and not e.draining]
        fine = [e for e in allowed if usable(e, self.now)]
        endpoint = pick(self.endpoints, self.now, exclude, demand, self.picking, self.chance)
        if not allowed:
            assert endpoint is None
            return
        assert endpoint in allowed
        if fine:
            assert endpoint in fine, "an ejected endpoint was picked while others were fine"
            scored = [e for e in fine if e.ejected_until == 0]  # a half-open one is probed whatever its load
            exact = all(e.full for e in scored) and (self.chance is None or len(scored) <= 16)
            if endpoint in scored and exact:
                bound = bound_of([e.work for e in scored], self.picking)
                assert endpoint.work <= bound, "the load was above the bound"
        dispatched(endpoint, self.now, demand)
        self.log.append((endpoint, demand))

    def take(self, data: st.DataObject) -> tuple[Endpoint, Demand | None]:
        return self.log.pop(data.draw(st.integers(0, len(self.log) - 1)))

    @precondition(lambda self: self.log)
    @rule(data=st.data(), tokens=st.integers(0, 3000))
    def tokens_come(self, data: st.DataObject, tokens: int) -> None:
        endpoint, demand = self.log[data.draw(st.integers(0, len(self.log) - 1))]
        connected(endpoint)
        if demand is not None:
            progressed(endpoint, demand, tokens)

    @precondition(lambda self: self.log)
    @rule(data=st.data(), after_s=st.floats(0, 100))
    def a_request_ends_well(self, data: st.DataObject, after_s: float) -> None:
        endpoint, demand = self.take(data)
        connected(endpoint)
        first_token_came(endpoint, after_s, self.endpoints, self.now)
        succeeded(endpoint)
        finished(endpoint, demand)
        assert endpoint.draining or usable(endpoint, self.now), "a good answer brings an endpoint back"

    @precondition(lambda self: self.log)
    @rule(data=st.data(), repeat=st.integers(1, 6))
    def a_request_ends_badly(self, data: st.DataObject, repeat: int) -> None:
        endpoint, demand = self.take(data)
        was_ready = self.book.ready("a", self.now)
        connected(endpoint)
        for _ in range(repeat):
            failed(endpoint, self.endpoints, self.now, self.picking)
        finished(endpoint, demand)
        assert self.book.ready("a", self.now) or not was_ready, "bad answers took an application out of service"

    @precondition(lambda self: self.log)
    @rule(data=st.data())
    def a_connection_is_refused(self, data: st.DataObject) -> None:
        endpoint, demand = self.take(data)
        connect_failed(endpoint, self.now)
        finished(endpoint, demand)

    @precondition(lambda self: self.log)
    @rule(data=st.data())
    def a_client_goes_away(self, data: st.DataObject) -> None:
        finished(*self.take(data))

    @invariant()
    def work_is_what_is_under_way(self) -> None:
        for endpoint in (*self.endpoints, *self.left):
            under_way = [d for e, d in self.log if e is endpoint]
            assert endpoint.outstanding == len(under_way)
            assert endpoint.work == sum(256 if d is None else d.prompt_work + d.answer_work for d in under_way)
            assert endpoint.work >= 16 * len(under_way)

    @invariant()
    def memory_is_bounded(self) -> None:
        assert all(len(e.memory) <= MEMORY for e in self.endpoints)

    @invariant()
    def the_ejected_come_back(self) -> None:
        later = self.now + EJECTION_MOST_S + PROBE_LEASE_S
        assert all(usable(e, later) for e in self.endpoints if not e.draining)

    def teardown(self) -> None:
        for endpoint, demand in self.log:
            finished(endpoint, demand)
        assert all(e.work == e.outstanding == 0 for e in (*self.endpoints, *self.left))


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)


@given(st.lists(st.tuples(st.integers(0, 5000), chains), min_size=2, max_size=40), st.integers(), chains)
@settings(deadline=None)
def test_the_same_chance_picks_the_same(
    state: list[tuple[int, tuple[int, ...]]], seed: int, chain: tuple[int, ...]
) -> None:
    picked = []
    for _ in range(2):
        book = EndpointBook()
        book.replace({"a": [Address(f"http://h:{i + 1}") for i in range(len(state))]})
        for endpoint, (work, seen) in zip(book.of("a"), state, strict=True):
            endpoint.full, endpoint.work = True, work
            endpoint.memory.remember(seen)
        found = pick(book.of("a"), 0.0, (), Demand(chain=chain), chance=random.Random(seed))
        assert found is not None
        picked.append(found.url)
    assert picked[0] == picked[1]


@given(st.lists(chains, max_size=40), chains, st.integers(1, 12))
def test_what_is_remembered_of_a_chain_is_its_beginning(
    seen: list[tuple[int, ...]], chain: tuple[int, ...], capacity: int
) -> None:
    memory = BlockMemory(capacity)
    for one in seen:
        memory.remember(one)
        assert len(memory) <= capacity
        assert memory.matched(one) == min(len(one), capacity)
    for one in (chain, *seen):
        held = [memory.has(block) for block in one]
        assert held == sorted(held, reverse=True)
        assert memory.matched(one) == sum(held)


@given(st.binary(max_size=4000), st.binary(max_size=4000), st.integers(0, 600))
def test_chains_agree_exactly_as_far_as_the_bytes_do(one: bytes, two: bytes, start: int) -> None:
    same = next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))
    left, right = hash_chain(one, min(start, same)), hash_chain(two, min(start, same))
    common = next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
    assert common == max(0, same - min(start, same)) // BLOCK_BYTES
