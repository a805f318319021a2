"""OpenAI's objects of an answer, streamed or whole, with every text in them checked. Pure: objects in, objects out.

    ChatStreamGuard   the chunks of /v1/chat/completions and /v1/completions
    hold_texts        where the texts of a whole answer are, for the same engine

Every choice has its own guards, one for each of its texts: content, reasoning, refusal, each tool call's arguments,
and any other text that an engine may put beside them. What isn't text goes through as it came. Log probabilities
repeat the text, so they come with the last chunk of a choice, and not at all where something was changed or blocked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from guardrails.checks.base import Part
from guardrails.streaming import Ending, Pending, Step, StreamGuard
from guardrails.verdicts import Finding, Hit

Json = dict[str, Any]
Place = tuple[str, ...]
"""Where a text lies in a choice's delta: `("content",)`, `("tool_calls", "0", "arguments")`."""

PARTS = {
    "content": Part.CONTENT,
    "text": Part.CONTENT,
    "refusal": Part.REFUSAL,
    "arguments": Part.ARGUMENTS,
    "input": Part.ARGUMENTS,
}
_NO_TEXT = frozenset({"role", "name", "id", "type", "stop_reason", "index"})
_REPEATS_TEXT = ("logprobs", "token_ids", "prompt_token_ids", "prompt_logprobs")
UNCHECKED = ("input_messages", "output_messages")
"""What vLLM puts beside a response on request: all it read and said once more, tokens and all. Never let out."""
TOOL_TEXTS = ("arguments", "input", "code", "output")
"""Where an item of a response holds what a tool is told, or what it said."""
ERROR_CODE = "guardrail_unavailable"


def part_of(place: Place) -> Part:
    """What kind of text lies at a place."""
    return PARTS.get(place[-1], Part.REASONING)


def error_object(check: str) -> Json:
    """The object that ends a stream when a check could not run and the policy fails closed."""
    message = f"The answer was stopped because a safety check ({check}) could not be run. Try again."
    return {"error": {"message": message, "type": "server_error", "param": None, "code": ERROR_CODE}}


@dataclass(frozen=True, slots=True)
class Work:
    """A text of one choice for a model."""

    choice: int
    place: Place
    pending: Pending


@dataclass(frozen=True, slots=True)
class Located:
    """A finding, and in which text of the answer it is."""

    choice: int
    part: Part
    finding: Finding


@dataclass(frozen=True, slots=True)
class ChatStep:
    """What came of one call."""

    objects: tuple[Json, ...] = ()
    """To be sent now, in order; after the last of a stream comes `[DONE]`, except after an error object."""
    findings: tuple[Located, ...] = ()
    work: tuple[Work, ...] = ()
    cancel: bool = False
    """Nothing of what the engine still generates will be sent: cancel it."""
    failed: bool = False
    """The last object is an error object: end the stream after it."""


@dataclass(slots=True)
class _Choice:
    index: int
    guards: dict[Place, StreamGuard] = field(default_factory=dict)
    finish: Json | None = None
    """The choice's part of the chunk that ends it, while texts before it wait."""
    repeats: list[Json] = field(default_factory=list)
    ended: Ending | None = None
    doomed: bool = False
    envelope: Json = field(default_factory=dict)


