"""Model checks in the guardrails' own service: `serving/ray_app/guard_service.py`, on Ray Serve, for all gateways.

Texts that come while a call is under way wait and go into the next one; the service batches the calls of all gateways
once more. Each replica has a circuit breaker, and the next one is asked when a connection is refused.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import httpx

from guardrails.circuit import Circuit
from guardrails.errors import CheckFailed, CheckOverloaded, CheckTimedOut, CheckUnavailable
from guardrails.model_checks.base import ModelText
from guardrails.model_checks.wire import read_answer, write_request
from guardrails.verdicts import Hit

PATH = "/v1/examine"
CALL_S = 5.0
FAILURES_TO_OPEN = 3
OPEN_S = 2.0
CALLS_AT_ONCE = 4

_Waiting = list[tuple[ModelText, asyncio.Future[Sequence[Hit]]]]


@dataclass(eq=False)
class _Line:
    """Texts that wait for one kind of check."""

    waiting: _Waiting = field(default_factory=list)
    calls: set[asyncio.Task[None]] = field(default_factory=set)


class ServiceModelChecks:
    """Asks the replicas of the service in turn."""

    def __init__(
        self,
        urls: Callable[[], Sequence[str]],
        *,
        batch_texts: int = 16,
        waiting_texts: int = 256,
        client: httpx.AsyncClient | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin.

        Args:
            urls: the replicas that there are now.
            batch_texts: texts in one call at most.
            waiting_texts: texts that may wait for one kind; one more is refused at once.
            client: one's own, for tests.
            clock: counts seconds.
        """
        self._urls = urls
        self._batch_texts = batch_texts
        self._waiting_texts = waiting_texts
        self._client = client or httpx.AsyncClient(trust_env=False, timeout=CALL_S)
        self._clock = clock
        self._lines: dict[str, _Line] = {}
        self._circuits: dict[str, Circuit] = {}
        self._turn = 0
        self._closed = False

    def waiting(self, kind: str) -> int:
        """How many texts wait for a kind of check."""
        line = self._lines.get(kind)
        return len(line.waiting) if line is not None else 0

    async def examine(self, text: ModelText) -> Sequence[Hit]:
        """What the service finds, together with whoever waits at the same time."""
        line = self._lines.setdefault(text.active.kind.name, _Line())
        if self._closed:
            raise CheckUnavailable("the guardrails were stopped")
        if len(line.waiting) >= self._waiting_texts:
            raise CheckOverloaded(f"{len(line.waiting)} texts wait for the service, the limit; add replicas")
        answer: asyncio.Future[Sequence[Hit]] = asyncio.get_running_loop().create_future()
        line.waiting.append((text, answer))
        self._set_off(line)
        return await answer

    def _set_off(self, line: _Line) -> None:
        if line.waiting and len(line.calls) < CALLS_AT_ONCE:
            call = asyncio.get_running_loop().create_task(self._call(line))
            line.calls.add(call)
            call.add_done_callback(lambda done: self._over(line, done))

    def _over(self, line: _Line, call: asyncio.Task[None]) -> None:
        line.calls.discard(call)
        if not self._closed:
            self._set_off(line)

    async def _call(self, line: _Line) -> None:
        batch = [entry for entry in line.waiting[: self._batch_texts] if not entry[1].done()]
        del line.waiting[: self._batch_texts]
        if not batch:
            return
        failure: CheckFailed
        try:
            found = await self._ask([text for text, _ in batch])
        except CheckFailed as error:
            failure = error
        except asyncio.CancelledError:
            failure = CheckUnavailable("the guardrails were stopped")
        except Exception as error:
            failure = CheckUnavailable(f"asking the service raised {type(error).__name__}")
        else:
            for (_, answer), hits in zip(batch, found, strict=True):
                if not answer.done():
                    answer.set_result(hits)
            return
        for _, answer in batch:
            if not answer.done():
                answer.set_exception(failure)

    async def _ask(self, texts: Sequence[ModelText]) -> list[Sequence[Hit]]:
        body = write_request(texts)
        urls = self._urls()
        self._circuits = {url: self._circuits.get(url) or Circuit(FAILURES_TO_OPEN, OPEN_S) for url in urls}
        failure: CheckFailed = CheckUnavailable("the guardrails' service has no replica that answers; see its log")
        first, self._turn = self._turn, self._turn + 1
        for at in range(len(urls)):
            url = urls[(first + at) % len(urls)]
            circuit = self._circuits[url]
            if not circuit.admits(self._clock()):
                continue
            try:
                answer = await self._client.post(url + PATH, content=body)
                if answer.status_code == httpx.codes.BAD_REQUEST:
                    # It is well, and of a version that does not know this check or option: others may be newer.
                    circuit.succeeded()
                    failure = CheckUnavailable("the service does not know this check; is it of this release?")
                    continue
                if answer.status_code != httpx.codes.OK:
                    raise CheckUnavailable(f"the service answered {answer.status_code}")
                found = read_answer(answer.content, texts)
            except httpx.TimeoutException:
                circuit.failed(self._clock())
                raise CheckTimedOut(f"the service gave no answer in {CALL_S:.0f} s") from None
            except (httpx.HTTPError, CheckFailed) as error:
                circuit.failed(self._clock())
                failure = error if isinstance(error, CheckFailed) else CheckUnavailable(type(error).__name__)
                continue
            circuit.succeeded()
            return found
        raise failure

    async def close(self) -> None:
        """Give up on calls under way and close the connections."""
        self._closed = True
        calls = [call for line in self._lines.values() for call in line.calls]
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        for line in self._lines.values():
            for _, answer in line.waiting:
                if not answer.done():
                    answer.set_exception(CheckUnavailable("the guardrails were stopped"))
            line.waiting.clear()
        await self._client.aclose()
