"""Model checks that another service does over HTTP: batching, a time-out and a circuit breaker around it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import httpx

from guardrails.checks.http_check import Api, HttpOptions, chat_body, classify_body, read_chat, read_classify
from guardrails.circuit import Circuit
from guardrails.errors import CheckFailed, CheckOverloaded, CheckTimedOut, CheckUnavailable, NonsenseAnswer
from guardrails.model_checks.base import ModelText
from guardrails.verdicts import Direction, Hit

MAX_ANSWER_BYTES = 1_000_000
_Scored = tuple[float, str]


@dataclass(eq=False)
class _Service:
    """One address with its options, and who waits for it."""

    options: HttpOptions
    budget_s: float
    circuit: Circuit
    waiting: list[tuple[ModelText, asyncio.Future[_Scored]]] = field(default_factory=list)
    task: asyncio.Task[None] | None = None
    calls: set[asyncio.Task[None]] = field(default_factory=set)


class HttpModelChecks:
    """Asks the services that rules of the kind `http` name. One object for a whole process."""

    def __init__(self, client: httpx.AsyncClient | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """`client` is one's own, for other certificates or proxies; `clock` counts seconds."""
        self._client = client or httpx.AsyncClient(trust_env=False, limits=httpx.Limits(max_connections=64))
        self._clock = clock
        self._services: dict[HttpOptions, _Service] = {}
        self._closed = False

    def circuit(self, options: HttpOptions) -> Circuit | None:
        """The state of a service that has been asked before."""
        service = self._services.get(options)
        return service.circuit if service else None

    async def examine(self, text: ModelText) -> Sequence[Hit]:
        """What the service says about a text: one hit on all of it, with its score."""
        options = text.active.options
        if not isinstance(options, HttpOptions) or self._closed:
            raise CheckUnavailable(f"no service for {text.active.rule.name!r}; only checks of the kind http have one")
        service = self._services.get(options)
        if service is None:
            circuit = Circuit(options.failures_to_open, options.open_s)
            service = _Service(options, text.active.rule.time_budget_ms / 1000, circuit)
            self._services[options] = service
        if len(service.waiting) >= options.waiting_texts:
            raise CheckOverloaded(
                f"{len(service.waiting)} texts wait for {options.url}, the limit; raise waiting_texts"
            )
        answer: asyncio.Future[_Scored] = asyncio.get_running_loop().create_future()
        service.waiting.append((text, answer))
        if service.task is None:
            service.task = asyncio.create_task(self._dispatch(service))
        score, reason = await answer
        return [text.whole(score, reason)] if score > 0 else []

    async def _dispatch(self, service: _Service) -> None:
        """Send what waits, in batches; each batch is a call of its own, so that a slow one holds up nobody."""
        options = service.options
        try:
            while service.waiting:
                if options.batch_wait_ms and len(service.waiting) < options.batch_texts:
                    await asyncio.sleep(options.batch_wait_ms / 1000)
                batch = [entry for entry in service.waiting[: options.batch_texts] if not entry[1].done()]
                del service.waiting[: options.batch_texts]
                if not batch:
                    continue
                if not service.circuit.admits(self._clock()):
                    wait_s = service.circuit.wait_s(self._clock())
                    _fail(batch, CheckUnavailable(f"{options.url} keeps failing; it is tried again in {wait_s:.0f} s"))
                    continue
                call = asyncio.create_task(self._call(service, batch))
                service.calls.add(call)
                call.add_done_callback(service.calls.discard)
        finally:
            service.task = None

    async def _call(self, service: _Service, batch: list[tuple[ModelText, asyncio.Future[_Scored]]]) -> None:
        try:
            async with asyncio.timeout(service.budget_s):
                scores = await self._ask(service.options, [text for text, _ in batch])
        except TimeoutError:
            self._failed(
                service, batch, CheckTimedOut(f"{service.options.url} gave no answer in {service.budget_s:.1f} s")
            )
        except CheckFailed as error:
            self._failed(service, batch, error)
        except httpx.HTTPError as error:
            self._failed(service, batch, CheckUnavailable(f"{service.options.url}: {type(error).__name__}"))
        except asyncio.CancelledError:
            _fail(batch, CheckUnavailable("the guardrails were stopped"))
            raise
        else:
            service.circuit.succeeded()
            for (_, answer), score in zip(batch, scores, strict=True):
                if not answer.done():
                    answer.set_result(score)

    def _failed(
        self, service: _Service, batch: list[tuple[ModelText, asyncio.Future[_Scored]]], error: CheckFailed
    ) -> None:
        service.circuit.failed(self._clock())
        _fail(batch, error)

    async def _ask(self, options: HttpOptions, texts: list[ModelText]) -> list[_Scored]:
        if options.api is Api.CLASSIFY:
            body = classify_body(options, [text.text for text in texts])
            return read_classify(options, await self._post(options, "/classify", body), len(texts))
        bodies = [chat_body(options, t.text, is_answer=t.context.direction is Direction.OUTPUT) for t in texts]
        async with asyncio.TaskGroup() as group:
            calls = [group.create_task(self._post_chat(options, body)) for body in bodies]
        outcomes = [call.result() for call in calls]
        failure = next((outcome for outcome in outcomes if isinstance(outcome, Exception)), None)
        if failure is not None:
            raise failure
        return [outcome for outcome in outcomes if isinstance(outcome, tuple)]

    async def _post_chat(self, options: HttpOptions, body: dict[str, object]) -> _Scored | Exception:
        try:
            return read_chat(options, await self._post(options, "/v1/chat/completions", body))
        except (CheckFailed, httpx.HTTPError) as error:
            return error

    async def _post(self, options: HttpOptions, path: str, body: dict[str, object]) -> object:
        key = os.environ.get(options.key_variable) if options.key_variable else None
        headers = {"authorization": f"Bearer {key}"} if key else {}
        async with self._client.stream("POST", options.url + path, json=body, headers=headers, timeout=None) as answer:
            data = bytearray()
            async for piece in answer.aiter_bytes():
                data += piece
                if len(data) > MAX_ANSWER_BYTES:
                    raise NonsenseAnswer(f"{options.url} answered more than {MAX_ANSWER_BYTES} bytes")
            if answer.status_code != httpx.codes.OK:
                raise CheckUnavailable(f"{options.url}{path} answered {answer.status_code}")
        try:
            return httpx.Response(200, content=bytes(data)).json()
        except ValueError:
            raise NonsenseAnswer(f"{options.url}{path} answered something that is not JSON") from None

    async def close(self) -> None:
        """Give up on calls under way and close the connections."""
        self._closed = True
        for service in self._services.values():
            tasks = [task for task in (service.task, *service.calls) if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            _fail(service.waiting, CheckUnavailable("the guardrails were stopped"))
            service.waiting.clear()
        await self._client.aclose()


def _fail(batch: list[tuple[ModelText, asyncio.Future[_Scored]]], error: CheckFailed) -> None:
    for _, answer in batch:
        if not answer.done():
            answer.set_exception(error)
