"""Asks a candidate its smoke suite, through the gateway, and remembers what it found. Shell around smoke.py.

The candidate is asked by its version's name (`chat@1.3.0`), so it is reached as users would reach it, without any of
their traffic. What says something about the version is a fault: a wrong answer, an engine's error, silence. What does
not (no gateway yet, no ready replica, a key that is not accepted) is tried again, and the rollout holds until then.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

import httpx
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_exponential_jitter

from rollout.observation import SmokeResult
from rollout.smoke import fault, request_body
from rollout.status import ModelStatus, RolloutState, Stage
from rollout.strategy_specs import BlueGreenStrategy, SmokeCase
from rollout.wording import name_of

log = logging.getLogger(__name__)

CASE_TIMEOUT_S = 120.0
"""How long one answer may take; an engine that is slower than this on a smoke case has failed it."""

AT_ONCE = 4
"""Cases asked at a time: a candidate that has just started is not to be overrun."""

MAX_ANSWER_BYTES = 1024 * 1024
ENGINE_TRIES = 3
"""An engine's own error must come this often before it is the case's fault."""

NOT_THE_VERSION = frozenset({401, 403, 404, 429, 503})
"""Answers of the gateway that say nothing about the version: no right, no table yet, no room, no ready endpoint."""


class _CannotAsk(Exception):
    """The candidate could not be asked."""


class _EngineFault(Exception):
    """The candidate was asked, and its engine failed."""


class SmokeRunner:
    """Runs the suite of every blue-green rollout that is in its preview, once. Call it from one event loop.

    Args:
        url: the gateway's address, without `/v1`.
        headers: what to send with each request, the key for instance; asked anew each time.
        client: for tests.

    """

    def __init__(
        self,
        url: str,
        headers: Callable[[], Mapping[str, str]],
        client: httpx.AsyncClient | None = None,
    ) -> None:
        self._url = url.rstrip("/") + "/v1/chat/completions"
        self._headers = headers
        self._client = client or httpx.AsyncClient(timeout=CASE_TIMEOUT_S, follow_redirects=False)
        self._room = asyncio.Semaphore(AT_ONCE)
        self._runs: dict[str, tuple[str, asyncio.Task[SmokeResult]]] = {}
        """By model: the rollout, and its run."""

    async def __aenter__(self) -> Self:
        """Nothing runs before the first call."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop what runs."""
        for _, task in self._runs.values():
            task.cancel()
        await asyncio.gather(*(task for _, task in self._runs.values()), return_exceptions=True)
        await self._client.aclose()

    def __call__(self, status: ModelStatus) -> SmokeResult | None:
        """What was found about a model's rollout so far; starts asking when its preview has begun."""
        rollout = status.rollout
        wanted = rollout is not None and rollout.stage is Stage.PREVIEWING and bool(_cases(rollout))
        known = self._runs.get(status.model)
        if known is not None and (rollout is None or known[0] != rollout.id or not rollout.active):
            known[1].cancel()
            del self._runs[status.model]
            known = None
        if known is None and wanted and rollout is not None:
            task = asyncio.get_running_loop().create_task(self._run(rollout), name=f"smoke-{rollout.id}")
            task.add_done_callback(self._told)
            self._runs[status.model] = (rollout.id, task)
            return None
        if known is None or not known[1].done() or known[1].cancelled() or known[1].exception() is not None:
            return None
        return known[1].result()

    def _told(self, task: asyncio.Task[SmokeResult]) -> None:
        if task.cancelled():
            return
        if (error := task.exception()) is not None:
            log.error("%s ended: %s; the rollout holds until it is asked again", task.get_name(), type(error).__name__)
            for model, (_, run) in tuple(self._runs.items()):
                if run is task:
                    del self._runs[model]

    async def _run(self, rollout: RolloutState) -> SmokeResult:
        cases = _cases(rollout)
        log.info("asking %s its %d smoke cases", name_of(rollout.target), len(cases))
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(self._case(case, name_of(rollout.target))) for case in cases]
        faults = {case.name: found for case, task in zip(cases, asked, strict=True) if (found := task.result())}
        message = "; ".join(f"{name}: {what}" for name, what in list(faults.items())[:5])
        return SmokeResult(passed=not faults, ran=len(cases), failed=tuple(faults), message=message)

    async def _case(self, case: SmokeCase, model: str) -> str | None:
        """What is wrong with the answer to one case, or None."""
        body = request_body(case, model)
        engine_faults = 0
        retrying = AsyncRetrying(
            retry=retry_if_exception_type((_CannotAsk, _EngineFault)),
            wait=wait_exponential_jitter(multiplier=0.2, max=5.0),
            before_sleep=_say,
        )
        async for attempt in retrying:
            with attempt:
                try:
                    async with self._room:
                        answer = await self._ask(body)
                except _EngineFault as error:
                    engine_faults += 1
                    if engine_faults >= ENGINE_TRIES:
                        return str(error)
                    raise
                return fault(case, answer)
        raise AssertionError("tenacity tries for ever")

    async def _ask(self, body: Mapping[str, Any]) -> str:
        try:
            async with self._client.stream("POST", self._url, json=body, headers=dict(self._headers())) as answer:
                raw = b""
                async for part in answer.aiter_bytes():
                    raw += part
                    if len(raw) > MAX_ANSWER_BYTES:
                        raise _EngineFault(f"answered with more than {MAX_ANSWER_BYTES} bytes")
                status = answer.status_code
        except httpx.ReadTimeout:
            raise _EngineFault(f"gave no answer within {CASE_TIMEOUT_S:.0f} s") from None
        except httpx.HTTPError as error:
            raise _CannotAsk(f"the gateway can't be asked: {type(error).__name__}") from None
        if status in NOT_THE_VERSION:
            raise _CannotAsk(f"the gateway answered with status {status}")
        if status != 200:
            raise _EngineFault(f"was answered with status {status}")
        return _text_of(raw)


def _say(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome is not None else None
    if state.attempt_number in (1, 5) or state.attempt_number % 20 == 0:
        log.warning("a smoke case could not be asked (attempt %d): %s", state.attempt_number, error)


def _cases(rollout: RolloutState) -> tuple[SmokeCase, ...]:
    plan = rollout.spec.strategy.chosen
    return plan.smoke if isinstance(plan, BlueGreenStrategy) else ()


def _text_of(raw: bytes) -> str:
    try:
        message = httpx.Response(200, content=raw).json()["choices"][0]["message"]
        return message.get("content") or ""
    except (ValueError, LookupError, TypeError, AttributeError):
        raise _EngineFault("gave an answer that is no chat completion") from None
