"""Run a policy over requests, answers and streams. The shell: it reads the clock and awaits models.

Rules run here, in slices, so that other requests go on between two of them; models run behind the port
`ModelChecks`. Every call makes its own engines: nothing of one request is ever seen by another.
"""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace

from guardrails.chat_streams import (
    UNCHECKED,
    ChatStep,
    ChatStreamGuard,
    Json,
    Located,
    Work,
    hold_texts,
    strip_repeats,
)
from guardrails.checks.base import Context, Part, Scope
from guardrails.enforcement import ActiveCheck, ActivePolicy, judge
from guardrails.errors import CheckFailed
from guardrails.model_checks.base import ModelChecks, ModelText
from guardrails.normalise import View
from guardrails.policy import Mode
from guardrails.prompts import PromptText, Seam, prompt_of, seams
from guardrails.responses_streams import ResponsesStreamGuard
from guardrails.streaming import Ending, Pending, Step, StreamGuard
from guardrails.text_units import Stretch, language_of
from guardrails.verdicts import Direction, Edit, Finding, Hit, Language, Verdict, apply_edits, in_order, worst

SLICE_CHARACTERS = 1_024
"""How much is looked at before other requests have their turn: 2 to 4 ms of work."""
AT_ONCE = Stretch(max_characters=1_000, whole_sentences=False)
"""A text that is there at once is looked at in larger stretches than a stream."""
TEXTS_AT_ONCE = 8
"""Texts of one request whose models run at the same time."""
UNCHECKABLE = "token-ids"
"""The name under which a prompt of token ids is reported."""


@dataclass(frozen=True, slots=True)
class InputResult:
    """What the policy says about a request."""

    verdict: Verdict
    """allow, flag and redact: forward `body`; block: refuse; error: 503 with Retry-After, a check could not run."""
    body: Json
    """The request, redacted if that was the verdict; the very object that came in otherwise."""
    findings: tuple[Located, ...]
    """`choice` counts messages here."""
    language: Language

    @property
    def failed_check(self) -> str | None:
        """The check that could not run, when that is the verdict."""
        return _failed_check(self.verdict, self.findings)


@dataclass(frozen=True, slots=True)
class AnswerResult:
    """What the policy says about a whole answer."""

    verdict: Verdict
    """block: the blocked choices are empty and end with content_filter; error: send a 503 instead."""
    answer: Json
    findings: tuple[Located, ...]

    @property
    def failed_check(self) -> str | None:
        """The check that could not run, when that is the verdict."""
        return _failed_check(self.verdict, self.findings)


def _failed_check(verdict: Verdict, findings: Sequence[Located]) -> str | None:
    failed = (found.finding.check for found in findings if found.finding.verdict is Verdict.ERROR)
    return next(failed, "guardrails") if verdict is Verdict.ERROR else None


@dataclass(slots=True)
class _Checked:
    """One text after its checks."""

    text: str
    ending: Ending | None
    findings: list[Finding] = field(default_factory=list)
    redacted: bool = False


LateReport = Callable[[tuple[Located, ...]], None]


