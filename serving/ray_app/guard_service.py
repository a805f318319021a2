"""The guardrails' models as a Ray Serve application: `import_path: serving.ray_app.guard_service:build`.

All gateways ask it (`guardrails/model_checks/service.py`), each in batches of its own; Serve puts together what comes
at the same time once more and runs the models on all of it in one call, in a thread. It scales by itself, on the
requests that are under way. A replica answers on a port of its own, past Ray's proxy, and tells gateways where it is in
the way that engines do (`GET /-/engine`).
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Sequence
from typing import Any

from pydantic import Field
from ray import serve

from guardrails.checks.learned import TOXICITY
from guardrails.errors import CheckFailed
from guardrails.model_checks.base import ModelText
from guardrails.model_checks.learned import LearnedChecks
from guardrails.model_checks.wire import read_request, write_answer
from guardrails.verdicts import Hit
from serving.guard_service.app import application
from serving.ray_app.asgi import Application, Scope
from serving.specs import GUARD_APPLICATION, Frozen

DEPLOYMENT = "guardrails"
WHEREABOUTS = "/-/engine"
REQUESTS_IN_BATCH = 8
BATCH_WAIT_S = 0.002
"""How long the first request of a batch waits for others: less than one text takes."""
BUSY_REQUESTS = 4.0
"""Requests under way in a replica above which another one is started."""


class GuardArgs(Frozen):
    """What the application is built from."""

    min_replicas: int = Field(default=1, ge=1)
    max_replicas: int = Field(default=4, ge=1)
    cpus: float = Field(default=0.0, ge=0)
    """What Ray counts a replica as; 0 where engines and models share a small machine."""


class GuardReplica:
    """Runs the models; Serve makes one per replica, in a process of its own."""

    def __init__(self) -> None:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # replicas are the way to use more cores
        self._learned = LearnedChecks()
        self._learned.warm_up((TOXICITY.name,))
        self._boot = secrets.token_hex(8)

    async def answer(self, body: bytes) -> bytes:
        """The hits for the texts of one request.

        Raises:
            ValueError: it is no request for a check.
            CheckFailed: the model could not be run.
        """
        texts = read_request(body)
        found: Sequence[Sequence[Hit]] | CheckFailed = await self.examine(texts)
        if isinstance(found, CheckFailed):
            raise found
        return write_answer(found)

    @serve.batch(  # type: ignore[untyped-decorator]
        max_batch_size=REQUESTS_IN_BATCH, batch_wait_timeout_s=BATCH_WAIT_S
    )
    async def examine(self, requests: list[list[ModelText]]) -> list[Sequence[Sequence[Hit]] | CheckFailed]:
        """What the models find in the texts of several requests; one that fails harms no other kind's."""
        return await asyncio.to_thread(examined, self._learned, requests)

    def __serve_build_asgi_app__(self) -> Application:
        """The application that Serve runs on the replica's port."""
        return application(self.answer, self._page, f"GET {WHEREABOUTS}")

    def _page(self, scope: Scope) -> tuple[int, Any] | None:
        return (200, whereabouts(scope, self._boot)) if str(scope["path"]).endswith(WHEREABOUTS) else None


def examined(
    learned: LearnedChecks, requests: Sequence[Sequence[ModelText]]
) -> list[Sequence[Sequence[Hit]] | CheckFailed]:
    """The hits of each request's texts, each model called once with all texts that are for it."""
    answers: list[Sequence[Sequence[Hit]] | CheckFailed] = [()] * len(requests)
    by_kind: dict[str, list[int]] = {}
    for number, texts in enumerate(requests):
        if texts:
            by_kind.setdefault(texts[0].active.kind.name, []).append(number)
    for kind, numbers in by_kind.items():
        try:
            found = learned.by_kind[kind]([text for number in numbers for text in requests[number]])
        except CheckFailed as error:
            answers = [error if number in numbers else answer for number, answer in enumerate(answers)]
            continue
        at = 0
        for number in numbers:
            answers[number] = found[at : at + len(requests[number])]
            at += len(requests[number])
    return answers


def whereabouts(scope: Scope, boot: str) -> dict[str, Any]:
    """Where gateways reach this replica: as whoever asks has reached it."""
    host, port = scope["server"]
    prefix = str(scope.get("root_path") or "") or str(scope["path"]).removesuffix(WHEREABOUTS)
    shown = f"[{host}]" if ":" in str(host) else host
    return {
        "url": f"http://{shown}:{port}{prefix}",
        "boot": boot,
        "engine": "guardrails",
        "application": GUARD_APPLICATION,
        "ready": True,
    }


def build(args: dict[str, Any]) -> serve.Application:
    """Make the application; called by Serve with the `args` of its configuration."""
    parsed = GuardArgs.model_validate(args)
    deployment = serve.deployment(
        name=DEPLOYMENT,
        ray_actor_options={"num_cpus": parsed.cpus},
        max_ongoing_requests=64,
        autoscaling_config={
            "min_replicas": parsed.min_replicas,
            "max_replicas": max(parsed.min_replicas, parsed.max_replicas),
            "target_ongoing_requests": BUSY_REQUESTS,
            "upscale_delay_s": 2.0,
            "downscale_delay_s": 60.0,
        },
        health_check_period_s=5.0,
        graceful_shutdown_wait_loop_s=0.2,
        graceful_shutdown_timeout_s=5.0,
    )(serve.ingress()(GuardReplica))
    return deployment.bind()