class ChatStreamGuard:
    """The checks on one streamed answer of chat or completions."""

    def __init__(self, guard_for: Callable[[Part], StreamGuard], *, observes_only: bool = False) -> None:
        """Begin.

        Args:
            guard_for: makes a new engine for a text of this kind.
            observes_only: nothing is ever held or changed, so chunks go through as they came.
        """
        self._guard_for = guard_for
        self._observes_only = observes_only
        self._choices: dict[int, _Choice] = {}
        self._envelope: Json = {}
        self._after: list[Json] = []
        """Chunks without choices (usage) that came while a choice still waited."""
        self._failed = False
        self._closed = False

    def feed(self, chunk: Json, now: float) -> ChatStep:
        """Take a parsed chunk."""
        step = _Collected()
        if self._failed:
            return step.done()
        choices = chunk.get("choices")
        if not isinstance(choices, list) or not choices:
            if self._waiting():
                self._after.append(chunk)
            else:
                step.objects.append(chunk)
            return step.done(cancel=self._all_doomed())
        self._envelope = {key: value for key, value in chunk.items() if key not in ("choices", "usage")}
        for part in choices:
            if isinstance(part, dict):
                self._take(part, now, step)
        if self._observes_only:
            step.objects[:] = [chunk]
        elif chunk.get("usage") is not None and not self._failed:
            self._with_usage(chunk["usage"], step)
        return step.done(cancel=self._all_doomed(), failed=self._failed)

    def finish(self, now: float) -> ChatStep:
        """The engine's stream is over (`[DONE]`, or it broke off): let go what may go."""
        step = _Collected()
        self._closed = True
        for choice in self._choices.values():
            if choice.ended is None and not self._failed:
                self._advance(choice, now, step, last=True)
        self._flush_after(step)
        return step.done(cancel=self._all_doomed(), failed=self._failed)

    def resolve(self, work: Work, hits: Sequence[Hit] | str, now: float) -> ChatStep:
        """Take a model's verdict, or the reason why there is none."""
        step = _Collected()
        choice = self._choices[work.choice]
        got = choice.guards[work.place].resolve(work.pending.id, hits, now)
        self._put(choice, work.place, got, step)
        self._settle(choice, now, step)
        return step.done(cancel=self._all_doomed(), failed=self._failed)

    def expire(self, now: float) -> ChatStep:
        """Give up on verdicts whose time is over."""
        step = _Collected()
        for choice in list(self._choices.values()):
            for place, guard in list(choice.guards.items()):
                if guard.next_deadline is not None and guard.next_deadline <= now:
                    self._put(choice, place, guard.expire(now), step)
            self._settle(choice, now, step)
        return step.done(cancel=self._all_doomed(), failed=self._failed)

    @property
    def next_deadline(self) -> float | None:
        """When `expire` has something to do."""
        every = (guard.next_deadline for choice in self._choices.values() for guard in choice.guards.values())
        return min((deadline for deadline in every if deadline is not None), default=None)

    @property
    def outstanding(self) -> int:
        """Verdicts that are still to come."""
        return sum(guard.outstanding for choice in self._choices.values() for guard in choice.guards.values())

    @property
    def finished(self) -> bool:
        """Whether everything that may go out has gone."""
        return self._failed or (self._closed and not self._waiting())

    # --- one choice ------------------------------------------------------------------------------------------------

    def _take(self, part: Json, now: float, step: _Collected) -> None:
        index = part.get("index", 0)
        choice = self._choices.setdefault(index, _Choice(index))
        choice.envelope = self._envelope
        if choice.ended is not None or self._failed:
            return
        rest, texts = split_texts(part)
        kept = {key: rest.pop(key) for key in _REPEATS_TEXT if rest.get(key) is not None}
        if kept:
            choice.repeats.append(kept)
        finish = rest.get("finish_reason") is not None
        if finish:
            choice.finish = rest
        elif _says_something(rest):
            step.objects.append(self._object(rest, choice))
        for place, text in texts:
            guard = choice.guards.get(place)
            if guard is None:
                guard = choice.guards[place] = self._guard_for(part_of(place))
            self._put(choice, place, guard.feed(text, now), step)
        if finish:
            self._advance(choice, now, step, last=True)
        else:
            self._settle(choice, now, step)

    def _advance(self, choice: _Choice, now: float, step: _Collected, *, last: bool) -> None:
        if last and not choice.guards:  # an empty answer is checked too
            choice.guards[("content",)] = self._guard_for(Part.CONTENT)
        for place, guard in list(choice.guards.items()):
            if guard.ending is None and choice.ended is None:
                self._put(choice, place, guard.finish(now), step)
        self._settle(choice, now, step)

    def _put(self, choice: _Choice, place: Place, got: Step, step: _Collected) -> None:
        step.findings += (Located(choice.index, part_of(place), finding) for finding in got.findings)
        if choice.ended is not None or self._failed:
            return
        step.work += (Work(choice.index, place, pending) for pending in got.work)
        if got.text:
            step.objects.append(self._object(_joined(choice.index, place, got.text), choice))
        choice.doomed = choice.doomed or got.doomed
        if got.ending is Ending.BLOCKED:
            self._end(choice, {**_bare(choice), "finish_reason": "content_filter"}, Ending.BLOCKED, step)
        elif got.ending is Ending.FAILED:
            check = next((f.check for f in reversed(got.findings) if f.verdict == "error"), "guardrails")
            self._failed = True
            choice.ended = Ending.FAILED
            step.objects.append(error_object(check))

    def _settle(self, choice: _Choice, now: float, step: _Collected) -> None:
        """End a choice whose texts have all gone out."""
        if choice.ended is not None or self._failed:
            return
        if choice.finish is not None and all(guard.ending is Ending.FINISHED for guard in choice.guards.values()):
            last = dict(choice.finish)
            if choice.repeats and not any(guard.redacted for guard in choice.guards.values()):
                last.update(_together(choice.repeats))
            self._end(choice, last, Ending.FINISHED, step)

    def _end(self, choice: _Choice, last: Json, ending: Ending, step: _Collected) -> None:
        choice.ended = ending
        choice.repeats.clear()
        step.objects.append(self._object(last, choice))
        self._flush_after(step)

    def _object(self, part: Json, choice: _Choice) -> Json:
        return {**choice.envelope, "choices": [part]}

    # --- the whole answer ------------------------------------------------------------------------------------------

    def _waiting(self) -> bool:
        return not self._observes_only and any(choice.ended is None for choice in self._choices.values())

    def _flush_after(self, step: _Collected) -> None:
        if not self._waiting() and not self._failed:
            step.objects += self._after
            self._after.clear()

    def _with_usage(self, usage: object, step: _Collected) -> None:
        """Usage that came in a chunk with text goes with the last object of it, or by itself."""
        if step.objects:
            step.objects[-1] = {**step.objects[-1], "usage": usage}
        elif not self._waiting():
            step.objects.append({**self._envelope, "choices": [], "usage": usage})

    def _all_doomed(self) -> bool:
        over = (choice.doomed or choice.ended is not None for choice in self._choices.values())
        stopped = any(c.doomed or c.ended in (Ending.BLOCKED, Ending.FAILED) for c in self._choices.values())
        return self._failed or (stopped and all(over))


