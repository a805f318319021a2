"""Model checks that answer from a function: for tests, dry runs and demonstrations."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from guardrails.errors import CheckUnavailable
from guardrails.model_checks.base import ModelText
from guardrails.verdicts import Hit

Answer = Callable[[ModelText], Sequence[Hit]]


class MemoryModelChecks:
    """Answers at once. Without a function for a check, that check is not there."""

    def __init__(self, answers: dict[str, Answer]) -> None:
        """`answers` has a function for each rule's name; it may raise `CheckFailed`."""
        self._answers = answers
        self._closed = False

    async def examine(self, text: ModelText) -> Sequence[Hit]:
        """What the function finds."""
        name = text.active.rule.name
        if self._closed or name not in self._answers:
            raise CheckUnavailable(f"no model for the check {name!r}; give one of {', '.join(self._answers) or 'none'}")
        return self._answers[name](text)

    async def close(self) -> None:
        """Fail from now on."""
        self._closed = True
