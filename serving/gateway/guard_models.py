"""Which adapter runs which model check of this gateway. What no policy needs is not loaded, nor even imported."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from guardrails.checks.http_check import HTTP
from guardrails.checks.learned import LEARNED
from guardrails.errors import CheckUnavailable
from guardrails.model_checks.base import ModelChecks, ModelText
from guardrails.verdicts import Hit
from serving.gateway.guard_settings import GuardSettings
from serving.gateway.logs import log

if TYPE_CHECKING:
    from guardrails.model_checks.http import HttpModelChecks
    from guardrails.model_checks.service import ServiceModelChecks
    from guardrails.model_checks.threads import ThreadModelChecks

LEARNED_KINDS = frozenset(kind.name for kind in LEARNED)
SWITCH_S = 0.001
"""How long a model's thread may keep Python's lock from the event loop: by default it would be 5 ms."""


class GuardModels:
    """A `ModelChecks` that makes its adapters when they are first needed. Made inside a running event loop."""

    def __init__(self, settings: GuardSettings, service_urls: Callable[[], Sequence[str]]) -> None:
        """`service_urls` names the replicas of the guardrails' own service, with `models: service`."""
        self._settings = settings
        self._service_urls = service_urls
        self._threads: ThreadModelChecks | None = None
        self._service: ServiceModelChecks | None = None
        self._http: HttpModelChecks | None = None
        self._warming: set[asyncio.Future[None]] = set()
        self._warm: set[str] = set()

    async def examine(self, text: ModelText) -> Sequence[Hit]:
        """What the adapter of its kind finds."""
        return await self._adapter(text.active.kind.name).examine(text)

    def _adapter(self, kind: str) -> ModelChecks:
        if kind == HTTP.name:
            return self._http_checks()
        if kind not in LEARNED_KINDS:
            raise CheckUnavailable(f"nothing runs checks of the kind {kind!r} here; leave the check out")
        return self._learned_service() if self._settings.models == "service" else self._learned_threads()

    def _http_checks(self) -> HttpModelChecks:
        if self._http is None:
            from guardrails.model_checks.http import HttpModelChecks

            self._http = HttpModelChecks()
        return self._http

    def _learned_service(self) -> ServiceModelChecks:
        if self._service is None:
            from guardrails.model_checks.service import ServiceModelChecks

            self._service = ServiceModelChecks(
                self._service_urls,
                batch_texts=self._settings.batch_texts,
                waiting_texts=self._settings.waiting_texts,
            )
        return self._service

    def _learned_threads(self) -> ThreadModelChecks:
        if self._threads is None:
            from guardrails.model_checks.learned import LearnedChecks
            from guardrails.model_checks.threads import ThreadModelChecks

            sys.setswitchinterval(SWITCH_S)
            learned = LearnedChecks()
            self._threads = ThreadModelChecks(
                learned.by_kind,
                warm_up=learned.warm_up,
                batch_texts=self._settings.batch_texts,
                waiting_texts=self._settings.waiting_texts,
                threads=self._settings.threads,
            )
        return self._threads

    def crowded(self, kind: str) -> bool:
        """Whether half of what may wait for a kind of check waits: then no request that needs it is let in."""
        settings = self._settings
        adapter = self._service if settings.models == "service" else self._threads
        return adapter is not None and kind in LEARNED_KINDS and 2 * adapter.waiting(kind) >= settings.waiting_texts

    def needed(self, kinds: frozenset[str]) -> None:
        """Load what these kinds need, in a thread, before a request waits for it."""
        fresh = (kinds & LEARNED_KINDS) - self._warm
        if fresh and self._settings.models == "threads":
            self._warm |= fresh
            task = asyncio.ensure_future(self._load(fresh))
            self._warming.add(task)
            task.add_done_callback(self._warming.discard)

    async def warm_up(self, kinds: frozenset[str]) -> None:
        """Load what these kinds need now."""
        await self._learned_threads().warm_up(kinds)

    async def _load(self, kinds: frozenset[str]) -> None:
        try:
            await self.warm_up(kinds)
        except Exception as error:
            self._warm -= kinds
            log(logging.ERROR, "guard-models-unusable", kinds=sorted(kinds), reason=str(error) or type(error).__name__)

    async def close(self) -> None:
        """Close what was made."""
        for task in self._warming:
            task.cancel()
        for adapter in (self._threads, self._service, self._http):
            if adapter is not None:
                await adapter.close()