class Guardrails:
    """One policy in force, with what runs its models. Shared by all requests of a version."""

    def __init__(
        self,
        active: ActivePolicy,
        models: ModelChecks,
        *,
        clock: Callable[[], float] = time.monotonic,
        report_late: LateReport | None = None,
    ) -> None:
        """Begin.

        Args:
            active: the policy with its checks.
            models: runs its model checks.
            clock: counts seconds.
            report_late: takes findings of checks that only observe, when they come after the result.
        """
        self._active = active
        self._models = models
        self._clock = clock
        self._report_late = report_late or (lambda _: None)
        self._background: set[asyncio.Task[None]] = set()

    # --- requests --------------------------------------------------------------------------------------------------

    async def check_input(self, body: Json) -> InputResult:
        """Check a request: each text by itself, and neighbours joined, so that nothing hides in the seam."""
        checks = self._active.checks(Direction.INPUT)
        prompt = prompt_of(body)
        language = language_of("\n".join(text.text[-1000:] for text in prompt.texts if text.role == "user")[-2000:])
        if not checks:
            return InputResult(Verdict.ALLOW, body, (), language)
        changed = copy.deepcopy(body)
        texts = [text for text in prompt_of(changed).texts if text.role in self._active.policy.roles]
        checked = await self._check_prompt_texts(texts, checks)
        located = [
            Located(text.message, text.part, finding)
            for text, result in zip(texts, checked, strict=True)
            for finding in result.findings
        ]
        endings = {result.ending for result in checked}
        redacted = any(result.redacted for result in checked)
        if Ending.BLOCKED not in endings and len(texts) > 1:
            at_seams, edits = await self._check_seams([result.text for result in checked], checks)
            located += (Located(texts[index].message, texts[index].part, finding) for index, finding in at_seams)
            endings |= {Ending.BLOCKED} if _blocks(checks, [finding for _, finding in at_seams]) else set()
            redacted = redacted or bool(edits)
            for index, found in edits.items():
                checked[index].text = apply_edits(checked[index].text, found)
        if prompt.has_token_ids and any(active.rule.enforces for active in checks):
            reason = "the prompt is given as token ids or embeddings, which can't be checked; send text"
            located.append(
                Located(0, Part.CONTENT, Finding(UNCHECKABLE, Verdict.BLOCK, 0, 0, 1.0, Language.OTHER, reason))
            )
            endings.add(Ending.BLOCKED)
        for text, result in zip(texts, checked, strict=True):
            if result.text != text.text:
                text.put(result.text)
        verdict = _verdict(endings, redacted=redacted, findings=[found.finding for found in located])
        return InputResult(verdict, changed if redacted else body, tuple(located), language)

    async def _check_prompt_texts(self, texts: Sequence[PromptText], checks: Sequence[ActiveCheck]) -> list[_Checked]:
        """Each by itself, a few at the same time: there may be thousands."""
        done: dict[int, _Checked] = {}
        left = iter(enumerate(texts))

        async def work() -> None:
            for place, text in left:
                context = Context(Direction.INPUT, part=text.part)
                done[place] = await self._check_text(text.text, checks, context, text.message)
                await asyncio.sleep(0)  # an empty one has not let others have their turn

        await asyncio.gather(*(work() for _ in range(min(TEXTS_AT_ONCE, len(texts)))))
        return [done[place] for place in range(len(texts))]

    async def _check_seams(
        self, texts: Sequence[str], checks: Sequence[ActiveCheck]
    ) -> tuple[list[tuple[int, Finding]], dict[int, list[Edit]]]:
        """Rules only, on neighbours joined with and without a space."""
        found: list[tuple[int, Finding]] = []
        edits: dict[int, list[Edit]] = {}
        rules = [active for active in checks if active.check is not None and active.kind.scope is Scope.WINDOW]
        for seam in (*seams(texts, " "), *seams(texts, "")):
            for start in range(0, len(seam.joined), SLICE_CHARACTERS):
                part = _part_of_seam(seam, start)
                for finding in in_order(_findings(rules, part, start)):
                    if not seam.crosses(finding):
                        continue
                    found.append((seam.first_text(finding), finding))
                    if finding.verdict is Verdict.REDACT and _enforces(checks, finding):
                        for index, edit in seam.edits(finding):
                            edits.setdefault(index, []).append(edit)
                await asyncio.sleep(0)
        unique = list({(index, f.check, f.reason, f.verdict): (index, f) for index, f in found}.values())
        return unique, {index: _disjoint(every) for index, every in edits.items()}

    # --- whole answers ---------------------------------------------------------------------------------------------

    async def check_answer(self, answer: Json, prompt_language: Language | None = None) -> AnswerResult:
        """Check a whole answer of chat, completions or responses."""
        checks = self._active.checks(Direction.OUTPUT)
        if not checks:
            return AnswerResult(Verdict.ALLOW, answer, ())
        changed = copy.deepcopy(answer)
        slots = list(hold_texts(changed))
        context = Context(Direction.OUTPUT, prompt_language=prompt_language)
        checked = await asyncio.gather(
            *(self._check_text(s.text, checks, replace(context, part=s.part), s.choice) for s in slots)
        )
        located: list[Located] = []
        touched = any(changed.pop(key, None) is not None for key in UNCHECKED)
        for slot, result in zip(slots, checked, strict=True):
            located += (Located(slot.choice, slot.part, finding) for finding in result.findings)
            if result.text != slot.text:
                slot.put(result.text)
                strip_repeats(changed, slot.choice)
                touched = True
            if result.ending is Ending.BLOCKED:
                _say_blocked(changed, slot.choice)
                touched = True
        verdict = _verdict(
            {result.ending for result in checked},
            redacted=any(result.redacted for result in checked),
            findings=[found.finding for found in located],
        )
        return AnswerResult(verdict, changed if touched else answer, tuple(located))

    # --- one text --------------------------------------------------------------------------------------------------

    async def _check_text(self, text: str, checks: Sequence[ActiveCheck], context: Context, choice: int) -> _Checked:
        guard = StreamGuard(self._active.policy, checks, context, stretch=AT_ONCE)
        result = _Checked("", None)
        tasks: dict[asyncio.Task[Sequence[Hit] | str], Pending] = {}
        out: list[str] = []

        def take(step: Step) -> None:
            out.append(step.text)
            result.findings += step.findings
            for pending in step.work:
                tasks[asyncio.create_task(self.ask(pending))] = pending

        try:
            for start in range(0, len(text), SLICE_CHARACTERS):
                take(guard.feed(text[start : start + SLICE_CHARACTERS], self._clock()))
                await asyncio.sleep(0)
                if guard.ending is not None:
                    break
            if len(text) > 4 * SLICE_CHARACTERS:
                take(await asyncio.to_thread(guard.finish, self._clock()))
            else:
                take(guard.finish(self._clock()))
            while tasks and guard.ending is None:
                await _wait(tasks, guard.next_deadline, self._clock())
                for task in [task for task in tasks if task.done()]:
                    take(guard.resolve(tasks.pop(task).id, task.result(), self._clock()))
                take(guard.expire(self._clock()))
        finally:
            if guard.ending is not Ending.FINISHED:
                _cancel(tasks)
        if guard.outstanding:
            self._spawn(self._observe_on(guard, tasks, choice, context.part))
        result.text, result.ending, result.redacted = "".join(out), guard.ending, guard.redacted
        return result

    async def _observe_on(
        self,
        guard: StreamGuard,
        tasks: dict[asyncio.Task[Sequence[Hit] | str], Pending],
        choice: int,
        part: Part,
    ) -> None:
        """Wait for verdicts that change nothing any more, and report them."""
        while guard.outstanding:
            await _wait(tasks, guard.next_deadline, self._clock())
            steps = [guard.expire(self._clock())]
            done = [task for task in tasks if task.done()]
            steps += [guard.resolve(tasks.pop(task).id, task.result(), self._clock()) for task in done]
            for step in steps:
                for pending in step.work:
                    tasks[asyncio.create_task(self.ask(pending))] = pending
                if step.findings:
                    self._report_late(tuple(Located(choice, part, finding) for finding in step.findings))
        _cancel(tasks)

    async def ask(self, pending: Pending) -> Sequence[Hit] | str:
        """A model's hits, or why there are none."""
        return await asked(self._models, pending)

    # --- streams ---------------------------------------------------------------------------------------------------

    def chat_guard(self, prompt_language: Language | None = None) -> ChatStreamGuard:
        """The engine for one streamed answer, for a caller who drives it by himself."""
        return ChatStreamGuard(self._guard_maker(prompt_language), observes_only=self._observes_only)

    def responses_guard(self, prompt_language: Language | None = None) -> ResponsesStreamGuard:
        """The same for the events of /v1/responses."""
        return ResponsesStreamGuard(self._guard_maker(prompt_language), observes_only=self._observes_only)

    @property
    def _observes_only(self) -> bool:
        return not any(active.rule.holds for active in self._active.output)

    @property
    def active(self) -> ActivePolicy:
        """The policy with its checks."""
        return self._active

    def holds(self, direction: Direction) -> bool:
        """Whether a prompt, or an answer, has to wait for a verdict: some check can change or stop it."""
        return any(active.rule.holds for active in self._active.checks(direction))

    def _guard_maker(self, prompt_language: Language | None) -> Callable[[Part], StreamGuard]:
        def make(part: Part) -> StreamGuard:
            context = Context(Direction.OUTPUT, part=part, prompt_language=prompt_language)
            return StreamGuard(self._active.policy, self._active.output, context)

        return make

    async def guard_stream(
        self, chunks: AsyncIterator[Json], guard: ChatStreamGuard | ResponsesStreamGuard
    ) -> AsyncIterator[ChatStep]:
        """Drive a stream: parsed chunks in, steps out as soon as there is something to send or to know.

        After a step with `cancel` no more chunks are taken: the caller ends the upstream request. After one with
        `failed` nothing follows.
        """
        tasks: dict[asyncio.Task[Sequence[Hit] | str], Work] = {}
        source: asyncio.Future[Json] | None = None
        reading = True
        try:
            while reading or not guard.finished:
                if reading and not tasks:  # nothing to race with: nearly always
                    chunk = await anext(chunks, None)
                    step = guard.finish(self._clock()) if chunk is None else guard.feed(chunk, self._clock())
                    reading = chunk is not None
                else:
                    if reading and source is None:
                        source = asyncio.ensure_future(_next(chunks))
                    await _wait([*tasks, *([source] if source else [])], guard.next_deadline, self._clock())
                    if source is not None and source.done():
                        chunk, source = source.result(), None
                        reading = bool(chunk)
                        step = guard.feed(chunk, self._clock()) if chunk else guard.finish(self._clock())
                    else:
                        step = self._resolve_one(tasks, guard)
                if step.cancel and reading and not step.failed:
                    reading = False
                    step = _both(step, guard.finish(self._clock()))
                for work in step.work:
                    tasks[asyncio.create_task(self.ask(work.pending))] = work
                if step.objects or step.findings or step.cancel or step.failed:
                    yield step
                if step.failed:
                    return
                if not reading and not tasks and not step.work and not guard.finished:
                    break
        finally:
            if source is not None:
                source.cancel()
            self.observe_on(guard, tasks)

    def _resolve_one(
        self,
        tasks: dict[asyncio.Task[Sequence[Hit] | str], Work],
        guard: ChatStreamGuard | ResponsesStreamGuard,
    ) -> ChatStep:
        task = next((task for task in tasks if task.done()), None)
        if task is None:
            return guard.expire(self._clock())
        return guard.resolve(tasks.pop(task), task.result(), self._clock())

    def observe_on(
        self,
        guard: ChatStreamGuard | ResponsesStreamGuard,
        tasks: dict[asyncio.Task[Sequence[Hit] | str], Work],
    ) -> None:
        """A stream is over for its client: go on with checks that only observe, give up on all others."""
        if guard.finished and guard.outstanding and tasks:
            self._spawn(self._observe_stream_on(guard, tasks))
        else:
            _cancel(tasks)

    async def _observe_stream_on(
        self,
        guard: ChatStreamGuard | ResponsesStreamGuard,
        tasks: dict[asyncio.Task[Sequence[Hit] | str], Work],
    ) -> None:
        while guard.outstanding and tasks:
            await _wait(tasks, guard.next_deadline, self._clock())
            step = self._resolve_one(tasks, guard)
            for work in step.work:
                tasks[asyncio.create_task(self.ask(work.pending))] = work
            if step.findings:
                self._report_late(step.findings)
        _cancel(tasks)

    def _spawn(self, work: object) -> None:
        task = asyncio.ensure_future(work)  # type: ignore[call-overload]
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def observed(self) -> None:
        """Wait until all that still observes in the background has reported."""
        await asyncio.gather(*self._background, return_exceptions=True)

    async def close(self) -> None:
        """Stop what still observes in the background."""
        for task in list(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)


