"""The port to checks that a model or another service does.

Whoever runs a policy hands every `Pending` of a stream to `ModelChecks.examine` and awaits its hits. Batching,
places in a queue, threads, processes and networks are the adapter's business; the time budget is the caller's, who
cancels the call when it is over. Adapters: `threads` (a model in this process), `http` (a service), `memory` (for
tests and dry runs), and `Routed`, which gives each kind of check to the adapter that does it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from guardrails.checks.base import Context
from guardrails.enforcement import ActiveCheck
from guardrails.errors import CheckUnavailable
from guardrails.streaming import Pending
from guardrails.verdicts import Hit


@dataclass(frozen=True, slots=True)
class ModelText:
    """A text for a model. Hits count its characters; the first `context_characters` have been looked at before."""

    active: ActiveCheck
    text: str
    context: Context
    context_characters: int = 0

    @staticmethod
    def of(pending: Pending) -> ModelText:
        """What a stream asks for."""
        return ModelText(pending.active, pending.text, pending.context, pending.context_characters)

    def whole(self, score: float, reason: str) -> Hit:
        """A hit on all that is new."""
        return Hit(self.context_characters, len(self.text), score, reason)


class ModelChecks(Protocol):
    """Runs the checks of kind `Cost.MODEL`."""

    async def examine(self, text: ModelText) -> Sequence[Hit]:
        """What a model found.

        Cancelling the call gives up on its answer; it must not harm the others in the same batch.

        Raises:
            CheckFailed: it could not be run, or what it answered was no verdict.
        """
        ...

    async def close(self) -> None:
        """Let go of threads and connections; calls under way fail with `CheckUnavailable`."""
        ...


class Routed:
    """Gives every kind of check to the adapter that does it."""

    def __init__(self, by_kind: Mapping[str, ModelChecks]) -> None:
        """`by_kind` has an adapter for each kind of check: `{"http": ..., "toxicity": ...}`."""
        self._by_kind = dict(by_kind)

    async def examine(self, text: ModelText) -> Sequence[Hit]:
        """What the adapter of its kind finds."""
        kind = text.active.kind.name
        adapter = self._by_kind.get(kind)
        if adapter is None:
            raise CheckUnavailable(
                f"nothing runs checks of the kind {kind!r} here; configure it, or leave the check out"
            )
        return await adapter.examine(text)

    async def close(self) -> None:
        """Close all of them."""
        for adapter in set(self._by_kind.values()):
            await adapter.close()
