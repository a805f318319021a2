"""Run the guardrails' models as a service: `python -m serving.guard_service.main --host 0.0.0.0 --port 8092`.

What gateways with `models: service` ask, where it is not a Ray Serve application: on a cluster every revision has a Ray
of its own, and models that all of them share belong to none. One process runs the models in one thread, in batches that
grow under load; more of them are the way to use more cores. It keeps nothing, logs no text, and asks nobody for
anything. It knows no key: a network policy says who reaches it, as with engines.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # before numpy is imported: replicas are the way to use more cores

import uvicorn  # noqa: E402

from guardrails.checks.learned import TOXICITY  # noqa: E402
from guardrails.errors import CheckOverloaded  # noqa: E402
from guardrails.model_checks.base import ModelText  # noqa: E402
from guardrails.model_checks.learned import LearnedChecks  # noqa: E402
from guardrails.model_checks.threads import ThreadModelChecks  # noqa: E402
from guardrails.model_checks.wire import read_request, write_answer  # noqa: E402
from monitoring.instruments import GuardServiceInstruments  # noqa: E402
from serving.gateway.logs import configure  # noqa: E402
from serving.guard_service.app import application  # noqa: E402
from serving.orderly_server import OrderlyServer  # noqa: E402
from serving.ray_app.asgi import Scope  # noqa: E402

BATCH_TEXTS = 64
WAITING_TEXTS = 1024
"""For each kind of check; gateways that bring more are refused, and ask another replica."""
MOST_CALLS = 256
CLOSING_S = 10.0

logger = logging.getLogger("tidegate.guardrails")


class Models:
    """The models of one process."""

    def __init__(self, learned: LearnedChecks | None = None) -> None:
        learned = learned or LearnedChecks()
        self._checks = ThreadModelChecks(
            learned.by_kind, warm_up=learned.warm_up, batch_texts=BATCH_TEXTS, waiting_texts=WAITING_TEXTS
        )
        self._instruments = GuardServiceInstruments()
        self._kinds = tuple(learned.by_kind)
        self.ready = False
        """Whether what nearly every policy asks for is loaded; the rest is when it is first asked for."""

    async def warm_up(self) -> None:
        """Load it."""
        await self._checks.warm_up((TOXICITY.name,))
        self.ready = True

    async def answer(self, body: bytes) -> bytes:
        """See `app.Answer`."""
        began, check, result = time.perf_counter(), "", "refused"
        try:
            texts = read_request(body)
            check, result = texts[0].active.kind.name if texts else "", "failed"
            answer = await self._examined(texts)
            result = "ok"
        except CheckOverloaded:
            result = "overloaded"
            raise
        finally:
            self._instruments.requests.labels(check, result).inc()
            self._instruments.duration.labels(check).observe(time.perf_counter() - began)
        self._instruments.texts.labels(check).inc(len(texts))
        return answer

    async def _examined(self, texts: Sequence[ModelText]) -> bytes:
        found = await asyncio.gather(*map(self._checks.examine, texts), return_exceptions=True)
        hits = []
        for one in found:
            if isinstance(one, BaseException):
                raise one
            hits.append(one)
        return write_answer(hits)

    def metrics(self, accept: str) -> tuple[bytes, str]:
        """See `app.Metrics`."""
        for kind in self._kinds:
            self._instruments.waiting.labels(kind).set(self._checks.waiting(kind))
        return self._instruments.render(accept)

    def page(self, scope: Scope) -> tuple[int, Any] | None:
        """Health, and whether it can do its part."""
        match scope["path"]:
            case "/healthz":
                return 200, {"status": "ok"}
            case "/readyz":
                return (200 if self.ready else 503), {"ready": self.ready}
            case _:
                return None


async def serve(host: str, port: int, models: Models) -> int:
    """Run until told to stop, or until the models turn out not to load. Returns the process's exit code."""
    config = uvicorn.Config(
        application(models.answer, models.page, "GET /healthz, /readyz, /metrics", models.metrics),
        host=host, port=port, log_level="warning", access_log=False, proxy_headers=False, server_header=False,
        limit_concurrency=MOST_CALLS, timeout_keep_alive=30, timeout_graceful_shutdown=int(CLOSING_S),
    )  # fmt: skip
    server = OrderlyServer(config)
    server.stop_on(signal.SIGTERM, signal.SIGINT)
    loading = asyncio.create_task(models.warm_up())
    loading.add_done_callback(lambda task: _loaded(task, server))
    await server.serve()
    return int(not loading.cancel() and loading.exception() is not None)


def _loaded(loading: asyncio.Task[None], server: uvicorn.Server) -> None:
    if not loading.cancelled() and (error := loading.exception()) is not None:  # else it would never be ready
        logger.error("the models can't be loaded; the service ends", exc_info=error)
        server.should_exit = True


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns 0, and 1 when the models can't be loaded."""
    parser = argparse.ArgumentParser(prog="python -m serving.guard_service.main", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on")
    parser.add_argument("--port", type=int, default=8092, help="the port")
    given = parser.parse_args(arguments)
    configure()
    return asyncio.run(serve(given.host, given.port, Models()))


if __name__ == "__main__":
    sys.exit(main())