@dataclass(slots=True)
class _Collected:
    objects: list[Json] = field(default_factory=list)
    findings: list[Located] = field(default_factory=list)
    work: list[Work] = field(default_factory=list)

    def done(self, *, cancel: bool = False, failed: bool = False) -> ChatStep:
        return ChatStep(tuple(self.objects), tuple(self.findings), tuple(self.work), cancel, failed)


def _bare(choice: _Choice) -> Json:
    """A choice's part without text, in the shape that its endpoint has."""
    completion = any(place == ("text",) for place in choice.guards)
    return {"index": choice.index, **({"text": ""} if completion else {"delta": {}}), "logprobs": None}


def split_texts(part: Json) -> tuple[Json, list[tuple[Place, str]]]:
    """A choice's part without its texts, and the texts with their places."""
    rest = dict(part)
    texts: list[tuple[Place, str]] = []
    if isinstance(part.get("text"), str):
        texts.append((("text",), part["text"]))
        rest["text"] = ""
    delta = part.get("delta")
    if not isinstance(delta, dict):
        return rest, texts
    kept: Json = {}
    for key, value in delta.items():
        if isinstance(value, str) and key not in _NO_TEXT:
            texts.append(((key,), value))
        elif key == "content" and isinstance(value, list):  # parts, of which the texts are one text
            parts = [part for part in value if isinstance(part, dict)]
            texts.append(((key,), "".join(p["text"] for p in parts if isinstance(p.get("text"), str))))
        elif key == "tool_calls" and isinstance(value, list):
            kept[key] = [_split_call(call, texts, place) for place, call in enumerate(value)]
        elif key == "function_call" and isinstance(value, dict):
            kept[key] = _split_function(value, texts, (key,))
        else:
            kept[key] = value
    rest["delta"] = kept
    return rest, [(place, text) for place, text in texts if text]


def _split_call(call: object, texts: list[tuple[Place, str]], place: int) -> object:
    if not isinstance(call, dict):
        return call
    index = str(call.get("index", place))
    if isinstance(call.get("custom"), dict) and isinstance(call["custom"].get("input"), str):
        texts.append((("tool_calls", index, "input"), call["custom"]["input"]))
        call = {**call, "custom": {**call["custom"], "input": ""}}
    if not isinstance(call.get("function"), dict):
        return call
    return {**call, "function": _split_function(call["function"], texts, ("tool_calls", index))}


def _split_function(function: Json, texts: list[tuple[Place, str]], place: Place) -> Json:
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        return function
    texts.append(((*place, "arguments"), arguments))
    return {**function, "arguments": ""}


def _says_something(rest: Json) -> bool:
    """Whether anything is left that a client would miss: a role, the head of a tool call, what an engine adds."""
    delta = rest.get("delta")
    if isinstance(delta, dict):
        calls = delta.get("tool_calls")
        if isinstance(calls, list) and any(_has_head(call) for call in calls):
            return True
        return any(value not in (None, "", [], {}) for key, value in delta.items() if key != "tool_calls")
    return False