async def asked(models: ModelChecks, pending: Pending) -> Sequence[Hit] | str:
    """A model's hits on a text, or why there are none, whatever went wrong."""
    try:
        hits = await models.examine(ModelText.of(pending))
        return hits if all(isinstance(hit, Hit) for hit in hits) else "its answer was no verdict"
    except CheckFailed as error:
        return type(error).__name__
    except Exception as error:
        return f"raised {type(error).__name__}"


async def _next(chunks: AsyncIterator[Json]) -> Json:
    """The next chunk, or an empty one at the end."""
    return await anext(chunks, None) or {}


async def _wait(tasks: object, deadline: float | None, now: float) -> None:
    """Until a task is done or the deadline has come."""
    timeout = None if deadline is None else max(0.0, deadline - now) + 0.001
    await asyncio.wait(list(tasks), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)  # type: ignore[call-overload]


def _cancel(
    tasks: dict[asyncio.Task[Sequence[Hit] | str], Pending] | dict[asyncio.Task[Sequence[Hit] | str], Work],
) -> None:
    """Give up on calls without waiting for them: one that hangs may not even listen to that."""
    for task in tasks:
        task.cancel()


def _both(first: ChatStep, second: ChatStep) -> ChatStep:
    return ChatStep(
        first.objects + second.objects,
        first.findings + second.findings,
        first.work + second.work,
        cancel=True,
        failed=first.failed or second.failed,
    )


