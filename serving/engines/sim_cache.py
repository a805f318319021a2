"""The prefix cache of a simulated engine: which tokens of a prompt it need not compute again. Pure.

As vLLM keeps them: blocks of 16 tokens, each known by the hash of all tokens up to its end, the least recently used
dropped first; and the last token of a prompt is always computed, since its answer starts there.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

BLOCK_TOKENS = 16


class PrefixCache:
    """The cached blocks of one engine, at most `capacity` of them; with 0 it caches nothing."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def cached_tokens(self, tokens: Sequence[str]) -> int:
        """How many of a prompt's first tokens are cached now."""
        blocks = _block_hashes(tokens[:-1])
        found = next((i for i, block in enumerate(blocks) if block not in self._blocks), len(blocks))
        return found * BLOCK_TOKENS

    def keep(self, tokens: Sequence[str]) -> None:
        """Note that a prompt was computed."""
        for block in reversed(_block_hashes(tokens)[: self._capacity]):  # a block outlives those that build on it
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        while len(self._blocks) > self._capacity:
            self._blocks.popitem(last=False)

    def __len__(self) -> int:
        return len(self._blocks)


def _block_hashes(tokens: Sequence[str]) -> list[int]:
    """One hash for each whole block."""
    found: list[int] = []
    before = 0
    for at in range(0, len(tokens) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        before = hash((before, *tokens[at : at + BLOCK_TOKENS]))
        found.append(before)
    return found
