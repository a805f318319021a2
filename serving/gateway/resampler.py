"""Has some requests answered again for their semantic entropy (`serving.resampling` has the rules and the cost).

A copy is a task of its own after its client has the answer; nothing waits for it. Its answers go to the drift watch,
which embeds them and tells the score. Whatever goes wrong with it ends in a counter.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable

from monitoring.instruments import GatewayInstruments
from serving.errors import UpstreamError
from serving.gateway.attempts import Attempts, Call, Failure, Opened, failure_in
from serving.gateway.connection import Abandoned
from serving.gateway.drift_feed import DriftFeed
from serving.gateway.forwarding import passed_on
from serving.gateway.judging import read_transcript
from serving.gateway.mirror import MARK
from serving.gateway.request_ids import fresh_nonce
from serving.gateway.units import Unit
from serving.mirroring import MirrorResult
from serving.openai_protocol import Operation
from serving.resampling import ResampleSettings, sampling_body
from serving.scoring import Demand
from serving.streaming import Answer
from serving.traffic import RevisionTraffic

logger = logging.getLogger("tidegate.gateway")

SEMANTIC_ENTROPY = "semantic-entropy"
_TARGETS = {Operation.CHAT: b"/v1/chat/completions", Operation.COMPLETIONS: b"/v1/completions"}
_HEADERS = [(b"content-type", b"application/json"), MARK]


class Resampler:
    """Of one gateway. Made inside a running event loop.

    Args:
        settings: The budget.
        attempts: For copies alone: a prompt that kills an engine here must not be refused to a client.
        feed: Where the answers go.
        instruments: Where copies are counted, as mirrors are.
        waiting: How many clients wait for their turn at a model.
    """

    def __init__(
        self,
        settings: ResampleSettings,
        attempts: Attempts,
        feed: DriftFeed,
        instruments: GatewayInstruments,
        waiting: Callable[[str], int],
    ) -> None:
        self._settings = settings
        self._attempts = attempts
        self._feed = feed
        self._instruments = instruments
        self._waiting = waiting
        self._chance = random.Random()  # noqa: S311 - which requests are asked again is no secret
        self._tasks: set[asyncio.Task[None]] = set()

    def ended(self, unit: Unit, answer: Answer, answered_by: RevisionTraffic | None) -> None:
        """See `recorder.AfterReading`: ask again, perhaps."""
        traffic = unit.pick.route.traffic
        if SEMANTIC_ENTROPY not in traffic.scores or unit.question is None or not unit.judged:
            return
        if unit.guard is not None:  # what the guardrails let an engine read need not be what the client sent
            return
        if answered_by is not unit.revision or len(answer.texts) != 1 or not answer.has_content:
            return
        if not 0 < unit.pick.weight < 100 or self._chance.random() >= self._settings.rate:
            return
        body = sampling_body(unit.operation, unit.question.fields, self._settings)
        if body is None:
            return
        if len(self._tasks) >= self._settings.most_in_flight or self._waiting(traffic.model):
            self._count(unit, MirrorResult.DROPPED)
            return
        task = asyncio.get_running_loop().create_task(self._ask(unit, answer, body))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask(self, unit: Unit, answer: Answer, body: bytes) -> None:
        call = Call(
            unit=unit, target=_TARGETS[unit.operation], headers=_HEADERS, passed_on=passed_on(_HEADERS), body=body,
            prompt=body, nonce=fresh_nonce(), own_id=None, deadline=time.monotonic() + self._settings.timeout_s,
            own_lines=b"", show_version=False, key="", demand=Demand(), first_attempt=False, copied=True,
        )  # fmt: skip
        texts: tuple[str, ...] = ()
        try:
            result = await self._attempts.open(call, unit.revision)
            if isinstance(result, Opened):
                texts = await self._texts(call, result)
        except (UpstreamError, Abandoned):
            pass
        except Exception:
            logger.exception("asking a request again failed; it has no score")
        self._count(unit, MirrorResult.SENT if texts else MirrorResult.FAILED)
        if texts:
            self._feed.tell(unit, answer, unit.revision, texts)

    async def _texts(self, call: Call, opened: Opened) -> tuple[str, ...]:
        try:
            if isinstance(failure_in(opened, call.unit.operation), Failure) or opened.status >= 400:
                return ()
            opened.transcript.add(opened.first)
            if not opened.whole:
                await opened.connection.relay(opened.transcript.add)
            return read_transcript(call.unit.operation, opened.transcript).texts[: self._settings.samples]
        finally:
            self._attempts.close(call, opened)

    def _count(self, unit: Unit, result: MirrorResult) -> None:
        self._instruments.mirrored_request(unit.pick.route.model, unit.revision.version, result.value)

    def stop(self) -> None:
        """Give up what is under way."""
        for task in self._tasks:
            task.cancel()
