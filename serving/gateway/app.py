"""The two ASGI applications of a gateway: the data plane, and the admin port."""

from __future__ import annotations

import time
from collections.abc import Callable

from monitoring.instruments import GatewayInstruments
from serving.admission import Reason, Rejection, model_not_found
from serving.endpoints import EndpointBook
from serving.gateway.asgi import Receive, Scope, Send, send_reply
from serving.gateway.forwarding import header
from serving.gateway.pipeline import Pipeline
from serving.gateway.recorder import Recorder
from serving.gateway.traffic_state import TrafficState
from serving.openai_protocol import Reply, json_reply, model_list, model_object, operation_of

MODELS = "/v1/models"


class DataApp:
    """The public port: OpenAI's API."""

    def __init__(self, pipeline: Pipeline, state: TrafficState) -> None:
        self._pipeline = pipeline
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            raise RuntimeError(f"scope {scope['type']!r} is not served here, only http")
        path: str = scope["path"]
        method: str = scope["method"]
        operation = operation_of(path)
        if method == "POST" and operation is not None and not path.startswith(MODELS):
            await self._pipeline.serve(scope, receive, send, operation)
        elif method in ("GET", "HEAD"):
            await self._get(path, method, send)
        elif operation is None:
            await self._pipeline.reject(send, _unknown_url(method, path))
        else:
            await self._pipeline.reject(send, _not_allowed(method, path))

    async def _get(self, path: str, method: str, send: Send) -> None:
        if path == "/healthz":
            await send_reply(send, json_reply(200, {"status": "ok"}))
        elif path == MODELS:
            await send_reply(send, json_reply(200, model_list(self._state.routes, int(self._state.applied_at))))
        elif path.startswith(MODELS + "/"):
            await self._model(path[len(MODELS) + 1 :], send)
        elif path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"):
            await self._pipeline.reject(send, _not_allowed(method, path))
        else:
            await self._pipeline.reject(send, _unknown_url(method, path))

    async def _model(self, name: str, send: Send) -> None:
        bare, _, version = name.partition("@")
        route = self._state.routes.get(bare)
        if route is None or (version and route.traffic.by_version(version) is None):
            await self._pipeline.reject(send, model_not_found(name))
            return
        await send_reply(send, json_reply(200, model_object(name, int(self._state.applied_at))))


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
    ) -> None:
        self._state = state
        self._book = book
        self._recorder = recorder
        self._instruments = instruments
        self._draining = draining
        self._connected = connected

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            raise RuntimeError(f"scope {scope['type']!r} is not served here, only http")
        match (scope["method"], scope["path"]):
            case ("GET" | "HEAD", "/metrics"):
                await send_reply(send, self._metrics(scope))
            case ("GET" | "HEAD", "/healthz"):
                await send_reply(send, json_reply(200, {"status": "ok"}))
            case ("GET" | "HEAD", "/readyz"):
                await send_reply(send, self._readiness())
            case (method, path):
                message = f"{method} {path[:128]} is not served; try GET /metrics, /healthz or /readyz"
                await send_reply(send, json_reply(404, {"error": message}))

    def _metrics(self, scope: Scope) -> Reply:
        self._instruments.set_in_flight(self._recorder.in_flight_by_version())
        self._instruments.set_events_dropped(self._recorder.outbox.dropped)
        accept = (header(scope["headers"], b"accept") or b"").decode("latin-1")
        body, content_type = self._instruments.render(accept)
        headers = ((b"content-type", content_type.encode()), (b"content-length", b"%d" % len(body)))
        return Reply(200, body, headers)

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
        if self._draining():
            missing.append("draining: this gateway is stopping")
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
