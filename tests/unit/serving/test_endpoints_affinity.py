"""What a prompt's beginning is called, and what an endpoint remembers of it."""

from __future__ import annotations

import json

import pytest

from serving.affinity import BLOCK_BYTES, MOST_BYTES, BlockMemory, home_rank, prompt_start
from serving.openai_protocol import Operation
from serving.scoring import Demand, answer_work, demand_of, prompt_work

SYSTEM = {"role": "system", "content": "You are the harbour's clerk. " * 100}


def body(*contents: str, **more: object) -> bytes:
    messages = [SYSTEM, *({"role": "user", "content": c} for c in contents)]
    return json.dumps({"messages": messages, "model": "chat", **more}, ensure_ascii=False).encode()


def chain(request: bytes) -> tuple[int, ...]:
    return demand_of(Operation.CHAT, request, json.loads(request)).chain


def shared(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


class TestChains:
    def test_the_next_turn_begins_like_the_last(self) -> None:
        first, second = body("and the tides?" * 50), body("and the tides?" * 50, "and tomorrow?")
        assert shared(chain(first), chain(second)) >= len(chain(first)) - 1
        assert len(chain(first)) >= 6

    def test_other_beginnings_share_nothing_and_other_endings_only_what_is_the_same(self) -> None:
        assert shared(chain(body("x")), chain(json.dumps({"messages": [{"content": "y" * 4000}]}).encode())) == 0
        one, two = chain(body("a" * 2000)), chain(body("b" * 2000))
        assert 0 < shared(one, two) < len(one)

    def test_what_stands_before_the_messages_does_not_matter(self) -> None:
        messages = [SYSTEM, {"role": "user", "content": "x"}]
        plain = json.dumps({"messages": messages}).encode()
        seeded = json.dumps({"model": "chat", "seed": 123, "messages": messages}).encode()
        assert shared(chain(plain), chain(seeded)) == len(chain(plain))

    def test_its_cost_has_a_bound(self) -> None:
        assert len(chain(body("x" * 1_000_000))) == MOST_BYTES // BLOCK_BYTES

    def test_chinese_prompts_are_cut_by_bytes(self) -> None:
        one = body("潮汐每天涨落两次。" * 200)
        assert len(chain(one)) > 10
        assert chain(one) == chain(bytes(one))

    @pytest.mark.parametrize(
        ("operation", "request_body", "start"),
        {
            "chat": (Operation.CHAT, b'{"model":"m","messages":[]}', 13),
            "completions": (Operation.COMPLETIONS, b'{"prompt_cache_key":"k","prompt":"x"}', 24),
            "responses": (Operation.RESPONSES, b'{"input":"x"}', 1),
            "no such field": (Operation.CHAT, b'{"prompt":"x"}', 0),
            "a quoted one is no field": (Operation.CHAT, b'{"user":"\\"messages\\"","messages":[]}', 23),
            "unknown": (Operation.OTHER, b'{"messages":[]}', 0),
            "empty": (Operation.CHAT, b"", 0),
        }.values(),
    )
    def test_where_a_prompt_begins(self, operation: Operation, request_body: bytes, start: int) -> None:
        assert prompt_start(operation, request_body) == start

    def test_homes_are_spread_and_a_lost_endpoint_moves_only_its_own(self) -> None:
        seeds = [1_000_003, 2_000_029, 3_000_017, 4_000_037]
        homes = [max(seeds, key=lambda s, h=head: home_rank(h, s)) for head in range(4000)]
        assert all(800 < homes.count(seed) < 1200 for seed in seeds)
        fewer = [max(seeds[1:], key=lambda s, h=head: home_rank(h, s)) for head in range(4000)]
        assert all(new == old for old, new in zip(homes, fewer, strict=True) if old != seeds[0])


class TestMemory:
    def test_it_forgets_the_longest_unused_and_ends_before_beginnings(self) -> None:
        memory = BlockMemory(4)
        memory.remember((1, 2, 3))
        memory.remember((1, 5, 6))
        assert len(memory) == 4
        assert (memory.matched((1, 5, 6)), memory.matched((1, 2, 3)), memory.matched((9,))) == (3, 2, 0)
        memory.remember((7, 8))
        assert (memory.matched((1, 5, 6)), memory.matched((1, 2))) == (2, 1)
        memory.forget()
        assert memory.matched((1,)) == len(memory) == 0

    def test_a_chain_longer_than_the_memory_keeps_its_beginning(self) -> None:
        memory = BlockMemory(3)
        memory.remember(tuple(range(10)))
        assert memory.matched(tuple(range(10))) == 3


class TestDemand:
    @pytest.mark.parametrize(
        ("fields", "tokens"),
        {
            "nothing": ({}, None),
            "old name": ({"max_tokens": 20}, 20),
            "new name wins": ({"max_completion_tokens": 7, "max_tokens": 20}, 7),
            "responses": ({"max_output_tokens": 9}, 9),
            "all choices": ({"max_tokens": 20, "n": 3}, 60),
            "nonsense": ({"max_tokens": "many", "n": 3}, None),
            "a truth is no number": ({"max_tokens": True}, None),
            "negative": ({"max_tokens": -5}, None),
            "absurd choices": ({"max_tokens": 20, "n": 10**9}, 20),
        }.values(),
    )
    def test_limits_are_read_and_nonsense_is_passed_over(self, fields: dict[str, object], tokens: int | None) -> None:
        assert demand_of(Operation.CHAT, body("x"), fields).most_answer_tokens == tokens

    def test_embeddings_generate_nothing_and_are_not_looked_for(self) -> None:
        demand = demand_of(Operation.EMBEDDINGS, json.dumps({"input": "x" * 4000}).encode(), {})
        assert (demand.chain, demand.most_answer_tokens) == ((), 0)
        assert demand.prompt_tokens > 900

    def test_a_picture_is_not_taken_for_a_book(self) -> None:
        assert demand_of(Operation.CHAT, body("x" * 8_000_000), {}).prompt_tokens == 32 * 1024

    def test_cached_blocks_are_no_work_and_a_limit_bounds_the_answer(self) -> None:
        demand = Demand(prompt_tokens=800, most_answer_tokens=30)
        assert [prompt_work(demand, blocks) for blocks in (0, 1, 100)] == [100, 84, 0]
        assert (answer_work(demand, 256), answer_work(demand, 12.4)) == (30, 12)
        assert answer_work(Demand(), 256) == 256

    def test_a_second_attempt_beside_the_first_counts_for_itself(self) -> None:
        demand = Demand(10, 20, (1,), 2, prompt_work=5, answer_work=6, probe=True)
        assert demand.again() == Demand(10, 20, (1,), 2)