def _has_head(call: object) -> bool:
    if not isinstance(call, dict):
        return True
    function = call.get("function")
    return bool(call.get("id")) or (isinstance(function, dict) and bool(function.get("name")))


def _joined(index: int, place: Place, text: str) -> Json:
    """A choice's part that carries a text at its place."""
    part: Json = {"index": index, "logprobs": None, "finish_reason": None}
    if place == ("text",):
        return {**part, "text": text}
    if place[0] == "tool_calls" and place[-1] == "input":
        return {**part, "delta": {"tool_calls": [{"index": int(place[1]), "custom": {"input": text}}]}}
    if place[0] == "tool_calls":
        return {**part, "delta": {"tool_calls": [{"index": int(place[1]), "function": {"arguments": text}}]}}
    if place[0] == "function_call":
        return {**part, "delta": {"function_call": {"arguments": text}}}
    return {**part, "delta": {place[0]: text}}


def _together(repeats: list[Json]) -> Json:
    """Log probabilities and token ids of many chunks as those of one."""
    whole: Json = {}
    for piece in repeats:
        for key, value in piece.items():
            whole[key] = _append(whole.get(key), value)
    return whole


def _append(before: object, value: object) -> object:
    if before is None:
        return value
    if isinstance(before, list) and isinstance(value, list):
        return before + value
    if isinstance(before, dict) and isinstance(value, dict):
        return {key: _append(before.get(key), value.get(key)) for key in dict.fromkeys((*before, *value))}
    return before if value is None else value


# --- whole answers ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Slot:
    """A text in an object: what kind it is, to which choice it belongs, and how to put another in its place."""

    choice: int
    part: Part
    text: str
    put: Callable[[str], None]


def hold_texts(answer: Json) -> Iterator[Slot]:
    """The texts of a whole answer of chat, completions or responses. Putting another text changes the object given."""
    choices = answer.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, dict):
            index = choice.get("index", 0)
            if isinstance(choice.get("text"), str):
                yield _slot(index, choice, "text")
            if isinstance(choice.get("message"), dict):
                yield from _message_slots(index, choice["message"])
    output = answer.get("output")
    for place, item in enumerate(output if isinstance(output, list) else ()):
        if isinstance(item, dict):
            yield from _item_slots(place, item)


def _slot(choice: int, holder: Json, key: str) -> Slot:
    return Slot(choice, PARTS.get(key, Part.REASONING), holder[key], lambda text: holder.__setitem__(key, text))


def _message_slots(index: int, message: Json) -> Iterator[Slot]:
    for key, value in message.items():
        if isinstance(value, str) and key not in _NO_TEXT:
            yield _slot(index, message, key)
        for part in value if key == "content" and isinstance(value, list) else ():
            if isinstance(part, dict) and isinstance(part.get("text"), str):
                yield _slot(index, part, "text")
    calls = message.get("tool_calls")
    functions = [call.get("function") for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
    for function in (*functions, message.get("function_call")):
        if isinstance(function, dict) and isinstance(function.get("arguments"), str):
            yield _slot(index, function, "arguments")
    for call in calls if isinstance(calls, list) else ():
        custom = call.get("custom") if isinstance(call, dict) else None
        if isinstance(custom, dict) and isinstance(custom.get("input"), str):
            yield _slot(index, custom, "input")


def _item_slots(place: int, item: Json) -> Iterator[Slot]:
    for name in TOOL_TEXTS:
        if isinstance(item.get(name), str):
            slot = _slot(place, item, name)
            yield Slot(place, Part.ARGUMENTS, slot.text, slot.put)
    for key in ("content", "summary"):
        parts = item.get(key)
        for part in parts if isinstance(parts, list) else ():
            for name in ("text", "refusal"):
                if isinstance(part, dict) and isinstance(part.get(name), str):
                    slot = _slot(place, part, name)
                    reasoning = item.get("type") == "reasoning"
                    yield Slot(slot.choice, Part.REASONING, slot.text, slot.put) if reasoning else slot


def strip_repeats(answer: Json, choice: int) -> None:
    """Take away what would repeat the text of a choice that was changed."""
    for part in answer.get("choices") or ():
        if isinstance(part, dict) and part.get("index", 0) == choice:
            for key in _REPEATS_TEXT:
                if part.get(key) is not None:
                    part[key] = None
