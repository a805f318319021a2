"""Which replica has seen the beginning of this prompt? Hash chains of prompts, and what an endpoint remembers. Pure.

Engines keep the attention state of prompts in blocks and reuse those of a common beginning (vLLM's automatic prefix
caching), so a request is cheapest where its beginning was computed last. The gateway knows only what it sent where,
and that is enough: the body from its `"messages"` on is cut into blocks of 512 bytes, and block i gets the hash of
(hash of block i - 1, bytes of block i), which names the whole beginning up to there. That is the approximate scheme
of llm-d's prefix scorer and of SGLang's cache-aware router, with hashes in place of a radix tree.

The bytes are the client's own, not parsed again and not put into a canonical form: the next turn of a conversation
comes from the same program and begins with the same bytes. A wrong guess costs one cold prompt and nothing else.
Hashes are Python's (SipHash-1-3 with a key of the process, PEP 456): nobody outside can make two prompts collide.
Different revisions never share blocks: what is remembered belongs to an endpoint, and that to one revision.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final
from zlib import crc32

from serving.openai_protocol import Operation

BLOCK_BYTES: Final = 512
"""About 128 tokens, eight of vLLM's blocks: fine enough for a turn of a conversation, coarse enough to be cheap."""

MOST_BYTES: Final = 16 * 1024
"""Of a prompt only so much is hashed, 32 blocks, so that the cost of a request has a bound (about 10 us)."""

SEARCHED_BYTES: Final = 64 * 1024
"""The prompt's field is looked for in the first bytes of a body only."""

MOST_BLOCKS: Final = 4096
"""Blocks remembered of one endpoint: 2 MiB of text, about 500,000 tokens, the cache of a large GPU."""

_PROMPT_FIELDS: Final = {
    Operation.CHAT: b'"messages"',
    Operation.COMPLETIONS: b'"prompt"',
    Operation.RESPONSES: b'"input"',
}


def prompt_start(operation: Operation, body: bytes) -> int:
    """Where the prompt begins in a JSON body: what stands before (the model, a seed) is no part of it.

    >>> prompt_start(Operation.CHAT, b'{"model": "chat", "messages": []}')
    18

    Returns:
        The offset of the field's name; 0 where it isn't found, or the operation has none.
    """
    field = _PROMPT_FIELDS.get(operation)
    return max(0, body.find(field, 0, SEARCHED_BYTES)) if field is not None else 0


def hash_chain(body: bytes, start: int = 0) -> tuple[int, ...]:
    """One hash per whole block of 512 bytes from `start` on, each naming everything from `start` to its block's end.

    Two bodies have the first n hashes in common exactly when their first n blocks are the same, but for chance (2^-61).
    Cost: 0.3 us per block, at most 32 blocks.
    """
    chain = []
    before = 0
    for at in range(start, min(len(body), start + MOST_BYTES) - BLOCK_BYTES + 1, BLOCK_BYTES):
        before = hash((before, body[at : at + BLOCK_BYTES]))
        chain.append(before)
    return tuple(chain)


def head_of(body: bytes, start: int) -> int:
    """A name of a prompt's first block that is the same in every process: see `home_rank`."""
    return crc32(body[start : start + BLOCK_BYTES])


def home_rank(head: int, seed: int) -> int:
    """How strongly a new prompt belongs to an endpoint; the highest of all is its home. Rendezvous hashing.

    Gateways that know nothing of each other thereby send the same new prefix to the same replica, and when a replica
    goes only its own prefixes move (Thaler and Ravishankar, 1998).

    Args:
        head: Of `head_of`.
        seed: A number of the endpoint, the same in every process.
    """
    mixed = (head ^ seed) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
    return (mixed ^ mixed >> 29) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF


class BlockMemory:
    """The blocks that an endpoint was sent, least recently used forgotten first. Bounded.

    Blocks of a chain are touched from the last to the first, so a block is never forgotten after one that builds on
    it: what is remembered of a chain is always its beginning, and its length can be found by bisection.
    """

    __slots__ = ("_capacity", "_seen")

    def __init__(self, capacity: int = MOST_BLOCKS) -> None:
        self._capacity = capacity
        self._seen: OrderedDict[int, None] = OrderedDict()

    def has(self, block: int) -> bool:
        """Whether a block is remembered, and so all before it."""
        return block in self._seen

    def matched(self, chain: Sequence[int]) -> int:
        """How many blocks of a chain's beginning are remembered. Cost: 2 + log2(blocks) look-ups at most."""
        seen = self._seen
        if not chain or chain[0] not in seen:
            return 0
        if chain[-1] in seen:
            return len(chain)
        low, high = 0, len(chain) - 1  # chain[low] is remembered, chain[high] is not
        while high - low > 1:
            middle = (low + high) // 2
            if chain[middle] in seen:
                low = middle
            else:
                high = middle
        return low + 1

    def remember(self, chain: Sequence[int]) -> None:
        """Note that a prompt was sent there. Cost: one or two dictionary operations per block."""
        seen = self._seen
        for block in reversed(chain[: self._capacity]):
            seen[block] = None
            seen.move_to_end(block)
        while len(seen) > self._capacity:
            seen.popitem(last=False)

    def forget(self) -> None:
        """Forget everything: the engine's process is another one."""
        self._seen.clear()

    def __len__(self) -> int:
        return len(self._seen)
