"""The events of a streamed answer of /v1/responses, with every text in them checked. Pure: events in, events out.

Texts arrive as `...delta` events and are said again as a whole by `...done` events and by the final one. The deltas
go through an engine for each text; an event that says texts again waits until these have gone out, and says what
went out. A text that never came as deltas goes through an engine where it is first said. Order is kept: while one event
waits, so do those behind it. A blocked answer ends with `response.incomplete` and the reason content_filter.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from guardrails.chat_streams import TOOL_TEXTS, UNCHECKED, ChatStep, Json, Located, Work, error_object
from guardrails.checks.base import Part
from guardrails.streaming import Ending, Step, StreamGuard
from guardrails.verdicts import Hit

_Key = tuple[str, ...]

_PARTS = {
    "response.output_text": Part.CONTENT,
    "response.refusal": Part.REFUSAL,
    "response.function_call_arguments": Part.ARGUMENTS,
    "response.custom_tool_call_input": Part.ARGUMENTS,
    "response.mcp_call_arguments": Part.ARGUMENTS,
    "response.code_interpreter_call_code": Part.ARGUMENTS,
    "response.reasoning_text": Part.REASONING,
    "response.reasoning_summary_text": Part.REASONING,
}
_SAID_AGAIN = ("text", "refusal", "arguments", "input", "code")
_TEXTS_OF_PARTS = {"text": (Part.CONTENT, Part.REASONING), "refusal": (Part.REFUSAL,)}
_FINAL = frozenset({"response.completed", "response.incomplete", "response.failed"})


@dataclass(slots=True)
class _Text:
    number: int
    part: Part
    guard: StreamGuard
    template: Json
    sent: list[str] = field(default_factory=list)
    silent: bool = False
    """It is said as a whole only, never in deltas."""


class ResponsesStreamGuard:
    """The checks on one streamed answer of responses."""

    def __init__(self, guard_for: Callable[[Part], StreamGuard], *, observes_only: bool = False) -> None:
        """`guard_for` makes a new engine for a text; `observes_only` lets events through as they came."""
        self._guard_for = guard_for
        self._observes_only = observes_only
        self._texts: dict[_Key, _Text] = {}
        self._queue: deque[Json] = deque()
        self._response: Json = {}
        self._sequence = 0
        self._over = False
        self._doomed = False
        self._closed = False

    def feed(self, event: Json, now: float) -> ChatStep:
        """Take a parsed event."""
        got = _Collected()
        if self._over:
            return got.step(cancel=self._doomed)
        if isinstance(event.get("response"), dict):
            kept = {key: value for key, value in event["response"].items() if key not in UNCHECKED}
            if not self._observes_only and len(kept) < len(event["response"]):
                event = {**event, "response": kept}
            self._response = kept
        kind = str(event.get("type", ""))
        base, _, last = kind.rpartition(".")
        if last == "delta" and isinstance(event.get("delta"), str):
            self._delta(event, base, now, got)
        else:
            if not self._observes_only:
                event = _emptied(event) if last == "added" else event
                for key, part, whole in self._unheard(event, base, last):
                    self._say(key, part, whole, now, got)
            if last == "done":
                self._finish_text(self._key(event, base), now, got)
            if kind in _FINAL or kind == "error":
                self._finish_all(now, got)
            self._queue.append(event)
            self._let_go(got)
        if self._observes_only:
            got.objects[:] = [event]
        return got.step(cancel=self._doomed)

    def finish(self, now: float) -> ChatStep:
        """The engine's stream is over."""
        got = _Collected()
        self._closed = True
        self._finish_all(now, got)
        self._let_go(got)
        return got.step(cancel=self._doomed)

    def resolve(self, work: Work, hits: Sequence[Hit] | str, now: float) -> ChatStep:
        """Take a model's verdict, or the reason why there is none."""
        got = _Collected()
        text = next(text for text in self._texts.values() if text.number == work.choice)
        self._put(text, text.guard.resolve(work.pending.id, hits, now), got)
        self._let_go(got)
        return got.step(cancel=self._doomed)

    def expire(self, now: float) -> ChatStep:
        """Give up on verdicts whose time is over."""
        got = _Collected()
        for text in self._texts.values():
            if text.guard.next_deadline is not None and text.guard.next_deadline <= now:
                self._put(text, text.guard.expire(now), got)
        self._let_go(got)
        return got.step(cancel=self._doomed)

    @property
    def next_deadline(self) -> float | None:
        """When `expire` has something to do."""
        every = (text.guard.next_deadline for text in self._texts.values())
        return min((deadline for deadline in every if deadline is not None), default=None)

    @property
    def outstanding(self) -> int:
        """Verdicts that are still to come."""
        return sum(text.guard.outstanding for text in self._texts.values())

    @property
    def finished(self) -> bool:
        """Whether everything that may go out has gone."""
        return self._over or (self._closed and not self._queue and all(t.guard.ending for t in self._texts.values()))

    @staticmethod
    def _key(event: Json, base: str) -> _Key:
        places = ("output_index", "content_index", "summary_index")
        return (base, *(str(event.get(place, "")) for place in places))

    def _delta(self, event: Json, base: str, now: float, got: _Collected) -> None:
        key = self._key(event, base)
        text = self._texts.get(key)
        if text is None:
            part = _PARTS.get(base, Part.REASONING)
            text = self._texts[key] = _Text(len(self._texts), part, self._guard_for(part), {})
        text.template = {name: value for name, value in event.items() if name not in ("delta", "logprobs")}
        self._put(text, text.guard.feed(event["delta"], now), got)

    def _unheard(self, event: Json, base: str, last: str) -> Iterator[tuple[_Key, Part, str]]:
        """The texts that an event says as a whole and of which no delta came, each when its turn comes."""
        index, content = str(event.get("output_index", "")), str(event.get("content_index", ""))
        if last == "done" and self._key(event, base) not in self._texts:
            for name in _SAID_AGAIN:
                if isinstance(event.get(name), str) and event[name]:
                    yield self._key(event, base), _PARTS.get(base, Part.REASONING), event[name]
                    return
        if isinstance(event.get("part"), dict):
            yield from self._unheard_part(event["part"], index, content, str(event.get("summary_index", "")))
        if isinstance(event.get("item"), dict):
            yield from self._unheard_item(event["item"], index)
        response = event.get("response")
        output = response.get("output") if isinstance(response, dict) else None
        for place, item in enumerate(output if isinstance(output, list) else ()):
            if isinstance(item, dict):
                yield from self._unheard_item(item, str(place))

    def _unheard_item(self, item: Json, index: str) -> Iterator[tuple[_Key, Part, str]]:
        for name in TOOL_TEXTS:
            if isinstance(item.get(name), str) and item[name] and self._of_tool(name, index) is None:
                yield (name, index, "", ""), Part.ARGUMENTS, item[name]
        for name in ("content", "summary"):
            parts = item.get(name)
            for place, part in enumerate(parts if isinstance(parts, list) else ()):
                if isinstance(part, dict):
                    places = (str(place), "") if name == "content" else ("", str(place))
                    yield from self._unheard_part(part, index, *places)

    def _unheard_part(self, part: Json, index: str, content: str, summary: str) -> Iterator[tuple[_Key, Part, str]]:
        for name, kinds in _TEXTS_OF_PARTS.items():
            heard = any(self._sent(kind, index, content, summary) is not None for kind in kinds)
            if isinstance(part.get(name), str) and part[name] and not heard:
                yield (name, index, content, summary), kinds[0], part[name]

    def _say(self, key: _Key, part: Part, whole: str, now: float, got: _Collected) -> None:
        """Check a text of which no delta came."""
        if self._over:
            return
        text = self._texts[key] = _Text(len(self._texts), part, self._guard_for(part), {}, silent=True)
        self._put(text, text.guard.feed(whole, now), got)
        self._finish_text(key, now, got)

    def _finish_text(self, key: _Key, now: float, got: _Collected) -> None:
        text = self._texts.get(key)
        if text is not None and text.guard.ending is None:
            self._put(text, text.guard.finish(now), got)

    def _finish_all(self, now: float, got: _Collected) -> None:
        for key in list(self._texts):
            if not self._over:
                self._finish_text(key, now, got)

    def _put(self, text: _Text, step: Step, got: _Collected) -> None:
        got.findings += (Located(text.number, text.part, finding) for finding in step.findings)
        if self._over:
            return
        got.work += (Work(text.number, (text.part.value,), pending) for pending in step.work)
        if step.text:
            text.sent.append(step.text)
            if not text.silent:
                self._queue.append({**text.template, "delta": step.text})
                self._let_go(got)
        self._doomed = self._doomed or step.doomed
        if step.ending is Ending.BLOCKED:
            self._flush_deltas(got)
            self._over = True
            response = {
                **self._response,
                "status": "incomplete",
                "incomplete_details": {"reason": "content_filter"},
                "output": [],
            }
            self._send({"type": "response.incomplete", "response": response}, got)
        elif step.ending is Ending.FAILED:
            self._over = got.failed = True
            check = next((f.check for f in reversed(step.findings) if f.verdict == "error"), "guardrails")
            told = error_object(check)["error"]
            self._send({"type": "error", "code": told["code"], "message": told["message"], "param": None}, got)

    def _flush_deltas(self, got: _Collected) -> None:
        for event in self._queue:
            if "delta" in event:
                self._send(event, got)
        self._queue.clear()

    def _let_go(self, got: _Collected) -> None:
        """Send queued events up to the first that says a text again which has not all gone out."""
        while self._queue and not self._over:
            if not self._may_go(self._queue[0]):
                return
            self._send(self._said_anew(self._queue.popleft()), got)

    def _may_go(self, event: Json) -> bool:
        kind = str(event.get("type", ""))
        if "delta" in event:
            return True
        base, _, last = kind.rpartition(".")
        if last == "done" and self._key(event, base) in self._texts:
            return self._texts[self._key(event, base)].guard.ending is not None
        if kind in ("response.content_part.done", "response.output_item.done", "response.reasoning_summary_part.done"):
            index = str(event.get("output_index", ""))
            return all(text.guard.ending for key, text in self._texts.items() if key[1] == index)
        return kind not in _FINAL or all(text.guard.ending for text in self._texts.values())

    def _said_anew(self, event: Json) -> Json:
        """An event that says texts again, with what went out in their place."""
        base, _, last = str(event.get("type", "")).rpartition(".")
        if last in ("delta", "added") or "delta" in event:
            return event
        text = self._texts.get(self._key(event, base))
        if text is not None:
            whole = "".join(text.sent)
            changed = {key: whole for key in _SAID_AGAIN if isinstance(event.get(key), str)}
            return {**event, **changed, **({"logprobs": []} if event.get("logprobs") else {})}
        index, content = str(event.get("output_index", "")), str(event.get("content_index", ""))
        if isinstance(event.get("part"), dict):
            summary = str(event.get("summary_index", ""))
            return {**event, "part": self._part(event["part"], index, content, summary)}
        if isinstance(event.get("item"), dict):
            return {**event, "item": self._item(event["item"], index)}
        if isinstance(event.get("response"), dict) and isinstance(event["response"].get("output"), list):
            items = [
                self._item(item, str(place)) if isinstance(item, dict) else item
                for place, item in enumerate(event["response"]["output"])
            ]
            return {**event, "response": {**event["response"], "output": items}}
        return event

    def _sent(self, part: Part, index: str, content: str, summary: str = "") -> str | None:
        for key, text in self._texts.items():
            if text.part is part and key[1:] == (index, content, summary):
                return "".join(text.sent)
        return None

    def _of_tool(self, name: str, index: str) -> str | None:
        """What went out of a tool's text: by its name, where it never came as deltas. Its output never does."""
        said = self._texts.get((name, index, "", ""))
        if said is not None:
            return "".join(said.sent)
        if name == "output":
            return None
        deltas = (text for key, text in self._texts.items() if key[0] not in TOOL_TEXTS and key[1:] == (index, "", ""))
        return next(("".join(text.sent) for text in deltas if text.part is Part.ARGUMENTS), None)

    def _part(self, part: Json, index: str, content: str, summary: str = "") -> Json:
        changed: Json = {}
        for name, parts in _TEXTS_OF_PARTS.items():
            if isinstance(part.get(name), str):
                found = (self._sent(kind, index, content, summary) for kind in parts)
                whole = next((sent for sent in found if sent is not None), None)
                if whole is not None:
                    changed[name] = whole
        return {**part, **changed, **({"logprobs": []} if part.get("logprobs") else {})}

    def _item(self, item: Json, index: str) -> Json:
        changed = dict(item)
        for name in TOOL_TEXTS:
            sent = self._of_tool(name, index)
            if isinstance(item.get(name), str) and sent is not None:
                changed[name] = sent
        for name in ("content", "summary"):
            parts = item.get(name)
            if isinstance(parts, list):
                changed[name] = [
                    self._part(part, index, *((str(place), "") if name == "content" else ("", str(place))))
                    if isinstance(part, dict)
                    else part
                    for place, part in enumerate(parts)
                ]
        return changed

    def _send(self, event: Json, got: _Collected) -> None:
        """Events are numbered anew, since one may have become several or none."""
        self._sequence += 1
        got.objects.append({**event, "sequence_number": self._sequence - 1})


def _emptied(event: Json) -> Json:
    """An event that begins an item or a part, without text: that comes in deltas, or once it is complete."""
    changed = dict(event)
    if isinstance(event.get("item"), dict):
        told = {name: "" for name in TOOL_TEXTS if isinstance(event["item"].get(name), str)}
        lists: Json = {name: [] for name in ("content", "summary") if isinstance(event["item"].get(name), list)}
        changed["item"] = {**event["item"], **told, **lists}
    if isinstance(event.get("part"), dict):
        changed["part"] = {**event["part"], **{n: "" for n in _TEXTS_OF_PARTS if isinstance(event["part"].get(n), str)}}
    return changed


@dataclass(slots=True)
class _Collected:
    objects: list[Json] = field(default_factory=list)
    findings: list[Located] = field(default_factory=list)
    work: list[Work] = field(default_factory=list)
    failed: bool = False

    def step(self, *, cancel: bool) -> ChatStep:
        return ChatStep(tuple(self.objects), tuple(self.findings), tuple(self.work), cancel or self.failed, self.failed)
