"""Look at a request and its answer after the fact: in slices, so that whoever pays for it decides when each is done.

What only observes need not be done while somebody waits. An `Observation` is made of what was asked and answered, and
gives its rules' work as small steps; then models are asked. Nothing is changed and nobody is told but the caller.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field

from guardrails.chat_streams import Json, Located, hold_texts
from guardrails.checks.base import Context, Part
from guardrails.enforcement import ActivePolicy
from guardrails.prompts import prompt_of
from guardrails.streaming import Pending, Step, StreamGuard
from guardrails.text_units import Stretch, language_of
from guardrails.verdicts import Direction, Hit, Language

SLICE_CHARACTERS = 512
"""Looked at in one step: about a millisecond of rules."""
AT_ONCE = Stretch(max_characters=1_000, whole_sentences=False)

Ask = Callable[[Pending], Awaitable[Sequence[Hit] | str]]


@dataclass(slots=True)
class _Text:
    place: int
    part: Part
    text: str
    guard: StreamGuard


@dataclass(slots=True)
class Observation:
    """One request and its answer under one policy. Run `steps` to their end, then await `models`.

    Attributes:
        findings: What was found so far, by direction.
    """

    active: ActivePolicy
    directions: tuple[Direction, ...]
    prompt: Json | None
    answer: Json | None
    findings: dict[Direction, list[Located]] = field(default_factory=dict)
    _waiting: list[tuple[Direction, _Text, Pending]] = field(default_factory=list)

    def steps(self) -> Iterator[None]:
        """Let the rules look, a slice in each step."""
        language: Language | None = None
        if self.prompt is not None:
            roles = self.active.policy.roles
            texts = [t for t in prompt_of(self.prompt).texts if t.role in roles]
            language = language_of("\n".join(t.text[-1000:] for t in texts if t.role == "user")[-2000:])
            if Direction.INPUT in self.directions:
                for text in texts:
                    yield from self._look(Direction.INPUT, text.message, text.part, text.text, None)
        if self.answer is not None and Direction.OUTPUT in self.directions:
            for slot in hold_texts(self.answer):
                yield from self._look(Direction.OUTPUT, slot.choice, slot.part, slot.text, language)

    def _look(
        self, direction: Direction, place: int, part: Part, text: str, prompt_language: Language | None
    ) -> Iterator[None]:
        context = Context(direction, part=part, prompt_language=prompt_language)
        guard = StreamGuard(self.active.policy, self.active.checks(direction), context, stretch=AT_ONCE)
        looked = _Text(place, part, text, guard)
        for start in range(0, len(text), SLICE_CHARACTERS):
            self._take(direction, looked, guard.feed(text[start : start + SLICE_CHARACTERS], 0.0))
            yield
        self._take(direction, looked, guard.finish(0.0))
        yield

    def _take(self, direction: Direction, text: _Text, step: Step) -> None:
        found = self.findings.setdefault(direction, [])
        found += (Located(text.place, text.part, finding) for finding in step.findings)
        self._waiting += ((direction, text, pending) for pending in step.work)

    @property
    def needs_models(self) -> bool:
        """Whether models are to be asked, once the steps are over."""
        return bool(self._waiting)

    async def models(self, ask: Ask) -> None:
        """Ask the models, as many at once as the policy allows for one text, each for its time budget."""
        queue = deque(self._waiting)
        self._waiting.clear()
        while queue:
            batch = [queue.popleft() for _ in range(min(len(queue), self.active.policy.limits.max_pending))]
            answers = await asyncio.gather(*(_within_budget(ask, pending) for _, _, pending in batch))
            for (direction, text, pending), hits in zip(batch, answers, strict=True):
                self._take(direction, text, text.guard.resolve(pending.id, hits, 0.0))
            queue += self._waiting
            self._waiting.clear()


async def _within_budget(ask: Ask, pending: Pending) -> Sequence[Hit] | str:
    budget_ms = pending.active.rule.time_budget_ms
    try:
        async with asyncio.timeout(budget_ms / 1000):
            return await ask(pending)
    except TimeoutError:
        return f"no verdict within {budget_ms} ms"
