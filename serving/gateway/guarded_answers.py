"""Release an answer through the guardrails of the version that gave it: whole, or a stream piece by piece.

What the engine said goes into the transcript as it came: outcomes and the judge look at the version's own words. What
the client gets is what the policy lets out. A stream is checked within the read that brings its pieces; only models
are waited for in tasks. A block or a failed check ends the client's stream at once and closes the engine's connection,
which cancels generation.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from guardrails.chat_streams import ChatStep, ChatStreamGuard, Json, Work, error_object
from guardrails.pipeline import AnswerResult
from guardrails.responses_streams import ResponsesStreamGuard
from guardrails.verdicts import Direction, Hit, Verdict
from serving.errors import ServingError
from serving.gateway.guard_records import GuardRecord
from serving.gateway.guarding import PolicyInForce
from serving.openai_protocol import Operation
from serving.streaming import DONE

logger = logging.getLogger("tidegate.gateway")

MOST_WHOLE_BYTES = 16 * 1024 * 1024
"""An answer that is not streamed is held until it is complete; a longer one can't be checked."""
MOST_EVENT_BYTES = 16 * 1024 * 1024
"""An event of a stream that is longer is given up: one with the log-probabilities of a long prompt has some MiB."""
LONG_CHARACTERS = 8_192
"""The end of a stream of which more than this is held is looked at in a thread."""
SLACK_S = 0.001


class GenerationStopped(ServingError):
    """The guardrails have ended an answer: its engine need not go on."""


class EndlessEvent(ServingError):
    """An event of a stream is longer than any that is held."""


