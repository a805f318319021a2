"""The two applications of a gateway: the data plane, and the admin port."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from functools import cache
from typing import Any, Final

from monitoring.instruments import GatewayInstruments
from serving.admission import Reason, Rejection, model_not_found
from serving.endpoints import EndpointBook
from serving.gateway.exchange import Exchange
from serving.gateway.feedback import Feedback
from serving.gateway.pipeline import Pipeline
from serving.gateway.protection import Protection
from serving.gateway.recorder import Recorder
from serving.gateway.seams import Caller
from serving.gateway.telemetry import Telemetry
from serving.gateway.traffic_state import TrafficState
from serving.openai_protocol import Reply, json_reply, model_list, model_object, operation_of
from serving.openapi import document

MODELS: Final = "/v1/models"
FEEDBACK: Final = "/v1/feedback"
_POSTED: Final = (FEEDBACK, "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
_REFUSED: Final = {
    413: Reason.BODY_TOO_LARGE,
    500: Reason.INTERNAL_ERROR,
    503: Reason.TOO_MANY_CONNECTIONS,
}
"""What HTTP's own refusals are but for malformed requests, by status."""
_ALIVE: Final = json_reply(200, {"status": "ok"})


@cache
def _document() -> Reply:
    return json_reply(200, document())


class DataApp:
    """The public port: OpenAI's API."""

    def __init__(self, pipeline: Pipeline, state: TrafficState, feedback: Feedback) -> None:
        self._pipeline = pipeline
        self._feedback = feedback
        self._state = state

    def begin(self, exchange: Exchange) -> Reply | None:
        """Answer what needs no engine, refuse what is refused unread; None for a request to a model."""
        path, method = exchange.path, exchange.method
        if path == "/healthz" and method in ("GET", "HEAD"):
            return _ALIVE
        if path == "/openapi.json" and method in ("GET", "HEAD"):
            return _document()
        operation = operation_of(path)
        if operation is None:
            return self._pipeline.rejection(_unknown_url(method, path), exchange=exchange)
        rejected = self._pipeline.authenticate(exchange)
        if rejected is not None:
            return self._pipeline.rejection(rejected, exchange=exchange)
        if method == "POST" and not path.startswith(MODELS):
            exchange.operation = operation
            return None
        if method in ("GET", "HEAD"):
            return self._get(path, method, exchange)
        return self._pipeline.rejection(_not_allowed(method, path), exchange=exchange)

    def serve(self, exchange: Exchange) -> Coroutine[Any, Any, None] | None:
        """Answer a request to a model."""
        if exchange.path == FEEDBACK:
            reply = self._feedback.take(exchange.caller, exchange.body, time.time())
            if isinstance(reply, Rejection):
                reply = self._pipeline.rejection(reply, exchange=exchange)
            exchange.respond(reply.status, list(reply.headers), reply.body)
            return None
        return self._pipeline.serve(exchange)

    def refuse(self, status: int, message: str, exchange: Exchange | None = None) -> Reply:
        """The answer to what HTTP itself forbids, or to what the gateway can't do, in OpenAI's shape."""
        reason = _REFUSED.get(status, Reason.MALFORMED_HTTP)
        retry_after_s = 1 if reason is Reason.TOO_MANY_CONNECTIONS else None
        rejection = Rejection(reason, message, retry_after_s=retry_after_s)
        reply = self._pipeline.rejection(rejection, exchange=exchange)
        return Reply(status, reply.body, reply.headers)

    def _get(self, path: str, method: str, exchange: Exchange) -> Reply:
        created = int(self._state.applied_at)
        caller: Caller = exchange.caller
        if path == MODELS:
            allowed = [name for name, r in self._state.routes.items() if caller.may_ask(name, r.traffic.namespace)]
            return json_reply(200, model_list(allowed, created))
        if path.startswith(MODELS + "/"):
            name = path[len(MODELS) + 1 :]
            bare, pinned, version = name.partition("@")
            route = self._state.routes.get(bare)
            if (
                route is None
                or not caller.may_ask(bare, route.traffic.namespace)
                or (pinned and route.traffic.by_version(version) is None)
            ):
                return self._pipeline.rejection(model_not_found(name), exchange=exchange)
            return json_reply(200, model_object(name, created))
        rejected = _not_allowed(method, path) if path in _POSTED else _unknown_url(method, path)
        return self._pipeline.rejection(rejected, exchange=exchange)


def _unknown_url(method: str, path: str) -> Rejection:
    return Rejection(
        Reason.UNKNOWN_URL,
        f"Unknown request URL: {method} {path[:128]}. Please check the URL for typos; see /v1/models.",
    )


def _not_allowed(method: str, path: str) -> Rejection:
    return Rejection(Reason.METHOD_NOT_ALLOWED, f"Not allowed to {method} on {path[:128]}; try another HTTP method.")