def _verdict(endings: set[Ending | None], *, redacted: bool, findings: Sequence[Finding]) -> Verdict:
    """What happens to the whole: blocked before failed, since a block stands whatever another check would have said."""
    if Ending.BLOCKED in endings:
        return Verdict.BLOCK
    if Ending.FAILED in endings or None in endings:
        return Verdict.ERROR
    if redacted:
        return Verdict.REDACT
    return Verdict.ALLOW if worst(findings) is Verdict.ALLOW else Verdict.FLAG


def _enforces(checks: Sequence[ActiveCheck], finding: Finding) -> bool:
    return any(active.rule.name == finding.check and active.rule.mode is not Mode.OBSERVE for active in checks)


def _blocks(checks: Sequence[ActiveCheck], findings: Sequence[Finding]) -> bool:
    return any(finding.verdict is Verdict.BLOCK and _enforces(checks, finding) for finding in findings)


def _part_of_seam(seam: Seam, start: int) -> str:
    return seam.joined[max(0, start - SLICE_CHARACTERS // 4) : start + SLICE_CHARACTERS]


def _findings(rules: Sequence[ActiveCheck], text: str, start: int) -> list[Finding]:
    begin = max(0, start - SLICE_CHARACTERS // 4)
    view = View(text)
    context = Context(Direction.INPUT, language=language_of(text), preceding=begin)
    found: list[Finding] = []
    for active in rules:
        assert active.check is not None
        hits = [hit.moved(begin) for hit in active.check.examine(view, context)]
        found += judge(active.rule, hits, context.language)
    return found


def _disjoint(edits: list[Edit]) -> list[Edit]:
    """Edits of stars in order, without overlap."""
    merged: list[Edit] = []
    for edit in sorted(edits, key=lambda e: (e.start, e.end)):
        if merged and edit.start < merged[-1].end:
            end = max(edit.end, merged[-1].end)
            merged[-1] = Edit(merged[-1].start, end, "*" * (end - merged[-1].start))
        else:
            merged.append(edit)
    return merged


def _say_blocked(answer: Json, choice: int) -> None:
    """End a choice as blocked, whatever kind of answer it is."""
    for part in answer.get("choices") or ():
        if isinstance(part, dict) and part.get("index", 0) == choice:
            part["finish_reason"] = "content_filter"
            if isinstance(part.get("message"), dict):
                part["message"].pop("tool_calls", None)
    if isinstance(answer.get("output"), list):
        answer["status"] = "incomplete"
        answer["incomplete_details"] = {"reason": "content_filter"}