class Events:
    """Server-sent events out of bytes that are cut anywhere: the data of each, or the comment that it is."""

    def __init__(self) -> None:
        self._rest: list[bytes] = []
        """Of an event that has not ended; joined only where it may have, so that a long one is not copied with each."""
        self._size = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The data of each event that is complete now; lines of one event are joined by a newline.

        Raises:
            EndlessEvent: one is too long; what was held of it is gone.
        """
        if not data:
            return []
        self._rest.append(data)
        self._size += len(data)
        whole: list[bytes] = []
        seam = self._rest[-2][-1:] + data if len(self._rest) > 1 else data
        if b"\n\n" in seam or b"\r" in seam:
            data = b"".join(self._rest)
            if b"\r" in data:
                kept = data.endswith(b"\r")  # perhaps half of a CR LF
                data = (data[:-1] if kept else data).replace(b"\r\n", b"\n").replace(b"\r", b"\n") + b"\r" * kept
            *whole, rest = data.split(b"\n\n")
            self._rest, self._size = [rest] if rest else [], len(rest)
        if self._size > MOST_EVENT_BYTES:
            self._rest, self._size = [], 0
            raise EndlessEvent(f"an event of a stream is longer than {MOST_EVENT_BYTES} bytes")
        return [payload for event in whole if (payload := _data_of(event))]

    def finish(self) -> list[bytes]:
        """What is left when nothing comes any more."""
        rest, self._rest, self._size = b"".join(self._rest), [], 0
        payload = _data_of(rest.replace(b"\r", b"\n"))
        return [payload] if payload else []


def _data_of(event: bytes) -> bytes:
    if event[:5] == b"data:" and b"\n" not in event:
        return event[5:].strip()
    return b"\n".join(line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:"))


def _parsed(payload: bytes) -> Json | None:
    try:
        value = orjson.loads(payload)
    except ValueError:
        try:  # half a surrogate pair, say, which orjson refuses and engines send
            value = json.loads(payload)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, dict) else None


def _written(value: Json) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(value).encode()


class GuardedStream:
    """One streamed answer on its way from the engine to the client. `feed` is called from within a read."""

    def __init__(
        self,
        policy: PolicyInForce,
        operation: Operation,
        prompt_language: Any,  # noqa: ANN401 - guardrails' Language or None
        write: Callable[[bytes], object],
        stop: Callable[[], object],
        record: GuardRecord,
    ) -> None:
        """Begin.

        Args:
            policy: that of the version that answers.
            operation: says which events to expect.
            prompt_language: the language that the user wrote in, where it is known.
            write: sends bytes to the client.
            stop: called once when nothing of what the engine still says will be sent.
            record: where findings are written down.
        """
        self._guardrails = policy.guardrails
        self._named = operation is Operation.RESPONSES
        self._guard: ChatStreamGuard | ResponsesStreamGuard = (
            self._guardrails.responses_guard(prompt_language)
            if self._named
            else self._guardrails.chat_guard(prompt_language)
        )
        self._write = write
        self._stop = stop
        self._record = record
        self._events = Events()
        self._done = False
        self._tasks: dict[asyncio.Task[Sequence[Hit] | str], Work] = {}
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._news: asyncio.Future[None] | None = None
        self._characters = 0
        self.blocked = False
        """Nothing more of the engine is wanted; what was cleared before the block still goes out."""
        self.failed = False
        """A check could not run; the client was told."""
        self.unreadable = False
        """The engine sent what can't be read, so it can't be checked."""

    @property
    def over(self) -> bool:
        """Whether nothing that the engine still says will be sent."""
        return self.blocked or self.failed or self.unreadable

    def feed(self, data: bytes) -> None:
        """Take bytes of the engine's stream."""
        self._characters += len(data)
        if self.over:
            return
        try:
            self._take_events(self._events.feed(data))
        except EndlessEvent:
            self._give_up("limits")
        except Exception as error:
            self._raised(error)

    def _raised(self, error: Exception) -> None:
        """A check, or what leads to it, has raised. Within the engine's read that must not count as its cut."""
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        where = f"{trace.tb_frame.f_code.co_qualname}:{trace.tb_lineno}" if trace is not None else "?"
        logger.error(
            "checking an answer raised %s in %s; it is closed", type(error).__name__, where
        )  # without its text
        self._give_up("guardrails")

    def _give_up(self, check: str) -> None:
        """Fail closed: tell the client, and stop the engine."""
        if self.over:
            return
        self.failed = True
        self._record.check = check
        told: Json = error_object(check)
        if self._named:
            error = told["error"]
            told = {"type": "error", "code": error["code"], "message": error["message"], "param": None}
        self._send((told,))
        self._stop()
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    def _take_events(self, payloads: list[bytes]) -> None:
        for payload in payloads:
            if self.over:
                return
            if payload == DONE:
                self._done = True
                continue
            value = _parsed(payload)
            if value is None:  # what can't be read can't be checked
                self.unreadable = True
                self._stop()
                return
            if value.get("error") and not value.get("choices") and not self._named:
                self._send((value,))
                continue
            self._take(self._guard.feed(value, time.monotonic()))

    async def finish(self) -> None:
        """The engine's stream is over: let go what may go, wait for verdicts that are under way."""
        try:
            self._take_events(self._events.finish())
            if not self.over:
                guard, now = self._guard, time.monotonic()
                long = self._characters > 16 * LONG_CHARACTERS  # an event has some 200 bytes beside its text
                self._take(await asyncio.to_thread(guard.finish, now) if long else guard.finish(now))
        except Exception as error:
            self._raised(error)
        while self._tasks and not (self.failed or self.unreadable or self._guard.finished):
            self._news = self._loop.create_future()
            await self._news
        self._record.output = self._verdict()
        self.close()

    def _verdict(self) -> Verdict:
        if self.blocked or self.failed or self.unreadable:
            return Verdict.BLOCK if self.blocked and not self.failed else Verdict.ERROR
        found = {verdict for side, _, verdict in self._record.counts if side is Direction.OUTPUT}
        if Verdict.REDACT in found:
            return Verdict.REDACT
        return Verdict.FLAG if found else Verdict.ALLOW

    def say_done(self) -> None:
        """End the stream as its endpoint does."""
        if self._done or not self._named:
            self._write(b"data: [DONE]\n\n")

    def close(self) -> None:
        """Give up on verdicts that are still to come, but for those that only observe. Safe to call twice."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._guard.finished and self._guard.outstanding and not self.failed:
            self._guardrails.observe_on(self._guard, self._tasks)
            self._tasks = {}
        for task in self._tasks:
            task.cancel()
        self._tasks.clear()

    # Steps

    def _take(self, step: ChatStep) -> None:
        if step.objects:
            self._send(step.objects)
        self._record.add(Direction.OUTPUT, step.findings)
        for located in step.findings:
            verdict = located.finding.verdict
            if verdict is Verdict.BLOCK or (verdict is Verdict.ERROR and step.failed):
                self._record.check = located.finding.check
        for work in step.work if not step.failed else ():
            task = self._loop.create_task(self._guardrails.ask(work.pending))
            self._tasks[task] = work
            task.add_done_callback(self._answered)
        if step.failed:
            self.failed = True
            self._stop()
        elif step.cancel and not self.blocked:
            self.blocked = True
            self._stop()
            self._take(self._guard.finish(time.monotonic()))
        self._watch()
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    def _send(self, objects: Sequence[Json]) -> None:
        if self._named:
            data = (b"event: %b\ndata: %b\n\n" % (str(o.get("type", "message")).encode(), _written(o)) for o in objects)
        else:
            data = (b"data: %b\n\n" % _written(o) for o in objects)
        self._write(b"".join(data))

    def _answered(self, task: asyncio.Task[Sequence[Hit] | str]) -> None:
        work = self._tasks.pop(task, None)
        if work is None or task.cancelled() or self.failed or self.unreadable:
            return
        try:
            self._take(self._guard.resolve(work, task.result(), time.monotonic()))
        except Exception as error:
            self._raised(error)

    def _watch(self) -> None:
        """Be woken when the next verdict's time is over."""
        deadline = self._guard.next_deadline if self._tasks else None
        if self._timer is not None and (deadline is None or self._timer.when() > deadline + SLACK_S):
            self._timer.cancel()
            self._timer = None
        if deadline is not None and self._timer is None:
            self._timer = self._loop.call_later(max(0.0, deadline - time.monotonic()) + SLACK_S, self._expire)

    def _expire(self) -> None:
        self._timer = None
        if not (self.failed or self.unreadable):
            try:
                self._take(self._guard.expire(time.monotonic()))
            except Exception as error:
                self._raised(error)


@dataclass(frozen=True, slots=True)
class Checked:
    """A whole answer after its checks: what is to be sent, unless a check could not run."""

    result: AnswerResult | None
    body: bytes


async def check_whole(policy: PolicyInForce, body: bytes, prompt_language: Any, record: GuardRecord) -> Checked:  # noqa: ANN401
    """Check a whole answer; `result` is None when it can't be read."""
    answer = _parsed(body)
    if answer is None:
        return Checked(None, body)
    result = await policy.guardrails.check_answer(answer, prompt_language)
    record.output = result.verdict
    record.add(Direction.OUTPUT, result.findings)
    if result.verdict in (Verdict.BLOCK, Verdict.ERROR):
        wanted = result.verdict
        record.check = next((f.finding.check for f in result.findings if f.finding.verdict is wanted), "guardrails")
    return Checked(result, body if result.answer is answer else _written(result.answer))