class AdminApp:
    """The admin port: metrics and health."""

    def __init__(
        self,
        state: TrafficState,
        book: EndpointBook,
        recorder: Recorder,
        instruments: GatewayInstruments,
        draining: Callable[[], bool],
        connected: Callable[[], bool],
        protection: Protection,
        telemetry: Telemetry,
    ) -> None:
        self._state = state
        self._book = book
        self._recorder = recorder
        self._instruments = instruments
        self._draining = draining
        self._connected = connected
        self._protection = protection
        self._telemetry = telemetry

    def begin(self, exchange: Exchange) -> Reply | None:
        """Answer one request; nothing here has a body to wait for."""
        match (exchange.method, exchange.path):
            case ("GET" | "HEAD", "/metrics"):
                return self._metrics(exchange)
            case ("GET" | "HEAD", "/targets"):
                if self._state.table is None and not self._connected():
                    # Prometheus keeps what it knows; an empty list would end every engine's series.
                    return json_reply(503, {"error": "no traffic table yet, so nobody knows which engines there are"})
                return json_reply(200, self._targets())
            case ("GET" | "HEAD", "/healthz"):
                return _ALIVE
            case ("GET" | "HEAD", "/readyz"):
                return self._readiness()
            case ("GET" | "HEAD", "/readyz/pod"):
                return self._pod_readiness()
            case (method, path):
                message = (
                    f"{method} {path[:128]} is not served; try GET /metrics, /targets, /healthz, /readyz or /readyz/pod"
                )
                return json_reply(404, {"error": message})

    async def serve(self, exchange: Exchange) -> None:
        """Never called: `begin` has answered."""

    def refuse(self, status: int, message: str, exchange: Exchange | None = None) -> Reply:
        """The answer to what HTTP itself forbids."""
        return json_reply(status, {"error": message})

    def _metrics(self, exchange: Exchange) -> Reply:
        self._instruments.set_in_flight(self._recorder.in_flight_by_version())
        self._instruments.set_events_dropped(self._recorder.outbox.dropped)
        self._instruments.set_telemetry_dropped(self._telemetry.dropped())
        self._instruments.set_rejections_unkept(self._telemetry.unkept())
        self._instruments.set_queue_depths(self._protection.gatekeeper.queue_depths())
        self._instruments.set_quotas(self._protection.gatekeeper.quota_use())
        now = time.monotonic()
        ready = {
            (model, r.version): self._book.ready(r.application, now)
            for model, revisions in ((name, route.traffic.revisions) for name, route in self._state.routes.items())
            for r in revisions
        }
        self._instruments.set_serving(ready, lease_valid=self._state.lease_valid(now))
        accept = exchange.fields.get(b"accept", b"").decode("latin-1")
        body, content_type = self._instruments.render(accept)
        return Reply(200, body, ((b"content-type", content_type.encode()),))

    def _pod_readiness(self) -> Reply:
        """Whether a balancer may send clients to this gateway rather than to another one.

        Says nothing of models: that a model has no engine is so at every gateway, and each answers it with 503 and the
        reason, which is better than no gateway at all. A controller that is connected and has sent no table has none.
        """
        missing: list[str] = []
        if self._state.table is None and not self._connected():
            missing.append("no traffic table, and no controller has been reached that could tell of one")
        missing += self._missing_here()
        return json_reply(200 if not missing else 503, {"ready": not missing, "missing": missing})

    def _missing_here(self) -> list[str]:
        missing: list[str] = []
        if (no_keys := self._protection.missing(time.time())) is not None:
            missing.append(no_keys)
        if self._draining():
            missing.append("draining: this gateway is stopping")
        return missing

    def _targets(self) -> list[dict[str, object]]:
        """Every engine that this gateway knows, with its model and version, for Prometheus' HTTP service discovery."""
        return [
            {
                "targets": [f"{e.host}:{e.port}"],
                "labels": {
                    "model": model, "version": r.version, "revision": r.digest[:12],
                    "__metrics_path__": f"{e.prefix}/metrics",
                },
            }
            for model, r, _ in self._state.revisions()
            for e in self._book.of(r.application)
        ]  # fmt: skip

    def _readiness(self) -> Reply:
        now = time.monotonic()
        missing: list[str] = []
        models: dict[str, dict[str, object]] = {}
        if self._state.table is None:
            missing.append("no traffic table yet; the controller pushes one once a model is deployed")
        for name, route in self._state.routes.items():
            models[name] = {
                r.version: {"role": r.role.value, "weight": r.weight,
                            "endpoints": len(self._book.of(r.application)),
                            "ready": self._book.ready(r.application, now)}
                for r in route.traffic.revisions
            }  # fmt: skip
        serving = [m for m, r in self._state.routes.items() if r.stable and self._book.ready(r.stable.application, now)]
        if self._state.table is not None and not serving:
            missing.append(
                f"none of {len(self._state.routes)} models has a stable revision with a ready endpoint; see `models`"
            )
        missing += self._missing_here()
        ready = not missing
        status = {
            "ready": ready,
            "missing": missing,
            "generation": list(self._state.generation),
            "controller_connected": self._connected(),
            "lease_valid": self._state.lease_valid(now),
            "models": models,
        }
        return json_reply(200 if ready else 503, status)
