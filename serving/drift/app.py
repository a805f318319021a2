"""The drift watch's own port: metrics, health, and what it knows, for the controller and for people."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable
from typing import Any

from monitoring.instruments import DriftInstruments
from monitoring.measurements import DriftMeasurement
from serving.gateway.exchange import Exchange
from serving.openai_protocol import Reply, json_reply

STALE_S = 10.0
"""A status older than this means that the watch's thread is stuck."""


class DriftApp:
    """The application. Nothing here changes anything, and it holds ids and counts, and no text.

    Args:
        status: What the watch knows.
        key: Who asks for the status shows it; "" where only this machine can ask.

    """

    def __init__(self, status: Callable[[], dict[str, Any]], key: str = "") -> None:
        self._status = status
        self._authorization = f"Bearer {key}".encode() if key else b""
        self._instruments = DriftInstruments()

    def begin(self, exchange: Exchange) -> Reply | None:
        """Answer one request."""
        match (exchange.method, exchange.path):
            case ("GET" | "HEAD", "/metrics"):
                accept = exchange.fields.get(b"accept", b"").decode("latin-1")
                body, content_type = self._instruments.render(*measured(self._status()), accept)
                return Reply(200, body, ((b"content-type", content_type.encode()),))
            case ("GET" | "HEAD", "/healthz"):
                behind_s = time.time() - self._status()["written_at"]
                healthy = behind_s < STALE_S
                status = {"status": "ok" if healthy else "starting, or stuck", "behind_s": round(behind_s, 1)}
                return json_reply(200 if healthy else 503, status)
            case ("GET" | "HEAD", "/status"):
                shown = exchange.fields.get(b"authorization", b"")
                if self._authorization and not hmac.compare_digest(shown, self._authorization):
                    return json_reply(401, {"error": "/status needs the drift watch's key, as a bearer token"})
                return json_reply(200, self._status())
            case (method, path):
                message = f"{method} {path[:128]} is not served; try GET /metrics, /healthz or /status"
                return json_reply(404, {"error": message})

    async def serve(self, exchange: Exchange) -> None:
        """Never called: `begin` has answered."""

    def refuse(self, status: int, message: str, exchange: Exchange | None = None) -> Reply:
        """The answer to what HTTP itself forbids."""
        return json_reply(status, {"error": message})


def measured(status: dict[str, Any]) -> tuple[list[DriftMeasurement], dict[tuple[str, str], int], int]:
    """A status as metrics take it: detectors, requests by (model, result), dropped sightings."""
    detectors = [
        DriftMeasurement(stream["model"], stream["stream"], name, one["statistic"], one["threshold"],
                         active=one["active"], alarms=one["alarms"])
        for stream in status["streams"] for name, one in stream["detectors"].items()
    ]  # fmt: skip
    requests = {(row["model"], row["result"]): row["count"] for row in status["requests"]}
    return detectors, requests, status["dropped"]
